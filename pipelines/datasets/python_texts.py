"""English text that is on every machine with Python: its handbook, and what its library says of itself."""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HELD_OUT = 10  # of so many documents one is held out


def python_texts(split: str) -> list[str]:
    """The documents of a split, "train" or "test", in an order that depends on the version of Python alone.

    A document is a topic of the handbook (``help("topics")``) or the docstrings of a module of the standard library.
    The handbook's chapters contain each other, and modules share docstrings: a paragraph stands only where it comes
    first, so that nothing that is held out was read in training.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    documents = _without_repetitions([*_topics(), *_docstrings()])
    return [text for number, text in enumerate(documents) if (number % HELD_OUT == HELD_OUT - 1) == (split == "test")]


def _topics() -> Iterator[str]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]


def _docstrings() -> Iterator[str]:
    """Of modules that lie in the library's own folder, that of each in one text."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_bytes())
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        yield "\n\n".join(text for text in found if text)


def _without_repetitions(documents: list[str]) -> Iterator[str]:
    seen: set[str] = set()
    for document in documents:
        kept = []
        for paragraph in document.split("\n\n"):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                seen.add(words)
                kept.append(paragraph.strip("\n"))
        if kept:
            yield "\n\n".join(kept) + "\n"

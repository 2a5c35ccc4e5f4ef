"""Writes docs/tfa_migration.md from tftoolkit/migration/: its answers, its list of symbols, its recipes.

python tools/tfa_page.py
"""

import collections
from pathlib import Path

from tftoolkit.migration.answers import HERE, KINDS, Answer, answers, symbols

PAGE = Path(__file__).parents[1] / "docs/tfa_migration.md"
_INTRO = """# From TensorFlow Addons

TensorFlow Addons ended with version 0.23. Here is what stands in for each of its {count} public symbols: {ours} are
calls of this package, {builtin} are in TensorFlow or Keras by now, {recipe} are recipes of a few lines, and {none} are
not offered, with the reason. `tftoolkit tfa` says it for a program or notebook of yours, line by line, without running
it:

```sh
tftoolkit tfa train.py notebooks/      # --recipes prints the recipes' lines, --json is for other programs
```

It ends with exit code 0 if all that it found is offered, and with 1 if something is not, is unknown, or a file can't
be read. It follows imports, other names for modules and symbols, `getattr` and `import_module` with strings; not what
is kept in attributes and containers, nor methods of objects (`optimizer.assign_average_vars`).

`keras` is Keras 3, as `tf.keras` is since TensorFlow 2.16; Addons' layers, losses and metrics were those of Keras 2.
Layers have the same formulas, but weights saved by them aren't read: assign them one by one. `trainers`, `custom_ops`
and `pipelines` are this package's (`from tftoolkit import trainers`). Optimizers of `trainers` work with
`trainers.Update`, not with `model.fit`. Recipes are to be copied; tests compare them with what Addons itself computed.

This page is made by `tools/tfa_page.py`; what it says stands in `tftoolkit/migration/answers.toml`.
"""
_RECIPES = """
# Recipes

Each part begins with its imports; what begins with an underscore is used by others beside it.
"""


def page() -> str:
    counts = collections.Counter(answer.kind for answer in answers().values())
    text = [_INTRO.format(count=len(symbols()), **counts)]
    parts: dict[str, list[str]] = {}
    for symbol in symbols():
        parts.setdefault(symbol.partition(".")[0] if "." in symbol else "tfa itself", []).append(symbol)
    for part in sorted(parts):
        text.append(f"\n## {part}\n\n| `tfa.` | now | what differs |\n|---|---|---|\n")
        text += [
            f"| `{symbol}` | {_shown(answers()[symbol])} | {_cell(answers()[symbol].differs) or '–'} |\n"
            for symbol in sorted(parts[part], key=str.lower)
        ]
    text.append(_RECIPES)
    for file in sorted((HERE / "recipes").glob("[a-z]*.py")):
        docstring, _, code = file.read_text().removeprefix('"""').partition('"""\n')
        text.append(f"\n## Recipes: {file.stem}\n\n{docstring.replace('``', '`')}\n\n```python\n{code.strip()}\n```\n")
    return "".join(text)


def _shown(answer: Answer) -> str:
    if answer.kind == "none":
        return f"{KINDS['none']}: {_cell(answer.text)}"
    if answer.kind == "recipe":
        module, _, name = answer.text.partition(".")
        return f"recipe [`{name}`](#recipes-{module})"
    return f"`{_cell(answer.text)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())

"""What the page of a model that writes must know, and what it has to prove."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tftoolkit.export.report import ExportError

TEMPLATE = Path(__file__).parent / "writing_page"
SIGNATURES = {"prefill", "decode"}


@dataclass(frozen=True)
class Sample:
    """What the file wrote elsewhere, the likeliest token each time.

    Attributes:
      text: the prompt.
      prompt: its tokens.
      tokens: those behind it.
    """

    text: str
    prompt: Sequence[int]
    tokens: Sequence[int]


def page_of(signatures: Mapping[str, Any], tokenizer: Path, sample: Sample | None) -> dict[str, Any]:
    """For page.json. Raises ValueError where file or tokenizer do not fit the page, FileNotFoundError without one."""
    one, many = ({tensor["name"]: tensor for tensor in signatures[name]["inputs"]} for name in ("decode", "prefill"))
    shapes = [side.get("tokens", {}).get("shape") for side in (one, many)]
    if shapes[0] != [1, 1] or shapes[1] is None or len(shapes[1]) != 2 or not {"start", "tokens"} < one.keys():
        raise ValueError(
            "the page needs signatures as generation_signatures makes them: tokens [1, n] ([1, 1] of decode), start "
            f"and a cache; this file has {signatures}"
        )
    cache = [
        {"name": name, "size": int(np.prod(tensor["shape"]))}
        for name, tensor in one.items()
        if name not in ("tokens", "start")
    ]
    # A state has two dimensions and no end; keys and values have as many rows as there is room.
    room = [tensor["shape"][1] for name, tensor in one.items() if len(tensor["shape"]) == 4]
    _check_tokenizer(tokenizer)
    return {
        "prefill": shapes[1][1],
        "capacity": min(room, default=ENDLESS),
        "cache": cache,
        "prompt": sample.text if sample else "The ",
    }


ENDLESS = 2000  # tokens that the page writes where nothing else ends it


def _check_tokenizer(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"the page needs {path.name} beside the file: Tokenizer.save writes it")
    content = json.loads(path.read_text("utf-8"))
    found = (content["model"].get("type"), (content.get("pre_tokenizer") or {}).get("type"), content.get("normalizer"))
    if found != ("BPE", "ByteLevel", None):
        raise ValueError(
            f"{path}: the page knows byte-level byte-pair encoding without a normalizer, not model {found[0]}, "
            f"pre_tokenizer {found[1]}, normalizer {found[2]}"
        )


def check_sample(sample: Sample, found: Mapping[str, Any], is_exact: bool) -> None:
    """Raises ExportError where the page reads the prompt otherwise, or (``is_exact``) writes something else."""
    if list(found["prompt"]) != list(sample.prompt):
        raise ExportError("browser", f"the page reads {sample.text!r} as {found['prompt']}, not {list(sample.prompt)}")
    pairs = zip(found["tokens"], sample.tokens, strict=True)
    first = next((number for number, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
    if is_exact and first is not None:
        raise ExportError(
            "browser", f"token {first} is {found['tokens'][first]} there, and {sample.tokens[first]} elsewhere"
        )

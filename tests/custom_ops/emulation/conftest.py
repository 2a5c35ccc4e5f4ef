"""What the tests of emulation share."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def place_of() -> Callable[[str, str], str]:
    """("planted.cu", "reuse") → "planted.cu:49", the line with the mark "@reuse", as findings spell it."""

    def place(source: str, mark: str) -> str:
        lines = (HERE / source).read_text().splitlines()
        (number,) = [i for i, line in enumerate(lines, 1) if re.search(rf"// .*@{mark}\b", line)]
        return f"{source}:{number}"

    return place

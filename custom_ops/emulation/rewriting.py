"""CUDA source → C++ that g++ compiles, line for line: launches, shared arrays, and the few words that macros can't do.

K<T><<<grid, block, bytes, stream>>>(x)     Launch("K<T>", …, [&](auto... a) { K<T>(a...); }, grid, …)(x)
__shared__ float sums[8][32];               a reference to memory that each block gets anew
extern __shared__ float tile[];             a pointer to the launch's dynamic shared memory
__noinline__                                __attribute__((noinline)), since libstdc++ uses the word itself
"""

from __future__ import annotations

import re
from pathlib import Path

from tftoolkit.custom_ops.engine.errors import BuildError

_NAMESPACE = "::tftoolkit::emulation"
# Strings and characters with their escapes, and comments; what stands in them is not code. First, 1'000'000.
_NOT_CODE = re.compile(
    r'(?<=\d)\'(?=\d)|R"([^()\s\\]*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|//[^\n]*|/\*.*?\*/', re.DOTALL
)
_SHARED = re.compile(r"(\bextern\s+)?(?:\bstatic\s+)?\b__shared__\b\s*([^;{}()]*(?:\([^;{}]*?\)[^;{}()]*)*);")
_ALIGNMENT = re.compile(r"\b(?:alignas|__align__)\s*\(")
_DECLARATOR = re.compile(r"^(?P<type>.*?)(?P<name>[A-Za-z_]\w*)\s*(?P<dims>(?:\[.*\])?)\s*$", re.DOTALL)
_NOINLINE = re.compile(r"\b__noinline__\b")


def is_cuda(text: str) -> bool:
    """Whether the text holds something that must be rewritten."""
    code = _code(text)
    return "<<<" in code or bool(re.search(r"\b(__shared__|__noinline__)\b", code))


def rewrite(text: str, path: Path) -> str:
    """The source as C++, whose lines the compiler counts as those of ``path``.

    Raises BuildError, with the line, for a launch or a shared array that it can't read.
    """
    text = _launches(text, path)
    text = _shared_arrays(text, path)
    text = _replace(text, _NOINLINE, lambda found: "__attribute__((noinline))")
    name = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'#line 1 "{name}"\n{text}'


def _code(text: str) -> str:
    """The text with blanks in place of comments and of what is in strings; as long, with the same lines."""
    return _NOT_CODE.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), text)


def _replace(text: str, pattern: re.Pattern[str], replacement: object) -> str:
    parts, end = [], 0
    for found in pattern.finditer(_code(text)):
        parts += [text[end : found.start()], replacement(found)]  # type: ignore[operator]
        end = found.end()
    return "".join([*parts, text[end:]])


def _refuse(text: str, place: int, path: Path, what: str) -> BuildError:
    return BuildError(f"{path}:{text.count(chr(10), 0, place) + 1}: {what}")


# Launches


def _launches(text: str, path: Path) -> str:
    code = _code(text)
    parts, end = [], 0
    for found in re.finditer("<<<", code):
        begin = _kernel_begin(code, found.start())
        close = _close(code, found.end(), ">>>")
        if begin == found.start() or begin < end or close is None:
            advice = "write kernel<<<grid, block, bytes, stream>>>(arguments) with a name, not an expression, as kernel"
            raise _refuse(text, found.start(), path, f"this launch cannot be read: {advice}")
        kernel = " ".join(text[begin : found.start()].split())
        quoted = kernel.replace("\\", "\\\\").replace('"', '\\"')
        lines = "\n" * text.count("\n", begin, found.start())
        parts += [
            text[end:begin],
            f'{_NAMESPACE}::Launch("{quoted}", __FILE__, __LINE__, [&](auto... tk_arguments) '
            f"__attribute__((no_sanitize_thread)) {{ {kernel}(tk_arguments...); }},{lines}",
            text[found.end() : close],
            ")",
        ]
        end = close + len(">>>")
    return "".join([*parts, text[end:]])


def _close(code: str, begin: int, mark: str) -> int | None:
    """Where ``mark`` stands outside of brackets, from ``begin`` on."""
    depth = 0
    for place in range(begin, len(code)):
        depth += (code[place] in "([{") - (code[place] in ")]}")
        if depth < 0:
            return None
        if depth == 0 and code.startswith(mark, place):
            return place
    return None


def _kernel_begin(code: str, end: int) -> int:
    """Where the kernel's name begins that ends before ``end``: a::b<int, (2 > 1)>, or an expression in brackets."""
    place = len(code[:end].rstrip())
    if code[:place].endswith(")"):
        return _open(code, place, "()")
    while True:
        if code[:place].endswith(">"):
            place = len(code[: _open(code, place, "<>")].rstrip())
        word = re.search(r"[A-Za-z_]\w*$", code[:place])
        if word is None:
            return end
        place = word.start()
        before = code[:place].rstrip()
        if not before.endswith("::"):
            return place
        place = len(before[:-2].rstrip())
        if not re.search(r"[\w>]$", code[:place]):
            return place


def _open(code: str, end: int, pair: str) -> int:
    """Where the bracket opens that is closed just before ``end``."""
    depth = round_depth = 0
    for place in range(end - 1, -1, -1):
        if pair == "<>":
            round_depth += (code[place] == ")") - (code[place] == "(")
            if round_depth > 0:
                continue
        depth += (code[place] == pair[1]) - (code[place] == pair[0])
        if depth == 0:
            return place
    return end


# Shared arrays


def _shared_arrays(text: str, path: Path) -> str:
    code = _code(text)
    parts, end, count = [], 0, 0
    for found in _SHARED.finditer(code):
        declaration = code[found.start(2) : found.end(2)]  # without the comments in it
        alignment, declaration = _alignment(declaration)
        if not _in_function(code[: found.start()]):
            raise _refuse(text, found.start(), path, "a shared array outside of functions: declare it in the kernel")
        lines = "\n" * text.count("\n", found.start(), found.end())
        new = []
        base = ""
        for declarator in _split(declaration):
            read = _DECLARATOR.match(declarator)
            base = base or (read["type"].strip() if read else "")
            if read is None or not base:
                raise _refuse(text, found.start(), path, f"this shared array cannot be read: {declarator.strip()}")
            new.append(_shared_array(base, read["name"], " ".join(read["dims"].split()), alignment, bool(found[1])))
        parts += [text[end : found.start()], " ".join(new), lines]
        end = found.end()
        count += 1
    if code.count("__shared__") != count:
        place = code.index("__shared__", end if "__shared__" in code[end:] else 0)
        raise _refuse(text, place, path, "this use of __shared__ cannot be read: declare one array in a statement")
    return "".join([*parts, text[end:]])


def _in_function(before: str) -> bool:
    """Whether a brace is open that is not a namespace's or of ``extern "C"``, whose string is blanked."""
    opened: list[bool] = []
    for found in re.finditer(r"(\bnamespace\b[^;{}()]*|\bextern\s*)?\{|\}", before):
        if found.group() != "}":
            opened.append(found[1] is None)
        elif opened:
            opened.pop()
    return any(opened)


def _shared_array(base: str, name: str, dims: str, alignment: str, dynamic: bool) -> str:
    if dynamic:
        called = f"{_NAMESPACE}::DynamicSharedMemory({alignment or f'alignof({base})'})"
        return f"{base}* const {name} = static_cast<{base}*>({called});"
    alias, site = f"tk_type_of_{name}", f"tk_site_of_{name}"
    called = f'{_NAMESPACE}::SharedMemory(&{site}, "{name}", sizeof({alias}), {alignment or f"alignof({alias})"})'
    return f"static char {site}; typedef {base} {alias}{dims}; {alias}& {name} = *static_cast<{alias}*>({called});"


def _alignment(declaration: str) -> tuple[str, str]:
    """What ``alignas`` asks for, and the declaration without it."""
    found = _ALIGNMENT.search(declaration)
    if found is None:
        return "", declaration
    close = _matching(declaration, found.end())
    return declaration[found.end() : close].strip(), declaration[: found.start()] + declaration[close + 1 :]


def _matching(code: str, begin: int) -> int:
    depth = 1
    for place in range(begin, len(code)):
        depth += (code[place] == "(") - (code[place] == ")")
        if depth == 0:
            return place
    return len(code)


def _split(declaration: str) -> list[str]:
    """At commas outside of brackets; those of templates count as brackets."""
    parts, depth, begin = [], 0, 0
    for place, letter in enumerate(declaration):
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and depth == 0:
            parts.append(declaration[begin:place])
            begin = place + 1
    return [*parts, declaration[begin:]]

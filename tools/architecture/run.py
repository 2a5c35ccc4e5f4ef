"""Draws docs/architecture.svg from the real imports: the packages of tftoolkit, their parts, and who imports whom.

    python tools/architecture/run.py [FILE.svg]

Floors are those of the contracts in ``pyproject.toml``. An arrow that follows from others (a to b to c, so a to c) is
left out. The same imports and numbers of lines give the same bytes; a test compares the imports.
"""

import ast
import re
import sys
import textwrap
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path

import grimp
from layout import HEIGHT, MARGIN, Box, Edges, Point, arrange, row_width

ROOT = Path(__file__).parents[2]
SUFFIXES = {".py", ".cc", ".cu", ".h", ".html", ".css", ".js"}  # whose lines count
COLOURS = {  # of the packages that fill a storey: ink, ground
    "export": ("#6d28d9", "#f5f1fe"),
    "trainers": ("#b45309", "#fdf5e8"),
    "pipelines": ("#1d4ed8", "#eef4fe"),
    "custom_ops": ("#15803d", "#eaf7ef"),
}
PLAIN = ("#4b5563", "#f3f4f6")
WIDTH, STOREY, BESIDE = 1000, 924, 240
LINES_PER_PIXEL = 12


def main() -> None:
    picture = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/architecture.svg"
    picture.write_text(draw(read()))


# ---- what there is


def read() -> Box:
    """The house with its packages and their parts, in place."""
    sys.path.insert(0, str(ROOT))  # this checkout, whatever is installed
    graph = grimp.build_graph("tftoolkit", cache_dir=None)
    imports = {(a, b) for a in graph.modules for b in graph.find_modules_directly_imported_by(a)}
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {contract["containers"][0]: contract["layers"] for contract in contracts if contract["type"] == "layers"}
    edges = {(_name(a, 1), _name(b, 1)) for a, b in imports}
    house = Box("tftoolkit", WIDTH, head=MARGIN, edges=edges)
    for names in _floors(layers["tftoolkit"], None, edges):
        packages = [_package(name, imports, layers.get(f"tftoolkit.{name}", [])) for name in names]
        for package in packages:
            if package.name in COLOURS:
                package.width += STOREY - row_width(packages)
                package.purpose = textwrap.wrap(_purpose(package.name), (package.width - 2 * MARGIN) // 7)
            package.head = 36 + 20 * len(package.purpose)
            arrange(package)
        house.floors.append(packages)
    arrange(house)
    return house


def _package(name: str, imports: Edges, layers: Sequence[str]) -> Box:
    """A package and its parts, not yet in place."""
    folder = (ROOT / "tftoolkit" / name).resolve()
    uses: dict[str, set[str]] = defaultdict(set)  # of each part, "" for all of them
    edges: Edges = set()
    for importer, imported in imports:
        if _name(importer, 1) == name:
            part, other = _name(importer, 2), _name(imported, 1)
            if imported == f"tftoolkit.{name}":
                edges |= {(part, target) for target in _by_name(importer, name)}
            elif other == name:
                edges.add((part, _name(imported, 2)))
            else:
                uses[part].add(other)
                uses[""].add(other)
    paths = [path for path in sorted(folder.iterdir()) if path.is_dir() or path.suffix == ".py"]
    parts = {path.stem: _box(path, uses[path.stem]) for path in paths if path.name[0] not in "_."}
    floors = _floors(layers, list(parts), edges)
    package = _box(folder, uses[""])
    package.floors = [[parts[part] for part in floor] for floor in floors]
    package.edges = edges
    title = 10 * len(name) + 10 * len(package.uses) + 2 * MARGIN
    floors_width = max((row_width(floor) for floor in package.floors), default=0)
    if name not in COLOURS:  # stands beside others: its floors are broken into lines
        widest = max((part.width for part in parts.values()), default=0)
        floors_width = min(floors_width, max(widest, BESIDE))
    package.width = max(title, floors_width + 2 * MARGIN)
    return package


def _by_name(module: str, package: str) -> set[str]:
    """The parts of which a module that imports the whole package uses a name."""
    used = {
        node.attr
        for node in ast.walk(_parsed(module))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == package
    }
    parts = set()
    for node in ast.walk(_parsed(f"tftoolkit.{package}")):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts |= {_name(f"{node.module}.{name.name}", 2) for name in node.names if name.name in used}
    return parts


def _parsed(module: str) -> ast.Module:
    path = ROOT / module.replace(".", "/")
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


def _box(path: Path, uses: set[str]) -> Box:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in SUFFIXES]
    lines = sum(len(file.read_text().splitlines()) for file in files)
    marks = [package for package in COLOURS if package in uses]
    width = max(round(8.4 * len(path.stem)) + 10 * len(marks) + 18, lines // LINES_PER_PIXEL)
    return Box(path.stem, width, lines, marks)


def _name(module: str, depth: int) -> str:
    """That of the module's package (depth 1) or of its part of the package (depth 2); "" if it lies above."""
    return ".".join(module.split(".")[depth : depth + 1])


def _purpose(package: str) -> str:
    """What its docstring begins with."""
    return (ast.get_docstring(_parsed(f"tftoolkit.{package}")) or "").split("\n")[0].replace("``", "")


def _floors(layers: Sequence[str], names: Sequence[str] | None, edges: Edges) -> list[list[str]]:
    """Names by floor: those of the contract; what it does not name stands right above its last layer."""
    rows = [re.findall(r"\w+", layer) for layer in layers]
    if names is not None:
        rest = [name for name in names if not any(name in row for row in rows)]
        rows = [[name for name in row if name in names] for row in rows]
        rows = [*rows[:-1], rest, *rows[-1:]]
    return [level for row in rows if row for level in _levels(row, edges)]


def _levels(row: list[str], edges: Edges) -> list[list[str]]:
    """One floor with importers right before what they import; several where neighbours cannot show it."""
    targets = {name: [other for other in row if (name, other) in edges and other != name] for name in row}
    upper, lower = [], list(row)
    for name in row:
        if targets[name]:
            (target, *others), importers = targets[name], [n for n in row if targets[name][0] in targets[n]]
            lower.remove(name)
            if others or targets[target] or importers != [name]:
                upper.append(name)
            else:
                lower.insert(lower.index(target), name)
    if upper == row:
        raise ValueError(f"these import each other in a circle: {', '.join(row)}")
    return [*(_levels(upper, edges) if upper else []), lower]


# ---- how it looks


def facts(house: Box) -> str:
    """What the picture shows, in words: parts and imports, but not how long files are, which changes every day."""
    found = []
    for box in (house, *(package for floor in house.floors for package in floor)):
        parts = {part.name: part for floor in box.floors for part in floor}
        found += [f"{box.name}.{name} > {' '.join(part.uses)}" for name, part in parts.items()]
        found += [f"{box.name}.{a} > {b}" for a, b in box.edges if a in parts and b in parts and a != b]
    return "\n".join(sorted(found))


def draw(house: Box) -> str:
    """The picture, as SVG."""
    height = house.height + 58
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" '
        'font-size="13" role="img" aria-labelledby="title">',
        '  <title id="title">The packages of tftoolkit, the parts of each, and which imports which</title>',
        f"  <metadata>\n{escape(facts(house))}\n</metadata>",
        "  <style>",
        "    .arrow { fill: none; stroke-width: 1.4 }",
        "    .around { fill: none; stroke-width: 5 }",
        "    .small { font-size: 12px; fill: #4b5563 }",
        "    text { fill: #111 }",
        "  </style>",
        f'  <rect width="{WIDTH}" height="{height}" rx="8" fill="#fff"/>',
        *_arrows(house, PLAIN[0], "#fff"),
        *(line for floor in house.floors for package in floor for line in _storey(package)),
        *_legend(house.height),
        "</svg>",
    ]
    return "\n".join([*lines, ""])


def _storey(package: Box) -> list[str]:
    ink, ground = COLOURS.get(package.name, PLAIN)
    lines = [
        f'  <g transform="translate({package.x} {package.y})">',
        f'    <rect width="{package.width}" height="{package.height}" rx="8" fill="{ground}" stroke="{ink}" '
        'stroke-opacity="0.5"/>',
        f'    <text x="{MARGIN}" y="24" font-size="15" font-weight="700" style="fill: {ink}">{package.name}</text>',
        *_dots(package, MARGIN + 10 * len(package.name) + 12, 19),
    ]
    if package.purpose:
        end, count = package.width - MARGIN, round(package.lines, -2)
        lines.append(f'    <text class="small" x="{end}" y="24" text-anchor="end">{count:,} lines</text>')
    for number, line in enumerate(package.purpose):
        lines.append(f'    <text class="small" x="{MARGIN}" y="{42 + 16 * number}">{escape(line)}</text>')
    lines += _arrows(package, ink, ground)
    for part in (part for floor in package.floors for part in floor):
        x = part.x + (part.width - 10 * len(part.uses)) // 2
        lines += [
            f'    <rect x="{part.x}" y="{part.y}" width="{part.width}" height="{HEIGHT}" rx="4" fill="#fff" '
            f'stroke="{ink}"/>',
            f'    <text x="{x}" y="{part.y + 17}" text-anchor="middle">{part.name}</text>',
            *_dots(part, part.right - 10 * len(part.uses), part.y + HEIGHT // 2),
        ]
    return [*lines, "  </g>"]


def _dots(package: Box, x: int, y: int) -> list[str]:
    return [
        f'    <circle cx="{x + 10 * number}" cy="{y}" r="3.5" fill="{COLOURS[name][0]}"/>'
        for number, name in enumerate(package.uses)
    ]


def _arrows(outer: Box, ink: str, ground: str) -> list[str]:
    """Each with the ground's colour around it, so that lines that cross stay apart."""
    lines = []
    for ways in outer.arrows:
        (a, _), (x, y) = ways[0][-2:]
        tip = f"M{x - 3.5} {y - 6}h7L{x} {y}z" if a == x else f"M{x - 6} {y - 3.5}v7L{x} {y}z"
        path = "".join(_rounded(way) for way in ways)
        lines += [
            f'    <path class="around" d="{path}" stroke="{ground}"/>',
            f'    <path class="arrow" d="{path}" stroke="{ink}"/><path d="{tip}" fill="{ink}"/>',
        ]
    return lines


def _rounded(way: Sequence[Point]) -> str:
    """A path along horizontal and vertical lines, with round corners."""
    points = list(dict.fromkeys(way))
    corners = [b for a, b, c in zip(points, points[1:], points[2:], strict=False) if not a[0] == b[0] == c[0]]
    points = [points[0], *corners, points[-1]]
    path = "M{} {}".format(*points[0])
    for a, b, c in zip(points, points[1:], points[2:], strict=False):
        path += "L{} {}Q{} {} {} {}".format(*_towards(b, a), *b, *_towards(b, c))
    return path + "L{} {}".format(*points[-1])


def _towards(corner: Point, other: Point) -> Point:
    """Where the rounding of a corner begins."""
    (x, y), (a, b) = corner, other
    step = min(5, max(abs(a - x), abs(b - y)) // 2)
    return x + step * ((a > x) - (a < x)), y + step * ((b > y) - (b < y))


def _legend(y: int) -> list[str]:
    scale = 1000 // LINES_PER_PIXEL
    lines = [
        f'  <g transform="translate({(WIDTH - STOREY) // 2} {y})">',
        f'    <path d="M0 4v6M0 7h{scale}m0-3v6" stroke="{PLAIN[0]}" fill="none"/>',
        f'    <text class="small" x="{scale + 8}" y="11">1,000 lines of code</text>',
        '    <text class="small" x="300" y="11">arrow: imports; left out where it follows from others</text>',
        '    <text class="small" y="35">dot: imports from</text>',
    ]
    x = 130
    for name, (ink, _) in COLOURS.items():
        lines.append(f'    <circle cx="{x}" cy="31" r="3.5" fill="{ink}"/>')
        lines.append(f'    <text class="small" x="{x + 8}" y="35">{name}</text>')
        x += 8 * len(name) + 26
    return [*lines, "  </g>"]


if __name__ == "__main__":
    main()

"""Boxes on floors, and arrows that are led down between them without crossing any box.

Arrows run along horizontal and vertical lines. Those to the same box run together, except that those from the floor
right above it have a way of their own.
"""

import dataclasses
import graphlib
import itertools
from collections import defaultdict
from collections.abc import Sequence

HEIGHT, BETWEEN, MARGIN = 25, 24, 18  # of a box without parts; beside boxes; around those in a box
GAP, TRACK = 18, 7  # below a floor; between arrows that run side by side

Edges = set[tuple[str, str]]
Point = tuple[int, int]


@dataclasses.dataclass(eq=False)
class Box:
    """x and y are counted from the corner of the box that it lies in."""

    name: str
    width: int
    lines: int = 0  # of code
    uses: list[str] = dataclasses.field(default_factory=list)  # names to be marked on it
    purpose: list[str] = dataclasses.field(default_factory=list)  # lines of text
    head: int = 0  # how far its floors are below its top
    floors: list[list["Box"]] = dataclasses.field(default_factory=list)
    edges: Edges = dataclasses.field(default_factory=set)  # between the boxes on its floors, by name
    arrows: list[list[list[Point]]] = dataclasses.field(default_factory=list)  # the ways of those that run together
    x: int = 0
    y: int = 0
    height: int = HEIGHT

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def bottom(self) -> int:
        return self.y + self.height

    @property
    def middle(self) -> int:
        return self.x + self.width // 2

    @property
    def inset(self) -> int:
        """How far from its corners arrows keep."""
        return min(24, self.width // 8)


@dataclasses.dataclass(eq=False)
class Bundle:
    """Arrows to one box: down from their boxes, to a common line at ``x``, and into the target."""

    target: Box
    last: int  # the gap between floors above the target
    sources: dict[Box, int] = dataclasses.field(default_factory=dict)  # with the gap below each
    x: int = 0
    starts: dict[Box, int] = dataclasses.field(default_factory=dict)  # where they leave their boxes
    end: int = 0

    @property
    def first(self) -> int:
        return min(self.sources.values())

    def reach(self, box: Box) -> int:
        """How far its line is from where it could meet a box straight."""
        return max(box.x + box.inset - self.x, 0, self.x - box.right + box.inset)


def arrange(outer: Box) -> None:
    """Gives the boxes in ``outer`` their places, ``outer`` its height, and the arrows their ways."""
    outer.floors = [part for floor in outer.floors for part in _wrapped(floor, outer.width - 2 * MARGIN)]
    for floor in outer.floors:
        x = (outer.width - row_width(floor)) // 2
        for box in floor:
            box.x, x = x, x + box.width + BETWEEN
    bundles = _bundles(outer)
    turns: dict[tuple[Bundle, int, bool], int] = {}  # bundle, gap, whether it turns into its target -> y
    y = outer.head
    for gap, floor in enumerate(outer.floors):
        for box in floor:
            box.y = y
        y = max(box.bottom for box in floor)
        tracks = _tracks(bundles, gap)
        turns |= {(bundle, gap, enters): y + TRACK * track + TRACK for (bundle, enters), track in tracks.items()}
        y += MARGIN if floor is outer.floors[-1] else GAP + TRACK * max(tracks.values(), default=0)
    outer.height = y
    for bundle in bundles:
        ways = []
        for source, gap in bundle.sources.items():
            start, x, end = bundle.starts[source], bundle.x, bundle.end
            over, into = turns.get((bundle, gap, False)), turns.get((bundle, bundle.last, True))
            way = [(start, source.bottom), (start, over), (x, over), (x, into), (end, into), (end, bundle.target.y)]
            ways.append([(x, y) for x, y in way if y is not None])
        outer.arrows.append(ways)
    for floor in outer.floors:
        for left, right in itertools.pairwise(floor):
            if (left.name, right.name) in outer.edges:
                outer.arrows.append([[(left.right, left.y + HEIGHT // 2), (right.x, left.y + HEIGHT // 2)]])


def row_width(floor: Sequence[Box]) -> int:
    return sum(box.width + BETWEEN for box in floor) - BETWEEN


def _wrapped(floor: Sequence[Box], width: int) -> list[list[Box]]:
    """As many floors as it takes."""
    floors: list[list[Box]] = [[]]
    for box in floor:
        if floors[-1] and row_width([*floors[-1], box]) > width:
            floors.append([])
        floors[-1].append(box)
    return floors


def _bundles(outer: Box) -> list[Bundle]:
    """The arrows that go down, each bundle with its line where no box is in the way."""
    place = {box.name: (number, box) for number, floor in enumerate(outer.floors) for box in floor}
    found: dict[tuple[str, bool], Bundle] = {}
    for a, b in sorted(_reduced({(a, b) for a, b in outer.edges if a != b and a in place and b in place})):
        (above, source), (below, target) = place[a], place[b]
        if above < below:
            found.setdefault((b, above + 1 == below), Bundle(target, below - 1)).sources[source] = above
    bundles = sorted(found.values(), key=lambda bundle: (bundle.last - bundle.first, bundle.last, bundle.target.x))
    for number, bundle in enumerate(bundles):
        walls = [(box.x, box.right) for floor in outer.floors[bundle.first + 1 : bundle.last + 1] for box in floor]
        walls += [(o.x, o.x) for o in bundles[:number] if o.first <= bundle.last and bundle.first <= o.last]
        bundle.x = _line(bundle, outer.width, walls)
    ends = [(bundle.target, bundle) for bundle in bundles]
    starts = [(source, bundle) for bundle in bundles for source in bundle.sources]
    for is_end, pairs in ((True, ends), (False, starts)):
        taken: dict[Box, list[int]] = defaultdict(list)
        for box, bundle in sorted(pairs, key=lambda pair: (pair[1].reach(pair[0]) > 0, pair[1].x)):
            edge = range(box.x + box.inset, box.right - box.inset + 1)
            free = [x for x in edge if all(abs(x - other) > 6 for other in taken[box])]
            x = min(free or edge, key=lambda x: abs(x - bundle.x))
            taken[box].append(x)
            if is_end:
                bundle.end = x
            else:
                bundle.starts[box] = x
    return bundles


def _line(bundle: Bundle, width: int, walls: Sequence[tuple[int, int]]) -> int:
    """Where the arrows of a bundle have the shortest way."""

    def length(x: int) -> tuple[int, int]:
        bundle.x = x
        middles = [bundle.target.middle, *(source.middle for source in bundle.sources)]
        return 2 * bundle.reach(bundle.target) + sum(map(bundle.reach, bundle.sources)), sum(
            (x - m) ** 2 for m in middles
        )

    everywhere = range(8, width - 7)
    free = [x for x in everywhere if not any(low - 10 < x < high + 10 for low, high in walls)]
    return min(free or everywhere, key=length)


def _reduced(edges: Edges) -> Edges:
    """Without those that follow from others. Raises graphlib.CycleError, which names a circle."""
    below: dict[str, set[str]] = defaultdict(set)
    for a, b in edges:
        below[a].add(b)
    reached: dict[str, set[str]] = {}
    for name in graphlib.TopologicalSorter(below).static_order():
        reached[name] = below[name].union(*(reached[other] for other in below[name]))
    return {(a, b) for a, b in edges if not any(b in reached[other] for other in below[a])}


def _tracks(bundles: Sequence[Bundle], gap: int) -> dict[tuple[Bundle, bool], int]:
    """Which of the tracks side by side each turn of a bundle in a gap takes: from its boxes, or into its target."""
    spans = []
    for number, bundle in enumerate(bundles):
        starts = [bundle.starts[source] for source, below in bundle.sources.items() if below == gap]
        for enters, xs in ((False, starts), (True, [bundle.end] if bundle.last == gap else [])):
            if any(x != bundle.x for x in xs):
                spans.append((enters, min(*xs, bundle.x), max(*xs, bundle.x), number))
    tracks: dict[tuple[Bundle, bool], int] = {}
    placed: list[tuple[int, int, int]] = []
    for enters, low, high, number in sorted(spans):
        track = max((1 + track for track, left, right in placed if low - 8 < right and left < high + 8), default=0)
        placed.append((track, low, high))
        tracks[bundles[number], enters] = track
    return tracks

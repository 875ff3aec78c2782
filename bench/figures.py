"""The figures that clocks, CRDTs, digests and conflicts are held to: what, how much, and which benchmark has it.

`report.py` makes the table of them, and the plots of how cost grows, from the results of one run.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from nova.cli.benchmarks import seconds


class Figure(NamedTuple):
    """One row. `key` is a name in a benchmark's extra_info; without it the figure is its time per operation."""

    what: str
    target: float
    unit: str  # ns, us, ms; B, KB
    benchmark: str
    key: str = ""
    peers: tuple[str, ...] = ()  # names of their benchmarks, or what stands for the peer in the brackets
    bound: str = ""


SCALES = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "B": 1.0, "KB": 1e3}

WRITERS = ("loro", "pycrdt", "diamond-types", "automerge")

FIGURES = [
    Figure("`a < b` of empty clocks: a call from Python alone, which is in all figures of calls", 16, "ns",
           "test_before_of_empty_clocks"),
    *(
        Figure(f"`a < b`, {n:,} actors", target, "ns", f"test_before_when_one_actor_differs[nova-{n}]",
               peers=(f"test_before_when_one_actor_differs[dict-{n}]",),
               bound="but for the call alone it takes 3 ns" if n == 16 else "")
        for n, target in ((16, 12), (64, 20), (256, 50), (1024, 140))
    ),
    *(
        Figure(f"`a < b`, {n:,} actors, clocks made apart", target, "ns",
               f"test_before_when_one_actor_differs[nova-unshared-{n}]",
               peers=(f"test_before_when_one_actor_differs[dict-{n}]",),
               bound="as above: the first comparison gives both one column")
        for n, target in ((16, 12), (64, 20), (256, 50), (1024, 140))
    ),
    *(
        Figure(f"one clock against many, 16 actors, {size}, each", target, "ns",
               f"test_one_clock_against_many[nova-{size}]", peers=(f"test_one_clock_against_many[numpy-{size}]",))
        for size, target in (("in cache", 3), ("64 MiB", 6))
    ),
    *(
        Figure(f"merge that brings nothing new, OR-Set of {n:,}", 30, "ns",
               f"test_merge_that_brings_nothing_new[nova-{n}]",
               peers=(f"test_merge_that_brings_nothing_new[dict-{n}]",))
        for n in (1_000, 1_000_000)
    ),
    *(
        Figure(f"full merge of a million, {what}", target, "ms", f"test_full_merge[{what}-nova-1000000]",
               peers=() if "Map of" in what else (f"test_full_merge[{what}-dict-1000000]",), bound=bound)
        for what, target, bound in (
            ("PN-Counter, one actor counted on", 1.2, "the sums of pages that copies do not share any more"),
            ("OR-Set, 100 changed", 2.2, ""),
            ("OR-Set, 1% changed", 2.2, "20,000 rows moved, three misses of the cache each; equal chunks cost 0.4 ms"),
            ("LWW-Map, 1% changed", 4.0, "as the set, and the stamps are looked at"),
            ("OR-Map of sets, 1% changed", 8.0, "as the set, and boxes are found by path"),
        )
    ),
    *(
        Figure(f"full merge of a million, OR-Set, 1% changed, {told}", 2.2, "ms",
               f"test_full_merge_of_fresh_states[{peer}-1000000]",
               peers=("test_full_merge[OR-Set, 1% changed-dict-1000000]",), bound=bound)
        for told, peer, bound in (
            ("neither side digested before", "nova", "every row of both sides is compared, 50 MB in order"),
            ("the other side not digested before", "nova-one side told", "as above"),
        )
    ),
    Figure("OR-Set, delta of 10,000 into a million, a dot", 100, "ns", "test_delta_into[1000000]",
           bound="parsing, one key looked up and one row written"),
    Figure("OR-Set, add from Python, a hundred elements again and again", 80, "ns", "test_or_set_add[nova]",
           peers=("test_or_set_add[dict]", "test_or_set_add[loro]", "test_or_set_add[pycrdt]")),
    Figure("OR-Set, add from Python, random elements of a million", 80, "ns",
           "test_or_set_add_at_random[nova-1000000]", peers=("test_or_set_add_at_random[dict-1000000]",),
           bound="misses of the cache, as of contains, and a row written"),
    Figure("OR-Set, contains from Python, one element again and again", 45, "ns", "test_contains[nova-1000]",
           peers=("test_contains[dict-1000]",)),
    Figure("OR-Set, contains from Python, random elements of a million", 45, "ns",
           "test_contains_at_random[nova-1000000]",
           peers=("test_contains_at_random[dict-1000000]",), bound="misses of the cache: the text, the table, the row"),
    Figure("MV-Register, 2 x 2 siblings merged", 60, "ns", "test_registers_of_two_siblings_each_merge[nova]",
           peers=("test_registers_of_two_siblings_each_merge[dict]",),
           bound="the call, and a thousand registers that are not in the nearest cache"),
    Figure("LWW-Register, a newer value merged", 20, "ns", "test_register_of_the_last_writer_merges[nova]",
           peers=("test_register_of_the_last_writer_merges[dict]",),
           bound="the call, and a thousand registers that are not in the nearest cache"),
    Figure("metadata of a live OR-Set element, integers", 24, "B", "test_memory_of_an_element[integers-1000000]",
           key="metadata_bytes_an_element", bound="half of it is the table, at half its load"),
    Figure("metadata of a live OR-Set element, text of 9 to 14 bytes", 24, "B",
           "test_memory_of_an_element[strings-1000000]", key="metadata_bytes_an_element",
           peers=("test_memory_of_an_element_in_dicts",), bound="as of integers"),
    Figure("the edits of a paper, each", 90, "ns", "test_a_paper_is_typed[nova]",
           peers=tuple(f"test_a_paper_is_typed[{who}]" for who in WRITERS)),
    Figure("the same in a batch, a list of tuples", 40, "ns", "test_a_paper_is_typed[nova-batch]",
           bound="reading the tuples is some 20 of it"),
    Figure("the same in a batch, from a buffer", 40, "ns", "test_a_paper_is_typed[nova-buffer]"),
    Figure("the paper, encoded", 100, "KB", "test_a_paper_is_loaded[nova]", key="bytes",
           peers=tuple(f"test_a_paper_is_loaded[{who}]" for who in WRITERS)),
    Figure("the paper, from bytes to text", 0.5, "ms", "test_a_paper_is_loaded[nova]",
           peers=tuple(f"test_a_paper_is_loaded[{who}]" for who in WRITERS)),
    Figure("the same, and its history, which waits for the first edit", 0.5, "ms",
           "test_the_history_of_a_paper_is_read", bound="17,000 runs put in order, and written again to compare"),
    Figure("two documents of 8,692 edits merged, both ways", 0.5, "ms", "test_diverged_documents_meet[nova]",
           peers=tuple(f"test_diverged_documents_meet[{who}]" for who in WRITERS)),
    Figure("the same, by what each wrote since, encoded beforehand", 0.5, "ms",
           "test_diverged_documents_meet[nova-deltas]"),
    Figure("two documents of 8,692 edits merged, one way (the target is both)", 0.5, "ms",
           "test_diverged_documents_merge"),
    Figure("order of two clocks, 8 nodes", 60, "ns", "test_order_of_clocks_of_8_nodes[nova]",
           peers=("test_order_of_clocks_of_8_nodes[dict]",)),
    Figure("the same, a million pairs, each", 8, "ns", "test_order_of_a_million_clocks_of_8_nodes"),
    Figure("detect, clean pair", 0.25, "us", "test_detect[clean-nova]", peers=("test_detect[clean-dict]",)),
    Figure("detect, with the record of a conflict", 0.8, "us", "test_detect[concurrent-nova]",
           peers=("test_detect[concurrent-dict]",)),
    Figure("the same, values of 20 fields", 0.8, "us", "test_detect[concurrent records of 20 fields-nova]",
           peers=("test_detect[concurrent records of 20 fields-dict]",),
           bound="20 fields are compared, the paths that differ written down"),
    Figure("last writer wins, the loser recorded", 0.5, "us", "test_last_writer_of_two_settled[nova]",
           peers=("test_last_writer_of_two_settled[dict]",),
           bound="a clock, a record and what holds them are made; 12 attributes of versions read"),
    Figure("multi-value, three siblings pruned", 0.4, "us", "test_three_siblings_pruned[nova]",
           peers=("test_three_siblings_pruned[dict]",)),
    *(
        Figure(f"three-way merge of a VM record, {n} fields", target, "us", f"test_merge_records[{n}-nova]",
               peers=tuple(f"test_merge_records[{n}-{who}]" for who in ("plain Python", "nbdime", "dictdiffer")))
        for n, target in ((20, 2.3), (500, 30))
    ),
    *(
        Figure(f"merge of documents of {n:,} fields, {edits} edit{'s' * (edits > 1)} a side", target, "us",
               f"test_merge_documents[{n}-{edits}]")
        for n, edits, target in ((500, 1, 1.5), (50_000, 10, 30))
    ),
    Figure("JSON Patch made, 500 fields (a 40th of jsonpatch)", 31.7, "us", "test_json_patch[make-nova]",
           peers=("test_json_patch[make-jsonpatch]", "test_json_patch[make-deepdiff]")),
    Figure("JSON Patch applied, 500 fields (a 20th of jsonpatch)", 21.3, "us", "test_json_patch[apply-nova]",
           peers=("test_json_patch[apply-jsonpatch]",)),
    Figure("a million pairs of versions compared and settled, each", 125, "ns",
           "test_pairs_compared_and_settled[nova-1000000]", peers=("test_pairs_compared_and_settled[dict-10000]",)),
    *(
        Figure(f"audit event, {what}", target, "ns", f"{benchmark}[nova]",
               peers=(f"{benchmark}[hashlib blake2b + json]", f"{benchmark}[hashlib sha256 + json]"), bound=bound)
        for what, target, benchmark, bound in (
            ("appended with its BLAKE3 hash", 1000, "test_append", ""),
            ("appended in a batch", 1000, "test_append_many", ""),
            ("verified, each", 333, "test_verify", "one BLAKE3 after the other"),
        )
    ),
    Figure("reconcile a million ids, 10 differences", 100, "B", "test_decode[10]", key="bytes"),
    Figure("the same, decoded", 0.05, "ms", "test_decode[10]"),
    Figure("reconcile a million ids, 1,000 differences", 19, "KB", "test_decode[1000]", key="bytes"),
    Figure("the same, decoded", 0.3, "ms", "test_decode[1000]"),
    Figure("digest upkeep of a write", 60, "ns", "test_upkeep_of_a_write[SetDigest-nova]",
           peers=("test_upkeep_of_a_write[SetDigest-xxhash]",)),
    Figure("sketch and table upkeep of a write", 60, "ns", "test_upkeep_of_a_write[Reconciler-nova]",
           bound="19 cells touched"),
]  # fmt: skip


class Growth(NamedTuple):
    """One plot. `benchmark` has {who} and {n} in it; `key` is a name in its extra_info, without it time is plotted."""

    title: str
    benchmark: str
    whose: tuple[str, ...] = ("nova", "dict")
    sizes: tuple[int, ...] = (1_000, 100_000, 1_000_000)
    x: str = "elements of the set"
    y: str = "time a call"
    key: str = ""
    targets: tuple[tuple[int, float], ...] = ()
    bound: tuple[str, float] | None = None  # what a line says, and how much it rises with each of n

    @property
    def file(self) -> str:
        return f"growth-{self.title.partition(',')[0].replace(' ', '-')}.svg"


GROWTH = [
    Growth("merge that brings nothing new", "test_merge_that_brings_nothing_new[{who}-{n}]"),
    Growth("full merge, 1% changed", "test_full_merge[OR-Set, 1% changed-{who}-{n}]"),
    Growth("contains, at random", "test_contains_at_random[{who}-{n}]"),
    Growth("delta applied", "test_delta_into[{n}]", ("nova",), y="time a dot"),
    Growth(
        "reconcile, a million ids of 64 bits", "test_decode[{n}]", ("nova",), (1, 10, 100, 1_000),
        x="ids that differ", y="bytes sent", key="bytes", targets=((10, 100.0), (1_000, 19e3)),
        bound=("the ids, bare", 8.0),
    ),
]  # fmt: skip


def spelled(value: float, unit: str) -> str:
    value /= SCALES[unit]
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2g}" if ratio < 1 else f"{ratio:.1f}"


def best(benchmark: dict[str, Any]) -> float:
    """Seconds an operation, in the best of the rounds."""
    extra = benchmark["extra_info"]
    if (timed := extra.get("timing")) is not None:  # by a peer's own process, or in turns with the peers
        return float(timed.get("best", timed["median"]))
    return float(benchmark["stats"]["min"]) / extra.get("operations", 1)


def value_of(benchmark: dict[str, Any], key: str) -> float:
    extra = benchmark["extra_info"]
    return float(extra.get("figures", extra)[key]) if key else best(benchmark)


def judged(figure: Figure, by_name: dict[str, dict[str, Any]], lacking: dict[str, str]) -> list[str] | None:
    """What the table says, or None if the benchmark did not run. lacking: benchmark -> why it was not measured."""
    found = by_name.get(figure.benchmark)
    if found is None:
        return None
    value = value_of(found, figure.key)
    target = figure.target * SCALES[figure.unit]
    met = value <= target
    others = []
    for name in figure.peers:
        if (peer := by_name.get(name)) is not None:
            theirs = value_of(peer, figure.key)
            who = (peer["params"] or {}).get("peer", "dict")
            shown = spelled(theirs, figure.unit) if figure.key else seconds(theirs)
            others.append(f"{who} {shown} ({times(theirs / value)} x)")
        elif name in lacking:
            others.append(lacking[name])
    verdict = f"**{spelled(value, figure.unit)}**" + ("" if met else f", {times(value / target)} x the target")
    return [figure.what, f"{figure.target:g} {figure.unit}", verdict, "; ".join(others), "" if met else figure.bound]


COLOURS = ("#2f81f7", "#d97706")
TARGET, BOUND = "#2da44e", "#808080"


def tick(power: int, bytes_: bool) -> str:
    """10 ** power seconds or bytes."""
    units, first = (("B", "KB", "MB", "GB"), 0) if bytes_ else (("ns", "us", "ms", "s"), -9)
    unit = min((power - first) // 3, len(units) - 1)
    return f"{10 ** (power - first - 3 * unit):,} {units[unit]}"


def plot(of: Growth, lines: dict[str, list[tuple[int, float]]]) -> str:
    """Seconds or bytes over sizes, both logarithmic, as SVG that reads on light and on dark."""
    width, height, left, bottom, top, right = 480, 290, 84, 56, 32, 70
    if of.bound is not None:
        lines = {**lines, of.bound[0]: [(n, of.bound[1] * n) for n in of.sizes]}
    values = [math.log10(y) for points in [*lines.values(), of.targets] for _, y in points]
    low, high = math.floor(min(values)), math.ceil(max(values) + 1e-9)
    first, last = math.log10(of.sizes[0]), math.log10(of.sizes[-1])

    def spot(size: float, value: float) -> tuple[float, float]:
        return (
            left + (math.log10(size) - first) / (last - first) * (width - left - right),
            top + (high - math.log10(value)) / (high - low) * (height - top - bottom),
        )

    middle = (top + height - bottom) / 2
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11" fill="#808080" role="img" aria-label="{of.title}: {of.y} over {of.x}">',
        f'<text x="{left}" y="18" font-size="13">{of.title}</text>',
        f'<text x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle">{of.x} (log scale)</text>',
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">{of.y} (log scale)</text>',
    ]
    for power in range(low, high + 1, 1 if high - low <= 6 else 2):
        _, y = spot(of.sizes[0], 10.0**power)
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#80808040"/>')
        out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick(power, bool(of.key))}</text>')
    for size in of.sizes:
        x, _ = spot(size, 1.0)
        out.append(f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{size:,}</text>')
    ends = []
    for colour, (who, points) in zip((*COLOURS[: len(of.whose)], BOUND), lines.items(), strict=False):
        spots = [spot(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        dashes = ' stroke-dasharray="4 4"' if colour == BOUND else ""
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
        if colour != BOUND:
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots]
        ends.append((spots[-1][1] + 4, who, colour))
    lowest = 0.0
    for y, who, colour in sorted(ends):  # names do not lie on each other
        lowest = max(y, lowest + 13)
        out.append(f'<text x="{width - right + 8}" y="{lowest:.1f}" fill="{colour}">{who}</text>')
    for x, y in (spot(*target) for target in of.targets):
        out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="none" stroke="{TARGET}" stroke-width="2"/>')
        out.append(f'<text x="{x - 10:.1f}" y="{y - 6:.1f}" text-anchor="end" fill="{TARGET}">target</text>')
    return "\n".join([*out, "</svg>\n"])


def growth(by_name: dict[str, dict[str, Any]]) -> dict[str, str]:
    """File name -> plot, of what ran at all sizes."""
    out = {}
    for each in GROWTH:
        lines = {}
        for who in each.whose:
            found = [by_name.get(each.benchmark.format(who=who, n=n)) for n in each.sizes]
            if all(found):
                lines[who] = [(n, value_of(b, each.key)) for n, b in zip(each.sizes, found, strict=True) if b]
        if lines:
            out[each.file] = plot(each, lines)
    return out

"""The figures that the clocks, CRDTs and digests are held to: what, how much, and which benchmark says what it came to.

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

FIGURES = [
    *(
        Figure(f"`a < b`, {n:,} actors", target, "ns", f"test_before_when_one_actor_differs[nova-{n}]",
               peers=(f"test_before_when_one_actor_differs[dict-{n}]",),
               bound="the loop and the call of a comparison are about 15 ns of it" if n == 16 else "")
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
            ("PN-Counter, one actor counted on", 1.2, "a million writers, each with a list of its own"),
            ("OR-Set, 100 changed", 2.2, ""),
            ("OR-Set, 1% changed", 2.2, "20,000 rows moved, three misses of the cache each; equal chunks cost 0.4 ms"),
            ("LWW-Map, 1% changed", 4.0, "as the set, and the stamps are looked at"),
            ("OR-Map of sets, 1% changed", 8.0, "as the set, and boxes are found by path"),
        )
    ),
    Figure("OR-Set, delta of 10,000 into a million, a dot", 100, "ns", "test_delta_into[1000000]",
           bound="parsing, one key looked up and one row written"),
    Figure("OR-Set, add from Python", 80, "ns", "test_or_set_add[nova]",
           peers=("test_or_set_add[dict]", "test_or_set_add[loro]", "test_or_set_add[pycrdt]")),
    Figure("OR-Set, contains from Python, one element again and again", 45, "ns", "test_contains[nova-1000]",
           peers=("test_contains[dict-1000]",)),
    Figure("MV-Register, 2 x 2 siblings merged", 60, "ns", "test_registers_of_two_siblings_each_merge",
           bound="a general join, and two writers who were not known here"),
    Figure("LWW-Register, a newer value merged", 20, "ns", "test_register_of_the_last_writer_merges[nova]",
           peers=("test_register_of_the_last_writer_merges[dict]",), bound="a general join of one row"),
    Figure("metadata of a live OR-Set element, integers", 24, "B", "test_memory_of_an_element[1000000]",
           key="metadata_bytes_an_element", bound="half of it is the table, at half its load"),
    Figure("the edits of a paper, each", 90, "ns", "test_a_paper_is_typed[nova]",
           peers=("test_a_paper_is_typed[loro]",)),
    Figure("the same in a batch", 40, "ns", "test_a_paper_is_typed[nova-batch]"),
    Figure("the paper, encoded", 100, "KB", "test_a_paper_is_loaded", key="bytes"),
    Figure("the paper, from bytes to text", 0.5, "ms", "test_a_paper_is_loaded"),
    Figure("two documents of 8,692 edits merged, one way (the target is both)", 0.5, "ms",
           "test_diverged_documents_merge"),
    Figure("reconcile a million ids, 10 differences", 100, "B", "test_decode[10]", key="bytes"),
    Figure("the same, decoded", 0.05, "ms", "test_decode[10]"),
    Figure("reconcile a million ids, 1,000 differences", 19, "KB", "test_decode[1000]", key="bytes"),
    Figure("the same, decoded", 0.3, "ms", "test_decode[1000]"),
    Figure("digest upkeep of a write", 60, "ns", "test_upkeep_of_a_write[SetDigest]"),
    Figure("sketch and table upkeep of a write", 60, "ns", "test_upkeep_of_a_write[Reconciler]",
           bound="19 cells touched"),
]  # fmt: skip

GROWTH = {
    "merge that brings nothing new": ("test_merge_that_brings_nothing_new[{who}-{n}]", ("nova", "dict")),
    "full merge, 1% changed": ("test_full_merge[OR-Set, 1% changed-{who}-{n}]", ("nova", "dict")),
    "contains": ("test_contains[{who}-{n}]", ("nova", "dict")),
    "delta applied, a dot": ("test_delta_into[{n}]", ("nova",)),
}
"""Title -> benchmark of an OR-Set of n elements, and who is measured."""
SIZES = (1_000, 100_000, 1_000_000)


def spelled(value: float, unit: str) -> str:
    value /= SCALES[unit]
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2g}" if ratio < 1 else f"{ratio:.1f}"


def judged(figure: Figure, by_name: dict[str, dict[str, Any]], timing: Any) -> list[str] | None:
    """What the table says, or None if the benchmark did not run."""
    found = by_name.get(figure.benchmark)
    if found is None:
        return None
    extra = found["extra_info"]
    value = timing(found)[0] if not figure.key else extra.get(figure.key, extra.get("figures", {}).get(figure.key))
    target = figure.target * SCALES[figure.unit]
    met = value <= target
    others = []
    for name in figure.peers:
        if (peer := by_name.get(name)) is not None:
            theirs = timing(peer)[0]
            who = name.partition("[")[2].rstrip("]")
            who = next(part for part in ("dict", "numpy", "loro", "pycrdt") if part in who)
            others.append(f"{who} {seconds(theirs)} ({times(theirs / value)} x)")
    verdict = f"**{spelled(value, figure.unit)}**" + ("" if met else f", {times(value / target)} x the target")
    return [figure.what, f"{figure.target:g} {figure.unit}", verdict, "; ".join(others), "" if met else figure.bound]


def plot(title: str, lines: dict[str, list[tuple[int, float]]]) -> str:
    """Seconds over sizes, both logarithmic, as SVG that reads on light and on dark."""
    width, height, left, bottom, top, right = 460, 260, 64, 34, 28, 70
    sizes = [math.log10(x) for points in lines.values() for x, _ in points]
    times = [math.log10(y) for points in lines.values() for _, y in points]
    low, high = math.floor(min(times)), math.ceil(max(times) + 1e-9)
    high = max(high, low + 1)

    def x_of(size: float) -> float:
        return left + (math.log10(size) - min(sizes)) / (max(sizes) - min(sizes)) * (width - left - right)

    def y_of(log_seconds: float) -> float:
        return top + (high - log_seconds) / (high - low) * (height - top - bottom)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11" fill="#808080" role="img" aria-label="{title}">',
        f'<text x="{left}" y="16" font-size="13">{title}: time over elements</text>',
    ]
    step = 1 if high - low <= 6 else 2
    for power in range(low, high + 1, step):
        name = {0: "1 s", -3: "1 ms", -6: "1 us", -9: "1 ns"}.get(power) or (
            f"{10 ** (power % 3)} {('ns', 'us', 'ms', 's')[(power + 9) // 3]}"
        )
        y = y_of(power)
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#80808040"/>')
        out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
    for size in sorted({x for points in lines.values() for x, _ in points}):
        out.append(f'<text x="{x_of(size):.1f}" y="{height - 12}" text-anchor="middle">{size:,}</text>')
    for colour, (who, points) in zip(("#2f81f7", "#d97706"), lines.items(), strict=False):
        spots = [(x_of(x), y_of(math.log10(y))) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots]
        out.append(f'<text x="{spots[-1][0] + 8:.1f}" y="{spots[-1][1] + 4:.1f}" fill="{colour}">{who}</text>')
    return "\n".join([*out, "</svg>\n"])


def growth(by_name: dict[str, dict[str, Any]], timing: Any) -> dict[str, str]:
    """File name -> plot, of what ran at all sizes."""
    out = {}
    for title, (pattern, whose) in GROWTH.items():
        lines = {}
        for who in whose:
            found = [(n, by_name.get(pattern.format(who=who, n=n))) for n in SIZES]
            points = [(n, timing(benchmark)[0]) for n, benchmark in found if benchmark is not None]
            if len(points) == len(SIZES):
                lines[who] = points
        if lines:
            out[f"growth-{title.partition(',')[0].replace(' ', '-')}.svg"] = plot(title, lines)
    return out

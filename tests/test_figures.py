"""The figures name benchmarks that exist and are judged by their best round, and the plots say what they show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import texts
from bench.figures import COLOURS, FIGURES, GROWTH, Figure, Growth, best, growth, judged, plot, tick

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def collected() -> dict[str, str]:
    """Name -> file, of every benchmark."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "bench", "--collect-only", "-q", "-o", "python_files=bench_*.py",
         "-p", "no:cacheprovider"],
        cwd=ROOT, check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = (line.partition("::") for line in done.stdout.splitlines() if "::" in line)
    return {name: Path(file).name for file, _, name in found}


def names() -> set[str]:
    plotted = {each.benchmark.format(who=who, n=n) for each in GROWTH for who in each.whose for n in each.sizes}
    return plotted | {name for figure in FIGURES for name in (figure.benchmark, *figure.peers)}


def test_every_benchmark_that_a_figure_or_a_plot_names_exists(collected: dict[str, str]) -> None:
    assert names() - collected.keys() == set()


def test_benchmarks_have_names_of_their_own(collected: dict[str, str]) -> None:
    """The report finds them by name, without the file."""
    sources = [path.read_text() for path in sorted((ROOT / "bench").glob("bench_*.py"))]
    functions = [name for source in sources for name in re.findall(r"^def (test_\w+)", source, re.MULTILINE)]
    assert len(functions) == len(set(functions))
    assert {name.partition("[")[0] for name in collected} == set(functions)


def test_figures_come_from_files_in_which_nothing_waits(collected: dict[str, str]) -> None:
    files = {collected[name] for name in names()}
    assert {name.removeprefix("bench_").removesuffix(".py") for name in files} == {
        "audit", "clock", "conflict", "crdt", "merge", "reconcile", "sequence",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.path.insert(0, 'bench'); import conftest; print(*conftest.COMPUTE)"],
        cwd=ROOT, check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert files <= set(done.stdout.split())


def result(name: str, least: float, median: float, peer: str = "nova", **extra: Any) -> dict[str, Any]:
    return {"name": name, "params": {"peer": peer}, "extra_info": extra, "stats": {"min": least, "median": median}}


FIGURE = Figure("a call", 20, "ns", "ours", peers=("theirs", "absent"), bound="the call")


def test_a_figure_is_the_best_of_its_rounds_for_ours_and_the_peer() -> None:
    by_name = {
        "ours": result("ours", 1e-6, 9e-6, operations=100),
        "theirs": result("theirs", 8e-6, 9e-6, peer="dict", operations=100),
    }
    row = judged(FIGURE, by_name, {})
    assert row == ["a call", "20 ns", "**10.0 ns**", "dict 80 ns (8.0 x)", ""]


def test_a_figure_that_missed_says_by_how_much_and_what_bounds_it() -> None:
    row = judged(FIGURE, {"ours": result("ours", 50e-9, 50e-9)}, {})
    assert row == ["a call", "20 ns", "**50.0 ns**, 2.5 x the target", "", "the call"]


def test_a_peer_that_cannot_be_had_says_why_in_the_row() -> None:
    row = judged(FIGURE, {"ours": result("ours", 9e-9, 9e-9)}, {"absent": "peer absent is not installed"})
    assert row is not None
    assert row[3] == "peer absent is not installed"


def test_a_process_of_the_peers_own_is_judged_by_its_best_too() -> None:
    assert best(result("x", 1e-9, 1e-9, timing={"best": 3e-3, "median": 4e-3})) == 3e-3
    assert best(result("x", 1e-9, 1e-9, timing={"median": 4e-3})) == 4e-3


def test_bytes_are_judged_beside_the_bytes_of_peers_and_not_their_time() -> None:
    size = Figure("a text", 100, "KB", "ours", key="bytes", peers=("theirs",))
    by_name = {"ours": result("ours", 1.0, 1.0, bytes=50_000), "theirs": result("t", 1.0, 1.0, "loro", bytes=200_000)}
    assert judged(size, by_name, {}) == ["a text", "100 KB", "**50.0 KB**", "loro 200 KB (4.0 x)", ""]


def test_a_text_peer_that_is_not_here_says_what_it_would_take(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(texts, "FOLDER", tmp_path)
    monkeypatch.setattr(texts.shutil, "which", lambda name: "/bin/true")
    assert texts.lacks("diamond-types") == "peer diamond-types is not installed; `make bench` installs it, where npm is"
    monkeypatch.setattr(texts.shutil, "which", lambda name: None)
    assert texts.lacks("automerge") == "peer automerge needs Node, which is not installed"
    monkeypatch.setitem(sys.modules, "loro", None)
    assert texts.lacks("loro") == "peer loro is not installed"
    assert texts.lacks("nova-batch") == ""


def test_a_figure_whose_benchmark_did_not_run_has_no_row() -> None:
    assert judged(FIGURE, {}, {}) is None


@pytest.mark.parametrize(
    ("power", "of_bytes", "said"),
    [(-9, False, "1 ns"), (-7, False, "100 ns"), (-3, False, "1 ms"), (0, False, "1 s"), (1, False, "10 s"),
     (0, True, "1 B"), (2, True, "100 B"), (4, True, "10 KB"), (6, True, "1 MB")],
)  # fmt: skip
def test_ticks_have_units(power: int, of_bytes: bool, said: str) -> None:
    assert tick(power, of_bytes) == said


@pytest.mark.parametrize("of", GROWTH, ids=lambda of: of.title)
def test_both_axes_of_a_plot_have_titles_and_every_point_is_inside(of: Growth) -> None:
    lines = {who: [(n, 30e-9 * n) if not of.key else (n, 98.0 * n) for n in of.sizes] for who in of.whose}
    drawn = ElementTree.fromstring(plot(of, lines))
    texts = [element.text or "" for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert f"{of.x} (log scale)" in texts
    assert f"{of.y} (log scale)" in texts
    assert any(text.endswith((" ns", " us", " ms", " B", " KB")) for text in texts)
    assert texts.count("target") == len(of.targets)
    assert set(of.whose) <= set(texts)
    _, _, width, height = map(float, drawn.attrib["viewBox"].split())
    circles = list(drawn.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == len(of.whose) * len(of.sizes) + len(of.targets)
    for circle in circles:
        assert 0 < float(circle.attrib["cx"]) < width
        assert 0 < float(circle.attrib["cy"]) < height


def test_the_names_of_lines_that_end_together_do_not_lie_on_each_other() -> None:
    of = GROWTH[0]
    drawn = ElementTree.fromstring(plot(of, {who: [(n, 1e-6) for n in of.sizes] for who in of.whose}))
    texts = drawn.iter("{http://www.w3.org/2000/svg}text")
    heights = [float(text.attrib["y"]) for text in texts if text.text in of.whose]
    assert len(heights) == 2
    assert abs(heights[0] - heights[1]) >= 12


def test_plots_have_files_and_colours_of_their_own() -> None:
    assert len({each.file for each in GROWTH}) == len(GROWTH)
    assert all(len(each.whose) <= len(COLOURS) for each in GROWTH)


def test_a_plot_is_left_out_when_a_size_did_not_run() -> None:
    (of,) = (each for each in GROWTH if each.key == "bytes")
    by_name = {of.benchmark.format(who="nova", n=n): result("x", 1.0, 1.0, bytes=100 + n) for n in of.sizes}
    assert list(growth(by_name)) == [of.file]
    by_name.popitem()
    assert growth(by_name) == {}

"""Instruments that cost nanoseconds, and their page in Prometheus text format (exposition format 0.0.4).

A family has a name, a help text and label names; `labels(...)` binds values once and returns the compiled child, which
is what a hot path keeps. Label values beyond `children_max` share one child whose labels all say "other", so a label
that somebody fills with user input cannot eat the memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final, Generic, TypeVar

from nova._native.meter import QUANTILE_ERROR_RATIO, Cell, Distribution, render_cells, render_distributions
from nova.errors import UsageError

__all__ = [
    "CONTENT_TYPE",
    "LATENCY_BUCKETS",
    "OTHER",
    "QUANTILE_ERROR_RATIO",
    "Cell",
    "Counter",
    "Distribution",
    "Gauge",
    "Histogram",
    "Registry",
]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OTHER: Final = "other"
CHILDREN_MAX: Final = 1000
LATENCY_BUCKETS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
)  # fmt: skip
"""Upper bounds in seconds, 100 us to 10 s."""

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*\Z")

Child = TypeVar("Child", Cell, Distribution)


class _Family(Generic[Child]):
    """What counters, gauges and histograms share: names, and children by label values."""

    kind = ""

    def __init__(self, name: str, help: str, labels: Sequence[str] = (), *, children_max: int = CHILDREN_MAX) -> None:
        if not _NAME.match(name):
            raise UsageError(f"the metric name {name!r} is not allowed; use letters, digits, '_' and ':'")
        for label in labels:
            if not _LABEL.match(label) or label in self._reserved():
                raise UsageError(f"the label name {label!r} of {name} is not allowed; use letters, digits and '_'")
        if len(set(labels)) != len(labels):
            raise UsageError(f"the labels {list(labels)} of {name} repeat themselves; name each once")
        self.name = name
        self.help = help
        self.label_names = tuple(labels)
        self.children_max = children_max
        self._children: dict[tuple[str, ...], Child] = {}
        self._lines: list[object] = []

    def labels(self, *values: object, **named: object) -> Child:
        """The child for these label values, in the order of `label_names` or by name. Keep it: looking up costs more
        than counting."""
        if named:
            if values or named.keys() != set(self.label_names):
                raise UsageError(f"{self.name} takes the labels {list(self.label_names)}, not {sorted(named)}")
            values = tuple(named[label] for label in self.label_names)
        elif len(values) != len(self.label_names):
            raise UsageError(f"{self.name} takes {len(self.label_names)} labels, not {len(values)}")
        key = tuple(map(str, values))
        child = self._children.get(key)
        return self._add(key) if child is None else child

    def children(self) -> Iterable[tuple[dict[str, str], Child]]:
        """(labels, child) of every child."""
        return [(dict(zip(self.label_names, key, strict=True)), child) for key, child in self._children.items()]

    def _add(self, key: tuple[str, ...]) -> Child:
        if self.label_names and len(self._children) >= self.children_max:
            key = (OTHER,) * len(self.label_names)
            if key in self._children:
                return self._children[key]
        child = self._children[key] = self._make()
        labels = [f'{label}="{_escape(value)}"' for label, value in zip(self.label_names, key, strict=True)]
        self._lines.append(self._line_names(labels))
        return child

    def _only(self) -> Child:
        if self.label_names:
            raise UsageError(f"{self.name} has the labels {list(self.label_names)}; bind them with labels() first")
        return self.labels()

    def _reserved(self) -> tuple[str, ...]:
        return ()

    def _make(self) -> Child:
        raise NotImplementedError

    def _line_names(self, labels: list[str]) -> object:
        return _series(self.name, labels)

    def render(self) -> bytes:
        """This family's part of the page."""
        help = self.help.replace("\\", "\\\\").replace("\n", "\\n")
        return f"# HELP {self.name} {help}\n# TYPE {self.name} {self.kind}\n".encode() + self._samples()

    def _samples(self) -> bytes:
        return render_cells(list(self._lines), list(self._children.values()))  # type: ignore[arg-type]


class Counter(_Family[Cell]):
    """A number that only rises; its name ends in `_total`. `inc(amount=1)` where there are no labels."""

    kind = "counter"

    def __init__(self, name: str, help: str, labels: Sequence[str] = (), *, children_max: int = CHILDREN_MAX) -> None:
        super().__init__(name, help, labels, children_max=children_max)
        self.inc: Callable[..., None] = self._refuse if labels else self.labels().count

    @property
    def value(self) -> float:
        """The number, where there are no labels."""
        return self._only().value

    def _refuse(self, amount: float = 1.0) -> None:
        self._only()

    def _make(self) -> Cell:
        return Cell()


class Gauge(_Family[Cell]):
    """A number that goes both ways, or that a function tells whenever the page is made.

    table  tells all children of a gauge with labels, {label values: number}, of which at most `children_max` are shown.
           They come and go, as the first of a ranking do
    """

    kind = "gauge"

    def __init__(
        self,
        name: str,
        help: str,
        labels: Sequence[str] = (),
        *,
        function: Callable[[], float] | None = None,
        table: Callable[[], Mapping[tuple[str, ...], float]] | None = None,
        children_max: int = CHILDREN_MAX,
    ) -> None:
        super().__init__(name, help, labels, children_max=children_max)
        if function is not None and labels:
            raise UsageError(f"{name} has labels and a function; give each child its own with bind()")
        if table is not None and not labels:
            raise UsageError(f"{name} has a table and no labels; give it a function")
        self._function = function
        self._table = table
        if not labels:
            self.labels()

    @property
    def value(self) -> float:
        """The number, where there are no labels."""
        return self._only().value

    def set(self, value: float) -> None:
        """Replace the number, where there are no labels."""
        self._only().set(value)

    def inc(self, amount: float = 1.0) -> None:
        """Add to the number, where there are no labels."""
        self._only().inc(amount)

    def dec(self, amount: float = 1.0) -> None:
        """Take from the number, where there are no labels."""
        self._only().dec(amount)

    def bind(self, function: Callable[[], float], **labels: object) -> None:
        """Let `function` tell the number of the child with these labels, which must be new."""
        key = tuple(str(labels.get(label)) for label in self.label_names)
        if key in self._children or labels.keys() != set(self.label_names):
            raise UsageError(f"{self.name} has {labels} already, or takes other labels: {list(self.label_names)}")
        self._function = function
        try:
            self.labels(**labels)
        finally:
            self._function = None

    def _make(self) -> Cell:
        return Cell(self._function)

    def _samples(self) -> bytes:
        if self._table is None:
            return super()._samples()
        try:
            told = self._table()
        except Exception:  # as a function that fails: the rest of the page is worth having
            return b""
        self._children.clear()
        self._lines.clear()
        for values, number in islice(told.items(), self.children_max):
            self.labels(*values).set(number)
        return super()._samples()


class Histogram(_Family[Distribution]):
    """How values spread: counts under fixed bounds, and quantiles within 1%. `observe(value)` without labels."""

    kind = "histogram"

    def __init__(
        self,
        name: str,
        help: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float] = LATENCY_BUCKETS,
        children_max: int = CHILDREN_MAX,
    ) -> None:
        super().__init__(name, help, labels, children_max=children_max)
        self.buckets = tuple(float(bound) for bound in buckets if bound != float("inf"))
        self.observe: Callable[[float], None] = self._refuse if labels else self.labels().observe

    def quantile(self, q: float) -> float:
        """The value at quantile `q`, within 1%, where there are no labels."""
        return self._only().quantile(q)

    @property
    def count(self) -> int:
        """How many values were seen, where there are no labels."""
        return self._only().count

    def _refuse(self, value: float) -> None:
        self._only()

    def _reserved(self) -> tuple[str, ...]:
        return ("le",)

    def _make(self) -> Distribution:
        return Distribution(self.buckets)

    def _line_names(self, labels: list[str]) -> object:
        bounds = [*map(repr, self.buckets), "+Inf"]
        return (
            *(_series(f"{self.name}_bucket", [*labels, f'le="{bound}"']) for bound in bounds),
            _series(f"{self.name}_sum", labels),
            _series(f"{self.name}_count", labels),
        )

    def _samples(self) -> bytes:
        return render_distributions(list(self._lines), list(self._children.values()))  # type: ignore[arg-type]


class Registry:
    """The families of one node, in the order in which they were made."""

    def __init__(self) -> None:
        self._families: dict[str, Counter | Gauge | Histogram] = {}

    def counter(self, name: str, help: str, labels: Sequence[str] = (), *, children_max: int = CHILDREN_MAX) -> Counter:
        """A new counter; its name ends in `_total`."""
        return self._register(Counter(name, help, labels, children_max=children_max))

    def gauge(
        self,
        name: str,
        help: str,
        labels: Sequence[str] = (),
        *,
        function: Callable[[], float] | None = None,
        table: Callable[[], Mapping[tuple[str, ...], float]] | None = None,
        children_max: int = CHILDREN_MAX,
    ) -> Gauge:
        """A new gauge; `function` or `table`, if given, is asked for its numbers whenever the page is made."""
        return self._register(Gauge(name, help, labels, function=function, table=table, children_max=children_max))

    def histogram(
        self,
        name: str,
        help: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float] = LATENCY_BUCKETS,
        children_max: int = CHILDREN_MAX,
    ) -> Histogram:
        """A new histogram with these upper bounds."""
        return self._register(Histogram(name, help, labels, buckets=buckets, children_max=children_max))

    def get(self, name: str) -> Counter | Gauge | Histogram | None:
        """The family of that name."""
        return self._families.get(name)

    def render(self) -> bytes:
        """The page that Prometheus scrapes, as CONTENT_TYPE."""
        return b"".join([family.render() for family in self._families.values()])

    def _register(self, family: FamilyT) -> FamilyT:
        if family.name in self._families:
            raise UsageError(f"the metric {family.name} is there already; names are unique: use get()")
        self._families[family.name] = family
        return family


FamilyT = TypeVar("FamilyT", Counter, Gauge, Histogram)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _series(name: str, labels: list[str]) -> bytes:
    return (f"{name}{{{','.join(labels)}}}" if labels else name).encode()

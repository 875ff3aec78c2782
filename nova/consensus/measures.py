"""What the page for Prometheus has of a member, and of its port for clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from nova.metrics import Cell, Counter, Distribution, Gauge, Histogram, Registry

GROUP: Final = "group"


class GroupPage:
    """Families that several groups of one process share, each with a label of its own.

    group  the value of the label; "": there is one group, and no label
    """

    def __init__(self, metrics: Registry, group: str) -> None:
        self._metrics, self._group = metrics, group
        self._labels: Sequence[str] = (GROUP,) if group else ()
        self._values = (group,) if group else ()

    def counter(self, name: str, help: str) -> Cell:
        """What counts for this group; `name` ends in `_total`."""
        family = self._metrics.get(name)
        if not self._shared(family):
            family = self._metrics.counter(name, help, self._labels)
        assert isinstance(family, Counter)
        return family.labels(*self._values)

    def histogram(self, name: str, help: str) -> Distribution:
        """What spreads for this group."""
        family = self._metrics.get(name)
        if not self._shared(family):
            family = self._metrics.histogram(name, help, self._labels)
        assert isinstance(family, Histogram)
        return family.labels(*self._values)

    def gauge(self, name: str, help: str, function: Callable[[], float]) -> None:
        """What `function` tells of this group."""
        if not self._group:
            self._metrics.gauge(name, help, function=function)
            return
        family = self._metrics.get(name)
        if not self._shared(family):
            family = self._metrics.gauge(name, help, self._labels)
        assert isinstance(family, Gauge)
        family.bind(function, **{GROUP: self._group})

    def _shared(self, family: Counter | Gauge | Histogram | None) -> bool:
        """Whether it is there for groups; else it is made, and refused if the name is taken."""
        return family is not None and bool(self._labels) and family.label_names == self._labels


__all__ = ["GROUP", "GroupPage"]

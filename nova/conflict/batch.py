"""Conflicts by the million: two columns of versions compared and settled by the last writer, without an object each.

What `detect` and `LastWriteWins` say about one pair, this says about each row; the values stay where they are, and the
caller takes those that `winners` names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from nova._native.conflict import last_of
from nova.clock import ClockBatch
from nova.conflict.detect import Version
from nova.errors import UsageError

if TYPE_CHECKING:
    from numpy import int8, uint32, uint64
    from numpy.typing import NDArray

OURS, THEIRS, UNDECIDED = 0, 1, 2


class VersionBatch(NamedTuple):
    """Versions without their values, a row each.

    clocks      their vector clocks
    timestamps  hybrid logical clocks, uint64 of shape (rows,)
    origins     index of each writer in `names`, uint32 of shape (rows,)
    names       the writers, ascending
    """

    clocks: ClockBatch
    timestamps: NDArray[uint64]
    origins: NDArray[uint32]
    names: tuple[str, ...]

    @classmethod
    def of(cls, versions: Iterable[Version]) -> VersionBatch:
        """The batch of these versions. Cost: O(versions x actors), some 100 ns each."""
        import numpy

        rows = list(versions)
        names = tuple(sorted({row.origin for row in rows}))
        index = {name: i for i, name in enumerate(names)}
        return cls(
            ClockBatch.from_clocks([row.clock for row in rows]),
            numpy.fromiter((row.timestamp for row in rows), numpy.uint64, len(rows)),
            numpy.fromiter((index[row.origin] for row in rows), numpy.uint32, len(rows)),
            names,
        )


class BatchOutcome(NamedTuple):
    """What became of each pair.

    orders   int8: how ours stands to theirs, values of Order; a conflict where it is Order.CONCURRENT
    winners  int8: OURS, THEIRS, or UNDECIDED where concurrent versions have one timestamp and writer: `newest` looks at
             their values
    clocks   covers both, as the clock of a resolution does
    """

    orders: NDArray[int8]
    winners: NDArray[int8]
    clocks: ClockBatch


def settle_many(ours: VersionBatch, theirs: VersionBatch) -> BatchOutcome:
    """Compare each version with that of the same row and keep the one that is newer: by causality, and where they are
    concurrent by timestamp, then by the name of the writer.

    raises  UsageError if the batches are not equally long
    cost    about 20 ns a pair of clocks of 8 actors, without the GIL
    """
    import numpy

    if len(ours.clocks) != len(theirs.clocks):
        raise UsageError(f"{len(ours.clocks)} versions of ours and {len(theirs.clocks)} of theirs; give them in pairs")
    mine, yours = ours.origins, theirs.origins
    if ours.names != theirs.names:
        rank = {name: i for i, name in enumerate(sorted({*ours.names, *theirs.names}))}
        mine, yours = (_ranked(side, rank) for side in (ours, theirs))
    orders = ours.clocks.compare_pairs(theirs.clocks)
    winners = numpy.empty(len(orders), numpy.int8)
    last_of(orders, ours.timestamps, theirs.timestamps, mine, yours, winners)
    return BatchOutcome(orders, winners, ours.clocks.merge_pairs(theirs.clocks))


def _ranked(batch: VersionBatch, rank: dict[str, int]) -> NDArray[uint32]:
    import numpy

    ranks: Sequence[int] = [rank[name] for name in batch.names]
    return numpy.array(ranks, numpy.uint32)[batch.origins]

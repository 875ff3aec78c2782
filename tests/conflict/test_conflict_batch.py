"""A batch says about each row what one call says about one pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.clock import VectorClock
from nova.conflict.batch import OURS, THEIRS, UNDECIDED, VersionBatch, settle_many
from nova.conflict.detect import ConflictDetector, Version, newest
from nova.errors import UsageError
from nova.types import Order

versions = st.builds(
    lambda clock, stamp, origin: Version(0, VectorClock(clock), stamp, origin),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 2) | st.just(2**40)),
    st.sampled_from([0, 1, 2**64 - 1]),
    st.sampled_from("pqr"),
)


@given(st.lists(st.tuples(versions, versions), max_size=40))
def test_each_row_is_settled_as_one_pair_is(pairs):
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    out = settle_many(VersionBatch.of(ours), VersionBatch.of(theirs))
    assert bytes(out.orders) == ConflictDetector().detect_many(pairs)
    for row, (a, b) in enumerate(pairs):
        order = a.clock.compare(b.clock)
        assert out.clocks[row] == a.clock.merge(b.clock)
        if order is not Order.CONCURRENT:
            assert out.winners[row] == (THEIRS if order is Order.BEFORE else OURS)
        elif (a.timestamp, a.origin) == (b.timestamp, b.origin):
            assert out.winners[row] == UNDECIDED
        else:
            assert (a, b)[out.winners[row]] is newest([a, b])


def test_batches_that_do_not_fit_are_refused():
    one = VersionBatch.of([Version(0, VectorClock({"a": 1}), 1, "a")])
    with pytest.raises(UsageError, match="give them in pairs"):
        settle_many(one, VersionBatch.of([]))
    with pytest.raises(UsageError, match="equally long"):
        settle_many(one._replace(timestamps=np.zeros(2, np.uint64)), one)

"""How many streams: the controller against simulated links, where the best count is known."""

import itertools
import math
import random

import pytest

from nova.errors import UsageError
from nova.transport.striping import LinkView, StreamCount, streams_for

MS = 1_000_000


class Link:
    """A link of some capacity on which one stream gets at most `each`; streams over `free` cost a share of it all."""

    def __init__(self, seed, *, capacity, each, rtt_ms=20, noise=0.02, cost=0.0):
        self.rng = random.Random(seed)
        self.capacity, self.each, self.rtt_ns = capacity, each, int(rtt_ms * MS)
        self.noise, self.cost = noise, cost
        self.now_ns, self.acked, self.streams = 1, 0.0, 1

    def speed(self, streams):
        full = self.capacity / self.each
        return min(self.capacity, streams * self.each) * max(0.1, 1 - self.cost * max(0.0, streams - full))

    def run(self, count, seconds, *, tick_ms=50):
        """Counts over time; a wanted stream runs one round trip after it is asked for."""
        seen = []
        for _ in range(int(seconds * 1000 / tick_ms)):
            self.now_ns += tick_ms * MS
            self.acked += self.speed(self.streams) * tick_ms / 1000 * self.rng.gauss(1, self.noise)
            wanted = count.step(LinkView(self.now_ns, int(self.acked), self.rtt_ns, self.streams))
            self.streams = wanted
            seen.append(wanted)
        return seen


@pytest.mark.parametrize("seed", range(30))
def test_it_finds_a_count_that_carries_nearly_all(seed):
    rng = random.Random(seed)
    link = Link(seed, capacity=1e8, each=1e8 / rng.choice([1, 2, 3, 5, 8, 12, 20, 28]), rtt_ms=rng.choice([1, 20, 100]))
    count = StreamCount()
    link.run(count, 120)
    late = link.run(count, 120)
    carried = sum(map(link.speed, late)) / len(late)
    assert carried >= 0.9 * link.speed(32)
    enough = math.ceil(link.capacity / link.each)
    assert sorted(late)[len(late) // 2] <= max(2, 2 * enough)


@pytest.mark.parametrize("seed", range(10))
def test_it_is_quick(seed):
    """Doubling: sixteen streams are found in a few seconds, one after the other would take a minute."""
    link = Link(seed, capacity=1e8, each=1e8 / 16, rtt_ms=50)
    link.run(count := StreamCount(), 8)
    assert count.streams >= 12


@pytest.mark.parametrize("seed", range(20))
def test_noise_does_not_stop_it_early(seed):
    """What one look sees is off by a third, as on a path that loses: after half a minute most of the link is used."""
    link = Link(seed, capacity=1e8, each=1e8 / 16, rtt_ms=50, noise=1.0)
    link.run(count := StreamCount(), 30)
    late = link.run(count, 30)
    assert sum(map(link.speed, late)) / len(late) >= 0.6 * link.capacity


@pytest.mark.parametrize("seed", range(20))
def test_it_does_not_wander(seed):
    """Hysteresis: on a steady link with noise the count is hardly ever touched, and tries get rarer."""
    link = Link(seed, capacity=1e8, each=2e7, noise=0.04)
    count = StreamCount()
    link.run(count, 60)
    late = link.run(count, 300)
    changes = sum(a != b for a, b in itertools.pairwise(late))
    assert changes <= 30


@pytest.mark.parametrize("seed", range(10))
def test_streams_that_cost_are_given_up(seed):
    """Where more than two streams slow all down, as on a machine without cores to spare, it does not stay above."""
    link = Link(seed, capacity=1e8, each=6e7, cost=0.08)
    late = Link.run(link, StreamCount(), 120)[1200:]
    assert sorted(late)[len(late) // 2] <= 3


@pytest.mark.parametrize("seed", range(10))
def test_a_link_that_changes_is_found_out_anew(seed):
    link = Link(seed, capacity=1e8, each=1e8)
    count = StreamCount()
    link.run(count, 60)
    link.capacity, link.each = 1e8, 5e6  # loss came up: one stream carries a twentieth now
    late = link.run(count, 200)
    assert link.speed(late[-1]) >= 0.8e8


def test_streams_that_do_not_run_yet_are_waited_for():
    count = StreamCount()
    now, acked = 1, 0
    for _ in range(40):
        now, acked = now + 50 * MS, acked + 1_000_000
        count.step(LinkView(now, acked, 20 * MS, 1))
    assert count.streams == 2  # it asked for a second one, and judges nothing before that runs


def test_nothing_acknowledged_is_no_reason_to_change():
    count = StreamCount(start=4)
    now = 1
    for _ in range(200):
        now += 50 * MS
        assert count.step(LinkView(now, 0, 0, 4)) == 4


def test_the_start_follows_the_link():
    assert streams_for(1e9, 0, 0.0) == 1
    assert streams_for(1e9, 1 * MS, 0.0) == 1
    # 50 ms and 1% loss: 17.7 kB a round trip for a stream of Mathis, of 6.25 MB that the link holds
    assert streams_for(1e9, 50 * MS, 0.01) == 32
    assert streams_for(1e7, 50 * MS, 0.01) == 4
    assert streams_for(1e10, 100 * MS, 0.0, window_bytes=16 << 20) == 8
    assert streams_for(1e12, 500 * MS, 0.5, streams_max=8) == 8


def test_a_start_that_cannot_be_is_refused():
    for start in (0, 33):
        with pytest.raises(UsageError, match="from 1"):
            StreamCount(start=start)

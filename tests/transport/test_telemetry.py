"""Telemetry of links: sums that merge exactly, decay with age, and agree with what the kernel counts."""

import random
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.errors import PeerError, UsageError
from nova.transport.telemetry import LinkSample, LinkTelemetry, TcpMeter, tcp_info

S = 1_000_000_000

samples = st.builds(
    LinkSample, st.integers(0, 10**9), st.integers(0, S), st.integers(0, S), st.integers(0, 1000), st.integers(0, 1000)
)
seen = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 700 * S), samples), max_size=20)


def telemetry(observations, **options):
    out = LinkTelemetry(buckets=6, **options)
    for link, now_ns, sample in observations:
        out.observe(link, now_ns, sample)
    return out


def test_bandwidth_round_trip_and_loss_are_what_was_seen():
    links = telemetry([])
    assert links.estimate("a", 0) is None
    for second in range(10):
        links.observe("a", second * S, LinkSample(125_000_000, S, (20 + second) * 1_000_000, 1000, 5))
    now = links.estimate("a", 20 * S)
    assert now.bandwidth_bps == pytest.approx(1e9)
    assert now.rtt_ns == 24_500_000
    assert now.rtt_ns_min == 20_000_000
    assert now.loss_ratio == pytest.approx(0.005)
    assert now.age_ns == 10 * S
    assert links.links == ["a"]


def test_what_is_older_weighs_less():
    links = LinkTelemetry(half_life_ns=10 * S)
    links.observe("a", 0, LinkSample(1000, S))
    links.observe("a", 10 * S, LinkSample(4000, S))
    assert links.estimate("a", 10 * S).bandwidth_bps == pytest.approx(8 * (1000 * 0.5 + 4000) / 1.5)


@given(seen, seen, seen)
def test_merging_commutes_and_associates_and_is_what_one_observer_would_have_seen(a, b, c):
    one = telemetry(a).merge(telemetry(b)).merge(telemetry(c)).to_bytes()
    assert telemetry(c).merge(telemetry(b)).merge(telemetry(a)).to_bytes() == one
    assert telemetry(a).merge(telemetry(b).merge(telemetry(c))).to_bytes() == one


@given(seen, seen)
def test_who_observes_in_turn_sees_what_two_do(a, b):
    assert telemetry(sorted(a + b, key=lambda o: o[1])).to_bytes() == telemetry(a).merge(telemetry(b)).to_bytes()


@given(seen)
def test_bytes_read_back_are_equal(a):
    links = telemetry(a)
    assert LinkTelemetry.from_bytes(links.to_bytes()).to_bytes() == links.to_bytes()


@given(seen, st.binary(min_size=1, max_size=4), st.integers(0, 10_000))
def test_bytes_of_strangers_are_refused_or_sound(a, junk, at):
    data = bytearray(telemetry(a).to_bytes())
    at %= len(data)
    data[at : at + len(junk)] = junk
    try:
        links = LinkTelemetry.from_bytes(bytes(data))
    except PeerError:
        return
    for link in links.links:
        found = links.estimate(link, 0)
        assert found.bandwidth_bps >= 0
        assert 0 <= found.loss_ratio <= 1


def test_old_buckets_and_too_many_links_are_not_kept():
    links = telemetry([("a", n * 10 * S, LinkSample(1, 1)) for n in range(50)])
    assert len(links.bandwidths_bps("a")) == 6
    links.observe("a", 0, LinkSample(10**9, 1))  # long ago
    assert len(links.bandwidths_bps("a")) == 6
    for n in range(4095):
        links.observe(f"{n}", 0, LinkSample(1, 1))
    with pytest.raises(UsageError, match="4096 links"):
        links.observe("one more", 0, LinkSample(1, 1))


def test_values_below_zero_and_other_widths_are_refused():
    with pytest.raises(UsageError, match="below 0"):
        telemetry([("a", 0, LinkSample(-1))])
    with pytest.raises(UsageError, match="do not merge"):
        telemetry([]).merge(LinkTelemetry(bucket_ns=1))
    with pytest.raises(UsageError, match="1 or more"):
        LinkTelemetry(buckets=0)


def test_the_forecast_is_of_the_buckets():
    links = LinkTelemetry()
    assert links.forecast_bps("a") is None
    chance = random.Random(1)
    for n in range(200):
        moved = (9 if n % 5 == 0 else 1) * 10**6 * chance.uniform(0.98, 1.02)
        links.observe("a", n * 10 * S, LinkSample(int(moved), S))
    assert links.forecast_bps("a") == pytest.approx(72e6, rel=0.1)  # n = 200 is a fifth again


def test_the_kernel_tells_what_a_connection_did():
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        two, _ = server.accept()
    reader = threading.Thread(target=lambda: [None for _ in iter(lambda: two.recv(1 << 16), b"")])
    reader.start()
    meter = TcpMeter()
    assert meter.look(1, 0, {"one": one}) == LinkSample(0, 0, tcp_info(one).rtt_ns)
    one.sendall(bytes(3_000_000))
    info = tcp_info(one)
    sample = meter.look(S + 1, 3_000_000, {"one": one})
    assert sample.moved_bytes == 3_000_000
    assert sample.busy_ns == S
    assert 0 < sample.segments <= 3_000_000
    assert 0 < info.rtt_ns_min <= info.rtt_ns < 10 * S
    assert 500 < info.mss_bytes <= 65_536
    meter.look(2 * S, 3_000_000, {"one": one})
    assert meter.look(3 * S, 3_000_000, {"one": one}).segments == 0  # counted once
    one.close()
    reader.join()
    two.close()
    assert tcp_info(one) is None
    a, b = socket.socketpair()
    assert tcp_info(a) is None
    a.close()
    b.close()

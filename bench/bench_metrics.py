"""Instruments beside prometheus_client's. The first two time a loop of a hundred calls."""

import random

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from nova.metrics import Distribution, Registry

BUCKETS = [0.001 * 2**n for n in range(15)]
VALUES = [random.Random(5).expovariate(10) for _ in range(100)]


@pytest.mark.parametrize("peer", ["nova", "prometheus_client"])
@pytest.mark.benchmark(group="metrics.counter, one increment", max_time=0.3)
def test_increment_a_bound_counter(benchmark, peer):
    benchmark.extra_info["operations"] = 100
    if peer == "nova":
        counter = Registry().counter("c_total", "", ["a", "b"]).labels("x", "y")
    else:
        counter = prometheus_client.Counter("c", "", ["a", "b"], registry=CollectorRegistry()).labels("x", "y")
    inc = counter.inc

    def loop():
        for _ in range(100):
            inc()

    benchmark(loop)


@pytest.mark.parametrize("peer", ["nova", "prometheus_client"])
@pytest.mark.benchmark(group="metrics.histogram, one observation in 15 buckets", max_time=0.3)
def test_observe(benchmark, peer):
    benchmark.extra_info["operations"] = 100
    if peer == "nova":
        histogram = Registry().histogram("h", "", buckets=BUCKETS)
    else:
        histogram = prometheus_client.Histogram("h", "", registry=CollectorRegistry(), buckets=BUCKETS)
    observe = histogram.observe

    def loop():
        for value in VALUES:
            observe(value)

    benchmark(loop)


@pytest.mark.parametrize("peer", ["nova", "prometheus_client"])
@pytest.mark.benchmark(group="metrics.page of 10,000 counters", min_rounds=3, max_time=0.5)
def test_make_the_page(benchmark, peer):
    if peer == "nova":
        registry = Registry()
        counter = registry.counter("c_total", "", ["n"], children_max=10_000)
        page = registry.render
    else:
        collector = CollectorRegistry()
        counter = prometheus_client.Counter("c", "", ["n"], registry=collector)

        def page():
            return generate_latest(collector)

    for n in range(10_000):
        counter.labels(str(n)).inc(n)
    assert benchmark(page).count(b"\nc_total{") == 10_000


@pytest.mark.benchmark(group="metrics.p99", max_time=0.3)
def test_ask_for_a_quantile(benchmark):
    one = Distribution((1.0,))
    for value in VALUES * 100:
        one.observe(value)
    assert benchmark(one.quantile, 0.99) == pytest.approx(sorted(VALUES * 100)[9899], rel=0.0101)

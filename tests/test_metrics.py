import math
import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from nova.errors import UsageError
from nova.metrics import OTHER, QUANTILE_ERROR_RATIO, Counter, Distribution, Gauge, Histogram, Registry

values = st.lists(st.floats(1e-9, 1e12), min_size=1, max_size=200)


def parsed(registry):
    return {family.name: family for family in text_string_to_metric_families(registry.render().decode())}


def samples(family):
    return {(one.name, *sorted(one.labels.items())): one.value for one in family.samples}


def test_the_page_says_to_prometheus_what_was_counted():
    registry = Registry()
    writes = registry.counter("nova_writes_total", "Writes acknowledged")
    settled = registry.counter("nova_conflicts_total", "Conflicts settled", ["strategy", "region"])
    lag = registry.gauge("nova_lag_ops", "How far behind")
    registry.gauge("nova_keys", "Keys", function=lambda: 1e17)
    writes.inc()
    writes.inc(2.5)
    settled.labels(strategy="lww", region="eu").inc()
    settled.labels("semantic", "us").inc(41)
    settled.labels("semantic", "us").inc()
    lag.set(-3)
    page = parsed(registry)
    assert samples(page["nova_writes"]) == {("nova_writes_total",): 3.5}
    assert samples(page["nova_conflicts"]) == {
        ("nova_conflicts_total", ("region", "eu"), ("strategy", "lww")): 1,
        ("nova_conflicts_total", ("region", "us"), ("strategy", "semantic")): 42,
    }
    assert samples(page["nova_lag_ops"]) == {("nova_lag_ops",): -3}
    assert samples(page["nova_keys"]) == {("nova_keys",): 1e17}
    assert page["nova_writes"].documentation == "Writes acknowledged"
    assert [page[name].type for name in page] == ["counter", "counter", "gauge", "gauge"]


@given(st.text(), st.text())
def test_any_label_value_and_help_comes_back_from_the_page(value, help):
    registry = Registry()
    registry.gauge("g", help, ["a"]).labels(value).set(1)
    text = registry.render().decode()
    assert text.count("\n") == 3
    family = next(iter(text_string_to_metric_families(text.replace("\r", "?"))))
    assert family.samples[0].labels["a"] == value.replace("\r", "?")


@pytest.mark.parametrize(
    "value", [0.0, -1.0, 1e15, 1e15 + 2, 1e300, 5e-324, 0.1, math.inf, -math.inf, float(2**53), -1e15, 123456.789]
)
def test_numbers_come_back_exactly(value):
    registry = Registry()
    registry.gauge("g", "").set(value)
    assert samples(parsed(registry)["g"]) == {("g",): value}


def test_a_gauge_whose_function_fails_says_nan_and_the_page_stands():
    registry = Registry()
    registry.gauge("broken", "", function=lambda: 1 / 0)
    registry.gauge("whole", "").set(7)
    page = parsed(registry)
    assert math.isnan(page["broken"].samples[0].value)
    assert page["whole"].samples[0].value == 7


def test_each_child_of_a_gauge_can_have_a_function():
    registry = Registry()
    lag = registry.gauge("lag", "", ["peer"])
    lag.bind(lambda: 4, peer="b")
    assert samples(parsed(registry)["lag"]) == {("lag", ("peer", "b")): 4}
    with pytest.raises(UsageError):
        lag.bind(lambda: 5, peer="b")


@given(st.lists(st.floats(-10, 10), max_size=100), st.integers(1, 50))
def test_histogram_buckets_count_values_less_or_equal(observed, width):
    registry = Registry()
    bounds = [n * 20 / width - 10 for n in range(width)]
    histogram = registry.histogram("h", "", ["x"], buckets=bounds).labels("1")
    for value in observed:
        histogram.observe(value)
    found = samples(parsed(registry)["h"])
    for bound in bounds:
        assert found["h_bucket", ("le", repr(bound)), ("x", "1")] == sum(value <= bound for value in observed)
    assert found["h_bucket", ("le", "+Inf"), ("x", "1")] == found["h_count", ("x", "1")] == len(observed)
    assert found["h_sum", ("x", "1")] == pytest.approx(sum(observed))


@given(values, st.floats(0, 1))
def test_quantiles_are_within_one_percent(observed, q):
    one = Distribution((1.0,))
    for value in observed:
        one.observe(value)
    exact = sorted(observed)[int(q * (len(observed) - 1))]
    assert abs(one.quantile(q) - exact) <= exact * QUANTILE_ERROR_RATIO * 1.000001


@given(values, values, st.lists(st.floats(0, 1), max_size=5))
def test_a_merge_equals_having_seen_both(left, right, quantiles):
    a, b, both = (Distribution((1.0, 5.0)) for _ in range(3))
    for value in left:
        a.observe(value)
        both.observe(value)
    for value in right:
        b.observe(value)
        both.observe(value)
    a.merge(b)
    assert (a.count, a.buckets) == (both.count, both.buckets)
    assert a.sum == pytest.approx(both.sum)
    assert [a.quantile(q) for q in quantiles] == [both.quantile(q) for q in quantiles]


def test_zero_negative_tiny_and_infinite_values_do_not_break_the_sketch():
    one = Distribution((1.0,))
    for value in (0.0, -5.0, 1e-300, math.inf, 1e300):
        one.observe(value)
    assert one.quantile(0) == 0
    assert one.quantile(1) == pytest.approx(1e12, rel=0.01)
    assert one.buckets == (3, 2)
    assert math.isnan(Distribution(()).quantile(0.5))
    with pytest.raises(UsageError):
        one.observe(math.nan)
    with pytest.raises(UsageError):
        one.quantile(1.5)


def test_labels_beyond_the_limit_share_one_child():
    counter = Counter("c_total", "", ["user"], children_max=10)
    for n in range(1000):
        counter.labels(user=n).inc()
    children = {labels["user"]: child.value for labels, child in counter.children()}
    assert len(children) == 11
    assert children[OTHER] == 990
    assert sum(children.values()) == 1000


def test_a_bound_child_is_the_same_for_the_same_labels():
    counter = Counter("c_total", "", ["a", "b"])
    assert counter.labels("1", "2") is counter.labels(b="2", a=1)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Counter("no spaces", ""),
        lambda: Counter("c", "", ["__reserved"]),
        lambda: Counter("c", "", ["a", "a"]),
        lambda: Histogram("h", "", ["le"]),
        lambda: Histogram("h", "", buckets=[2, 1]),
        lambda: Counter("c", "", ["a"]).inc(),
        lambda: Counter("c", "", ["a"]).labels(b=1),
        lambda: Counter("c", "", ["a"]).labels(1, 2),
        lambda: Histogram("h", "", ["a"]).observe(1),
        lambda: Gauge("g", "", ["a"], function=lambda: 1),
        lambda: Distribution((1.0,)).merge(Distribution((2.0,))),
        lambda: Counter("c", "").inc(-1),
    ],
)
def test_wrong_use_is_refused(wrong):
    with pytest.raises(UsageError):
        wrong()


def test_a_name_is_registered_once():
    registry = Registry()
    registry.counter("c_total", "")
    with pytest.raises(UsageError, match="c_total"):
        registry.gauge("c_total", "")


def test_threads_lose_no_increment():
    counter = Counter("c_total", "")
    histogram = Histogram("h", "")

    def work():
        for _ in range(20_000):
            counter.inc()
            histogram.observe(0.5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.value == histogram.count == 80_000


def test_observed_latencies_answer_with_their_median():
    histogram = Histogram("h", "")
    chance = random.Random(3)
    for _ in range(10_000):
        histogram.observe(chance.expovariate(100))
    assert histogram.quantile(0.5) == pytest.approx(math.log(2) / 100, rel=0.05)


def test_a_table_tells_children_that_come_and_go():
    registry, table = Registry(), {("a",): 2.0, ("b",): 1.0}
    registry.gauge("g", "numbers", ("who",), table=lambda: {} | table, children_max=2)
    assert registry.render().splitlines()[2:] == [b'g{who="a"} 2', b'g{who="b"} 1']
    table = {("c",): 3.0, ("d",): 2.0, ("e",): 1.0}
    assert registry.render().splitlines()[2:] == [b'g{who="c"} 3', b'g{who="d"} 2']
    table = None
    assert registry.render().splitlines()[2:] == []
    with pytest.raises(UsageError, match="no labels"):
        registry.gauge("h", "numbers", table=dict)

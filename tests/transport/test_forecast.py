"""The forecast of bandwidth against the naive ones, on a public trace and on series of known kinds."""

import csv
import gzip
import math
import random

import pytest

from nova.errors import UsageError
from nova.transport.forecast import BandwidthForecast

WARM_UP = 50


def naive(series):
    """name -> forecasts of each value from those before it."""
    out = {"last": [series[0], *series[:-1]]}
    for alpha in (0.1, 0.3, 0.5, 0.8):
        mean, said = series[0], []
        for value in series:
            said.append(mean)
            mean += alpha * (value - mean)
        out[f"ewma {alpha}"] = said
    for window in (5, 20):
        out[f"harmonic {window}"] = [series[0]] + [
            len(past) / sum(1 / value for value in past)
            for past in (series[max(0, i - window) : i] for i in range(1, len(series)))
        ]
    return out


def ours(series):
    model, said = BandwidthForecast(), []
    for value in series:
        said.append(model.predict() or value)
        model.observe(value)
    return said


def error(said, series):
    """Mean of |forecast - value| / value, after a warm-up."""
    pairs = list(zip(said, series, strict=True))[WARM_UP:]
    return sum(abs(guess - value) / value for guess, value in pairs) / len(pairs)


def trace(public_data, name):
    """Bytes that an EC2 instance received in each five minutes; those without any are left out."""
    path = public_data / "anomaly" / "nab" / "realAWSCloudwatch" / f"{name}.csv.gz"
    with gzip.open(path, "rt") as lines:
        return [value for row in csv.DictReader(lines) if (value := float(row["value"])) > 0]


@pytest.mark.parametrize(
    ("name", "reached", "ahead"),
    [("ec2_network_in_257a54", 0.91, 0.50), ("iio_us-east-1_i-a2eb1cd9_NetworkIn", 0.87, 0.07)],
)
def test_public_traces_are_forecast_better_than_by_any_naive_one(public_data, name, reached, ahead):
    """reached: 1 - MAPE. ahead: how much less the error is than that of the best naive one.

    The first trace has a rhythm, and less than half of the error is left. The second one only wanders, and all are near
    what can be known: there a twelfth is gained.
    """
    series = trace(public_data, name)[:2000]
    own = error(ours(series), series)
    best = min(error(said, series) for said in naive(series).values())
    assert 1 - own >= reached
    assert own <= (1 - ahead) * best


def test_it_learns_a_rhythm_that_it_is_not_told():
    chance = random.Random(1)
    series = [(9e6 if i % 7 in (2, 3) else 1e6) * chance.lognormvariate(0, 0.05) for i in range(400)]
    assert error(ours(series), series) < 0.1
    assert min(error(said, series) for said in naive(series).values()) > 0.4


@pytest.mark.parametrize("seed", range(3))
def test_on_a_series_without_a_pattern_it_is_hardly_worse_than_the_best_naive_one(seed):
    chance = random.Random(seed)
    level, walk = 1e7, []
    for _ in range(500):
        level *= chance.lognormvariate(0, 0.1)
        walk.append(level)
    for series in (walk, [chance.lognormvariate(16, 0.3) for _ in range(500)]):
        best = min(error(said, series) for said in naive(series).values())
        assert error(ours(series), series) <= 1.1 * best


def test_a_forecast_is_of_the_same_order_as_what_was_seen():
    """Whatever the series: between its least and its greatest value."""
    chance = random.Random(3)
    for scale in (1e-3, 1.0, 1e12):
        model, seen = BandwidthForecast(), []
        assert model.predict() is None
        for _ in range(300):
            value = scale * 10 ** chance.uniform(-3, 3)
            model.observe(value)
            seen.append(value)
            guess = model.predict()
            assert min(seen) * 0.999 <= guess <= max(seen) * 1.001


def test_it_forgets_what_is_longer_ago_than_it_keeps():
    model = BandwidthForecast()
    for _ in range(2100):
        model.observe(1e3)
    assert len(model) == 2048
    for _ in range(2100):
        model.observe(1e6)
    assert len(model) == 2048
    assert model.predict() == pytest.approx(1e6)


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_what_is_no_bandwidth_is_refused(value):
    with pytest.raises(UsageError, match="above 0"):
        BandwidthForecast().observe(value)

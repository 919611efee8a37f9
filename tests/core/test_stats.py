import numpy as np
import pytest
import torch
from scipy import stats

from lib.core.stats import loglog_slope, relative_error, spread
from tests.helpers import raises


def test_relative_error_by_hand():
    assert relative_error([3.0, 4.0], [3.0, 0.0]) == pytest.approx(4 / 3)
    assert relative_error(torch.zeros(3), torch.zeros(3)) == 0
    assert relative_error([1.0], [0.0]) == float("inf")
    assert relative_error(2.0, 1.0) == 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_never_passes(bad):
    for a, b in (([bad], [1.0]), ([1.0], [bad]), ([bad], [bad])):
        assert not relative_error(a, b) <= 1e9


def test_shapes_must_agree():
    with raises(ValueError, match="shapes differ"):
        relative_error(torch.zeros(2), torch.zeros(3))


def test_spread_prints_mean_and_range():
    s = spread(torch.tensor([0.9, 1.0, 1.1]))
    assert tuple(s) == pytest.approx((1.0, 0.9, 1.1)) and s.n == 3
    assert f"{s:.2f}" == "1.00 (0.90–1.10)"
    assert f"{spread([-1.0, 1.0]):.1f}" == "0.0 (-1.0 to 1.0)"
    assert tuple(spread(v for v in (1, 2, 3))) == (2, 1, 3)
    with raises(ValueError, match="empty"):
        spread([])
    with raises(ValueError, match="finite"):
        spread([1.0, float("nan")])


def test_slope_of_an_exact_power_law_and_its_interval():
    x = [2.0, 4.0, 8.0, 16.0]
    fit = loglog_slope(x, [3 * v**-0.5 for v in x])
    assert fit.slope == pytest.approx(-0.5) and fit.high - fit.low < 1e-6
    assert fit(100) == pytest.approx(0.3)
    assert loglog_slope(x[:2], x[:2]).high == float("inf")


def test_the_interval_covers_at_its_level():
    rng = np.random.default_rng(0)
    x = np.geomspace(1, 100, 6)
    hits = 0
    for _ in range(400):
        fit = loglog_slope(x, x**-1.0 * np.exp(0.1 * rng.standard_normal(6)))
        hits += fit.low <= -1 <= fit.high
    assert 0.92 <= hits / 400 <= 0.98  # 95 % nominal, standard error 1.1 %


def test_slope_and_interval_against_scipy():
    rng = np.random.default_rng(1)
    x = np.geomspace(0.5, 80, 9)
    y = 2 * x**0.7 * np.exp(0.3 * rng.standard_normal(9))
    fit, peer = loglog_slope(x, y), stats.linregress(np.log(x), np.log(y))
    half = stats.t.ppf(0.975, 7) * peer.stderr
    assert fit.slope == pytest.approx(peer.slope, rel=1e-12)
    assert fit.intercept == pytest.approx(peer.intercept, rel=1e-12)
    assert (fit.low, fit.high) == pytest.approx((peer.slope - half, peer.slope + half), rel=1e-12)


def test_slope_names_bad_input():
    with raises(ValueError, match="two different values"):
        loglog_slope([3.0, 3.0, 3.0], [1.0, 2.0, 3.0])
    with raises(ValueError, match="at least 2"):
        loglog_slope([1.0], [1.0])
    with raises(ValueError, match="positive"):
        loglog_slope([1.0, 2.0], [0.0, 1.0])

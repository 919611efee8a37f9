import math

import pytest
import torch

from lib.core.params import distance, flatten, interpolate, path_losses, unflatten
from tests.helpers import assert_close, raises


def _two(gen):
    make = lambda: {"w": torch.randn(3, 4, generator=gen), "b": torch.randn(3, generator=gen)}
    return make(), make()


def test_the_line_has_its_ends_and_its_middle(gen):
    a, b = _two(gen)
    for t, expected in ((0.0, a), (1.0, b)):
        assert_close(interpolate(a, b, t)["w"], expected["w"], 1e-7)
    assert_close(interpolate(a, b, 0.5)["b"], (a["b"] + b["b"]) / 2, 1e-6)
    assert_close(interpolate(a, b, 2.0)["w"], 2 * b["w"] - a["w"], 1e-6)


def test_losses_along_a_line_of_a_quadratic_are_a_parabola(gen):
    a, b = _two(gen)
    loss = lambda p: sum(v.double().square().sum() for v in p.values())
    path = path_losses(a, b, loss, 5)
    assert [t for t, _ in path] == [0.0, 0.25, 0.5, 0.75, 1.0]
    values = [v for _, v in path]
    second = [values[i - 1] - 2 * values[i] + values[i + 1] for i in (1, 2, 3)]
    assert_close(second, [2 * distance(a, b)[0] ** 2 / 16] * 3, 1e-5)


def test_distance_is_that_of_the_flat_vectors(gen):
    a, b = _two(gen)
    u, v = (torch.cat([p["w"].flatten(), p["b"]]) for p in (a, b))
    l2, relative, cosine = distance(a, b)
    assert_close(l2, (u - v).norm(), 1e-6)
    assert_close(relative, (u - v).norm() / v.norm(), 1e-6)
    assert_close(cosine, torch.cosine_similarity(u, v, dim=0), 1e-6)
    zero = {k: torch.zeros_like(x) for k, x in a.items()}
    assert distance(a, zero)[1] == math.inf
    assert math.isnan(distance(a, zero)[2])


def test_errors_name_what_differs(gen):
    a, b = _two(gen)
    with pytest.raises(ValueError, match="only one of them has b"):
        interpolate(a, {"w": b["w"]}, 0.5)
    with pytest.raises(ValueError, match=r"w: the shapes differ, \(3, 4\) and \(4, 3\)"):
        distance(a, {"w": b["w"].T, "b": b["b"]})
    with pytest.raises(ValueError, match="n=1: allowed is 2 or more"):
        path_losses(a, b, lambda p: 0.0, 1)


def test_flatten_and_back(gen):
    params = {"a": torch.randn(2, 3, generator=gen), "b": torch.randn((), generator=gen)}
    vector = flatten(params)
    assert vector.shape == (7,)
    back = unflatten(vector, params)
    assert list(back) == ["a", "b"]
    assert all(torch.equal(back[n], params[n]) for n in params)
    vector[0] = 5.0  # views, not copies
    assert back["a"][0, 0] == 5.0
    with raises(ValueError, match="vector has 6 entries; like has 7"):
        unflatten(vector[1:], params)

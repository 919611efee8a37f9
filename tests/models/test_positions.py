import math

import pytest
import torch

from lib.models.positions import sinusoidal
from tests.helpers import assert_close


def test_entries_are_the_papers_formula():
    t = torch.tensor([0.0, 1.0, 7.5], dtype=torch.float64)
    code = sinusoidal(t, 6)
    for i in range(3):
        angle = t * 1e4 ** (-2 * i / 6)
        assert_close(code[:, 2 * i], angle.sin(), 1e-12)
        assert_close(code[:, 2 * i + 1], angle.cos(), 1e-12)


def test_products_depend_on_the_offset_alone():
    code = sinusoidal(torch.arange(30.0, dtype=torch.float64), 16)
    gram = code @ code.T
    assert_close(gram.diagonal(), torch.full((30,), 8.0), 1e-12)
    for k in (1, 5):
        assert_close(gram.diagonal(k), gram[0, k].expand(30 - k), 1e-12)


def test_a_shift_is_a_rotation():
    t, k = torch.arange(5.0, dtype=torch.float64), 3.0
    code, moved = sinusoidal(t, 4), sinusoidal(t + k, 4)
    for i in range(2):
        a = k * 1e4 ** (-2 * i / 4)
        c, s = math.cos(a), math.sin(a)
        rotation = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
        pair = slice(2 * i, 2 * i + 2)
        assert_close(moved[:, pair], code[:, pair] @ rotation, 1e-12)


def test_shapes_and_integers():
    assert sinusoidal(torch.tensor(3), 8).shape == (8,)
    t = torch.arange(6).reshape(2, 3)
    assert_close(sinusoidal(t, 8), sinusoidal(t.float(), 8), 0)
    assert sinusoidal(t, 8).shape == (2, 3, 8)


@pytest.mark.parametrize("dim", [0, 3, -2])
def test_dim_must_be_even(dim):
    with pytest.raises(ValueError, match=f"dim={dim}: allowed are even numbers"):
        sinusoidal(torch.arange(3), dim)


def test_base_must_exceed_one():
    with pytest.raises(ValueError, match="base=1"):
        sinusoidal(torch.arange(3), 4, base=1.0)

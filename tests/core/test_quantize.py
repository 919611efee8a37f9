import pytest
import torch

from lib.core.quantize import dequantize, fake_quantize, limits, qparams, quantize
from tests.helpers import assert_close, raises


def test_limits():
    assert limits(8, False) == (0, 255) and limits(8, True) == (-127, 127)
    assert limits(1, False) == (0, 1) and limits(2, True) == (-1, 1)
    for bits, symmetric in ((0, False), (1, True), (17, False)):
        with raises(ValueError, match=f"bits={bits}"):
            limits(bits, symmetric)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("axis", [None, 0, -1])
def test_error_is_half_a_step_and_zero_is_exact(bits, symmetric, axis, gen):
    x = torch.randn(6, 50, generator=gen) + 0.5
    x[0, 0] = 0
    scale, zero = qparams(x, bits, symmetric, axis)
    back = dequantize(quantize(x, scale, zero, bits, symmetric), scale, zero)
    # The zero point is rounded, so an end of the range may be clipped by up to half a step more.
    assert ((back - x).abs() <= scale * (0.5 if symmetric else 1.0) + 1e-6).all()
    assert back[0, 0] == 0
    assert scale.shape == {None: (), 0: (6, 1), -1: (1, 50)}[axis]


def test_same_values_as_torch(gen):
    x = torch.randn(200, generator=gen)
    scale, zero = qparams(x, 8, False)
    theirs = torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero), 0, 255)
    assert_close(fake_quantize(x, scale, zero, 8, False), theirs, 1e-6)


def test_ties_to_even_and_constants():
    scale, zero = torch.tensor(1.0), torch.tensor(0)
    x = torch.tensor([0.5, 1.5, 2.5, -0.5])
    assert quantize(x, scale, zero, 8, True).tolist() == [0, 2, 2, 0]
    scale, zero = qparams(torch.zeros(3), 8, False)
    assert (
        scale == 1
        and (dequantize(quantize(torch.zeros(3), scale, zero, 8, False), scale, zero) == 0).all()
    )


def test_gradient_passes_inside_the_range_only():
    x = torch.tensor([-3.0, -0.4, 0.3, 5.0], requires_grad=True)
    y = fake_quantize(x, torch.tensor(0.5), torch.tensor(0), 3, True)  # -1.5 .. 1.5
    assert y.tolist() == [-1.5, -0.5, 0.5, 1.5]
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_errors():
    with raises(ValueError, match=r"shape \(0,\)"):
        qparams(torch.empty(0), 8, True)
    with raises(ValueError, match="finite"):
        qparams(torch.tensor([1.0, float("nan")]), 8, True)

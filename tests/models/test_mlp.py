import math

import torch
from torch import nn

from lib.models.mlp import MLP, NTKLinear
from tests.helpers import assert_close, raises


def test_layers_in_order():
    torch.manual_seed(0)
    net = MLP([5, 7, 6, 2])
    x = torch.randn(4, 5)
    first, second = net.hidden(x)
    assert_close(first, torch.relu(net.layers[0](x)))
    assert_close(second, torch.relu(net.layers[1](first)))
    assert_close(net(x), net.layers[2](second))
    assert len({id(a) for a in net.acts}) == 2, "one activation module per call site"


def test_factories():
    net = MLP([5, 8, 8, 3], nn.Tanh, nn.LayerNorm, bias=False, dropout=0.5, linear=NTKLinear)
    assert all(layer.bias is None for layer in net.layers)
    assert isinstance(net.norms[0], nn.LayerNorm) and net.drops[1].p == 0.5
    assert net.eval()(torch.randn(2, 6, 5)).shape == (2, 6, 3)
    assert sum(p.numel() for p in MLP([4, 3]).parameters()) == 15


def test_same_generator_same_weights(gen):
    a = NTKLinear(3, 4, gen=torch.Generator().manual_seed(1))
    b = NTKLinear(3, 4, gen=torch.Generator().manual_seed(1))
    assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)


def test_parametrizations_are_one_function_with_other_gradients():
    """The same draws give the same outputs; weight gradients differ by sqrt(gain / n_in)."""
    x = torch.randn(6, 50, dtype=torch.float64)
    a, b = (
        NTKLinear(50, 4, 0.3, 2.0, p, gen=torch.Generator().manual_seed(1)).double()
        for p in ("ntk", "standard")
    )
    assert_close(a(x), b(x), 1e-6)
    ga, gb = (torch.autograd.grad(m(x).sum(), [m.weight, m.bias]) for m in (a, b))
    assert_close(ga[0], gb[0] * math.sqrt(2 / 50), 1e-12)
    assert_close(ga[1], gb[1] * 0.3, 1e-12)


def test_output_variance_does_not_depend_on_width():
    for n in (10, 1000):
        gen = torch.Generator().manual_seed(n)
        layer = NTKLinear(n, 4000, beta=0.5, gain=2.0, gen=gen)
        # Standard error of the variance of 4000 draws: 2 %.
        assert abs(layer(torch.ones(n)).var().item() / 2.25 - 1) < 0.1


def test_errors():
    with raises(ValueError, match=r"widths=\[3\]"):
        MLP([3])
    with raises(ValueError, match="widths=.*0"):
        MLP([3, 0, 1])
    with raises(ValueError, match="beta=-1"):
        NTKLinear(3, 3, beta=-1)
    with raises(ValueError, match="parametrization='mup'.*'standard'"):
        NTKLinear(3, 3, parametrization="mup")

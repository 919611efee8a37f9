"""Random features and what they estimate, bundles and their layers, solutions in closed form."""

import math

import pytest
import torch
from torch import nn

from lib.core.ensemble import Ensemble
from lib.core.quadrature import gaussian_mean
from lib.models.adapters import Adapted, adapter_state
from lib.models.infinite_width import relu_dual
from lib.models.transformer import FeedForward, SequenceModel
from lib.width import scalable_kernels as sk
from tests.helpers import assert_close, raises


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(n, d, seed, norm=None, dtype=torch.float32):
    v = torch.randn(n, d, generator=gen(seed), dtype=dtype)
    return v if norm is None else norm * v / v.norm(dim=1, keepdim=True)


def standard_errors(features, x, w, b, truth):
    """Mean over features minus the truth, in standard errors, for each pair of rows."""
    phi, psi = features(x), features.weights(w, b)
    parts = (phi * psi).unflatten(-1, (-1, features.m)).sum(-2) * features.m
    return (parts.mean(-1) - truth) / (parts.std(-1) / math.sqrt(features.m))


# Unbiased.


@pytest.mark.parametrize("M", [0.0, 0.1])
@pytest.mark.parametrize("split", ["root", "positive inputs", "positive weights"])
@pytest.mark.parametrize("name", ["sin", "cos", "exp"])
def test_universal_features_are_unbiased(name, split, M):
    x, w, b = rows(20, 5, 1, 0.9), rows(20, 5, 2, 1.0), torch.linspace(-1, 1, 20)
    features = sk.UniversalFeatures(5, 20_000, name, gen=gen(), split=split, M=M)
    truth = getattr(torch, name)((x * w).sum(1) + b)
    assert standard_errors(features, x, w, b, truth).abs().max() < 4


def test_sampled_spectra_are_unbiased():
    x, w, b = rows(12, 4, 1, 0.8), rows(12, 4, 2, 0.8), torch.linspace(-0.5, 0.5, 12)
    z = (x * w).sum(1) + b
    # exp(-z^2 / 2) twice: its own density, and by importance from a wider Gaussian.
    wider = sk.from_transform(
        lambda xi: math.sqrt(2 * math.pi) * torch.exp(-2 * (math.pi * xi) ** 2),
        lambda n, g: 0.2 * torch.randn(n, generator=g),
        lambda xi: torch.exp(-((xi / 0.2) ** 2) / 2) / (0.2 * math.sqrt(2 * math.pi)),
    )
    cases = [(sk.bump(1.0), torch.exp(-(z**2) / 2)), (wider, torch.exp(-(z**2) / 2))]
    cases.append((sk.reflected_series(torch.tanh, 3.0, 24), torch.tanh(z)))
    for spectrum, truth in cases:
        features = sk.UniversalFeatures(4, 20_000, spectrum, gen=gen(3), several=2)
        assert standard_errors(features, x, w, b, truth).abs().max() < 4.5


def test_reflected_series_is_the_function_on_its_interval():
    gelu = nn.functional.gelu
    draw = sk.reflected_series(gelu, 3.0, 400)(400_000, gen())
    z = torch.linspace(-2.9, 2.9, 9)
    estimate = (draw.weight * torch.exp(draw.rate * z[:, None])).real.mean(1)
    assert_close(estimate, gelu(z), 0.01)


def test_two_frequencies_with_the_same_vectors_are_one_with_its_real_part():
    x, w, b = rows(6, 3, 1), rows(6, 3, 2), torch.linspace(-1, 1, 6)
    sides = []
    for sign in (1.0, -1.0):
        both = lambda n, g, sign=sign: sk.Spectrum(
            torch.full((n,), sign * 1j), torch.full((n,), -sign * 1j)
        )
        features = sk.UniversalFeatures(3, 40, both, gen=gen(4))
        sides.append((features(x) * features.weights(w, b)).sum(1))
    assert_close(sides[0], sides[1], 1e-5)


def test_relu_features_estimate_the_arc_cosine_kernel():
    x, w = rows(20, 6, 1), rows(20, 6, 2)
    features = sk.ReLUFeatures(6, 20_000, gen=gen())
    truth = sk.arc_cosine(x, w)
    assert standard_errors(features, x, w, None, truth).abs().max() < 4
    dual, _ = relu_dual(x.square().sum(1), w.square().sum(1), (x * w).sum(1))
    assert_close(truth, dual, 1e-5)


def test_a_floor_and_a_bias_coordinate():
    x, w, b = rows(4, 6, 1, 1.0), rows(4, 6, 2, 1.0), torch.tensor([0.5, -1.0, 0.0, 2.0])
    one = torch.ones(4, 1)
    joint = sk.ReLUFeatures(6, 40_000, gen=gen(), joint=True)
    truth = sk.arc_cosine(torch.cat([x, one], 1), torch.cat([w, b[:, None]], 1))
    assert standard_errors(joint, x, w, b, truth).abs().max() < 4
    # For equal arguments the kernel with a floor is a one-dimensional Gaussian integral.
    floored = sk.ReLUFeatures(6, 40_000, gen=gen(), floor=-0.3)
    truth = gaussian_mean(lambda z: z.clamp(min=-0.3) ** 2, torch.ones(()).double())
    assert standard_errors(floored, x, x, None, truth.float()).abs().max() < 4


def test_fourier_features_estimate_a_bump():
    x, w = rows(20, 6, 1, 1.0), rows(20, 6, 2, 1.5)
    features = sk.FourierFeatures(6, 20_000, gen=gen(), length=2.0)
    truth = torch.exp(-(x - w).square().sum(1) / 8)
    assert standard_errors(features, x, w, None, truth).abs().max() < 4


@pytest.mark.parametrize("name", ["exp", "sin", "tanh", "gelu"])
def test_maclaurin_features_and_coefficients(name):
    f = {"gelu": nn.functional.gelu}.get(name) or getattr(torch, name)
    a = sk.taylor_coefficients(name, 14)
    z = torch.linspace(-0.6, 0.6, 7, dtype=torch.float64)
    assert_close(sum(c * z**n for n, c in enumerate(a)), f(z), 1e-4)
    x, w, b = rows(10, 4, 1, 0.7), rows(10, 4, 2, 0.7), torch.linspace(-0.3, 0.3, 10)
    features = sk.MaclaurinFeatures(4, 20_000, a[:8], gen=gen(), joint=True)
    parts = features(x) * features.weights(w, b)
    parts, constant = parts[:, :-1] * features.m, parts[:, -1]
    z = (x * w).sum(1) + b
    truth = sum(c * z**n for n, c in enumerate(a[:8]))
    error = (parts.mean(1) + constant - truth) / (parts.std(1) / math.sqrt(features.m))
    assert error.abs().max() < 4
    assert_close(constant, torch.full((10,), a[0])) if a[0] else None


def test_orthogonal_rows_are_orthogonal_and_gaussian():
    G = sk.gaussian_orthogonal_matrix(20, 8, gen(), torch.float64)
    assert G.shape == (20, 8)
    for block in (G[:8], G[8:16], G[16:]):
        gram = block @ block.T
        off = gram - gram.diagonal().diag()
        assert off.abs().max() < 1e-12 * gram.max()
    many = sk.gaussian_orthogonal_matrix(8_000, 4, gen())
    assert_close(many.square().mean(0), torch.ones(4), 0.05)
    assert_close((many**4).mean(), 3.0, 0.1)
    x, w, b = rows(8, 8, 1, 0.9), rows(8, 8, 2, 0.9), torch.zeros(8)
    features = sk.UniversalFeatures(8, 8_000, "sin", gen=gen(), orthogonal=True)
    assert standard_errors(features, x, w, b, torch.sin((x * w).sum(1))).abs().max() < 4


# Variance.


@pytest.mark.parametrize("split", ["root", "positive inputs", "positive weights"])
@pytest.mark.parametrize("M", [0.0, 0.05, 0.3])
def test_variance_formula(M, split):
    x, w, b = rows(6, 5, 1, 0.6), rows(6, 5, 2, 0.5), torch.linspace(-1, 1, 6)
    formula = sk.feature_variance(x, w, b, sk.sine(1, gen()), M=M, split=split)
    features = sk.UniversalFeatures(5, 100_000, "sin", gen=gen(), M=M, split=split)
    parts = (features(x) * features.weights(w, b)).unflatten(-1, (-1, features.m)).sum(-2)
    assert_close((parts * features.m).var(-1), formula, 0.05)


def test_variance_of_the_positive_features_is_the_known_one():
    u, v = rows(9, 4, 1, dtype=torch.float64), rows(9, 4, 2, dtype=torch.float64)
    found = sk.feature_variance(u, v, torch.zeros(9).double(), sk.exponential(1, gen()))
    known = torch.exp(2 * (u * v).sum(1)) * torch.expm1((u + v).square().sum(1))
    assert_close(found, known, 1e-10)
    # sin, roots on both sides: E|Z|^2 = exp(|x + w|^2), so the error grows exponentially.
    found = sk.feature_variance(u, v, torch.zeros(9).double(), sk.sine(1, gen()))
    z = (u * v).sum(1)
    square = -torch.exp(-1j * (u.square() + v.square()).sum(1) + 2j * (u + v).square().sum(1))
    known = 0.5 * (torch.exp((u + v).square().sum(1)) + square.real) - torch.sin(z) ** 2
    assert_close(found, known, 1e-10)


def test_orthogonal_vectors_have_the_smaller_error():
    d, draws, total = 8, 2000, torch.zeros(2)
    x, w = rows(20, d, 1), rows(20, d, 2)
    norms = 0.7 + 0.3 * torch.rand(20, 1, generator=gen(3))
    x, w = (norms * v / v.norm(dim=1, keepdim=True) for v in (x, w))
    truth = torch.sin((x * w).sum(1) + 0.3)
    for k, orthogonal in enumerate((True, False)):
        # Each block of d rows is an estimate of its own.
        features = sk.UniversalFeatures(d, d * draws, "sin", gen=gen(), orthogonal=orthogonal)
        parts = features(x) * features.weights(w, torch.full((20,), 0.3))
        parts = parts.unflatten(-1, (2, draws, d)).sum((1, 3)) * draws
        total[k] = (parts - truth[:, None]).square().mean(1).sqrt().mean()
    assert total[0] / total[1] <= 0.95, total


# Layers.


def all_features(d):
    return {
        "universal": sk.UniversalFeatures(d, 12, "sin", gen=gen(), M=0.05, normalize=1.0),
        "positive": sk.UniversalFeatures(d, 12, "sin", gen=gen(), split="positive inputs"),
        "exp": sk.UniversalFeatures(d, 12, "exp", gen=gen(), orthogonal=True),
        "relu": sk.ReLUFeatures(d, 12, gen=gen(), floor=-0.2, joint=True),
        "relu, plain": sk.ReLUFeatures(d, 12, gen=gen()),
        "fourier": sk.FourierFeatures(d, 12, gen=gen(), length=1.5),
        "maclaurin": sk.MaclaurinFeatures(d, 12, [0.5, 1.0, -0.3], gen=gen()),
    }


@pytest.mark.parametrize("name", list(all_features(5)))
def test_the_fused_sum_is_features_times_weights(name):
    features = all_features(5)[name].double()
    x, W = rows(6, 5, 1, dtype=torch.float64).view(2, 3, 5), rows(4, features.width, 2).double()
    assert features(x).shape == (2, 3, features.width)
    assert_close(features.sum(x, W), features(x) @ W.T, 1e-10)
    layer = sk.SNNKLinear(features, 4, gen=gen()).double()
    layer(x).square().sum().backward()
    direct = features(x).flatten(0, 1)
    assert_close(layer.weight.grad, 2 * (direct @ layer.weight.detach().T).T @ direct, 1e-8)


@pytest.mark.parametrize("name", list(all_features(5)))
def test_empty_batches_and_half_precision(name):
    features = all_features(5)[name]
    W = rows(4, features.width, 2)
    assert features(torch.zeros(0, 3, 5)).shape == (0, 3, features.width)
    assert features.sum(torch.zeros(0, 3, 5), W).shape == (0, 3, 4)
    x, w = rows(6, 5, 1, 1.0), rows(4, 5, 3, 1.0)
    exact, psi, total = features(x), features.weights(w), features.sum(x, W)
    half, x, w, W = features.bfloat16(), x.bfloat16(), w.bfloat16(), W.bfloat16()
    for got, truth in ((half(x), exact), (half.weights(w), psi), (half.sum(x, W), total)):
        assert got.dtype == torch.bfloat16
        assert_close(got.float(), truth, 0.05)


def test_from_linear_converges_to_the_layer():
    dense = nn.Linear(6, 5)
    with torch.no_grad():
        dense.weight.mul_(0.5)
    x = rows(50, 6, 1, 0.7)
    for name in ("sin", "cos", "exp"):
        layer = sk.from_linear(dense, sk.UniversalFeatures(6, 30_000, name, gen=gen(), M=0.02))
        assert_close(layer(x), getattr(torch, name)(dense(x)).detach(), 0.07)
    assert sk.count_trained(layer) == 5 * 30_000
    exact = nn.Linear(6, 5, bias=False)
    layer = sk.from_linear(exact, sk.ReLUFeatures(6, 30_000, gen=gen()))
    assert_close(layer(x), sk.arc_cosine(x[:, None], exact.weight).detach(), 0.05)


def test_trained_projections_get_gradients():
    for make in (sk.ReLUFeatures, sk.FourierFeatures, sk.UniversalFeatures):
        fixed = sk.SNNKLinear(make(4, 6, gen=gen()), 3, gen=gen())
        moving = sk.SNNKLinear(make(4, 6, gen=gen(), trained=True), 3, gen=gen())
        moving(rows(5, 4, 1)).sum().backward()
        assert moving.features.G.grad.abs().sum() > 0
        assert sk.count_trained(moving) == sk.count_trained(fixed) + 24


def test_adapter_starts_at_nothing_counts_and_is_saved_with_its_vectors():
    model = SequenceModel(5, 2, 8, 2, 2).requires_grad_(False)
    x = rows(6, 5, 1).view(2, 3, 5)
    before = model(x)
    for k, block in enumerate(model.blocks):
        features = sk.ReLUFeatures(8, 16, gen=gen(k), normalize=1.0)
        block.mlp = Adapted(block.mlp, sk.adapter(features, bias=k == 1))
    assert torch.equal(model(x), before)
    assert sk.count_trained(model) == 2 * 16 * 8 + 8
    saved = adapter_state(model)
    assert "blocks.0.mlp.adapter.features.G" in saved
    for block in model.blocks:
        nn.init.normal_(block.mlp.adapter.weight)
    after, saved = model(x), {k: v.clone() for k, v in adapter_state(model).items()}
    for block in model.blocks:
        block.mlp.adapter = sk.adapter(
            sk.ReLUFeatures(8, 16, gen=gen(99), normalize=1.0), bias=block is model.blocks[1]
        )
    model.load_state_dict(saved, strict=False)
    assert torch.equal(model(x), after)


def test_uptrain_replaces_the_first_half_of_feed_forward_layers():
    torch.manual_seed(0)
    model = SequenceModel(5, 2, 8, 2, 2)
    make = lambda d: sk.UniversalFeatures(d, 8, "sin", gen=gen(), normalize=1.0)
    changed = sk.uptrain(model, make)
    assert not any(isinstance(m, FeedForward) for m in changed.modules())
    layer = changed.blocks[1].mlp[0]
    ff = model.blocks[1].mlp
    assert_close(layer.weight, layer.features.weights(ff.up.weight, ff.up.bias).detach())
    assert torch.equal(changed.blocks[1].mlp[1].weight, ff.down.weight)
    changed = sk.uptrain(model, lambda d: sk.ReLUFeatures(d, 8, gen=gen()))
    assert changed(rows(6, 5, 1).view(2, 3, 5)).shape == (2, 3, 2)


def test_members_of_an_ensemble_keep_their_own_vectors():
    layers = [sk.SNNKLinear(sk.ReLUFeatures(4, 6, gen=gen(k)), 3, gen=gen(k)) for k in range(2)]
    x = rows(5, 4, 1)
    assert_close(Ensemble(layers)(x), torch.stack([layer(x) for layer in layers]))


# Bundles.


def stack(make, bias=False):
    layers = [sk.SNNKLinear(make(d, k), 7, gen=gen(k), bias=bias) for k, d in enumerate((5, 7, 7))]
    for layer in layers:
        if bias:
            nn.init.normal_(layer.bias)
    return layers


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["relu", "joint", "fourier"])
def test_bundled_matrices_reproduce_the_layers(kind, bias):
    make = {
        "relu": lambda d, k: sk.ReLUFeatures(d, 16, gen=gen(k), floor=-0.1),
        "joint": lambda d, k: sk.ReLUFeatures(d, 16, gen=gen(k), joint=True),
        "fourier": lambda d, k: sk.FourierFeatures(d, 16, gen=gen(k)),
    }[kind]
    layers, x = stack(make, bias), rows(20, 5, 9)
    bundled = sk.bundle(layers)
    assert_close(bundled(x), nn.Sequential(*layers)(x).detach(), 1e-5)
    assert [tuple(C.shape) for C in bundled.matrices] == [(16, 16), (16, 16), (7, 16)]


@pytest.mark.parametrize("M", [0.0, 0.1])
@pytest.mark.parametrize("split", ["root", "positive inputs"])
def test_universal_features_need_the_norm(split, M):
    make = lambda d, k: sk.UniversalFeatures(d, 64, "sin", gen=gen(k), split=split, M=M)
    layers, x = stack(make), rows(20, 5, 9, 0.5)
    for layer in layers:
        layer.weight.data /= 5
    whole = nn.Sequential(*layers)(x).detach()
    error = {}
    for term in ("exact", "estimate", "none"):
        bundled = sk.bundle(layers, term)
        error[term] = ((bundled(x) - whole).norm() / whole.norm()).item()
    assert error["exact"] < 1e-5
    assert error["estimate"] > 1e-4 and error["none"] > 1e-4
    assert all(q.shape[0] <= q.shape[1] for q in sk.bundle(layers).norms if q.numel())


def test_closed_form_is_the_minimum():
    Phi, Y = rows(60, 12, 1, dtype=torch.float64), rows(60, 3, 2, dtype=torch.float64)
    c = torch.rand(60, generator=gen(3), dtype=torch.float64)
    for weight in (None, c):
        W, b = (t.clone().requires_grad_() for t in sk.fit_bundled_mse(Phi, Y, 1e-3, weight))
        squares = (Y - Phi @ W.T - b).square().sum(1) * (1.0 if weight is None else weight)
        loss = squares.sum() + 1e-3 * (W.square().sum() + b.square().sum())
        loss.backward()
        assert W.grad.abs().max() < 1e-8 and b.grad.abs().max() < 1e-8
    W, b = sk.fit_bundled_mse(Phi, Y, 0.0)
    ones = torch.cat([Phi, torch.ones(60, 1).double()], 1)
    direct = torch.linalg.lstsq(ones, Y).solution.T
    assert_close(torch.cat([W, b[:, None]], 1), direct, 1e-6)
    W = sk.fit_bundled_alignment(Phi, Y, 0.5).requires_grad_()
    (0.25 * W.square().sum() - (Y * (Phi @ W.T)).sum()).backward()
    assert W.grad.abs().max() < 1e-10


# Messages.


def test_bad_arguments_are_named():
    g = gen()
    with raises(ValueError, match="spectrum='cosh'"):
        sk.UniversalFeatures(3, 4, "cosh", gen=g)
    with raises(ValueError, match="split='both'"):
        sk.UniversalFeatures(3, 4, split="both", gen=g)
    with raises(ValueError, match="M=-1"):
        sk.UniversalFeatures(3, 4, M=-1.0, gen=g)
    with raises(ValueError, match="several=3"):
        sk.UniversalFeatures(3, 4, several=3, gen=g)
    with raises(ValueError, match="d=0, m=4"):
        sk.ReLUFeatures(0, 4, gen=g)
    with raises(ValueError, match="normalize=0"):
        sk.ReLUFeatures(3, 4, gen=g, normalize=0.0)
    with raises(ValueError, match="last axis has 2"):
        sk.ReLUFeatures(3, 4, gen=g)(torch.zeros(5, 2))
    with raises(ValueError, match="length=0"):
        sk.FourierFeatures(3, 4, gen=g, length=0.0)
    with raises(ValueError, match="width=0"):
        sk.bump(0.0)
    with raises(ValueError, match="floor=nan"):
        sk.ReLUFeatures(3, 4, gen=g, floor=math.nan)
    with raises(TypeError, match="gen: allowed is a torch.Generator, got NoneType"):
        sk.ReLUFeatures(3, 4, gen=None)
    with raises(ValueError, match="first 1 cosines .* add up to 0"):
        sk.reflected_series(torch.tanh, 1.0, 1)  # an odd function has no constant
    with raises(ValueError, match=r"shapes \(2,\), \(2,\), allowed is \(4,\)"):
        sk.UniversalFeatures(3, 4, lambda n, g: sk.sine(2, g), gen=g)
    with raises(ValueError, match="coefficients=.*nan.*finite"):
        sk.MaclaurinFeatures(3, 4, [0.0, math.nan], gen=g)
    with raises(ValueError, match=r"\(4, 2\), \(4, 3\), \(4,\): allowed are"):
        sk.feature_variance(rows(4, 2, 1), rows(4, 3, 1), torch.zeros(4), sk.sine(1, g))
    for make in (sk.ReLUFeatures, sk.FourierFeatures, sk.UniversalFeatures):
        phi = make(3, 4, gen=g)
        with raises(TypeError, match="dtype torch.int64, allowed is the features', torch.float32"):
            phi(torch.zeros(5, 3, dtype=torch.long))
        with raises(ValueError, match=rf"W has shape \(2, 3\), allowed is \(k, {phi.width}\)"):
            phi.sum(torch.zeros(5, 3), torch.zeros(2, 3))
    with raises(ValueError, match=r"b has shape \(4,\), allowed is \(5,\)"):
        phi.weights(torch.zeros(5, 3), torch.zeros(4))
    with raises(ValueError, match="width=inf"):
        sk.bump(math.inf)
    with raises(ValueError, match="reach=-1"):
        sk.reflected_series(torch.tanh, -1.0, 3)
    with raises(ValueError, match="beyond the constant"):
        sk.MaclaurinFeatures(3, 4, [1.0, 0.0], gen=g)
    with raises(ValueError, match="name='cosh'"):
        sk.taylor_coefficients("cosh", 3)
    with raises(ValueError, match="m=0"):
        sk.gaussian_orthogonal_matrix(0, 3, g)


def test_bad_layers_are_named():
    g, relu = gen(), sk.ReLUFeatures(3, 4, gen=gen())
    with raises(ValueError, match="joint=True"):
        sk.from_linear(nn.Linear(3, 2), relu)
    with raises(ValueError, match="4 inputs"):
        sk.from_linear(nn.Linear(4, 2, bias=False), relu)
    with raises(TypeError, match="nn.Linear, got ReLU"):
        sk.from_linear(nn.ReLU(), relu)
    with raises(ValueError, match="gen: start='random'"):
        sk.SNNKLinear(relu, 2)
    with raises(ValueError, match="start='one'"):
        sk.SNNKLinear(relu, 2, start="one")
    with raises(ValueError, match="n_out=0"):
        sk.SNNKLinear(relu, 0, gen=g)
    with raises(ValueError, match="n_out=0"):
        sk.adapter(relu, 0)
    with raises(TypeError, match="without a gate"):
        sk.uptrain(nn.Sequential(FeedForward(3, 4, gated=True)), lambda d: relu)
    layers = [sk.SNNKLinear(relu, 3, gen=g) for _ in range(2)]
    with raises(ValueError, match="1 given"):
        sk.bundle(layers[:1])
    with raises(ValueError, match="norm_term='half'"):
        sk.bundle(layers, "half")
    with raises(ValueError, match="5 outputs meet"):
        sk.bundle([sk.SNNKLinear(relu, 5, gen=g), layers[0]])
    with raises(ValueError, match="normalize=None"):
        unit = sk.ReLUFeatures(3, 4, gen=g, normalize=1.0)
        sk.bundle([layers[0], sk.SNNKLinear(unit, 2, gen=g)])
    with raises(TypeError, match="MaclaurinFeatures cannot"):
        series = sk.MaclaurinFeatures(3, 4, [0.0, 1.0], gen=g)
        sk.bundle([layers[0], sk.SNNKLinear(series, 2, gen=g)])
    with raises(ValueError, match="output bias"):
        sine = sk.UniversalFeatures(3, 4, gen=g)
        sk.bundle([sk.SNNKLinear(relu, 3, gen=g, bias=True), sk.SNNKLinear(sine, 2, gen=g)])
    with raises(ValueError, match="Phi has 3 rows and Y 2"):
        sk.fit_bundled_mse(torch.zeros(3, 2), torch.zeros(2, 1), 0.1)
    with raises(ValueError, match=r"\(3, 2\) and \(3,\): allowed are"):
        sk.fit_bundled_mse(torch.zeros(3, 2), torch.zeros(3), 0.1)
    with raises(ValueError, match="Y: .*not finite"):
        sk.fit_bundled_mse(torch.zeros(3, 2), torch.full((3, 1), math.nan), 0.1)
    with raises(ValueError, match="ridge=-1.0: allowed is 0 or more"):
        sk.fit_bundled_mse(torch.zeros(3, 2), torch.zeros(3, 1), -1.0)
    with raises(ValueError, match="none negative"):
        sk.fit_bundled_mse(torch.zeros(2, 2), torch.zeros(2, 1), 0.1, torch.tensor([1.0, -1.0]))
    with raises(ValueError, match="ridge=0"):
        sk.fit_bundled_alignment(torch.zeros(2, 2), torch.zeros(2, 1), 0.0)

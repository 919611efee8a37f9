import math

import pytest
import torch

from lib.core.derivatives import empirical_ntk, functional
from lib.core.seeds import child
from lib.core.stats import loglog_slope
from lib.models.gp import kernel_ridge
from lib.models.infinite_width import nngp_ntk
from lib.width import wide_cnn
from lib.width.wide_cnn import (
    HierarchicalCNN,
    bound_exponent,
    d_eff,
    fc_ntk,
    gaussian_field,
    hierarchical_ntk,
    learning_curve,
    power_ntk,
    predicted_exponent,
    sample_patches,
    sector_spectrum,
)
from tests.helpers import assert_close, raises


def points(n, d=8, patch=2, seed=0):
    return sample_patches(n, d, patch, child(seed, "x"))


# The kernels.


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_one_patch_is_one_hidden_layer(kind):
    x, y = points(9, 8, 8), points(7, 8, 8, seed=1)
    exact = nngp_ntk(math.sqrt(8) * x, math.sqrt(8) * y, 1, "relu", 0.0, 2.0)[kind == "ntk"]
    assert_close(hierarchical_ntk(x, y, (8,), kind), exact, 1e-12)
    deep = nngp_ntk(math.sqrt(8) * x, math.sqrt(8) * y, 3, "relu", 0.0, 2.0)[kind == "ntk"]
    assert_close(fc_ntk(x, y, 3, kind), deep, 1e-12)


def test_diagonals():
    x = points(6, 24)
    for sizes in ((2,), (2, 2), (2, 2, 3), (2, 1, 2, 3)):
        assert (hierarchical_ntk(x, None, sizes, "nngp").diagonal() == 1).all()
        assert (hierarchical_ntk(x, None, sizes).diagonal() == len(sizes) + 1).all()


def test_symmetries_of_the_tree():
    """Subtrees may be swapped, a patch may be rotated; the whole input may not be."""
    x = points(12)
    K = hierarchical_ntk(x, None, (2, 2, 2))
    assert_close(hierarchical_ntk(x.roll(4, 1), None, (2, 2, 2)), K, 1e-14)
    turn = torch.linalg.qr(torch.randn(2, 2, generator=child(0, "turn")).double())[0]
    turned = torch.cat([x[:, :2] @ turn, x[:, 2:]], 1)
    assert_close(hierarchical_ntk(turned, None, (2, 2, 2)), K, 1e-12)
    whole = x @ torch.linalg.qr(torch.randn(8, 8, generator=child(0, "whole")).double())[0]
    moved = (hierarchical_ntk(whole, None, (2, 2, 2)) - K).norm() / K.norm()
    assert moved > 0.1
    assert_close(fc_ntk(whole), fc_ntk(x), 1e-9)
    # A shift by one patch moves a patch to another node, and the kernel notices.
    shifted = hierarchical_ntk(x.roll(2, 1), None, (2, 2, 2))
    assert (shifted - K).norm() / K.norm() > 1e-3


def test_chunks_and_half_of_the_gram_matrix():
    x, y = points(30), points(11, seed=1)
    K = hierarchical_ntk(x, x.clone(), (2, 2), chunk=30)
    for chunk in (None, 7, 1):
        assert_close(hierarchical_ntk(x, None, (2, 2), chunk=chunk), K, 1e-14)
        both = hierarchical_ntk(x, y, (2, 2), chunk=chunk)
        assert_close(both, hierarchical_ntk(y, x, (2, 2)).T, 1e-14)
    assert hierarchical_ntk(x[:0], y, (2, 2)).shape == (0, 11)


def test_normalization():
    x = sample_patches(5, 8, 2, child(0, "cube"), "cube") + 0.1
    unit = (x.view(5, 4, 2) / x.view(5, 4, 2).norm(dim=-1, keepdim=True)).flatten(1)
    assert_close(hierarchical_ntk(x), hierarchical_ntk(unit, normalize=False), 1e-14)
    with raises(ValueError, match="normalize=False allows norm 1 only"):
        hierarchical_ntk(x, normalize=False)


def test_power_is_entrywise():
    K = hierarchical_ntk(points(5))
    assert_close(power_ntk(K, 3), K * K * K, 1e-14)


# Theory.


def test_exponents():
    sizes = (2, 2, 2)
    assert [d_eff(level, sizes) for level in (1, 2, 3)] == [1, 2, 4]
    assert d_eff(2, (3, 2)) == 4
    found = [predicted_exponent(level, sizes) for level in (1, 2, 3)]
    assert_close(found, [5 / 8, 5 / 12, 1 / 4], 1e-14)
    # The closed form of the tangent kernel, and 2 nu / D for a teacher of full range.
    for sizes in ((3, 2), (2, 3, 2), (4,)):
        D = d_eff(len(sizes), sizes)
        for level in range(1, len(sizes) + 1):
            d_l = d_eff(level, sizes)
            assert_close(predicted_exponent(level, sizes), (1 + 1 / D) / (d_l + 1), 1e-14)
        for nu in (0.5, 1.5):
            assert_close(predicted_exponent(len(sizes), sizes, nu), 2 * nu / D, 1e-14)
    assert predicted_exponent(3, (2, 2)) == 0
    # Saturation, and the noisy bound, which is never better.
    assert predicted_exponent(1, (2,), 0.5, 10.0) == predicted_exponent(1, (2,), 0.5, 2.0) == 4
    assert_close(bound_exponent(3, (2, 2, 2)), 0.2, 1e-14)


def test_exponents_are_what_counting_modes_gives():
    """Modes of a tree with their eigenvalues; the P largest are learned, and the rest is left."""
    sizes, nu = (2, 2), 0.5
    k = torch.arange(1, 2001, dtype=torch.float64)
    one = k ** (-2 * nu - 1)
    i, j = torch.meshgrid(k[:400], k[:400], indexing="ij")
    radius = (i**2 + j**2).sqrt()[(i**2 + j**2) < 400**2]
    two = radius ** (-2 * nu - 2)
    for level, power in ((1, one), (2, two)):
        samples, left = [], []
        for cutoff in torch.logspace(-4, -6, 9, dtype=torch.float64):
            samples.append(((one > cutoff).sum() + (two > cutoff).sum()).item())
            # The missing tail beyond the grid, as an integral.
            tail = power[power <= cutoff].sum() + (1 / 2000 if level == 1 else math.pi / 2 / 400)
            left.append(tail.item())
        measured = -loglog_slope(samples, left).slope
        assert abs(measured - predicted_exponent(level, sizes)) < 0.06


# Learning curves.


def test_exact_mean_is_the_mean_over_many_targets():
    x = points(160)
    K = {f: hierarchical_ntk(x, None, f) for f in ((2,), (2, 2))}
    exact = learning_curve(K[(2, 2)], K[(2,)], (16, 64), 0.1)
    drawn = learning_curve(K[(2, 2)], K[(2,)], (16, 64), 0.1, 4000, child(0, "y"))
    assert_close(drawn.error, exact.error, 0.03)  # 0.003 here; one standard error is 0.007


def test_learning_curve_is_kernel_regression():
    x = points(90)
    T, S = hierarchical_ntk(x, None, (2,)), hierarchical_ntk(x, None, (2, 2))
    y = gaussian_field(T, 3, child(0, "y"))
    for ridge in (0.0, 0.5):
        prediction = S[60:, :40] @ kernel_ridge(S[:40, :40], y[:40], ridge)
        error = (prediction - y[60:]).square().mean() / y[60:].var(0, unbiased=False).mean()
        found = learning_curve(T, S, (40, 60), ridge, 3, child(0, "y"))
        assert_close(found.error[0], error.item(), 1e-6)


def test_gaussian_field_has_its_covariance():
    K = hierarchical_ntk(points(5), None, (2, 2))
    y = gaussian_field(K, 40_000, child(0, "field"))
    assert_close(y @ y.T / 40_000, K, 0.03)


def test_locality_and_full_range():
    """Two seeds; ratio of errors 0.36 and 0.85 at 256 samples, allowed 0.5 and 0.75."""
    for seed in (0, 1):
        x = points(512, seed=seed)
        local, full = (hierarchical_ntk(x, None, f) for f in ((2,), (2, 2, 2)))
        dense = fc_ntk(x)
        error = lambda T, S: learning_curve(T, S, (256,)).error[0]
        assert error(local, full) < 0.5 * error(local, dense)
        assert error(full, full) > 0.75 * error(full, dense)


def test_steps_of_gradient_descent():
    K = hierarchical_ntk(points(20))
    y = torch.randn(12, 2, generator=child(0, "y")).double()
    edge = 1 / torch.linalg.eigvalsh(K[:12, :12])[-1].item()
    for lr in (0.5 * edge, edge, 1.7 * edge):
        f = torch.zeros(20, 2).double()
        for _ in range(30):
            f = f + lr * K[:, :12] @ (y - f[:12])
        assert_close(wide_cnn.after_steps(K[:12, :12], K[12:, :12], y, lr, 30), f[12:], 1e-12)


# The spectrum.


def test_spectrum_is_the_gram_matrix_s():
    """Eigenvalues of the Gram matrix on a grid of the torus are the Fourier coefficients."""
    angle = torch.arange(16, dtype=torch.float64) * (2 * math.pi / 16)
    a, b = (t.flatten() for t in torch.meshgrid(angle, angle, indexing="ij"))
    x = torch.stack([a.cos(), a.sin(), b.cos(), b.sin()], 1)
    for kind in ("ntk", "nngp"):
        K = hierarchical_ntk(x, None, (2, 2), kind) / len(x)
        found = sector_spectrum((2, 2), 2, 8, kind, grid=16).eigenvalue
        for k in (1, 2, 3):
            mode = torch.cos(k * (a + b))
            assert_close(K @ mode, found[k] * mode, 1e-9)
    # A mode of one patch sees the kernel averaged over the other: exact on the same grid.
    K = hierarchical_ntk(x, None, (2, 2)) / len(x)
    found = sector_spectrum((2, 2), 1, 3, grid=16, outside=512).eigenvalue
    for k in (1, 2, 3):
        assert_close(K @ torch.cos(k * a), found[k] * torch.cos(k * a), 2e-2)


def test_spectrum_decays_as_predicted():
    """Deterministic. Slopes -2.06, -2.97, -4.03, -4.93 against -2, -3, -4, -5."""
    for kind, smooth in (("ntk", 1), ("nngp", 3)):
        flat = sector_spectrum((2,), 1, 64, kind)
        even, odd = flat[(flat.k >= 4) & (flat.k % 2 == 0)], flat[(flat.k >= 3) & (flat.k % 2 == 1)]
        assert abs(loglog_slope(even.k, even.eigenvalue).slope + smooth + 1) < 0.3
        assert odd.eigenvalue.abs().max() < 1e-12
        pair = sector_spectrum((2, 2), 2, 32, kind, grid=512)[3:]
        assert abs(loglog_slope(pair.k, pair.eigenvalue).slope + smooth + 2) < 0.3
    four = sector_spectrum((2, 2, 2), 3, 6, grid=32)[3:]
    assert -5.5 < loglog_slope(four.k, four.eigenvalue).slope < -4


# The finite network.


@pytest.mark.parametrize("shared", [True, False])
def test_network_converges_to_the_recursion(shared):
    """Four nets of width 1024, several top patches: off by 0.03 to 0.06, allowed 0.1."""
    x = points(12, 16).float()
    sigma = hierarchical_ntk(x, None, (2, 2), "nngp")
    kernels = {}
    for readout in ("flatten", "pool"):
        nets = [
            HierarchicalCNN(
                16, (2, 2), 1024, shared=shared, readout=readout, gen=child(3, k, readout)
            )
            for k in range(4)
        ]
        features = torch.stack([net.features(x) for net in nets]).detach()
        kernels[readout] = (features @ features.mT).mean(0)
    assert (kernels["flatten"] - sigma).abs().max() < 0.1
    assert (kernels["pool"] - sigma).abs().max() > 0.2


def test_tangent_kernel_of_the_network():
    """Mean over 16 nets of width 64 with two outputs: off by 0.06 and 0.03, allowed 0.12."""
    x = points(6)
    theta = hierarchical_ntk(x, None, (2, 2))
    for shared in (True, False):
        found = []
        for k in range(16):
            net = HierarchicalCNN(8, (2, 2), 64, 2, shared=shared, gen=child(5, k)).double()
            f, params = functional(net)
            found.append(empirical_ntk(f, params, x, x, "jacobian", "mean"))
        assert_close(torch.stack(found).mean(0), theta, 0.12)


def test_parametrizations_and_shapes():
    x = points(5).float()
    ntk, mup = (
        HierarchicalCNN(8, (2, 2, 2), 16, 3, parametrization=p, gen=child(0, "net"))
        for p in ("ntk", "mup")
    )
    assert ntk(x).shape == (5, 3)
    assert_close(mup(x).detach(), ntk(x).detach() / 4, 1e-6)
    assert (ntk.lr_scale, mup.lr_scale) == (1.0, 16.0)
    local = HierarchicalCNN(8, (2, 2), 16, shared=False, gen=child(0, "net"))
    assert [tuple(w.shape) for w in local.filters] == [(4, 16, 2), (2, 16, 32)]


# Errors.


def test_errors():
    x = points(4)
    for call, message in (
        (lambda: hierarchical_ntk(x, None, (2, 3)), "must divide the input dimension d=8"),
        (lambda: hierarchical_ntk(x, kind="rfk"), "kind='rfk'.*'nngp'"),
        (lambda: hierarchical_ntk(x, chunk=0), "chunk=0"),
        (lambda: hierarchical_ntk(x[0]), r"x \(8,\), y \(8,\): allowed are"),
        (lambda: hierarchical_ntk(3 * x, normalize=False), "x has patches of norm 3"),
        (lambda: fc_ntk(x, depth=0), "depth=0"),
        (lambda: power_ntk(x, 0), "q=0"),
        (lambda: power_ntk(x, float("inf")), "q=inf"),
        (lambda: sample_patches(-1, 8, 2, child(0)), "n=-1"),
        (lambda: gaussian_field(x @ x.T, 0, child(0)), "n_out=0"),
        (lambda: learning_curve(x @ x.T, x @ x.T, (3,)), "at least two more points"),
        (lambda: learning_curve(x @ x.T, x @ x.T / 0, (2,)), "student has entries"),
        (lambda: wide_cnn.after_steps(x @ x.T, x @ x.T, x, -0.1, 2), "lr=-0.1: allowed is above"),
        (lambda: wide_cnn.after_steps(x @ x.T, x @ x.T, x[:2], 0.1, 2), r"residual \(2, 8\)"),
        (lambda: sector_spectrum((2, 2), 1, 3, outside=0), "outside=0"),
        (lambda: HierarchicalCNN(8, (2,), 4)(x[:, :4].float()), r"allowed is \(b, 8\)"),
        (lambda: d_eff(3, (2, 2)), "level=3: allowed is 1 to 2"),
        (lambda: predicted_exponent(1, (2,), nu=0.0), "nu=0.0"),
        (lambda: predicted_exponent(1, (1, 2)), "patch of one pixel"),
        (lambda: sample_patches(3, 8, 2, child(0), "ball"), "kind='ball'"),
        (lambda: sample_patches(3, 8, 3, child(0)), "must divide"),
        (lambda: learning_curve(x @ x.T, x @ x.T, (4,)), "more points than the largest size"),
        (lambda: learning_curve(x @ x.T, x @ x.T, (2,), -1.0), "ridge=-1.0"),
        (lambda: learning_curve(x @ x.T, x @ x.T, (2,), 0.0, 3), "gen: drawing outputs"),
        (
            lambda: wide_cnn.after_steps(x @ x.T, x @ x.T, x, 9.0, 2),
            "lr=9: allowed is above 0 and below",
        ),
        (lambda: sector_spectrum((3, 2), 1, 4), "only where s_1 is 2"),
        (lambda: sector_spectrum((2,), 1, 40, grid=63), "grid=63"),
        (lambda: sector_spectrum((2, 2, 2), 3, 4, grid=256), "too many"),
        (lambda: HierarchicalCNN(8, (3,), 4), "must divide"),
        (lambda: HierarchicalCNN(8, (2,), 0), "width=0"),
        (lambda: HierarchicalCNN(8, (2,), 4, readout="sum"), "readout='sum'"),
        (lambda: HierarchicalCNN(8, (2,), 4, parametrization="sp"), "parametrization='sp'"),
        (lambda: wide_cnn.fitted_slope(learning_curve(x @ x.T, x @ x.T, (2,), 1.0)), "needs two"),
    ):
        with raises(ValueError, match=message):
            call()
    for call, message in (
        (lambda: hierarchical_ntk(x, chunk=2.5), "chunk=2.5: allowed are whole numbers or None"),
        (lambda: d_eff(1.5, (2, 2)), "level=1.5"),
        (lambda: wide_cnn.after_steps(x @ x.T, x @ x.T, x, 0.1, 2.5), "steps=2.5"),
    ):
        with raises(TypeError, match=message):
            call()


def test_no_steps_and_a_kernel_of_zeros():
    x = points(4)
    K = x @ x.T
    assert (wide_cnn.after_steps(K, K, x, 0.1, 0) == 0).all()
    assert (wide_cnn.after_steps(0 * K, 0 * K, x, 0.1, 3) == 0).all()
    assert hierarchical_ntk(x[:0], normalize=False).shape == (0, 0)

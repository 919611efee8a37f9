"""The same posterior from scikit-learn and SciPy, the same kernels from neural-tangents (JAX).

neural-tangents needs no TensorFlow for what is compared here: see ``test_ntk.py`` for how to
install it.
"""

import sys
import types

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from lib.models.gp import rbf
from lib.width import scale_mixtures as sm
from tests.helpers import assert_close


@pytest.fixture
def data():
    gen = torch.Generator().manual_seed(0)
    X, x = (torch.randn(n, 3, generator=gen, dtype=torch.float64) for n in (15, 6))
    return X, torch.sin(X[:, :1]), x


def test_known_scale_is_scikit_learn_s_process(data):
    X, y, x = data
    model = sm.SMNNGP(rbf, sm.Dirac(3.0), 0.1).fit(X, y)
    peer = GaussianProcessRegressor(ConstantKernel(3.0) * RBF(1.0), alpha=0.3, optimizer=None)
    peer.fit(X.numpy(), y[:, 0].numpy())
    mean, std = peer.predict(x.numpy(), return_std=True)
    law = model.predict(x, noise=False)
    assert_close(law.mean[:, 0], mean, 1e-8)
    assert_close(law.variance()[:, 0].sqrt(), std, 1e-6)
    assert_close(model.log_marginal(), peer.log_marginal_likelihood_value_, 1e-8)


def test_posterior_is_the_conditional_of_scipy_s_multivariate_t(data):
    """p(y*, y) / p(y), both from SciPy, is the predictive density."""
    X, y, x = data
    target, prior, both = torch.cos(x[:, :1]), sm.InverseGamma(2.0, 3.0), torch.cat([X, x])
    K = 1.5 * (rbf(both, both) + 0.1 * torch.eye(21)).numpy()
    whole = stats.multivariate_t(np.zeros(21), K, df=4).logpdf(torch.cat([y, target])[:, 0].numpy())
    part = stats.multivariate_t(np.zeros(15), K[:15, :15], df=4).logpdf(y[:, 0].numpy())
    law = sm.SMNNGP(rbf, prior, 0.1).fit(X, y).predict(x, joint=True)
    assert_close(law.joint_log_density(target), whole - part, 1e-8)


@pytest.fixture
def nt():
    jax = pytest.importorskip("jax", reason="see the top of tests/peers/test_ntk.py")
    jax.config.update("jax_enable_x64", True)
    # Its optional TensorFlow bridge is imported with the package; an empty module stands in.
    sys.modules.setdefault(
        "neural_tangents.experimental", types.ModuleType("neural_tangents.experimental")
    )
    return pytest.importorskip("neural_tangents", reason="see the top of tests/peers/test_ntk.py")


@pytest.mark.parametrize("act", ["relu", "erf"])
@pytest.mark.parametrize("arch", ["mlp", "resnet", "cnn", "cnn pooled", "conv_resnet"])
def test_kernels_of_neural_tangents(nt, arch, act):
    stax, wv, bv = nt.stax, 1.4, 0.3
    layer = {"W_std": wv**0.5, "b_std": bv**0.5}
    nonlinear = {"relu": stax.Relu, "erf": stax.Erf}[act]
    dense = lambda: stax.Dense(64, **layer)
    conv = lambda: stax.Conv(64, (3, 3), padding="SAME", **layer)
    out = stax.Dense(1, W_std=1.0, b_std=None)
    block = lambda main, short: stax.serial(
        stax.FanOut(2), stax.parallel(stax.serial(*main), short), stax.FanInSum()
    )
    layers = {
        "mlp": [dense(), nonlinear(), dense(), nonlinear(), out],
        "resnet": [
            dense(),
            *(block([nonlinear(), dense()], stax.Identity()) for _ in range(2)),
            nonlinear(),
            out,
        ],
        "cnn": [conv(), nonlinear(), conv(), nonlinear(), stax.Flatten(), out],
        "cnn pooled": [conv(), nonlinear(), conv(), nonlinear(), stax.GlobalAvgPool(), out],
        "conv_resnet": [
            conv(),
            block([nonlinear(), conv(), nonlinear(), conv()], conv()),
            block([nonlinear(), conv(), nonlinear(), conv()], stax.Identity()),
            stax.Flatten(),
            out,
        ],
    }[arch]
    gen = torch.Generator().manual_seed(0)
    shape = (4,) if arch in ("mlp", "resnet") else (2, 4, 4)
    x1, x2 = (torch.randn(n, *shape, generator=gen, dtype=torch.float64) for n in (3, 5))
    theirs = (v.numpy() if v.ndim == 2 else v.permute(0, 2, 3, 1).numpy() for v in (x1, x2))
    peer = stax.serial(*layers)[2](*theirs, "nngp")
    name, _, pooled = arch.partition(" ")
    # One group, without stride: the peer pads strided images on one side, this library on both.
    ours = sm.nngp_kernel(name, 2, act, wv, bv, pool=bool(pooled), groups=1)
    assert_close(ours(x1, x2), np.asarray(peer), 1e-8)

"""The same kernels and the same predictions from neural-tangents (JAX).

It needs no TensorFlow for what is compared here, although it asks for it:

    pip install --no-deps neural-tangents==0.6.5
    pip install "jax==0.4.38" "jaxlib==0.4.38" frozendict
"""

import math
import sys
import types

import numpy as np
import pytest
import torch

from lib.core.seeds import child
from lib.width.ntk import MLPNTK, NTKRegression, empirical_ntk, nngp_ntk
from tests.helpers import assert_close

jax = pytest.importorskip("jax", reason="see the top of this file")
jax.config.update("jax_enable_x64", True)
# Its optional TensorFlow bridge is imported with the package; an empty module stands in.
sys.modules.setdefault(
    "neural_tangents.experimental", types.ModuleType("neural_tangents.experimental")
)
nt = pytest.importorskip("neural_tangents", reason="see the top of this file")
stax = nt.stax

LAYERS = {
    "relu": lambda: stax.Relu(),
    "erf": lambda: stax.Erf(),
    "sin": lambda: stax.Sin(),
    "identity": lambda: stax.Identity(),
}


def network(act, depth, width=512, beta=0.1, gain=1.0, parameterization="ntk"):
    """The paper's network; W_std is the root of the gain after the first layer."""
    layers = []
    for layer in range(depth + 1):
        last = layer == depth
        std = 1.0 if layer == 0 else math.sqrt(gain)
        dense = stax.Dense(
            1 if last else width, W_std=std, b_std=beta or None, parameterization=parameterization
        )
        layers += [dense] if last else [dense, LAYERS[act]()]
    return stax.serial(*layers)


@pytest.fixture
def x():
    gen = torch.Generator().manual_seed(0)
    return [torch.randn(n, 5, generator=gen, dtype=torch.float64) for n in (7, 4)]


@pytest.mark.parametrize("act", LAYERS)
@pytest.mark.parametrize(("depth", "beta", "gain"), [(0, 0.1, 1.0), (3, 0.1, 1.0), (6, 0.5, 2.0)])
def test_limit_kernels(act, depth, beta, gain, x):
    kernel_fn = network(act, depth, beta=beta, gain=gain)[2]
    peer = kernel_fn(*(np.asarray(v) for v in x), ("nngp", "ntk"))
    sigma, theta = nngp_ntk(*x, depth, act, beta, gain)
    assert_close(sigma, np.asarray(peer.nngp), 1e-10, "Sigma")
    assert_close(theta, np.asarray(peer.ntk), 1e-10, "Theta")


def params_of(model):
    """Our weights (out, in) in the peer's layout (in, out)."""
    layers = []
    for layer in model.layers:
        layers += [(layer.weight.detach().T.numpy(), layer.bias.detach().numpy()[None]), ()]
    return layers[:-1]


@pytest.mark.parametrize("parametrization", ["ntk", "standard"])
def test_empirical_kernels(parametrization, x):
    model = MLPNTK(
        (5, 40, 40, 1), "erf", parametrization=parametrization, gen=child(0, "peer")
    ).double()
    apply_fn = network("erf", 2, 40, parameterization=parametrization)[1]
    params = params_of(model)
    assert_close(model(x[0]), np.asarray(apply_fn(params, np.asarray(x[0]))), 1e-12, "outputs")
    peer = nt.empirical_ntk_fn(apply_fn)(*(np.asarray(v) for v in x), params)
    for method in ("jacobian", "product", "structured"):
        got = empirical_ntk(model, *x, method=method, reduce="trace")
        assert_close(got, np.asarray(peer), 1e-10, method)


def test_predictions_of_gradient_flow(x):
    """Mean and covariance of the ensemble, at three times."""
    X, xs = x
    y = torch.sin(X[:, :1])
    kernel_fn = network("relu", 3)[2]
    predict = nt.predict.gradient_descent_mse_ensemble(
        kernel_fn, np.asarray(X), np.asarray(y), diag_reg=0.0
    )
    ours = NTKRegression(lambda a, b: nngp_ntk(a, b, 3), 1 / 7).fit(X, y)
    for t in (0.5, 20.0, None):
        peer = predict(t=t, x_test=np.asarray(xs), get="ntk", compute_cov=True)
        # The peer's loss is the mean, so its time runs as 1/N of the sum's.
        mean, cov = ours.predict(xs, math.inf if t is None else t, return_cov=True)
        assert_close(mean, np.asarray(peer.mean), 1e-7, f"mean at {t}")
        assert_close(cov, np.asarray(peer.covariance), 1e-6, f"covariance at {t}")

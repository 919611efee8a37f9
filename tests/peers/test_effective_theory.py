"""Kernels, tangent kernels and finite networks of neural-tangents; torch's Kaiming rule.

How to install neural-tangents: the top of ``tests/peers/test_ntk.py``.
"""

import math
import sys
import types

import numpy as np
import pytest
import torch

import lib.width.effective_theory as et
from lib.core.seeds import child
from tests.helpers import assert_close


def test_kaiming_is_the_critical_point_of_relu_and_leaky_relu():
    for slope in (0.0, 0.1):
        W = torch.empty(2000, 500)
        torch.nn.init.kaiming_normal_(W, a=slope, generator=child(0, "kaiming"))
        critical = et.critical_hyperparameters(et.ScaleInvariant(1.0, slope)).C_W
        assert_close(500 * W.var(), critical, 0.01)


@pytest.fixture(scope="module")
def nt():
    jax = pytest.importorskip("jax", reason="see the top of this file")
    jax.config.update("jax_enable_x64", True)
    # Its optional TensorFlow bridge is imported with the package; an empty module stands in.
    stub = types.ModuleType("neural_tangents.experimental")
    sys.modules.setdefault("neural_tangents.experimental", stub)
    return pytest.importorskip("neural_tangents", reason="see the top of this file")


def network(nt, activation, layers, C_b, C_W, width=64):
    layer = {
        "relu": nt.stax.Relu,
        "erf": nt.stax.Erf,
        "sin": nt.stax.Sin,
        "gelu": nt.stax.Gelu,
        "leaky relu": lambda: nt.stax.LeakyRelu(0.1),
    }[activation]
    dense = lambda n: nt.stax.Dense(n, W_std=math.sqrt(C_W), b_std=math.sqrt(C_b))
    hidden = [dense(width), layer()] * (layers - 1)
    return nt.stax.serial(*hidden, dense(1))


@pytest.mark.parametrize("activation", ["relu", "leaky relu", "erf", "sin", "gelu"])
def test_flow_of_the_gram_matrix(nt, activation):
    x = torch.randn(4, 6, generator=child(0, "x"), dtype=torch.float64)
    kernel_fn = network(nt, activation, 5, 0.2, 1.7)[2]
    theirs = kernel_fn(np.asarray(x), None, ("nngp", "ntk"))
    sigma = et.ACTIVATIONS[activation]
    K1 = et.first_kernel(x, 0.2, 1.7)
    assert_close(et.gram_flow(sigma, 0.2, 1.7, K1, 5)[-1], np.asarray(theirs.nngp), 1e-6)
    # its parametrization: rates equal to the variances
    own = [et.ntk_flow(sigma, 0.2, 1.7, k, 5, 0.2, 1.7)[-1].item() for k in K1.diagonal().tolist()]
    assert_close(own, np.diag(theirs.ntk), 1e-6)


def test_finite_networks(nt):
    import jax

    x = torch.ones(1, 4, dtype=torch.float64)
    init_fn, apply_fn, _ = network(nt, "relu", 3, 0.0, 2.0, width=16)
    sampled = nt.monte_carlo_kernel_fn(init_fn, apply_fn, jax.random.PRNGKey(0), 300)
    theirs = sampled(np.asarray(x), None, "ntk").item()
    ours = et.sample_ntk(torch.relu, 300, 16, 3, x, 0.0, 2.0, child(0, "n"), lambda_W=2.0)[0].mean()
    assert_close(ours, theirs, 0.15)

"""The same kernels from neural-tangents (JAX), the same regression from scikit-learn.

How to install neural-tangents: ``tests/peers/test_ntk.py``.
"""

import math
import sys
import types

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge

from lib.core.seeds import child
from lib.width.wide_cnn import gaussian_field, hierarchical_ntk, learning_curve, sample_patches
from tests.helpers import assert_close


def tree_of(stax, sizes, width=64):
    """Convolutions whose stride is their size, then flatten: position by position."""
    layers = []
    for level, s in enumerate(sizes):
        # The peer divides by the fan-in; the first layer here does not, later ones have gain 2.
        std = math.sqrt(s) if level == 0 else math.sqrt(2)
        layers += [stax.Conv(width, (s,), (s,), W_std=std, b_std=None), stax.Relu()]
    return stax.serial(*layers, stax.Flatten(), stax.Dense(1, W_std=math.sqrt(2), b_std=None))


@pytest.mark.parametrize(
    ("d", "sizes"), [(8, (2,)), (8, (2, 2)), (8, (2, 2, 2)), (24, (3, 2, 2)), (6, (6,))]
)
def test_kernels(d, sizes):
    jax = pytest.importorskip("jax", reason="see the top of this file")
    jax.config.update("jax_enable_x64", True)
    # Its optional TensorFlow bridge is imported with the package; an empty module stands in.
    sys.modules.setdefault(
        "neural_tangents.experimental", types.ModuleType("neural_tangents.experimental")
    )
    nt = pytest.importorskip("neural_tangents", reason="see the top of this file")
    x, y = (sample_patches(n, d, sizes[0], child(0, "peer", n)) for n in (5, 4))
    kernel_fn = tree_of(nt.stax, sizes)[2]
    peer = kernel_fn(*(np.asarray(z)[..., None] for z in (x, y)), ("nngp", "ntk"))
    assert_close(hierarchical_ntk(x, y, sizes, "nngp"), np.asarray(peer.nngp), 1e-9, "NNGP")
    assert_close(hierarchical_ntk(x, y, sizes), np.asarray(peer.ntk), 1e-9, "NTK")


def test_learning_curve():
    x = sample_patches(120, 8, 2, child(0, "curve"))
    K = hierarchical_ntk(x, None, (2, 2))
    y = gaussian_field(K, 4, child(1, "curve"))
    found = learning_curve(K, K, (40, 80), 0.3, 4, child(1, "curve")).error
    for P, ours in zip((40, 80), found):
        peer = KernelRidge(alpha=0.3, kernel="precomputed").fit(K[:P, :P].numpy(), y[:P].numpy())
        error = (torch.as_tensor(peer.predict(K[80:, :P].numpy())) - y[80:]).square().mean()
        assert_close(ours, (error / y[80:].var(0, unbiased=False).mean()).item(), 1e-9)

"""The same features and the same last map as scikit-learn's; positive features as the Performer's.

The last needs ``pip install --no-deps performer-pytorch local-attention axial-positional-embedding
hyper-connections``.
"""

import math

import numpy as np
import pytest
import torch
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_approximation import RBFSampler
from sklearn.linear_model import Ridge

from lib.width import scalable_kernels as sk
from tests.helpers import assert_close


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def test_fourier_features_are_rbf_sampler_s():
    x = torch.randn(7, 5, generator=gen())
    length = 1.7
    peer = RBFSampler(gamma=1 / (2 * length**2), n_components=30, random_state=0).fit(x.numpy())
    ours = sk.FourierFeatures(5, 30, gen=gen(), length=length)
    ours.G = torch.as_tensor(peer.random_weights_.T * length).float()
    ours.phase = torch.as_tensor(peer.random_offset_).float()
    assert_close(ours(x), peer.transform(x.numpy()), 1e-5)


def test_fourier_features_estimate_the_rbf_kernel():
    x = torch.randn(20, 5, generator=gen(), dtype=torch.float64)
    phi = sk.FourierFeatures(5, 40_000, gen=gen(1), length=2.0).double()(x)
    assert_close(phi @ phi.T, RBF(2.0)(x.numpy()), 0.02)


def test_the_last_map_is_ridge_regression():
    Phi = torch.randn(40, 9, generator=gen(), dtype=torch.float64)
    Y = torch.randn(40, 3, generator=gen(1), dtype=torch.float64)
    c = torch.rand(40, generator=gen(2), dtype=torch.float64)
    # scikit-learn leaves an intercept out of the ridge; as a column of ones it is one weight more.
    ones = np.concatenate([Phi.numpy(), np.ones((40, 1))], 1)
    peer = Ridge(alpha=0.3, fit_intercept=False).fit(ones, Y.numpy(), sample_weight=c.numpy())
    W, b = sk.fit_bundled_mse(Phi, Y, 0.3, c)
    assert_close(torch.cat([W, b[:, None]], 1), peer.coef_, 1e-8)


def test_orthogonal_blocks_have_gaussian_norms():
    from scipy.stats import chi, kstest

    norms = sk.gaussian_orthogonal_matrix(4000, 8, gen()).norm(dim=1).numpy()
    assert kstest(norms, chi(8).cdf).pvalue > 0.01
    assert math.isclose((norms**2).mean(), 8, rel_tol=0.05)


def test_positive_features_are_the_performer_s():
    performer = pytest.importorskip(
        "performer_pytorch.performer_pytorch", reason="see the top of this file"
    )
    x, w = torch.randn(2, 7, 5, generator=gen(), dtype=torch.float64)
    ours = sk.UniversalFeatures(5, 30, "exp", gen=gen(1), orthogonal=True).double()
    more = {"projection_matrix": ours.G, "normalize_data": False, "eps": 0.0}
    # Theirs are divided by the largest exponential: of each row of queries, of all keys together.
    queries = performer.softmax_kernel(x[None, None], is_query=True, **more)[0, 0]
    keys = performer.softmax_kernel(w[None, None], is_query=False, **more)[0, 0]
    norms = lambda t: t / t.norm(dim=1, keepdim=True)
    assert_close(norms(ours(x)), norms(queries), 1e-12)
    psi = ours.weights(w)
    assert_close(psi / psi.norm(), keys / keys.norm(), 1e-12)

"""The same numbers as torchdeq (``pip install torchdeq``) and scikit-learn's BernoulliRBM."""

import numpy as np
import pytest
import torch

import lib.beyond_backprop.boltzmann as bm
from lib.core.seeds import child
from lib.kernels.prox_softmax import prox_softmax, prox_step
from tests.helpers import assert_close

GROUPS = ((6, 2), (3, 4), (1, 5))


def test_solution_and_gradient_are_torchdeq_s():
    torchdeq = pytest.importorskip("torchdeq", reason="pip install torchdeq")
    gen = child(0)
    A = torch.randn(5, 29, generator=gen, dtype=torch.float64).requires_grad_()
    b, wish = torch.randn(2, 4, 29, generator=gen, dtype=torch.float64)
    start = prox_softmax(torch.zeros_like(b), 1.0, GROUPS)
    solve = torchdeq.get_deq(
        f_solver="fixed_point_iter", b_solver="fixed_point_iter", ift=True,
        f_max_iter=400, b_max_iter=400, f_tol=1e-10, b_tol=1e-10,
    )  # fmt: skip
    Phi = bm.monotone_weights(A, GROUPS)
    theirs = solve(lambda q: prox_step(q, q @ Phi + b, 0.25, GROUPS)[0], start)[0][-1]
    Phi = bm.monotone_weights(A, GROUPS)
    ours = bm.implicit_mean_field(Phi, b, GROUPS, 0.25, tol=1e-11, most=600)
    assert_close(ours, theirs, 1e-7)
    got, want = (torch.autograd.grad((q * wish).sum(), A)[0] for q in (ours, theirs))
    assert_close(got, want, 1e-5)


def test_rbm_units_are_scikit_learn_s():
    from sklearn.neural_network import BernoulliRBM

    peer = BernoulliRBM(5, random_state=0, n_iter=2)
    x = np.random.default_rng(0).integers(0, 2, (40, 7)).astype(float)
    peer.fit(x)
    rbm = bm.RBM(7, 5, gen=child(0)).double()
    rbm.W.data = torch.from_numpy(peer.components_.T.copy())
    rbm.a.data = torch.from_numpy(peer.intercept_visible_.copy())
    rbm.c.data = torch.from_numpy(peer.intercept_hidden_.copy())
    assert_close(rbm.hidden(torch.from_numpy(x)), torch.from_numpy(peer.transform(x)), 1e-6)

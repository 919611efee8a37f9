import math

import pytest
import torch

import lib.beyond_backprop.boltzmann as bm
from lib.beyond_backprop.boltzmann.conditional import clamp
from lib.beyond_backprop.boltzmann.solvers import adjoint
from lib.core.data import digits
from lib.core.meters import saved_bytes
from lib.core.seeds import child
from lib.kernels.prox_softmax import prox_softmax, prox_step, prox_vjp
from tests.helpers import assert_close, raises

RAGGED = ((6, 2), (3, 4), (1, 5))  # 29 numbers
TIGHT = {"tol": 1e-10, "most": 600}


def problem(gen, groups=RAGGED, p=5, scale=3.0, batch=4):
    K = sum(c * k for c, k in groups)
    A = scale * torch.randn(p, K, generator=gen, dtype=torch.float64)
    Phi = bm.monotone_weights(A, groups)
    b = torch.randn(batch, K, generator=gen, dtype=torch.float64)
    return A, Phi, b


# The weights.


@pytest.mark.parametrize("m", [0.05, 0.5, 1.0])
def test_weights_are_monotone(m, gen):
    for scale in (0.01, 1.0, 100.0):
        A = scale * torch.randn(2, 5, 29, generator=gen, dtype=torch.float64)
        Phi = bm.monotone_weights(A, RAGGED, m)
        assert (torch.linalg.eigvalsh(torch.eye(29) - Phi) >= m - 1e-12).all()
        assert (Phi[:, bm.same_node(RAGGED)] == 0).all()
        assert_close(Phi, Phi.mT, 1e-14)
        assert (
            bm.block_norms(bm.project_blocks(A, RAGGED, m), RAGGED) <= math.sqrt(1 - m) + 2e-6
        ).all()


def test_block_norms_are_spectral_norms_and_differentiable(gen):
    A = torch.randn(5, 29, generator=gen, dtype=torch.float64)
    norms, at = [], 0
    for count, k in RAGGED:
        for _ in range(count):
            norms.append(torch.linalg.matrix_norm(A[:, at : at + k], 2))
            at += k
    assert_close(bm.block_norms(A, RAGGED), torch.stack(norms), 1e-10)
    few = ((2, 2), (1, 3))
    A = torch.randn(2, 7, generator=gen, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda A: bm.monotone_weights(A, few), A, fast_mode=True)


def test_blocks_within_the_limit_are_left_alone(gen):
    A = 0.01 * torch.randn(5, 29, generator=gen, dtype=torch.float64)
    assert torch.equal(bm.project_blocks(A, RAGGED), A)
    gains = torch.full((10,), 0.5, dtype=torch.float64)
    assert_close(bm.project_blocks(A, RAGGED, gains=gains), A / 2, 1e-12)


def test_two_blocks_by_hand():
    # One row, two binary nodes with blocks (a, -a): Phi_12 = -A_1^T A_2, |A_1|^2 = 2 a^2.
    a = 0.5
    Phi = bm.monotone_weights(torch.tensor([[a, -a, a, -a]], dtype=torch.float64), ((2, 2),), 0.1)
    assert_close(Phi[:2, 2:], -(a**2) * torch.tensor([[1.0, -1], [-1, 1]]).double(), 1e-12)
    assert_close(torch.linalg.eigvalsh(Phi), torch.tensor([-0.5, 0, 0, 0.5]).double(), 1e-12)
    assert_close(bm.lipschitz(Phi), torch.tensor(1.5).double(), 1e-12)


def test_lipschitz_by_power_iteration(gen):
    _, Phi, _ = problem(gen)
    assert_close(bm.lipschitz(Phi, 300), bm.lipschitz(Phi), 1e-3)
    assert bm.lipschitz(Phi, 5) <= bm.lipschitz(Phi) + 1e-12
    # Where attraction is the larger side, too.
    assert_close(bm.lipschitz(-4 * Phi, 300), bm.lipschitz(-4 * Phi), 1e-2)


# Inference.


def test_all_solvers_find_the_one_solution(gen):
    _, Phi, b = problem(gen, scale=1.0, batch=2)
    starts = [
        prox_softmax(10 * torch.randn(b.shape, generator=gen).double(), 1.0, RAGGED)
        for _ in range(3)
    ]
    first = bm.forward_backward(Phi, b, RAGGED, start=starts[0], **TIGHT)
    assert first.converged and bm.residual(Phi, b, RAGGED, first.q).max() < 1e-7
    for other in starts[1:]:
        assert_close(bm.forward_backward(Phi, b, RAGGED, start=other, **TIGHT).q, first.q, 1e-8)
    for solve in (
        bm.anderson,
        bm.peaceman_rachford,
        bm.krahenbuhl_koltun,
        bm.sequential_mean_field,
    ):
        found = solve(Phi, b, RAGGED, start=starts[1], tol=1e-7, most=300)
        assert found.converged, solve
        assert_close(found.q, first.q, 1e-4, solve.__name__)
    damped = bm.damped_mean_field(Phi, b, RAGGED, 0.2, tol=1e-7, most=500)
    assert_close(damped.q, first.q, 1e-4)


@pytest.mark.parametrize("rank", [1, 4])
def test_aligned_weights_make_parallel_updates_cycle(rank):
    groups, gen = ((20, 4),), child(3, rank)
    Phi = bm.aligned_weights(20, 4, rank, gen=gen)
    assert bm.lipschitz(Phi) > 4
    b = torch.randn(80, generator=gen, dtype=torch.float64)
    parallel = bm.parallel_mean_field(Phi, b, groups, tol=1e-10, most=100)
    found = bm.forward_backward(Phi, b, groups, tol=1e-8, most=600)
    assert not parallel.converged and bm.residual(Phi, b, groups, parallel.q) > 0.1
    assert found.converged and bm.residual(Phi, b, groups, found.q) < 1e-6


def test_convex_concave_is_forward_backward(gen):
    _, Phi, b = problem(gen)
    alpha = 1 / float(bm.lipschitz(Phi))
    a = bm.krahenbuhl_koltun(Phi, b, RAGGED, tol=0.0, most=7).q
    c = bm.forward_backward(Phi, b, RAGGED, alpha, tol=0.0, most=7, halve=False).q
    assert_close(a, c, 1e-9)


def test_free_energy_falls_at_the_proven_step_also_without_monotonicity(gen):
    W = torch.randn(29, 29, generator=gen, dtype=torch.float64)
    Phi, b = bm.free_weights(W, RAGGED), torch.randn(4, 29, generator=gen, dtype=torch.float64)
    values = []
    watch = lambda q: values.append(bm.free_energy(Phi, b, q))
    bm.krahenbuhl_koltun(Phi, b, RAGGED, tol=1e-9, most=60, watch=watch)
    assert (torch.stack(values).diff(dim=0) <= 1e-10).all()


def test_a_step_that_is_too_long_is_halved():
    groups = ((40, 4),)
    Phi = bm.aligned_weights(40, 4, 1, gen=child(1))
    b = torch.randn(160, generator=child(2), dtype=torch.float64)
    blind = bm.forward_backward(Phi, b, groups, 0.5, tol=1e-4, most=150, halve=False)
    careful = bm.forward_backward(Phi, b, groups, 0.5, tol=1e-4, most=150)
    assert not blind.converged and careful.converged and careful.alpha < 0.5


def test_without_couplings_the_marginals_are_exact(gen):
    groups = ((5, 2), (2, 3))
    b = torch.randn(16, generator=gen, dtype=torch.float64)
    zero = torch.zeros(16, 16, dtype=torch.float64)
    exact = bm.enumerate_marginals(zero, b, groups)
    assert_close(bm.forward_backward(zero, b, groups, **TIGHT).q, exact, 1e-8)
    # With couplings they are an approximation, better the weaker they are.
    gaps = []
    for scale in (0.1, 0.3):
        A = scale * torch.randn(8, 16, generator=child(4), dtype=torch.float64)
        Phi = bm.monotone_weights(A, groups)
        q = bm.forward_backward(Phi, b, groups, **TIGHT).q
        gaps.append((q - bm.enumerate_marginals(Phi, b, groups)).norm().item())
    assert 0 < gaps[0] < gaps[1] / 3


def test_clamping_is_moving_the_field(gen):
    _, Phi, b = problem(gen)
    start = prox_softmax(torch.randn(4, 29, generator=gen).double(), 1.0, RAGGED)
    free = torch.ones(29, dtype=torch.bool)
    free[:6] = False  # the first three binary nodes
    held = bm.forward_backward(Phi, b, RAGGED, start=start, free=free.expand(4, 29), **TIGHT).q
    assert torch.equal(held[:, :6], start[:, :6])
    moved = b[:, 6:] + start[:, :6] @ Phi[:6, 6:]
    rest = bm.forward_backward(Phi[6:, 6:], moved, ((3, 2), (3, 4), (1, 5)), **TIGHT).q
    assert_close(held[:, 6:], rest, 1e-8)


# The gradient.


def test_implicit_gradient_against_unrolled_and_dense(gen):
    A, _, b = problem(gen, scale=1.0)
    A.requires_grad_(), b.requires_grad_()
    target = torch.randn(4, 29, generator=gen, dtype=torch.float64)
    start = prox_softmax(torch.zeros(4, 29).double(), 1.0, RAGGED)
    free = torch.ones(4, 29, dtype=torch.bool)
    free[:, :4] = False

    def unrolled(A, b):
        Phi, q = bm.monotone_weights(A, RAGGED), start
        for _ in range(70):
            x = prox_step(q, q @ Phi + b, 0.25, RAGGED)[0]
            q = torch.where(free, x, start)
        return q

    def implicit(A, b):
        Phi = bm.monotone_weights(A, RAGGED)
        return bm.implicit_mean_field(Phi, b, RAGGED, 0.25, start=start, free=free, **TIGHT)

    grads = [torch.autograd.grad((f(A, b) * target).sum(), (A, b)) for f in (implicit, unrolled)]
    for got, want in zip(*grads, strict=True):
        assert_close(got, want, 1e-5)
    # The same by one dense solve: w = (J^-1 - Phi)^-1 g with J the softmax's Jacobian.
    Phi = bm.monotone_weights(A.detach(), RAGGED)
    everything = bm.implicit_mean_field(Phi, b.detach()[0], RAGGED, **TIGHT)
    g = target[0]
    J = torch.stack([prox_vjp(everything, e, 1.0, RAGGED) for e in torch.eye(29).double()])
    dense = J @ torch.linalg.solve(torch.eye(29) - Phi @ J, g)
    assert_close(adjoint(Phi, everything, g, RAGGED, 0.125, 1e-11, 600), dense, 1e-8)


# Training.


def machine(members=1):
    d = digits(train=300, test=200)
    x = (d.x > 0.5).float()
    made = bm.MonotoneBoltzmann(
        ((64, 2), (8, 4), (1, 10)), p=24, gens=[child(s, "init") for s in range(members)]
    )
    made.b.data[:, :128] = bm.log_marginals(x)
    return made, x, d.y, (d.x_test > 0.5).float(), d.y_test


def test_masks_are_as_described(gen):
    seen, told = bm.draw_masks(800, 8, gen)
    grid = seen.view(800, 8, 8)
    assert seen[:200].all() and not told[:200].any()
    assert 0.25 < told[200:].float().mean() < 0.35
    assert 0.5 < seen[200:500].float().mean() < 0.6
    blocks = grid[500:]
    assert (blocks == blocks[..., :1]).all(), "whole rows"
    hidden = (~blocks[..., 0]).sum(1)
    assert hidden.min() == 2 and hidden.max() == 6
    assert (blocks[:, 0, 0] != blocks[:, 7, 0]).all(), "one end is hidden, the other seen"


def test_loss_is_the_cross_entropy_of_what_is_hidden(gen):
    made, x, y, *_ = machine()
    q = bm.infer(made, x[:5], torch.zeros(5, 64, dtype=torch.bool), most=5).q[0]
    seen, told = (
        torch.rand(5, 64, generator=gen) < 0.5,
        torch.tensor([True, False, True, True, False]),
    )
    p = q[:, :128].view(5, 64, 2).gather(-1, x[:5, :, None].long())[..., 0]
    want = -p[~seen].log().mean() - 0.3 * q[torch.arange(5), 160 + y[:5]].log()[~told].mean()
    assert_close(bm.masked_marginal_loss(q, x[:5], y[:5], seen, told, 10), want, 1e-5)


def test_training_learns_and_stays_monotone():
    made, x, y, x_test, y_test = machine(2)
    members = bm.MonotoneBoltzmann(((64, 2), (8, 4), (1, 10)), p=24, gens=[child(1, "init")])
    members.b.data[:, :128] = bm.log_marginals(x)
    settings = {"steps": 15, "rate": 0.05, "batch": 32, "most": 8}
    bm.fit_marginals(made, x, y, seeds=[0, 1], **settings)
    everything = torch.ones_like(x_test, dtype=torch.bool)
    right = bm.classify(made, x_test, everything).argmax(-1) == y_test
    assert (right.float().mean(-1) > 0.3).all(), f"{right.float().mean(-1)}; chance is 0.1"
    Phi = made.Phi().detach().double()
    assert (torch.linalg.eigvalsh(torch.eye(170) - Phi) >= 0.1 - 1e-5).all()
    assert (Phi[:, bm.same_node(made.groups)] == 0).all()
    # A member of a pair is what it is alone, up to the common stopping and step.
    bm.fit_marginals(members, x, y, seeds=[1], **settings)
    assert_close(members.A[0], made.A[1], 0.05)


def test_the_same_graph_trains_without_the_constraint():
    _, x, y, *_ = machine()
    free = bm.FreeBoltzmann(((64, 2), (2, 4), (1, 10)), scale=0.5, gens=[child(0)])
    Phi = free.Phi().detach()
    assert torch.linalg.eigvalsh(Phi).max() > 1, "not monotone"
    assert (Phi[:, bm.same_node(free.groups)] == 0).all()
    before = free.W.detach().clone()
    bm.fit_marginals(free, x, y, steps=2, batch=8, most=5, seeds=[0])
    assert (free.W != before).any() and torch.isfinite(free.W).all()


def test_attraction_trains_too():
    # The power method meets the negative end of I - Phi first; the step must stay positive.
    _, x, y, *_ = machine()
    free = bm.FreeBoltzmann(((64, 2), (2, 4), (1, 10)), scale=0.0, gens=[child(0)])
    free.W.data[:, :128:2, :128:2] += 0.1
    Phi = free.Phi().detach()
    assert torch.linalg.eigvalsh(Phi)[0, -1] > 10 and bm.lipschitz(Phi, 8) > 0
    bm.fit_marginals(free, x, y, steps=1, batch=8, most=5, seeds=[0])
    assert torch.isfinite(free.W).all()


def test_answers_are_read_with_the_learned_temperature():
    made, x, *_ = machine()
    seen = torch.rand(10, 64, generator=child(0)) < 0.5
    q = bm.infer(made, x[:10], seen, tol=1e-7, most=300).q
    Phi = made.Phi().detach()
    start, free = clamp(made, x[:10], seen)
    plain = bm.read_out(made, Phi, q).detach()
    assert_close(plain[0][free], q[0][free], 1e-4, "tau = 1 reads the solution")
    made.tau.data.fill_(2.0)
    sharp = bm.read_out(made, Phi, q).detach()
    fourth = plain[..., -10:] ** 4
    assert_close(sharp[..., -10:], fourth / fourth.sum(-1, keepdim=True), 1e-4)
    assert torch.equal(bm.complete(made, x[:10], seen)[0][seen], x[:10][seen])
    assert_close(bm.classify(made, x[:10], seen, tol=1e-7, most=300), sharp[..., -10:], 1e-5)


def test_mlp_trainer_is_inference_with_all_pixels_clamped():
    x = digits(train=20, test=20).x
    trainer = bm.mlp_trainer([64, 16, 16, 10], seed=0, most=300, tol=1e-7)
    everything = torch.ones_like(x, dtype=torch.bool)
    start, free = clamp(trainer.machine, x, everything)
    with torch.no_grad():
        whole = bm.forward_backward(
            trainer.machine.Phi()[0], trainer.machine.b[0], trainer.machine.groups,
            start=start, free=free, tol=1e-7, most=300,
        )  # fmt: skip
        assert_close(trainer.predict(x), whole.q[:, -10:], 1e-5)


def test_seen_pixels_stay_and_labels_may_be_told():
    made, x, y, *_ = machine()
    seen = torch.rand(10, 64, generator=child(0)) < 0.5
    p = bm.complete(made, x[:10], seen, y[:10])[0]
    assert torch.equal(p[seen], x[:10][seen])
    start, free = clamp(made, x[:10], seen, y[:10])
    assert (start[:, -10:].argmax(-1) == y[:10]).all() and not free[:, -10:].any()


def test_mlp_trainer():
    d = digits(train=300, test=300)
    trainer = bm.mlp_trainer([64, 16, 16, 10], seed=0, rate=0.02)
    assert [len(v) for v in trainer.groups.values()] == [2, 2, 2, 2]
    held = {id(p) for group in trainer.groups.values() for p in group}
    assert held == {id(p) for p in trainer.machine.parameters()}
    for k in range(15):
        trainer.step(d.x[(k % 5) * 60 :][:60], d.y[(k % 5) * 60 :][:60])
    with torch.no_grad():
        right = (trainer.predict(d.x_test).argmax(-1) == d.y_test).float().mean()
    assert right > 0.4, f"{right:.2f}; chance is 0.1"
    # What is held for the backward pass does not depend on how long the solver runs.
    held = []
    for most in (2, 15):
        trainer.most = most
        held.append(saved_bytes(lambda: trainer.step(d.x[:20], d.y[:20])))
    assert held[0] == held[1] > 0


# Convolutions.


@pytest.mark.parametrize("scale", [0.3, 30.0])
def test_the_convolutional_weights_are_monotone(scale):
    net = bm.ConvMultiTier(
        ((2, 6), (4, 3), (6, 3)), (3, 3, 3), (2, 2, 3), classes=4, p=5, scale=scale, gen=child(0)
    ).double()
    K = len(net.b)
    assert K == 2 * 36 + 4 * 9 + 6 * 9 + 4
    with torch.no_grad():
        Phi = net(torch.eye(K, dtype=torch.float64))
    assert_close(Phi, Phi.T, 1e-12)
    assert Phi[bm.same_node(net.runs)].abs().max() < 1e-12
    eigenvalues = torch.linalg.eigvalsh(torch.eye(K) - Phi)
    assert eigenvalues[0] >= 0.1 - 1e-10
    if scale > 1:  # every group of channels is at its limit: the margin is not given away
        assert eigenvalues[0] < 0.5
    x = torch.randn(2, K, dtype=torch.float64, generator=child(1))
    assert_close(net.join(net.split(x)), x, 1e-15)


def test_the_convolutional_machine_infers_and_learns():
    net = bm.ConvMultiTier(((2, 4), (6, 2)), (3, 3), (2, 3), classes=3, p=6, gen=child(0)).double()
    b = torch.randn(5, len(net.b), dtype=torch.float64, generator=child(1))
    q = bm.implicit_mean_field(net.operator(), b, net.runs, 0.2, tol=1e-11, most=500)
    assert bm.residual(net, b, net.runs, q.detach()).max() < 1e-8
    weights = [p for name, p in net.named_parameters() if name != "b"]
    grads = torch.autograd.grad(q.square().sum(), weights)
    with torch.no_grad():
        dense = net(torch.eye(len(net.b), dtype=torch.float64))
    # Along one direction of all weights, against finite differences.
    moves = [
        torch.randn(g.shape, dtype=g.dtype, generator=child(2, i)) for i, g in enumerate(grads)
    ]
    slope, values = sum((g * v).sum() for g, v in zip(grads, moves)), []
    for e in (1e-5, -1e-5):
        with torch.no_grad():
            for p, v in zip(weights, moves):
                p.add_(e * v)
            found = bm.forward_backward(net.operator(), b, net.runs, 0.2, tol=1e-13, most=500)
            for p, v in zip(weights, moves):
                p.sub_(e * v)
        values.append(found.q.square().sum())
    assert dense.shape == (len(net.b),) * 2
    assert_close(slope, (values[0] - values[1]) / 2e-5, 1e-4)


# Baselines and errors.


def test_rbm_learns_to_reconstruct():
    _, x, *_ = machine()
    rbm, gen = bm.RBM(64, 32, gen=child(0)), child(1)
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.3)
    errors = []
    for k in range(60):
        errors.append(rbm.contrastive_divergence(x[(k % 5) * 60 :][:60], 1, gen=gen).item())
        optimizer.step()
    assert errors[-1] < 0.7 * errors[0]
    seen = torch.rand(x.shape, generator=gen) < 0.5
    p = rbm.complete(x, seen)
    assert torch.equal(p[seen], x[seen]) and ((p >= 0) & (p <= 1)).all()


def test_errors(gen):
    A, Phi, b = problem(gen)
    with raises(ValueError, match="m=0: allowed is above 0"):
        bm.monotone_weights(A, RAGGED, 0)
    with raises(ValueError, match="groups=.*fill 29 columns"):
        bm.monotone_weights(A, ((3, 2),))
    with raises(ValueError, match="start: 28 numbers in a row; b has 29"):
        bm.forward_backward(Phi, b, RAGGED, start=b[:, 1:])
    with raises(ValueError, match=r"Phi: shape \(28, 28\); for b of 29 numbers allowed is 29 x 29"):
        bm.anderson(Phi[1:, 1:], b, RAGGED)
    with raises(ValueError, match="free: 28 numbers in a row; b has 29"):
        bm.sequential_mean_field(Phi, b, RAGGED, start=b, free=b[:, 1:] > 0)
    with raises(ValueError, match="most=0: allowed is 1 or more"):
        bm.peaceman_rachford(Phi, b, RAGGED, most=0)
    with raises(ValueError, match="tol=-1: allowed is 0 or more"):
        bm.parallel_mean_field(Phi, b, RAGGED, tol=-1)
    with raises(ValueError, match="gains: from 0.5 to 2; allowed is above 0, up to 1"):
        bm.project_blocks(A, RAGGED, gains=torch.tensor([0.5] * 9 + [2.0]))
    with raises(ValueError, match="rank=0: allowed is 1 or more"):
        bm.aligned_weights(3, 2, 0, gen=gen)
    with raises(ValueError, match="side=3: allowed is 4 or more"):
        bm.draw_masks(4, 3, gen)
    with raises(ValueError, match="states=0: allowed is 1 or more"):
        bm.mlp_trainer([64, 32, 10], seed=0, states=0)
    with raises(ValueError, match="m=2: allowed is above 0, up to 1"):
        bm.ConvMultiTier(m=2, gen=gen)
    with raises(ValueError, match="free: give start, too"):
        bm.forward_backward(Phi, b, RAGGED, free=b > 0)
    with raises(ValueError, match="memory=0"):
        bm.anderson(Phi, b, RAGGED, memory=0)
    with raises(ValueError, match="joint states; allowed are 65,536"):
        bm.enumerate_marginals(Phi, b[0], ((17, 2),))
    with raises(ValueError, match="bound=-1"):
        bm.krahenbuhl_koltun(Phi, b, RAGGED, -1.0)
    with raises(ValueError, match="divisible by states=4"):
        bm.mlp_trainer([64, 30, 10], seed=0)
    with raises(ValueError, match="one of each for every tier"):
        bm.ConvMultiTier(((2, 4),), (3, 3), (2,), gen=gen)
    with raises(ValueError, match="groups must divide channels"):
        bm.ConvMultiTier(((2, 4), (5, 2)), (3, 3), (2, 3), gen=gen)
    made, x, y, *_ = machine()
    with raises(ValueError, match="x: 63 pixels; the machine has 64"):
        bm.infer(made, x[:, 1:], x[:, 1:] > 0)
    with raises(ValueError, match="x: 3 pixels; the machine has 4"):
        bm.mlp_trainer([4, 4, 3], seed=0).predict(torch.zeros(2, 3))
    with raises(ValueError, match="sharpness=0: allowed is above 0"):
        bm.MonotoneBoltzmann(((2, 2),), sharpness=0, gens=[gen])
    with raises(ValueError, match="gens: none"):
        bm.MonotoneBoltzmann(((2, 2),), gens=[])
    with raises(ValueError, match="p=0: allowed is 1 or more"):
        bm.MonotoneBoltzmann(((2, 2),), p=0, gens=[gen])
    with raises(ValueError, match="eta=2: allowed is above 0, up to 1"):
        bm.damped_mean_field(Phi, b, RAGGED, 2)
    with raises(ValueError, match="iterations=0: allowed is 1 or more, or None"):
        bm.lipschitz(Phi, 0)
    with raises(ValueError, match="seeds: 2 for 1 machines"):
        bm.fit_marginals(made, x, y, steps=1, seeds=[0, 1])
    with raises(ValueError, match="k=0"):
        bm.RBM(4, 2, gen=gen).contrastive_divergence(x[:, :4], 0, gen=gen)

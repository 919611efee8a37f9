"""NoProp: the designed marginals, locality, the three variants' limits, and the baselines."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from lib.beyond_backprop import noprop as npr
from lib.beyond_backprop.noprop import (
    LabelDenoiser,
    MLPEncoder,
    NoPropCT,
    NoPropDT,
    NoPropFM,
    make_class_embedding,
)
from lib.beyond_backprop.noprop.continuous import NoiseSchedule, label_velocity, solve
from lib.core.data import digits
from lib.core.derivatives import gradient_map
from lib.core.fitting import fit
from lib.core.meters import count_calls, saved_bytes
from lib.core.seeds import batch_indices, child
from tests.helpers import assert_close, raises


def stack(T=4, seed=0, learn=False, width=8, n_in=6, classes=3, output="softmax", **kw):
    gen = child(seed, "stack")
    kind = "orthogonal" if learn else "one-hot"
    W = make_class_embedding(kind, classes, gen=gen if learn else None)
    blocks = [
        LabelDenoiser(MLPEncoder(n_in, width), classes, classes, width, output, gen=gen)
        for _ in range(T)
    ]
    return NoPropDT(blocks, W, learn, gen=gen, **kw)


def batch(n=16, n_in=6, classes=3, seed=1):
    gen = child(seed, "batch")
    return torch.randn(n, n_in, generator=gen), torch.randint(classes, (n,), generator=gen)


# ------------------------------------------------------------------------------ the designed chain


@pytest.mark.parametrize("T", [1, 2, 8, 50])
def test_perfect_denoiser_reproduces_the_marginals(T):
    ab = npr.cosine_alpha_bar(T)
    a, b, c = npr.transition(ab)
    assert (a + b * ab[:-1].sqrt() - ab[1:].sqrt()).abs().max() < 1e-12
    assert (b**2 * (1 - ab[:-1]) + c - (1 - ab[1:])).abs().max() < 1e-12
    assert (c > 0).all()


def test_cosine_schedule_of_eight_steps():
    expected = torch.tensor([1e-4, 0.0375, 0.144, 0.304, 0.494, 0.684, 0.847, 0.958, 0.9999])
    assert (npr.cosine_alpha_bar(8) - expected).abs().max() < 6e-4


def test_transition_refuses_the_other_direction_of_time():
    with raises(ValueError, match="t = 0 is noise"):
        npr.transition(npr.cosine_alpha_bar(4).flip(0))


def test_perfect_accuracy_is_that_of_a_simulated_chain():
    gen, ab = child(0, "chain"), npr.cosine_alpha_bar(6)
    a, b, c = npr.transition(ab)
    n, classes = 40_000, 5
    y = torch.randint(classes, (n,), generator=gen)
    u = F.one_hot(y, classes).double()
    z = torch.randn(n, classes, generator=gen, dtype=torch.float64)
    predicted = npr.perfect_accuracy(ab, classes)
    for t in range(6):
        eps = torch.randn(n, classes, generator=gen, dtype=torch.float64)
        z = a[t] * u + b[t] * z + c[t].sqrt() * eps
        measured = (z.argmax(1) == y).double().mean()
        assert abs(measured - predicted[t + 1]) < 0.012
    assert abs(npr.perfect_accuracy(torch.zeros(1), classes).item() - 1 / classes) < 1e-9


def test_two_classes_have_a_closed_form():
    # P(z_y > z_other) = Phi(sqrt(SNR / 2)): the difference of two noises has variance 2.
    ab = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    expected = torch.special.ndtr((ab / (1 - ab) / 2).sqrt())
    assert_close(npr.perfect_accuracy(ab, 2), expected, 1e-6)


def test_local_loss_is_the_formula():
    model, (x, y) = stack(learn=True).double(), batch()
    x, eps = x.double(), torch.randn(2, 16, 3, dtype=torch.float64, generator=child(2, "e"))
    t, ab, u = 3, model.alpha_bar, model.embedding[y]
    snr = ab / (1 - ab)
    u_hat, _ = model.blocks[t - 1](
        ab[2].sqrt() * u + (1 - ab[2]).sqrt() * eps[0], x, model.embedding
    )
    kl = 0.5 * (ab[0] * u.square().sum(1) - 3 * ab[0] - 3 * torch.log(1 - ab[0])).mean()
    cross = F.cross_entropy(model.readout(ab[4].sqrt() * u + (1 - ab[4]).sqrt() * eps[1]), y)
    by_hand = cross + kl + 4 / 2 * 0.1 * (snr[3] - snr[2]) * (u_hat - u).square().sum(1).mean()
    assert_close(model.local_loss(t, x, y, eps=eps), by_hand, 1e-6)


def test_an_aligned_readout_reads_every_class_off_its_corner():
    model = npr.align_readout(stack(learn=True), 5.0)
    logits = model.readout(model.embedding)
    assert_close(logits, 5 * torch.eye(3), 1e-5)  # the embedding is orthonormal


# ----------------------------------------------------------------------------------------- locality


def test_every_loss_reaches_its_own_block_only():
    model, (x, y) = stack(), batch()
    losses = {f"L{t}": model.local_loss(t, x, y, child(t, "n")) for t in range(1, 5)}
    table = gradient_map(losses, {str(t): model.blocks[t - 1] for t in range(1, 5)}).to_numpy()
    assert (table.diagonal() > 0).all()
    assert (table - torch.diag(torch.tensor(table.diagonal())).numpy() == 0).all()
    whole = npr.backprop_loss(model, x, y, model.noise(16, child(0, "z")))
    assert (gradient_map({"bp": whole}, {"1": model.blocks[0]}).to_numpy() > 0).all()


def test_losses_share_two_terms():
    """An update of all blocks may count them once: the blocks' gradients are the same."""
    model, (x, y) = stack().double().eval(), batch()
    x, eps = x.double(), model.noise(16, child(0, "n"), 5)
    blocks = list(model.blocks.parameters())
    each = sum(model.local_loss(t, x, y, eps=eps[[t - 1, 4]]) for t in range(1, 5))
    own = sum(model.denoising_loss(t, x, y, eps[t - 1]) for t in range(1, 5))
    assert_close(own + 4 * model.shared_loss(y, eps[4]), each, 1e-12)
    for a, b in zip(torch.autograd.grad(own, blocks), torch.autograd.grad(each, blocks)):
        assert_close(a, b, 1e-12)


def test_training_a_block_calls_and_moves_no_other():
    model, (x, y) = stack(), batch()
    before = copy.deepcopy(model)
    opt = torch.optim.AdamW(model.parameters(), lr=0.1)
    with count_calls(model.blocks[0]) as other, count_calls(model.blocks[2]) as own:
        model.train_block(3, x, y, opt, child(0, "n"))
    assert (other.total, own.total) == (0, 1)
    for i, (old, new) in enumerate(zip(before.blocks, model.blocks)):
        same = all(torch.equal(p, q) for p, q in zip(old.parameters(), new.parameters()))
        assert same == (i != 2)


def test_a_later_block_changes_no_earlier_gradient():
    x, y = batch()
    grads = []
    for change in (0.0, 5.0):
        model = stack()
        with torch.no_grad():
            for p in model.blocks[3].parameters():
                p += change
        for t in range(1, 5):
            model.local_loss(t, x, y, child(t, "n")).backward()
        grads.append([p.grad for p in model.blocks[1].parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


def test_memory_of_an_update_does_not_grow_with_depth():
    x, y = batch(32)
    held = {}
    for T in (4, 8):
        model = stack(T)
        local = lambda m=model: m.local_loss(2, x, y, child(0, "n")).backward()
        whole = lambda m=model: npr.backprop_loss(m, x, y, m.noise(32, child(0, "z"))).backward()
        held[T] = saved_bytes(local, [x]), saved_bytes(whole, [x])
    assert held[8][0] <= 1.05 * held[4][0]
    assert held[8][0] / held[8][1] <= 1.5 / 8
    assert held[8][1] > 1.8 * held[4][1]


def test_stacked_training_is_training_block_by_block():
    x, y = batch(40)
    x = x.double()  # in single precision Adam turns rounding into steps where a gradient is zero
    together = [stack(seed=s, learn=True).double() for s in (3, 4)]
    gens = lambda: [child(s, "n") for s in (3, 4)]
    kw = {"lr": 1e-2, "readout_lr": 3e-2, "weight_decay": 1e-3}
    alone = copy.deepcopy(together)
    npr.train_stacks(together, x, y, steps=3, batch=8, gens=gens(), seeds=[3, 4], **kw)
    for model, gen, seed in zip(alone, gens(), (3, 4)):
        opt = torch.optim.AdamW(npr.parameter_groups(model, 1e-2), weight_decay=1e-3)
        for step in range(3):
            i = batch_indices(40, 8, step, seed)
            eps = model.noise(8, gen, 5)
            total = model.shared_loss(y[i], eps[4])
            for t in range(4):
                u_hat, _ = model.blocks[t](model.noised(y[i], t, eps[t]), x[i], model.embedding)
                miss = (u_hat - model.embedding[y[i]]).square().sum(1).mean()
                total = total + model.weight[t] * miss
            opt.zero_grad()
            total.backward()
            opt.step()
    for a, b in zip(together, alone):
        for (name, p), q in zip(a.state_dict().items(), b.state_dict().values()):
            assert_close(p, q, 1e-6, name)


def test_a_learned_embedding_moves_and_a_fixed_one_does_not():
    x, y = batch(40)
    for learn in (False, True):
        model = stack(learn=learn)
        before = model.embedding.detach().clone()
        npr.train_stacks([model], x, y, steps=2, batch=20, gens=[child(0, "n")], seeds=[0])
        assert torch.equal(before, model.embedding) != learn


def test_prediction_keeps_the_mode_and_repeats():
    model, (x, _) = stack(), batch()
    first, second = (model.predict(x, child(5, "p")) for _ in range(2))
    assert torch.equal(first, second) and model.training
    assert not torch.equal(first, model.predict(x, child(5, "p"), deterministic=True))


# ------------------------------------------------------------------------------------- embeddings


def test_embeddings():
    assert torch.equal(make_class_embedding("one-hot", 4), torch.eye(4))
    wide = make_class_embedding("orthogonal", 4, 9, gen=child(0, "w"))
    assert_close(wide @ wide.T, torch.eye(4), 1e-5)
    narrow = make_class_embedding("orthogonal", 6, 3, gen=child(0, "w"))
    assert_close(narrow.T @ narrow, 2 * torch.eye(3), 1e-5)
    assert abs(narrow.square().sum(1).mean() - 1) < 1e-5
    x = torch.tensor([[0.0], [1.0], [1.1], [9.0], [5.0], [5.5], [7.0]])
    found = make_class_embedding("prototypes", 2, x=x, y=torch.tensor([0, 0, 0, 0, 1, 1, 1]))
    # medians (lower of the middle pair): 1.0 0.1 0.1 7.9, and 0.5 0.5 1.5: the first smallest
    assert torch.equal(found, torch.tensor([[1.0], [5.0]]))


@pytest.mark.parametrize("output", ["softmax", "distance"])
def test_the_estimate_is_a_mixture_of_embeddings(output):
    block = LabelDenoiser(MLPEncoder(6, 8), 3, 3, 8, output, gen=child(0, "b"))
    u_hat, logits = block(torch.randn(16, 3), batch()[0], torch.eye(3))
    assert (u_hat >= 0).all()
    assert_close(u_hat.sum(1), torch.ones(16), 1e-5)
    assert torch.equal(u_hat.argmax(1), logits.argmax(1))


# --------------------------------------------------------------------- continuous time and flow


def test_schedule_falls_from_noise_to_label_and_its_slope_is_right():
    schedule = NoiseSchedule(gen=child(0, "s")).double()
    t = torch.linspace(0, 1, 30, dtype=torch.float64)
    gamma, slope = schedule.with_slope(t)
    assert_close(gamma[[0, -1]], torch.tensor([6.0, -6.0], dtype=torch.float64), 1e-6)
    assert (gamma.diff() < 0).all() and (slope < 0).all()
    t.requires_grad_()
    assert_close(slope, torch.autograd.grad(schedule.gamma(t).sum(), t)[0], 1e-12)
    assert_close(schedule.alpha_bar(t), 1 / (1 + gamma.exp()), 1e-12)
    assert_close(torch.stack(schedule.ends()), schedule.alpha_bar(t[[0, -1]]), 1e-9)


def test_the_ode_follows_the_noising_path():
    """With the true label as estimate, z(t) = sqrt(ab) u + sqrt(1 - ab) eps, eps fixed."""
    schedule = NoiseSchedule(gen=child(1, "s")).double()
    u, eps = torch.randn(2, 4, 5, dtype=torch.float64, generator=child(2, "u"))
    at = lambda ab: ab.sqrt() * u + (1 - ab).sqrt() * eps
    ends = schedule.alpha_bar(torch.tensor([0.0, 1.0], dtype=torch.float64)).detach()
    errors = []
    with torch.no_grad():
        field = lambda t, z: label_velocity(z, u, *schedule.with_slope(t))
        for steps in (50, 100):
            errors.append((solve(field, at(ends[0]), steps, "heun")[-1] - at(ends[1])).norm())
    assert errors[1] < 2e-3 * u.norm()
    assert 3 < errors[0] / errors[1] < 5  # second order
    half = label_velocity(*(torch.eye(1), torch.eye(1)), torch.tensor(0.0), torch.tensor(-4.0))
    assert_close(half, torch.tensor([[2 * math.sqrt(0.5) - 1.0]]), 1e-6)


def ct(cls=NoPropCT, learn=False, seed=0, **kw):
    gen = child(seed, "ct")
    output = "softmax" if cls is NoPropCT else "direct"
    W = make_class_embedding("orthogonal", 3, gen=gen)
    denoiser = LabelDenoiser(MLPEncoder(6, 8), 3, 3, 8, output, True, gen)
    return cls(denoiser, W, learn, gen=gen, **kw)


def test_the_denoising_term_is_the_limit_of_the_discrete_one():
    """(1/2) E_t[SNR'(t) m(t)] against (T/2) sum over intervals (SNR(t) - SNR(s)) m / T."""
    schedule = NoiseSchedule(gen=child(0, "s")).double()
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)
    with torch.no_grad():
        gamma, slope = schedule.with_slope(t)
    miss = torch.exp(-3 * t)  # any smooth error
    snr = torch.exp(-gamma)
    continuous = torch.trapezoid(-slope * snr * miss, t)
    assert_close((snr.diff() * miss[:-1]).sum(), continuous, 5e-3)


def learn(model, x, y, steps, lr=2e-3):
    gen = child(0, "n")
    return fit(
        model,
        lambda step: (x, y, *model.noise(len(y), gen)),
        lambda m, b: m.loss(*b),
        steps=steps,
        optimizer=lambda _: torch.optim.AdamW(npr.parameter_groups(model, lr)),
        log=[0, steps - 1],
    )


@pytest.mark.parametrize("cls", [NoPropCT, NoPropFM])
def test_continuous_models_learn_a_separable_task(cls):
    """On classes that do not overlap. Seen: 0.92 or more for seeds 0 to 4, but 0.62 for NoProp-CT
    with seed 4, which needs more steps (0.8 to 0.9 after 120): most of its loss is near t = 1."""
    x, y = batch(48)
    x = x + 6 * torch.eye(6)[y]
    model = ct(cls, learn=True)
    learn(model, x, y, 80, 2e-2)
    for solver in ("euler", "heun"):
        right = model.predict(x, child(0, "p"), 10, solver).argmax(1) == y
        assert right.double().mean() > 0.9 and model.training


def test_straight_lines_need_one_step():
    model = ct(NoPropFM)
    u, z0 = torch.randn(2, 5, 3, generator=child(0, "z"))
    model.velocity = lambda t, z, x: u - z0
    assert_close(model.solve(torch.zeros(5, 6), z0, 1)[-1], u, 1e-6)


def test_the_flow_collapses_a_learned_embedding_without_its_anchor():
    x, y = batch(64)
    x = x + 6 * torch.eye(6)[y]  # something to learn, or the anchor has nothing to hold
    size = {}
    for anchor in (0.0, 1.0):
        model = ct(NoPropFM, learn=True, anchor=anchor)
        learn(model, x, y, 60, 3e-2)
        size[anchor] = (model.embedding - model.embedding.mean(0)).norm().item()
    assert size[0.0] < 0.3 * size[1.0]


def test_solver_loss_reaches_denoiser_and_schedule():
    model, (x, y) = ct(), batch()
    npr.solver_loss(model, x, y, torch.randn(16, 3), steps=3).backward()
    assert model.denoiser.lift.weight.grad.norm() > 0
    assert model.schedule.outer.grad.norm() > 0


# --------------------------------------------------------------------------------------- baselines


def test_forward_gradient_is_right_on_average():
    model, (x, y) = npr.ForwardGradient([6, 4, 3], gen=child(0, "fg")).double(), batch(8)
    x = x.double()
    loss = F.cross_entropy(model(x), y)
    true = torch.autograd.grad(loss, [model.layers[0].weight, model.heads[0].weight])
    gen, n = child(0, "v"), 2000  # each copy of the batch is perturbed on its own
    model.backward(x.repeat(n, 1), y.repeat(n), gen)
    assert_close(model.heads[0].weight.grad, true[1], 1e-9)
    assert_close(model.layers[0].weight.grad, true[0], 0.15)


def test_forward_forward_layers_are_isolated():
    model, (x, y) = npr.ForwardForward([6, 8, 8, 3], gen=child(0, "ff")), batch()
    losses = {str(i): v for i, v in enumerate(model.losses(x, y, child(1, "n")))}
    groups = {str(i): m for i, m in enumerate(model.layers)}
    table = gradient_map(losses, groups).to_numpy()
    assert table[0, 1] == table[1, 0] == 0 and table[0, 0] > 0 and table[1, 1] > 0
    marked = model.mark(x, y)
    assert torch.equal(marked[:, :3].argmax(1), y) and torch.equal(marked[:, 3:], x[:, 3:])


@pytest.mark.parametrize(
    ("method", "steps", "least"),
    [
        # seen for seeds 0 to 4:
        ("noprop", 60, 0.9),  # 0.950 to 0.968
        ("backprop", 60, 0.9),  # 0.923 to 0.970
        ("target propagation", 60, 0.9),  # 0.915 to 0.922
        ("forward-forward", 100, 0.65),  # 0.70 to 0.74; 0.85 after 200
        ("forward gradient", 80, 0.6),  # 0.63 to 0.78; 0.85 after 200
    ],
)
def test_trainers_learn(method, steps, least):
    data = digits(600, 600)
    trainer = npr.mlp_trainer([64, 64, 64, 10], seed=0, method=method)
    for step in range(steps):
        i = batch_indices(600, 60, step, 0)
        trainer.step(data.x[i], data.y[i])
    scores = trainer.predict(data.x_test)
    assert scores.shape == (600, 10) and torch.equal(scores, trainer.predict(data.x_test))
    assert (scores.argmax(1) == data.y_test).double().mean() > least
    assert len(trainer.groups) == (2 if method == "forward-forward" else 3)


# ------------------------------------------------------------------------------------------ errors


def test_errors_say_what_is_allowed():
    model, (x, y) = stack(), batch()
    with raises(ValueError, match="t=5: allowed is 1 to 4"):
        model.local_loss(5, x, y)
    with raises(ValueError, match="share parameters"):
        NoPropDT([model.blocks[0]] * 2, torch.eye(3))
    with raises(ValueError, match="alpha_bar ends at 1"):
        NoPropDT(list(model.blocks), torch.eye(3), alpha_bar=torch.linspace(0.1, 1, 5))
    with raises(ValueError, match="eta=nan: allowed is a finite number"):
        NoPropDT(list(model.blocks), torch.eye(3), eta=math.nan)
    with raises(ValueError, match="takes an embedding of \\(3, 3\\)"):
        NoPropDT(list(model.blocks), torch.eye(4)).local_loss(1, x, y)
    with raises(ValueError, match="matrix of finite numbers"):
        NoPropDT(list(model.blocks), torch.full((3, 3), math.nan))
    with raises(ValueError, match="scale=0: allowed"):
        npr.align_readout(model, 0)
    with raises(ValueError, match="allowed are values from 0 to 1"):
        npr.perfect_accuracy(torch.tensor([1.5]), 3)
    with raises(ValueError, match="allowed are 'one-hot', 'orthogonal' and 'prototypes'"):
        make_class_embedding("random", 3)
    with raises(ValueError, match="no sample of class 2"):
        make_class_embedding("prototypes", 3, x=x, y=y.clamp_max(1))
    with raises(ValueError, match="dim=2: a prototype is an input, of 6 numbers"):
        make_class_embedding("prototypes", 3, 2, x=x, y=y)
    with raises(ValueError, match="allowed are 1 or more steps, 'euler' and 'heun'"):
        ct().solve(x, torch.zeros(16, 3), 0)
    with raises(ValueError, match="a velocity needs output='direct'"):
        NoPropFM(model.blocks[0], torch.eye(3))
    with raises(ValueError, match="made with time=True needs the time"):
        ct().denoiser(torch.zeros(16, 3), x, torch.eye(3))
    with raises(ValueError, match="t runs from 2 to 2: allowed is 0 to 1"):
        ct().loss(x, y, torch.full((16,), 2.0), torch.zeros(2, 16, 3))
    with raises(ValueError, match="are trained together"):
        npr.train_stacks(
            [stack(2), stack(3)], x, y, steps=1, batch=4, gens=[child(0, "n")] * 2, seeds=[0, 1]
        )
    with raises(ValueError, match="one or more of one architecture"):
        npr.Stacked([])
    with raises(ValueError, match="method='magic'"):
        npr.mlp_trainer([6, 8, 3], seed=0, method="magic")
    with raises(TypeError, match="has no option 'momentum'"):
        npr.mlp_trainer([6, 8, 3], seed=0, method="forward-forward", momentum=0.9)
    with raises(ValueError, match="without width"):
        LabelDenoiser(torch.nn.Linear(6, 8), 3, 3)


def test_batches_that_cannot_be_used_are_refused():
    model, (x, y) = stack(), batch()
    losses = (
        lambda x, y: model.local_loss(1, x, y),
        lambda x, y: ct().loss(x, y, torch.zeros(len(y)), torch.zeros(2, len(y), 3)),
        lambda x, y: ct(NoPropFM).loss(x, y, torch.zeros(len(y)), torch.zeros(2, len(y), 3)),
        lambda x, y: npr.mlp_trainer([6, 8, 3], seed=0, method="forward gradient").step(x, y),
    )
    for loss in losses:
        with raises(ValueError, match="one or more samples and an integer label"):
            loss(x[:0], y[:0])
        with raises(ValueError, match="y holds -1 to 1: allowed are labels from 0 to 2"):
            loss(x, y - 1)
        with raises(ValueError, match="x holds values that are not finite"):
            loss(x.clone().fill_(math.nan), y)
    with raises(ValueError, match="allowed are samples of 6 numbers"):
        model.local_loss(1, x[:, :5], y)
    with raises(ValueError, match="eps has shape"):
        model.local_loss(1, x, y, eps=torch.zeros(3, 16, 3))
    with torch.no_grad():
        model.blocks[0].head[0].weight.fill_(math.inf)
    with raises(FloatingPointError, match="the loss of block 1 is nan"):
        model.train_block(1, x, y, torch.optim.SGD(model.parameters(), 0.1))

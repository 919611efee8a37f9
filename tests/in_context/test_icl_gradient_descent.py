import math

import pytest
import torch
from torch import nn

from lib.core.fitting import fit
from lib.core.params import distance, interpolate
from lib.core.schedules import schedule
from lib.core.seeds import child
from lib.core.stats import relative_error
from lib.in_context import icl_gradient_descent as icl
from lib.in_context.icl_gradient_descent import (
    DeepFeatures,
    LinearSelfAttention,
    LSALayer,
    alignment,
    copying,
    effective_rates,
    gd_construction,
    gd_predict,
    gdpp_construction,
    moment_predict,
    one_step_mse,
    rescaled,
    residual_factor,
    ridge_predict,
    sample_regression,
    sample_sines,
    sample_spectrum,
    separate_tokens,
    softmax_pair,
    split,
    tune_gd,
)
from lib.models.transformer import Block, SequenceModel, context_mask
from tests.helpers import assert_close, raises


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)


@pytest.fixture
def tasks(gen, double):
    return sample_regression(16, 7, 5, gen=gen)


def constructed(*args, **options):
    """In the tests' precision."""
    return icl.constructed(*args, dtype=torch.get_default_dtype(), **options)


# ---- Tasks


def test_tasks_have_the_moments_they_claim(gen):
    tokens, target = sample_regression(20_000, 4, 3, input_range=2.0, w_scale=0.5, gen=gen)
    x, y, xq = split(tokens)
    assert tokens.shape == (20_000, 5, 4) and x.shape[1:] == (4, 3)
    assert x.abs().max() <= 2 and xq.abs().max() <= 2
    assert_close(x.square().mean(), 4 / 3, 0.01)  # the variance of U(-2, 2)
    assert_close(target.square().mean(), 0.25 * 3 * 4 / 3, 0.05)
    assert (tokens[:, -1, -1] == 0).all()
    w = torch.linalg.lstsq(x, y).solution  # the same W made the targets
    assert_close((xq[:, None] @ w)[:, 0, 0], target, 1e-2)


def test_waves(gen):
    tokens, target = sample_sines(5000, 6, gen=gen)
    x, y, _ = split(tokens)
    assert tokens.shape == (5000, 7, 2) and x.abs().max() <= 5
    assert y.abs().max() <= 0.5 and (tokens[:, -1, 1] == 0).all() and target.abs().max() <= 0.5


# ---- Attention is gradient descent


def test_one_layer_is_one_step_for_all_tokens(tasks, gen):
    tokens, _ = tasks
    x, y, xq = split(tokens)
    eta, w0 = 0.7, torch.randn(5, generator=gen)
    start = tokens.clone()
    start[:, -1, -1] = -(xq @ w0)
    model = constructed(5, gd_construction(5, eta, 7, w0))
    after = model.states(start)[-1]
    # The gradient, by autograd, of the paper's loss at W_0.
    w = w0.expand(16, 5).clone().requires_grad_()
    loss = (x @ w[..., None] - y).square().sum() / (2 * 7)
    step = -eta * torch.autograd.grad(loss, w)[0]
    assert_close(after[:, :-1, -1:], y - x @ step[..., None], 1e-12)
    assert_close(-after[:, -1, -1], (xq * (w0 + step)).sum(-1), 1e-12)
    assert_close(after[..., :-1], tokens[..., :-1], 1e-14)


@pytest.mark.parametrize("rates", [[0.7], [0.7, 0.4], [0.7, 0.4, 1.1], 0.7])
def test_stacks_and_loops_start_from_w0(tasks, gen, rates):
    tokens, _ = tasks
    x, y, xq = split(tokens)
    w0 = torch.randn(5, generator=gen)
    start = tokens.clone()
    start[:, -1, -1] = -(xq @ w0)
    looped = isinstance(rates, float)
    model = constructed(5, gd_construction(5, rates, 7, w0), **({"layers": 3} if looped else {}))
    w = w0.expand(16, 5)
    for eta in [rates] * 3 if looped else rates:
        w = w.detach().requires_grad_()
        loss = (x @ w[..., None] - y).square().sum() / (2 * 7)
        w = w - eta * torch.autograd.grad(loss, w)[0]
    assert_close(model(start), (xq * w.detach()).sum(-1), 1e-12)


def test_float32_is_close_too(gen):
    tokens, _ = sample_regression(64, 10, 10, gen=gen)
    expected = gd_predict(*split(tokens), 1.5)[:, 0]
    assert (constructed(10, gd_construction(10, 1.5, 10))(tokens) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_a_loop_is_as_many_steps(tasks, gamma):
    tokens, _ = tasks
    weights = gdpp_construction(5, 1.3, gamma, 7) if gamma else gd_construction(5, 1.3, 7)
    for k in (1, 2, 4):
        expected = gd_predict(*split(tokens), 1.3, k, gamma)[:, 0]
        assert_close(constructed(5, weights, layers=k)(tokens), expected, 1e-12)


def test_a_stack_has_rates_for_each_step(tasks):
    tokens, _ = tasks
    etas, gammas = [1.0, 2.0, 0.5], [0.4, -0.2, 9.0]
    model = constructed(5, gdpp_construction(5, etas, gammas, 7))
    assert_close(model(tokens), gd_predict(*split(tokens), etas, 3, gammas)[:, 0], 1e-12)
    last = gd_predict(*split(tokens), etas, 3, [0.4, -0.2, 0.0])[:, 0]
    assert_close(model(tokens), last, 1e-12)  # nobody reads the last layer's x


def test_gdpp_is_gd_on_transformed_data(tasks):
    x, y, xq = split(tasks[0])
    h = x.mT @ x / 7
    t = torch.eye(5) - 0.3 * h
    first = gd_predict(x, y, xq, 1.1)
    step = 1.1 / 7 * y.mT @ x
    residual = y - x @ step.mT
    second = gd_predict(x @ t, residual, (t @ xq[..., None])[..., 0], 1.1)
    assert_close(gd_predict(x, y, xq, 1.1, 2, 0.3), first + second, 1e-12)


def test_dampening_and_y_only(tasks):
    tokens, _ = tasks
    half = constructed(5, gd_construction(5, 1.0, 7), layers=6, dampening=0.5)
    assert_close(half(tokens), gd_predict(*split(tokens), 0.5, 6)[:, 0], 1e-12)
    plain = constructed(5, gdpp_construction(5, 1.0, 0.4, 7), layers=3, y_only=True)
    assert_close(plain(tokens), gd_predict(*split(tokens), 1.0, 3)[:, 0], 1e-12)


def test_clipping_bounds_the_tokens(gen):
    model = LinearSelfAttention(6, layers=3, std=1.0, clip=2.0, gen=gen)
    tokens, _ = sample_regression(8, 7, 5, gen=gen)
    assert all(s.abs().max() <= 2 for s in model.states(tokens)[1:])


def test_heads_add_up(tasks, gen):
    tokens, _ = tasks
    both = LinearSelfAttention(6, heads=2, std=0.3, gen=gen)
    updates = []
    for h in range(2):
        one = LinearSelfAttention(6)
        one.load_state_dict({k: v[:, h : h + 1] for k, v in both.state_dict().items()})
        updates.append(one.states(tokens)[-1] - tokens)
    assert_close(both.states(tokens)[-1], tokens + sum(updates), 1e-12)


def test_the_query_is_nobodys_key(tasks, gen):
    tokens, _ = tasks
    model = LinearSelfAttention(6, layers=2, std=0.3, gen=gen)
    changed = tokens.clone()
    changed[:, -1, :5] += 1
    a, b = model.states(tokens)[-1], model.states(changed)[-1]
    assert_close(a[:, :-1], b[:, :-1], 1e-14)


# ---- Two routes agree


@pytest.mark.parametrize("options", [{}, {"softmax": True}, {"norm": nn.LayerNorm, "clip": 1.0}])
def test_the_prediction_is_the_last_entry_of_the_last_state(tasks, gen, options):
    model = LinearSelfAttention(6, heads=2, layers=3, std=0.3, gen=gen, **options)
    assert_close(model(tasks[0]), -model.states(tasks[0])[-1][:, -1, -1], 1e-12)


@pytest.mark.parametrize("heads, looped", [(1, True), (1, False), (3, True), (2, False)])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_moments_and_tokens_predict_alike(gen, double, heads, looped, layers):
    options = {"heads": heads, "layers": layers, "looped": looped, "std": 0.25}
    tokens, _ = sample_regression(9, 6, 4, gen=gen)
    model = LinearSelfAttention(5, **options, gen=gen)
    assert_close(moment_predict(*model.merged(), tokens, layers), model(tokens), 1e-11)


def test_members_side_by_side_are_each_alone(gen, double):
    tokens, _ = sample_regression((3, 9), 6, 4, gen=gen)
    model = LinearSelfAttention(5, heads=2, layers=2, members=3, std=0.3, gen=gen)
    together, moments = model(tokens), moment_predict(*model.merged(), tokens, 2)
    for s in range(3):
        alone = LinearSelfAttention(5, heads=2, layers=2)
        alone.load_state_dict({k: v[s] for k, v in model.state_dict().items()})
        assert_close(together[s], alone(tokens[s]), 1e-12)
        assert_close(moments[s], alone(tokens[s]), 1e-11)


def test_moments_have_the_gradients_of_tokens(gen, double):
    tokens, _ = sample_regression(4, 5, 3, gen=gen)
    model = LinearSelfAttention(4, layers=2, std=0.4, gen=gen)
    grads = [
        torch.autograd.grad(f().square().sum(), list(model.parameters()))
        for f in (lambda: model(tokens), lambda: moment_predict(*model.merged(), tokens, 2))
    ]
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, 1e-10)


# ---- What is the best a step can do


def test_one_step_parabola(gen):
    lam = sample_spectrum(4000, 10, 10, gen=gen).double()
    for eta in (0.5, 1.515, 2.5):
        mse = float(residual_factor(lam, eta, 0.0, 1).square().sum(-1).mean()) / 3
        assert_close(mse, one_step_mse(eta, 10, 10), 0.01)
    best = min((one_step_mse(e / 1000, 10, 10), e / 1000) for e in range(1000, 2000))
    assert_close(best, [1.650, 1.515], 1e-3)
    assert_close(one_step_mse(1.2, 6, 4, 2.0), 4 * one_step_mse(4.8, 6, 4), 1e-12)


def test_residual_factor_is_the_error_of_the_predictor(gen, double):
    x = 2 * torch.rand(50, 8, 6, generator=gen) - 1
    xq = 2 * torch.rand(50, 6, generator=gen) - 1
    # With y = x as outputs, the prediction is the part of the query that is explained.
    for eta, gamma in ((1.4, 0.0), (2.0, 0.35)):
        explained = gd_predict(x, x, xq, eta, 3, gamma)
        lam, v = torch.linalg.eigh(x.mT @ x / 8)
        left = (v * residual_factor(lam, eta, gamma, 3)[:, None]) @ (v.mT @ xq[..., None])
        assert_close(xq - explained, left[..., 0], 1e-12)


def test_tuned_rates(gen):
    lam = sample_spectrum(1500, 10, 10, gen=gen)
    one = tune_gd(1, lam)
    assert_close([one.eta[0], one.mse], [1.515, 1.650], 0.01)
    shared, free = tune_gd(2, lam), tune_gd(2, lam, shared=False)
    assert_close([shared.eta[0], shared.mse], [1.496, 1.254], 0.015)
    assert_close([*free.eta, free.mse], [1.00, 2.89, 1.131], 0.03)
    # Seen for six samples of 5,000: 0.880 to 0.888 shared, 0.728 to 0.746 per step.
    pp, pp_free = (tune_gd(2, lam, gdpp=True, shared=s) for s in (True, False))
    assert_close([pp.mse, pp_free.mse], [0.885, 0.738], 0.03)
    assert pp.mse < 0.8 * shared.mse and pp.eta[0] == pp.eta[1]
    # The last correction is never used.
    assert tune_gd(1, lam, gdpp=True).mse == pytest.approx(one.mse)


def test_a_spectrum_that_is_trained_through_stays_as_it_is(gen):
    lam = sample_spectrum(50, 6, 4, gen=gen)
    assert tune_gd(2, lam.clone().requires_grad_()) == tune_gd(2, lam)


def test_few_nodes_stand_for_the_whole_spectrum(gen):
    lam = sample_spectrum(200, 6, 4, gen=gen).double()
    for options in ({"steps": 3}, {"steps": 3, "gdpp": True}, {"steps": 2, "shared": False}):
        best = tune_gd(spectrum=lam, **options)

        def risk(factor, best=best, steps=options["steps"]):
            eta = [factor * e for e in best.eta]
            return residual_factor(lam, eta, best.gamma, steps).square().sum(-1).mean() / 3

        assert_close(best.mse, risk(1.0), 1e-12)
        # The best on the nodes is the best on all eigenvalues: the slope is zero there.
        assert abs(risk(1 + 1e-4) - risk(1 - 1e-4)) < 1e-8 * risk(1.0)
    # One eigenvalue: fewer nodes than asked for, and no error is left.
    assert tune_gd(2, torch.full((3, 2), 0.5)).mse < 1e-12


def test_the_spectral_error_is_the_measured_one(gen):
    tokens, target = sample_regression(20_000, 10, 10, gen=gen)
    best = tune_gd(2, sample_spectrum(1000, 10, 10, gen=gen), gdpp=True)
    error = gd_predict(*split(tokens), best.eta, 2, best.gamma)[:, 0] - target
    assert_close(error.square().mean(), best.mse, 0.05)  # seen: 0.03, from 20,000 tasks


def test_many_steps_approach_least_squares(gen, double):
    tokens, target = sample_regression(8, 12, 3, gen=gen)
    x, y, xq = split(tokens)
    assert_close(ridge_predict(x, y, xq)[:, 0], target, 1e-10)
    assert_close(gd_predict(x, y, xq, 1.0, 800)[:, 0], target, 1e-6)
    assert_close(ridge_predict(x, y, xq, 1e-9), ridge_predict(x, y, xq), 1e-6)


# ---- Comparing


def test_alignment_of_equal_and_of_scaled_predictors(tasks, gen):
    tokens, _ = tasks
    one = constructed(5, gd_construction(5, 1.0, 7))
    two = constructed(5, gd_construction(5, 2.0, 7))
    same = alignment(one, lambda t: gd_predict(*split(t), 1.0)[:, 0], tokens)
    assert same["pred_l2"] < 1e-12 and same["sens_l2"] < 1e-12
    assert_close(same["sens_cos"], 1.0, 1e-9)
    scaled = alignment(two, one, tokens)
    assert_close(scaled["pred_relative"], 1.0, 1e-12)
    assert_close(scaled["sens_cos"], 1.0, 1e-9)
    # The sensitivity of one step is the step itself, dW.
    x, y, _ = split(tokens)
    assert_close(scaled["sens_l2"], (y.mT @ x / 7).norm(dim=-1).mean(), 1e-10)


def test_alignment_keeps_the_seeds_apart(tasks, gen):
    tokens, _ = tasks
    many = LinearSelfAttention(6, members=3, std=0.3, gen=gen)
    reference = constructed(5, gd_construction(5, 1.0, 7))
    model = lambda t: moment_predict(*many.merged(), t.expand(3, *t.shape))
    together = alignment(model, reference, tokens)
    for s in range(3):
        alone = LinearSelfAttention(6)
        alone.load_state_dict({k: v[s] for k, v in many.state_dict().items()})
        for name, value in alignment(alone, reference, tokens).items():
            assert_close(together[name][s], value, 1e-9, name)


@pytest.mark.parametrize("factor", [3.0, -0.2])
def test_rescaling_undoes_the_freedom_between_the_factors(factor):
    model = constructed(5, gd_construction(5, 1.3, 7))
    a, c = model.merged()
    a2, c2 = rescaled(a / factor, c * factor)
    plain = interpolate({"A": a, "C": c}, {"A": a / factor, "C": c * factor}, 0.5)
    assert distance({"A": a2, "C": c2}, {"A": a, "C": c})[1] < 1e-6
    assert distance(plain, {"A": a, "C": c})[1] > 0.1
    eta, gamma = effective_rates(a / factor, c * factor, 7)
    assert_close(eta, [1.3], 1e-6)
    assert gamma.abs() < 1e-12


def test_rates_may_be_tensors_of_one_number(tasks):
    data = split(tasks[0])
    expected = gd_predict(*data, 0.7, 2, 0.2)
    assert_close(gd_predict(*data, torch.tensor(0.7), 2, torch.tensor(0.2)), expected, 1e-12)
    for kind in (torch.tensor, tuple):
        weights = gdpp_construction(5, kind([0.7, 0.4]), kind([0.2, 0.0]), 7)
        expected = gd_predict(*data, [0.7, 0.4], 2, [0.2, 0.0])[:, 0]
        assert_close(constructed(5, weights)(tasks[0]), expected, 1e-12)
    from_tensor, from_number = (gd_construction(5, r, 7) for r in (torch.tensor(0.7), 0.7))
    assert distance(from_tensor, from_number)[1] < 1e-12


def test_rates_of_gdpp_and_of_two_heads():
    model = constructed(4, gdpp_construction(4, [1.0, 2.0], [0.5, 0.1], 6))
    eta, gamma = effective_rates(*model.merged(), 6)
    assert_close(eta, [1.0, 2.0], 1e-6)
    assert_close(gamma, [0.5, 0.1], 1e-6)
    a, c = (w.repeat(1, 2, 1, 1) for w in model.merged())
    assert_close(effective_rates(a, c, 6)[0], [2.0, 4.0], 1e-6)


# ---- Softmax


def test_two_softmax_heads_make_a_linear_head_on_centered_values(gen, double):
    tokens, _ = sample_regression(32, 9, 4, gen=gen)
    x, y, xq = split(tokens)
    one = constructed(4, gd_construction(4, 1.0, 9))
    a, c = (w[0, 0] for w in one.merged())
    # sum_i (s_i - mean s) v_i: a step of GD with centered outputs.
    expected = gd_predict(x, y - y.mean(1, keepdim=True), xq, 1.0)[:, 0]
    errors = []
    for epsilon in (0.2, 0.1):
        pair = LinearSelfAttention(5, heads=2, softmax=True)
        pair.load_state_dict(softmax_pair(a, c, epsilon, 9))
        errors.append(relative_error(pair(tokens), expected))
    assert errors[1] < 2e-3
    assert_close(errors[0] / errors[1], 4.0, 0.1)  # the error is of second order


# ---- Training finds it


def _train(model, steps, batch, layers, n=5, d=4, peak=2e-2, seed=0):
    fit(
        model,
        lambda step: sample_regression((2, batch), n, d, gen=child(seed, "tasks", step)),
        lambda m, b: (moment_predict(*m.merged(), b[0], layers) - b[1]).square().mean(-1).sum(),
        steps=steps,
        optimizer=lambda p: torch.optim.Adam(p, lr=peak),
        schedule=schedule("cosine", steps, warmup=steps // 10),
        clip=1e-3,
    )
    return model


def test_a_trained_layer_is_a_step_of_gradient_descent():
    model = _train(
        LinearSelfAttention(5, members=2, std=0.2, gen=child(0, "init")), 300, 256, layers=1
    )
    best = tune_gd(1, sample_spectrum(2000, 5, 4, gen=child(0, "spectrum")))
    reference = lambda t: gd_predict(*split(t), best.eta)[:, 0]
    tokens, target = sample_regression(5000, 5, 4, gen=child(0, "test"))
    a, c = (w.detach() for w in model.merged())
    predict = lambda t: moment_predict(a, c, t.expand(2, *t.shape))
    ratio = (predict(tokens) - target).square().mean(-1) / (
        reference(tokens) - target
    ).square().mean()
    assert (ratio < 1.05).all()  # seen: below 1.03 for seeds 0 to 4
    found = alignment(predict, reference, tokens[:500])
    assert (found["sens_cos"] > 0.97).all() and (found["pred_relative"] < 0.2).all()
    eta, _ = effective_rates(a, c, 5)
    assert ((eta / best.eta[0] - 1).abs() < 0.12).all()


# ---- The further models, in tiny form


def test_layer_norm_and_softmax_options_run(gen):
    tokens, _ = sample_regression(4, 7, 5, gen=gen)
    model = LinearSelfAttention(6, 2, layers=2, softmax=[True, False], norm=nn.LayerNorm, gen=gen)
    assert model(tokens).shape == (4,) and len(model.norms) == 1
    assert len(LinearSelfAttention(6, layers=2, looped=False, norm=nn.LayerNorm).norms) == 2


def test_deep_features_are_gd_on_the_last_layer(gen, double):
    tokens, _ = sample_sines(6, 8, gen=gen)
    model = DeepFeatures(1, 12, gd=True)
    x, y, xq = split(tokens)
    phi, phi_q = model.features(x), model.features(xq)
    assert_close(model(tokens), gd_predict(phi, y, phi_q, 1.0)[:, 0], 1e-12)
    trained = DeepFeatures(1, 12)
    trained.load_state_dict(
        {**model.state_dict(), **_prefixed(gd_construction(12, 1.0, 8))}, strict=False
    )
    assert_close(trained(tokens), model(tokens), 1e-7)


def _prefixed(params):
    return {f"attention.{k}": v for k, v in params.items()}


def test_lsa_in_a_block_equals_the_layer(gen, double):
    tokens, _ = sample_regression(4, 7, 5, gen=gen)
    block = Block(6, 2, norm=None, feedforward=None, attention=LSALayer)
    stack = LinearSelfAttention(6, heads=2)
    stack.load_state_dict({k: v[None] for k, v in block.attn.state_dict().items()})
    after = block(tokens, mask=context_mask(8))
    assert_close(after, stack.states(tokens)[-1], 1e-12)


def test_mlps_between_lsa_layers_train(gen):
    block = lambda dim, heads: Block(dim, heads, norm=None, attention=LSALayer)
    torch.manual_seed(0)
    model = SequenceModel(2, 1, 12, 2, 1, mask=context_mask, block=block, norm=None)
    history = fit(
        model,
        lambda step: sample_sines(64, 10, gen=child(0, "waves", step)),
        lambda m, b: (m(b[0])[:, -1, 0] - b[1]).square().mean() / b[1].square().mean(),
        steps=100,
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-2),
        clip=1.0,
        log=range(100),
    ).frame()
    # Seen for seeds 0 to 2: 0.74 to 0.78 at the end.
    assert history.loss[-20:].mean() < 0.95 < history.loss[:5].mean()


def test_separate_tokens_take_turns(gen):
    tokens, _ = sample_regression(3, 4, 2, gen=gen)
    apart = separate_tokens(tokens, 6)
    assert apart.shape == (3, 9, 9)
    x, y, xq = split(tokens)
    assert_close(apart[:, 0:8:2, 6:8], x, 0)
    assert (apart[:, 0:8:2, 8] == 0).all() and (apart[:, 1:8:2, 6:8] == 0).all()
    assert_close(apart[:, 1:8:2, 8], y[..., 0], 0)
    assert_close(apart[:, -1, 6:8], xq, 0)
    assert_close(apart[0, :, :6], apart[1, :, :6], 0)


def test_copying_sees_a_layer_that_copies_its_neighbor(gen):
    tokens = separate_tokens(sample_regression(40, 6, 3, gen=gen)[0], 8)
    e = tokens.shape[-1]
    model = LinearSelfAttention(e, layers=2, looped=False, softmax=[True, False], std=0.0)
    # Attend by position: rotate a token's code to its neighbor's; copy the last entry, y.
    angle = torch.tensor([1e4 ** (-2 * i / 8) for i in range(4)])
    with torch.no_grad():
        for i, a in enumerate(angle.tolist()):
            pair = torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
            model.W_Q[0, 0, 2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = 300 * pair
        model.W_K[0, 0] = torch.eye(e)
        model.W_V[0, 0, -1, -1] = 1.0
        model.P[0, 0] = torch.eye(e)
    found = copying(model, tokens)
    assert found.shape == (13, 13)
    inner = found[:11, :12]
    assert_close(inner.diagonal(1)[:11], torch.ones(11), 0.05)
    far = ~torch.eye(11, 12).bool() & ~torch.ones(11, 12).triu(1).tril(1).bool()
    assert inner[far].max() < 0.1
    merged = model.states(tokens)[1][:, 0:12:2]
    assert_close(merged[..., -1], tokens[:, 1:12:2, -1], 0.05)


# ---- Errors


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda g: sample_regression(2, 0, 3, gen=g), "n=0: allowed is more than 0"),
        (lambda g: sample_regression(2, 3, 3, input_range=-1.0, gen=g), "input_range=-1.0"),
        (lambda g: sample_spectrum(2, 3, 0, gen=g), "d=0"),
        (lambda g: LinearSelfAttention(5, layers=0), "layers=0"),
        (lambda g: LinearSelfAttention(5, key_dim=0), "key_dim=0"),
        (lambda g: LinearSelfAttention(5, members=0), "members=0"),
        (lambda g: LinearSelfAttention(5)(torch.ones(2, 3, 4)), "tokens have 4 entries"),
        (lambda g: icl.constructed(2, gd_construction(2, 0.1, 3), layers=0), "layers=0"),
        (lambda g: icl.constructed(2, gd_construction(2, [0.1, 0.2], 3), layers=-1), "layers=-1"),
        (lambda g: copying(LinearSelfAttention(5), torch.ones(2, 3, 5), 9), "layer=9: allowed is"),
        (lambda g: gd_predict(*split(torch.ones(2, 4, 3)), 1.0, 0), "steps=0"),
        (lambda g: gd_predict(*split(torch.ones(2, 1, 3)), 1.0), "x has 0 examples"),
        (lambda g: residual_factor(torch.ones(3), 1.0, 0.0, -1), "steps=-1"),
        (lambda g: LinearSelfAttention(5, layers=2, softmax=[True]), "softmax has 1 values"),
        (lambda g: gdpp_construction(3, [1.0, 2.0], 0.1, 5), "eta has 2 values and gamma 1"),
        (lambda g: residual_factor(torch.ones(3), [1.0, 2.0], 0.0, 3), "eta has 2 values"),
        (
            lambda g: ridge_predict(torch.ones(3, 2), torch.ones(3, 1), torch.ones(2), -1.0),
            "lam=-1",
        ),
        (lambda g: tune_gd(0, torch.ones(3, 2)), "steps=0"),
        (lambda g: tune_gd(1, torch.ones(0, 2)), "spectrum: allowed are finite"),
        (lambda g: tune_gd(1, torch.zeros(3, 2)), "spectrum: allowed are finite"),
        (lambda g: tune_gd(1, torch.tensor([[1.0, math.nan]])), "spectrum: allowed are finite"),
        (lambda g: sample_regression((2, 0), 3, 3, gen=g), "batch=0"),
        (lambda g: sample_regression(2, 3, 3, input_range=math.nan, gen=g), "input_range=nan"),
        (lambda g: sample_regression(2, 3, 3, w_scale=math.inf, gen=g), "w_scale=inf"),
        (lambda g: LinearSelfAttention(5, clip=-1.0), "clip=-1.0"),
        (lambda g: gd_construction(3, [], 5), "layers=0"),
        (lambda g: gd_construction(3, 1.0, 5, torch.ones(1)), r"w0 has shape \(1,\): .* \(3,\)"),
        (lambda g: icl.constructed(4, gd_construction(3, 1.0, 5)), "d=4, but the weights .* d=3"),
        (lambda g: gd_predict(*split(torch.ones(2, 4, 3)), [1.0], 2), "1 values .* a number, or 2"),
        (lambda g: one_step_mse(1.0, 0, 3), "n=0"),
        (lambda g: softmax_pair(torch.eye(3), torch.eye(3), 0.0, 5), "epsilon=0.0"),
        (lambda g: rescaled(torch.ones(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)), "mean diagonal 0"),
        (lambda g: copying(LinearSelfAttention(5, members=2), torch.ones(2, 3, 5)), "members=2"),
        (lambda g: copying(LinearSelfAttention(5), torch.ones(0, 3, 5)), "tasks=0"),
        (lambda g: alignment(*[LinearSelfAttention(5)] * 2, torch.ones(0, 3, 5)), "tasks=0"),
        (lambda g: DeepFeatures(1, 0), "width=0"),
        (
            lambda g: ridge_predict(torch.ones(3, 2), torch.ones(3, 1), torch.ones(2), math.nan),
            "lam=nan",
        ),
        (
            lambda g: moment_predict(
                torch.ones(1, 1, 3, 3), torch.ones(1, 2, 3, 3), torch.ones(1, 4, 3)
            ),
            "c has shape",
        ),
        (
            lambda g: moment_predict(
                torch.ones(2, 1, 3, 3), torch.ones(2, 1, 3, 3), torch.ones(1, 4, 3), 3
            ),
            "layers=3, but the weights hold 2",
        ),
        (
            lambda g: moment_predict(
                torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3), torch.ones(1, 4, 3), 0
            ),
            "layers=0",
        ),
        (
            lambda g: moment_predict(
                torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3), torch.ones(1, 4, 5)
            ),
            "tokens have 5 entries",
        ),
    ],
)
def test_errors(gen, make, message):
    with raises(ValueError, match=message):
        make(gen)

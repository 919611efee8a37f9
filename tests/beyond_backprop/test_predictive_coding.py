"""The PV-RNN: the paper's loop, the objective's identities, recognition, analysis, baselines."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import lib.beyond_backprop.predictive_coding as pc
from lib.core.seeds import child
from lib.kernels.persistent_rnn import LOGS_P, LOGS_Q, MU_P, MU_Q
from tests.helpers import assert_close, raises

TWO = [(5, 2, 2.0), (4, 3, 8.0)]


def make(layers=((6, 2, 2.0),), w=0.1, n=2, sequences=3, steps=7, out_dim=1, seed=0, **options):
    gens = [child(seed, "init", i) for i in range(n)]
    model = pc.PVRNN(
        list(layers), out_dim, w, sequences=sequences, steps=steps, gens=gens, **options
    ).double()
    model.A.data.normal_(generator=child(seed, "A"))
    for name in ("b", "c", "out_b"):
        p = getattr(model, name)
        p.data += 0.2 * torch.randn(p.shape, generator=child(seed, name), dtype=p.dtype)
    return model


def paper_loop(model, A, eps, layers, unit_first=True):
    """Layer by layer, as the paper writes it, for the first model and one sequence."""
    edges = lambda k: [sum(layer[k] for layer in layers[:i]) for i in range(len(layers) + 1)]
    D, Z = edges(0), edges(1)
    du = [slice(a, b) for a, b in zip(D, D[1:])]
    dz = [slice(a, b) for a, b in zip(Z, Z[1:])]
    W, U, V, b, c = (getattr(model, k)[0].detach() for k in "WUVbc")
    h = [torch.zeros(d, dtype=A.dtype) for d, _, _ in layers]
    hs, kls = [], []
    for t in range(len(A)):
        d, new, kl = [v.tanh() for v in h], [], 0.0
        for i, (_, size, tau) in enumerate(layers):
            u, z = du[i], dz[i]
            head = lambda k, u=u, z=z, d=d[i]: V[k, z, u] @ d + c[k, z]
            mu_q = (head(MU_Q) + A[t, 0, z]).tanh()
            s_q = (head(LOGS_Q) + A[t, 1, z]).clamp(-4, 2).exp()
            mu_p, s_p = head(MU_P).tanh(), head(LOGS_P).clamp(-4, 2).exp()
            if t == 0 and unit_first:
                mu_p, s_p = torch.zeros_like(mu_p), torch.ones_like(s_p)
            value = (s_p / s_q).log() + ((mu_q - mu_p) ** 2 + s_q**2) / (2 * s_p**2) - 0.5
            kl = kl + value.sum() / size
            drive = W[u, u] @ d[i] + U[u, z] @ (mu_q + s_q * eps[t, z]) + b[u]
            if i > 0:
                drive = drive + W[u, du[i - 1]] @ d[i - 1]
            if i + 1 < len(layers):
                drive = drive + W[u, du[i + 1]] @ d[i + 1]
            new.append((1 - 1 / tau) * h[i] + drive / tau)
        h = new
        hs.append(torch.cat(h))
        kls.append(kl)
    return torch.stack(hs), torch.stack(kls)


@pytest.mark.parametrize("layers", [[(6, 2, 2.0)], TWO, [*TWO, (3, 1, 20.0)]])
@pytest.mark.parametrize("first", ["unit", "learned"])
def test_one_operator_is_the_papers_loop_over_layers(layers, first):
    model = make(layers, first_prior=first)
    eps = model.noise(7, 3, child(1, "eps"))
    with torch.no_grad():
        run = model.run(model.A, eps)
        h, kl = paper_loop(model, model.A[:, 0, 1], eps[:, 0, 1], layers, first == "unit")
        assert_close(run.h[:, 0, 1], h, 1e-12)
        assert_close(model.kl(run)[:, 0, 1], kl, 1e-6)  # shares of latents are float32
        d = run.h[..., : layers[0][0]].tanh()  # the output sees the fastest layer
        assert_close(run.x, (d @ model.out.mT + model.out_b[:, None]).tanh(), 1e-12)


def test_kl_is_torchs_and_what_w_multiplies():
    model = make(w=[0.3, 2.0], w_first=0.7)
    x = torch.rand(3, 7, 1, dtype=torch.float64, generator=child(0, "x")) - 0.5
    run = model.posterior_rollout(gen=child(1, "eps"))
    mu_q, mu_p, logs_q, logs_p = run.stats.unbind(-2)
    wanted = kl_divergence(Normal(mu_q, logs_q.exp()), Normal(mu_p, logs_p.exp()))
    assert_close(model.kl(run), wanted.mean(-1), 1e-12)
    terms = model.loss(x, gen=child(1, "eps"))
    error = 0.5 * (run.x[..., 0] - x[..., 0].T[:, None]).square().sum(0).mean(-1)
    assert_close(terms.error, error, 1e-12)
    each = wanted.mean((-2, -1))  # t n
    w = torch.tensor([0.3, 2.0])
    assert_close(terms.total, error + 0.7 * each[0] + w * each[1:].sum(0), 1e-6)
    assert_close(terms.kl, each.mean(0), 1e-12)


def test_kl_is_zero_where_the_posterior_is_a_copy_of_the_prior():
    for first, zero_from in (("unit", 1), ("learned", 0)):
        model = make(TWO, first_prior=first)
        for p in (model.V, model.c):
            p.data[:, [MU_Q, LOGS_Q]] = p.data[:, [MU_P, LOGS_P]]
        model.A.data.zero_()
        kl = model.kl(model.posterior_rollout(gen=child(2, "eps")))
        assert (kl[zero_from:] == 0).all()
        assert (kl[:zero_from] > 1e-3).all()
        model.A.data += 0.1
        assert (model.kl(model.posterior_rollout()) > 0).all()


def test_no_error_reaches_the_offsets_of_the_future():
    model = make(TWO, n=2)
    x = torch.zeros(7, 2, 3, 1, dtype=torch.float64)
    run = model.posterior_rollout(gen=child(3, "eps"))
    error = model.decoder.error(run.raw[:4], x[:4]).sum()
    (g,) = torch.autograd.grad(error, model.A)
    assert (g[4:] == 0).all()
    assert (g[:4].abs().amax((1, 2, 3, 4)) > 0).all()
    # Beyond the observed steps nothing depends on A at all.
    run = model.run(model.A, model.noise(7, 3, child(3, "eps")), observed=4)
    (g,) = torch.autograd.grad(model.decoder.error(run.raw, x).sum(), model.A)
    assert (g[4:] == 0).all()


def test_models_do_not_see_one_another():
    both, solo = make(TWO, w=[0.1, 1.0], n=2), make(TWO, w=0.1, n=1)
    for p, q in zip(solo.parameters(), both.parameters()):
        axis = 1 if p is solo.A else 0
        p.data = q.data.narrow(axis, 0, 1).clone()
    x = torch.rand(3, 7, 1, dtype=torch.float64, generator=child(0, "x"))
    eps = both.noise(7, 3, child(1, "eps"))
    target = x.movedim(1, 0)[:, None]
    a = both.objective(both.run(both.A, eps), target.expand(-1, 2, -1, -1)).total
    b = solo.objective(solo.run(solo.A, eps[:, :1]), target).total
    assert_close(a[:1], b, 1e-12)
    chosen = both.select([0])
    for p, q in zip(chosen.parameters(), solo.parameters()):
        assert_close(p, q, 0)
    assert chosen.w.tolist() == [both.w[0]]
    with raises(ValueError, match=r"index=\[2\]"):
        both.select([2])
    g, h = (torch.autograd.grad(t[0], m.W)[0] for t, m in ((a, both), (b, solo)))
    assert (g[1] == 0).all()
    assert_close(g[:1], h, 1e-12)
    # Clipping is per model, too.
    p = torch.nn.Parameter(torch.zeros(2, 3))
    p.grad = torch.tensor([[3.0, 0, 4.0], [0.3, 0, 0.4]])
    pc.model.clip_models([p], 1.0)
    assert_close(p.grad.norm(dim=1), torch.tensor([1.0, 0.5]), 1e-6)


def test_variants_of_the_posterior():
    alone = make(posterior="adaptive")
    run = alone.posterior_rollout(gen=child(4, "eps"))
    c = alone.c[:, MU_Q]
    assert_close(run.stats[..., MU_Q, :], (c[:, None] + alone.A[..., 0, :]).tanh(), 1e-12)
    assert alone.A.shape == (7, 2, 3, 2, 2)
    for posterior in ("adaptive", "adaptive+state"):
        plain, natural = (
            make(posterior=posterior, natural_gradient=flag) for flag in (False, True)
        )
        x = torch.rand(3, 7, 1, dtype=torch.float64, generator=child(0, "x"))
        for model in (plain, natural):
            model.loss(x, gen=child(1, "eps")).total.sum().backward()
        variance = natural.posterior_rollout(gen=child(1, "eps")).sigma_q.detach().square()
        scale = torch.stack([variance, variance / 2], -2)
        assert_close(natural.A.grad, scale * plain.A.grad, 1e-12)
        for name in ("W", "V", "c", "out"):
            assert_close(getattr(natural, name).grad, getattr(plain, name).grad, 1e-12)
        if posterior == "adaptive":
            assert (plain.V.grad[:, [MU_Q, LOGS_Q]] == 0).all()


def test_population_code():
    code = pc.Softmax(2, 12)
    x = torch.linspace(-0.9, 0.9, 38, dtype=torch.float64).view(19, 2)
    code = code.double()
    encoded = code.encode(x)
    assert_close(encoded.sum(-1), torch.ones(19, 2), 1e-12)
    raw = encoded.log().flatten(-2)
    assert code.error(raw, x).abs().max() < 1e-12
    assert (code.error(raw + 0.1 * torch.randn(raw.shape, dtype=raw.dtype), x) > 0).all()
    assert (code.mean(raw) - x).abs().max() < 0.02
    model = make(out_dim=2, output="softmax", units=12)
    run = model.posterior_rollout()
    assert run.raw.shape == (7, 2, 3, 24)
    assert run.x.shape == (7, 2, 3, 2)
    assert model.loss(torch.zeros(3, 7, 2, dtype=torch.float64)).total.shape == (2,)
    with raises(ValueError, match="units=2"):
        pc.Softmax(1, 2)


def test_prior_rollouts():
    model = make(TWO)
    with torch.no_grad():
        whole = model.prior_rollout(9, 4, child(0, "p"))
        part = model.prior_rollout(6, 4, child(0, "p"), burn_in=3)
        assert_close(part.x, whole.x[3:], 0)
        silent = model.prior_rollout(5, 2)
        assert_close(silent.x[:, :, 0], silent.x[:, :, 1], 0)
        # A window without steps and the prior after it are a prior rollout.
        none = model.offsets(0, 4)
        after = pc.continue_from(model, none, 9, child(0, "p"))
        assert_close(after.x, whole.x, 0)
    with raises(ValueError, match="burn_in=-1"):
        model.prior_rollout(3, 1, burn_in=-1)


def test_recognition_moves_only_the_offsets():
    model = make(w=0.01, n=2)
    x = pc.finite_state_machine(4, 9, child(0, "x"))[0].double()
    before = [p.clone() for p in model.parameters()]
    A = pc.fit_window(model, x, iters=60, lr=0.1, gen=None)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before))
    assert all(p.grad is None for p in model.parameters())
    target = x.movedim(1, 0)[:, None]
    fitted = pc.continue_from(model, A, 0, None).x
    blank = pc.continue_from(model, model.offsets(9, 4), 0, None).x
    assert (fitted - target).square().mean() < 0.6 * (blank - target).square().mean()
    # The same A by plain autograd through the whole model, weights included.
    B = model.offsets(9, 4).requires_grad_()
    terms = model.objective(model.run(B, model.noise(9, 4, None)), target.expand(-1, 2, -1, -1))
    (g,) = torch.autograd.grad(terms.total.sum(), B)
    one = pc.fit_window(model, x, iters=1, lr=0.1, gen=None)
    assert_close(one, -0.1 * g / (g.abs() + 1e-8), 1e-6)  # Adam's first step


def test_a_sliding_window_hands_over_its_state():
    model = make(TWO, n=1)
    x = pc.finite_state_machine(2, 8, child(0, "x"))[0].double()
    result = pc.error_regression(
        model, x, window=5, iters=3, lr=0.05, horizon=2, gen=child(1, "g"), samples=3
    )
    assert result.ends == [5, 6, 7, 8]
    assert result.predictions.shape == (4, 1, 2, 2, 1)
    assert result.samples.shape == (4, 3, 1, 2, 2, 1)
    assert result.windows.shape == (4, 1, 2, 5, 1)
    assert_close(result.samples.mean(1), result.predictions, 1e-12)
    # Its last window, from the start: the steps that were dropped keep the A they had then.
    path = torch.cat([torch.cat([result.A[k, :1] for k in range(3)]), result.A[3]])
    whole = pc.continue_from(model, path, 0, None).x
    assert_close(result.windows[3], whole[3:].permute(1, 2, 0, 3), 1e-12)
    # Without updates the windows hold A = 0.
    idle = pc.error_regression(
        model, x, window=5, iters=0, lr=0.05, horizon=1, gen=child(1, "g"), samples=1
    )
    assert (idle.A == 0).all()
    for change, message in (({"window": 9}, "window=9"), ({"samples": 0}, "samples=0")):
        good = {"window": 5, "iters": 1, "lr": 0.1, "horizon": 1, "gen": child(1, "g")}
        with raises(ValueError, match=message):
            pc.error_regression(model, x, **{**good, **change})
    with raises(ValueError, match="lr=0"):
        pc.fit_window(model, x, iters=1, lr=0, gen=None)


def test_training_fits_and_repeats():
    x = pc.finite_state_machine(6, 12, child(0, "x"))[0]
    runs = []
    for steps in (10, 100):
        gens = [child(0, "init", i) for i in range(2)]
        model = pc.PVRNN([(8, 2, 2.0)], 1, [0.001, 1.0], sequences=6, steps=12, gens=gens)
        history = pc.train(model, x, steps=steps, gen=child(0, "noise"), log=(0, 9, 99))
        runs.append(history.rows[1]["error"])
    assert runs[0] == runs[1]
    first, last = history.rows[0], history.rows[-1]
    assert last["error"][0] < 0.2 * first["error"][0]
    assert last["error"][0] < 0.3 * last["error"][1]
    assert last["kl"][0] > 2 * last["kl"][1]
    with raises(ValueError, match="clip=0"):
        pc.train(model, x, steps=1, gen=child(0, "n"), clip=0)
    with raises(FloatingPointError, match="at step 0"):
        pc.train(model, x * float("nan"), steps=1, gen=child(0, "n"))


def test_lyapunov_exponents_against_closed_forms_and_divergence():
    model = make([(6, 2, 4.0)], n=2)
    model.W.data.zero_()
    model.U.data.zero_()
    # Only the leak is left.
    expected = torch.full((2, 3), math.log(0.75), dtype=torch.float64)
    assert_close(pc.lyapunov_exponents(model, 50, 10, 3), expected, 1e-10)
    # A strong random network is chaotic; two routes: the tangent, and two trajectories.
    model = make([(24, 2, 1.0)], n=1, seed=5)
    model.W.data *= 6
    h = model.prior_rollout(100, 1).h[-1].detach()
    assert pc.lyapunov_exponents(model, 100, 0, h0=h[:, 0])[0, 0] > 0.1
    steps, delta = 40, 1e-10  # short: rounding errors grow as well
    tangent = pc.lyapunov_exponents(model, steps, 0, h0=h[:, 0])[0, 0].item()
    shift, rate = torch.zeros_like(h), 0.0
    shift[..., 0] = delta  # the direction from which the tangent starts
    for _ in range(steps):
        pair = torch.cat([h, h + shift], 1)
        run = model.run(model.offsets(1, 2), model.noise(1, 2, None), pair, observed=0)
        h, other = (run.h[-1][:, i : i + 1].detach() for i in range(2))
        growth = (other - h).norm() / delta
        rate += growth.log().item() / steps
        shift = (other - h) / growth
    assert abs(tangent - rate) < 1e-3
    with raises(ValueError, match="k=25"):
        pc.lyapunov_exponents(model, k=25)


def test_transition_statistics():
    x = pc.finite_state_machine(400, 48, child(0, "x"))[0]
    cycles = pc.cycle_statistics(x[..., 0])
    assert cycles.right == 1
    assert abs(cycles.ones - 0.3) < 0.03
    assert pc.cycle_statistics(-torch.ones(3, 9)).right == 0
    data, again = x[:200, :, 0], x[200:, :, 0]
    coin = torch.randn(200, 48, generator=child(0, "coin"))
    assert pc.ngram_kl(data, data) == 0
    assert pc.ngram_kl(data, again) < 0.02
    assert pc.ngram_kl(data, coin) > 1
    for p in (0.0, 1.0):
        x, place = pc.finite_state_machine(2, 9, child(0, "x"), p=p)
        assert ((x[..., 0] > 0) == ((place == 1) | ((place == 2) & (p == 1.0)))).all()
        assert pc.cycle_statistics(x[..., 0]).ones == p
    with raises(ValueError, match="n=17"):
        pc.ngram_kl(data, again, 17)
    # NaN > 0 is false: it would pass for a symbol 0.
    bad = torch.full((3, 9), math.nan)
    for call in (pc.cycle_statistics, lambda x: pc.ngram_kl(x, x), lambda x: pc.ngram_kl(data, x)):
        with raises(ValueError, match="27 values are NaN"):
            call(bad)
    with raises(ValueError, match=r"generated: shape \(0, 9\)"):
        pc.ngram_kl(data, bad[:0])
    with raises(ValueError, match=r"\(3, 4\)"):
        pc.cycle_statistics(torch.zeros(3, 4))
    with raises(ValueError, match="p=2"):
        pc.finite_state_machine(1, 1, child(0, "x"), p=2)


def test_drawn_primitives():
    x, which = pc.lissajous_primitives(300, 60, child(0, "x"))
    assert x.shape == (300, 60, 2)
    assert x.abs().max() < 1
    assert 0.4 < which.mean() < 0.6
    # A circle keeps its radius, the eight passes through the middle.
    radius = x.norm(dim=-1)
    assert radius[which == 0].min() > 0.5
    assert radius[which == 1].min() < 0.15
    smooth, _ = pc.lissajous_primitives(4, 60, child(0, "x"), noise=0.0)
    assert_close(smooth[:, 12:, 0], smooth[:, :-12, 0], 1e-4)  # x(t) is the same for both
    with raises(ValueError, match="period=2"):
        pc.lissajous_primitives(1, 1, child(0, "x"), period=2)


def test_baselines():
    x = pc.finite_state_machine(6, 12, child(0, "x"))[0]
    gens = lambda: [child(0, "init", i) for i in range(2)]
    vrnn = pc.VRNN(8, 2, 2.0, 1, 0.01, gens=gens())
    mtrnn = pc.MTRNN([(8, 2, 2.0)], 1, sequences=6, gens=gens())
    lstm = pc.LSTMPredictor(1, 8)
    for model in (vrnn, mtrnn, lstm):
        first = model.loss(x, child(0, "n")).error.mean().item()
        pc.train_baseline(model, x, steps=30, gen=child(0, "n"))
        assert model.loss(x, child(0, "n")).error.mean().item() < 0.9 * first
    assert vrnn.predict(x, 3, 5, child(0, "n")).shape == (5, 2, 6, 3, 1)
    # Its second part does not see x: another future, the same prediction.
    eps = vrnn.noise(12, 2, 6, child(1, "n"))
    seen = pc.model.time_first(x, (12, 2, 6, 1))
    a, kl = vrnn(seen[:8], eps)
    assert a.shape == (12, 2, 6, 1)
    assert kl.shape == (8, 2, 6)
    assert_close(a[:8], vrnn(seen, eps)[0][:8], 0)
    # Without noise, from the same state: the PV-RNN's own mean dynamics.
    h0 = mtrnn.h0.detach()
    run = mtrnn.run(5, h0)
    free = mtrnn.core.run(
        mtrnn.core.offsets(5, 6) + 3, mtrnn.core.noise(5, 6, None), h0, observed=0
    )
    assert_close(run.x, free.x, 0)
    before = [p.clone() for p in mtrnn.parameters()]
    out = mtrnn.predict(x[:, :8], 4, iters=3, lr=0.1)
    assert out.shape == (2, 6, 12, 1)
    assert all(torch.equal(p, q) for p, q in zip(mtrnn.parameters(), before))
    # The LSTM's closed loop, step by step.
    future = lstm.predict(x[:, :8], 3)
    known = x[:, :8]
    for _ in range(3):
        known = torch.cat([known, lstm(known)[:, -1:].detach()], 1)
    assert_close(future, known[:, 8:], 1e-5)
    with raises(ValueError, match="meta_prior=-1"):
        pc.VRNN(8, 2, 2.0, 1, -1, gens=gens())
    with raises(ValueError, match="horizon=0, samples=5"):
        vrnn.predict(x, 0, 5, child(0, "n"))
    with raises(ValueError, match="horizon=-1, iters=3"):
        mtrnn.predict(x, -1, iters=3, lr=0.1)
    with raises(ValueError, match="horizon=0, 12 steps"):
        lstm.predict(x, 0)
    for options, message in (
        ({"steps": -1}, "steps=-1"),
        ({"steps": 1, "clip": 0}, "clip=0"),
        ({"steps": 1}, "gen=None: a VRNN"),
    ):
        with raises(ValueError, match=message):
            pc.train_baseline(vrnn, x, **options)
    three = torch.zeros(6, 12, 3)
    for call in (
        lambda: vrnn.loss(three, child(0, "n")),
        lambda: mtrnn.loss(three),
        lambda: lstm.predict(three, 1),
    ):
        with raises(ValueError, match=r"x: shape \(6, 12, 3\); .* o = 1"):
            call()


def test_errors_name_the_argument():
    good = {"layers": [(4, 2, 2.0)], "out_dim": 1, "meta_prior": 0.1, "sequences": 2, "steps": 3}
    for change, message in (
        ({"layers": [(4, 2, 0.5)]}, r"layers=\[\(4, 2, 0.5\)\]"),
        ({"layers": [(4, 2, math.inf)]}, r"layers=\[\(4, 2, inf\)\]"),
        ({"layers": [(4.5, 2, 2.0)]}, r"layers=\[\(4.5, 2, 2.0\)\]"),
        ({"layers": []}, "one or more"),
        ({"meta_prior": [0.1, 0.2]}, "1 gens and 2 meta_prior"),
        ({"meta_prior": -1.0}, r"meta_prior=\[-1.0\]"),
        ({"steps": 0}, "steps=0"),
        ({"output": "tanh"}, "output='tanh'"),
        ({"posterior": "state"}, "posterior='state'"),
        ({"first_prior": "none"}, "first_prior='none'"),
    ):
        with raises(ValueError, match=message):
            pc.PVRNN(**{**good, **change}, gens=[child(0, "g")])
    model = pc.PVRNN(**good, gens=[child(0, "g")])
    with raises(ValueError, match=r"x: shape \(2, 4, 1\)"):
        model.loss(torch.zeros(2, 4, 1))
    # Three channels against one would be broadcast, and give numbers.
    for call in (
        lambda x: pc.fit_window(model, x, iters=1, lr=0.1, gen=None),
        lambda x: pc.error_regression(
            model, x, window=2, iters=1, lr=0.1, horizon=1, gen=child(0, "g")
        ),
    ):
        for x in (torch.zeros(2, 3, 3), torch.zeros(2, 3)):
            with raises(ValueError, match=r"x: shape .* with o = 1"):
                call(x)
    with raises(ValueError, match=r"x: shape \(3, 1, 2, 2\)"):
        model.objective(model.posterior_rollout(), torch.zeros(3, 1, 2, 2))
    with raises(ValueError, match=r"A: shape \(3, 1, 2, 2\)"):
        pc.continue_from(model, torch.zeros(3, 1, 2, 2), 1, None)
    with raises(ValueError, match=r"h0: shape \(1, 7\)"):
        pc.lyapunov_exponents(model, h0=torch.zeros(1, 7))

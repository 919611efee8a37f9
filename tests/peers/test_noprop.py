"""NoProp's coefficients and its ODE against diffusers and torchdiffeq.

``pip install diffusers torchdiffeq``; each test is skipped where its peer is absent.
"""

import pytest
import torch

from lib.beyond_backprop.noprop import NoiseSchedule, cosine_alpha_bar, label_velocity, transition
from lib.beyond_backprop.noprop.continuous import solve
from lib.core.seeds import child
from tests.helpers import assert_close


def test_step_is_that_of_diffusers_with_time_reversed():
    diffusers = pytest.importorskip("diffusers")
    T = 12
    ab = cosine_alpha_bar(T)
    a, b, c = transition(ab)
    falling = ab.flip(0)[1:]  # diffusers' alphas_cumprod starts after its first noising step
    betas = 1 - falling / ab.flip(0)[:-1]
    scheduler = diffusers.DDPMScheduler(
        T, trained_betas=betas.tolist(), clip_sample=False, prediction_type="sample"
    )
    u, z = torch.randn(2, 3, 5, dtype=torch.float64, generator=child(0, "peer"))
    for t in range(1, T):
        # Its last step, from its time 0, ends at clean data; block T ends at alpha_bar[T].
        block = T - 1 - t  # entry of a, b, c that leads from falling[t] to falling[t - 1]
        gen = torch.Generator().manual_seed(t)
        noise = torch.randn(3, 5, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        theirs = scheduler.step(u, t, z, generator=gen).prev_sample
        # betas describe alpha_bar up to the factor of the first value, which they cannot hold
        rate = scheduler.alphas_cumprod.double()
        mine = transition(rate[[t, t - 1]])
        assert_close(theirs, mine[0] * u + mine[1] * z + mine[2].sqrt() * noise, 1e-4)
        scaled = transition(torch.stack([falling[t], falling[t - 1]]))
        for ours, values in zip((a, b, c), scaled):
            assert_close(ours[block : block + 1], values, 1e-12)


def test_ode_is_torchdiffeqs():
    torchdiffeq = pytest.importorskip("torchdiffeq")
    schedule = NoiseSchedule(gen=child(0, "s")).double()
    u, z0 = torch.randn(2, 3, 5, dtype=torch.float64, generator=child(0, "peer"))

    def field(t, z):
        return label_velocity(z, torch.tanh(z + u), *schedule.with_slope(t))

    with torch.no_grad():
        times = torch.linspace(0, 1, 2, dtype=torch.float64)
        exact = torchdiffeq.odeint(field, z0, times, rtol=1e-9, atol=1e-11)[-1]
        fixed = torchdiffeq.odeint(field, z0, times, method="euler", options={"step_size": 1 / 50})[
            -1
        ]
        assert_close(solve(field, z0, 50)[-1], fixed, 1e-9)
        assert_close(solve(field, z0, 400, "heun")[-1], exact, 1e-4)

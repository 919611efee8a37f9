import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from lib.core.losses import gaussian_kl, supcon
from tests.helpers import assert_close, raises


def test_gaussian_kl_is_that_of_torch_distributions(gen):
    mu_q, logs_q, mu_p, logs_p = torch.randn(4, 3, 7, 5, generator=gen, dtype=torch.float64)
    wanted = kl_divergence(Normal(mu_q, logs_q.exp()), Normal(mu_p, logs_p.exp())).sum(-1)
    assert_close(gaussian_kl(mu_q, logs_q, mu_p, logs_p), wanted, 1e-12)
    standard = kl_divergence(Normal(mu_q, logs_q.exp()), Normal(0.0, 1.0)).sum(-1)
    assert_close(gaussian_kl(mu_q, logs_q), standard, 1e-12)
    assert (gaussian_kl(mu_q, logs_q, mu_q, logs_q) == 0).all()
    # One dimension, ratio 2 and equal widths: (mu difference)^2 / (2 sigma^2).
    one = gaussian_kl(*(torch.tensor([v]) for v in (0.4, -1.609438, 0.0, -1.609438)))
    assert_close(one, torch.tensor(2.0), 1e-5)


def test_gaussian_kl_keeps_its_digits_near_zero():
    d = torch.tensor([1e-4])
    exact = d.double().square()  # (e^{2d} - 1) / 2 - d = d^2 + O(d^3)
    assert_close(gaussian_kl(torch.zeros(1), d).double(), exact[0], 1e-3)


def test_supcon_is_the_sum_written_out(gen):
    z, y = (
        torch.randn(7, 4, generator=gen, dtype=torch.float64),
        torch.tensor([0, 1, 0, 2, 1, 0, 3]),
    )
    u, total, anchors = F.normalize(z, dim=1), 0.0, 0
    for i in range(7):
        others = [a for a in range(7) if a != i]
        mates = [a for a in others if y[a] == y[i]]
        if mates:
            norm = torch.logsumexp(torch.stack([u[i] @ u[a] / 0.2 for a in others]), 0)
            total += -sum(u[i] @ u[p] / 0.2 - norm for p in mates) / len(mates)
            anchors += 1
    assert anchors == 5
    assert_close(supcon(z, y, 0.2), total / anchors, 1e-12)
    z = z.requires_grad_()
    supcon(z, y).backward()
    assert z.grad.isfinite().all() and z.grad.abs().sum() > 0


def test_supcon_refuses_what_it_cannot_compare():
    with raises(ValueError, match="temperature=0"):
        supcon(torch.ones(2, 3), torch.tensor([0, 0]), 0)
    with raises(ValueError, match="no two of one class"):
        supcon(torch.ones(2, 3), torch.tensor([0, 1]))

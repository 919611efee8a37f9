import torch

from lib.models.diffusion import cosine, posterior_coefficients
from tests.helpers import assert_close, raises


def test_cosine_schedule():
    ab = cosine(8)
    assert ab.shape == (9,) and (ab.diff() < 0).all()
    wanted = torch.tensor([0.9999, 0.958, 0.847, 0.684, 0.494, 0.304, 0.144, 0.0375, 1e-4])
    assert (ab - wanted).abs().max() < 6e-4
    assert cosine(1000)[0] == 1 - 1e-4 and cosine(1000, clip=0)[0] == 1


def test_posterior_keeps_the_marginals():
    ab = cosine(10)
    a, b, c = posterior_coefficients(ab)
    assert_close(a + b * ab[1:].sqrt(), ab[:-1].sqrt(), 1e-13)
    assert_close(b.square() * (1 - ab[1:]) + c, 1 - ab[:-1], 1e-13)
    assert (c > 0).all()


def test_posterior_is_bayes_rule(gen):
    """Condition the joint Gaussian of (x_s, x_t) given x_0 on x_t."""
    ab = cosine(6)
    a, b, c = posterior_coefficients(ab)
    for i in range(6):
        s, t = ab[i], ab[i + 1]
        alpha = t / s
        cov_st, var_t = alpha.sqrt() * (1 - s), 1 - t
        slope = cov_st / var_t
        assert_close(b[i], slope, 1e-12)
        assert_close(a[i], s.sqrt() - slope * t.sqrt(), 1e-12)
        assert_close(c[i], (1 - s) - slope * cov_st, 1e-10)


def test_errors():
    with raises(ValueError, match="steps=0"):
        cosine(0)
    with raises(ValueError, match="clip=0.5"):
        cosine(4, clip=0.5)
    for bad in ([0.5], [0.5, 0.5], [0.5, 0.0], [1.1, 0.5]):
        with raises(ValueError, match="falling values"):
            posterior_coefficients(torch.tensor(bad))

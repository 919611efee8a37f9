import pytest
import torch

from lib.core.metrics import ssim
from tests.helpers import assert_close


def test_ssim_against_the_definition(gen):
    x, y = torch.rand(2, 2, 1, 9, 8, generator=gen, dtype=torch.float64)
    values = []
    for i in range(3):
        for j in range(2):
            a, b = x[1, 0, i : i + 7, j : j + 7].flatten(), y[1, 0, i : i + 7, j : j + 7].flatten()
            cov = torch.cov(torch.stack([a, b]))
            top = (2 * a.mean() * b.mean() + 1e-4) * (2 * cov[0, 1] + 9e-4)
            low = (a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (cov[0, 0] + cov[1, 1] + 9e-4)
            values.append(top / low)
    assert_close(ssim(x, y)[1], torch.stack(values).mean(), 1e-10)


def test_ssim_of_equal_opposite_and_unrelated(gen):
    x, y = torch.rand(2, 4, 1, 32, 32, generator=gen)
    assert_close(ssim(x, x), torch.ones(4), 1e-6)
    assert_close(ssim(x, y), ssim(y, x), 1e-6)
    assert (ssim(x, 1 - x) < -0.8).all()
    assert (ssim(x, y).abs() < 0.1).all()
    # The constants scale with the range.
    assert_close(ssim(5 * x, 5 * y, data_range=5.0), ssim(x, y), 1e-5)


def test_ssim_against_scikit_image(gen):
    skimage = pytest.importorskip("skimage.metrics", reason="pip install scikit-image")
    x, y = torch.rand(2, 1, 1, 20, 17, generator=gen, dtype=torch.float64)
    want = skimage.structural_similarity(x[0, 0].numpy(), y[0, 0].numpy(), data_range=1.0)
    assert_close(ssim(x, y)[0], want, 1e-9)


def test_ssim_errors(gen):
    x = torch.rand(1, 1, 8, 8, generator=gen)
    for window in (6, 1, 9):
        with pytest.raises(ValueError, match=f"window={window}: allowed are odd numbers"):
            ssim(x, x, window=window)
    with pytest.raises(ValueError, match="data_range=0"):
        ssim(x, x, data_range=0.0)

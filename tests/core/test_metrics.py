import pytest
import torch

from lib.core.metrics import ece, reliability, ssim
from tests.helpers import assert_close, raises


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


def test_ece_by_hand():
    probs = torch.tensor([0.05, 0.08, 0.65, 0.6], dtype=torch.float64)
    probs = torch.stack([1 - probs, probs], 1)
    y = torch.tensor([0, 1, 1, 1])
    table = reliability(probs, y)
    # 0.6 belongs to the bin that ends there.
    assert [round(v, 6) for v in table.low] == [0.5, 0.6, 0.9]
    assert table.samples.tolist() == [1, 1, 2]
    assert_close(table.accuracy.tolist(), [1.0, 1.0, 0.5], 1e-12)
    want = (abs(1 - 0.6) + abs(1 - 0.65) + 2 * abs(0.5 - 0.935)) / 4
    assert_close(ece(probs, y), want, 1e-6)
    assert_close(ece(probs, y, bins=1), abs(0.75 - (0.95 + 0.92 + 0.65 + 0.6) / 4), 1e-6)


def test_ece_of_honest_and_of_certain_answers(gen):
    probs = (2 * torch.randn(20_000, 3, generator=gen)).softmax(1)
    y = torch.multinomial(probs, 1, generator=gen)[:, 0]
    assert ece(probs, y) < 0.01
    certain = torch.nn.functional.one_hot(probs.argmax(1), 3).float()
    assert_close(ece(certain, y), 1 - (probs.argmax(1) == y).double().mean(), 1e-9)


def test_ece_errors():
    probs, y = torch.tensor([[0.5, 0.5]]), torch.tensor([0])
    for call, message in (
        (lambda: ece(probs, y, bins=0), "bins=0: allowed is 1 or more"),
        (lambda: ece(probs * 2, y), "probs: rows must be probabilities"),
        (lambda: ece(probs / 0 * 0, y), "probs: rows must be probabilities"),
        (lambda: ece(probs[:0], y[:0]), "at least 1; got 0, 0"),
        (lambda: ece(probs, torch.tensor([0, 1])), "got 1, 2"),
    ):
        with raises(ValueError, match=message):
            call()

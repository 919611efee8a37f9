"""Images are moved whole: what comes out is a window of the mirrored picture."""

import pytest
import torch
import torch.nn.functional as F

from lib.core.data import crop_and_flip
from tests.helpers import raises


def windows(x, pad):
    """Every picture that a shift and a flip can make, b x views x c x h x w."""
    h, w = x.shape[-2:]
    padded = F.pad(x, [pad] * 4, mode="reflect")
    places = [(i, j) for i in range(2 * pad + 1) for j in range(2 * pad + 1)]
    plain = torch.stack([padded[..., i : i + h, j : j + w] for i, j in places], 1)
    return torch.cat([plain, plain.flip(-1)], 1)


@pytest.mark.parametrize("shape", [(2, 3, 6, 6), (3, 1, 5, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_image_is_one_window_of_its_own_mirrored_picture(shape, dtype, gen):
    x = torch.rand(shape, generator=gen).to(dtype)
    views = windows(x, 2)
    made = crop_and_flip(x, gen, pad=2)
    assert made.shape == x.shape and made.dtype == dtype
    found = (made[:, None] == views).flatten(2).all(-1)
    assert (found.sum(1) == 1).all()


def test_shifts_and_flips_are_equally_frequent(gen):
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    made = crop_and_flip(x.expand(6000, 1, 4, 4), gen, pad=1)
    count = (made[:, None] == windows(x, 1)).flatten(2).all(-1).sum(0)
    assert count.sum() == 6000
    # Expected 333 each, with a standard deviation of 18.
    assert 333 - 90 < count.min() and count.max() < 333 + 90


def test_no_shift_leaves_a_flip_and_the_generator_decides(gen):
    x = torch.rand(40, 2, 3, 5, generator=gen)
    made = crop_and_flip(x, torch.Generator().manual_seed(3), pad=0)
    same, flipped = ((made == v).flatten(1).all(1) for v in (x, x.flip(-1)))
    assert (same ^ flipped).all() and 8 < same.sum() < 32
    assert torch.equal(made, crop_and_flip(x, torch.Generator().manual_seed(3), pad=0))
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(made, crop_and_flip(strided, torch.Generator().manual_seed(3), pad=0))


def test_no_images_stay_no_images_and_gradients_pass(gen):
    assert crop_and_flip(torch.zeros(0, 3, 8, 8), gen).shape == (0, 3, 8, 8)
    x = torch.rand(4, 1, 8, 8, generator=gen, requires_grad=True)
    crop_and_flip(x, gen).sum().backward()
    assert abs(x.grad.sum() - 4 * 64) < 1e-3


def test_errors(gen):
    with raises(ValueError, match="pad=6: allowed is 0 to 5 for images of 6 x 7"):
        crop_and_flip(torch.rand(1, 1, 6, 7), gen, pad=6)
    with raises(ValueError, match="pad=-1: allowed is 0 to 5"):
        crop_and_flip(torch.rand(1, 1, 6, 6), gen, pad=-1)
    with raises(ValueError, match=r"x has shape \[8, 8\]: allowed are images, b x c x h x w"):
        crop_and_flip(torch.rand(8, 8), gen)

import torch

from lib.core.data.splits import few_per_class, flip_labels
from tests.helpers import raises


def test_few_per_class(gen):
    y = torch.randint(3, (200,), generator=gen)
    chosen = few_per_class(y, 7, gen)
    assert torch.bincount(y[chosen]).tolist() == [7, 7, 7]
    assert len(chosen.unique()) == 21
    assert y[chosen].tolist() != sorted(y[chosen].tolist())  # classes are mixed
    assert set(chosen.tolist()) != set(few_per_class(y, 7, gen).tolist())
    assert few_per_class(y[:0], 2, gen).shape == (0,)


def test_flip_labels(gen):
    y = torch.randint(4, (20_000,), generator=gen)
    assert torch.equal(flip_labels(y, 0.0, gen), y)
    assert (flip_labels(y, 1.0, gen) != y).all()
    flipped = flip_labels(y, 0.3, gen)
    # Standard deviation of the share: 0.0032.
    assert abs((flipped != y).double().mean() - 0.3) < 0.015
    wrong = ((flipped - y) % 4)[flipped != y]
    assert (torch.bincount(wrong, minlength=4)[1:] > 1800).all()  # each of the others


def test_errors(gen):
    y = torch.tensor([0, 0, 1])
    with raises(ValueError, match="k=2: class 1 has 1 samples"):
        few_per_class(y, 2, gen)
    with raises(ValueError, match="k=0"):
        few_per_class(y, 0, gen)
    with raises(ValueError, match="p=1.5: allowed is 0 to 1"):
        flip_labels(y, 1.5, gen)
    with raises(ValueError, match="classes=1"):
        flip_labels(torch.zeros(3, dtype=torch.long), 0.5, gen)
    with raises(ValueError, match="labels from 0 to 1"):
        flip_labels(y + 1, 0.5, gen, classes=2)

import pytest
import torch

from lib.core.seeds import batch_indices, child, pick_device, seed_everything
from tests.helpers import raises


def test_the_same_seed_gives_the_same_numbers():
    a = torch.randn(4, generator=seed_everything(3)), torch.rand(2)
    b = torch.randn(4, generator=seed_everything(3)), torch.rand(2)
    assert all(torch.equal(x, y) for x, y in zip(a, b))


def test_children_are_distinct_and_do_not_depend_on_drawing_order():
    draw = lambda *key: torch.randn(8, generator=child(0, *key)).tolist()
    keys = [("data",), ("init",), (0, 1), (1, 0), (0,), ("0",), (1,)]
    streams = [tuple(draw(*k)) for k in keys]
    assert len(set(streams)) == len(keys)
    assert tuple(draw("data")) == streams[0]
    assert torch.randn(8, generator=child(1, "data")).tolist() != list(streams[0])


@pytest.mark.parametrize("n,batch", [(10, 3), (12, 4), (5, 5), (7, 1)])
def test_batches_of_an_epoch_are_disjoint_and_repeatable(n, batch):
    per_epoch = n // batch
    for epoch in range(2):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        rows = torch.cat([batch_indices(n, batch, t, 0) for t in steps])
        assert len(rows.unique()) == len(rows) == per_epoch * batch
        assert rows.min() >= 0 and rows.max() < n
    assert torch.equal(batch_indices(n, batch, 3, 5), batch_indices(n, batch, 3, 5))


def test_epochs_and_seeds_shuffle_differently():
    first = batch_indices(100, 50, 0, 0)
    assert not torch.equal(first, batch_indices(100, 50, 2, 0))
    assert not torch.equal(first, batch_indices(100, 50, 0, 1))


def test_bad_arguments_are_named():
    with raises(ValueError, match="batch=9: allowed is 1 to n=8"):
        batch_indices(8, 9, 0, 0)
    with raises(ValueError, match="step=-1"):
        batch_indices(8, 2, -1, 0)
    with raises(ValueError, match="seed=-1"):
        seed_everything(-1)
    with raises(ValueError, match="seed=-1"):
        child(-1, "data")
    with raises(ValueError, match="device='gpu' is no device"):
        pick_device("gpu")


def test_device_choice():
    assert pick_device("cpu").type == "cpu"
    assert pick_device(torch.device("cpu")).type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with raises(ValueError, match="no CUDA device here"):
            pick_device("cuda")

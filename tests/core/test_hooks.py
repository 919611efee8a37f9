import pytest
import torch
from torch import nn

from lib.core.hooks import leaf_names, patch, record
from tests.helpers import assert_close


def net(inplace=False):
    return nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(inplace=inplace), nn.Sequential(nn.Linear(4, 5), nn.Tanh())
    )


def test_record_sees_what_flows(gen):
    model, x = net(), torch.randn(2, 3, generator=gen)
    with record(model, ["0", "2.0"]) as seen:
        y = model(x)
    assert_close(seen["0"], model[0](x))
    assert_close(seen["2.0"].tanh(), y)
    assert not seen["0"].requires_grad
    with record(model, ["2.0"], of="input") as seen:
        model(x)
    assert_close(seen["2.0"], model[1](model[0](x)))


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_of_recorded_tensors_survive_in_place_operations(gen, frozen):
    # An in-place ReLU overwrites the tensor before it; value and gradient must be those of the
    # network without it.
    torch.manual_seed(0)
    model, plain = net(inplace=True), net()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(6, 3, generator=gen)
    got = []
    for m in (model, plain):
        m.requires_grad_(not frozen)
        with record(m, ["0"], grad=True) as seen:
            y = m(x)
        got.append((seen["0"].detach().clone(), *torch.autograd.grad(y.sum(), seen["0"])))
    assert (got[1][0] < 0).any()
    assert_close(got[0][0], got[1][0])
    assert_close(got[0][1], got[1][1])


def test_hooks_are_gone_afterwards_also_after_an_error(gen):
    model, x = net(), torch.randn(2, 3, generator=gen)
    with pytest.raises(RuntimeError), patch(model, {"0": torch.zeros_like}), record(model, ["1"]):
        raise RuntimeError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with record(model, ["0"]) as seen:
        pass
    model(x)
    assert seen == {}


def test_patch_replaces_for_all_or_for_one_sample(gen):
    model, x = net(), torch.randn(2, 3, generator=gen)
    y = model(x)
    with patch(model, {"0": torch.zeros(2, 4)}):
        assert_close(model(x), model[2](torch.zeros(2, 4)))

    def second(out):
        return torch.stack([out[0], torch.zeros_like(out[1])])

    with patch(model, {"0": second}):
        z = model(x)
    assert_close(z[0], y[0])
    assert_close(z[1], model[2](torch.zeros(4)))


def test_leaf_names():
    assert leaf_names(net()) == ["0", "1", "2.0", "2.1"]
    assert leaf_names(net(), nn.Linear) == ["0", "2.0"]


def test_errors(gen):
    model, x = net(), torch.randn(2, 3, generator=gen)
    with pytest.raises(ValueError, match="no module '2.3'; near: 2"), record(model, ["2.3"]):
        pass
    with pytest.raises(ValueError, match="of='outputs'"), record(model, ["0"], of="outputs"):
        pass
    with pytest.raises(ValueError, match=r"replacement of '0' has shape \(1,\)"):
        with patch(model, {"0": torch.zeros(1)}):
            model(x)
    lstm = nn.Sequential(nn.LSTM(3, 2))
    with pytest.raises(TypeError, match="output of '0' is tuple"), record(lstm, ["0"]):
        lstm(x)

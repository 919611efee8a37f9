import copy

import pytest
import torch
from torch import nn

from lib.models.adapters import Adapted, Bottleneck, LoRA, adapter_state
from lib.models.surgery import replace_modules
from tests.helpers import assert_close, raises

LAYERS = {
    "linear": (lambda: nn.Linear(5, 7), (3, 4, 5)),
    "conv1d": (lambda: nn.Conv1d(5, 7, 3, padding=1), (3, 5, 9)),
    "conv2d": (lambda: nn.Conv2d(5, 7, (3, 2), stride=2, dilation=2, bias=False), (3, 5, 9, 8)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_lora_starts_as_the_layer_and_merges(gen, kind):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer = make().double()
    before = copy.deepcopy(layer)
    lora = LoRA(layer, 2, alpha=8.0)
    x = torch.randn(shape, generator=gen, dtype=torch.float64)
    assert torch.equal(lora(x), before(x))
    assert {n for n, p in lora.named_parameters() if p.requires_grad} == {"A.weight", "B.weight"}
    nn.init.normal_(lora.B.weight)
    adapted = lora(x)
    assert (adapted - before(x)).abs().max() > 0.1
    lora.merge()
    lora.merge()
    assert_close(lora.layer(x), adapted, 1e-12)
    assert_close(lora(x), adapted, 1e-12)
    rank = torch.linalg.matrix_rank(lora.delta().flatten(1))
    assert rank == 2
    lora.unmerge()
    assert_close(lora.layer.weight, before.weight, 1e-12)
    assert_close(lora(x), adapted, 1e-12)


@pytest.mark.parametrize("form", ["serial", "parallel"])
def test_bottleneck_starts_at_zero_and_learns_alone(gen, form):
    module = nn.Linear(6, 6)
    adapted = Adapted(module, Bottleneck(6, 2), form)
    x = torch.randn(4, 6, generator=gen)
    assert torch.equal(adapted(x), module(x))
    adapted(x).square().sum().backward()
    assert module.weight.grad is None
    assert adapted.adapter.up.weight.grad.abs().sum() > 0
    learned = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert learned == 2 * 6 * 2 + 2 + 6
    nn.init.normal_(adapted.adapter.up.weight)
    h = module(x)
    change = adapted.adapter(h if form == "serial" else x)
    assert torch.equal(adapted(x), h + change)


def test_adapter_state_is_the_adapters_alone(gen):
    base = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model = replace_modules(base, nn.Linear, lambda m: LoRA(m, 1))
    for p in model.parameters():
        nn.init.normal_(p)
    state = adapter_state(model)
    assert set(state) == {"0.A.weight", "0.B.weight", "2.A.weight", "2.B.weight"}
    other = replace_modules(base, nn.Linear, lambda m: LoRA(m, 1))
    missing = other.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert torch.equal(other[0].B.weight, model[0].B.weight)
    assert set(adapter_state(LoRA(nn.Linear(2, 2), 1))) == {"A.weight", "B.weight"}


def test_errors():
    with raises(ValueError, match="rank=0"):
        LoRA(nn.Linear(2, 2), 0)
    with raises(TypeError, match="linear and convolution"):
        LoRA(nn.ReLU(), 1)
    with raises(ValueError, match="2 groups"):
        LoRA(nn.Conv2d(4, 4, 1, groups=2), 1)
    with raises(ValueError, match="hidden=0"):
        Bottleneck(4, 0)
    with raises(ValueError, match="form='both'"):
        Adapted(nn.ReLU(), nn.ReLU(), "both")
    with raises(ValueError, match="no adapter"):
        adapter_state(nn.Linear(2, 2))

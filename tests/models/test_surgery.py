import torch
from torch import nn

from lib.models.surgery import replace_modules
from tests.helpers import raises


def network():
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), inner, nn.ModuleDict({"head": nn.ReLU()}))


def test_replaces_by_type_in_a_copy():
    model = network()
    changed = replace_modules(model, nn.ReLU, lambda _: nn.Tanh())
    assert sum(isinstance(m, nn.ReLU) for m in model.modules()) == 3
    assert sum(isinstance(m, nn.Tanh) for m in changed.modules()) == 3
    assert not any(isinstance(m, nn.ReLU) for m in changed.modules())
    assert isinstance(changed[3]["head"], nn.Tanh)


def test_a_wrapper_is_applied_once_and_sees_its_module():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    changed = replace_modules(model, nn.Linear, lambda m: nn.Sequential(m, nn.Identity()))
    x = torch.randn(5, 3)
    assert torch.equal(changed(x), model(x))
    assert len([m for m in changed.modules() if isinstance(m, nn.Linear)]) == 2


def test_by_path_and_the_whole():
    changed = replace_modules(network(), lambda path, m: path == "2.0", lambda _: nn.Identity())
    assert isinstance(changed[2][0], nn.Identity)
    assert isinstance(changed[0], nn.Linear)
    assert isinstance(replace_modules(nn.ReLU(), nn.ReLU, lambda _: nn.Tanh()), nn.Tanh)


def test_shared_modules_stay_shared():
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    changed = replace_modules(model, (nn.Linear, nn.Tanh), lambda _: nn.Linear(2, 5))
    assert changed["a"] is changed["b"][0]


def test_errors():
    with raises(ValueError, match="no module of the model matches"):
        replace_modules(network(), nn.Tanh, lambda _: nn.ReLU())
    with raises(TypeError, match="make returned 3"):
        replace_modules(network(), nn.ReLU, lambda _: 3)

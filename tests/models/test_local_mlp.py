import torch
from torch import nn

from lib.models.local_learning import LocalBlocks
from lib.models.local_mlp import LocalTrainer


class Head(nn.Module):
    def __init__(self, n: int):
        super().__init__()
        self.map = nn.Linear(n, 3)

    def forward(self, h):
        return self.map(h)


def trainer() -> LocalTrainer:
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()) for a, b in ((5, 8), (8, 6))
    ]
    model = LocalBlocks(blocks, [Head(8), Head(6)])
    return LocalTrainer(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_step_moves_every_layer_and_the_heads():
    x, y = torch.randn(12, 5), torch.arange(12) % 3
    local = trainer()
    before = [p.detach().clone() for p in local.model.parameters()]
    local.step(x, y)
    moved = [not torch.equal(a, b) for a, b in zip(before, local.model.parameters())]
    # A bias in front of batch normalization has no gradient but rounding.
    assert sum(moved) >= len(moved) - 2
    assert list(local.groups) == ["layer 0", "layer 1", "layer 2"]
    assert [len(g) for g in local.groups.values()] == [4, 4, 2]


def test_prediction_is_of_the_primary_network_in_evaluation_and_leaves_no_trace():
    x = torch.randn(12, 5)
    local = trainer()
    state = {k: v.clone() for k, v in local.model.state_dict().items()}
    found = local.predict(x)
    assert local.model.training and not found.requires_grad
    assert all(torch.equal(v, state[k]) for k, v in local.model.state_dict().items())
    local.model.eval()
    assert torch.equal(found, local.model(x))

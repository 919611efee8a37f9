"""The feedback-alignment baseline's gradients from BioTorch.

pip install --no-deps biotorch==0.0.16
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.beyond_backprop.counter_current import RandomFeedbackMLP
from lib.core.seeds import child
from tests.helpers import assert_close

fa = pytest.importorskip("biotorch.layers.fa", reason="see the top of this file")


def test_feedback_alignment_has_biotorchs_gradients():
    widths, gen = [6, 9, 8, 4], child(0, "biotorch")
    ours = RandomFeedbackMLP(widths, "fa", gen)
    peers = [fa.Linear(n, m) for n, m in zip(widths, widths[1:])]
    with torch.no_grad():
        for a, b in zip(ours.layers, peers):
            b.weight.copy_(a.weight)
            b.bias.copy_(a.bias)
            b.weight_backward.copy_(a.feedback)
    theirs = nn.Sequential(peers[0], nn.ELU(), peers[1], nn.ELU(), peers[2])
    x, y = torch.randn(12, 6, generator=gen), torch.randint(4, (12,), generator=gen)
    ours.loss(x, y).backward()
    F.cross_entropy(theirs(x), y).backward()
    for a, b in zip(ours.layers, peers):
        assert_close(a.weight.grad, b.weight.grad, 1e-5)
        assert_close(a.bias.grad, b.bias.grad, 1e-5)
    # The random matrices matter: with the weights instead, the first layer's gradient is another.
    before = peers[0].weight.grad.clone()
    theirs.zero_grad()
    with torch.no_grad():
        for b in peers:
            b.weight_backward.copy_(b.weight)
    F.cross_entropy(theirs(x), y).backward()
    assert (peers[0].weight.grad - before).norm() > 0.1 * before.norm()

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from lib.models.attribution import methods, scores
from lib.models.cnn import ConvNet
from tests.helpers import assert_close, raises


def net(norm=nn.BatchNorm2d, head="flatten", hidden=(8,), seed=0):
    torch.manual_seed(seed)
    model = ConvNet([6, 8], 4, head=head, hidden=hidden, size=8, norm=norm)
    x = torch.randn(64, 3, 8, 8)
    model(x)  # batch statistics other than 0 and 1
    return model.eval()


@pytest.fixture
def x(gen):
    return torch.randn(3, 3, 8, 8, generator=gen)


TARGET = torch.tensor([1, 0, 3])


def test_layer_gradients_against_cutting_the_network(x):
    model = net()
    got = methods.layer_gradients(model, x, TARGET, ["input", "stages.0", "stages.1"])
    f = model.stages[0](x).detach().requires_grad_()
    y = model.head(model.stages[1](model.pools[0](f)))
    (g,) = torch.autograd.grad(y[torch.arange(3), TARGET].sum(), f)
    assert_close(got["stages.0"].f, f)
    assert_close(got["stages.0"].g, g)
    assert_close(got["input"].g, methods.gradient(model, x, TARGET))
    assert torch.equal(got["input"].f, x)
    assert not got["stages.0"].f.requires_grad


def test_gradient_is_the_directional_derivative(x):
    model, x = net().double(), x.double()
    v = torch.randn_like(x)
    h = 1e-5
    with torch.no_grad():
        slope = (methods.pick(model(x + h * v), 2) - methods.pick(model(x - h * v), 2)) / (2 * h)
    g = methods.gradient(model, x, 2)
    assert_close((g * v).sum((1, 2, 3)), slope, 1e-6)
    assert torch.equal(methods.gradient(model, x, 2, abs=True), g.abs())


def test_input_x_gradient_is_complete_for_piecewise_linear_networks_without_biases(x):
    model = net(norm=None)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(p)
    # A ReLU network without biases is homogeneous of degree one: Euler's identity.
    total = methods.input_x_gradient(model, x, TARGET).sum((1, 2, 3))
    assert_close(total, methods.pick(model(x), TARGET).detach(), 1e-5)


@pytest.mark.parametrize("inplace", [False, True])
def test_guided_backprop_by_hand(gen, inplace):
    a, b = torch.randn(5, 4, generator=gen), torch.randn(3, 5, generator=gen)
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(inplace), nn.Linear(5, 3))
    model[0].weight.data, model[2].weight.data = a, b
    x = torch.randn(6, 4, generator=gen)
    want = ((x @ a.T > 0) * b[2].clamp(min=0)) @ a
    assert_close(methods.guided_backprop(model, x, 2), want, 1e-6)
    # The model is as before.
    plain = (x @ a.T > 0) * b[2] @ a
    assert_close(methods.gradient(model, x, 2), plain, 1e-6)


def test_grad_cam_is_cam_where_a_linear_layer_follows_the_mean(x):
    model = net(head="gap", hidden=())
    cam = methods.cam(model, x, TARGET, "stages.1", "head.1")
    grad_cam = methods.grad_cam(model, x, TARGET, "stages.1", relu=False)
    assert_close(16 * grad_cam, cam, 1e-5)  # the mean over 4 x 4 sites has the slope 1/16
    assert_close(
        cam.mean((1, 2)) + model.head[1].bias[TARGET], methods.pick(model(x), TARGET), 1e-5
    )
    assert methods.grad_cam(model, x, TARGET, "stages.1").min() >= 0


def test_fold_batchnorm_changes_nothing(x):
    model = net()
    folded = methods.fold_batchnorm(model)
    assert_close(folded(x), model(x), 1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_excitation_is_conserved(x):
    # Probability is handed down without loss; the contrast of two walks has total zero.
    model = methods.fold_batchnorm(net())
    p = methods.excitation_backprop(model, x, TARGET, "stages.0", "head.3")
    assert p.min() >= 0
    assert_close(p.sum((1, 2)), torch.ones(3), 1e-4)
    c = methods.excitation_backprop(model, x, TARGET, "stages.0", "head.3", contrastive=True)
    assert c.sum((1, 2)).abs().max() < 1e-4
    assert c.abs().sum() > 0.1


def test_excitation_by_hand(gen):
    a, b = torch.randn(5, 4, generator=gen), torch.randn(3, 5, generator=gen)
    a[:, 0], b[:, 0] = a[:, 0].abs(), b[:, 0].abs()  # every unit has something to hand down to
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    model[1].weight.data, model[3].weight.data = a, b
    nn.init.zeros_(model[1].bias)
    x = torch.rand(1, 4, generator=gen)
    h = (a @ x[0]).clamp(min=0)
    p = h * b[1].clamp(min=0)
    p = p / p.sum()
    shares = a.clamp(min=0) * x
    want = (shares / shares.sum(1, keepdim=True) * p[:, None]).sum(0)
    got = methods.excitation_backprop(model, x, 1, "0", "3")
    assert_close(got, want.sum()[None], 1e-5)


def test_models_in_training_mode_are_refused(x):
    with pytest.raises(ValueError, match=r"'stages.0.1' is in training mode"):
        methods.layer_gradients(net().train(), x, 0, ["stages.0"])


def test_method_errors(x):
    model = net()
    with pytest.raises(ValueError, match="target: allowed are 0 to 3"):
        methods.gradient(model, x, 4)
    with pytest.raises(ValueError, match="one class per image, got 2 for 3"):
        methods.gradient(model, x, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="no nn.ReLU"):
        methods.guided_backprop(nn.Linear(2, 2), torch.zeros(1, 2), 0)
    with pytest.raises(ValueError, match="is not linear over 8 channels"):
        methods.cam(model, x, 0, "stages.1", "head.1")
    with pytest.raises(ValueError, match="fold it first"):
        methods.excitation_backprop(model, x, 0, "stages.0", "head.3")
    with pytest.raises(ValueError, match="no module 'stage.0'"):
        methods.layer_gradients(model, x, 0, ["stage.0"])
    lonely = nn.Sequential(nn.Sequential(nn.BatchNorm2d(3)))
    with pytest.raises(ValueError, match="'0.0' does not follow a convolution"):
        methods.fold_batchnorm(lonely)


def test_pointing_game_by_hand():
    maps = torch.zeros(3, 6, 6)
    maps[:, 2, 3] = 1
    masks = torch.zeros(3, 6, 6, dtype=torch.bool)
    masks[0, 2, 3] = True
    masks[1, 4, 3] = True  # two pixels below
    masks[2, 4, 4] = True  # farther
    assert scores.pointing_game(maps, masks).tolist() == [True, False, False]
    assert scores.pointing_game(maps, masks, 2.0).tolist() == [True, True, False]
    assert scores.pointing_game(maps, masks, 2.3).tolist() == [True, True, True]


def test_class_mean_and_difficult():
    hits = torch.tensor([True, True, False, True])
    mean, rate = scores.class_mean(hits, torch.tensor([0, 0, 0, 2]), 4)
    assert_close(rate[[0, 2]], [2 / 3, 1.0])
    assert rate[1].isnan()
    assert_close(mean, (2 / 3 + 1) / 2)
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[:2, 0, 0] = True
    masks[2] = True
    other = torch.ones(3, 4, 4, dtype=torch.bool)
    other[1] = False
    assert scores.difficult(masks, other).tolist() == [True, False, False]


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_rank_agreement_against_scipy(gen, kind):
    a, b = torch.randn(2, 5, 4, 6, generator=gen)
    a, b = a.clamp(min=0), (b + a).round(decimals=1)  # ties
    want = [
        (stats.spearmanr if kind == "spearman" else stats.pearsonr)(p.flatten(), q.flatten())[0]
        for p, q in zip(a.numpy(), b.numpy())
    ]
    assert_close(scores.rank_agreement(a, b, kind), np.array(want), 1e-6)


def test_rank_agreement_of_monotone_and_constant_maps(gen):
    a = torch.rand(2, 5, 5, generator=gen)
    assert_close(scores.rank_agreement(a, a.exp()), torch.ones(2))
    assert_close(scores.rank_agreement(a, -a), -torch.ones(2))
    assert scores.rank_agreement(a, torch.ones(2, 5, 5)).isnan().all()


def test_score_errors():
    maps, masks = torch.rand(1, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="tol=-1"):
        scores.pointing_game(maps, masks, -1.0)
    with pytest.raises(ValueError, match="at least one has no pixel"):
        scores.pointing_game(maps, ~masks)
    with pytest.raises(ValueError, match="not finite"):
        scores.pointing_game(maps * float("nan"), masks)
    with pytest.raises(ValueError, match="hits is empty"):
        scores.class_mean(masks[0, 0, :0], torch.zeros(0, dtype=torch.long), 2)
    with pytest.raises(ValueError, match="allowed are 0 to 1"):
        scores.class_mean(masks[0, 0], torch.tensor([0, 1, 2, 0]), 2)
    with pytest.raises(ValueError, match="kind='kendall'"):
        scores.rank_agreement(maps, maps, "kendall")


def test_a_layer_that_runs_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu, self.head = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(2, 3)

        def forward(self, x):
            return self.head(self.relu(self.relu(self.conv(x)) - 0.1).mean((2, 3)))

    model, x = Twice(), torch.ones(2, 1, 5, 5)
    assert "conv" in methods.layer_gradients(model, x, 0, ["conv"])
    with pytest.raises(ValueError, match="'relu' runs more than once"):
        methods.layer_gradients(model, x, 0, ["relu"])


def test_upsampling_aligns_pixel_areas_not_corners():
    row = torch.tensor([[[[0.0, 1.0]]]])
    want = torch.tensor([[[[0.0, 0.25, 0.75, 1.0]]]])
    assert torch.allclose(methods.upsample(row, (1, 4)), want)


def test_targets_must_be_integers_one_for_each_image():
    y = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="got 2 for 3 images"):
        methods.pick(y, torch.tensor([0, 1]))
    with raises(TypeError, match="allowed are integers, got torch.float32"):
        methods.pick(y, torch.tensor([0.0, 1.0, 2.0]))

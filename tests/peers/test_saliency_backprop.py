"""The same maps as captum's."""

import pytest
import torch
from torch import nn

from lib.interpretability import saliency_backprop as sb
from lib.models.attribution import methods
from lib.models.cnn import ConvNet
from tests.helpers import assert_close

attr = pytest.importorskip("captum.attr", reason="pip install captum")

TARGET = torch.tensor([1, 0, 3])


@pytest.fixture
def setting():
    torch.manual_seed(0)
    model = ConvNet([5, [6, 7]], 4, head="flatten", hidden=(8,), size=12, norm=nn.BatchNorm2d)
    model(torch.randn(64, 3, 12, 12))
    return model.eval().double(), torch.randn(3, 3, 12, 12, dtype=torch.float64)


@pytest.mark.parametrize("layer", ["stages.0", "stages.1"])
@pytest.mark.parametrize("relu", [True, False])
def test_grad_cam(setting, layer, relu):
    model, x = setting
    peer = attr.LayerGradCam(model, model.get_submodule(layer))
    want = peer.attribute(x, target=TARGET, relu_attributions=relu).detach()
    assert_close(methods.grad_cam(model, x, TARGET, layer, relu)[:, None], want, 1e-10)
    if relu:
        assert_close(sb.grad_cam_point(model, x, TARGET, layer), want, 1e-10)


@pytest.mark.parametrize("layer", ["stages.0", "stages.1"])
def test_linear_approximation(setting, layer):
    model, x = setting
    peer = attr.LayerGradientXActivation(model, model.get_submodule(layer))
    product = peer.attribute(x, target=TARGET).detach()
    for how in sb.AGGREGATES:
        got = sb.grid_saliency(model, x, TARGET, layer, "scaling", how)
        assert_close(got, sb.aggregate(product, how), 1e-10, how)


def test_gradient_and_gradient_times_input(setting):
    model, x = setting
    want = attr.Saliency(model).attribute(x.clone(), target=TARGET)
    assert_close(methods.gradient(model, x, TARGET, abs=True), want, 1e-10)
    want = attr.InputXGradient(model).attribute(x.clone(), target=TARGET)
    assert_close(methods.input_x_gradient(model, x, TARGET), want.detach(), 1e-10)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_guided_backprop(setting):
    model, x = setting
    want = attr.GuidedBackprop(model).attribute(x.clone(), target=TARGET)
    assert_close(methods.guided_backprop(model, x, TARGET), want, 1e-10)

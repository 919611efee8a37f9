import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.core.fitting import inner_sgd
from lib.core.hooks import patch
from lib.interpretability import saliency_backprop as sb
from lib.kernels.saliency_stats import saliency_stats
from lib.models.attribution import methods
from lib.models.cnn import ConvNet
from tests.helpers import assert_close, raises

TARGET = torch.tensor([1, 0, 3])


def net(head="flatten", hidden=(8,), dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    model = ConvNet([5, 7], 4, head=head, hidden=hidden, size=10, norm=nn.BatchNorm2d)
    model(torch.randn(64, 3, 10, 10))
    return model.eval().to(dtype)


@pytest.fixture
def x(gen):
    return torch.randn(3, 3, 10, 10, generator=gen, dtype=torch.float64)


def layers(gen, shape=(2, 4, 5, 6)):
    return [torch.randn(shape, generator=gen, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("phase", sb.PHASES)
@pytest.mark.parametrize("layer", ["stages.0", "stages.1"])
def test_summands_add_up_to_the_gradient_of_an_inserted_identity(x, phase, layer):
    model = net()
    f, g = methods.layer_gradients(model, x, TARGET, [layer])[layer]
    total = sb.extract(f, g, phase).sum((0, 2, 3))
    assert_close(total, sb.identity_gradient(model, x, TARGET, layer, phase), 1e-10)


@pytest.mark.parametrize("phase", sb.PHASES)
@pytest.mark.parametrize("how", sb.AGGREGATES)
def test_closed_forms_equal_the_definition(gen, phase, how):
    f, g = layers(gen)
    for a, s in ((f, g), (f.clamp(min=0), g), (f.abs() + 1, g.abs() + 1), (-f.abs(), g)):
        want = sb.aggregate(sb.extract(a, s, phase), how)
        assert_close(sb.closed_form(a, s, phase, how), want, 1e-10, f"{phase} {how}")


CONVS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (2, 0)},
    {"kernel_size": 3, "dilation": 2, "padding": 2},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 2, "padding": "valid", "groups": 2},
    {"kernel_size": 3, "padding": 1, "groups": 4},
]


@pytest.mark.parametrize("options", CONVS)
def test_real_convolutions(gen, options):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, **options).double()
    f = torch.randn(2, 4, 7, 6, generator=gen, dtype=torch.float64)
    out = conv(f)
    g = torch.randn(out.shape, generator=gen, dtype=torch.float64)
    (weight,) = torch.autograd.grad((out * g).sum(), conv.weight)
    t = sb.extract(f, g, "real", conv)
    assert_close(t.sum((0, 2, 3)), weight.flatten(), 1e-10)
    for how in sb.AGGREGATES:
        want = sb.aggregate(t, how)
        assert_close(sb.closed_form(f, g, "real", how, conv), want, 1e-10, how)


def test_real_phase_of_a_model(x):
    model = net()
    got = sb.grid_saliency(model, x, TARGET, "stages.1.0", "real", "norm")
    inside = model.pools[0](model.stages[0](x)).detach()
    before = model.stages[1][0](inside).requires_grad_()
    y = model.head(model.stages[1][1:](before))
    (g,) = torch.autograd.grad(methods.pick(y, TARGET).sum(), before)
    want = sb.aggregate(sb.extract(inside, g, "real", model.stages[1][0]), "norm")
    assert_close(got, want, 1e-10)


def test_normgrad_is_the_product_of_two_norms(x):
    model = net()
    f, g = methods.layer_gradients(model, x, TARGET, ["stages.0"])["stages.0"]
    want = f.norm(dim=1, keepdim=True) * g.norm(dim=1, keepdim=True)
    assert_close(sb.normgrad(model, x, TARGET, "stages.0"), want, 1e-12)


def test_known_methods_are_points_of_the_grid(x):
    model = net()
    gradient = sb.grid_saliency(model, x, TARGET, "input", *sb.NAMED["gradient"])
    assert_close(gradient[:, 0], methods.gradient(model, x, TARGET).abs().amax(1), 1e-12)
    linear = sb.grid_saliency(model, x, TARGET, "input", *sb.NAMED["linear approximation"])
    assert_close(linear[:, 0], methods.input_x_gradient(model, x, TARGET).sum(1), 1e-12)
    cam = sb.grad_cam_point(model, x, TARGET, "stages.0")
    assert_close(cam[:, 0], methods.grad_cam(model, x, TARGET, "stages.0"), 1e-12)
    with methods.guided(model):
        guided = sb.grid_saliency(model, x, TARGET, "input", "bias", "abs_max")
    assert_close(guided[:, 0], methods.guided_backprop(model, x, TARGET).abs().amax(1), 1e-12)


@pytest.mark.parametrize("hidden", [(), (8,)])
def test_grad_cam_is_the_linear_approximation_where_the_mean_is_taken(x, hidden):
    # Claim 2: the gradient is constant in space there, and only there.
    model = net("gap", hidden)
    for layer, same in (("stages.1", True), ("stages.0", False)):
        linear = sb.grid_saliency(model, x, TARGET, layer, "scaling", "sum")
        cam = sb.grid_saliency(model, x, TARGET, layer, "scaling", "sum", mean_gradient=True)
        error = float((linear - cam).norm() / linear.norm())
        assert error < 1e-10 if same else error > 0.05


def test_normgrad_at_the_pooled_layer_does_not_know_the_class(x):
    model = net("gap", ())
    maps = lambda m, x, t: sb.normgrad(m, x, t, "stages.1")
    assert_close(sb.class_sensitivity(maps, model, x, "pearson"), torch.ones(3), 1e-6)
    assert_close(sb.class_sensitivity(maps, model, x), torch.ones(3), 1e-2)


def test_grid_maps_are_the_closed_forms(x):
    found = methods.layer_gradients(net(), x, TARGET, ["stages.0", "stages.1"])
    maps = sb.grid_maps(found)
    assert len(maps) == 2 * 5 * 5
    for (name, phase, how), m in maps.items():
        assert_close(m, sb.closed_form(*found[name], phase, how), 1e-12)


def test_half_precision_norms_do_not_overflow():
    f = torch.full((1, 8, 2, 2), 200.0, dtype=torch.float16)
    want = torch.full((1, 1, 2, 2), 8 * 200.0**2)
    assert_close(sb.closed_form(f, f, "conv1x1", "norm"), want, 1e-6)


def test_combination(gen):
    a, b = (torch.rand(2, 1, s, s, generator=gen) for s in (4, 8))
    plain = sb.combine_layers([a, b], 8, floor=0.01)
    up = sb.min_max(methods.upsample(a, 8)) + 0.01
    down = sb.min_max(b) + 0.01
    assert_close(plain, up * down, 1e-6)
    assert_close(sb.combine_layers([a, b], 8, (1.0, 1.0), floor=0.01), plain.sqrt(), 1e-6)
    assert_close(sb.combine_layers([a, b], 8, (3.0, 0.0), floor=0.01), up, 1e-6)
    mean = sb.combine_layers([a, b], 8, (1.0, 3.0), how="sum", floor=0.01)
    assert_close(mean, 0.25 * up + 0.75 * down, 1e-6)
    # Only ranks within a map's scale count: moving and scaling a map changes nothing.
    assert_close(sb.combine_layers([5 * a - 3, b], 8, floor=0.01), plain, 1e-5)
    assert torch.isfinite(sb.combine_layers([torch.ones(1, 1, 4, 4), b[:1]], 8)).all()
    many = sb.combine_layers([a] * 30, 8, floor=0.0)
    assert torch.isfinite(many).all()


def saliency(model, x, target):
    return sb.normgrad(model, x, target, "stages.0")


@pytest.mark.parametrize("order", [1, 2])
def test_meta_saliency_without_a_step_is_saliency(x, order):
    model = net()
    got = sb.meta_saliency(saliency, model, x, TARGET, eps=0.0, order=order)
    assert_close(got, saliency(model, x, TARGET), 1e-10)


def test_meta_saliency_of_order_one_uses_the_stepped_network(x):
    model = net()
    got = sb.meta_saliency(saliency, model, x, TARGET, eps=0.05)
    for i in range(3):
        theta = {n: p.detach() for n, p in model.named_parameters()}

        def loss(p, i=i):
            y = torch.func.functional_call(model, p, (x[i : i + 1],))
            return F.cross_entropy(y, TARGET[i : i + 1])

        other = net()
        other.load_state_dict(inner_sgd(theta, loss, 0.05, 1), strict=False)
        assert_close(got[i : i + 1], saliency(other, x[i : i + 1], TARGET[i : i + 1]), 1e-10)
    assert_close(saliency(model, x, TARGET), saliency(net(), x, TARGET), 1e-12)  # unchanged


def test_meta_saliency_of_order_two_is_the_total_derivative(x):
    model, layer = net(), "stages.0"
    image, target, eps = x[:1], TARGET[:1], 0.05

    def total(probe):
        """Score after the step, with a zero added to the activation in both passes."""
        with patch(model, {layer: lambda out: out + probe}):
            stepped = sb.OneStep(model, eps, 2, F.cross_entropy)
            stepped.aim(image, target)
            return methods.pick(stepped(image), target).sum().detach()

    seen = {}

    def spy(m, x, t):
        seen["g"] = methods.layer_gradients(m, x, t, [layer])[layer].g
        return seen["g"]

    sb.meta_saliency(spy, model, image, target, eps, 2)
    v = torch.randn_like(seen["g"])
    v[(model.stages[0](image) == 0)] = 0  # stay on one side of the kinks
    h = 1e-5
    slope = (total(h * v) - total(-h * v)) / (2 * h)
    assert_close((seen["g"] * v).sum(), slope, 1e-5)
    first = {}
    sb.meta_saliency(
        lambda m, x, t: first.setdefault("g", methods.layer_gradients(m, x, t, [layer])[layer].g),
        model, image, target, eps, 1,
    )  # fmt: skip
    assert (seen["g"] - first["g"]).norm() > 1e-3 * first["g"].norm()


@pytest.mark.parametrize(
    "method",
    [
        sb.grad_cam_point,
        lambda m, x, t, l: sb.grid_saliency(m, x, t, l, "conv3x3_depthwise", "filter_norm"),
        lambda m, x, t, l: methods.gradient(m, x, t),
    ],
)
@pytest.mark.parametrize("order", [1, 2])
def test_meta_saliency_takes_any_method(x, method, order):
    model = net()
    maps = sb.meta_saliency(
        lambda m, x, t: method(m, x, t, "stages.0"), model, x, TARGET, 0.1, order
    )
    assert torch.isfinite(maps).all()
    assert len(maps) == 3


def stepped_by_hand(model, image, target, eps):
    """A deep copy of the model, one plain gradient step further."""
    other = copy.deepcopy(model)
    F.cross_entropy(other(image), target).backward()
    with torch.no_grad():
        for p in other.parameters():
            p -= eps * p.grad
    return other


def test_meta_saliency_of_guided_backpropagation_takes_an_unguided_step(x):
    model = net()
    got = sb.meta_saliency(methods.guided_backprop, model, x, TARGET, 0.05)
    for i in range(3):
        image, target = x[i : i + 1], TARGET[i : i + 1]
        other = stepped_by_hand(model, image, target, 0.05)
        assert_close(got[i : i + 1], methods.guided_backprop(other, image, target), 1e-10)
    with raises(ValueError, match="guided backpropagation changes every backward pass"):
        sb.meta_saliency(methods.guided_backprop, model, x, TARGET, 0.05, order=2)


def test_one_step_is_in_its_models_mode():
    assert not sb.OneStep(net(), 0.1, 1, F.cross_entropy).training
    assert sb.OneStep(net().train(), 0.1, 1, F.cross_entropy).training


def test_batch_statistics_are_left_alone(x, gen):
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    for call in (
        lambda: sb.class_sensitivity(saliency, model, x),
        lambda: sb.identity_gradient(model, x, TARGET, "stages.0", "bias"),
        lambda: methods.gradient(model, x, TARGET),
        lambda: methods.guided_backprop(model, x, TARGET),
        lambda: sb.meta_saliency(saliency, model, x, TARGET),
        lambda: sb.randomization_curve(saliency, model, x, TARGET, ["head"], gen),
    ):
        with raises(ValueError, match="is in training mode"):
            call()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_class_sensitivity_compares_most_with_least_probable(x):
    model, asked = net(), []

    def spy(m, x, t):
        asked.append(t)
        return methods.gradient(m, x, t).sum(1, keepdim=True)

    rho = sb.class_sensitivity(spy, model, x)
    y = model(x)
    assert torch.equal(asked[0], y.argmax(1))
    assert torch.equal(asked[1], y.argmin(1))
    assert (rho < 0.99).all()


def test_min_max_scales_each_image_by_itself(gen):
    maps = (
        torch.rand(3, 1, 4, 4, generator=gen)
        * torch.tensor([1.0, 10.0, 100.0])[:, None, None, None]
    )
    scaled = sb.min_max(maps)
    assert torch.equal(scaled.amax((1, 2, 3)), torch.ones(3))
    assert torch.equal(scaled.amin((1, 2, 3)), torch.zeros(3))
    assert (sb.min_max(torch.full((1, 1, 4, 4), 3.0)) == 0).all()


def test_meta_saliency_uphill(x):
    model = net()
    down = sb.meta_saliency(saliency, model, x, TARGET, 0.05)
    up = sb.meta_saliency(saliency, model, x, TARGET, 0.05, ascend=True)
    assert (down - up).norm() > 1e-3 * down.norm()


def test_cascade_reinitializes_from_the_top(x, gen):
    model = net(dtype=torch.float32)
    before = {n: p.clone() for n, p in model.named_parameters()}
    state = torch.get_rng_state()
    changed = set()
    for part, copied in sb.cascade(model, ["head", "stages.1"], gen):
        now = dict(copied.named_parameters())
        changed = {n for n in before if not torch.equal(now[n], before[n])}
        # Batch norms start as they were (ones and zeros), which here makes them look unchanged.
        assert any(n.startswith(part) for n in changed)
    assert not any(n.startswith("stages.0") for n in changed)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_cascade_keeps_what_it_randomized_and_obeys_its_generator():
    model = net(dtype=torch.float32)
    steps = ["head", ("stages.1.0", "stages.1.1")]

    def run(seed):
        gen = torch.Generator().manual_seed(seed)
        return [(part, copy.deepcopy(m.state_dict())) for part, m in sb.cascade(model, steps, gen)]

    first, again, other = run(0), run(0), run(1)
    assert [part for part, _ in first] == ["head", "stages.1.0, stages.1.1"]
    for name in model.head.state_dict():
        assert torch.equal(first[1][1]["head." + name], first[0][1]["head." + name])
    assert torch.equal(first[1][1]["stages.1.1.running_var"], torch.ones(7))
    assert not torch.equal(first[0][1]["stages.1.1.running_var"], torch.ones(7))
    for name, value in first[1][1].items():
        assert torch.equal(value, again[1][1][name])
    weight = "stages.1.0.weight"
    assert not torch.equal(first[1][1][weight], other[1][1][weight])


def test_randomization_curve_leaves_constant_maps_out(x, gen):
    model, x = net(dtype=torch.float32), x.float()
    trained = model.head[-1].weight.detach().clone()

    def half(m, x, t):  # once the head has changed, the first map is constant
        maps = x.sum(1, keepdim=True).clone()
        if not torch.equal(m.head[-1].weight, trained):
            maps[0] = 1.0
        return maps

    curve = sb.randomization_curve(half, model, x, TARGET, ["head"], gen)
    assert_close(curve.defined.to_numpy(), [1.0, 2 / 3], 1e-6)
    assert_close(curve.spearman.to_numpy(), [1.0, 1.0], 1e-6)


def test_randomization_curve(x, gen):
    model, x = net(dtype=torch.float32), x.float()
    curve = sb.randomization_curve(saliency, model, x, TARGET, ["head", "stages.1"], gen)
    assert curve.part.tolist() == ["trained", "head", "stages.1"]
    assert_close(curve.loc[0, ["spearman", "ssim"]].to_numpy(float), [1.0, 1.0], 1e-6)
    assert (curve.spearman[1:] < 1).all()
    # A map that looks at the image alone survives everything: the check's positive control.
    edges = sb.randomization_curve(
        lambda m, x, t: x.diff(dim=-1).abs().sum(1, keepdim=True), model, x, TARGET, ["head"], gen
    )
    assert_close(edges.spearman.to_numpy(), [1.0, 1.0], 1e-6)


def test_scenes(gen):
    scenes = sb.shape_scenes(20, gen)
    assert scenes.x.shape == (20, 3, 32, 32)
    assert 0 <= scenes.x.min() <= scenes.x.max() <= 1
    assert (scenes.y.sum(1) == 2).all()
    assert torch.equal(scenes.y.nonzero()[:, 1].reshape(20, 2), scenes.pair.sort(1).values)
    assert scenes.masks.flatten(2).any(2).all()
    for k in range(2):  # shapes are brighter than what surrounds them
        inside = (scenes.x.mean(1) * scenes.masks[:, k]).sum((1, 2)) / scenes.masks[:, k].sum(
            (1, 2)
        )
        assert (inside > 0.5).all()


def test_errors(x, gen):
    f, g = layers(gen)
    model, conv = net(), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect").double()
    with pytest.raises(ValueError, match="how='mean': allowed are sum, filter_norm"):
        sb.aggregate(f, "mean")
    with pytest.raises(ValueError, match="phase='real' needs conv="):
        sb.extract(f, g, "real")
    with pytest.raises(ValueError, match="phase='bias' takes no conv="):
        sb.extract(f, g, "bias", conv)
    with pytest.raises(ValueError, match="pads with 'reflect'"):
        sb.extract(f, g, "real", conv)
    with pytest.raises(ValueError, match=r"one shape, got \(2, 4, 5, 6\), \(2, 3, 5, 6\)"):
        sb.closed_form(f, g[:, :3], "conv1x1", "norm")
    with pytest.raises(ValueError, match="maps 4 to 4 channels; f has 4, g 3"):
        sb.extract(f, g[:, :3], "real", nn.Conv2d(4, 4, 3, padding=1))
    with pytest.raises(ValueError, match="lopsided"):
        sb.extract(f, g, "real", nn.Conv2d(4, 4, 2, padding="same"))
    plain = nn.Conv2d(4, 4, 3, padding=1)
    with raises(ValueError, match=r"needs g of shape \(2, 4, 5, 6\), got \(1, 4, 5, 6\)"):
        sb.closed_form(f, g[:1], "real", "norm", plain)
    with raises(ValueError, match=r"needs g of shape \(2, 4, 5, 6\), got \(2, 4, 4, 6\)"):
        sb.closed_form(f, g[:, :, :4], "real", "norm", plain)
    with pytest.raises(RuntimeError, match="aim"):
        sb.OneStep(model, 0.1, 1, F.cross_entropy)(x)
    with pytest.raises(ValueError, match="x is empty"):
        sb.meta_saliency(saliency, model, x[:0], 0)
    with pytest.raises(ValueError, match="got 2 for 3 images"):
        sb.meta_saliency(saliency, model, x, TARGET[:2])
    with pytest.raises(ValueError, match="is no nn.Conv2d"):
        sb.grid_saliency(model, x, 0, "stages.0", "real")
    with pytest.raises(ValueError, match=r"needs saliency_stats\(f, g, of='d'\)"):
        sb.from_statistics(saliency_stats(f, g), "conv3x3_depthwise", "norm")
    with pytest.raises(ValueError, match="phase='real': allowed are bias"):
        sb.grid_maps({"stages.0": methods.Layer(f, g)}, ["real"])
    with pytest.raises(ValueError, match="phase='real': allowed are bias"):
        sb.from_statistics(saliency_stats(f, g), "real", "norm")
    with pytest.raises(ValueError, match="phase='real'"):
        sb.identity_gradient(model, x, 0, "stages.0", "real")
    with pytest.raises(ValueError, match="weights="):
        sb.combine_layers([f[:, :1]], 8, (1.0, 2.0))
    with pytest.raises(ValueError, match="'product' and 'sum'"):
        sb.combine_layers([f[:, :1]], 8, how="mean")
    with pytest.raises(ValueError, match="maps: 0"):
        sb.combine_layers([], 8)
    with pytest.raises(ValueError, match="order=3"):
        sb.meta_saliency(saliency, model, x, 0, order=3)
    with pytest.raises(ValueError, match="eps=-1"):
        sb.meta_saliency(saliency, model, x, 0, eps=-1.0)
    with pytest.raises(ValueError, match="'pools' has nothing"):
        list(sb.cascade(model, ["pools"], gen))

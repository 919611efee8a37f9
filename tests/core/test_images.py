import math

import pytest
import torch

from lib.core.data.images import (
    KINDS,
    Shape,
    Shapes,
    boxes,
    distance,
    draw,
    scatter,
    texture,
)
from tests.helpers import assert_close

AREA = {  # of a shape whose surrounding circle has radius 1
    "disc": math.pi,
    "square": 1.6**2,
    "triangle": 3 * 3**0.5 / 4,
    "cross": 2 * 2 * 0.56 - 0.56**2,
    "ring": math.pi * (1 - 0.4**2),
    "bar": 2 * 0.56,
}


def one(kind, radius=30.0, size=80, **options):
    return draw([Shape(kind, (size / 2, size / 2), radius, **options)], size)


@pytest.mark.parametrize("kind", KINDS)
def test_areas(kind):
    scene = one(kind, angle=0.37)  # no edge along the pixel grid
    assert_close(float(scene.masks.sum()) / 30**2, AREA[kind], 0.02, kind)
    # Smooth edges cover the same area as the sharp mask.
    assert_close(float(scene.image[0].sum()), float(scene.masks.sum()), 0.02, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fill", [1.0, 0.4])
def test_distances_are_those_to_the_outline(kind, fill):
    # A signed distance has a gradient of length 1 almost everywhere, and its absolute value is
    # the distance to the nearest sign change.
    shapes = Shapes(
        torch.tensor([[list(KINDS).index(kind)]]),
        torch.tensor([[[64.0, 64.0]]]),
        torch.tensor([[40.0]]),
        torch.tensor([[0.4]]),
        torch.tensor([[fill]]),
        torch.ones(1, 1, 3),
    )
    d = distance(shapes, 128)[0, 0]
    inside = d < 0
    edge = torch.zeros_like(inside)
    edge[:, 1:] |= inside[:, 1:] != inside[:, :-1]
    edge[1:] |= inside[1:] != inside[:-1]
    at = edge.nonzero().float()
    grid = torch.stack(torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij"), -1)
    true = torch.cdist(grid.reshape(-1, 2).float(), at).min(1).values.reshape(128, 128)
    outside = ~inside
    assert (d.abs() - true).abs()[outside].max() < 1.3
    # Inside, unions (cross, outlines) give a bound: never farther than the truth.
    assert (d.abs() - true)[inside].max() < 1.3


def test_rotation_by_symmetry_and_quarter_turns():
    a, b = one("square"), one("square", angle=math.pi / 2)
    assert torch.equal(a.masks, b.masks)
    bar, turned = one("bar"), one("bar", angle=math.pi / 2)
    assert torch.equal(bar.masks[0].T, turned.masks[0])


def test_batch_equals_one_by_one(gen):
    shapes = scatter(7, list(KINDS), 32, gen, k=3, gap=9.0)
    batch = draw(shapes, 32, 0.25, chunk=3)
    for i in range(7):
        single = [
            Shape(
                list(KINDS)[shapes.kind[i, j]],
                tuple(shapes.center[i, j].tolist()),
                float(shapes.radius[i, j]),
                float(shapes.angle[i, j]),
                1.0,
                tuple(shapes.color[i, j].tolist()),
            )
            for j in range(3)
        ]
        scene = draw(single, 32, 0.25)
        assert_close(batch.image[i], scene.image, 1e-6)
        assert torch.equal(batch.masks[i], scene.masks)
        assert torch.equal(batch.boxes[i], scene.boxes)


def test_later_shapes_hide_earlier_ones():
    below, above = Shape("disc", (16.0, 16.0), 10.0), Shape("square", (16.0, 16.0), 8.0)
    scene = draw([below, above], 32)
    assert not (scene.masks[0] & scene.masks[1]).any()
    assert scene.masks[0].any()
    hidden = draw([above, Shape("disc", (16.0, 16.0), 15.0)], 32)
    assert not hidden.masks[0].any()
    assert hidden.boxes[0].tolist() == [0, 0, 0, 0]


def test_boxes():
    mask = torch.zeros(2, 6, 8, dtype=torch.bool)
    mask[0, 2:4, 1:7] = True
    assert boxes(mask).tolist() == [[1, 2, 7, 4], [0, 0, 0, 0]]


def test_scatter_keeps_its_promises(gen):
    shapes = scatter(300, ["disc", "ring", "bar"], 32, gen, k=2)
    assert (shapes.kind[:, 0] != shapes.kind[:, 1]).all()
    gap = (shapes.center[:, 0] - shapes.center[:, 1]).norm(dim=1)
    assert gap.min() >= 13
    assert (shapes.center - shapes.radius[..., None]).min() >= 0
    assert (shapes.center + shapes.radius[..., None]).max() <= 32
    again = scatter(300, ["disc", "ring", "bar"], 32, torch.Generator().manual_seed(0), k=2)
    assert torch.equal(shapes.center, again.center)


def test_texture_has_the_stated_moments(gen):
    noise = texture(0.3, coarse=0.06, fine=0.08, block=4)((200, 3, 16, 16), gen)
    assert_close(float(noise.mean()), 0.3, 0.02)
    assert_close(float(noise.var()), 0.06**2 + 0.08**2, 0.05)
    same_block = ((noise[..., 0, 0] - 0.3) * (noise[..., 3, 3] - 0.3)).mean()
    assert_close(float(same_block), 0.06**2, 0.3)


def test_errors(gen):
    with pytest.raises(ValueError, match="kind='star': allowed are disc, square"):
        draw([Shape("star", (4.0, 4.0), 2.0)], 8)
    with pytest.raises(ValueError, match="size=0"):
        draw([Shape("disc", (4.0, 4.0), 2.0)], 0)
    with pytest.raises(ValueError, match="radius must be positive"):
        draw([Shape("disc", (4.0, 4.0), 0.0)], 8)
    with pytest.raises(ValueError, match="fill must be in"):
        draw([Shape("disc", (4.0, 4.0), 2.0, fill=0.0)], 8)
    with pytest.raises(ValueError, match="gen=None"):
        draw([Shape("disc", (4.0, 4.0), 2.0)], 8, texture())
    with pytest.raises(ValueError, match="shapes is empty"):
        draw([], 8)
    with pytest.raises(ValueError, match="k=3: allowed is 1 to 2"):
        scatter(1, ["disc", "ring"], 32, gen, k=3)
    with pytest.raises(ValueError, match="gap=90"):
        scatter(1, ["disc", "ring"], 32, gen, gap=90.0)


def test_shapes_wider_than_the_image_are_refused(gen):
    with pytest.raises(ValueError, match="a shape that wide does not fit 10 pixels"):
        scatter(3, ["disc", "ring"], 10, gen, radius=(4.0, 5.5), gap=1.0)

import pytest
import torch

from lib.core.data.points import gaussian_clusters, sphere, toy2d
from tests.helpers import raises


def test_clusters_have_their_means_and_labels(gen):
    means = torch.tensor([[-3.0, 0.0], [0.0, 3.0], [3.0, 0.0], [0.0, -3.0]])
    x, y = gaussian_clusters(means, 0.5, 4000, gen, modes=2)
    assert x.shape == (16_000, 2)
    assert y.unique().tolist() == [0, 1]
    for i, center in enumerate(means):
        mine = x[i * 4000 : (i + 1) * 4000]
        assert (mine.mean(0) - center).abs().max() < 0.04
        assert (mine.std(0) - 0.5).abs().max() < 0.03
        assert (y[i * 4000 : (i + 1) * 4000] == i % 2).all()


@pytest.mark.parametrize("shape", ["moons", "rings", "spiral", "xor"])
def test_toy_classes_need_more_than_a_line(gen, shape):
    x, y = toy2d(shape, 600, 0.02, gen)
    assert x.shape == (600, 2)
    assert abs(int(y.sum()) - 300) <= (60 if shape == "xor" else 0)
    design = torch.cat([x, torch.ones(600, 1)], -1)
    sign = 2.0 * y[:, None] - 1
    line = design @ torch.linalg.lstsq(design, sign).solution
    assert ((line > 0)[:, 0] == y).float().mean() < 0.93
    # The nearest other point tells the class: the shape is one, not noise.
    distance = torch.cdist(x, x).fill_diagonal_(torch.inf)
    assert (y[distance.argmin(1)] == y).float().mean() > 0.95
    assert (y[:20] == y[0]).float().mean() < 1  # in random order


def test_sphere_is_uniform(gen):
    x = sphere(40_000, 3, gen, torch.float64)
    assert (x.norm(dim=-1) - 1).abs().max() < 1e-12
    assert x.mean(0).abs().max() < 0.02
    # Archimedes: every coordinate of the 2-sphere is uniform on [-1, 1].
    z = x[:, 2].sort().values
    assert (z - torch.linspace(-1, 1, len(z), dtype=torch.float64)).abs().max() < 0.03
    assert sphere(0, 2, gen).shape == (0, 2)


def test_errors(gen):
    with raises(ValueError, match="std=-1"):
        gaussian_clusters(torch.zeros(2, 2), -1.0, 3, gen)
    with raises(ValueError, match="modes=2"):
        gaussian_clusters(torch.zeros(3, 2), 1.0, 3, gen, modes=2)
    with raises(ValueError, match="n=0"):
        gaussian_clusters(torch.zeros(3, 2), 1.0, 0, gen)
    with raises(ValueError, match="shape='star'"):
        toy2d("star", 10, 0.1, gen)
    with raises(ValueError, match="n=1"):
        toy2d("xor", 1, 0.1, gen)
    with raises(ValueError, match="noise=-0.1"):
        toy2d("xor", 10, -0.1, gen)
    with raises(ValueError, match="d=0"):
        sphere(3, 0, gen)

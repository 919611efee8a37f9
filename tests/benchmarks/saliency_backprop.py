"""Saliency maps beside captum's, and closed forms beside the summands written out.

The same images, classes and layer on both sides; outputs are compared before anything is timed.
"""

from __future__ import annotations

import torch
from torch import nn

from lib.interpretability import saliency_backprop as sb
from lib.kernels.saliency_stats import saliency_stats
from lib.models.attribution import methods
from lib.models.cnn import ConvNet
from tests.benchmarks._timing import compare


def main(images: int = 32, channels: int = 32, side: int = 16) -> list[dict]:
    """One row per comparison: name, peer, seconds, peer_seconds, ratio (above 1: we are faster)."""
    gen = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = ConvNet([16, 32, 48], 6, head="gap", norm=nn.BatchNorm2d).eval()
    x = torch.rand(images, 3, 32, 32, generator=gen)
    target = torch.randint(6, (images,), generator=gen)
    layer = "stages.1"
    f = torch.randn(images, channels, side, side, generator=gen)
    g = torch.randn(images, channels, side, side, generator=gen)

    def one_pass(phase: str) -> torch.Tensor:
        stats = saliency_stats(f, g, sb.NEEDS[phase])
        return torch.cat([sb.from_statistics(stats, phase, how) for how in sb.AGGREGATES], 1)

    def written_out(phase: str) -> torch.Tensor:
        summands = sb.extract(f, g, phase)
        return torch.cat([sb.aggregate(summands, how) for how in sb.AGGREGATES], 1)

    work = [
        (f"{phase}, all aggregations", "summands written out",
         lambda phase=phase: one_pass(phase), lambda phase=phase: written_out(phase), 1e-4)
        for phase in ("scaling", "conv1x1", "conv3x3", "conv3x3_depthwise")
    ]  # fmt: skip
    try:
        from captum import attr
    except ImportError:
        attr = None
    if attr is not None:
        module = model.get_submodule(layer)
        cam = attr.LayerGradCam(model, module)
        product = attr.LayerGradientXActivation(model, module)
        plain = attr.Saliency(model)
        work += [
            ("Grad-CAM", "captum LayerGradCam",
             lambda: methods.grad_cam(model, x, target, layer)[:, None],
             lambda: cam.attribute(x, target=target, relu_attributions=True), 1e-4),
            ("linear approximation", "captum LayerGradientXActivation",
             lambda: sb.grid_saliency(model, x, target, layer, "scaling", "sum"),
             lambda: product.attribute(x, target=target).sum(1, keepdim=True), 1e-4),
            ("gradient", "captum Saliency",
             lambda: methods.gradient(model, x, target, abs=True),
             lambda: plain.attribute(x.clone(), target=target), 1e-4),
        ]  # fmt: skip
    return [compare(*row, repeats=7) for row in work]


if __name__ == "__main__":
    for row in main():
        print("{name}: {seconds:.4f} s, {peer}: {peer_seconds:.4f} s, x{ratio:.1f}".format(**row))

"""What local learning is compared with: five ways to train the same physical layers.

``PhysicalClassifier`` holds the maps of a network that ends in class logits. They are trained
through a digital twin and deployed (in silico; ideal when the twin is perfect), by physics-aware
training (forward on the device, backward through the twin; L. Wright et al., Nature 601, 2022), or
by direct feedback alignment with the device forward (M. Nakajima et al., Nature Communications 13,
2022). ``Reservoir`` trains nothing but a linear read-out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.beyond_backprop.physical_networks.devices import (
    DigitalTwin,
    PhysicalLayer,
    check_chain,
)
from lib.beyond_backprop.physical_networks.local import RunningNorm, unit_magnitude
from lib.core.fitting import progress
from lib.core.linalg import ridge
from lib.core.seeds import batch_indices
from lib.models.init import initialize_

Physics = Callable[[Tensor], Tensor]


class PhysicalClassifier(nn.Module):
    """Device, running normalization, linear map, for every stage; the last map gives logits.

    The maps of :class:`PhysicalNetwork` without label inputs: a sample is put behind zeros where
    the first device has more inputs than the sample.

    Args:
        widths: outputs of the maps, the last one the number of classes.

    Raises:
        ValueError: layers and widths that do not fit.
    """

    def __init__(
        self,
        layers: Sequence[PhysicalLayer],
        widths: Sequence[int],
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_chain(layers, widths)
        self.layers = list(layers)
        self.norms = nn.ModuleList(RunningNorm(layer.n_out) for layer in layers)
        self.maps = nn.ModuleList(
            nn.Linear(layer.n_out, width) for layer, width in zip(layers, widths)
        )
        initialize_(self, "torch", gen=gen)
        # Random feedback for direct feedback alignment: from the classes to each hidden map.
        self.feedback = [
            torch.randn(widths[-1], w, generator=gen) / widths[-1] ** 0.5 for w in widths[:-1]
        ]

    def answers(
        self, x: Float[Tensor, "b d"], physics: Sequence[Physics] | None = None
    ) -> tuple[list[Float[Tensor, "b m"]], Float[Tensor, "b classes"]]:
        """What each map was given, and the logits.

        Args:
            physics: one function a stage in the place of the devices, e.g. twins.

        Raises:
            ValueError: samples of more numbers than the first device has inputs.
        """
        h, given = _behind_zeros(x, self.layers[0]), []
        for f, norm, m in zip(physics or self.layers, self.norms, self.maps):
            given.append(norm(f(unit_magnitude(h))))
            h = m(given[-1])
        return given, h

    def forward(
        self, x: Float[Tensor, "b d"], physics: Sequence[Physics] | None = None
    ) -> Float[Tensor, "b classes"]:
        return self.answers(x, physics)[1]

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "b d"]) -> Int[Tensor, "b"]:
        """The label with the largest logit, on the devices."""
        self.eval()
        return self(x).argmax(1)

    @torch.no_grad()
    def recalibrate(self, x: Float[Tensor, "n d"]) -> PhysicalClassifier:
        """Measures the normalization's statistics anew, on the devices: needs no labels.

        Raises:
            ValueError: no samples.
        """
        if len(x) == 0:
            raise ValueError(f"x has shape {tuple(x.shape)}: allowed are one or more samples")
        for norm in self.norms:
            norm.batches.zero_()
            norm.train()
        self(x)
        return self.eval()


class _Measured(torch.autograd.Function):
    """Forward what the device said; backward the twin's Jacobian at the same input."""

    @staticmethod
    def forward(ctx, x, device, twin):
        ctx.save_for_backward(x)
        ctx.twin = twin
        return device(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (back,) = torch.autograd.grad(ctx.twin(x), x, g)
        return back, None, None


def physics_aware(
    device: PhysicalLayer, twin: DigitalTwin
) -> Callable[[Float[Tensor, "b n_in"]], Float[Tensor, "b n_out"]]:
    """The device, with the derivative of its twin.

    Raises:
        ValueError: numbers of ports that differ.
    """
    if (device.n_in, device.n_out) != (twin.n_in, twin.n_out):
        raise ValueError(
            f"the device has {device.n_in} and {device.n_out} ports, the twin {twin.n_in} and "
            f"{twin.n_out}: they must be equal"
        )
    return lambda x: _Measured.apply(x, device, twin)


def feedback_gradients(
    net: PhysicalClassifier, x: Float[Tensor, "b d"], y: Int[Tensor, "b"]
) -> None:
    """Direct feedback alignment: sets ``grad`` of every map from the output's error ``e``.

    ``dW_l = (e B_l)^T q_l``, with ``q_l`` what the map was given and ``B_l`` fixed and random. The
    last map has ``B = I``, its true gradient. The devices run forward only.
    """
    with torch.no_grad():
        given, logits = net.answers(x)
        error = (logits.softmax(1) - F.one_hot(y, logits.shape[1]).to(logits)) / len(x)
        for m, q, B in zip(net.maps, given, [*net.feedback, None]):
            delta = error if B is None else error @ B.to(error)
            m.weight.grad, m.bias.grad = delta.T @ q, delta.sum(0)


def train_in_silico(
    net: PhysicalClassifier,
    twins: Sequence[DigitalTwin],
    x: Float[Tensor, "n d"],
    y: Int[Tensor, "n"],
    epochs: int,
    **options,
) -> PhysicalClassifier:
    """Back-propagation through the twins; the devices are not asked. Deploy with ``predict``.

    With perfect twins this is ideal back-propagation, the upper bound.

    Args:
        options: ``batch``, ``lr``, ``seed``, ``callback`` as for :func:`train_pat`.
    """
    _count(net, twins)
    return _train(net, lambda x, y: _backward(net, x, y, twins), x, y, epochs, **options)


def train_pat(
    net: PhysicalClassifier,
    twins: Sequence[DigitalTwin],
    x: Float[Tensor, "n d"],
    y: Int[Tensor, "n"],
    epochs: int,
    **options,
) -> PhysicalClassifier:
    """Physics-aware training: the devices forward, the twins backward.

    Args:
        options: ``batch`` (64), ``lr`` of Adam (3e-3), ``seed`` (0) of the order of samples,
            ``callback(batches, net)`` called before every batch.
    """
    _count(net, twins)
    physics = [physics_aware(layer, twin) for layer, twin in zip(net.layers, twins)]
    return _train(net, lambda x, y: _backward(net, x, y, physics), x, y, epochs, **options)


def train_dfa(
    net: PhysicalClassifier,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, "n"],
    epochs: int,
    **options,
) -> PhysicalClassifier:
    """Direct feedback alignment with the devices forward; options as for :func:`train_pat`."""
    return _train(net, lambda x, y: feedback_gradients(net, x, y), x, y, epochs, **options)


def _backward(net, x, y, physics) -> None:
    F.cross_entropy(net(x, physics), y).backward()


def _count(net: PhysicalClassifier, twins: Sequence[DigitalTwin]) -> None:
    ports, theirs = ([(d.n_in, d.n_out) for d in group] for group in (net.layers, twins))
    if ports != theirs:
        raise ValueError(
            f"{len(twins)} twins for {len(net.layers)} layers, with ports {theirs} and {ports}: "
            "allowed is one each, with the layer's ports"
        )


def _train(
    net, gradients, x, y, epochs, batch=64, lr=3e-3, seed=0, callback=None
) -> PhysicalClassifier:
    _check(x, y, net.layers[0], net.maps[-1].out_features)
    if epochs < 0 or not 1 <= batch <= len(x) or not 0 < lr < float("inf"):
        raise ValueError(
            f"epochs={epochs}, batch={batch}, lr={lr}: allowed are 0 or more epochs, batches of 1 "
            f"to {len(x)} samples, a finite rate above 0"
        )
    opt = torch.optim.Adam(net.parameters(), lr=lr, fused=True)
    net.train()
    for step in progress(range(epochs * (len(x) // batch)), "training"):
        if callback is not None:
            callback(step, net)
        i = batch_indices(len(x), batch, step, seed).to(x.device)
        opt.zero_grad(set_to_none=True)
        gradients(x[i], y[i])
        opt.step()
    return net.eval()


def _check(x: Tensor, y: Tensor, layer: PhysicalLayer, classes: int) -> None:
    if x.ndim != 2 or len(x) == 0 or x.shape[1] > layer.n_in or y.shape != (len(x),):
        raise ValueError(
            f"x has shape {tuple(x.shape)}, y {tuple(y.shape)}: allowed are one or more samples of "
            f"at most {layer.n_in} numbers and a label for each"
        )
    if y.is_floating_point() or y.min() < 0 or y.max() >= classes:
        raise ValueError(
            f"y holds {y.min().item()} to {y.max().item()}: allowed are whole labels from 0 to "
            f"{classes - 1}"
        )
    if not x.isfinite().all():
        raise ValueError("x holds values that are not finite")


def _behind_zeros(x: Tensor, layer: PhysicalLayer) -> Tensor:
    if x.ndim != 2 or x.shape[1] > layer.n_in:  # padding by less than nothing would cut
        raise ValueError(
            f"x has shape {tuple(x.shape)}: allowed are samples of at most {layer.n_in} numbers"
        )
    return F.pad(x, (layer.n_in - x.shape[1], 0))


class Reservoir:
    """An extreme learning machine: ridge regression on what one device says about the sample.

    Args:
        lam: the ridge, on the sum of squared errors.

    Raises:
        ValueError: samples or labels that cannot be used.
    """

    def __init__(
        self,
        layer: PhysicalLayer,
        x: Float[Tensor, "n d"],
        y: Int[Tensor, "n"],
        classes: int,
        lam: float = 10.0,
    ) -> None:
        _check(x, y, layer, classes)
        self.layer, self.norm = layer, RunningNorm(layer.n_out).to(x)
        features = self._features(x)
        self.norm.eval()
        self.weights = ridge(features, F.one_hot(y, classes).to(x), lam)

    def _features(self, x: Tensor) -> Float[Tensor, "n f"]:
        p = self.norm(self.layer(unit_magnitude(_behind_zeros(x, self.layer))))
        return torch.cat([p, torch.ones_like(p[:, :1])], 1)

    def scores(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        return self._features(x) @ self.weights

    def predict(self, x: Float[Tensor, "b d"]) -> Int[Tensor, "b"]:
        return self.scores(x).argmax(1)

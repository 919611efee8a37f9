"""What NoProp is compared with: back-propagation through the same stack, and three local rules.

Here are the same stack trained by back-propagation (``backprop_loss``), the continuous model
trained through its solver (``solver_loss``), the forward-forward algorithm and local greedy forward
gradients; and every trainer of a classifier under one interface (``mlp_trainer``), among them
target propagation, which lives in ``lib.models.feedback``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import jvp

from lib.beyond_backprop.noprop.continuous import NoPropCT
from lib.beyond_backprop.noprop.discrete import NoPropDT
from lib.beyond_backprop.noprop.embeddings import (
    LabelDenoiser,
    MLPEncoder,
    check_batch,
    make_class_embedding,
    parameter_groups,
)
from lib.core.seeds import child
from lib.models.feedback import TargetPropagation, ff_loss, goodness
from lib.models.init import initialize_

# ----------------------------------------------------------- back-propagation, same architecture


def backprop_loss(
    model: NoPropDT,
    x: Float[Tensor, "b ..."],
    y: Int[Tensor, "b"],
    z0: Float[Tensor, "b d"],
) -> Float[Tensor, ""]:
    """Cross-entropy of the readout behind the whole chain, run forward without noise from ``z0``.

    Args:
        z0: the start of the chain, drawn by ``model.noise(len(y), gen)``.

    The blocks, the skips ``b_t z_{t-1}`` and the readout are those of NoProp; only where the
    gradient comes from differs. Start the readout with :func:`align_readout`.
    """
    z = z0
    for t, block in enumerate(model.blocks):
        u_hat, _ = block(z, x, model.embedding)
        z = model.a[t] * u_hat + model.b[t] * z
    return F.cross_entropy(model.readout(z), y)


def align_readout(model: NoPropDT, scale: float = 5.0) -> NoPropDT:
    """Starts the readout at ``scale * W_embed`` without bias; returns the model.

    A softmax block can only point at a mixture of class embeddings. With a random readout two
    classes easily find the same embedding good, and the gradient of a saturated softmax never
    parts them again. NoProp's targets say which embedding belongs to which class; this tells a
    chain trained by ``backprop_loss`` the same.

    Raises:
        ValueError: ``scale`` not a positive number.
    """
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale={scale}: allowed is a finite number above 0")
    with torch.no_grad():
        model.readout.weight.copy_(scale * model.embedding)
        model.readout.bias.zero_()
    return model


def solver_loss(
    model: NoPropCT,
    x: Float[Tensor, "b ..."],
    y: Int[Tensor, "b"],
    z0: Float[Tensor, "b d"],
    steps: int = 10,
) -> Float[Tensor, ""]:
    """Cross-entropy at the end of the ODE, with the gradient through every step of the solver.

    Stands for training a neural ODE; the adjoint method computes the same gradient up to the
    solver's error, with less memory and more time.
    """
    return F.cross_entropy(model.readout(model.solve(x, z0, steps)[-1]), y)


# -------------------------------------------------------------------------------- forward-forward


class ForwardForward(nn.Module):
    """The forward-forward algorithm (G. Hinton, arXiv:2212.13345) on label-marked inputs.

    The label is written over the first ``classes`` entries of the input. Every layer is trained to
    have a goodness above ``theta`` with the right label and below it with a wrong one; layers pass
    on the direction of their activity only. A class's score is the goodness of all layers but the
    first with that label written in.
    """

    def __init__(
        self, widths: Sequence[int], theta: float = 0.3, gen: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if len(widths) < 3 or min(widths) < 1 or widths[0] < widths[-1]:
            raise ValueError(
                f"widths={list(widths)}: allowed are three or more numbers from 1, the first not "
                "below the last, since the label is written into the input"
            )
        if widths[-1] < 2 or not 0 < theta < float("inf"):
            raise ValueError(
                f"widths={list(widths)}, theta={theta}: allowed are two or more classes, the last "
                "width, and a finite theta above 0"
            )
        sizes = list(widths[:-1])
        self.classes, self.theta = widths[-1], theta
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in zip(sizes, sizes[1:]))
        initialize_(self, "torch", gen=gen)

    def mark(self, x: Float[Tensor, "b n"], y: Int[Tensor, "b"]) -> Float[Tensor, "b n"]:
        return torch.cat([F.one_hot(y, self.classes).to(x), x[:, self.classes :]], 1)

    def hidden(self, x: Float[Tensor, "b n"]) -> Iterator[Float[Tensor, "b _"]]:
        for layer in self.layers:
            h = torch.relu(layer(x))
            x = h.detach()
            yield h
            x = x / (goodness(x).sqrt()[:, None] + 1e-4)

    def losses(
        self, x: Float[Tensor, "b n"], y: Int[Tensor, "b"], gen: torch.Generator | None = None
    ) -> Iterator[Float[Tensor, ""]]:
        """One loss a layer, from the input up; the wrong label is uniform over the others.

        A layer runs when its loss is asked for: call ``backward`` on each before the next, and
        one layer's graph is alive at a time.
        """
        check_batch(x, y, self.classes)
        shift = torch.randint(1, self.classes, y.shape, generator=gen).to(y.device)
        both = torch.cat([self.mark(x, k) for k in (y, (y + shift) % self.classes)])
        return self._losses(both)

    def _losses(self, both: Float[Tensor, "two_b n"]) -> Iterator[Float[Tensor, ""]]:
        for h in self.hidden(both):
            good, bad = goodness(h).chunk(2)
            yield ff_loss(good, bad, self.theta).mean()

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "b n"]) -> Float[Tensor, "b classes"]:
        scores = []
        for k in range(self.classes):
            hidden = list(self.hidden(self.mark(x, torch.full((len(x),), k, device=x.device))))
            counted = hidden[1:] or hidden
            scores.append(sum(goodness(h) for h in counted))
        return torch.stack(scores, 1)


# ------------------------------------------------------------------------------- forward gradients


class ForwardGradient(nn.Module):
    """Local greedy forward gradients with perturbed activities (M. Ren et al., arXiv:2210.03310).

    Every hidden layer has a linear classifier of its own. The gradient of its loss in the layer's
    pre-activations ``z`` is not propagated but guessed from one directional derivative, which a
    forward pass gives: ``g = (dL/dz . v) v`` with ``v ~ N(0, I)`` for every sample, right on
    average. The classifiers, one layer deep, are trained by their own gradient.
    """

    def __init__(self, widths: Sequence[int], gen: torch.Generator | None = None) -> None:
        super().__init__()
        if len(widths) < 3 or min(widths) < 1:
            raise ValueError(f"widths={list(widths)}: allowed are three or more numbers, each >= 1")
        sizes = list(widths[:-1])
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in zip(sizes, sizes[1:]))
        self.heads = nn.ModuleList(nn.Linear(m, widths[-1]) for m in sizes[1:])
        initialize_(self, "torch", gen=gen)

    def forward(self, x: Float[Tensor, "b n_in"]) -> Float[Tensor, "b classes"]:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.heads[-1](x)

    @torch.no_grad()
    def backward(
        self, x: Float[Tensor, "b n_in"], y: Int[Tensor, "b"], gen: torch.Generator | None = None
    ) -> list[Float[Tensor, ""]]:
        """Sets every parameter's ``grad``; returns the local losses. No reverse pass runs."""
        check_batch(x, y, self.heads[-1].out_features)
        found = []
        for layer, head in zip(self.layers, self.heads):
            z = layer(x)
            v = torch.randn(z.shape, generator=gen, dtype=z.dtype).to(z.device)

            def loss(z: Tensor, head: nn.Module = head) -> Float[Tensor, "b"]:
                return F.cross_entropy(head(torch.relu(z)), y, reduction="none")

            value, slope = jvp(loss, (z,), (v,))
            _set_gradient(layer, slope[:, None] * v, x)
            h = torch.relu(z)
            error = head(h).softmax(1) - F.one_hot(y, head.out_features).to(h)
            _set_gradient(head, error, h)
            found.append(value.mean())
            x = h
        return found


def _set_gradient(layer: nn.Linear, error: Float[Tensor, "b o"], x: Float[Tensor, "b n"]) -> None:
    layer.weight.grad = error.T @ x / len(x)
    layer.bias.grad = error.mean(0)


# ---------------------------------------------------------------------------- one interface for all

Method = Literal["noprop", "backprop", "target propagation", "forward-forward", "forward gradient"]
# Adam's rates: the best of two or three on digits, 300 steps of 60, on seeds set aside.
RATES = {
    "noprop": 2e-3,
    "backprop": 2e-3,
    "target propagation": 3e-3,
    "forward-forward": 1e-2,
    "forward gradient": 2e-3,
}


STACK_OPTIONS = ("eta", "readout_lr", "weight_decay")


class Trainer:
    """One classifier and its way of learning.

    Attributes:
        model: the network; ``groups``: parameters of each layer (NoProp: block) in order.
    """

    def __init__(self, model, groups, opt, gradients, scores, classes) -> None:
        self.model, self.groups, self._opt, self._classes = model, groups, opt, classes
        self._gradients, self._scores = gradients, scores

    def step(self, x: Float[Tensor, "b d"], y: Int[Tensor, "b"]) -> None:
        """One update on one batch; ValueError for labels or inputs that cannot be used."""
        check_batch(x, y, self._classes)
        self._opt.zero_grad(set_to_none=True)
        self._gradients(x, y)
        self._opt.step()

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        """One score for each class."""
        return self._scores(x)


def mlp_trainer(
    widths: Sequence[int], *, seed: int, method: Method = "noprop", **options
) -> Trainer:
    """A classifier of these widths, and how ``method`` trains it.

    For "noprop" and "backprop" (of the same stack, its readout aligned) every hidden width becomes
    a denoising block with an encoder of that width and the one-hot embedding; ``T`` is the number
    of hidden layers. The other methods train a plain multi-layer network. At prediction NoProp's
    chain starts at noise drawn from the seed and adds none, so ``predict`` is a function.

    Args:
        options: ``lr`` and, for NoProp, ``eta``, ``readout_lr`` and ``weight_decay``.

    Raises:
        ValueError: fewer than three widths, an unknown method, ``lr`` not positive.
        TypeError: an option that the method does not have.
    """
    if len(widths) < 3 or min(widths) < 1:
        raise ValueError(f"widths={list(widths)}: allowed are three or more numbers, each >= 1")
    if method not in RATES:
        raise ValueError(f"method={method!r}: allowed are {', '.join(map(repr, RATES))}")
    lr = options.pop("lr", RATES[method])
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr={lr}: allowed is a finite number above 0")
    known = STACK_OPTIONS if method in ("noprop", "backprop") else ()
    for name in options:
        if name not in known:
            raise TypeError(
                f"method={method!r} has no option {name!r}; it takes {', '.join(('lr', *known))}"
            )
    gen, noise = child(seed, "weights"), child(seed, "noise")
    if method in ("noprop", "backprop"):
        return _stack_trainer(widths, seed, method, lr, gen, noise, **options)
    if method == "target propagation":
        model = TargetPropagation(widths, gen=gen)
        backward = lambda x, y: sum(model.losses(x, y, noise).values()).backward()
        layers = [*model.layers, model.output]
    elif method == "forward-forward":
        model = ForwardForward(widths, gen=gen)
        backward = lambda x, y: [loss.backward() for loss in model.losses(x, y, noise)]
        layers = list(model.layers)
    else:
        model = ForwardGradient(widths, gen=gen)
        backward = lambda x, y: model.backward(x, y, noise)
        layers = [*model.layers, model.heads[-1]]
    groups = {f"layer {i}": list(layer.parameters()) for i, layer in enumerate(layers, 1)}
    opt = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    return Trainer(model, groups, opt, backward, model, widths[-1])


def _stack_trainer(
    widths, seed, method, lr, gen, noise, eta=0.1, readout_lr=3e-2, weight_decay=1e-3
) -> Trainer:
    classes = widths[-1]
    W = make_class_embedding("one-hot", classes)
    blocks = [
        LabelDenoiser(MLPEncoder(widths[0], w), classes, classes, max(w, 2), gen=gen)
        for w in widths[1:-1]
    ]
    model = NoPropDT(blocks, W, eta=eta, gen=gen)
    if method == "backprop":
        align_readout(model)
    groups = {f"block {i}": list(b.parameters()) for i, b in enumerate(blocks, 1)}
    groups["readout"] = list(model.readout.parameters())
    opt = torch.optim.AdamW(
        parameter_groups(model, lr, readout_lr), weight_decay=weight_decay, fused=True
    )

    def learn(x: Tensor, y: Tensor) -> None:
        if method == "backprop":
            backprop_loss(model, x, y, model.noise(len(y), noise)).backward()
            return
        eps = model.noise(len(y), noise, model.steps + 1)
        model.shared_loss(y, eps[-1]).backward()  # once: Adam does not see a factor T
        for t in range(1, model.steps + 1):  # one block's graph at a time
            model.denoising_loss(t, x, y, eps[t - 1]).backward()

    def scores(x: Tensor) -> Tensor:
        return model.predict(x, child(seed, "predict"), deterministic=True)

    return Trainer(model, groups, opt, learn, scores, classes)

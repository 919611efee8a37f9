"""Local learning: two passes through a device are told apart by the digital map behind it.

A stage sends a wave into its physical layer, and a trainable linear map reads the answer. Its loss
compares a pass on an input with the right label and one with a wrong label. The gradient stops at
the map; the physics is only evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.beyond_backprop.physical_networks.devices import PhysicalLayer, check_chain
from lib.core.fitting import progress
from lib.core.linalg import ridge
from lib.core.seeds import batch_indices, child
from lib.models.feedback import ff_loss, goodness
from lib.models.init import initialize_

Kind = Literal["projection", "goodness", "cosine_pair"]
KINDS = ("projection", "goodness", "cosine_pair")
THETA = {"projection": 4.0, "goodness": 2.0, "cosine_pair": 4.0}

# --------------------------------------------------------------------------------- scores and loss


def stage_score(
    a: Float[Tensor, "*b d"], r: Float[Tensor, "d"], kind: Kind = "projection"
) -> Float[Tensor, "*b"]:
    """How good a stage finds its input, from the output ``a`` of its linear map.

    "projection": the cosine between ``|a|`` and the stage's fixed random direction ``r``, of norm
    1. "goodness": the mean of ``relu(a)^2``. "cosine_pair" compares two passes and has no score.

    Raises:
        ValueError: a kind without a score, or an unknown one.
    """
    if kind == "projection":
        return (a.abs() @ r) / a.norm(dim=-1).clamp_min(1e-12)
    if kind == "goodness":
        return goodness(torch.relu(a))
    raise ValueError(
        f"kind={kind!r}: allowed are 'projection' and 'goodness', which have a score; "
        "for another loss call fit_readout first"
    )


def local_contrast_loss(
    a_pos: Float[Tensor, "b d"],
    a_neg: Float[Tensor, "b d"],
    r: Float[Tensor, "d"],
    kind: Kind = "projection",
    theta: float | None = None,
) -> Float[Tensor, ""]:
    """The loss of one stage, averaged over the batch.

    - "projection": ``log(1 + exp(-theta (g(a+) - g(a-))))``, ``theta = 4``;
    - "goodness": ``softplus(theta - g(a+)) + softplus(g(a-) - theta)``, ``theta = 2``;
    - "cosine_pair": ``log(1 + exp(theta cos(a+, a-)))``, ``theta = 4``: the passes shall differ.

    Raises:
        ValueError: an unknown kind, or a theta that is not positive.
    """
    theta = _theta(kind, theta)
    if kind == "cosine_pair":
        return F.softplus(theta * F.cosine_similarity(a_pos, a_neg)).mean()
    pos, neg = stage_score(a_pos, r, kind), stage_score(a_neg, r, kind)
    if kind == "goodness":
        return ff_loss(pos, neg, theta).mean()
    return F.softplus(-theta * (pos - neg)).mean()


def score_gradient(a: Float[Tensor, "b d"], r: Float[Tensor, "d"]) -> Float[Tensor, "b d"]:
    """The gradient of ``cos(|a|, r)`` in ``a``: ``sign(a) (r / |a| - g |a| / |a|^2)``."""
    size = a.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    g = stage_score(a, r)[:, None]
    return a.sign() * (r / size - g * a.abs() / size.square())


def projection_gradient(
    weight: Float[Tensor, "d n"],
    bias: Float[Tensor, "d"],
    q_pos: Float[Tensor, "b n"],
    q_neg: Float[Tensor, "b n"],
    r: Float[Tensor, "d"],
    theta: float = 4.0,
) -> tuple[Float[Tensor, "d n"], Float[Tensor, "d"]]:
    """The gradient of the projection loss in a stage's weight and bias, by hand.

    ``-theta/B sum_b sigmoid(-theta Delta_b) (grad g(a+_b) q+_b^T - grad g(a-_b) q-_b^T)``. All that
    it needs of the device is what it answered, in ``q``.
    """
    a_pos, a_neg = F.linear(q_pos, weight, bias), F.linear(q_neg, weight, bias)
    delta = stage_score(a_pos, r) - stage_score(a_neg, r)
    share = (-theta / len(delta)) * torch.sigmoid(-theta * delta)[:, None]
    up, down = share * score_gradient(a_pos, r), share * score_gradient(a_neg, r)
    return up.T @ q_pos - down.T @ q_neg, (up - down).sum(0)


# ------------------------------------------------------------------------------------------ labels


def label_input(
    x: Float[Tensor, "b n"], y: Int[Tensor, "b"] | None, classes: int, height: float
) -> Float[Tensor, "b n_plus_classes"]:
    """``classes`` inputs in front of ``x``: ``height`` at the label's place, 0 elsewhere.

    With ``y=None`` the neutral label: the same ``height``, shared among all places.

    Raises:
        ValueError: labels outside 0 to ``classes - 1``.
    """
    if y is None:
        block = torch.full((len(x), classes), height / classes, dtype=x.dtype, device=x.device)
    else:
        if len(y) and (y.min() < 0 or y.max() >= classes):
            raise ValueError(
                f"y holds {y.min().item()} to {y.max().item()}: allowed are labels from 0 to "
                f"{classes - 1}"
            )
        block = height * F.one_hot(y, classes).to(x)
    return torch.cat([block, x], 1)


def wrong_labels(y: Int[Tensor, "b"], classes: int, gen: torch.Generator) -> Int[Tensor, "b"]:
    """A label for each sample, uniform over those that are not its own.

    Raises:
        ValueError: fewer than two classes.
    """
    if classes < 2:
        raise ValueError(f"classes={classes}: allowed are 2 or more")
    shift = torch.randint(1, classes, y.shape, generator=gen).to(y.device)
    return (y + shift) % classes


def mixed_negatives(
    x: Float[Tensor, "b n"], shape: tuple[int, ...], gen: torch.Generator, blurs: int = 6
) -> Float[Tensor, "b n"]:
    """Unsupervised negatives: patches of one sample and of another, put together by a mask.

    The mask is noise, blurred ``blurs`` times by (1, 2, 1)/4 along every axis and cut at its
    median: statistics at short range are real, at long range they are not (G. Hinton,
    arXiv:2212.13345).

    Args:
        shape: of one sample, e.g. ``(8, 8)`` for an image or ``(3,)`` for three numbers.

    Raises:
        ValueError: fewer than two samples, or a shape that does not fit them.
    """
    if len(x) < 2 or math.prod(shape) != x.shape[1]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, shape={shape}: allowed are two or more samples, of as "
            "many numbers as the shape has"
        )
    mask = torch.rand(len(x), *shape, generator=gen)
    for _ in range(blurs):
        for axis in range(1, mask.ndim):
            mask = (mask.roll(1, axis) + 2 * mask + mask.roll(-1, axis)) / 4
    mask = mask.flatten(1)
    mask = (mask > mask.median(1, keepdim=True).values).to(x)
    # A cyclic shift in a random order: nobody is mixed with itself.
    order = torch.randperm(len(x), generator=gen).to(x.device)
    other = torch.empty_like(x)
    other[order] = x[order.roll(1)]
    return mask * x + (1 - mask) * other


# ----------------------------------------------------------------------------------------- network


class RunningNorm(nn.Module):
    """Shifts and scales every output of a device by running statistics.

    In training mode a batch first moves the running mean and variance (``momentum`` stays, the rest
    is the batch's; the first batch sets them), then is normalized by them. They carry no gradient.
    """

    def __init__(self, n: int, momentum: float = 0.9, eps: float = 1e-6) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("variance", torch.ones(n))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, y: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        if self.training:
            with torch.no_grad():
                keep = self.momentum if self.batches > 0 else 0.0
                mean = y.mean(0)
                variance = (y - mean).square().mean(0)
                self.mean.lerp_(mean, 1 - keep)
                self.variance.lerp_(variance, 1 - keep)
                self.batches += 1
        return (y - self.mean) / (self.variance + self.eps).sqrt()


class PhysicalNetwork(nn.Module):
    """Physical layers with a trainable linear map behind each, trained stage by stage.

    .. math:: p_l = f_l(|h_{l-1}| / \\|h_{l-1}\\|),\\quad
              a_l = W_l\\,[p_l; h_{l-1}] + b_l

    ``h_0`` is the input with its label block. A stage passes on ``h_l = a_l`` ("goodness":
    ``relu(a_l)`` of norm 1, lest the length tell the next stage the answer). ``p_l`` is shifted and
    scaled by running statistics before the map sees it, which the paper's laboratory does not
    need and the simulation does. ``[p; h]`` is ``p`` alone without ``skip``.

    Args:
        layers: physical layers. The first has ``classes`` inputs more than a sample has.
        widths: outputs of each map; stage ``l + 1``'s device has ``widths[l]`` inputs.
        loss: see :func:`local_contrast_loss`; "cosine_pair" needs :meth:`fit_readout`.
        n_inner: Adam steps on the same answers of the device.

    Attributes:
        maps, norms: one a stage. ``directions``: the ``r_l``, fixed.

    Raises:
        ValueError: layers and widths that do not fit, fewer than two classes, an unknown loss,
            ``n_inner`` below 1, a rate or theta that is not positive.
    """

    def __init__(
        self,
        layers: Sequence[PhysicalLayer],
        widths: Sequence[int],
        loss: Kind = "projection",
        skip: bool = False,
        n_inner: int = 1,
        *,
        classes: int,
        theta: float | None = None,
        lr: float = 3e-3,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_chain(layers, widths)
        if classes < 2 or n_inner < 1 or not 0 < lr < float("inf"):
            raise ValueError(
                f"classes={classes}, n_inner={n_inner}, lr={lr}: allowed are 2 or more classes, 1 "
                "or more steps, a finite rate above 0"
            )
        if layers[0].n_in <= classes:
            raise ValueError(
                f"the first layer has {layers[0].n_in} inputs, {classes} of them for the label: "
                "allowed are at least one more, for the sample"
            )
        self.layers, self.loss, self.skip, self.n_inner = list(layers), loss, skip, n_inner
        self.classes, self.theta = classes, _theta(loss, theta)
        self.norms = nn.ModuleList(RunningNorm(layer.n_out) for layer in layers)
        self.maps = nn.ModuleList(
            nn.Linear(layer.n_out + (layer.n_in if skip else 0), width)
            for layer, width in zip(layers, widths)
        )
        initialize_(self, "torch", gen=gen)
        self.redraw_directions(gen)
        self.register_buffer("height", torch.zeros(()))
        self._opts = [torch.optim.Adam(m.parameters(), lr=lr, fused=True) for m in self.maps]
        self._steps, self._readout = 0, None

    def redraw_directions(self, gen: torch.Generator | None = None) -> None:
        """Draws the directions ``r_l`` uniformly from the sphere. Learning needs them to stay."""
        for i, m in enumerate(self.maps):
            r = torch.randn(m.out_features, generator=gen).to(m.weight)
            self.register_buffer(f"direction_{i}", r / r.norm())

    @property
    def directions(self) -> list[Float[Tensor, "d"]]:
        return [getattr(self, f"direction_{i}") for i in range(len(self.maps))]

    # ------------------------------------------------------------------------------------ training

    def train_local(
        self,
        x: Float[Tensor, "n d"],
        y: Int[Tensor, "n"] | None,
        epochs: int,
        *,
        batch: int = 64,
        seed: int = 0,
        shape: tuple[int, ...] | None = None,
        callback: Callable[[int, PhysicalNetwork], None] | None = None,
    ) -> PhysicalNetwork:
        """Trains all stages for ``epochs`` passes over the data; a further call goes on.

        Args:
            y: labels; None for unsupervised learning, whose negatives are mixtures of two samples
                (:func:`mixed_negatives`) under the neutral label.
            seed: of the order of samples and of the negatives.
            shape: of one sample, for the mixtures' mask; ``(d,)`` if None.
            callback: called with the number of batches so far and this network before every batch.

        Raises:
            ValueError: samples or labels that cannot be used, a batch larger than the data.
        """
        self._check(x, y)
        if epochs < 0 or not 1 <= batch <= len(x):
            raise ValueError(
                f"epochs={epochs}, batch={batch}: allowed are 0 or more epochs, batches of 1 to "
                f"{len(x)} samples"
            )
        self._raise_height(x)
        for _ in progress(range(epochs * (len(x) // batch)), "local training"):
            if callback is not None:
                callback(self._steps, self)
            i = batch_indices(len(x), batch, self._steps, seed).to(x.device)
            gen = child(seed, "negatives", self._steps)
            if y is None:
                pos, neg = x[i], mixed_negatives(x[i], shape or (x.shape[1],), gen)
                good, bad = (label_input(z, None, self.classes, self._height) for z in (pos, neg))
            else:
                good, bad = self.pair(x[i], y[i], gen)
            self.update(good, bad)
            self._steps += 1
        return self

    def step(self, x: Float[Tensor, "b d"], y: Int[Tensor, "b"], gen: torch.Generator) -> None:
        """One update of every stage on one labeled batch; ``gen`` draws the wrong labels."""
        self._check(x, y)
        self._raise_height(x)
        self.update(*self.pair(x, y, gen))

    def pair(
        self, x: Float[Tensor, "b d"], y: Int[Tensor, "b"], gen: torch.Generator
    ) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"]]:
        """The same samples with their label and with a wrong one."""
        wrong = wrong_labels(y, self.classes, gen)
        return tuple(label_input(x, k, self.classes, self._height) for k in (y, wrong))

    def update(
        self, good: Float[Tensor, "b n"], bad: Float[Tensor, "b n"]
    ) -> list[Float[Tensor, ""]]:
        """For each stage: two queries a sample, ``n_inner`` steps, then on with the new weights.

        Returns:
            the loss of each stage before its last step.
        """
        self.norms.train()
        h, losses = torch.cat([good, bad]), []
        for i, opt in enumerate(self._opts):
            q = self.ask(i, h)
            for _ in range(self.n_inner):
                loss = self.stage_loss(i, q)
                opt.zero_grad(set_to_none=True)
                loss.backward()
                opt.step()
            losses.append(loss.detach())
            with torch.no_grad():
                h = self.pass_on(self.maps[i](q))
        self.norms.eval()
        return losses

    def ask(self, i: int, h: Float[Tensor, "b n"]) -> Float[Tensor, "b m"]:
        """What map ``i`` sees: the device's answer, normalized, and the stage's input if skipped.

        Nothing here carries a gradient.
        """
        h = h.detach()
        p = self.norms[i](self.layers[i](unit_magnitude(h)))
        return torch.cat([p, h], 1) if self.skip else p

    def stage_loss(self, i: int, q: Float[Tensor, "two_b m"]) -> Float[Tensor, ""]:
        """The loss of stage ``i``; the first half of ``q`` belongs to the good samples."""
        a_pos, a_neg = self.maps[i](q).chunk(2)
        return local_contrast_loss(a_pos, a_neg, self.directions[i], self.loss, self.theta)

    def pass_on(self, a: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """``h_l`` from ``a_l``."""
        if self.loss != "goodness":
            return a
        h = torch.relu(a)
        return h / h.norm(dim=-1, keepdim=True).clamp_min(1e-6)

    # ------------------------------------------------------------------------------------- reading

    @torch.no_grad()
    def hidden(self, h: Float[Tensor, "b n"]) -> list[Float[Tensor, "b d"]]:
        """``a_1, ..., a_L`` for inputs that have their label block already."""
        self.eval()
        found = []
        for i, m in enumerate(self.maps):
            a = m(self.ask(i, h))
            found.append(a)
            h = self.pass_on(a)
        return found

    def stage_scores(
        self, x: Float[Tensor, "b d"], chunk: int = 1000
    ) -> Float[Tensor, "stages b classes"]:
        """Every stage's score for every candidate label: ``C L`` queries of devices a sample.

        Before any training the labels have no height yet, and all of them score the same.

        Raises:
            ValueError: a loss without scores; a chunk below 1.
        """
        if chunk < 1:
            raise ValueError(f"chunk={chunk}: allowed is 1 or more")
        found = []
        for part in x.split(chunk):
            y = torch.arange(self.classes, device=x.device).repeat(len(part))
            h = label_input(part.repeat_interleave(self.classes, 0), y, self.classes, self._height)
            scores = [
                stage_score(a, r, self.loss).unflatten(0, (len(part), self.classes))
                for a, r in zip(self.hidden(h), self.directions)
            ]
            found.append(torch.stack(scores))
        return torch.cat(found, 1)

    def scores(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        """Label scan: the sum over stages; or what the read-out says, where one was fitted."""
        if self._readout is not None:
            return self._features(x) @ self._readout
        return self.stage_scores(x).sum(0)

    def predict(self, x: Float[Tensor, "b d"]) -> Int[Tensor, "b"]:
        """The label with the largest score."""
        return self.scores(x).argmax(1)

    def fit_readout(
        self, x: Float[Tensor, "n d"], y: Int[Tensor, "n"], lam: float = 10.0
    ) -> PhysicalNetwork:
        """Ridge regression from all stages under the neutral label to the classes.

        For what has no score for a label: "cosine_pair", and unsupervised training.

        Raises:
            ValueError: samples or labels that cannot be used.
        """
        self._check(x, y)
        target = F.one_hot(y, self.classes).to(x)
        self._readout = ridge(self._features(x), target, lam)
        return self

    def _features(self, x: Tensor) -> Float[Tensor, "n f"]:
        hidden = self.hidden(label_input(x, None, self.classes, self._height))
        ones = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
        return torch.cat([*(F.normalize(a.abs()) for a in hidden), ones], 1)

    @property
    def _height(self) -> float:
        return self.height.item()

    def _raise_height(self, x: Tensor) -> None:
        # The label is as large as the largest input seen so far.
        self.height = torch.maximum(self.height, x.abs().max().to(self.height))

    def _check(self, x: Tensor, y: Tensor | None) -> None:
        d, dtype = self.layers[0].n_in - self.classes, self.maps[0].weight.dtype
        if x.ndim != 2 or len(x) == 0 or x.shape[1] != d or x.dtype != dtype:
            raise ValueError(
                f"x has shape {tuple(x.shape)} and is {x.dtype}: allowed are one or more samples "
                f"of {d} numbers, {dtype} as the maps are; {self.classes} inputs of the first "
                "device are for the label"
            )
        if y is not None and y.shape != (len(x),):
            raise ValueError(
                f"y has shape {tuple(y.shape)}: allowed is a label for each of {len(x)} samples"
            )
        if y is not None and (y.is_floating_point() or y.min() < 0 or y.max() >= self.classes):
            raise ValueError(
                f"y holds {y.min().item()} to {y.max().item()}: allowed are whole labels from 0 to "
                f"{self.classes - 1}"
            )
        if not x.isfinite().all():
            raise ValueError("x holds values that are not finite")


def unit_magnitude(h: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """``|h| / ||h||``: a device is given magnitudes, and always the same energy."""
    return h.abs() / h.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def _theta(kind: Kind, theta: float | None) -> float:
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: allowed are {', '.join(map(repr, KINDS))}")
    theta = THETA[kind] if theta is None else theta
    if not 0 < theta < float("inf"):
        raise ValueError(f"theta={theta}: allowed is a finite number above 0")
    return theta


# -------------------------------------------------------------------------- a common interface


class Trainer:
    """A network of linear maps under the part's common interface.

    Attributes:
        network: the :class:`PhysicalNetwork`; ``groups``: the parameters of each layer in order.
    """

    def __init__(self, network: PhysicalNetwork, seed: int) -> None:
        self.network, self._gen = network, child(seed, "negatives")
        self.groups = {f"layer {i}": list(m.parameters()) for i, m in enumerate(network.maps, 1)}

    def step(self, x: Float[Tensor, "b d"], y: Int[Tensor, "b"]) -> None:
        """One update on one batch."""
        self.network.step(x, y, self._gen)

    def predict(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        """One score for each class, by label scan."""
        return self.network.scores(x)


def mlp_trainer(
    widths: Sequence[int],
    *,
    seed: int,
    act: Literal["identity", "tanh"] = "identity",
    loss: Kind = "projection",
    lr: float = 3e-3,
    n_inner: int = 1,
    skip: bool = False,
    theta: float | None = None,
) -> Trainer:
    """A plain network trained by the local contrast, with no device: ``f_l`` is ``act``.

    Hidden layer ``l`` is ``a_l = W_l f(|a_{l-1}| / |a_{l-1}|) + b_l``, its input shifted and scaled
    by running statistics: with the identity, the magnitude is the network's nonlinearity. The last
    width is the number of classes; there is no output layer, a class's score comes from trying
    its label in ``widths[-1]`` inputs that are added to ``widths[0]``.

    Raises:
        ValueError: fewer than three widths, one below 1, an unknown ``act``; "cosine_pair", which
            has no score for a class.
    """
    if len(widths) < 3 or min(widths) < 1:
        raise ValueError(f"widths={list(widths)}: allowed are three or more numbers, each >= 1")
    acts = {"identity": lambda h: h, "tanh": torch.tanh}  # relu does nothing to a magnitude
    if act not in acts:
        raise ValueError(f"act={act!r}: allowed are {', '.join(map(repr, acts))}")
    if loss == "cosine_pair":
        raise ValueError("loss='cosine_pair': allowed are 'projection' and 'goodness'")
    sizes = [widths[0] + widths[-1], *widths[1:-1]]
    layers = [_Elementwise(acts[act], n) for n in sizes[:-1]]
    network = PhysicalNetwork(
        layers,
        sizes[1:],
        loss,
        skip,
        n_inner,
        classes=widths[-1],
        theta=theta,
        lr=lr,
        gen=child(seed, "weights"),
    )
    return Trainer(network, seed)


class _Elementwise:
    """A function of every number by itself, in the place of a device."""

    def __init__(self, f: Callable[[Tensor], Tensor], n: int) -> None:
        self.f, self.n_in, self.n_out, self.query_count = f, n, n, 0

    def __call__(self, x: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        self.query_count += len(x)
        return self.f(x.detach())

    def perturb(self, strength: float) -> None:
        raise NotImplementedError("an elementwise function has nothing to perturb")

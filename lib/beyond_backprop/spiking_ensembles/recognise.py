"""From spike counts to places: labels for cells, scores, hyperactive cells, the ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.beyond_backprop.spiking_ensembles.plasticity import STDPModule
from lib.core.seeds import child

Mode = Literal["mean", "sum", "involvement", "strength", "penalty", "weighted"]
MODES = ("mean", "sum", "involvement", "strength", "penalty", "weighted")
QUANTILES = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
"""Candidates for the threshold: from half of the cells masked to none."""


# --------------------------------------------------------------------------- one module


def response_table(
    counts: Float[Tensor, "*m b n"], labels: Int[Tensor, "b"], places: int
) -> Float[Tensor, "*m n p"]:
    """Mean spike count of each cell on the training images of each place.

    Raises:
        ValueError: a place without a training image, or a label outside ``0..places - 1``.
    """
    if places < 1:
        raise ValueError(f"places={places}: allowed is 1 or more")
    if len(labels) != counts.shape[-2]:
        raise ValueError(f"labels: {len(labels)} for {counts.shape[-2]} images")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < places:
        raise ValueError(
            f"labels from {labels.min()} to {labels.max()}; allowed are 0 to {places - 1}"
        )
    which = F.one_hot(labels, places).to(counts)
    shown = which.sum(0)
    if (shown == 0).any():
        raise ValueError(f"labels: no training image of place {int(shown.argmin())}")
    return counts.mT @ which / shown


def assign(table: Float[Tensor, "*m n p"]) -> Int[Tensor, "*m n"]:
    """Each cell's place: where its mean count is highest (the first of equals), -1 if it is silent.

    A cell that never fires must not be given to place 0.
    """
    top, place = table.max(-1)
    return torch.where(top > 0, place, -1)


def score_places(
    counts: Float[Tensor, "*m b n"],
    table: Float[Tensor, "*m n p"],
    mode: Mode = "mean",
    mask: Bool[Tensor, "*m n"] | None = None,
) -> Float[Tensor, "*m b p"]:
    """How strongly each place is signalled; a place nobody stands for scores zero.

    Args:
        counts: spikes of the images in question; ``table``: of training, :func:`response_table`.
        mode: ``"mean"``: mean count of the place's cells, ``r_p``. ``"sum"``: their total.
            The others let a cell vote for every place that got more than a tenth of its training
            spikes: ``"strength"`` weighs the vote with that share; ``"involvement"`` divides it by
            the number of places the cell answered, once these are 2 % of all; ``"penalty"``
            multiplies the total by the share of the place's training spikes that came from cells
            which fire now; ``"weighted"`` does all three.
        mask: True keeps a cell. A masked one loses its spikes and stays in the denominator.

    Raises:
        ValueError: an unknown mode, or tensors whose cells differ in number.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: allowed are {', '.join(map(repr, MODES))}")
    if counts.shape[-1] != table.shape[-2]:
        raise ValueError(f"counts of {counts.shape[-1]} cells, table of {table.shape[-2]}")
    if mask is not None:
        if mask.shape[-1] != counts.shape[-1]:
            raise ValueError(f"mask of {mask.shape[-1]} cells, counts of {counts.shape[-1]}")
        counts = counts * mask.unsqueeze(-2)
    if mode in ("mean", "sum"):
        place = assign(table)
        member = F.one_hot(place.clamp_min(0), table.shape[-1]).to(counts)
        member = member * (place >= 0).unsqueeze(-1)
        total = counts @ member
        return total if mode == "sum" else total / member.sum(-2).clamp_min(1).unsqueeze(-2)
    share = table / table.sum(-1, keepdim=True).clamp_min(1e-12)
    learned = (share > 0.1).to(counts)
    vote = learned.clone()
    if mode in ("involvement", "weighted"):
        answered = (table > 0).sum(-1, keepdim=True)
        vote /= torch.where(answered >= 0.02 * table.shape[-1], answered, 1).clamp_min(1)
    if mode in ("strength", "weighted"):
        vote *= share
    total = counts @ vote
    if mode in ("penalty", "weighted"):
        relevant = table * learned
        firing = (counts > 0).to(counts) @ relevant
        total *= firing / relevant.sum(-2).clamp_min(1e-12).unsqueeze(-2)
    return total


def outside_activity(
    counts: Float[Tensor, "*m b n"], measure: Literal["spikes", "images"] = "spikes"
) -> Float[Tensor, "*m n"]:
    """A cell's spikes over all images from outside its region, or the images it answers at all.

    The paper speaks of the first; its code counts the second.
    """
    if measure not in ("spikes", "images"):
        raise ValueError(f"measure={measure!r}: allowed are 'spikes' and 'images'")
    return counts.sum(-2) if measure == "spikes" else (counts > 0).to(counts).sum(-2)


def find_hyperactive(
    outside: Float[Tensor, "*m n"], threshold: Float[Tensor, "*m"] | float
) -> Bool[Tensor, "*m n"]:
    """Cells whose activity outside their region exceeds the threshold."""
    if isinstance(threshold, Tensor):
        threshold = threshold.unsqueeze(-1)
    return outside > threshold


def unit_range(scores: Float[Tensor, "*q p"]) -> Float[Tensor, "*q p"]:
    """Each query's scores moved to [0, 1] (all zero where they are equal)."""
    low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
    return (scores - low) / torch.where(high > low, high - low, 1)


# --------------------------------------------------------------------------- many modules


class ModularPlaceRecognizer:
    """A route in regions of ``region_size`` places, a module for each, and one answer.

    Several routes run side by side, one per seed: they share the loop over time steps and nothing
    else. With ``region_size`` equal to the number of places this is the single large network.

    Args:
        n_exc: cells of each module.
        seeds: one per route; generators are ``child(seed, "module", k)`` for module ``k`` of the
            route, and of the images shown ``child(seed, what)``.
        repeats, chunk: see :meth:`STDPModule.respond`.
        measure: see :func:`outside_activity`.
        module: further arguments of :class:`STDPModule`.

    Attributes, after ``fit``:
        net: the modules, route by route; ``table``: "s k n p" with ``p`` the region's places.
        elsewhere: counts for the other regions' reference images, "s k b n" (``b`` may be 0).
        outside: the cells' activity on those, "s k n".
        mask: "s k n", True keeps; all True until ``calibrate``. ``threshold``: "s".
    """

    def __init__(
        self,
        region_size: int,
        n_exc: int,
        *,
        seeds: Sequence[int],
        repeats: int = 1,
        chunk: int | None = None,
        measure: Literal["spikes", "images"] = "spikes",
        device: torch.device | str = "cpu",
        **module,
    ):
        if region_size < 1 or repeats < 1 or not seeds:
            raise ValueError(
                f"region_size={region_size}, repeats={repeats}, {len(seeds)} seeds: "
                "allowed is 1 or more of each"
            )
        if measure not in ("spikes", "images"):
            raise ValueError(f"measure={measure!r}: allowed are 'spikes' and 'images'")
        self.region_size, self.n_exc, self.seeds = region_size, n_exc, list(seeds)
        self.repeats, self.measure, self.device = repeats, measure, device
        self.chunk, self.options = chunk, module

    def fit(self, reference: Float[Tensor, "s t p i"], epochs: int, **watch) -> None:
        """Train on ``t`` reference traverses (pixels 0 to 255), then record all their responses.

        Raises:
            ValueError: places that ``region_size`` does not divide, no traverse, or another number
                of routes.
        """
        s, t, places, i = reference.shape
        if t < 1:
            raise ValueError("reference: 0 traverses; allowed is 1 or more")
        if places % self.region_size or s != len(self.seeds):
            raise ValueError(
                f"reference: {s} routes of {places} places; allowed are {len(self.seeds)} routes "
                f"of a multiple of region_size={self.region_size}"
            )
        modules = places // self.region_size
        gens = [child(seed, "module", k) for seed in self.seeds for k in range(modules)]
        self.net = STDPModule(i, self.n_exc, gens=gens, **self.options).to(self.device)
        own = reference.view(s, t, modules, self.region_size, i).transpose(1, 2)
        self.net.learn(own.flatten(0, 1).flatten(1, 2), epochs, **watch)
        counts = self.respond(reference.flatten(1, 2), "reference")
        counts = counts.view(s, modules, t, modules, self.region_size, self.n_exc)
        inside = torch.stack([counts[:, k, :, k] for k in range(modules)], 1)
        labels = torch.arange(self.region_size, device=counts.device).repeat(t)
        self.table = response_table(inside.flatten(2, 3), labels, self.region_size)
        others = ~torch.eye(modules, dtype=torch.bool, device=counts.device)
        elsewhere = [counts[:, k][:, :, others[k]].flatten(1, 3) for k in range(modules)]
        self.elsewhere = torch.stack(elsewhere, 1)
        self.outside = outside_activity(self.elsewhere, self.measure)
        self.mask = torch.ones_like(self.outside, dtype=torch.bool)
        self.threshold = self.outside.amax((1, 2))

    def respond(self, images: Float[Tensor, "s b i"], what: str) -> Float[Tensor, "s k b n"]:
        """Counts of every module of a route for the route's images; ``what`` names the draw.

        The input spikes of a route depend on its seed and on ``what``, not on the modules.
        """
        if not hasattr(self, "net"):
            raise ValueError("the recognizer has not been trained: call fit first")
        gens = [child(seed, what) for seed in self.seeds]
        counts = self.net.respond(images, gens, self.repeats, self.chunk)
        return counts.view(len(self.seeds), -1, *counts.shape[1:])

    def scores(
        self,
        counts: Float[Tensor, "s k b n"],
        mode: Mode = "mean",
        mask: Bool[Tensor, "s k n"] | None = None,
        normalize: bool = False,
    ) -> Float[Tensor, "s b p"]:
        """Place scores of all modules in a row; ``normalize`` moves each query's to [0, 1]."""
        found = score_places(counts, self.table, mode, mask).transpose(1, 2).flatten(2)
        return unit_range(found) if normalize else found

    def sweep(
        self,
        counts: Float[Tensor, "s k b n"],
        truth: Int[Tensor, "b"],
        thresholds: Float[Tensor, "s c"],
        mode: Mode = "mean",
        outside: Float[Tensor, "s k n"] | None = None,
    ) -> Float[Tensor, "s c"]:
        """Recall at 1 with the cells above each threshold masked."""
        found = []
        for level in thresholds.unbind(1):
            mask = self.keep(level, outside)
            found.append(recall(self.scores(counts, mode, mask), truth))
        return torch.stack(found, 1)

    def calibrate(
        self,
        images: Float[Tensor, "s b i"],
        truth: Int[Tensor, "b"],
        quantiles: Sequence[float] = QUANTILES,
        mode: Mode = "mean",
    ) -> Float[Tensor, "s c"]:
        """Choose each route's threshold with the calibration images, and mask.

        Queries must not be used here.

        Returns:
            Recall at 1 for each candidate; see :meth:`choose`.
        """
        counts = self.respond(images, "calibration")
        self.threshold, found = self.choose(counts, truth, quantiles, mode)
        self.mask = self.keep(self.threshold)
        return found

    def choose(
        self,
        counts: Float[Tensor, "s k b n"],
        truth: Int[Tensor, "b"],
        quantiles: Sequence[float] = QUANTILES,
        mode: Mode = "mean",
        outside: Float[Tensor, "s k n"] | None = None,
    ) -> tuple[Float[Tensor, "s"], Float[Tensor, "s c"]]:
        """The quantile of outside activity with the best recall at 1, and all recalls.

        Of equals the largest threshold, which masks least.
        """
        levels = self.levels(quantiles, outside)
        found = self.sweep(counts, truth, levels, mode, outside)
        order = torch.arange(levels.shape[1], device=found.device)
        best = torch.where(found == found.amax(1, keepdim=True), order, -1).argmax(1)
        return levels.gather(1, best[:, None])[:, 0], found

    def levels(
        self, quantiles: Sequence[float], outside: Float[Tensor, "s k n"] | None = None
    ) -> Float[Tensor, "s c"]:
        """Quantiles of each route's outside activity, in rising order."""
        if not quantiles or not all(0 <= q <= 1 for q in quantiles):
            raise ValueError(f"quantiles={quantiles}: allowed are one or more numbers from 0 to 1")
        values = (self.outside if outside is None else outside).flatten(1)
        q = torch.tensor(sorted(quantiles), dtype=values.dtype, device=values.device)
        return torch.quantile(values, q, dim=1).T.contiguous()

    def keep(
        self, threshold: Float[Tensor, "s"], outside: Float[Tensor, "s k n"] | None = None
    ) -> Bool[Tensor, "s k n"]:
        """The mask of each route's threshold: True for cells that are not hyperactive."""
        values = self.outside if outside is None else outside
        return ~find_hyperactive(values, threshold[:, None].expand(values.shape[:2]))

    def query(
        self, images: Float[Tensor, "s b i"], mode: Mode = "mean", masked: bool = True
    ) -> Float[Tensor, "s b p"]:
        """Scores of all places for query images."""
        counts = self.respond(images, "query")
        return self.scores(counts, mode, self.mask if masked else None)


# --------------------------------------------------------------------------- how good


def recall(
    scores: Float[Tensor, "*s b p"], truth: Int[Tensor, "b"], n: int = 1
) -> Float[Tensor, "*s"]:
    """Share of queries whose true place is among the ``n`` best. Of equal scores, half count.

    A place scores a hit if fewer than ``n`` places beat it, where a tie is half a defeat: a
    recognizer that says nothing is no better than a guess.
    """
    if not 1 <= n <= scores.shape[-1]:
        raise ValueError(f"n={n}: allowed is 1 to {scores.shape[-1]} places")
    _check(scores, truth)
    own = scores.gather(-1, truth.expand(scores.shape[:-1]).unsqueeze(-1))
    beaten = (scores > own).sum(-1) + 0.5 * ((scores == own).sum(-1) - 1)
    return (beaten < n).to(scores.dtype).mean(-1)


def foreign_share(
    scores: Float[Tensor, "*s b p"], truth: Int[Tensor, "b"], region_size: int
) -> Float[Tensor, "*s"]:
    """Share of queries whose winning place lies in another module's region."""
    if region_size < 1:
        raise ValueError(f"region_size={region_size}: allowed is 1 or more")
    _check(scores, truth)
    wrong = scores.argmax(-1) // region_size != truth // region_size
    return wrong.to(scores.dtype).mean(-1)


def precision_recall(
    scores: Float[Tensor, "b p"], truth: Int[Tensor, "b"]
) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"], float]:
    """Precision and recall as answers are accepted from the surest down, and the area below.

    Each query answers with its best place; the score is how sure it is. Recall is the share of all
    queries that have been answered rightly. The area is the sum of precision over the steps in
    recall (average precision).
    """
    _check(scores, truth)
    sure, answer = scores.max(-1)
    order = sure.argsort(descending=True, stable=True)
    right = (answer == truth)[order].to(scores.dtype)
    found = right.cumsum(0)
    precision = found / torch.arange(1, len(right) + 1, device=right.device)
    area = float((precision * right).sum() / len(right))
    return precision, found / len(right), area


def _check(scores: Tensor, truth: Tensor) -> None:
    """One true place for each query, a score that is a number for every place."""
    queries, places = scores.shape[-2:]
    if not queries or len(truth) != queries:
        raise ValueError(
            f"truth: {len(truth)} places for {queries} queries; allowed is one each, at least one"
        )
    if not 0 <= int(truth.min()) <= int(truth.max()) < places:
        raise ValueError(
            f"truth from {truth.min()} to {truth.max()}; allowed are 0 to {places - 1}, the places "
            "that have scores"
        )
    if scores.isnan().any():
        raise ValueError("scores hold nan: allowed are numbers")

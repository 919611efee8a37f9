"""The network that learns from examples, its dynamics, and a mean-field short cut."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.beyond_backprop.dense_hebbian.fields import (
    Indices,
    check_indices,
    check_order,
    check_rows,
    check_spins,
    dense_energy,
    dense_field,
)
from lib.beyond_backprop.dense_hebbian.theory import Mode, check_mode
from lib.core.data import digits, load
from lib.models.hopfield import glauber, sequential_sweep


class DenseHebbianNetwork:
    """Hebbian couplings of order P, learned from examples by addition.

    - ``"supervised"``: a teacher's labels group the examples; the outer powers of the **class
      means** are added.
    - ``"unsupervised"``: the outer powers of all **single examples** are added, over the number of
      examples per class.
    - ``"storing"``: the rows given are the archetypes themselves.

    Attributes:
        eb: "k n", what the outer powers are taken of, after :meth:`fit`.
        R: mean square of its entries, ``r^2 + (1 - r^2)/M`` for class means of noisy examples. It
            is the scale of energy and field, which are divided by ``R^(P/2)``.
        weight: 1, or one over the number of examples per class.
    """

    def __init__(
        self,
        P: int,
        mode: Mode = "supervised",
        indices: Indices = "distinct",
        rescale: bool = False,
    ):
        """``rescale=True`` brings every row of ``eb`` to norm ``sqrt(n)``: for unequal classes."""
        check_order(P)
        check_mode(mode)
        check_indices(indices)
        self.P, self.mode, self.indices, self.rescale = P, mode, indices, rescale
        self.eb: Tensor | None = None

    def fit(
        self, examples: Float[Tensor, "m n"], labels: Int[Tensor, "m"] | None = None
    ) -> DenseHebbianNetwork:
        """Build the couplings; the examples are seen once, in any order.

        Args:
            labels: class of each example; needed with a teacher. Without one they only count the
                classes, which sets the temperature's scale; absent, every example is its own class.

        Raises:
            ValueError: no examples, or labels that are missing or of another length; as
                :meth:`from_means`.
        """
        if examples.ndim != 2 or len(examples) == 0:
            raise ValueError(f"examples must be (m, n) with m > 0, got {tuple(examples.shape)}")
        if labels is None and self.mode == "supervised":
            raise ValueError("labels: mode='supervised' needs the class of each example")
        if labels is not None:
            _check_labels(examples, labels)
        self.from_means(class_means(examples, labels) if self.mode == "supervised" else examples)
        if self.mode == "unsupervised" and labels is not None:
            self.weight = len(labels.unique()) / len(labels)
        return self

    def from_means(self, eb: Float[Tensor, "k n"]) -> DenseHebbianNetwork:
        """Take class means that are there already.

        Raises:
            ValueError: no rows, entries that are not finite, or nothing but zeros.
            TypeError: rows that are not floating.
        """
        check_rows("eb", eb)
        if self.rescale:
            eb = eb * (math.sqrt(eb.shape[1]) / eb.norm(dim=1, keepdim=True).clamp_min(1e-12))
        R = eb.square().mean().item() if len(eb) else 0.0
        if not 0 < R < math.inf:
            raise ValueError(
                f"eb has shape {tuple(eb.shape)} and mean square {R}: allowed are rows of finite "
                "numbers, not all zero"
            )
        self.eb, self.R, self.weight = eb, R, 1.0
        return self

    @property
    def scale(self) -> float:
        """What :func:`dense_field` is multiplied by."""
        return self.weight / self.R ** (self.P / 2)

    def field(self, s: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
        eb = self._fitted()
        return self.scale * dense_field(s, eb, self.P, self.indices)

    def energy(self, s: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
        eb = self._fitted()
        return self.scale * dense_energy(s, eb, self.P, self.indices)

    def retrieve(
        self,
        s0: Float[Tensor, "b n"],
        steps: int,
        beta: float = math.inf,
        order: Literal["sequential", "parallel"] = "sequential",
        *,
        gen: torch.Generator,
        blocks: int | None = None,
    ) -> Float[Tensor, "b n"]:
        """``steps`` sweeps of Glauber dynamics from ``s0`` (see ``lib.models.hopfield.glauber``).

        Spin by spin with distinct indices, ``lib.models.hopfield.sequential_sweep`` does the same
        at the price of one field a sweep.

        Raises:
            ValueError: a negative number of steps, an unknown order, spins other than +1 and -1,
                or as ``glauber``.
            TypeError: spins of another type than ``eb``.
        """
        if not (isinstance(steps, int) and steps >= 0):
            raise ValueError(f"steps={steps}: allowed is a whole number of 0 or more")
        if order not in ("sequential", "parallel"):
            raise ValueError(f"order={order!r}: allowed are 'sequential' and 'parallel'")
        if s0.ndim != 2:
            raise ValueError(f"s0 has shape {tuple(s0.shape)}: allowed is (b, n)")
        check_spins(s0, self._fitted())
        if not bool((s0.abs() == 1).all()):
            raise ValueError("s0 has entries other than +1 and -1, which are all that is allowed")
        s = s0
        for _ in range(steps):
            if order == "sequential" and blocks is None and self.indices == "distinct":
                s = sequential_sweep(s, self._fitted(), self.P, beta, scale=self.scale, gen=gen)
            else:
                s = glauber(self.field, s, beta, order, gen=gen, blocks=blocks)
        return s

    def _fitted(self) -> Tensor:
        if self.eb is None:
            raise ValueError("this network has no couplings yet: call fit(examples, labels) first")
        return self.eb


def class_means(examples: Float[Tensor, "m n"], labels: Int[Tensor, "m"]) -> Float[Tensor, "k n"]:
    """Mean example of every class, classes in ascending order.

    Raises:
        ValueError: not one label for each example.
        TypeError: examples that are not floating.
    """
    check_rows("examples", examples)
    _check_labels(examples, labels)
    classes, index = labels.unique(return_inverse=True)
    sums = examples.new_zeros(len(classes), examples.shape[1]).index_add_(0, index, examples)
    return sums / torch.bincount(index, minlength=len(classes))[:, None].to(examples.dtype)


def sample_means(
    xi: Float[Tensor, "k n"], r: float, M: int, gen: torch.Generator
) -> Float[Tensor, "k n"]:
    """Means of ``M`` examples of quality ``r`` of each archetype, drawn without the examples.

    An entry is ``xi (2 k / M - 1)`` with ``k`` binomial: M trials of probability ``(1 + r) / 2``.

    Raises:
        ValueError: r outside [0, 1], or M that is no whole number of 1 or more.
        TypeError: ``xi`` that is not floating.
    """
    check_rows("xi", xi)
    if not 0 <= r <= 1:
        raise ValueError(f"r={r}: allowed is 0 to 1")
    if not (M >= 1 and float(M).is_integer()):
        raise ValueError(f"M={M}: allowed is a whole number of 1 or more")
    if r == 1:
        return xi.clone()
    count = torch.full(xi.shape, float(M), device=gen.device)
    agree = torch.binomial(count, torch.full_like(count, (1 + r) / 2), generator=gen)
    return xi * (2 * agree / M - 1).to(xi)


def plefka_step(
    m: Float[Tensor, "*b n"],
    net: DenseHebbianNetwork,
    beta: float,
    order: Literal[1, 2] = 2,
    damping: float = 0.5,
) -> Float[Tensor, "*b n"]:
    """One damped update of the magnetizations in place of sampling spins.

    Order 1 is naive mean field, ``m_i = tanh(beta h_i(m))``. Order 2 takes off the part of the
    field that spin i sent out itself, ``beta (P-1) V (1-q) q^(P-2) m_i`` with ``q`` the mean of
    ``m_i^2`` and ``V = gamma (P-1)!`` the crosstalk's variance in the normalized field: the
    high-temperature expansion of Plefka, for P = 2 the reaction term of Thouless, Anderson and
    Palmer. Derived here; the paper's own form may differ.

    Raises:
        ValueError: an order other than 1 and 2, damping outside [0, 1), a negative or infinite
            ``beta``, or a network that is not supervised or storing with distinct indices.
    """
    if order not in (1, 2):
        raise ValueError(f"order={order}: allowed are 1 and 2")
    if not 0 <= damping < 1:
        raise ValueError(f"damping={damping}: allowed is 0 to below 1")
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta={beta}: allowed is 0 or more, finite")
    if net.mode == "unsupervised" or net.indices != "distinct":
        raise ValueError(
            f"mode={net.mode!r}, indices={net.indices!r}: allowed are 'supervised' or 'storing' "
            "with 'distinct'"
        )
    h = net.field(m)
    if order == 2:
        k, n = net.eb.shape
        V = k / n ** (net.P - 1) * math.factorial(net.P - 1)
        q = m.square().mean(-1, keepdim=True)
        h = h - beta * (net.P - 1) * V * (1 - q) * q ** (net.P - 2) * m
    return damping * m + (1 - damping) * torch.tanh(beta * h)


def plefka(
    net: DenseHebbianNetwork,
    m0: Float[Tensor, "*b n"],
    beta: float,
    order: Literal[1, 2] = 2,
    steps: int = 50,
) -> Float[Tensor, "*b n"]:
    """``steps`` updates of :func:`plefka_step` from ``m0``.

    Raises:
        ValueError: a negative number of steps, or as :func:`plefka_step`.
    """
    if not (isinstance(steps, int) and steps >= 0):
        raise ValueError(f"steps={steps}: allowed is a whole number of 0 or more")
    m = m0
    for _ in range(steps):
        m = plefka_step(m, net, beta, order)
    return m


class Binarized(NamedTuple):
    """Images as spins: ``x`` "m n" and ``y``, the same for testing, and the pixels that stayed."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    keep: Tensor


def structured_datasets(
    name: Literal["digits", "mnist", "fashion_mnist"] = "digits",
    train: int = 1197,
    test: int = 600,
    least: float = 1 / 16,
) -> Binarized:
    """Images as +1 and -1: each pixel against its **own** median over the training images.

    One threshold for all pixels would leave the classes so much alike that they blend. Pixels whose
    standard deviation is at most ``least`` (of a range of 1) are dropped. Use ``keep`` ("h w",
    bool) to put the spins back into a picture.

    Raises:
        ValueError: an unknown name, sizes that the data do not have, or no pixel left.
    """
    if name not in ("digits", "mnist", "fashion_mnist"):
        raise ValueError(f"name={name!r}: allowed are 'digits', 'mnist' and 'fashion_mnist'")
    split = digits(train, test) if name == "digits" else load(name)
    if max(train - len(split.x), test - len(split.x_test)) > 0:
        raise ValueError(
            f"train={train}, test={test}: {name} has {len(split.x)} and {len(split.x_test)}"
        )
    x, x_test = split.x[:train].flatten(1), split.x_test[:test].flatten(1)
    keep = x.std(0) > least
    if not bool(keep.any()):
        raise ValueError(f"least={least}: no pixel varies more; allowed is below {x.std(0).max()}")
    median = x[:, keep].median(0).values
    spins = [torch.where(v[:, keep] > median, 1.0, -1.0) for v in (x, x_test)]
    side = math.isqrt(x.shape[1])
    return Binarized(
        spins[0], split.y[:train], spins[1], split.y_test[:test], keep.reshape(side, side)
    )


def _check_labels(examples: Tensor, labels: Tensor) -> None:
    if labels.shape != examples.shape[:1]:
        raise ValueError(f"labels has shape {tuple(labels.shape)} for {len(examples)} examples")

"""Simulated physical layers, each a black box that can only be queried, and their digital twins.

A physical layer takes the magnitudes ``x`` of the waves that are sent in and gives what detectors
see. ``AcousticCavity``, ``MicrowaveCavity`` and ``MultimodeFiber`` stand for the three experiments
of the paper; ``BlackBox`` makes a layer of any function of arrays.

Calling a layer counts queries and never carries a gradient. ``response`` is the formula behind a
simulated layer, without detector and differentiable: only a ``DigitalTwin`` may look at it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lib.core.quantize import dequantize, quantize

Pair = Float[Tensor, "2 m n"]
"""A complex matrix as its real and its imaginary part."""


@runtime_checkable
class PhysicalLayer(Protocol):
    """What training needs of a device: its numbers of ports, and an answer to a query.

    ``perturb`` is what the world does to it; ``query_count`` counts samples, not calls.
    """

    n_in: int
    n_out: int
    query_count: int

    def __call__(self, x: Float[Tensor, "b n_in"]) -> Float[Tensor, "b n_out"]: ...

    def perturb(self, strength: float) -> None: ...


class SimulatedDevice:
    """What the three simulations share: queries, perturbations, copies.

    A subclass draws its matrices in ``_draw`` and computes ``response`` from ``self.matrices``. No
    matrix is ever changed in place, so a shallow copy is independent.

    Attributes:
        matrices: by name, what a perturbation changes. Replace them, do not write into them.

    Raises:
        ValueError: a number of ports below 1.
    """

    def __init__(self, n_in: int, n_out: int, gen: torch.Generator) -> None:
        if min(n_in, n_out) < 1:
            raise ValueError(f"n_in={n_in}, n_out={n_out}: allowed is 1 or more")
        self.n_in, self.n_out, self.gen, self.query_count = n_in, n_out, gen, 0
        self.matrices: dict[str, Tensor] = self._draw()
        self._stacked: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Float[Tensor, "b n_in"]) -> Float[Tensor, "b n_out"]:
        """What the detectors show. The answer is detached, and so is what the device is given.

        Raises:
            ValueError: inputs of another width or type, or not finite.
        """
        if x.ndim != 2 or x.shape[1] != self.n_in:
            raise ValueError(
                f"x has shape {tuple(x.shape)}: allowed are samples of {self.n_in} numbers"
            )
        dtype = next(iter(self.matrices.values())).dtype
        if x.dtype != dtype:
            raise ValueError(f"x is {x.dtype}: allowed is {dtype}, as the device's matrices are")
        if not x.isfinite().all():  # a camera would record NaN as darkness
            raise ValueError("x holds values that are not finite")
        self.query_count += len(x)
        with torch.no_grad():
            return self.detect(self.response(x.detach()))

    def response(self, x: Float[Tensor, "b n_in"]) -> Float[Tensor, "b n_out"]:
        """The noiseless formula, differentiable in ``x``."""
        raise NotImplementedError

    def detect(self, y: Float[Tensor, "b n_out"]) -> Float[Tensor, "b n_out"]:
        """What the detectors make of the waves; here nothing is lost."""
        return y

    def perturb(self, strength: float) -> None:
        """``T <- sqrt(1 - e^2) T + e T'`` with ``T'`` an independent draw: the energy is kept.

        Raises:
            ValueError: a strength outside 0 to 1.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength={strength}: allowed is 0 to 1")
        fresh = self._draw()
        keep = math.sqrt(1 - strength**2)
        self.matrices = {
            name: keep * T + strength * fresh[name].to(T) for name, T in self.matrices.items()
        }

    def copy(self, gen: torch.Generator | None = None) -> SimulatedDevice:
        """The same device, its counter at zero; perturbing either leaves the other alone."""
        twin = copy.copy(self)
        twin.query_count, twin._stacked = 0, {}
        twin.gen = self.gen if gen is None else gen
        return twin

    def to(self, *where: torch.device | torch.dtype | str) -> SimulatedDevice:
        """This device with its matrices moved or converted, as ``Tensor.to`` does it."""
        self.matrices = {name: T.to(*where) for name, T in self.matrices.items()}
        return self

    def _draw(self) -> dict[str, Tensor]:
        raise NotImplementedError

    def _through(self, name: str, re: Tensor, im: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``T z`` for every row ``z = re + i im``, in one real product (which meters can count)."""
        T = self.matrices[name]
        if im is None:
            return F.linear(re, T.flatten(0, 1)).chunk(2, -1)
        source, stacked = self._stacked.get(name, (None, None))
        if source is not T:  # stacked once for each matrix
            stacked = torch.cat([torch.cat([T[0], -T[1]], 1), torch.cat([T[1], T[0]], 1)])
            self._stacked[name] = (T, stacked)
        return F.linear(torch.cat([re, im], -1), stacked).chunk(2, -1)

    def _gaussian(self, m: int, n: int, variance: float) -> Pair:
        """Complex Gaussian entries; ``variance`` is the mean of their squared magnitude."""
        return math.sqrt(variance / 2) * torch.randn(2, m, n, generator=self.gen)


class AcousticCavity(SimulatedDevice):
    """Sound in a cavity, a saturating element between two scatterings, microphones.

    .. math:: y = |B\\, s(A x)|,\\qquad
              s(p) = \\tanh(6 |p|)\\, e^{i \\arg p}

    ``A: "modes n_in"`` and ``B: "n_out modes"`` are complex Gaussian, scaled to spectral norm 0.95:
    no energy is made.
    """

    def __init__(
        self, n_in: int, n_out: int, gen: torch.Generator, modes: int | None = None
    ) -> None:
        self.modes = max(n_in, n_out) if modes is None else modes
        if self.modes < 1:
            raise ValueError(f"modes={modes}: allowed is 1 or more")
        super().__init__(n_in, n_out, gen)

    def response(self, x: Float[Tensor, "b n_in"]) -> Float[Tensor, "b n_out"]:
        p = self._through("A", x)
        size = _magnitude(p)
        factor = torch.tanh(6 * size) / size
        return _magnitude(self._through("B", p[0] * factor, p[1] * factor))

    def _draw(self) -> dict[str, Tensor]:
        A = self._gaussian(self.modes, self.n_in, 1.0)
        B = self._gaussian(self.n_out, self.modes, 1.0)
        return {"A": _passive(A), "B": _passive(B)}


class MicrowaveCavity(SimulatedDevice):
    """Waves in a chamber whose walls the input sets: nonlinear in ``x``, linear in the waves.

    .. math:: y = \\big|C\\,(D(x)^{-1} - G)^{-1} b\\big|,\\qquad
              D(x)^{-1} = \\mathrm{diag}(\\omega + s x) + i \\gamma

    Input ``i`` tunes element ``i``: it shifts its inverse polarizability by ``s x_i``, with
    ``s = tuning sqrt(n_in)``. A wave that enters through ``b`` is scattered among the elements by
    the symmetric coupling ``G`` any number of times before it leaves through ``C``. The loss
    ``gamma`` keeps the matrix away from singular ones.

    Raises:
        ValueError: a loss that is not positive, a tuning that is not finite.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        gen: torch.Generator,
        tuning: float = 1.0,
        loss: float = 1.0,
    ) -> None:
        if not 0 < loss < float("inf"):
            raise ValueError(f"loss={loss}: allowed is a finite number above 0")
        if not math.isfinite(tuning):
            raise ValueError(f"tuning={tuning}: allowed is a finite number")
        self.tuning, self.loss = tuning, loss
        super().__init__(n_in, n_out, gen)

    def response(self, x: Float[Tensor, "b n_in"]) -> Float[Tensor, "b n_out"]:
        m = self.matrices
        tuned = m["omega"] + self.tuning * math.sqrt(self.n_in) * x
        inverse = torch.diag_embed(torch.complex(tuned, torch.full_like(tuned, self.loss)))
        waves = torch.linalg.solve(inverse - _complex(m["G"]), _complex(m["b"])[:, 0].to(inverse))
        return _magnitude(self._through("C", waves.real, waves.imag))

    def _draw(self) -> dict[str, Tensor]:
        n = self.n_in
        G = self._gaussian(n, n, 1.0)
        # Reciprocity. Divided so that every entry off the diagonal has variance 0.25 / n.
        G = (G + G.mT) / math.sqrt(2) / math.sqrt(4 * n)
        # The imaginary part of G is kept where it can only take energy away.
        G = torch.stack([G[0], -_positive(G[1])])
        return {
            "G": G,
            "b": self._gaussian(n, 1, 1.0),
            "C": self._gaussian(self.n_out, n, 1 / n),
            "omega": torch.randn(n, generator=self.gen),
        }


class MultimodeFiber(SimulatedDevice):
    """Light shaped by a phase modulator, mixed by a fiber, recorded as speckle by a camera.

    .. math:: y = \\big|T e^{i \\pi s x}\\big|^2,\\qquad
              s = \\mathrm{scale}\\sqrt{n_{in}}

    ``T: "n_out n_in"`` is complex Gaussian with variance ``1/n_in``, so the mean intensity is 1.
    Inputs have unit norm: with ``s = 1`` the phases were tiny and the fiber nearly linear.

    Args:
        bits: the camera's; it saturates at eight times the mean intensity. None for a perfect one.
        photons: shot noise, the number of photons at intensity 1; drawn anew for every query. None
            for no noise.

    Raises:
        ValueError: a number of photons that is not positive, bits outside 1 to 16, a scale that is
            not finite.
    """

    FULL = 8.0

    def __init__(
        self,
        n_in: int,
        n_out: int,
        gen: torch.Generator,
        scale: float = 0.5,
        bits: int | None = 8,
        photons: float | None = 1e4,
    ) -> None:
        if photons is not None and not 0 < photons < float("inf"):
            raise ValueError(f"photons={photons}: allowed is a finite number above 0, or None")
        if bits is not None and not 1 <= bits <= 16:
            raise ValueError(f"bits={bits}: allowed is 1 to 16, or None")
        if not math.isfinite(scale):
            raise ValueError(f"scale={scale}: allowed is a finite number")
        self.scale, self.bits, self.photons = scale, bits, photons
        super().__init__(n_in, n_out, gen)

    def response(self, x: Float[Tensor, "b n_in"]) -> Float[Tensor, "b n_out"]:
        phase = math.pi * self.scale * math.sqrt(self.n_in) * x
        re, im = self._through("T", phase.cos(), phase.sin())
        return re.square() + im.square()

    def detect(self, y: Float[Tensor, "b n_out"]) -> Float[Tensor, "b n_out"]:
        if self.photons is not None:
            # The variance of a photon count is its mean; at these counts it is Gaussian.
            noise = torch.randn(y.shape, generator=self.gen, dtype=torch.float32).to(y)
            y = (y + (y / self.photons).sqrt() * noise).clamp_min(0)
        if self.bits is not None:
            step = torch.tensor(self.FULL / (2**self.bits - 1), device=y.device)
            zero = torch.zeros((), dtype=torch.int32, device=y.device)
            y = dequantize(quantize(y, step, zero, self.bits, False), step, zero).to(y.dtype)
        return y

    def _draw(self) -> dict[str, Tensor]:
        return {"T": self._gaussian(self.n_out, self.n_in, 1 / self.n_in)}


class BlackBox:
    """Any function of NumPy arrays as a physical layer: an instrument's driver, say.

    Raises:
        ValueError: numbers of ports below 1; inputs or an answer of another width; an answer that
            is not finite.
        NotImplementedError: on ``perturb``; what the world does to a black box is not ours.
    """

    def __init__(self, f: Callable[[np.ndarray], np.ndarray], n_in: int, n_out: int) -> None:
        if min(n_in, n_out) < 1:
            raise ValueError(f"n_in={n_in}, n_out={n_out}: allowed is 1 or more")
        self.f, self.n_in, self.n_out, self.query_count = f, n_in, n_out, 0

    def __call__(self, x: Float[Tensor, "b n_in"]) -> Float[Tensor, "b n_out"]:
        if x.ndim != 2 or x.shape[1] != self.n_in:
            raise ValueError(
                f"x has shape {tuple(x.shape)}: allowed are samples of {self.n_in} numbers"
            )
        self.query_count += len(x)
        y = np.asarray(self.f(x.detach().cpu().numpy()))
        if y.shape != (len(x), self.n_out):
            raise ValueError(
                f"the function returned shape {y.shape}: allowed is {(len(x), self.n_out)}"
            )
        if not np.isfinite(y).all():
            raise ValueError("the function returned values that are not finite")
        return torch.from_numpy(np.ascontiguousarray(y)).to(x)

    def perturb(self, strength: float) -> None:
        raise NotImplementedError("a black box changes on its own")


class PermutedOutputs:
    """A device whose output cables somebody has swapped: port ``i`` shows output ``order[i]``.

    Raises:
        ValueError: ``order`` is not a permutation of the outputs.
    """

    def __init__(self, layer: PhysicalLayer, order: Tensor) -> None:
        if not torch.equal(order.cpu().sort().values, torch.arange(layer.n_out)):
            raise ValueError(
                f"order must hold each number from 0 to {layer.n_out - 1} once, got {len(order)} "
                "numbers that do not"
            )
        self.layer, self.order = layer, order
        self.n_in, self.n_out = layer.n_in, layer.n_out

    @property
    def query_count(self) -> int:
        return self.layer.query_count

    def __call__(self, x: Float[Tensor, "b n_in"]) -> Float[Tensor, "b n_out"]:
        y = self.layer(x)
        return y[:, self.order.to(y.device)]

    def perturb(self, strength: float) -> None:
        self.layer.perturb(strength)


class DigitalTwin:
    """A model of a device on a computer: its formula, with matrices that are a little wrong.

    Calling it is differentiable and asks the device nothing. With ``mismatch=0`` it is the device
    without its detector's noise.

    Args:
        mismatch: how wrong: the strength of the perturbation of its matrices, 0 to 1.

    Raises:
        TypeError: a device without a formula.
        ValueError: a mismatch outside 0 to 1; one above 0 without ``gen``.
    """

    def __init__(
        self, device: SimulatedDevice, mismatch: float, gen: torch.Generator | None = None
    ) -> None:
        if not isinstance(device, SimulatedDevice):
            raise TypeError(
                f"device is a {type(device).__name__}: a twin needs a simulated device, whose "
                "formula is known"
            )
        if not 0 <= mismatch <= 1:
            raise ValueError(f"mismatch={mismatch}: allowed is 0 to 1")
        if mismatch > 0 and gen is None:
            raise ValueError(f"mismatch={mismatch} needs gen, the source of the wrong matrices")
        self.model = device.copy(gen)
        if mismatch > 0:
            self.model.perturb(mismatch)
        self.n_in, self.n_out, self.mismatch = device.n_in, device.n_out, mismatch

    def __call__(self, x: Float[Tensor, "b n_in"]) -> Float[Tensor, "b n_out"]:
        return self.model.response(x)


# ----------------------------------------------------------------------------------------- helpers


def _magnitude(z: tuple[Tensor, Tensor] | list[Tensor]) -> Tensor:
    # The smallest normal number keeps the root's slope, and a division by it, finite at zero.
    tiny = torch.finfo(z[0].dtype).tiny
    return (z[0].square() + z[1].square() + tiny).sqrt()


def _complex(T: Pair) -> Tensor:
    return torch.complex(T[0], T[1])


def _passive(T: Pair) -> Pair:
    return T * (0.95 / torch.linalg.matrix_norm(_complex(T), 2))


def _positive(M: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The symmetric ``M`` with its negative eigenvalues turned positive."""
    values, vectors = torch.linalg.eigh(M)
    root = vectors * values.abs().sqrt()
    M = root @ root.mT
    return (M + M.mT) / 2  # symmetric to the last bit


def check_chain(layers: Sequence[PhysicalLayer], widths: Sequence[int]) -> None:
    """ValueError unless every layer takes what the map below it gives."""
    if len(layers) != len(widths) or not layers or min(widths) < 1:
        raise ValueError(
            f"{len(layers)} layers and widths={list(widths)}: allowed is one width, 1 or more, "
            "for each of one or more layers"
        )
    for i, (layer, width) in enumerate(zip(layers[1:], widths), 2):
        if layer.n_in != width:
            raise ValueError(
                f"layer {i} has {layer.n_in} inputs, the map below it {width} outputs: they "
                "must be equal"
            )

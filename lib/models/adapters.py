"""Fine-tuning with few parameters: which of a network's parameters learn, and what is added."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def tune_only(
    model: nn.Module, what: str | Sequence[str], within: Sequence[str] | None = None
) -> list[str]:
    """Let some parameters learn and freeze the others; returns the names of those that learn.

    Only ``requires_grad`` is changed, in place.

    Args:
        what: ``"bias"`` for all parameters of that name (BitFit, Ben Zaken et al., 2021, arXiv
            2106.10199), ``"norm"`` for the parameters of norms, or names of parameters or
            beginnings of names up to a dot: ``["blocks", "head.weight"]``.
        within: names or beginnings to choose among; all if None.

    Raises:
        ValueError: nothing is left to learn, or a name that the model does not have.
    """
    named = dict(model.named_parameters())
    if what == "bias":
        chosen = {name for name in named if name.rpartition(".")[2] == "bias"}
    elif what == "norm":
        chosen = {
            f"{path}.{leaf}".lstrip(".")
            for path, module in model.named_modules()
            if isinstance(module, NORMS)
            for leaf, _ in module.named_parameters(recurse=False)
        }
    else:
        chosen = _matching("what", [what] if isinstance(what, str) else what, named)
    if within is not None:
        chosen &= _matching("within", within, named)
    learning = [name for name in named if name in chosen]
    if not learning:
        raise ValueError(f"what={what!r}, within={within!r}: no parameter is left to learn")
    for name, parameter in named.items():
        parameter.requires_grad_(name in chosen)
    return learning


def _matching(argument: str, starts: Sequence[str], named: dict) -> set[str]:
    found: set[str] = set()
    for start in starts:
        mine = {name for name in named if name == start or name.startswith(f"{start}.")}
        if not mine:
            raise ValueError(f"{argument}: no parameter {start!r}; there are {', '.join(named)}")
        found |= mine
    return found


class LoRA(nn.Module):
    """A frozen linear or convolution layer plus a learned update of low rank.

    ``layer(x) + alpha / rank * B A x`` (Hu et al., 2021, arXiv 2106.09685). ``A`` starts as
    PyTorch's layers do and ``B`` at zero, so the output is the layer's own, bit for bit, until
    the first step. For a convolution ``A`` has the layer's kernel, stride and padding and ``B`` is
    1 by 1.

    Args:
        layer: kept as ``.layer``, its parameters frozen in place.
        alpha: scale of the update; ``rank`` if None, which makes the factor 1.

    Raises:
        ValueError: ``rank`` below 1, or a grouped convolution.
        TypeError: ``layer`` is neither linear nor a convolution.
    """

    def __init__(self, layer: nn.Module, rank: int, alpha: float | None = None) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank={rank}: allowed is 1 or more")
        weight = getattr(layer, "weight", None)
        like = {"device": weight.device, "dtype": weight.dtype} if weight is not None else {}
        if isinstance(layer, nn.Linear):
            self.A = nn.Linear(layer.in_features, rank, bias=False, **like)
            self.B = nn.Linear(rank, layer.out_features, bias=False, **like)
        elif isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            if layer.groups != 1:
                raise ValueError(f"layer: a convolution of {layer.groups} groups, allowed is 1")
            shape = {
                name: getattr(layer, name)
                for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            }
            self.A = type(layer)(layer.in_channels, rank, bias=False, **shape, **like)
            self.B = type(layer)(rank, layer.out_channels, 1, bias=False, **like)
        else:
            raise TypeError(f"layer: allowed are linear and convolution layers, got {type(layer)}")
        nn.init.zeros_(self.B.weight)
        self.layer = layer.requires_grad_(False)
        self.scale = (rank if alpha is None else alpha) / rank
        self.merged = False

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output at ``x`` with the update, whether it is merged or not."""
        if self.merged:
            return self.layer(x)
        return self.layer(x) + self.scale * self.B(self.A(x))

    @torch.no_grad()
    def delta(self) -> Tensor:
        """The update as one weight of the layer's shape."""
        A, B = self.A.weight, self.B.weight
        return self.scale * (B.flatten(1) @ A.flatten(1)).view_as(self.layer.weight)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to the layer's weight, so that it costs nothing; once is enough."""
        if not self.merged:
            self.layer.weight += self.delta()
            self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the update out of the weight again, equal up to rounding."""
        if self.merged:
            self.layer.weight -= self.delta()
            self.merged = False


class Bottleneck(nn.Module):
    """The adapter of Houlsby et al. (2019, arXiv 1902.00751): down, nonlinearity, up; zero start.

    Returns the change alone, ``U act(D x + c) + b``; ``Adapted`` adds it.

    Args:
        dim: of the input and the output.
        hidden: width of the bottleneck.
    """

    def __init__(self, dim: int, hidden: int, act: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        if dim < 1 or hidden < 1:
            raise ValueError(f"dim={dim}, hidden={hidden}: both must be 1 or more")
        self.down, self.act, self.up = nn.Linear(dim, hidden), act(), nn.Linear(hidden, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The change of ``x``, of the same shape."""
        return self.up(self.act(self.down(x)))


class Adapted(nn.Module):
    """A frozen module whose output an adapter changes.

    Args:
        module: kept as ``.module``, its parameters frozen in place.
        adapter: returns a change, zero at the start.
        form: ``"serial"``, ``h + adapter(h)`` with ``h = module(x)``, or ``"parallel"``,
            ``module(x) + adapter(x)``.
    """

    def __init__(self, module: nn.Module, adapter: nn.Module, form: str = "serial") -> None:
        super().__init__()
        if form not in ("serial", "parallel"):
            raise ValueError(f"form={form!r}: allowed are 'serial' and 'parallel'")
        self.module, self.adapter, self.form = module.requires_grad_(False), adapter, form

    def forward(self, x: Tensor) -> Tensor:
        """The module's output at ``x``, changed."""
        h = self.module(x)
        return h + self.adapter(h if self.form == "serial" else x)


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """What the adapters of ``model`` add to its ``state_dict``: theirs alone, to be saved.

    Load it with ``load_state_dict(..., strict=False)`` into a model adapted in the same way.

    Raises:
        ValueError: ``model`` has neither a ``LoRA`` nor an ``Adapted`` module.
    """
    own = {LoRA: ("A.", "B."), Adapted: ("adapter.",)}
    starts = tuple(
        f"{path}.{part}".lstrip(".")
        for path, module in model.named_modules()
        for part in own.get(type(module), ())
    )
    if not starts:
        raise ValueError("model: it has no adapter")
    return {k: v for k, v in model.state_dict().items() if k.startswith(starts)}

"""Several modules of one architecture evaluated in the same tensor operations."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap


class Stacked:
    """Modules of one architecture as one: parameters and buffers get a leading axis.

    Batch-norm statistics go along. ``write_back`` copies the numbers into the modules.

    Raises:
        ValueError: no modules, or modules of different shapes.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = list(modules)
        shapes = {tuple(p.shape for p in m.parameters()) for m in self.modules}
        if len(shapes) != 1:
            raise ValueError(
                f"modules: {len(self.modules)} of them with {len(shapes)} sets of shapes: allowed "
                "are one or more of one architecture"
            )
        self.params, self.buffers = stack_module_state(self.modules)
        # A skeleton without numbers: they are in params and buffers.
        self._base = copy.deepcopy(self.modules[0]).to("meta")

    def __call__(self, *inputs: Tensor):
        """Every module on its own slice of the inputs' first axis."""

        def one(params, buffers, *inputs):
            return functional_call(self._base, (params, buffers), inputs)

        return vmap(one)(self.params, self.buffers, *inputs)

    @torch.no_grad()
    def write_back(self) -> None:
        for i, module in enumerate(self.modules):
            tensors = dict(module.named_parameters()) | dict(module.named_buffers())
            for name, values in {**self.params, **self.buffers}.items():
                tensors[name].copy_(values[i])

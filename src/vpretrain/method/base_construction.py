"""The base class of constructions: what a base task, a control and a construction with a designer have in common."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vpretrain.method.protocols import AnyBatch, Inputs, Task


class BaseConstruction:
    """A construction without `targets`, which each modality adds; see `protocols.Construction`.

    Attributes:
        designer: holds phi; None for controls.
    """

    designer: nn.Module | None = None

    def inputs(self, batch: AnyBatch) -> Inputs:
        """Return the batch unchanged."""
        return batch

    def regulariser(self, task: Task) -> Tensor:
        """Return 0: there is nothing to regularise."""
        return torch.zeros(())

    def unit(self, surrogate: Tensor, task: Task) -> Tensor | float:
        """Return 1: the value keeps its own unit."""
        return 1.0

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return phi."""
        return () if self.designer is None else self.designer.parameters()

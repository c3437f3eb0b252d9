"""Inner products of a gradient with others, taken parameter by parameter while backward makes it: it is never held whole."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from vpretrain.task import Parameters


class Products:
    """<G, P G>, and <G, P v> for some v; `add` takes G's part of one parameter at a time.

    Args:
        others: v, each over all parameters that G has.
        metric: P; None for the identity.
        noise: if given, G is noise of the same norm that it draws: the random-feedback control.
    """

    def __init__(
        self, *others: Parameters, metric: Mapping[str, Tensor] | None, noise: torch.Generator | None = None
    ) -> None:
        self.others, self.metric, self.noise = others, metric or {}, noise
        self._sums: list[Tensor] = []
        self._squares: list[Tensor] = []  # of what G is, and of what stands in its place

    @torch.no_grad()
    def add(self, name: str, g: Tensor) -> None:
        """Count in a parameter's part."""
        drawn = g if self.noise is None else like(torch.randn(g.shape, generator=self.noise), g)
        self._squares.append(torch.stack([g.square().sum(), drawn.square().sum()]))
        scaled = drawn * self.metric[name] if name in self.metric else drawn
        self._sums.append(torch.stack([(scaled * v).sum() for v in (drawn, *(other[name] for other in self.others))]))

    def __call__(self) -> list[float]:
        """<G, P G> first, then the others in their order."""
        own, drawn = _whole(torch.stack(self._squares).sum(0)).tolist()
        scale = (own / drawn) ** 0.5 if self.noise is not None and drawn else 1.0
        square, *products = _whole(torch.stack(self._sums).sum(0)).tolist()
        return [scale**2 * square, *(scale * product for product in products)]


def like(values: Tensor, other: Tensor) -> Tensor:
    """On the device of another, and in shards as it is."""
    if isinstance(other, DTensor):
        return distribute_tensor(values.to(other.dtype), other.device_mesh, other.placements)
    return values.to(other)


def _whole(sums: Tensor) -> Tensor:
    return sums.full_tensor() if isinstance(sums, DTensor) else sums

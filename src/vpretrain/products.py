"""Inner products of a gradient with others, taken parameter by parameter while backward makes it: it is never held whole."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from vpretrain.task import Parameters


class Products:
    """<G, G>, and <G, v> for some v; `add` takes G's part of one parameter at a time.

    Args:
        others: v, each over all parameters that G has.
        noise: if given, G is noise of the same norm that it draws: the random-feedback control.
    """

    def __init__(self, *others: Parameters, noise: torch.Generator | None = None) -> None:
        self.others, self.noise = others, noise
        self._sums: list[Tensor] = []

    @torch.no_grad()
    def add(self, name: str, g: Tensor) -> None:
        """Count in a parameter's part."""
        G = g if self.noise is None else like(torch.randn(g.shape, generator=self.noise), g)
        self._sums.append(torch.stack([dot(g, g), dot(G, G), *(dot(G, other[name]) for other in self.others)]))

    def __call__(self) -> list[float]:
        """<G, G> first, then the others in their order."""
        own, drawn, *products = whole(torch.stack(self._sums).sum(0)).tolist()
        scale = (own / drawn) ** 0.5 if drawn else 1.0
        return [own, *(scale * product for product in products)]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of the products of all entries, without a tensor of their products."""
    if isinstance(a, DTensor) or a.dtype != b.dtype:
        return (a * b).sum()
    return torch.dot(a.flatten(), b.flatten())


def like(values: Tensor, other: Tensor) -> Tensor:
    """On the device of another, and in shards as it is."""
    if isinstance(other, DTensor):
        return distribute_tensor(values.to(other.dtype), other.device_mesh, other.placements)
    return values.to(other)


def whole(sums: Tensor) -> Tensor:
    """Sums as such, where they are over shards as well."""
    return sums.full_tensor() if isinstance(sums, DTensor) else sums

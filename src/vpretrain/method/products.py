"""Inner products of a gradient with others, taken parameter by parameter while backward makes it: it is never held whole."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from vpretrain.method.protocols import Parameters

_HELD = {torch.float32: torch.bfloat16}
_PART = 2**22  # entries of which a copy in another precision is made at a time


class Products:
    """<G, G>, and <G, v> for some v; `add` takes G's part of one parameter at a time.

    Args:
        others: v, each over some of G's parameters, and 0 over the rest.
        noise: if given, G is noise of the same norm that it draws: the random-feedback control.
    """

    def __init__(self, *others: Parameters, noise: torch.Generator | None = None) -> None:
        self.others, self.noise = others, noise
        self._sums: list[Tensor] = []

    @torch.no_grad()
    def add(self, name: str, g: Tensor) -> None:
        """Count in a parameter's part."""
        own = drawn = dot(g, g)
        if self.noise is not None:
            g = like(torch.randn(g.shape, generator=self.noise), g)
            drawn = dot(g, g)
        others = (dot(g, other[name]) if name in other else 0 * own for other in self.others)
        self._sums.append(torch.stack([own, drawn, *others]))

    def __call__(self) -> list[float]:
        """<G, G> first, then the others in their order."""
        own, drawn, *products = whole(torch.stack(self._sums).sum(0)).tolist()
        scale = (own / drawn) ** 0.5 if drawn else 1.0
        return [own, *(scale * product for product in products)]


class Scaled:
    """P G of a gradient G, to be compared with others: held in half precision, while G itself is not.

    Args:
        at: the parameters that G is taken by.
        metric: P, diagonal; None, and where it has no parameter of the name, is the identity.
        others: v, as in `Products`.
    """

    def __init__(self, at: Parameters, metric: Mapping[str, Tensor] | None, *others: Parameters) -> None:
        self.metric = {} if metric is None else metric
        # Made before the pass, so that they do not lie between what it lets go of.
        self.held = {n: torch.zeros_like(p, dtype=_HELD.get(p.dtype, p.dtype)) for n, p in at.items()}
        self._products = Products(*others)
        self._squares: list[Tensor] = []

    @torch.no_grad()
    def add(self, name: str, g: Tensor) -> None:
        """Count in a parameter's part, and hold it times P."""
        scaled = self.metric[name] * g if name in self.metric else g
        self._products.add(name, g)
        self._squares.append(dot(g, scaled))
        self.held[name].copy_(scaled)

    def __call__(self) -> list[float]:
        """<G, P G> first, then <G, G> and the others in their order."""
        return [float(whole(torch.stack(self._squares).sum())), *self._products()]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of the products of all entries, in a's precision and without a tensor of their products."""
    if isinstance(a, DTensor):
        return (a * b).sum()
    parts = zip(a.flatten().split(_PART), b.flatten().split(_PART), strict=True)
    return torch.stack([torch.dot(x, y.to(x.dtype)) for x, y in parts]).sum()


def like(values: Tensor, other: Tensor) -> Tensor:
    """On the device of another, and in shards as it is."""
    if isinstance(other, DTensor):
        return distribute_tensor(values.to(other.dtype), other.device_mesh, other.placements)
    return values.to(other)


def whole(sums: Tensor) -> Tensor:
    """Sums as such, where they are over shards as well."""
    return sums.full_tensor() if isinstance(sums, DTensor) else sums

"""Inner products of a gradient with others, taken parameter by parameter during backward: it is never held whole."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from vpretrain.method.protocols import Parameters

_HELD = {torch.float32: torch.bfloat16}
_PART = 2**22  # entries that are converted to another precision at a time


class Products:
    """Accumulate <G, G>, and <G, v> for each v; `add` takes the part of G that belongs to one parameter.

    Args:
        others: the v, each over some of G's parameters, and 0 over the rest.
        noise: if given, G is replaced by noise of the same norm drawn from it: the random-feedback control.
    """

    def __init__(self, *others: Parameters, noise: torch.Generator | None = None) -> None:
        self.others, self.noise = others, noise
        self._sums: list[Tensor] = []

    @torch.no_grad()
    def add(self, name: str, g: Tensor) -> None:
        """Add one parameter's part."""
        own = drawn = dot(g, g)
        if self.noise is not None:
            g = like(torch.randn(g.shape, generator=self.noise), g)
            drawn = dot(g, g)
        others = (dot(g, other[name]) if name in other else 0 * own for other in self.others)
        self._sums.append(torch.stack([own, drawn, *others]))

    def __call__(self) -> list[float]:
        """Return <G, G>, then the other products in order."""
        own, drawn, *products = whole(torch.stack(self._sums).sum(0)).tolist()
        scale = (own / drawn) ** 0.5 if drawn else 1.0
        return [own, *(scale * product for product in products)]


class Scaled:
    """Accumulate P G of a gradient G, held in half precision, and its products; G itself is not held.

    Args:
        theta: the parameters of G.
        metric: P, diagonal; the identity if None, and for parameters that it lacks.
        others: the v, as in `Products`.
    """

    def __init__(self, theta: Parameters, metric: Mapping[str, Tensor] | None, *others: Parameters) -> None:
        self.metric = {} if metric is None else metric
        # Allocated before the pass, so that they do not fragment the memory that it frees.
        self.held = {n: torch.zeros_like(p, dtype=_HELD.get(p.dtype, p.dtype)) for n, p in theta.items()}
        self._products = Products(*others)
        self._squares: list[Tensor] = []

    @torch.no_grad()
    def add(self, name: str, g: Tensor) -> None:
        """Add one parameter's part, and hold it times P."""
        scaled = self.metric[name] * g if name in self.metric else g
        self._products.add(name, g)
        self._squares.append(dot(g, scaled))
        self.held[name].copy_(scaled)

    def __call__(self) -> list[float]:
        """Return <G, P G>, <G, G>, then the other products in order."""
        return [float(whole(torch.stack(self._squares).sum())), *self._products()]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of two tensors, in a's precision and without a tensor of the products."""
    if isinstance(a, DTensor):
        return (a * b).sum()
    parts = zip(a.flatten().split(_PART), b.flatten().split(_PART), strict=True)
    return torch.stack([torch.dot(x, y.to(x.dtype)) for x, y in parts]).sum()


def like(values: Tensor, other: Tensor) -> Tensor:
    """Return the values with the dtype, device and sharding of another tensor."""
    if isinstance(other, DTensor):
        return distribute_tensor(values.to(other.dtype), other.device_mesh, other.placements)
    return values.to(other)


def whole(tensor: Tensor) -> Tensor:
    """Return a plain tensor: of shards the whole, gathered or, if it is a sum, summed."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

"""The random-feedback control: noise in place of the feedback's gradients."""

from __future__ import annotations

import torch

from vpretrain.method.products import like
from vpretrain.method.protocols import Parameters
from vpretrain.method.value import norm


def noise_of(seed: int | None, update: int, number: int) -> torch.Generator | None:
    """Return the generator for one gradient of a meta update; None without a seed, in other arms.

    It is seeded by update and number, so that a resumed run draws the same noise.
    """
    if seed is None:
        return None
    return torch.Generator().manual_seed(seed * 1_000_003 + update + number * 1_000_000_007)


def noise_like(g: Parameters, noise: torch.Generator) -> Parameters:
    """Return Gaussian noise with a gradient's norm."""
    drawn = {name: like(torch.randn(part.shape, generator=noise), part) for name, part in g.items()}
    scale = norm(g) / norm(drawn)
    return {name: scale * part for name, part in drawn.items()}

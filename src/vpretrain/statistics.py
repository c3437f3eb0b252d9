"""Intervals over problems."""

from __future__ import annotations

from collections.abc import Sequence

import torch

RESAMPLES = 10_000


def bootstrap_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of the mean of independent values (one a problem)."""
    x = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    means = x[torch.randint(len(x), (RESAMPLES, len(x)), generator=generator)].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def paired_difference(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Mean of a - b over the same problems, with its 95 % interval."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    low, high = bootstrap_interval(differences)
    return {"mean": sum(differences) / len(differences), "low": low, "high": high}

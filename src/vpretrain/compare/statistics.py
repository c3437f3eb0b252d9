"""Intervals over seeds and cases. Shapes: S seeds, N cases (problems, images), R resamples."""

from __future__ import annotations

from collections.abc import Sequence

RESAMPLES = 10_000
_AT_ONCE = 500  # resamples held in memory together


def bootstrap_interval(values: Sequence[float] | Sequence[Sequence[float]], *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of the mean.

    Args:
        values: one per case, [N]; or [S, N], one per case and seed: then seeds and cases are both resampled (the crossed
            bootstrap), since every seed has the same cases.
        seed: of the draws.
    """
    import torch  # takes seconds: what only shows results needs none of it

    x_SN = torch.tensor(values, dtype=torch.float64)
    x_SN = x_SN[None] if x_SN.ndim == 1 else x_SN
    generator = torch.Generator().manual_seed(seed)
    cases_RN = torch.randint(x_SN.shape[1], (RESAMPLES, x_SN.shape[1]), generator=generator)
    seeds_RS = torch.randint(x_SN.shape[0], (RESAMPLES, x_SN.shape[0]), generator=generator)
    parts = zip(seeds_RS.split(_AT_ONCE), cases_RN.split(_AT_ONCE), strict=True)
    means_R = torch.cat([x_SN[s_RS[:, :, None], n_RN[:, None, :]].mean((1, 2)) for s_RS, n_RN in parts])
    low, high = torch.quantile(means_R, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def paired_difference(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return the mean of a - b over the same seeds and cases, both [S, N], with its 95 % interval."""
    differences = [[x - y for x, y in zip(*rows, strict=True)] for rows in zip(a, b, strict=True)]
    low, high = bootstrap_interval(differences)
    flat = [difference for row in differences for difference in row]
    return {"mean": sum(flat) / len(flat), "low": low, "high": high}

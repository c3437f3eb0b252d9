"""NLL after one temperature: the difference that remains once each model has its best temperature.

Shapes: N problems, G temperatures.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

# Of all logits, the inverse of a temperature: from 0.54 to 2.8. An untrained learner may be far too confident; none that was
# trained to predict is as far on the other side.
LOG2_SCALES = (-1.5, -1.2, -0.9, -0.6, -0.3, 0.0, 0.3, 0.6, 0.9)
SCALES = [2.0**x for x in LOG2_SCALES]
_STEPS = 2401  # at which the temperature is looked for


def tempered(nll_NG: Float[np.ndarray, "N G"]) -> tuple[Float[np.ndarray, " N"], float]:
    """Return each problem's NLL at the temperature that is best for other problems, and the mean of these temperatures.

    Every second problem has the temperature of the others, so that none is fitted on the problem itself; a single problem
    keeps temperature 1. Between the G temperatures the NLL is interpolated by a polynomial.

    Args:
        nll_NG: nats per token, at SCALES.
    """
    if len(nll_NG) < 2:
        return nll_NG[:, LOG2_SCALES.index(0.0)], 1.0
    x = np.linspace(LOG2_SCALES[0], LOG2_SCALES[-1], _STEPS)
    # What each of the G values contributes at each x.
    weights_GX = np.linalg.solve(
        np.vander(LOG2_SCALES, increasing=True).T, np.vander(x, len(LOG2_SCALES), increasing=True).T
    )
    found_N, chosen = np.empty(len(nll_NG)), []
    for half in (0, 1):
        best = (nll_NG[1 - half :: 2].mean(0) @ weights_GX).argmin()
        found_N[half::2] = nll_NG[half::2] @ weights_GX[:, best]
        chosen.append(x[best])
    return found_N, float(2.0 ** -np.mean(chosen))

"""The retention guard: feedback steers, but not against what a second, general loss asks for."""

from __future__ import annotations

from vpretrain.task import Parameters
from vpretrain.value import inner


def guarded(g_down: Parameters, g_gen: Parameters, metric: Parameters | None) -> Parameters:
    """g_down without the part of it that works against the general loss, L_gen.

    A learner step -eta P g_pre changes L_gen by -eta <g_gen, P g_pre> to first order. The value asks for a g_pre along g_down,
    whose step raises L_gen if and only if <g_down, P g_gen> < 0. So the inner product that tells, and the length in which a
    change of g_down is small, are P's. The g nearest to g_down in that length with <g, P g_gen> >= 0 is

        g_down - (<g_down, P g_gen> / <g_gen, P g_gen>) g_gen   where <g_down, P g_gen> < 0, else g_down itself;

    among all g_pre of a given length that do not raise L_gen it also is the direction of largest <g_down, P g_pre>.

    For a dot product u = P g_down, so that this is the projection of u: <u, g_gen> >= 0 afterwards. A cosine and a penalty add
    a multiple of -P g_pre to u, which shortens g_pre (and with it whatever the step does to L_gen) and turns it nowhere.
    That term is left alone: to project it too would pay for long g_pre along g_gen, which both forms are there not to do.
    So what never works against L_gen is the gradient that g_pre is aligned with, whatever Align is.
    """
    product = inner(g_down, g_gen, metric)
    if product >= 0:
        return g_down
    share = product / inner(g_gen, g_gen, metric)
    return {name: g - share * g_gen[name] for name, g in g_down.items()}

"""The value of a task, V = Align(g_down, g_pre), and three engines for its gradient in the designer's parameters.

All gradients here are dictionaries over the alignment subset S. Whatever Align is, its differential at the present g_pre
is an inner product with a fixed direction u = dAlign/dg_pre, so that dV/dphi = d/dphi <u, g_pre(phi)>, and <u, g_pre> is
the directional derivative of L_pre along u: D_u L_pre(theta; phi). That needs no second-order autograd:

- `jvp` takes D_u by forward-mode differentiation, then goes backward through the designer alone;
- `finite_difference` takes it from two evaluations of L_pre at theta_S +- h u;
- `double_backward` differentiates g_pre itself: slow, and the reference for the other two.

With several processes, each has a part of the batch: g_pre and the value are those of the whole batch, each process has its own
surrogate, and the mean over processes of its gradients is dV/dphi.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

from vpretrain import distributed
from vpretrain.config import ValueConfig
from vpretrain.method.protocols import AnyBatch, Construction, Inputs, Learner, Parameters, Task
from vpretrain.timing import phase


@dataclass(frozen=True)
class Align:
    """Align(g_down, g_pre), Eq 9 (dot) and Eq 42 (cosine).

    Attributes:
        kind: `dot` is <g_down, P g_pre>, `cosine` divides it by |g_down|_P |g_pre|_P.
        metric: P, diagonal: None for the identity, or the learner's AdamW preconditioner (App B.4). It is held constant.
        penalty: c >= 0. A dot is reduced by (c / 2) (|g_down|_P / sg|g_pre|_P) <g_pre, P g_pre>: Prop 2.1's norm term, with a
            factor that makes c independent of the gradients' scale. Hence u = P g_down - c (|g_down|_P / |g_pre|_P) P g_pre.

    Examples:
        >>> import torch
        >>> g_down, g_pre = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([3.0, 4.0])}
        >>> round(float(Align("cosine")(g_down, g_pre)), 3)
        0.6
        >>> Align("dot").direction(g_down, None)
        {'w': tensor([1., 0.])}
    """

    kind: Literal["dot", "cosine"]
    metric: Mapping[str, Tensor] | None = None
    penalty: float = 0.0

    def __call__(self, g_down: Parameters, g_pre: Parameters) -> Tensor:
        """Return the value, differentiable in `g_pre`; a dot is in loss per unit of P-scaled step, a cosine has no unit."""
        product = inner(g_down, g_pre, self.metric)
        if self.linear:
            return product
        down, pre = inner(g_down, g_down, self.metric), inner(g_pre, g_pre, self.metric)
        tiny = torch.finfo(pre.dtype).tiny
        if self.kind == "cosine":
            return product / (down * pre).clamp_min(tiny).sqrt()
        return product - self.penalty / 2 * (down / pre.detach().clamp_min(tiny)).sqrt() * pre

    @property
    def linear(self) -> bool:
        """Whether the direction does not depend on g_pre."""
        return self.kind == "dot" and self.penalty == 0

    def direction(self, g_down: Parameters, g_pre: Parameters | None) -> Parameters:
        """Return u = dAlign/dg_pre at `g_pre` (which a linear Align does not need)."""
        leaves = {name: torch.zeros_like(g) if g_pre is None else g_pre[name] for name, g in g_down.items()}
        leaves = {name: g.detach().requires_grad_() for name, g in leaves.items()}
        with torch.enable_grad():
            gradients = torch.autograd.grad(self(g_down, leaves), list(leaves.values()))
        return dict(zip(leaves, gradients, strict=True))


@dataclass(frozen=True)
class MetaProblem:
    """The arguments of an engine: V of a construction on a batch, at a learner.

    Attributes:
        learner: theta.
        construction: c_phi.
        batch: stream rows, on which g_pre is taken.
        theta_S: the learner's parameters in S.
        g_down: the evaluator's gradient at theta_S.
        align: the definition of V.
        rank_weight: weight of this process's part of the batch, relative to the mean over processes.
        weight: of the feedback domain.
    """

    learner: Learner
    construction: Construction
    batch: AnyBatch
    theta_S: Parameters
    g_down: Parameters
    align: Align
    rank_weight: float = 1.0
    weight: float = 1.0

    def inputs(self) -> Inputs:
        """Return the learner's inputs, prepared for several evaluations."""
        return self.learner.prepare(self.construction.inputs(self.batch), self.theta_S)


@dataclass(frozen=True)
class Value:
    """The result of an engine.

    Attributes:
        value: V, a number; for a linear Align without the parts of the loss that are the same for every phi.
        surrogate: a scalar whose gradient in phi is dV/dphi (with several processes: the mean of the gradients is).
        task: the constructed task, with its graph to phi (for the regulariser).
        direction: u.
        rank_weight: as in the problem.
    """

    value: Tensor
    surrogate: Tensor
    task: Task
    direction: Parameters
    rank_weight: float = 1.0


Engine = Callable[[MetaProblem], Value]


def gradient(loss: Callable[[Parameters], Tensor], theta_S: Parameters) -> Parameters:
    """Return the gradient of `loss` in the parameters of S alone; parameters that it does not use get zeros."""
    leaves = {name: value.detach().requires_grad_() for name, value in theta_S.items()}
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss(leaves), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True))


def visit_gradient(
    loss: Callable[[Parameters], Tensor], theta_S: Parameters, visit: Callable[[str, Tensor], None]
) -> None:
    """Pass that gradient to `visit` parameter by parameter, as soon as backward has computed a part, which is then freed."""

    def hand_over(name: str, leaf: Tensor) -> None:
        assert leaf.grad is not None
        visit(name, leaf.grad)
        leaf.grad = None

    leaves = {name: value.detach().requires_grad_() for name, value in theta_S.items()}
    for name, leaf in leaves.items():
        leaf.register_post_accumulate_grad_hook(partial(hand_over, name))
    with torch.enable_grad():
        loss(leaves).backward()


def inner(a: Parameters, b: Parameters, metric: Mapping[str, Tensor] | None) -> Tensor:
    """Return <a, P b> over all of S; without a metric P is the identity."""
    metric = metric or {}
    return _whole(torch.stack([(a[n] * metric[n] * b[n] if n in metric else a[n] * b[n]).sum() for n in a]).sum())


def norm(gradient: Parameters) -> Tensor:
    """Return the Euclidean norm over all of S."""
    return _whole(torch.stack([g.norm() for g in gradient.values()]).norm())


def _whole(number: Tensor) -> Tensor:
    """Return a scalar as a plain tensor, summed over shards if there are any."""
    return number.full_tensor() if isinstance(number, DTensor) else number


def double_backward(problem: MetaProblem) -> Value:
    """Compute V and its gradient by double backward, through g_pre itself: the reference for the other engines."""
    learner, construction, align = problem.learner, problem.construction, problem.align
    theta_S = {name: value.detach().requires_grad_() for name, value in problem.theta_S.items()}
    inputs = problem.inputs()
    with learner.without_fused_kernels():
        state = learner.forward(inputs, theta_S)
        task = construction.targets(inputs, state.detach())
        loss = problem.rank_weight * learner.loss(state, task)
        gradients = torch.autograd.grad(
            loss, list(theta_S.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
    means = distributed.all_reduce_mean(gradients)
    # The value of the mean over processes, with the graph to phi of this process's part.
    g_pre = {
        n: g if distributed.size() == 1 else mean + g - g.detach()
        for n, g, mean in zip(theta_S, gradients, means, strict=True)
    }
    value = align(problem.g_down, g_pre)
    u = align.direction(problem.g_down, {n: g.detach() for n, g in g_pre.items()})
    return Value(value.detach(), value, task, u, problem.rank_weight)


def jvp(problem: MetaProblem) -> Value:
    """Compute V by one tangent pass along u; exact up to rounding (METHODS: the linear engine).

    Examples:
        The engines agree, here on the cosine of a recipe with a designer:

        >>> from dataclasses import replace
        >>> from vpretrain.language.assemble import assemble
        >>> parts = assemble(load_recipe("recipe.yaml", ["arm=v-paper"]))
        >>> with parts.learner.meta_mode():
        ...     (problem,) = parts.meta.problems(parts.meta.feedback_gradients(), parts.stream.next())
        ...     problem = replace(problem, align=Align("cosine"))
        ...     values = [float(engine(problem).value) for engine in (jvp, finite_difference, double_backward)]
        >>> max(values) - min(values) < 1e-4
        True
    """
    inputs, rank_weight = problem.inputs(), problem.rank_weight
    value, u, task = _linearise(problem, inputs)
    # A linear Align has no value yet: the directional derivative is its value.
    theta_S = {n: problem.theta_S[n].detach() for n in u}
    varying = problem.learner.varying(inputs)
    surrogate = rank_weight * problem.learner.directional_derivative(varying, theta_S, u, whole=value is None)(task)
    # Checked for a linear Align only: any other u may be orthogonal to g_pre. A process may also have no rows.
    if problem.align.linear and rank_weight > 0 and float(surrogate.detach()) == 0 and float(norm(u)) > 0:
        raise RuntimeError("the tangent was lost on its way through the learner; use value.engine=finite_difference")
    (mean,) = distributed.all_reduce_mean([surrogate]) if value is None else (value,)
    return Value(mean.detach(), surrogate, task, u, rank_weight)


def finite_difference(problem: MetaProblem, *, relative_step: float = 1e-5) -> Value:
    """Compute V by a central difference of L_pre at theta_S +- h u, with |h u| = relative_step * |theta_S|.

    L_pre is differentiated in the tensors that phi has made, inside each of the two contexts: afterwards theta_S is restored.
    """
    learner, rank_weight = problem.learner, problem.rank_weight
    inputs = problem.inputs()
    value, u, task = _linearise(problem, inputs)
    h = relative_step * float(norm(problem.theta_S)) / max(float(norm(u)), torch.finfo(torch.float32).tiny)
    made: list[Tensor] = []  # tensors with a graph to phi
    seen, target = _cut(learner.varying(inputs), made), _cut(task.target, made)
    leaves = [tensor.detach().requires_grad_() for tensor in made]
    losses, gradients = [], []
    for sign in (1, -1):
        with learner.shifted(problem.theta_S, u, sign * h) as there, torch.enable_grad():
            loss = learner.loss(learner.forward(seen(leaves), there), replace(task, target=target(leaves)))
            losses.append(loss.detach())
            derive = partial(torch.autograd.grad, allow_unused=True, materialize_grads=True)
            gradients.append(derive(loss, leaves) if leaves else ())
    turns = [rank_weight * (plus - minus) / (2 * h) for plus, minus in zip(*gradients, strict=True)]
    surrogate = sum(((turn * tensor).sum() for turn, tensor in zip(turns, made, strict=True)), losses[0].new_zeros(()))
    if value is None:
        (value,) = distributed.all_reduce_mean([rank_weight * (losses[0] - losses[1]) / (2 * h)])
    return Value(value, surrogate, task, u, rank_weight)


def no_value(problem: MetaProblem) -> Value:
    """Return V = 0, so that the regulariser acts alone: a control."""
    inputs = problem.learner.varying(problem.construction.inputs(problem.batch))
    with torch.no_grad():
        state = problem.learner.forward(inputs, problem.theta_S)
    task = problem.construction.targets(inputs, state.detach())
    zero = torch.zeros(())
    return Value(
        zero, zero, task, {n: torch.zeros_like(value) for n, value in problem.theta_S.items()}, problem.rank_weight
    )


ENGINES: dict[str, Engine] = {
    "jvp": jvp,
    "finite_difference": finite_difference,
    "double_backward": double_backward,
}


def engine(config: ValueConfig) -> Engine:
    """Return the engine that a recipe names."""
    if config.engine == "finite_difference":
        return partial(finite_difference, relative_step=config.relative_step)
    return ENGINES[config.engine]


def _linearise(problem: MetaProblem, inputs: Inputs) -> tuple[Tensor | None, Parameters, Task]:
    """Return the value (None for a linear Align, which needs no g_pre here), the direction u and the task."""
    learner, construction = problem.learner, problem.construction
    g_down, align = problem.g_down, problem.align
    if align.linear:
        with torch.no_grad():
            state = learner.forward(learner.varying(inputs), problem.theta_S).detach()
        return None, align.direction(g_down, None), construction.targets(inputs, state)
    task: Task | None = None

    def loss(parameters: Parameters) -> Tensor:
        nonlocal task
        state = learner.forward(inputs, parameters)
        task = construction.targets(inputs, state.detach())
        return problem.rank_weight * learner.loss(state, task.detach())

    with phase("meta: g_pre"):
        g_pre = learner.gradient(loss, problem.theta_S)
    assert task is not None
    return align(g_down, g_pre).detach(), align.direction(g_down, g_pre), task


def _cut(thing: Inputs, made: list[Tensor]) -> Callable[[Sequence[Tensor]], Any]:
    """Append a dataclass's tensors with a graph to phi to `made`; return a function that rebuilds it with other tensors."""
    start = len(made)

    def keep(tensor: Tensor) -> Tensor:
        if tensor.requires_grad:
            made.append(tensor)
        return tensor

    tree_map_only(Tensor, keep, vars(thing))

    def with_leaves(leaves: Sequence[Tensor]) -> Any:
        following = iter(leaves[start:])
        fields = tree_map_only(Tensor, lambda tensor: next(following) if tensor.requires_grad else tensor, vars(thing))
        return replace(thing, **fields)

    return with_leaves


def mean(values: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Return the weighted mean of scalars, given as (weight, value)."""
    total = sum(weight for weight, _ in values)
    return torch.stack([weight / total * value for weight, value in values]).sum()

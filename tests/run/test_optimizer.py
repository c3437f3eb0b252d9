"""The learner's AdamW: its rates along a run, what clipping leaves of a gradient, which steps it skips."""

from __future__ import annotations

import math

import pytest
import torch

from vpretrain.config import OptimizerConfig
from vpretrain.run.optimizer import AdamW, Preconditioner


def make(parameter, **settings):
    config = OptimizerConfig(**({"lr": 0.1, "warmup_fraction": 0.0} | settings))
    return AdamW([("w", parameter)], config, total_steps=100)


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [("constant", [1.0, 1.0, 1.0]), ("linear", [0.775, 0.55, 0.1]), ("cosine", [0.868198, 0.55, 0.1])],
)
def test_rates_rise_to_the_peak_and_fall_as_the_schedule_says(schedule, shares):
    optimizer = make(torch.nn.Parameter(torch.zeros(1)), schedule=schedule, warmup_fraction=0.2)

    def share(step):
        optimizer.steps = step
        return optimizer.learning_rate() / 0.1

    assert [share(step) for step in (0, 9, 20)] == pytest.approx([0.05, 0.5, 1.0])
    assert [share(step) for step in (40, 60, 100)] == pytest.approx(shares, abs=1e-6)
    assert share(150) == share(100)


@pytest.mark.parametrize(("g", "clipped"), [((6.0, 8.0), (0.6, 0.8)), ((0.3, 0.4), (0.3, 0.4))])
def test_a_gradient_above_the_clip_norm_is_scaled_down_to_it(g, clipped):
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = make(parameter, clip_norm=1.0, eps=1.0)  # the first step of AdamW is -lr g / (|g| + eps)
    parameter.grad = torch.tensor(g)
    assert optimizer.step(1.0)["grad_norm"] == pytest.approx(math.hypot(*g))
    assert parameter.detach().tolist() == pytest.approx([-0.1 * x / (x + 1) for x in clipped], rel=1e-4)


def test_a_step_is_skipped_above_the_multiple_of_the_median_loss_and_not_below():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = make(parameter, skip_above=2.0)

    def skipped(loss):
        parameter.grad = torch.ones(1)
        return "skipped" in optimizer.step(loss)

    assert [skipped(loss) for loss in [2.0] * 8 + [3.0, 4.1]] == [False] * 9 + [True]


@pytest.mark.parametrize(
    ("state", "group", "known"),
    [
        ({}, {}, True),
        ({}, {"betas": None}, False),  # Adafactor: a bias has a second moment, and no such decay rates
        ({"step": None}, {}, False),  # schedule-free AdamW
        ({"exp_avg_sq": torch.ones(1, 3)}, {}, False),  # GaLore: of the projected gradient
    ],
)
def test_the_metric_is_an_adams_alone(state, group, known):
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.grad = torch.ones(2, 3)
    optimizer.step()
    for changes, own in ((state, optimizer.state[parameter]), (group, optimizer.param_groups[0])):
        for name, value in changes.items():
            if value is None:
                del own[name]
            else:
                own[name] = value
    assert (list(Preconditioner(optimizer, {"w": parameter})) == ["w"]) == known


@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_metric_is_what_a_step_multiplies_by(amsgrad):
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, betas=(0.0, 0.9), weight_decay=0.0, amsgrad=amsgrad)
    for g in torch.tensor([[4.0, 1.0], [1.0, 2.0]], dtype=torch.float64):  # the second moment of one falls
        before, parameter.grad = parameter.detach().clone(), g
        optimizer.step()
        metric = Preconditioner(optimizer, {"w": parameter})["w"]
        torch.testing.assert_close(before - parameter.detach(), 0.1 * metric * g)

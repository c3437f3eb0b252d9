"""A compiled learner on the device, by torch's own backend; the rehearsal leaves out its compiler."""

from __future__ import annotations

import functools

import pytest
import torch
from distributed.processes import distance
from sessions import trajectory

pytestmark = pytest.mark.cuda


@pytest.mark.filterwarnings("ignore")  # compiling looks at more than it should
@pytest.mark.parametrize("arm", ["one-hot", "v"])
def test_a_compiled_learner_takes_the_same_course(on_device, device, monkeypatch, arm):
    kwargs = {"arm": arm, "value": {"strength": 1.0}}
    plain, *_ = trajectory(on_device(name="plain", **kwargs))
    if device.type == "cpu":
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    compiled, _, parts = trajectory(on_device(name="compiled", learner={"compile": True}, **kwargs))
    assert next(iter(compiled.values())).device.type == device.type
    assert parts.learner._compiled is not None
    assert distance(*(torch.cat([t.flatten() for t in end.values()]) for end in (plain, compiled))) < 1e-3

"""Scores beside the answer NLL: top-1 accuracy, and NLL after one temperature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import VOCABULARY, tiny_model
from torch.nn import functional as F

from vpretrain.language.adapters.attach import token_batch
from vpretrain.language.evaluation.calibration import SCALES, tempered
from vpretrain.language.model import loss
from vpretrain.language.model.learner import LanguageLearner


def curves(logits_NLV, targets_NL):
    scores = [F.cross_entropy((s * logits_NLV).transpose(1, 2), targets_NL, reduction="none").mean(1) for s in SCALES]
    return torch.stack(scores, dim=1).numpy()


@pytest.fixture
def predictions():
    torch.manual_seed(0)
    logits_NLV = 2 * torch.randn(40, 30, 12, dtype=torch.float64)
    targets_NL = torch.distributions.Categorical(logits=logits_NLV).sample()  # so that temperature 1 is best
    return logits_NLV, targets_NL


@pytest.mark.parametrize("confidence", [0.75, 1.0, 1.4, 2.2])
def test_confidence_has_no_effect_after_one_temperature(predictions, confidence):
    logits_NLV, targets_NL = predictions
    as_they_are, _ = tempered(curves(logits_NLV, targets_NL))
    found, temperature = tempered(curves(confidence * logits_NLV, targets_NL))
    assert found == pytest.approx(as_they_are, abs=5e-4)
    assert temperature == pytest.approx(confidence, rel=0.1)


def test_each_half_of_the_problems_has_the_best_temperature_of_the_other():
    x = np.log2(SCALES)
    nll_NG = np.stack([(x - 0.25) ** 2, (x + 0.5) ** 2, (x - 0.25) ** 2, (x + 0.5) ** 2])
    found, temperature = tempered(nll_NG)
    assert found == pytest.approx([0.75**2] * 4, abs=1e-6)
    assert temperature == pytest.approx(2 ** ((0.5 - 0.25) / 2), abs=1e-3)


def test_a_single_problem_keeps_its_own_temperature():
    found, temperature = tempered(np.array([SCALES]))
    assert (found.tolist(), temperature) == ([1.0], 1.0)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_scores_are_those_of_all_logits(monkeypatch, family):
    monkeypatch.setattr(loss, "CHUNK", 256)  # several chunks
    model = tiny_model(family).eval()
    ids_BT = torch.randint(1, VOCABULARY, (3, 10), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for t in range(2, 10, 2):  # every second token is the likeliest one
            ids_BT[:, t] = model(input_ids=ids_BT[:, :t]).logits[:, -1].argmax(-1)
        logits_NV = model(input_ids=ids_BT).logits[:, :-1].flatten(0, 1)
    targets_N = ids_BT[:, 1:].flatten()
    batch = token_batch({"input_ids": ids_BT, "labels": ids_BT})
    nll_NG, likeliest_N = LanguageLearner(model).scores(batch, SCALES)
    expected = [F.cross_entropy(scale * logits_NV, targets_N, reduction="none") for scale in SCALES]
    torch.testing.assert_close(nll_NG, torch.stack(expected, dim=1), rtol=1e-4, atol=1e-5)
    assert torch.equal(likeliest_N, logits_NV.argmax(-1) == targets_N)
    assert 12 <= likeliest_N.sum() < 20

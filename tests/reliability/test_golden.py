"""Loss curves of 100 steps, as they were: `PYTHONPATH=tests python tests/reliability/test_golden.py` writes them anew."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import mean

import pytest
import torch
from sessions import session_of
from worlds import small_recipe

from vpretrain.modality import MODALITIES

pytestmark = pytest.mark.reliability
FILE = Path(__file__).with_name("golden.json")
ARMS = [
    (name, arm)
    for name, modality in MODALITIES.items()
    for arm, about in modality.recipe.arms.items()
    if not getattr(about, "direct", None)
]
DRIFT = 1e-5  # mean absolute difference, in units of the loss


def curve(root, tokenizer, modality, arm):
    # At these rates rounding, which differs between processors, does not grow much.
    rates = {"optimizer": {"lr": 1e-4}, "designer": {"lr": 1e-3}}
    changes = {"stream": {}, "value": {"strength": "auto"}, "budget": {"steps": 100}, **rates}
    recipe = small_recipe(modality, root, tokenizer, arm=arm, name=arm, **changes)
    session = session_of(recipe)
    session.train()
    for hook in session.hooks:
        hook.close()
    lines = (recipe.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.promise("11 loss curves of 100 steps: mean drift at most 1e-5")
@pytest.mark.parametrize(("modality", "arm"), ARMS)
def test_losses_are_what_they_were(tmp_path, tokenizer, fault, many, modality, arm):
    if arm != "v" and many(True, False):
        pytest.skip("in the long form")
    golden = json.loads(FILE.read_text(encoding="utf-8"))[modality][arm]
    with fault():
        losses = curve(tmp_path, tokenizer, modality, arm)
        assert len(losses) == len(golden) == 100
        assert mean(abs(ours - theirs) for ours, theirs in zip(losses, golden, strict=True)) <= DRIFT


if __name__ == "__main__":
    from conftest import character_tokenizer

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            m: {
                arm: [round(loss, 7) for loss in curve(Path(folder), character_tokenizer(), m, arm)]
                for of, arm in ARMS
                if of == m
            }
            for m in MODALITIES
        }
    FILE.write_text(json.dumps(found) + "\n", encoding="utf-8")

"""SIGKILL at any instant, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from worlds import small_recipe

from vpretrain.modality import MODALITIES
from vpretrain.recipe import save_recipe

pytestmark = pytest.mark.reliability


@pytest.mark.timeout(1200)
@pytest.mark.promise("2 SIGKILL at any instant: the newest checkpoint loads, and the run ends bit-equal")
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_killed_run_goes_on_from_a_whole_checkpoint(tmp_path, tokenizer, fault, many, modality):
    if modality == "vision" and many(True, False):
        pytest.skip("in the long form")
    recipe = small_recipe(modality, tmp_path, tokenizer, checkpoint={"every_steps": 1, "keep": 2})
    save_recipe(recipe, tmp_path / "recipe.yaml")
    kills = many(5, 200)
    with fault(kills):
        command = [sys.executable, Path(__file__).with_name("kills.py"), tmp_path / "recipe.yaml", str(kills), "0"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        done = json.loads(ran.stdout)
        assert done["loaded"] + done["none yet"] == kills
        assert done["equal ends"] == done["ends"] > 0

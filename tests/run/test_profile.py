"""Profiles: a phase counts for itself alone, meta updates for their share, and timing changes nothing."""

from __future__ import annotations

import json

import pytest
from worlds import tiny_recipe, vision_recipe

from vpretrain import timing as phases
from vpretrain.cli.parser import main
from vpretrain.inspection import profile as profiling
from vpretrain.inspection.profile import ORDINARY, profile
from vpretrain.recipe import save_recipe
from vpretrain.run import run_recipe
from vpretrain.timing import phase, watching
from vpretrain.vision.data.feedback import VisionFeedback

META = {
    "meta: feedback gradient", "meta: g_pre", "meta: tangent", "meta: designer gradient", "meta: designer optimizer",
}  # fmt: skip


def test_a_phase_within_another_counts_for_itself_alone(monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(phases.time, "perf_counter", lambda: next(clock))
    with watching() as watch:
        with phase("outer"), phase("inner"):  # outer from 10 until 20; inner from 30 until 40; outer from 50 until 60
            pass
        with phase("inner"):  # from 90 until 100
            pass
    assert watch.seconds == {"outer": 20, "inner": 20}
    with phase("unwatched"):
        pass
    assert "unwatched" not in watch.seconds


@pytest.mark.parametrize("modality", ["language", "vision"])
def test_every_part_of_a_step_is_there(tmp_path, tokenizer, modality):
    make = {
        "language": lambda **c: tiny_recipe(tmp_path, tokenizer, **c),
        "vision": lambda **c: vision_recipe(tmp_path, **c),
    }
    arm, strength = {"language": ("v-learned", {"strength": 1.0}), "vision": ("v-paper", {})}[modality]
    value = {"every_steps": 2, "align": "cosine", **strength}
    designer = {"burn_in_steps": 3} | ({"align": "cosine"} if modality == "vision" else {})
    results = profile(make[modality](arm=arm, value=value, designer=designer), 3)
    assert results["steps"] == 4  # whole periods
    assert set(results["phases"]) == {*ORDINARY, "construction", *META, *(["tangent"] if strength else [])}
    assert all(cost > 0 for cost in results["phases"].values())
    assert results["added"]["microseconds"] == pytest.approx(
        sum(cost for name, cost in results["phases"].items() if name not in ORDINARY)
    )
    of_updates = sum(cost for name, cost in results["phases"].items() if name in META)
    assert results["meta_share"] == pytest.approx(of_updates / sum(results["phases"].values()))
    plain = profile(make[modality](arm="one-hot" if modality == "language" else "fixed"), 2)
    assert set(plain["phases"]) == {*ORDINARY, "construction"}
    assert plain["meta_share"] == 0


def test_the_first_fit_of_the_heads_is_not_timed(tmp_path, monkeypatch):
    fitted = []
    fit = VisionFeedback._fit
    monkeypatch.setattr(VisionFeedback, "_fit", lambda self, *args: (fitted.append(self.head_steps), fit(self, *args)))
    monkeypatch.setattr(profiling, "watching", lambda: (fitted.append("watching"), watching())[1])
    feedback = {"first_head_steps": 5, "head_steps": 1}
    value = {"every_steps": 2, "strength": 1.0}
    profile(vision_recipe(tmp_path, arm="v", feedback=feedback, value=value), 4)
    assert fitted == [0, 1, 2, 3, 4, 5, "watching", 6, 7]  # two updates in four steps


def test_watching_times_changes_nothing(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer)
    plain = run_recipe(recipe)
    with watching():
        timed = run_recipe(recipe, overwrite=True)
    assert plain.problems == timed.problems


def test_the_command_prints_a_table_and_writes_a_picture(tmp_path, tokenizer, capsys):
    save_recipe(tiny_recipe(tmp_path, tokenizer), tmp_path / "recipe.yaml")
    assert main(["profile", str(tmp_path / "recipe.yaml"), "--steps", "2", "arm=v"]) == 0
    text = capsys.readouterr().out
    assert "learner backward" in text
    assert "added to ordinary pretraining" in text
    assert "% of the time of a step" in text
    saved = json.loads((tmp_path / "runs/tiny/profile.json").read_text())
    assert saved["added"]["ratio"] > 0
    assert (tmp_path / "runs/tiny/profile.png").stat().st_size > 1000
    assert not (tmp_path / "runs/tiny/checkpoints").exists()

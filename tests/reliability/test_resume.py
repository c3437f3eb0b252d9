"""Stopped anywhere, gone on with, and ended as if nothing had happened."""

from __future__ import annotations

import itertools
import random
import signal

import pytest
from sessions import assert_same_end, end_of, session_of, stopped_after
from worlds import STEPS, small_recipe

from vpretrain.files import read_lines
from vpretrain.modality import MODALITIES

pytestmark = pytest.mark.reliability

ARMS = {
    "language": ("v", "one-hot", "v-learned", "v-paper", "random-feedback", "mixed-in", "selection"),
    "vision": ("v", "v-paper", "fixed", "random-feedback"),
}
LONG = [(modality, arm) for modality in MODALITIES for arm in ARMS[modality]]


@pytest.mark.timeout(1800)
@pytest.mark.promise("1 stopped after any step, up to three times, and resumed: the end is bit-equal")
@pytest.mark.parametrize(("modality", "arm"), LONG)
def test_a_stopped_run_ends_bit_equal(tmp_path, tokenizer, fault, many, modality, arm):
    if arm != "v" and many(True, False):
        pytest.skip("in the long form")
    # 40 pairs of which two rows of 48 characters take some 14 a step: the third step crosses into the next epoch
    changes = {"arm": arm, "value": {"metric": "adamw", "feedback_every": 2}, "optimizer": {"schedule": "cosine"}}
    recipe = small_recipe(modality, tmp_path, tokenizer, **changes)
    result = session_of(recipe).run()
    assert (result["meta_updates"] > 0) == (arm not in ("one-hot", "mixed-in", "fixed"))
    whole = end_of(recipe)
    once = [(k,) for k in range(STEPS - 1)]
    more = [c for n in (2, 3) for c in itertools.combinations(range(STEPS - 1), n)]
    chosen = random.Random(f"{modality}/{arm}").sample(more, many(1, len(more) if arm == "v" else 3))
    for stops in [*(many(once[::2], once)), *chosen]:
        with fault():
            stopped_after(recipe, stops)
            assert_same_end(end_of(recipe), whole)


@pytest.mark.promise("1 stopped after any step, up to three times, and resumed: the end is bit-equal")
@pytest.mark.parametrize(("modality", "arm"), [
    ("language", "v"), ("language", "v-learned"), ("language", "random-feedback"), ("vision", "v"),
])  # fmt: skip
@pytest.mark.usefixtures("both_questions")
def test_a_run_stopped_around_its_judgements_ends_bit_equal(tmp_path, tokenizer, fault, many, modality, arm):
    """Step 2 judges whether there is a direction, step 4 also how far it helps."""
    if (modality, arm) != ("language", "v") and many(True, False):
        pytest.skip("in the long form")
    value = {"strength": "auto", "every_steps": 1, "metric": "adamw"}
    recipe = small_recipe(modality, tmp_path, tokenizer, arm=arm, value=value)
    result = session_of(recipe).run()
    assert result["meta_updates"] >= 3
    judged = [line for line in read_lines(recipe.directory / "metrics.jsonl") if "strength" in line]
    assert [line["step"] for line in judged] == [2, 4]
    assert judged[0]["strength"] == 1
    whole = end_of(recipe)
    second, first = whole[1]["strength"]["judgements"]
    assert [len(first[0]) >= 8, len(first[1]), len(second[1]) >= 4] == [True, 0, True]
    for stops in ((1,), (2,), (3,), (4,), (1, 2, 3, 4)):
        with fault():
            stopped_after(recipe, stops)
            assert_same_end(end_of(recipe), whole)


@pytest.mark.promise("12 the same seed and threads: bit-equal runs")
@pytest.mark.parametrize("modality", MODALITIES)
def test_the_same_seed_gives_the_same_run(tmp_path, tokenizer, fault, many, modality):
    for arm in ARMS[modality][: many(1, None)]:
        recipe = small_recipe(modality, tmp_path, tokenizer, arm=arm)
        with fault():
            ends = []
            for _ in range(2):
                session_of(recipe).run()
                ends.append(end_of(recipe))
            assert_same_end(*ends)


@pytest.mark.promise("6 a budget in minutes is one budget, however often the run is resumed")
@pytest.mark.parametrize("modality", MODALITIES)
def test_minutes_are_counted_across_resumes(tmp_path, tokenizer, fault, modality):
    recipe = small_recipe(modality, tmp_path, tokenizer, budget={"steps": None, "minutes": 2 / 60})
    with fault():
        _, result = stopped_after(recipe, (1, 3), signal.SIGINT)
        assert result["seconds"] == pytest.approx(2, abs=max(0.5, 2 / result["steps"]))

"""The report's inspectors: numbers computed in another way, filters that mean what they say, text that stays text."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import character_tokenizer
from PIL import Image
from sessions import assert_same_end, end_of, session_of, stop
from torch.func import functional_call
from worlds import recipe_data, tiny_recipe, vision_recipe

from vpretrain.files import read_lines
from vpretrain.language.assemble import assemble
from vpretrain.method.value import Align, MetaProblem, double_backward
from vpretrain.recipe import parse_recipe, save_recipe
from vpretrain.report.inspectors import TEMPLATES, inspectors
from vpretrain.run import run_recipe
from vpretrain.run.session import Session
from vpretrain.vision.assemble import assemble as assemble_vision
from vpretrain.vision.data.stream import VisionStream

HOSTILE = "</script><script>alert(1)</script>"


def data_of(fragment):
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', fragment, re.DOTALL)
    assert "<" not in text
    return json.loads(text)


@pytest.fixture(scope="module")
def language_run(tmp_path_factory):
    root = tmp_path_factory.mktemp("language")
    data = recipe_data(root, character_tokenizer())
    data["stream"]["sources"][1]["domain"] = HOSTILE
    data["designer"]["lr"] = 0.05
    recipe = parse_recipe(data | {"arm": "v-paper"})
    run_recipe(recipe)
    return recipe


@pytest.fixture(scope="module")
def vision_run(tmp_path_factory):
    recipe = vision_recipe(tmp_path_factory.mktemp("vision"), designer={"lr": 0.1}, budget={"steps": 10})
    run_recipe(recipe)
    return recipe


def oracle(parts, batch):
    """alpha, q, p and the candidates' values of a whole batch: D_u log p by going backwards twice, without any tangent.

    Values have the mean 0 under p on the candidates at every token, and RMS 1 over the batch.
    """
    module, u = parts.learner.module.eval(), parts.meta.direction
    at = {name: p.detach().clone().requires_grad_(name in u) for name, p in module.named_parameters()}
    with parts.learner.without_fused_kernels():
        logits_NV = functional_call(module, at, (batch.ids_BT, batch.positions_BT, batch.predicts_BT))[1]
        log_p_NV = logits_NV.log_softmax(-1)
        weights_NV = torch.zeros_like(log_p_NV, requires_grad=True)
        gradients = torch.autograd.grad(log_p_NV, [at[n] for n in u], weights_NV, create_graph=True)
        slope = sum((g * u[n]).sum() for n, g in zip(u, gradients, strict=True))
        a_NV = -torch.autograd.grad(slope, weights_NV)[0]
    with torch.no_grad():
        state = parts.learner.forward(batch).detach()
        scores_NK, alpha_N = parts.designer(batch, state)
        candidates_NK, p_NK = state.logits.candidates_NK, state.logits.log_p_NK.softmax(-1)
        a_NK = a_NV.gather(1, candidates_NK)
        a_NK = a_NK - (p_NK * a_NK).sum(-1, keepdim=True)
        a_NK = a_NK / (batch.share_N @ (p_NK * a_NK**2).sum(-1)).sqrt()
        a_NV = torch.zeros_like(a_NV).scatter(1, candidates_NK, a_NK)
    q_NV = torch.zeros_like(a_NV).scatter(1, candidates_NK, alpha_N[:, None] * scores_NK.softmax(-1))
    q_NV[torch.arange(len(q_NV)), batch.targets_N] += 1 - alpha_N
    return alpha_N.tolist(), q_NV, log_p_NV.exp().detach(), a_NV


def test_tokens_are_those_of_the_stream_with_the_numbers_of_the_tasks(language_run):
    (fragment,) = inspectors(language_run.directory)
    data = data_of(fragment)
    assert (data["arm"], data["step"]) == ("v-paper", 6)
    assert {row["domain"] for row in data["rows"]} == {"sums", HOSTILE}

    parts = assemble(language_run)
    Session(language_run, parts, resume=True)
    tokenizer = character_tokenizer()
    text = lambda token: tokenizer.decode([token]) or f"<{token}>"  # noqa: E731
    rows = iter(data["rows"])
    row, compared = next(rows), 0
    for _ in range(40):
        for batch in parts.stream.next():
            predicted = batch.predicts_BT.nonzero().tolist()
            alpha_N, q_NV, p_NV, a_NV = oracle(parts, batch)
            for number, domain in enumerate(batch.domains):
                texts = [text(token) for token in batch.ids_BT[number].tolist()]
                begin = max(0, next(t for b, t in predicted if b == number) + 1 - 12)
                shown = row["tokens"]
                if domain != row["domain"] or [t["text"] for t in shown] != texts[begin : begin + len(shown)]:
                    continue
                for t, token in enumerate(shown, start=begin):
                    assert ("alpha" in token) == bool(batch.weights_BT[number, t] > 0)
                    assert token.get("begins", False) == (t > 0 and int(batch.positions_BT[number, t]) == 0)
                    if "alpha" not in token:
                        continue
                    n = predicted.index([number, t - 1])
                    assert token["alpha"] == pytest.approx(alpha_N[n], rel=1e-3)
                    true = int(batch.targets_N[n])
                    others = sorted(set(range(q_NV.shape[1])) - {true}, key=lambda v: -float(q_NV[n, v]))
                    assert len(token["candidates"]) == 8
                    for v, (name, p, q, a) in zip([true, *others], token["candidates"], strict=False):
                        assert name == text(v)
                        assert p == pytest.approx(float(p_NV[n, v]), rel=2e-3)
                        assert q == pytest.approx(float(q_NV[n, v]), rel=2e-3)
                        assert a == pytest.approx(float(a_NV[n, v]), rel=5e-3, abs=1e-3)
                    compared += 1
                row = next(rows, None)
                if row is None:
                    assert compared > 100
                    return
    pytest.fail("a row is not of the stream")


def test_filters_mean_what_they_say_and_the_page_is_bounded(language_run):
    (fragment,) = inspectors(language_run.directory)
    assert len(fragment) < 400_000
    data = data_of(fragment)
    targets = [token for row in data["rows"] for token in row["tokens"] if "alpha" in token]
    assert sum(len(row["tokens"]) for row in data["rows"]) <= 480
    for token in targets:
        (_, _, q_true, value), *others = token["candidates"]
        assert token["moved"] == pytest.approx(1 - q_true, abs=2e-4)
        assert token["opposed"] == (value < 0)
        assert [q for *_, q, _ in others] == sorted((q for *_, q, _ in others), reverse=True)
        assert q_true + sum(q for *_, q, _ in others) + token["rest"] == pytest.approx(1, abs=1e-3)
    assert 0 < sum(token["opposed"] for token in targets) < len(targets)
    least = min(token["moved"] for token in targets if token["steered"])
    assert all(token["moved"] <= least for token in targets if not token["steered"])
    assert sum(token["steered"] for token in targets) == pytest.approx(math.ceil(len(targets) / 10), abs=3)  # ties


def test_shades_are_scaled_to_the_targets_that_are_there(language_run):
    data = data_of(inspectors(language_run.directory)[0])
    alphas = [token["alpha"] for row in data["rows"] for token in row["tokens"] if "alpha" in token]
    assert data["alpha_highest"] == max(alphas)
    assert data["alpha_full"] in alphas
    assert sum(alpha > data["alpha_full"] for alpha in alphas) <= len(alphas) / 20
    assert sum(alpha >= data["alpha_full"] for alpha in alphas) >= len(alphas) / 20


@pytest.mark.parametrize(
    ("highest", "legend"), [(0.0, "&alpha; is 0 at every target"), (0.3, "one target in 20 exceeds")]
)
def test_where_nothing_is_tilted_a_note_takes_the_place_of_the_legend(highest, legend):
    found = {"arm": "v", "step": 7, "alpha_full": highest, "alpha_highest": highest, "values_known": False, "rows": []}
    text = TEMPLATES.get_template("tokens.html").render(found=found | {"most": []})
    assert "The targets that arm v makes" in text
    assert [said in text for said in ("&alpha; is 0 at every target", "one target in 20 exceeds")].count(True) == 1
    assert legend in text


def test_the_most_steered_targets_are_shown_as_bars(language_run):
    (fragment,) = inspectors(language_run.directory)
    most = data_of(fragment)["most"]
    targets = [token for row in data_of(fragment)["rows"] for token in row["tokens"] if "alpha" in token]
    highest = sorted((token["moved"] for token in targets), reverse=True)[:6]
    assert [target["moved"] for target in most] == [f"{moved:.3f}" for moved in highest]
    for target in most:
        bars = [bar for candidate in target["candidates"] for bar in (candidate["p_bar"], candidate["q_bar"])]
        assert max(bars) == 1
        shares = [{key: float(c[key].replace("<0.001", "0")) for key in ("p", "q")} for c in target["candidates"]]
        longest = max(max(share.values()) for share in shares)
        for candidate, share in zip(target["candidates"], shares, strict=True):
            assert candidate["q_bar"] == pytest.approx(share["q"] / longest, abs=5e-3)
            assert f"--share: {candidate['q_bar']}" in fragment
    assert fragment.count('class="vp-bar vp-q"') == sum(len(target["candidates"]) for target in most)


def test_hostile_text_stays_text(language_run):
    (fragment,) = inspectors(language_run.directory)
    assert HOSTILE not in fragment
    assert "&lt;/script&gt;" in fragment  # in the list of domains
    assert fragment.count("</script>") == 2
    elsewhere = re.compile(r"""(src|href)\s*=|url\(|@import""")
    assert not elsewhere.search(fragment.split("<script>")[0])


def test_before_the_first_meta_update_there_is_no_value(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer, designer={"burn_in_steps": 4}, budget={"steps": 2})
    run_recipe(recipe)
    (fragment,) = inspectors(recipe.directory)
    targets = [t for row in data_of(fragment)["rows"] for t in row["tokens"] if "alpha" in t]
    assert all(t["opposed"] is None and t["candidates"][0][3] is None for t in targets)
    assert '<option value="opposed" disabled>' in fragment


def test_feedback_that_is_mixed_in_has_rows_in_its_own_domain(tmp_path, tokenizer):
    data = recipe_data(tmp_path, tokenizer)
    source = data["feedback"]["sources"][0]
    data["feedback"]["sources"] = [source | {"limit": 6}, source | {"skip": 6, "domain": "more"}]
    data |= {"arm": "v-mixed-in", "control": {"mixed_in": 0.5}}
    recipe = parse_recipe(data)
    run_recipe(recipe)
    (fragment,) = inspectors(recipe.directory)
    assert {row["domain"] for row in data_of(fragment)["rows"]} == {"sums", "text", "more"}


def saved(recipe, directory):
    directory.mkdir(exist_ok=True)
    save_recipe(recipe, directory / "recipe.yaml")
    return directory


def test_controls_have_nothing_to_inspect_and_what_is_missing_is_said(tmp_path, tokenizer, vision_run):
    bare = tmp_path / "bare"
    for arm in ("one-hot", "uniform"):
        assert inspectors(saved(tiny_recipe(tmp_path, tokenizer, arm=arm), bare)) == []
    for arm in ("fixed", "random-mask", "v", "random-feedback"):
        assert inspectors(saved(vision_recipe(tmp_path, arm=arm), bare)) == []
    (fragment,) = inspectors(saved(tiny_recipe(tmp_path, tokenizer), bare))
    assert "Not shown: bare has no checkpoint" in fragment
    (fragment,) = inspectors(saved(vision_run, bare))
    assert "Not shown: views.jsonl is not there" in fragment
    line = json.loads((vision_run.directory / "views.jsonl").read_text().splitlines()[0])
    for change in (
        {"view": "https://example.com/x.png"},
        {"mask": 'data:image/svg+xml;base64,PHN2Zz4="'},
        {"value": math.nan},
    ):
        changed = line | {"images": [picture | change for picture in line["images"]]}
        (bare / "views.jsonl").write_text(json.dumps(changed) + "\n")
        (fragment,) = inspectors(bare)
        assert "is not what a run writes" in fragment
        assert "example.com" not in fragment


def test_a_log_whose_last_line_is_being_written_is_read_up_to_it(vision_run, tmp_path):
    at_work = shutil.copytree(vision_run.directory, tmp_path / vision_run.directory.name)
    with (at_work / "metrics.jsonl").open("a") as log:
        log.write('{"step": 10, "val')
    assert inspectors(at_work) == inspectors(vision_run.directory)


def pixels(uri):
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
    return torch.tensor(np.asarray(picture)).flatten(0, 1).float()


def test_views_are_the_designers_and_values_those_of_the_oracle(vision_run):
    (fragment,) = inspectors(vision_run.directory)
    data = data_of(fragment)
    points = data["points"]
    assert [point["step"] for point in points] == [-1, 1, 3, 5, 7, 9]
    assert len(fragment) < 1_000_000
    log = read_lines(vision_run.directory / "metrics.jsonl")
    updates = {line["step"]: line["value"] for line in log if "value" in line}
    assert points[0]["alignment"] is None
    assert [point["alignment"] for point in points[1:]] == [updates[step] for step in (0, 2, 4, 6, 8)]
    assert all(p["value"] is None and p["value_unmasked"] is None for p in points[0]["images"])

    parts = assemble_vision(vision_run)
    Session(vision_run, parts, resume=True)
    sample = VisionStream(vision_run.stream, seed=vision_run.seed).sample(6)
    with torch.no_grad():
        mask_B1HW = parts.designer(sample.global_VB3HW[0])
    assert len(points[-1]["images"]) == 6
    for number, picture in enumerate(points[-1]["images"]):
        mask = mask_B1HW[number]
        assert picture["kept"] == pytest.approx(float(mask.mean()), rel=1e-4)
        assert (pixels(picture["mask"])[:, 0] - 255 * mask.flatten()).abs().max() < 1
        crop = 255 * sample.global_VB3HW[0, number].flatten(1).T
        assert (pixels(picture["crop"]) - crop).abs().mean() < 8  # JPEG
        assert points[0]["images"][number]["crop"] == picture["crop"]
        one = sample.images(slice(number, number + 1)).without_local()
        with parts.learner.meta_mode():
            for construction, key in ((parts.construction, "value"), (parts.base, "value_unmasked")):
                at, u = parts.meta.theta_at(), parts.meta.direction
                valued = double_backward(MetaProblem(parts.learner, construction, one, at, u, Align("dot")))
                assert picture[key] == pytest.approx(float(valued.value), rel=1e-3, abs=1e-5)
    assert any(picture["value"] != picture["value_unmasked"] for picture in points[-1]["images"])


def test_looking_at_views_changes_nothing_and_an_interrupted_run_records_the_same(tmp_path):
    def run(look, until=None):
        recipe = vision_recipe(tmp_path)
        session = session_of(recipe, change=lambda parts: setattr(parts, "look", parts.look if look else None))
        if until is not None:
            stop(session, until)
            session = session_of(recipe, resume=True)
        session.run()
        return end_of(recipe), recipe.directory / "views.jsonl"

    end, file = run(True)
    views = read_lines(file)
    unseen, file = run(False)
    assert not file.exists()
    assert_same_end(end, unseen)
    _, file = run(True, until=3)
    again = read_lines(file)
    strip = lambda lines: [(line["step"], line["images"]) for line in lines]  # noqa: E731
    assert strip(again) == strip(views)
    assert [line["step"] for line in views] == [-1, 1, 2, 3, 4, 5]

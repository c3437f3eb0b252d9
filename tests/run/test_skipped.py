"""What a run skips: the same file beside it however the run goes, and one line where there is too much of it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from distributed.processes import run, together
from worlds import recipe_data, sums, write_jsonl

from vpretrain import UserError, run_recipe
from vpretrain.config import StreamConfig
from vpretrain.errors import Paused, Unreadable
from vpretrain.files import read_lines
from vpretrain.inspection import reading
from vpretrain.inspection.reading import Reading, shares
from vpretrain.language.inspection.check import check
from vpretrain.recipe import parse_recipe
from vpretrain.run.skipped import FEWEST, NAMED, SKIPPED, Skipped, TooManySkipped, extend, write

FAULTS = {4: b'{"question": "\xff"}', 5: b"no", 9: b"[1]"}  # by line, from 1
REASONS = {
    4: "is no UTF-8 (byte 15 of line 4 is 0xff)",
    5: "is no JSON (Expecting value, at character 1)",
    9: "is no object with fields",
}


def break_rows(path):
    rows = path.read_bytes().splitlines()
    for line, fault in FAULTS.items():
        rows.insert(line - 1, fault)
    path.write_bytes(b"\n".join(rows) + b"\n")


def broken_recipe(root, tokenizer, name="plain", **stream):
    """A recipe whose stream is read in the order of its file, and has broken rows."""
    data = recipe_data(root, tokenizer) | {"arm": "one-hot", "name": name, "budget": {"steps": 8}}
    data["stream"] |= {"sources": [data["stream"]["sources"][0] | {"streaming": True}], **stream}
    break_rows(root / "stream.jsonl")
    return parse_recipe(data)


def entries(root, lines=FAULTS):
    source = str(root / "stream.jsonl")
    return [{"source": source, "place": f"line {line} of stream.jsonl", "reason": REASONS[line]} for line in lines]


def skipped_in(recipe):
    return [json.loads(line) for line in (recipe.directory / SKIPPED).read_text(encoding="utf-8").splitlines()]


def test_a_run_names_and_counts_what_it_skips_also_read_ahead_and_after_a_resume(tmp_path, tokenizer, capsys):
    plain, ahead, halted = (
        broken_recipe(tmp_path, tokenizer, name, prefetch=prefetch)
        for name, prefetch in (("plain", 0), ("ahead", 2), ("halted", 2))
    )
    result = run_recipe(plain)
    assert skipped_in(plain) == entries(tmp_path)
    origin = f"stream {tmp_path / 'stream.jsonl'}"
    assert result.left_out[origin] == {"unreadable": len(FAULTS)}
    assert f"left out of {origin}: 3 (unreadable)" in capsys.readouterr().err
    ahead_result = run_recipe(ahead)
    with pytest.raises(Paused):
        run_recipe(halted, until=0.25)
    assert len(skipped_in(halted)) < len(FAULTS)
    halted_result = run_recipe(halted, resume=True)
    for recipe, other in ((ahead, ahead_result), (halted, halted_result)):
        assert (recipe.directory / SKIPPED).read_bytes() == (plain.directory / SKIPPED).read_bytes()
        assert other.left_out == result.left_out


def test_a_line_separator_of_unicode_does_not_end_a_line_of_the_file(tmp_path):
    first = {"source": "a\u2028b", "place": "line 1 of c\u0085d.jsonl", "reason": "is no JSON"}
    write(tmp_path, [first])
    extend(tmp_path, [first, first | {"place": "line 2"}])
    assert read_lines(tmp_path / SKIPPED) == [first, first | {"place": "line 2"}]


def test_a_run_without_broken_rows_has_no_such_file_nor_has_one_that_takes_its_place(tmp_path, tokenizer):
    recipe = broken_recipe(tmp_path, tokenizer)
    run_recipe(recipe)
    assert skipped_in(recipe)
    write_jsonl(tmp_path / "stream.jsonl", sums(40, 1))
    run_recipe(recipe, overwrite=True)
    assert not (recipe.directory / SKIPPED).exists()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_too_much_is_one_line_and_named_in_the_file(tmp_path, tokenizer, prefetch):
    recipe = broken_recipe(tmp_path, tokenizer, prefetch=prefetch, max_skipped=0.001)
    with pytest.raises(TooManySkipped) as caught:
        run_recipe(recipe)
    assert str(caught.value) == (
        f"{tmp_path / 'stream.jsonl'}: 2 of 5 rows or images cannot be read, the last: line 5 of stream.jsonl is no JSON "
        "(Expecting value, at character 1); mend them, or raise stream.max_skipped=0.001"
    )
    assert skipped_in(recipe) == entries(tmp_path, [4, 5])


@pytest.mark.parametrize("role", ["feedback", "evaluation"])
def test_feedback_and_evaluation_stop_before_the_run(tmp_path, tokenizer, role):
    recipe = broken_recipe(tmp_path, tokenizer)
    break_rows(tmp_path / f"{role}.jsonl")
    with pytest.raises(UserError, match=rf"cannot load .*: line 4 of {role}\.jsonl is no UTF-8 .*; save it as UTF-8"):
        run_recipe(recipe)


def test_check_reads_all_and_says_what_would_be_skipped(tmp_path, tokenizer, monkeypatch):
    recipe = broken_recipe(tmp_path, tokenizer)
    rows = len((tmp_path / "stream.jsonl").read_bytes().splitlines())
    whole = f"read all {rows} rows of stream {tmp_path / 'stream.jsonl'}: 3 cannot be read and would be skipped, "
    assert f"{whole}the first: line 4 of stream.jsonl {REASONS[4]}" in list(check(recipe))
    with pytest.raises(TooManySkipped, match="2 of 5 rows or images cannot be read"):
        list(check(broken_recipe(tmp_path, tokenizer, max_skipped=0.001)))
    monkeypatch.setattr("vpretrain.language.inspection.check.SECONDS", 0.0)
    part = f"read the first row of stream {tmp_path / 'stream.jsonl'}: the time for it was over"
    assert part in list(check(recipe))


@pytest.mark.distributed
@pytest.mark.parametrize("shards", [1, 2])
def test_two_processes_skip_what_one_skips(tmp_path, tokenizer, shards):
    one, two = (broken_recipe(tmp_path, tokenizer, name, shards=shards) for name in ("one", "two"))
    together(1, run, one)
    together(2, run, two)
    found = [(recipe.directory / SKIPPED).read_bytes() for recipe in (one, two)]
    assert found[0] == found[1]
    assert sorted(skipped_in(one), key=str) == sorted(entries(tmp_path), key=str)


def counted(config, *faults):
    """A `Skipped` after rows of which some are broken; 0 is the first."""
    skipped = Skipped("here", config)
    for number in range(max(faults) + 1):
        skipped.met(Unreadable("message", f"row {number}", "is broken") if number in faults else None, again=False)
    return skipped


def test_the_share_is_one_of_a_thousand_rows_or_of_all():
    config = StreamConfig(batch_size=1)  # 1 %
    assert counted(config, *range(10)).count == 10
    with pytest.raises(TooManySkipped, match="11 of 11 rows"):
        counted(config, *range(11))
    later = [*range(10), 2 * FEWEST, 2 * FEWEST + 1]
    assert counted(config, *later).count == 12
    nothing, everything = (config.model_copy(update={"max_skipped": share}) for share in (0.0, 1.0))
    with pytest.raises(TooManySkipped, match="1 of 8 rows"):
        counted(nothing, 7)
    assert len(counted(everything, *range(NAMED + 5)).named) == NAMED


def test_later_epochs_count_nothing_and_the_state_is_that_of_json():
    config = StreamConfig(batch_size=1)
    skipped = counted(config, 3)
    for _ in range(100):
        skipped.met(Unreadable("message", "row 3", "is broken"), again=True)
    state = json.loads(json.dumps(skipped.state_dict()))
    assert state == {"read": 4, "count": 1, "named": [["row 3", "is broken"]]}
    again = Skipped("here", config)
    again.load_state_dict(state)
    assert again.state_dict() == state
    with pytest.raises(Unreadable, match="message"):
        Skipped("here", config.model_copy(update={"on_error": "stop"})).met(Unreadable("message"), again=True)


def test_a_part_of_a_generator_is_not_called_all_of_it():
    for most, text in ((3, "the first 3 of 5"), (5, "all 5"), (None, "all 5")):
        found = Reading[int]("stream", "sums", 5, None, most=most)
        assert list(found.items(iter(range(5)), 30.0)) == list(range(most or 5))
        assert found.line() == f"read {text} rows of stream sums"


def test_time_that_a_source_leaves_is_shared_by_the_next(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(reading, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    given = []
    for seconds in shares(3, 30.0):
        given.append(seconds)
        clock[0] += 4.0 if len(given) == 1 else seconds
    assert given == [10.0, 13.0, 13.0]
    found = Reading[int]("evaluation.test", "here", 5, None)
    for _ in found.items(iter(range(5)), 2.5):
        clock[0] += 1.0
    assert found.line() == "read the first 3 of 5 rows of evaluation.test here: the time for it was over"
    with pytest.raises(Unreadable):
        list(Reading[int]("evaluation.test", "here", 5, None).items([1, Unreadable("message")], 2.5))

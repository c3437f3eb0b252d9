"""Files in the usual formats, generators, hub names, templates; and one clear line for each thing that is wrong."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from pydoc_data.topics import topics

import datasets
import pytest
from pydantic import ValidationError

from vpretrain.errors import UserError
from vpretrain.language.config import SourceConfig
from vpretrain.language.data.source import StreamingSource, open_source
from vpretrain.order import Shuffled

ROWS = [{"question": f"{i}+{i}?", "answer": f"{2 * i}", "kind": "odd" if i % 2 else "even"} for i in range(6)]
PAIR = {"prompt": "{question}", "response": "{answer}"}


def write(root, name: str, rows=ROWS) -> str:
    path = root / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    elif name.endswith(".parquet"):
        datasets.Dataset.from_list(rows).to_parquet(path)
    return str(path)


def responses(source, count: int) -> list[str]:
    if isinstance(source, StreamingSource):
        return [source.next().response for _ in range(count)]
    return [source[i].response for i in range(count)]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_rows_come_from_files_of_the_usual_formats(tmp_path, name, streaming):
    source = open_source(SourceConfig(path=write(tmp_path, name), streaming=streaming, **PAIR))
    assert responses(source, 6) == ["0", "2", "4", "6", "8", "10"]


def test_a_folder_a_glob_and_a_text_file(tmp_path):
    write(tmp_path, "a.jsonl", ROWS[:3])
    write(tmp_path, "b.jsonl", ROWS[3:])
    assert len(open_source(SourceConfig(path=str(tmp_path), **PAIR))) == 6
    assert len(open_source(SourceConfig(path=str(tmp_path / "b*"), **PAIR))) == 3
    (tmp_path / "c.txt").write_text("one text\nin two lines")
    source = open_source(SourceConfig(path=str(tmp_path / "c.txt")))
    assert (len(source), source[0].response, source[0].prompt) == (1, "one text\nin two lines", "")
    with pytest.raises(UserError, match="all be of one kind"):
        open_source(SourceConfig(path=str(tmp_path / "*"), **PAIR))


def test_markdown_is_text_and_beside_other_data_it_is_about_them(tmp_path):
    (tmp_path / "b.md").write_text("# Two")
    (tmp_path / "a.md").write_text("# One")
    assert [example.response for example in open_source(SourceConfig(path=str(tmp_path)))] == ["# One", "# Two"]
    write(tmp_path, "rows.jsonl")
    assert len(open_source(SourceConfig(path=str(tmp_path), **PAIR))) == len(ROWS)
    (tmp_path / "book.xlsx").touch()
    with pytest.raises(UserError, match=r"book\.xlsx is of no format that is read: give a file of \.jsonl, "):
        open_source(SourceConfig(path=str(tmp_path / "book.xlsx")))


@pytest.mark.parametrize("streaming", [False, True])
def test_what_datasets_saves_to_disk_is_a_source_one_split_at_a_time(tmp_path, streaming):
    one, all_of_it = datasets.Dataset.from_list(ROWS), tmp_path / "all"
    datasets.DatasetDict(train=one, test=one).save_to_disk(all_of_it, num_shards={"train": 2, "test": 1})
    source = open_source(SourceConfig(path=str(all_of_it / "train"), streaming=streaming, **PAIR))
    assert responses(source, 6) == ["0", "2", "4", "6", "8", "10"]
    with pytest.raises(UserError, match=r"holds a data set of several splits: name one of .*test, .*train$"):
        open_source(SourceConfig(path=str(all_of_it), **PAIR))


@pytest.mark.parametrize("streaming", [False, True])
def test_parts_by_hash_share_nothing_and_do_not_depend_on_the_order(tmp_path, streaming):
    rows = [{"kind": "k", "question": f"q{i}", "answer": f"a{i}"} for i in range(200)]
    paths = [write(tmp_path, f"{n}.jsonl", r) for n, r in enumerate((rows, rows[::-1]))]

    def keys(path, part):
        source = open_source(SourceConfig(path=path, part=part, streaming=streaming, **PAIR))
        first = source.next() if streaming else None
        if not streaming:
            return [source[i].key for i in range(len(source))]
        found = [first.key]
        while (example := source.next()).key != first.key:
            found.append(example.key)
        return found

    parts = [keys(paths[0], part) for part in ((0, 0.7), (0.7, 0.8), (0.8, 1))]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 200
    assert len(parts[0]) == pytest.approx(140, abs=25)
    assert set(parts[1]) == set(keys(paths[1], (0.7, 0.8)))
    with pytest.raises(ValueError, match="part must rise"):
        SourceConfig(path=paths[0], part=(0.8, 0.2), **PAIR)


@pytest.mark.parametrize("streaming", [False, True])
def test_skip_limit_and_exclude(tmp_path, streaming):
    path = write(tmp_path, "rows.jsonl")
    part = open_source(SourceConfig(path=path, skip=1, limit=2, streaming=streaming, **PAIR))
    assert responses(part, 2) == ["2", "4"]
    even = open_source(SourceConfig(path=path, exclude={"kind": "^odd$"}, streaming=streaming, **PAIR))
    assert responses(even, 3) == ["0", "4", "8"]
    with pytest.raises(UserError, match="no field 'sort' for exclude"):
        responses(open_source(SourceConfig(path=path, exclude={"sort": "x"}, streaming=streaming, **PAIR)), 1)


def test_a_stream_starts_over_at_its_end_and_goes_on_at_its_cursor(tmp_path):
    config = SourceConfig(path=write(tmp_path, "rows.jsonl"), streaming=True, **PAIR)
    source = open_source(config)
    assert responses(source, 8)[-2:] == ["0", "2"]
    again = open_source(config)
    again.load_state_dict(json.loads(json.dumps(source.state_dict())))
    assert responses(again, 5) == responses(source, 5) == ["4", "6", "8", "10", "0"]


def test_an_order_is_a_permutation_in_every_epoch_and_follows_from_the_seed():
    order = Shuffled(7, "s")
    epochs = [[order[7 * epoch + i] for i in range(7)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert Shuffled(7, "s")[16] == epochs[2][2]
    assert [Shuffled(7, "t")[i] for i in range(7)] != epochs[0]


def test_a_line_that_holds_only_an_empty_field_disappears(tmp_path):
    rows = [{"instruction": "Add.", "input": value, "output": "3"} for value in ("1 and 2", "", None)]
    alpaca = {"prompt": "{instruction}\n{input}\n", "response": "{output}"}
    source = open_source(SourceConfig(path=write(tmp_path, "rows.jsonl", rows), **alpaca))
    assert [source[i].prompt for i in range(3)] == ["Add.\n1 and 2\n", "Add.\n", "Add.\n"]


def test_identity_is_that_of_the_problem_whatever_the_template(tmp_path):
    path = write(tmp_path, "rows.jsonl")
    plain = open_source(SourceConfig(path=path, **PAIR))
    dressed = open_source(SourceConfig(path=path, prompt="Question:\n {question}\nAnswer:", response=" so {answer}"))
    assert [plain[i].key for i in range(6)] == [dressed[i].key for i in range(6)]
    assert len({plain[i].key for i in range(6)}) == 6


def test_problems_that_differ_in_case_and_white_space_alone_are_the_same(tmp_path):
    texts = ["What is 1 + 1?", " what IS\n1 +  1? ", "What is 1 + 2?"]
    rows = [{"question": text, "answer": "2"} for text in texts]
    source = open_source(SourceConfig(path=write(tmp_path, "rows.jsonl", rows), **PAIR))
    assert source[0].key == source[1].key != source[2].key


def test_generated_problems_follow_from_their_seed_and_templates():
    options = {"seed": 3, "task_indices": [5, 9]}
    config = SourceConfig(reasoning_gym="gsm_symbolic", size=40, options=options)
    source = open_source(config)
    assert "####" in source[0].response
    assert source[7].prompt == open_source(config)[7].prompt
    indices = Counter(open_source(config)._rows._dataset.task_indices)
    assert set(indices) == {5, 9}
    assert open_source(SourceConfig(reasoning_gym="leg_counting", size=3))[0].prompt.startswith("Question: ")


def test_what_a_generator_raises_is_one_line_also_for_a_row(monkeypatch):
    from reasoning_gym.arithmetic.chain_sum import ChainSumDataset

    def broken(self, index):
        raise KeyError("first\nsecond")

    source = open_source(SourceConfig(reasoning_gym="chain_sum", size=3))
    monkeypatch.setattr(ChainSumDataset, "__getitem__", broken)
    with pytest.raises(UserError, match=r"^reasoning_gym chain_sum: .*first.*; check the name and the options$"):
        source[0]


def test_a_generator_without_an_answer_gives_rows_without_one():
    source = open_source(SourceConfig(reasoning_gym="propositional_logic", size=2))
    assert [example.lacks for example in source] == ["response null"] * 2


def test_generated_problems_come_in_two_notations():
    problem = {"reasoning_gym": "gsm_symbolic", "prompt": "{question}"}
    config = {"size": 8, "options": {"seed": 3, "task_indices": [5, 9]}}
    lines, boxed = (
        open_source(SourceConfig(**problem, **config, response=field)) for field in ("{answer_cot}", "{answer_boxed}")
    )
    for worked, other in zip(lines, boxed, strict=True):
        steps, _, answer = worked.response.rpartition("\n#### ")
        assert other.response == f"{steps} Therefore the final answer is \\boxed{{{answer}}}.".replace("\n", " ")
    bare = SourceConfig(reasoning_gym="chain_sum", size=1, prompt="{answer}", response="{answer_boxed}")
    row = open_source(bare)[0]
    assert row.response == f"Therefore the final answer is \\boxed{{{row.prompt}}}."


def test_the_manual_of_python_is_text():
    source = open_source(SourceConfig(builtin="python-manual"))
    assert len(source) > 50
    assert source[0].prompt == ""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "nowhere.jsonl"}, "no data at nowhere.jsonl"),
        ({"path": "{root}/rows.jsonl", "prompt": "{qestion}", "response": "{answer}"}, "did you mean {question}"),
        ({"path": "{root}/rows.jsonl"}, "give text, prompt and response, or messages"),
        ({"path": "{root}/rows.jsonl", "text": "question"}, "'question' is the same text in every row"),
        ({"path": "{root}/rows.jsonl", "skip": 6, **PAIR}, "no examples are left after skip=6 of 6"),
        ({"path": "{root}/rows.jsonl", "exclude": {"question": "."}, **PAIR}, "no examples are left after exclude$"),
        ({"path": "{root}/broken.jsonl", **PAIR}, "cannot load .*broken.jsonl: .*; check the file"),
        ({"path": "{root}/rows.xml", **PAIR}, "is of no format that is read"),
        ({"hub": "no/such-data", **PAIR}, "cannot load no/such-data: .*; HF_HUB_OFFLINE is set: give a path"),
        ({"reasoning_gym": "sums"}, "reasoning_gym sums: .*check the name"),
        ({"reasoning_gym": "chain_sum", "options": {"terms": 2}}, "chain_sum: .*check the name and the options"),
        ({"reasoning_gym": "chain_sum", "options": {"task_indices": [1]}}, "an option of gsm_symbolic"),
        ({"reasoning_gym": "gsm_symbolic", "options": {"task_indices": [1000]}}, r"no templates \[1000\]"),
        ({"reasoning_gym": "gsm_symbolic", "options": {"task_indices": 1000}}, r"no templates \[1000\]"),
        ({"reasoning_gym": "gsm_symbolic", "options": {"task_indices": [[]]}}, r"no templates \[\[\]\]"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, source, message):
    write(tmp_path, "rows.jsonl")
    (tmp_path / "rows.xml").write_text("<a/>")
    (tmp_path / "broken.jsonl").write_text('{"question": \n')
    if "path" in source:
        source = source | {"path": source["path"].replace("{root}", str(tmp_path))}
    with pytest.raises(UserError, match=message) as caught:
        open_source(SourceConfig(**source))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "exactly one of path, hub"),
        ({"path": "a", "hub": "b"}, "exactly one of path, hub"),
        ({"path": "a", "text": "{x}", "prompt": "{y}", "response": "{z}"}, "either text"),
        ({"path": "a", "prompt": "{y}"}, "go together"),
        ({"path": "a", "exclude": {"x": "("}}, "regular expression"),
    ],
)
def test_a_source_that_contradicts_itself_is_refused(source, message):
    with pytest.raises(ValidationError, match=message):
        SourceConfig(**source)


def test_parts_of_a_generator_share_no_problem_and_fields_exclude_its_rows():
    sums = {"reasoning_gym": "chain_sum", "size": 400}
    few = {
        "min_terms": 2,
        "max_terms": 2,
        "min_digits": 1,
        "max_digits": 1,
    }  # few sums: seeds alone would share many
    keys = [
        {example.key for example in open_source(SourceConfig(**sums, options={"seed": seed} | few, part=part))}
        for seed, part in ((0, (0.3, 1.0)), (1_000_000, (0.0, 0.3)))
    ]
    assert all(len(found) > 10 for found in keys)
    assert not keys[0] & keys[1]
    manual = SourceConfig(builtin="python-manual", exclude={"topic": "^[^a]"})
    assert len(open_source(manual)) == sum(topic.startswith("a") for topic in topics)


def test_templates_reach_into_lists_and_rename_values(tmp_path):
    path = write(tmp_path, "mmlu.jsonl", [{"q": "which?", "choices": ["x", "y"], "answer": 1}])
    names = {"answer": {0: "A", 1: "B"}}
    config = SourceConfig(path=path, prompt="{q}\nA. {choices.0}\nB. {choices.1}\n", response="{answer}", values=names)
    example = open_source(config)[0]
    assert (example.prompt, example.response) == ("which?\nA. x\nB. y\n", "B")
    assert (example.problem, example.solution) == ("which? x y", "B")
    for template in ("{choices.2}", "{q.0}"):
        with pytest.raises(UserError, match=r"\.[02]\}"):
            open_source(SourceConfig(path=path, text=template))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_field_that_only_some_rows_have_is_no_mistake(tmp_path, streaming):
    rows = [{"id": 0, "list": []}, {"id": 1, "text": "one", "list": ["a", None]}, {"id": 2, "text": None, "list": "b"}]
    path = write(tmp_path, "rows.jsonl", rows)
    examples = list(open_source(SourceConfig(path=path, streaming=streaming)))
    assert [(example.response, example.lacks) for example in examples] == [
        ("", "text missing"),
        ("one", ""),
        ("", "text null"),
    ]
    examples = list(open_source(SourceConfig(path=path, text="{list.0}", streaming=streaming)))
    assert [(example.response, example.lacks) for example in examples] == [
        ("", "text missing"),
        ("a", ""),
        ("", "text missing"),
    ]
    some = open_source(SourceConfig(path=path, text="{id}", exclude={"text": "^one$"}, streaming=streaming))
    assert [example.response for example in some] == ["0", "2"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_field_that_none_of_the_first_rows_has_is_a_mistake(tmp_path, streaming):
    path = write(tmp_path, "rows.jsonl", [*ROWS * 20, {"late": "1", "kind": "late"}])
    for settings in ({"text": "{late}"}, {"text": "{kind}", "exclude": {"late": "1"}}):
        with pytest.raises(UserError, match=r"no field 'late' for .*fields: question, answer, kind"):
            open_source(SourceConfig(path=path, streaming=streaming, **settings))
    early = write(tmp_path, "early.jsonl", [*ROWS * 2, {"late": "1", "kind": "late"}, *ROWS * 20])
    assert list(open_source(SourceConfig(path=early, text="{late}", streaming=streaming)))[12].response == "1"


def test_an_example_lacks_a_part_if_all_fields_of_its_template_are_empty(tmp_path):
    rows = [{"q": "1", "why": None, "answer": "2"}, {"q": "1", "why": " ", "answer": None}, {"q": None, "answer": 3}]
    config = SourceConfig(path=write(tmp_path, "rows.jsonl", rows), prompt="{q}\n", response="{why}\nso {answer}")
    found = [(example.prompt, example.response, example.lacks) for example in open_source(config)]
    assert found == [("1\n", "so 2", ""), ("1\n", "so ", "response empty"), ("", "so 3", "prompt null")]


def test_values_and_exclusions_are_compared_with_what_the_file_says(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": true, "n": 2}\n{"a": false, "n": 2.0}\n{"a": null, "n": [2, null]}\n')
    names = {"a": {True: "yes", False: "no", None: "unknown"}}
    source = open_source(SourceConfig(path=str(path), text="{a}", values=names))
    assert [example.response for example in source] == ["yes", "no", "unknown"]
    for pattern, left in (("^2$", ["false", ""]), (r"^2\.0$", ["true", ""]), (r"^\[2, null\]$", ["true", "false"])):
        source = open_source(SourceConfig(path=str(path), text="{a}", exclude={"n": pattern}))
        assert [example.response for example in source] == left
    source = open_source(SourceConfig(path=str(path), text="{a}", exclude={"a": "^$"}))  # null is empty
    assert [example.response for example in source] == ["true", "false"]


@pytest.mark.parametrize("key", [1000.0, 2.5, datetime.datetime(2024, 1, 2, 3, 4)])
def test_a_key_of_values_that_has_lost_its_spelling_is_refused(key):
    with pytest.raises(ValueError, match=f"the data may spell the key {key} in another way: quote it"):
        SourceConfig(path="rows.jsonl", text="{a}", values={"a": {key: "A"}})
    names = SourceConfig(path="rows.jsonl", text="{a}", values={"a": {10**30: "A", "2.50": "B"}}).values
    assert names == {"a": {f"1{'0' * 30}": "A", "2.50": "B"}}


@pytest.mark.parametrize(("kind", "file"), [("json", "FILE.jsonl"), ("csv", "FILE.csv"), ("parquet", None)])
def test_guessed_types_of_a_hub_data_set_are_remarked_on_once_with_the_way_round(monkeypatch, capsys, kind, file):
    def load_dataset(**kwargs):
        found = datasets.Dataset.from_list(ROWS)
        found.info.builder_name = kind
        return found

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for _ in range(2):
        assert responses(open_source(SourceConfig(hub=f"owner/{kind}", **PAIR)), 2) == ["0", "2"]
    told = capsys.readouterr().err
    assert told.count("types are guessed") == (file is not None)
    assert file is None or f"owner/{kind}: types are guessed from its {kind.upper()} files" in told
    assert file is None or f"give the files as the path: hf://datasets/owner/{kind}/{file}" in told

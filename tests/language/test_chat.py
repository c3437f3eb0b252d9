"""Chats go through the learner's chat template, with the loss on the assistant's turns only."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from conftest import character_tokenizer
from rich.text import Text
from worlds import recipe_data, sums, write_jsonl

from vpretrain.cli.parser import main
from vpretrain.errors import UserError
from vpretrain.language.config import FeedbackConfig, SourceConfig, StreamConfig
from vpretrain.language.data.chat import ChatRefused, end_of_turn
from vpretrain.language.data.encode import Document, collate, encode, prompt_ids
from vpretrain.language.data.example import completed, render
from vpretrain.language.data.feedback import LanguageFeedback
from vpretrain.language.data.source import open_source
from vpretrain.language.data.stream import LanguageStream
from vpretrain.language.inspection.inspect import CONTEXT, TARGET, legend, marked
from vpretrain.recipe import parse_recipe

HEAD = "{% for m in messages %}{{ '<|' + m.role + '|>' }}"
TAIL = "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
PLAIN = HEAD + "{{ m.content + '<eos>\n' }}" + TAIL
MARKED = (
    HEAD
    + "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<eos>' }}{% endgeneration %}"
    + "{% else %}{{ m.content + '<eos>' }}{% endif %}{{ '\n' }}"
    + TAIL
)
LINES = HEAD + "{{ m.content + '\n' }}" + TAIL
THOUGHTS = HEAD + "{{ ('hm ' if m.role == 'assistant' and loop.last else '') + m.content + '<eos>\n' }}" + TAIL
STRICT = "{% if messages[0].role != 'user' %}{{ raise_exception('the user begins') }}{% endif %}" + PLAIN
SWALLOWS = HEAD + "{{ (m.content if loop.last else '-') + '<eos>\n' }}" + TAIL

TWO = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "and 3+3?"},
    {"role": "assistant", "content": "6", "tool_calls": None},
]


def with_template(template):
    tokenizer = character_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def chat(turns, **other):
    return render({"messages": turns, **other}, SourceConfig(path="x", messages="messages"))


def one(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def targets(document, tokenizer):
    """The stretches of tokens with a loss."""
    weights = collate([document], tokenizer).weights_BT[0].tolist()
    text, stretches, before = "", [], 0.0
    for token, weight in zip(document.ids, weights, strict=True):
        text = (text if before else "") + (tokenizer.convert_ids_to_tokens(token) if weight else "")
        if weight:
            stretches = [*stretches[: len(stretches) - bool(before)], text]
        before = weight
    assert sum(map(bool, weights)) == document.targets
    return stretches


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (MARKED, ["4<eos>", "6<eos>"]),
        (PLAIN, ["4<eos>", "6<eos>"]),
        (LINES, ["4\n", "6\n"]),
        (THOUGHTS, ["4<eos>", "hm 6<eos>"]),
    ],
)
def test_the_loss_is_on_every_turn_of_the_assistant_and_on_nothing_else(template, expected):
    tokenizer = with_template(template)
    document = encode(chat(TWO), tokenizer)
    whole = tokenizer.apply_chat_template(TWO, tokenize=False)
    assert "".join(tokenizer.convert_ids_to_tokens(list(document.ids))) == whole
    assert targets(document, tokenizer) == expected
    assert not document.raw


@pytest.mark.parametrize("template", [MARKED, PLAIN])
def test_a_prompt_that_is_a_chat_has_no_loss_even_on_the_assistants_turns_in_it(template):
    tokenizer = with_template(template)
    source = SourceConfig(path="x", messages=["prompt", "completion"])
    document = encode(render({"prompt": TWO[:4], "completion": TWO[4:]}, source), tokenizer)
    assert targets(document, tokenizer) == ["6<eos>"]


def test_a_given_turn_without_a_word_leaves_the_answer_its_loss():
    template = MARKED.replace("{% generation %}{{ m.content + '<eos>' }}", "{% generation %}{{ m.content }}")
    assert template != MARKED
    given = [TWO[1], {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]}, TWO[3]]
    source = SourceConfig(path="x", messages=["prompt", "completion"])
    tokenizer = with_template(template)
    assert targets(encode(render({"prompt": given, "completion": TWO[4:]}, source), tokenizer), tokenizer) == ["6"]


def test_a_chat_is_cut_with_its_gaps(tokenizer):
    document = Document(tuple(range(10)), 2, False, "", "", ((4, 6), (8, 9)))
    assert document.targets == 5
    assert document.cut(0, 5).gaps == ((4, 5),)
    assert document.cut(0, 5).targets == 2
    assert document.cut(0, 4).gaps == ()
    weights = collate([[document.cut(0, 7), document]], tokenizer, average="examples").weights_BT[0].tolist()
    assert weights == pytest.approx([0, 0, 1 / 3, 1 / 3, 0, 0, 1 / 3, 0, 0, 0.2, 0.2, 0, 0, 0.2, 0.2, 0, 0.2])


def test_the_problem_of_a_chat_is_what_the_user_says():
    assert chat(TWO).problem == "2+2? and 3+3?"
    assert chat(TWO).response == "6"
    assert chat(TWO).key == chat(TWO[1:]).key
    pair = render({"q": "2+2?", "a": "4"}, SourceConfig(path="x", prompt="{q}\n", response="{a}"))
    assert chat(TWO[:3]).key == pair.key


@pytest.mark.parametrize("streaming", [False, True])
def test_numbers_in_the_call_of_a_tool_are_numbers_for_the_template(tmp_path, streaming):
    call = {"name": "add", "arguments": {"a": 2, "b": [0.5, True]}}
    turns = [TWO[1], {"role": "assistant", "content": "", "tool_calls": [call]}]
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": turns}])
    (example,) = open_source(SourceConfig(path=path, messages="messages", streaming=streaming))
    assert example.turns == tuple(turns)
    tokenizer = with_template(HEAD + "{{ m.content + (m.tool_calls | tojson if m.tool_calls else '') }}" + TAIL)
    rendered = tokenizer.apply_chat_template(list(example.turns), tokenize=False)
    assert '{"a": 2, "b": [0.5, true]}' in rendered


@pytest.mark.parametrize(
    "turns",
    [
        [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}],
        [{"role": "human", "content": "2+2?"}, {"role": "gpt", "content": "4"}],
        [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4", "tool_calls": "none"}],
        [{"role": "user", "content": [{"type": "text", "text": "2+"}, {"text": "2?"}]}, TWO[2]],
        json.dumps(TWO[1:3]),
    ],
    ids=["sharegpt", "roles", "calls", "parts", "json"],
)
def test_chats_of_other_forms_become_those_that_templates_expect(turns):
    found = chat(turns).turns
    assert [(turn["role"], turn["content"]) for turn in found] == [("user", "2+2?"), ("assistant", "4")]
    assert targets(encode(chat(turns), with_template(PLAIN)), with_template(PLAIN)) == ["4<eos>"]
    assert completed(SourceConfig(path="x"), [{"conversations": turns}]).messages == "conversations"


def test_a_call_of_a_tool_that_the_template_leaves_out_refuses_the_chat():
    calls = [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]
    turns = [TWO[1], {"role": "assistant", "tool_calls": calls}]
    with pytest.raises(ChatRefused, match=r"^calls of tools left out by the learner's template"):
        encode(chat(turns), with_template(PLAIN))
    writes = with_template(HEAD + "{{ m.content + (m.tool_calls | tojson if m.tool_calls else '') + '<eos>' }}" + TAIL)
    (target,) = targets(encode(chat(turns), writes), writes)
    assert "add" in target


def test_what_follows_the_last_answer_is_left_out():
    assert chat([*TWO, {"role": "user", "content": "thanks"}]).turns == tuple(TWO)


@pytest.mark.parametrize(
    ("turns", "lack"),
    [
        (None, "messages null"),
        ("2+2?", "messages no list of {role, content}"),
        ([{"content": "2+2?"}], "messages no list of {role, content}"),
        (TWO[:2], "no turn of the assistant"),
        ([TWO[1], {"role": "assistant", "content": " "}], "no turn of the assistant"),
        ([TWO[0], TWO[2]], "no turn of the user"),
        (
            [{"role": "user", "content": [{"type": "image"}, {"text": "2+2?"}]}, TWO[2]],
            "a turn with a part that is no text, such as an image",
        ),
    ],
)
def test_a_chat_without_its_parts_says_what_it_lacks(turns, lack):
    assert chat(turns).lacks == lack
    assert render({"other": 1}, SourceConfig(path="x", messages="messages")).lacks == "messages missing"


def test_a_learner_without_a_template_is_refused_with_the_remedy(tokenizer):
    with pytest.raises(UserError, match="has no chat template, which messages need: take a chat model"):
        encode(chat(TWO), tokenizer)


def test_a_template_that_refuses_or_hides_answers_names_the_reason():
    with pytest.raises(ChatRefused, match="template: the user begins; leave it out with exclude"):
        encode(chat(TWO), with_template(STRICT))
    with pytest.raises(ChatRefused, match="turns not found in a chat: the learner"):
        encode(chat(TWO), with_template(SWALLOWS))


def test_rows_say_by_their_fields_what_they_are():
    bare = SourceConfig(path="x")
    assert completed(bare, [{"messages": TWO, "text": "a"}]) == bare
    assert completed(bare, [{"id": 1, "messages": TWO}]).messages == "messages"
    pair = completed(bare, [{"prompt": None, "completion": "4"}, {"prompt": "2+2=", "completion": "4"}])
    assert (pair.prompt, pair.response) == ("{prompt}", "{completion}")
    assert completed(bare, [{"prompt": TWO[:2], "completion": TWO[2:3]}]).messages == ["prompt", "completion"]
    assert completed(bare, [{"question": "2+2?"}]) == bare
    given = SourceConfig(path="x", text="{id}")
    assert completed(given, [{"id": 1, "messages": TWO}]) == given


def test_prompt_and_completion_need_no_templates(tmp_path, tokenizer):
    rows = [{"prompt": pair["question"], "completion": pair["answer"]} for pair in sums(5, 1)]
    source = SourceConfig(path=write_jsonl(tmp_path / "a.jsonl", rows))
    for streaming in (False, True):
        example = next(iter(open_source(source.model_copy(update={"streaming": streaming}))))
        assert (example.prompt, example.response) == (rows[0]["prompt"], rows[0]["completion"])


def test_what_a_template_refuses_is_counted_in_stream_and_feedback(tmp_path):
    tokenizer = with_template(STRICT)
    rows = [{"messages": TWO}, one("1+1?", "2"), one("1+2?", "3")]
    source = SourceConfig(path=write_jsonl(tmp_path / "a.jsonl", rows))
    refused = {"chat refused by the learner's template": 1}
    config = FeedbackConfig(sources=[source], length=40, batch_size=2)
    feedback = LanguageFeedback(config, tokenizer, seed=0, packing=True)
    assert feedback.has_chats
    assert feedback.left_out == {source.path: refused}
    stream = LanguageStream(StreamConfig(sources=[source], length=40, batch_size=2), tokenizer, seed=0)
    assert stream.has_chats
    for _ in range(3):
        stream.next()
    assert set(stream.left_out(stream.state_dict())[source.path]) == set(refused)


def test_a_stream_of_chats_goes_on_from_its_cursor(tmp_path):
    tokenizer = with_template(PLAIN)
    rows = [{"messages": [{"role": "user", "content": f"{n}?"}, *TWO[2:]]} for n in range(9)]
    config = StreamConfig(
        sources=[SourceConfig(path=write_jsonl(tmp_path / "a.jsonl", rows))], length=100, batch_size=2
    )
    stream, resumed = (LanguageStream(config, tokenizer, seed=0) for _ in range(2))
    stream.next()
    resumed.load_state_dict(stream.state_dict())
    waiting = stream.state_dict()["shards"]["0"][0]["waiting"]
    assert len(waiting) > 5  # a document with gaps waits for the next row
    for _ in range(3):
        (expected,), (found,) = stream.next(), resumed.next()
        assert found.ids_BT.equal(expected.ids_BT)
        assert found.weights_BT.equal(expected.weights_BT)


@pytest.mark.parametrize("template", [MARKED, PLAIN])
def test_a_solution_is_decoded_after_the_beginning_of_an_answer_and_ends_with_the_turn(template):
    tokenizer = with_template(template)
    ids = prompt_ids(chat(TWO), tokenizer)
    assert "".join(tokenizer.convert_ids_to_tokens(ids)).endswith("and 3+3?<eos>\n<|assistant|>")
    assert end_of_turn(chat(TWO).turns, tokenizer) == [tokenizer.eos_token_id]
    assert end_of_turn((), tokenizer) == []
    assert end_of_turn(chat(TWO).turns, with_template(LINES)) == []


def test_the_mask_is_shown_in_colour():
    tokenizer = with_template(MARKED)
    shown = marked(collate([encode(chat(TWO), tokenizer)], tokenizer), 0, tokenizer)
    assert isinstance(shown, Text)
    styles = [(shown.plain[span.start : span.end].replace(" ", ""), span.style) for span in shown.spans]
    assert [text for text, style in styles if style == TARGET] == ["4<eos>", "6<eos>"]
    assert {style for _, style in styles} == {TARGET, CONTEXT}


@pytest.mark.parametrize(
    ("environment", "bracketed"),
    [({}, True), ({"FORCE_COLOR": "1"}, False), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True)],
)
def test_the_mask_is_shown_by_brackets_without_colour(monkeypatch, environment, bracketed):
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    tokenizer = with_template(MARKED)
    shown = marked(collate([encode(chat(TWO), tokenizer)], tokenizer), 0, tokenizer).plain.replace(" ", "")
    assert re.findall(r"\[\[.*?\]\]", shown) == ["[[4<eos>]]", "[[6<eos>]]"] * bracketed
    assert ("[[targets of the loss]]" in legend("Rows").plain) == bracketed


@pytest.mark.parametrize(("template", "told"), [(PLAIN, True), (MARKED, False)])
def test_check_and_inspect_say_how_the_answers_of_chats_are_found(tmp_path, capsys, template, told):
    tokenizer = with_template(template)
    data = recipe_data(tmp_path, tokenizer) | {"threads": 1, "budget": {"steps": 2}}
    for section, seed in (("stream", 1), ("feedback", 2), ("evaluation", 3)):
        rows = [one(pair["question"], pair["answer"]) for pair in sums(40, seed)]
        path = write_jsonl(tmp_path / f"{section}-chats.jsonl", rows)
        data[section] |= {"sources": [{"path": path, "messages": "messages"}], "length": 96}
    file = tmp_path / "chats.yaml"
    file.write_text(yaml.safe_dump(data))
    assert main(["run", str(file)]) == 0
    remark = "does not mark the assistant's turns"
    assert remark not in "".join(capsys.readouterr())
    assert main(["check", str(file)]) == 0
    assert capsys.readouterr().out.count(remark) == told
    assert main(["inspect", str(file), "--examples", "1", "--positions", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.count(remark) == told
    assert "<|assistant|>" in "".join(shown.split())


def test_a_source_of_chats_has_no_templates():
    with pytest.raises(UserError, match="either messages \\(chats\\) or templates, not both"):
        parse_recipe({"learner": {"name": "a"}, "name": "a", "budget": {"steps": 1},
                      "stream": {"sources": [{"path": "a", "messages": "m", "text": "{a}"}]},
                      "feedback": {"sources": [{"path": "a"}]}, "evaluation": {"sources": [{"path": "a"}]}})  # fmt: skip

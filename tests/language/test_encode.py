"""Tokens, labels and positions follow from lengths."""

from __future__ import annotations

import pytest
import torch
from conftest import character_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from vpretrain.language.data.encode import begin_ids, collate, encode
from vpretrain.language.data.example import Example


def example(response: str, prompt: str = "", domain: str = "sums") -> Example:
    return Example(prompt, response, domain, prompt or response, response if prompt else "", {})


def text(tokenizer, ids) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(list(ids)))


def test_a_response_is_predicted_with_its_end_and_the_prompt_is_not(tokenizer):
    document = encode(example("4", "2+2="), tokenizer)
    assert text(tokenizer, document.ids) == "2+2=4<eos>"
    assert (document.context, document.targets, document.raw) == (4, 2, False)
    batch = collate([document], tokenizer, length=8)
    assert batch.weights_BT.tolist() == [[0, 0, 0, 0, 1, 1, 0, 0]]
    assert text(tokenizer, batch.targets_N) == "4<eos>"
    assert batch.predicts_BT.tolist() == [[False, False, False, True, True, False, False, False]]


def test_raw_text_is_predicted_from_its_second_token_on(tokenizer):
    document = encode(example("abc"), tokenizer)
    assert document.raw
    assert text(tokenizer, collate([document], tokenizer).targets_N) == "bc<eos>"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([], [], []),
        ([1], [], [1]),
        ([1], [2], [1]),
        ([], [2], []),
        ([2], [], [2]),
        ([2], [2], [2]),
        ([3, 1], [2], [3, 1]),
    ],
)
def test_what_stands_before_a_text_is_the_begin_token_alone(before, after, expected):
    """Token 2 is the end; in the last but one case it is the begin as well."""

    class Tokenizer:
        def __call__(self, text, add_special_tokens=True):
            ids = [10 + ord(character) for character in text]
            return {"input_ids": [*before, *ids, *after] if add_special_tokens else ids}

    assert begin_ids(Tokenizer()) == expected


def test_the_end_token_is_a_target_though_it_is_the_padding_token(pad_is_eos_tokenizer):
    tokenizer = pad_is_eos_tokenizer
    batch = collate([encode(example("4", "2+2="), tokenizer), encode(example("no", "a?"), tokenizer)], tokenizer)
    assert [text(tokenizer, batch.rows([row]).targets_N) for row in (0, 1)] == ["4<eos>", "no<eos>"]
    assert batch.weights_BT[1].tolist() == [0, 0, 1, 1, 1, 0]


def test_rows_are_filled_with_a_token_that_the_learner_has():
    """A padding token that was added to the tokenizer later is beyond the learner's embedding."""
    tokenizer = character_tokenizer(pad=None)
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<added>"})
    assert tokenizer.pad_token_id == rows
    batch = collate([encode(example("4", "2+2="), tokenizer)], tokenizer, length=12)
    assert int(batch.ids_BT.max()) < rows


def test_documents_that_share_a_row_have_positions_and_labels_of_their_own(tokenizer):
    first, second = encode(example("4", "2="), tokenizer), encode(example("abc"), tokenizer)
    batch = collate([[first, second]], tokenizer, length=10)
    assert batch.positions_BT.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 0, 1]]
    assert batch.weights_BT.tolist() == [[0, 0, 1, 1, 0, 1, 1, 1, 0, 0]]


def test_a_begin_token_is_set_where_the_tokenizer_sets_one_and_an_end_token_is_not_set_twice():
    tokenizer = character_tokenizer()
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> $A <eos>", special_tokens=[("<unk>", 0), ("<eos>", 2)]
    )
    assert text(tokenizer, encode(example("4", "2="), tokenizer).ids) == "<unk>2=4<eos>"


@pytest.mark.parametrize("special", ["<unk> $A", "<unk> $A <eos>", "$A <eos>", "$A"])
def test_a_begin_or_end_token_that_the_text_has_is_not_set_twice(special):
    """As a chat template writes them: the tokenizer finds both in the text."""
    tokenizer = character_tokenizer()
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single=special, special_tokens=[("<unk>", 0), ("<eos>", 2)]
    )
    begin = "<unk>" if special.startswith("<unk>") else ""
    for given in ("", "<unk>"):
        document = encode(example("4<eos>", f"{given}2="), tokenizer)
        assert text(tokenizer, document.ids) == f"{begin or given}2=4<eos>"
        assert document.targets == 2
        raw = encode(example(f"{given}ab<eos>"), tokenizer)
        assert text(tokenizer, raw.ids) == f"{begin or given}ab<eos>"
        assert raw.context == 1


def test_no_space_comes_between_prompt_and_response_that_neither_has():
    """Of a tokenizer that puts a space before every text, as Llama 2's does."""
    tokenizer = character_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend(" ")
    assert text(tokenizer, tokenizer("a b")["input_ids"]) == " a b"
    for prompt, response, whole in (
        ("2+2=", "4", " 2+2=4<eos>"),
        ("2+2=", " 4", " 2+2= 4<eos>"),
        ("2+2=\n", "it is 4", " 2+2=\nit is 4<eos>"),
    ):
        document = encode(example(response, prompt), tokenizer)
        assert text(tokenizer, document.ids) == whole
        assert document.context == len(prompt) + 1
    assert (
        text(tokenizer, encode(example("a b"), tokenizer).ids) == " a b<eos>"
    )  # the text of a document begins as ever


def test_no_space_comes_between_prompt_and_response_of_sentencepiece():
    """Subwords whose pre-tokenizer puts its sign for a space before every text."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=60, special_tokens=["<unk>", "<eos>"], initial_alphabet=["\n", "a"], show_progress=False
    )
    backend.train_from_iterator(["two plus two is four"] * 9 + ["plus four is two"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>")

    def pieces(ids):
        return tokenizer.convert_ids_to_tokens(list(ids))

    assert pieces(tokenizer("four")["input_ids"]) == ["▁four"]
    for prompt, response, expected in (
        ("two plus two is", "four", "four"),
        ("two plus two is", " four", "▁four"),
        ("two plus two is\n", "four is two", "four▁is▁two"),
    ):
        document = encode(example(response, prompt), tokenizer)
        assert "".join(pieces(document.ids[: document.context])) == f"▁{prompt.replace(' ', '▁')}"
        assert "".join(pieces(document.ids[document.context :])) == f"{expected}<eos>"
    raw = encode(example("two plus"), tokenizer)
    assert pieces(raw.ids) == ["▁two", "▁plus", "<eos>"]


def test_average_over_examples_gives_every_document_the_same_weight(tokenizer):
    documents = [encode(example("4", "2="), tokenizer), encode(example("seven", "2="), tokenizer)]
    assert float(collate([documents], tokenizer, average="tokens").weights_BT.sum()) == 8
    weights = collate([documents], tokenizer, average="examples").weights_BT[0]
    assert weights.tolist() == pytest.approx([0, 0, 1 / 2, 1 / 2, 0, 0, *[1 / 6] * 6])


def test_a_row_of_raw_text_counts_as_an_example_however_short_its_pieces_are(tokenizer):
    long, short = encode(example("abcdefghijk", ""), tokenizer), encode(example("abc", ""), tokenizer)
    weights = collate([[long], [short, short]], tokenizer, length=12, average="examples").weights_BT
    assert weights[0].tolist() == pytest.approx([0, *[1 / 12] * 11])
    assert weights[1].tolist() == pytest.approx([0, *[1 / 12] * 3, 0, *[1 / 12] * 3, *[0] * 4])


def test_a_piece_of_a_document_predicts_what_the_whole_would_but_for_its_first_token(tokenizer):
    document = encode(example("abcd", "xy"), tokenizer)
    assert document.cut(0, 4).targets == 2
    assert document.cut(3).context == 1
    assert document.cut(0, 2).targets == 0


def test_restrict_takes_rows_of_a_domain_that_have_a_target_within_the_length(tokenizer):
    rows = [
        encode(example("4", "a long question", "math"), tokenizer),
        encode(example("abc", "", "code"), tokenizer),
        encode(example("5", "2=", "math"), tokenizer),
    ]
    batch = collate(rows, tokenizer)
    assert batch.restrict(domain="math", rows=2, length=4).domains == ("math",)
    assert text(tokenizer, batch.restrict(domain="math", rows=2, length=4).targets_N) == "5<eos>"
    assert batch.restrict(domain=None, rows=2, length=20).domains == ("math", "code")
    assert batch.restrict(domain="law", rows=1, length=20) is None
    assert batch.restrict(domain=None, rows=1, length=1) is None


def test_rows_that_a_micro_batch_lacks_come_from_the_next(tokenizer):
    four, seven = encode(example("4", "2=", "math"), tokenizer), encode(example("seven", "3=", "math"), tokenizer)
    first = collate([four, encode(example("abc", "", "code"), tokenizer)], tokenizer)
    second = collate([seven, four], tokenizer)
    both = first.restrict(domain="math", more=[second], rows=2, length=20)
    assert both.domains == ("math", "math")
    assert both.keys == (first.keys[0], second.keys[0])
    assert text(tokenizer, both.targets_N) == "4<eos>seven<eos>"
    assert both.positions_BT.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3], [*range(8)]]  # filled by one more document
    assert both.weights_BT.tolist() == [[0, 0, 1, 1, 0, 0, 0, 0], [0, 0, *[1] * 6]]
    assert first.restrict(domain="code", more=[second], rows=2, length=20).domains == ("code",)
    assert second.restrict(domain="code", more=[second, first], rows=2, length=20).keys == (first.keys[1],)
    assert first.restrict(domain="law", more=[second], rows=2, length=20) is None
    # A batch that suffices is taken alone.
    alone, enough = second.restrict(rows=2, length=20), second.restrict(more=[first], rows=2, length=20)
    assert enough.keys == alone.keys == second.keys
    for name in ("ids_BT", "positions_BT", "weights_BT"):
        assert torch.equal(getattr(enough, name), getattr(alone, name)), name


@pytest.mark.parametrize("length", [12, 9, 7, 4])
@pytest.mark.parametrize("average", ["tokens", "examples"])
def test_a_cut_document_weighs_as_one_of_its_new_length(tokenizer, average, length):
    """A pair that is cut still counts as an example, and so does a row of raw text."""
    four, seven = encode(example("4", "2="), tokenizer), encode(example("seven", "2="), tokenizer)
    raw = encode(example("abcdefghijk"), tokenizer)
    rows = [[four, seven], [raw]]
    assert [sum(map(len, row)) for row in rows] == [12, 12]
    cut = [[four, seven.cut(0, length - 4)] if length > 4 else [four], [raw.cut(0, length)]]
    wanted = collate(cut, tokenizer, length=length, average=average)
    found = collate(rows, tokenizer, average=average).rows([0, 1], length)
    assert torch.equal(found.ids_BT, wanted.ids_BT)
    torch.testing.assert_close(found.weights_BT, wanted.weights_BT)
    if average == "examples":
        assert float(found.weights_BT[0].sum()) == pytest.approx(1 if length == 4 else 2)

"""Turn examples into token batches. Labels are derived from lengths here, for stream, feedback and evaluation alike.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from vpretrain.errors import UserError
from vpretrain.language.data.chat import ChatRefused, chat_tokens, prompt_tokens
from vpretrain.language.data.example import Example
from vpretrain.language.model.batch import TokenBatch

PROMPT_FILLS = "prompt fills the length"  # why a pair is left out
# Samples that show what a tokenizer adds to a text. No tokenizer makes one token of a line break and the letter after it.
_LINE, _WORD = "\n", "a"
_BEGINNING = 60  # characters of a problem by which it is found in its file


@dataclass(frozen=True)
class Document:
    """A tokenised example.

    Attributes:
        ids: its tokens.
        context: number of leading tokens that are not targets: the prompt, or the first token of raw text.
        raw: whether it may be split across rows.
        domain, key: of the example.
        gaps: [start, stop) of later tokens that are not targets either: what lies between the assistant's turns of a chat.
    """

    ids: tuple[int, ...]
    context: int
    raw: bool
    domain: str
    key: str
    gaps: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> int:
        """Number of its tokens that are predicted."""
        return len(self.ids) - self.context - sum(stop - start for start, stop in self.gaps)

    def cut(self, start: int, stop: int | None = None) -> Document:
        """A piece of it; the first token of a piece is not predicted."""
        ids = self.ids[start:stop]
        gaps = ((max(0, first - start), min(len(ids), last - start)) for first, last in self.gaps)
        kept = tuple((first, last) for first, last in gaps if first < last)
        return Document(ids, max(1, self.context - start), self.raw, self.domain, self.key, kept)


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, length: int | None = None) -> Document:
    """Tokenise prompt and response, with an end token, and a begin token if the tokenizer uses one. Cut to `length`.

    A begin or end token that the text has already is not added again. A chat has the tokens that the learner's chat template
    gives it.

    Raises:
        ChatRefused: the template refuses a chat, or the assistant's turns are not found in it.
        UserError: the learner has no chat template.
    """
    if example.turns:
        return _encode_chat(example, tokenizer).cut(0, length)
    if example.prompt:
        prompt, response = beginning_ids(example.prompt, tokenizer), following_ids(example.response, tokenizer)
    else:
        prompt = begin_ids(tokenizer)
        response = beginning_ids(example.response, tokenizer)[len(prompt) :]
    if response[-1:] != [tokenizer.eos_token_id]:
        response.append(tokenizer.eos_token_id)
    document = Document((*prompt, *response), max(1, len(prompt)), not example.prompt, example.domain, example.key)
    return document.cut(0, length)


def beginning_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokenise the beginning of a document, with the tokenizer's begin token, once."""
    begin, ids = begin_ids(tokenizer), _plain_ids(text, tokenizer)
    return ids if ids[: len(begin)] == begin else begin + ids


def following_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokenise text that follows other text in a document.

    Many SentencePiece tokenizers put a space before every text that they are given; here it would be one in the middle.
    """
    alone = _plain_ids(text, tokenizer)
    if not _added(tokenizer)[1]:
        return alone
    before, whole = _plain_ids(_LINE, tokenizer), _plain_ids(_LINE + text, tokenizer)
    return whole[len(before) :] if whole[: len(before)] == before else alone


def _encode_chat(example: Example, tokenizer: PreTrainedTokenizerBase) -> Document:
    ids, is_target = chat_tokens(example.turns, example.given, tokenizer)
    context = max(1, is_target.index(True)) if True in is_target else len(ids)
    gaps: list[tuple[int, int]] = []
    start = 0
    for target, stretch in itertools.groupby(is_target):
        stop = start + len(list(stretch))
        if not target and start >= context:
            gaps.append((start, stop))
        start = stop
    return Document(tuple(ids), context, False, example.domain, example.key, tuple(gaps))


def fitted(example: Example, tokenizer: PreTrainedTokenizerBase, length: int) -> Document | str:
    """Encode a pair or a chat, cut to `length`; if it has no target then, return the reason in place of the document."""
    try:
        document = encode(example, tokenizer, length)
    except ChatRefused as refusal:
        return refusal.reason
    return document if document.targets > 0 else PROMPT_FILLS


def encoded_problems(
    problems: Sequence[Example], tokenizer: PreTrainedTokenizerBase, length: int | None = None
) -> list[Document]:
    """Encode the problems of an evaluation, which leaves none out. Raises UserError that names one that is refused."""
    documents = []
    for number, problem in enumerate(problems, start=1):
        try:
            documents.append(encode(problem, tokenizer, length))
        except ChatRefused as refusal:
            beginning = " ".join(problem.problem.split())[:_BEGINNING]
            raise UserError(f"problem {number} of the evaluation ({beginning!r}): {refusal}") from None
    return documents


def prompted(example: Example, tokenizer: PreTrainedTokenizerBase, length: int) -> Document | str:
    """Encode the prompt alone, which attempts continue; if it leaves no room for a token, return the reason in its place."""
    try:
        ids = prompt_ids(example, tokenizer)
    except ChatRefused as refusal:
        return refusal.reason
    return Document(tuple(ids), len(ids), False, example.domain, example.key) if len(ids) < length else PROMPT_FILLS


def prompt_ids(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens after which an example's response is decoded. Raises like `encode`."""
    if example.turns:
        return prompt_tokens(example.turns, tokenizer)
    return beginning_ids(example.prompt, tokenizer)


def begin_ids(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts before a text: its begin token, or none."""
    return list(_added(tokenizer)[0])


@functools.lru_cache(maxsize=8)
def _added(tokenizer: Any) -> tuple[tuple[int, ...], bool]:
    """The tokens before every text, and whether a text alone is tokenised otherwise than after a line break."""
    # Not from an empty text: OPT has one token for begin and end, and some tokenizers add the end alone.
    word, whole = _plain_ids(_WORD, tokenizer), list(tokenizer(_WORD)["input_ids"])
    begin = whole[: next((i for i in range(len(whole)) if whole[i : i + len(word)] == word), 0)]
    after = _plain_ids(_LINE + _WORD, tokenizer)[len(_plain_ids(_LINE, tokenizer)) :]
    return tuple(begin), word != after


def _plain_ids(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def packed(documents: Sequence[Document], length: int) -> list[list[Document]]:
    """Pack rows of at most `length` tokens: each document, longest first, into the first row that has room for it."""
    rows: list[list[Document]] = []
    for document in sorted(documents, key=len, reverse=True):
        row = next((row for row in rows if sum(map(len, row)) + len(document) <= length), None)
        if row is None:
            rows.append([document])
        else:
            row.append(document)
    return rows


def collate(
    rows: Sequence[Document | Sequence[Document]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int | None = None,
    average: Literal["tokens", "examples"] = "tokens",
) -> TokenBatch:
    """Batch rows of one or more documents, padded on the right to `length` or to the longest row.

    Args:
        rows: the documents of each row.
        tokenizer: gives the id that fills rows.
        length: T.
        average: tokens: every target has weight 1; examples: the targets of a pair have weight 1 together, those of raw text
            1 / T each, so that a whole row of it counts as an example, however short its pieces are.
    """
    filled = [[row] if isinstance(row, Document) else list(row) for row in rows]
    length = length or max(sum(map(len, documents)) for documents in filled)
    # Never read, but looked up: a padding token, which many tokenizers got later, may lie beyond the learner's embedding.
    padding = next((i for i in (tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None), 0)
    ids_BT = torch.full((len(filled), length), padding, dtype=torch.long)
    positions_BT = torch.zeros_like(ids_BT)
    weights_BT = torch.zeros(ids_BT.shape)
    for row, documents in enumerate(filled):
        start = 0
        for document in documents:
            stop = start + len(document)
            ids_BT[row, start:stop] = torch.tensor(document.ids)
            positions_BT[row, start:stop] = torch.arange(len(document))
            of_example = length if document.raw else max(1, document.targets)
            weight = 1 if average == "tokens" else 1 / of_example
            weights_BT[row, start + document.context : stop] = weight
            for first, last in document.gaps:
                weights_BT[row, start + first : start + last] = 0
            start = stop
        positions_BT[row, start:] = torch.arange(length - start)
    domains = tuple(documents[0].domain for documents in filled)
    keys = tuple(tuple(document.key for document in documents) for documents in filled)
    return TokenBatch(ids_BT, positions_BT, weights_BT, domains, keys)

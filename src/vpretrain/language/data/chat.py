"""Chats as tokens: the learner's chat template, and which tokens are the assistant's."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from vpretrain.errors import UserError
from vpretrain.language.data.turns import ASSISTANT, calls_of
from vpretrain.pretrained import first_line
from vpretrain.types import Json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vpretrain.language.config import SourceConfig

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatRefused(UserError):
    """No tokens can be made of a chat; `reason` is short, for counts."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


def has_markers(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template marks the assistant's turns (`{% generation %}`). Raises UserError if there is no template."""
    if not tokenizer.chat_template:
        raise UserError(
            f"the learner {tokenizer.name_or_path} has no chat template, which messages need: take a chat model, save its "
            "tokenizer with one (tokenizer.chat_template), or use data with prompt and response"
        )
    return _MARKER.search(tokenizer.get_chat_template()) is not None


def remark(sources: Iterable[SourceConfig], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Say how answers are found if some source has chats and the template does not mark them; None if not."""
    if not any(source.messages is not None for source in sources) or has_markers(tokenizer):
        return None
    return (
        "chats: the learner's template does not mark the assistant's turns; each is found by rendering its chat up to it and "
        "through it, and nothing has to be done"
    )


def chat_tokens(turns: Sequence[Json], given: int, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """Return the tokens of a chat, and which of them are targets: those of the assistant's turns from number `given` on.

    A template with markers says which tokens these are. With another, the chat is rendered up to each answer and through it:
    the answer is what the second text has more than the first, with the end that the template gives a turn.

    Raises:
        ChatRefused: the template refuses the chat, or rewrites it so that the answers are not found.
        UserError: there is no template, or the tokenizer does not give the places of its tokens in a text.
    """
    _check_calls(turns, given, tokenizer)
    if has_markers(tokenizer):
        ids, is_answer = _marked(turns, tokenizer)
        if any(map(_is_assistants, turns[:given])):
            # Counted in their own text: a turn without a word, as around the call of a tool, may have no stretch.
            _, is_given = _marked(turns[:given], tokenizer)
            is_answer = _without_first(is_answer, sum(marked for marked, _ in itertools.groupby(is_given)))
        return ids, is_answer
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} does not tell where its tokens lie in a text: give it a chat template "
            "with {% generation %} markers, or save it as a fast tokenizer"
        )
    whole = _applied(turns, tokenizer, tokenize=False)
    found = [_answer(turns, n, whole, tokenizer) for n in range(given, len(turns)) if _is_assistants(turns[n])]
    answers = [(start, start + len(_ended(whole[start:stop], tokenizer))) for start, stop in found]
    tokens = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, _ in tokens["offset_mapping"]]
    return list(tokens["input_ids"]), [any(first <= start < last for first, last in answers) for start in starts]


def prompt_tokens(turns: Sequence[Json], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of a chat before its last turn, with those that begin an answer. Raises like `chat_tokens`."""
    has_markers(tokenizer)
    return list(
        _applied(turns[:-1], tokenizer, tokenize=True, return_dict=True, add_generation_prompt=True)["input_ids"]
    )


def end_of_turn(turns: Sequence[Json], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special token that ends an answer by the chat template; none if no special token does."""
    if not turns:
        return []
    ids, is_target = chat_tokens(turns, 0, tokenizer)
    last = [token for token, target in zip(ids, is_target, strict=True) if target][-1:]
    return [token for token in last if token in tokenizer.all_special_ids]


def _applied(turns: Sequence[Json], tokenizer: PreTrainedTokenizerBase, **kwargs: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(list(turns), **kwargs)
    except Exception as error:  # a template is a program: what it refuses it may raise as any type
        message = f"{first_line(error)}; leave it out with exclude"
        raise ChatRefused("chat refused by the learner's template", message) from None


def _check_calls(turns: Sequence[Json], given: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ChatRefused if the template leaves out a call of a tool: the learner would be taught to say nothing there."""
    called = [name for turn in turns[given:] for name in calls_of(turn)]
    text = _applied(turns, tokenizer, tokenize=False) if called else ""
    if not all(name in text for name in called):
        message = "take a learner whose template writes them, or leave the chat out with exclude"
        raise ChatRefused("calls of tools left out by the learner's template", message)


def _marked(turns: Sequence[Json], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """The tokens of a chat, and which of them the template marks as the assistant's."""
    found = _applied(turns, tokenizer, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    return list(found["input_ids"]), [bool(mark) for mark in found["assistant_masks"]]


def _answer(turns: Sequence[Json], number: int, whole: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return where the assistant's turn of that number starts and stops in the text of the whole chat."""
    before = _applied(turns[:number], tokenizer, tokenize=False, add_generation_prompt=True)
    through = whole if number == len(turns) - 1 else _applied(turns[: number + 1], tokenizer, tokenize=False)
    if whole.startswith(before):
        if whole.startswith(through) and len(through) > len(before):
            return len(before), len(through)
        # A template may write the last turn otherwise than earlier ones (Qwen3's adds its thoughts): search for its text.
        text = str(turns[number].get("content") or "").strip()
        start, end = whole.find(text, len(before)), through.rpartition(text)[2]
        if text and start >= 0 and whole.startswith(end, start + len(text)):
            return len(before), start + len(text) + len(end)
    message = (
        "the learner's template rewrites them: give it {% generation %} markers, or leave the chat out with exclude"
    )
    raise ChatRefused("assistant's turns not found in a chat", message)


def _ended(answer: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Leave out the space after a special token that ends an answer: at decoding nothing comes after that."""
    return short if (short := answer.rstrip()).endswith(tuple(tokenizer.all_special_tokens)) else answer


def _is_assistants(turn: Json) -> bool:
    return turn["role"] == ASSISTANT


def _without_first(is_answer: list[bool], answers: int) -> list[bool]:
    """Clear so many stretches of marked tokens, the first ones."""
    kept: list[bool] = []
    for marked, stretch in itertools.groupby(is_answer):
        tokens = list(stretch)
        kept += [marked and answers <= 0] * len(tokens)
        answers -= marked
    return kept

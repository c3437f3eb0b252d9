"""Solve problems by decoding, and check the answers. Shapes: B rows, T tokens."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Sequence
from math import comb, inf, isfinite
from statistics import mean
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from vpretrain.errors import UserError
from vpretrain.language.data.chat import end_of_turn
from vpretrain.language.data.encode import prompt_ids
from vpretrain.language.data.example import Example, Scorer
from vpretrain.language.data.rows import spelled
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.types import Keywords

Comparison = Literal["number", "words", "mathematics", "scorer"]

# Other commas than those between thousands separate the numbers of a list, as for math-verify.
_NUMBER = r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?(?:/\d+)?"
_PLAIN_NUMBER = re.compile(rf"\$?{_NUMBER}\s?%?")
_FEW_WORDS = 4  # of more, a response is a written solution
# Whatever the learner's generation config says, draws are from its own distribution: g_down of a verifier depends on it.
_UNCHANGED: Keywords = {
    "top_p": 1.0, "top_k": 0, "min_p": None, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "bad_words_ids": None, "sequence_bias": None,
    "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip


def solve(
    learner: LanguageLearner,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    max_new_tokens: int,
    *,
    samples: int = 0,
    temperature: float = 1.0,
    stop: Sequence[str] = (),
    done: Callable[[float], None] = lambda fraction: None,
) -> list[list[str]]:
    """Decode solutions of each problem, all problems as one batch, and return their texts without any stop string.

    Args:
        samples: solutions drawn for each problem; 0: the greedy one.
        temperature: of the draws.
        stop: a solution ends before the first of these strings, and its decoding stops once one appears.
        done: called after each token with the fraction of `max_new_tokens` generated so far.
    """
    kwargs: Keywords = {"samples": samples, "temperature": temperature, "stop": stop, "done": done}
    drawn = decode(learner, tokenizer, examples, max_new_tokens, **kwargs)
    return [[text_of(ids, tokenizer, stop) for ids in of_problem] for of_problem in drawn]


def decode(
    learner: LanguageLearner,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    max_new_tokens: int,
    *,
    samples: int = 0,
    temperature: float = 1.0,
    stop: Sequence[str] = (),
    done: Callable[[float], None] = lambda fraction: None,
) -> list[list[list[int]]]:
    """Decode solutions of each problem, as `solve`, but return their tokens: all that were chosen, up to what ended them.

    A solution ends with an end token, with the token that completed a stop string, or at the maximum length.
    """
    rows = [torch.tensor(prompt_ids(example, tokenizer), dtype=torch.long) for example in examples]
    ends = {tokenizer.eos_token_id} | {end for example in examples for end in end_of_turn(example.turns, tokenizer)}
    ids_BT = pad_sequence(rows, batch_first=True, padding_side="left")
    mask_BT = pad_sequence([torch.ones_like(ids) for ids in rows], batch_first=True, padding_side="left")
    length = ids_BT.shape[1]
    kwargs: Keywords = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if samples:
        kwargs = {"do_sample": True, "temperature": temperature, "num_return_sequences": samples, **_UNCHANGED}
    # Tokens to search for a stop string that the newest one completes: each of the string's tokens holds at least one byte.
    tail = 1 + max((len(string.encode()) for string in stop), default=0)
    stopped: dict[int, int] = {}  # row -> number of its tokens when a stop string was complete

    def ended(ids_BT: Tensor, scores: object, **_: object) -> Tensor:
        """A stopping criterion of transformers: which rows contain a stop string, [B]."""
        made = ids_BT.shape[1] - length
        done(made / max_new_tokens)
        texts = tokenizer.batch_decode(ids_BT[:, length:][:, -tail:], skip_special_tokens=True)
        found = [before_stop(text, stop) != text for text in texts]
        for row in (row for row, complete in enumerate(found) if complete):
            stopped.setdefault(row, made)
        return torch.tensor(found, device=ids_BT.device)

    generated = learner.generate(
        input_ids=ids_BT.to(learner.device),
        attention_mask=mask_BT.to(learner.device),
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.eos_token_id,
        stopping_criteria=[ended],
        **kwargs,
    )[:, length:].tolist()
    # What comes after the end is padding.
    ids = [_until(ends, row[: stopped.get(number)]) for number, row in enumerate(generated)]
    each = max(1, samples)
    return [ids[first : first + each] for first in range(0, len(ids), each)]


def _until(ends: Collection[object], ids: list[int]) -> list[int]:
    """The tokens up to the first end token, included."""
    return ids[: next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))]


def text_of(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> str:
    """Return the text of a solution's tokens, before its first stop string."""
    (text,) = tokenizer.batch_decode([list(ids)], skip_special_tokens=True)
    return before_stop(text, stop)


def before_stop(text: str, stop: Sequence[str]) -> str:
    """Return the text before its first stop string; all of it if there is none."""
    return text[: min((text.index(string) for string in stop if string in text), default=len(text))]


def pass_at_k(correct: Sequence[int], samples: int) -> dict[str, float]:
    """Pass@k for k = 1, 2, 4 ... up to `samples`: 1 - C(n - c, k) / C(n, k), without bias (Chen et al., 2021).

    Args:
        correct: c, the number of correct solutions of each problem.
        samples: n.
    """
    ks = [2**power for power in range(samples.bit_length())]
    return {str(k): mean(1 - comb(samples - c, k) / comb(samples, k) for c in correct) for k in ks}


def reference(example: Example) -> str:
    """The true final answer of a problem: marked in its solution with #### or \\boxed{}, else its field `answer`.

    Without either it is the last number of a written solution; a response of a few words is an answer as it is.
    """
    if (marked := marked_answer(example.response)) is not None:
        return marked
    if field := spelled(example.fields.get("answer")):
        return field
    written = len(re.findall(r"[^\W\d_]{2,}", example.response)) > _FEW_WORDS
    return final_answer(example.response) if written else example.response


def states_answer(example: Example) -> bool:
    """Whether attempts can be checked: by a scorer, by an answer marked in the solution, or by a field `answer`."""
    return (
        example.scorer is not None
        or marked_answer(example.response) is not None
        or bool(spelled(example.fields.get("answer")))
    )


def marked_answer(text: str) -> str | None:
    """The text after the first ####, else the content of the last \\boxed{}; None without either."""
    marked = re.search(r"####\s*(.+)", text)
    if marked:
        return marked[1].strip()
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for end in range(start, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            return text[start:end].strip()
    return None


def final_answer(text: str) -> str:
    """The marked answer, else the last number, else the last line."""
    marked = marked_answer(text)
    if marked is not None:
        return marked
    numbers = re.findall(_NUMBER, text)
    return numbers[-1] if numbers else _last_line(text)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def solves(text: str, example: Example) -> bool:
    """Whether the final answer in `text` is right: by the scorer of the problem, else because it equals its answer."""
    return is_correct(text, reference(example), scorer=example.scorer)


def is_correct(text: str, truth: str, *, within: float = 0.0, scorer: Scorer | None = None) -> bool:
    """Whether the final answer in `text` equals `truth`: as numbers, as words, or else as mathematics (math-verify).

    A number may differ from the truth by `within`; rounding, a millionth of the number, is always allowed. If there is a
    scorer, it decides instead. Scorers and words are given the marked answer, else the last line.
    """
    marked = marked_answer(text)
    if scorer is not None:
        return scorer(_last_line(text) if marked is None else marked) == 1
    if _PLAIN_NUMBER.fullmatch(truth.strip()):
        ours, theirs = _value(final_answer(text)), _value(truth)
        if ours is None or theirs is None:
            return False
        return abs(ours - theirs) <= max(within, 1e-6 * max(1.0, abs(theirs)))
    if is_words(truth):
        return (_last_line(text) if marked is None else marked).casefold() == truth.strip().casefold()
    verify = math_verify()
    return bool(verify.verify(verify.parse(f"${truth}$"), verify.parse(text if marked is None else f"${marked}$")))


def is_words(truth: str) -> bool:
    """Whether an answer is compared as text."""
    return re.fullmatch(r"[^\W\d_]+([ ,.'-]+[^\W\d_]+)*[.]?", truth.strip()) is not None


def compared_as(example: Example) -> Comparison:
    """How attempts at a problem are compared with its answer."""
    if example.scorer is not None:
        return "scorer"
    truth = reference(example)
    if _PLAIN_NUMBER.fullmatch(truth.strip()):
        return "number"
    return "words" if is_words(truth) else "mathematics"


def needs_mathematics(example: Example) -> bool:
    """Whether attempts are compared by math-verify, a package of an extra."""
    return compared_as(example) == "mathematics"


def math_verify() -> ModuleType:
    """Import the package. Raises UserError if it is not installed."""
    try:
        return importlib.import_module("math_verify")
    except ImportError:
        raise UserError('answers that are formulas need a package: pip install "vpretrain[evaluate]"') from None


def _value(text: str) -> float | None:
    numbers = re.findall(_NUMBER, re.sub(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", text))
    if not numbers:
        return None
    numerator, _, denominator = numbers[0].replace(",", "").partition("/")
    divisor = float(denominator or 1)
    value = float(numerator) / divisor if divisor else inf
    return value if isfinite(value) else None  # 1e999 is infinite, and every number would be close to it

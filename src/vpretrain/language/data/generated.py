"""Rows of data that are made on this machine: by generators of reasoning-gym, and from text that comes with Python."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from vpretrain.errors import UserError
from vpretrain.language.config import SourceConfig
from vpretrain.language.data.example import ScoredRow
from vpretrain.pretrained import first_line
from vpretrain.types import Json

if TYPE_CHECKING:
    from reasoning_gym.dataset import ProceduralDataset


# Data sets of reasoning-gym with several right answers per problem, whose scorers were read: they run no code of an answer.
# Others pass it to `eval` or to sympy's `parse_expr`, so no scorer is used unless it is named here.
SCORED = frozenset({
    "jugs", "knight_swap", "palindrome_generation", "quantum_lock", "shortest_path", "word_ladder",
})  # fmt: skip


def python_manual() -> Sequence[Json]:
    """The language reference, one topic per row."""
    from pydoc_data import topics

    return [{"topic": name, "text": text} for name, text in sorted(topics.topics.items())]


def generated(config: SourceConfig) -> Sequence[Json]:
    """The rows of a reasoning-gym data set, each made when it is asked for. Raises UserError."""
    try:
        import reasoning_gym
    except ImportError:
        raise UserError('reasoning_gym sources need a package: pip install "vpretrain[quickstart]"') from None
    options: Json = {"seed": 0} | config.options
    templates = options.pop("task_indices", None)
    try:
        dataset = reasoning_gym.create_dataset(config.reasoning_gym, size=config.size, **options)
    except Exception as error:  # of any type, where a generator looks at its options less closely
        raise _refused(config, error) from None
    if templates is not None:
        dataset.task_indices = _choose_templates(config, templates, options["seed"])
    return _Flat(dataset, config)


class _Flat(Sequence[Json]):
    """A reasoning-gym data set as flat rows; if it is among `SCORED`, each with the scorer of its answers.

    Every row has a worked solution, or else the bare answer, in two notations: `answer_cot` and `answer_boxed`. Both are None
    where the generator gives no answer.
    """

    def __init__(self, dataset: ProceduralDataset, config: SourceConfig) -> None:
        self._dataset, self._config = dataset, config

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        if index >= len(self):  # most generators make rows beyond their size
            raise IndexError(index)
        try:
            entry = self._dataset[index]
        except Exception as error:  # options may let it be created and still fit no problem
            raise _refused(self._config, error) from None
        scalars = {k: v for k, v in entry["metadata"].items() if isinstance(v, str | int | float)}
        solution = entry["metadata"].get("answer_cot", entry["answer"])
        forms = {"question": entry["question"], "answer": entry["answer"], "answer_cot": solution}
        row = {**scalars, **forms, "answer_boxed": None if solution is None else boxed(solution)}
        scored = self._config.reasoning_gym in SCORED
        return ScoredRow(row, partial(self._dataset.score_answer, entry=entry)) if scored else row


def _refused(config: SourceConfig, error: Exception) -> UserError:
    return UserError(f"reasoning_gym {config.reasoning_gym}: {first_line(error)}; check the name and the options")


def boxed(solution: str) -> str:
    """Write a solution of GSM8K's form (a line per step, then `#### answer`) on one line, with its answer in a box."""
    steps, _, answer = solution.rpartition("####")
    return " ".join([*steps.split(), "Therefore", "the", "final", "answer", "is", rf"\boxed{{{answer.strip()}}}."])


def _choose_templates(config: SourceConfig, templates: object, seed: int) -> list[int]:
    """The template of every example: gsm_symbolic draws them from all templates, here from the allowed ones only."""
    if config.reasoning_gym != "gsm_symbolic":
        raise UserError(f"task_indices is an option of gsm_symbolic; {config.reasoning_gym} has no templates")
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import tasks_ok

    listed = templates if isinstance(templates, list) else [templates]
    wrong = [one for one in listed if one not in tasks_ok]
    if wrong or not listed:
        raise UserError(f"gsm_symbolic has no templates {wrong}; task_indices must be among {sorted(tasks_ok)}")
    return random.Random(seed).choices(listed, k=config.size)

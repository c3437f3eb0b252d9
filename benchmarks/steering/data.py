"""The benchmark's texts: grade-school templates split by role, and four streams made of them."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from vpretrain.language.config import SourceConfig
from vpretrain.language.data.source import IndexedSource, open_source

SIZES = {"stream": 40, "feedback": 20, "validation": 10, "test": 15}  # templates; 85 in all
PROBLEMS = 4000  # per stream
PAIR = {"prompt": "Question: {question}\nAnswer:", "response": " {answer_cot}"}
OFF_TOPIC = ("leg_counting", "chain_sum", "simple_geometry", "calendar_arithmetic")
# Generators for pretraining the learner: none has a template of gsm_symbolic. A learner that had seen a few of these would have
# memorised them, be confidently wrong about all others, and unlearn that first of all, whatever the arm.
GENERAL = (
    *OFF_TOPIC, "aiw", "basic_arithmetic", "coin_flip", "decimal_arithmetic", "dice", "family_relationships",
    "fraction_simplification", "gcd", "knights_knaves", "lcm", "letter_counting", "needle_haystack", "number_filtering",
    "number_sorting", "prime_factorization", "products", "sentence_reordering", "spell_backward", "syllogism",
    "time_intervals", "word_sequence_reversal",
)  # fmt: skip
MANUAL_TEXTS = 60  # of Python's manual: these are pretrained on, the others are the retention set
_WORD = re.compile(r"\S+")


def templates(role: str) -> list[int]:
    """Return the templates of gsm_symbolic that are reserved for a role."""
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import tasks_ok

    order = sorted(tasks_ok)
    random.Random(0).shuffle(order)
    first = sum(size for name, size in SIZES.items() if list(SIZES).index(name) < list(SIZES).index(role))
    return order[first : first + SIZES[role]]


def problems(role: str, seed: int, size: int) -> dict[str, Any]:
    """Return a recipe source of a role's problems."""
    options = {"seed": seed, "task_indices": templates(role)}
    return {"reasoning_gym": "gsm_symbolic", "size": size, "options": options, "domain": "math", **PAIR}


def other_texts(generators: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return recipe sources unrelated to grade-school problems: some generators, and Python's manual."""
    generated = [
        {"reasoning_gym": name, "size": PROBLEMS, "options": {"seed": 7}, "domain": "math"} for name in generators
    ]
    return [*generated, {"builtin": "python-manual", "limit": MANUAL_TEXTS, "domain": "math"}]


def opened(source: dict[str, Any]) -> IndexedSource:
    """Open a recipe source: all of this benchmark are indexed, none is streamed."""
    examples = open_source(SourceConfig.model_validate(source))
    assert isinstance(examples, IndexedSource)
    return examples


def mixture(sources: list[dict[str, Any]], share: float) -> list[dict[str, Any]]:
    """Return the sources with equal weights that add up to `share`."""
    return [source | {"weight": share / len(sources)} for source in sources]


def stream_of(condition: str, root: Path) -> list[dict[str, Any]]:
    """Return a condition's stream as recipe sources; the condition's problems are written below `root`."""
    off_topic = 0.85 if condition == "off-topic" else 0.2
    file = root / f"{condition}.jsonl"
    if not file.exists():
        root.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in _rows(condition)), encoding="utf-8")
    on_topic = {"path": str(file), "prompt": "{prompt}", "response": "{response}", "domain": "math"}
    return [on_topic | {"weight": 1 - off_topic}, *mixture(other_texts(OFF_TOPIC), off_topic)]


def _rows(condition: str) -> list[dict[str, str]]:
    source = opened(problems("stream", 1, PROBLEMS))
    rows = [{"prompt": source[i].prompt, "response": source[i].response} for i in range(len(source))]
    vocabulary = sorted({word for row in rows for word in _WORD.findall(row["response"])})
    if condition == "noisy":
        draw = random.Random(2)
        return [_noisy(row, draw, vocabulary) for row in rows]
    return [_reformatted(row) for row in rows] if condition == "format-shift" else rows


def _noisy(row: dict[str, str], draw: random.Random, vocabulary: list[str]) -> dict[str, str]:
    """Replace two words in five of the solution by words of other solutions."""
    replace = lambda match: draw.choice(vocabulary) if draw.random() < 0.4 else match[0]  # noqa: E731
    return {**row, "response": _WORD.sub(replace, row["response"])}


def _reformatted(row: dict[str, str]) -> dict[str, str]:
    """Write the same problem and solution in another format: one line, tags, no ####."""
    question = row["prompt"].removeprefix("Question: ").removesuffix("\nAnswer:")
    steps, _, answer = row["response"].partition("####")
    line = " | ".join(part.strip() for part in steps.splitlines() if part.strip())
    return {"prompt": f"<task>{question}</task>\n<work>", "response": f"{line}</work><final>{answer.strip()}</final>"}

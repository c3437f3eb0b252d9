"""GSM8K's training problems in two notations, with a role for each: `python -m benchmarks.shift.data TRAIN.JSONL DIRECTORY`.

The role of a question depends on its hash. The stream's problems are rewritten: other headings, on one line, no calculator
marks, the answer in a box. Feedback, validation and test keep GSM8K's own form, towards which the learner is to be steered.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

from vpretrain.language.data.generated import boxed

ROLES = {"feedback": 0.14, "test": 0.24, "validation": 0.3, "stream": 1.0}  # upper bounds of the hash
_MARK = re.compile(r"<<[^>]*>>")


def role(question: str) -> str:
    """Return the role of a problem, independent of the order of the file."""
    share = int(hashlib.sha256(question.encode()).hexdigest()[:12], 16) / 16**12
    return next(name for name, bound in ROLES.items() if share < bound)


def shifted(question: str, answer: str) -> dict[str, str]:
    """Write a problem with its solution in the stream's notation."""
    prompt = f"Problem: {' '.join(question.split())}\n\nSolution:"
    return {"prompt": prompt, "response": f" {boxed(_MARK.sub('', answer))}"}


def own_form(question: str, answer: str) -> dict[str, str]:
    """Write a problem with its solution in GSM8K's own form."""
    return {"prompt": f"Question: {question}\nAnswer:", "response": f" {answer}"}


def write(train: Path, directory: Path) -> dict[str, int]:
    """Write a file for every role; return the number of problems in each."""
    rows = [json.loads(line) for line in train.read_text(encoding="utf-8").splitlines()]
    by_role: dict[str, list[dict[str, str]]] = {name: [] for name in ROLES}
    for row in rows:
        name = role(row["question"])
        by_role[name].append((shifted if name == "stream" else own_form)(row["question"], row["answer"]))
    directory.mkdir(parents=True, exist_ok=True)
    for name, of_role in by_role.items():
        text = "".join(json.dumps(row) + "\n" for row in of_role)
        (directory / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {name: len(of_role) for name, of_role in by_role.items()}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m benchmarks.shift.data TRAIN.JSONL DIRECTORY")
    print(write(Path(sys.argv[1]), Path(sys.argv[2])))

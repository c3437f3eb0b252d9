"""`make bench-decontaminate`: speed, memory and recall of `vpretrain decontaminate` at two sizes of the stream.

The evaluation is 1,000 problems of gsm_symbolic. The stream is documents of random words, with the word frequencies of Python's
manual; one in 500 has a paragraph that is an evaluation problem with some words changed. The documents to find follow from
the definition: the Jaccard similarity of two sets of word n-grams.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from pydoc_data import topics
from typing import Any

from rich.table import Table

from benchmarks.command import command, console, write_report
from vpretrain.language.config import SourceConfig
from vpretrain.language.data.source import open_source

N, THRESHOLD = 5, 0.7
PROBLEMS, EVERY, PARAGRAPHS, WORDS = 1000, 500, 6, 80


def measure(megabytes: int, folder: Path) -> dict[str, Any]:
    """Decontaminate a stream of this size in a separate process."""
    problems = [example.problem for example in open_source(SourceConfig(reasoning_gym="gsm_symbolic", size=PROBLEMS))]
    (folder / "evaluation.jsonl").write_text("".join(json.dumps({"text": p}) + "\n" for p in problems))
    planted = _write_stream(folder / "stream.jsonl", megabytes, problems)
    output = folder / "clean"
    arguments = [str(folder / "stream.jsonl"), "--against", str(folder / "evaluation.jsonl"), "--output", str(output)]
    settings = [f"--ngram={N}", f"--jaccard={THRESHOLD}"]
    subprocess.run([sys.executable, "-m", "vpretrain", "decontaminate", *arguments, *settings], check=True)
    dropped = {json.loads(line)["example"] for line in (output / "dropped.jsonl").open(encoding="utf-8")}
    found = json.loads((output / "report.json").read_text())
    (report,), seconds = found["sources"], found["seconds"]
    near = {number for number, similarity in planted.items() if similarity >= THRESHOLD}
    return {
        "megabytes": megabytes,
        "documents": report["examples"],
        "near_duplicates": len(near),
        "recall": len(near & dropped) / len(near),
        "precision": len(near & dropped) / max(1, len(dropped)),
        "seconds": seconds,
        "megabytes_per_s": megabytes / seconds,
        # The peak so far: measure sizes in ascending order.
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }


def _write_stream(file: Path, megabytes: int, problems: list[str]) -> dict[int, float]:
    """Write documents until the file has this size; return the similarity of the planted ones to their problem."""
    draw = random.Random(0)
    vocabulary = re.findall(r"\w+", " ".join(topics.topics.values()))
    planted: dict[int, float] = {}
    written = number = 0
    with file.open("w", encoding="utf-8") as lines:
        while written < megabytes * 10**6:
            paragraphs = [" ".join(draw.choices(vocabulary, k=WORDS)) for _ in range(PARAGRAPHS)]
            if number % EVERY == 0:
                problem = draw.choice(problems)
                changed = _changed(draw, problem, vocabulary)
                paragraphs.insert(draw.randrange(PARAGRAPHS), changed)
                planted[number] = _jaccard(problem, changed)
            line = json.dumps({"text": "\n\n".join(paragraphs)}) + "\n"
            written += lines.write(line)
            number += 1
    return planted


def _changed(draw: random.Random, text: str, vocabulary: list[str]) -> str:
    words = text.split()
    for _ in range(draw.randrange(5)):
        words[draw.randrange(len(words))] = draw.choice(vocabulary)
    return " ".join(words)


def _jaccard(a: str, b: str) -> float:
    """Return the Jaccard similarity of the n-grams, by definition."""
    words = [re.findall(r"\w+", text.casefold()) for text in (a, b)]
    one, other = ({tuple(w[i : i + N]) for i in range(len(w) - N + 1)} for w in words)
    return len(one & other) / len(one | other)


def main() -> None:
    """Measure at both sizes; the full run writes decontaminate.json beside this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decontaminate", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="5 and 20 MB instead of 100 and 1000; writes nothing")
    quick = parser.parse_args().quick
    rows = []
    for size in (5, 20) if quick else (100, 1000):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(size, Path(folder)))
    view = Table(title=f"near-duplicates of {PROBLEMS:,} problems, {N}-grams, J >= {THRESHOLD}")
    for column in rows[0]:
        view.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        view.add_row(*(f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" for value in row.values()))
    console().print(view)
    for less, more in pairwise(rows):
        factor = more["megabytes"] / less["megabytes"]
        print(f"{factor:.0f} times the text, {more['peak_memory_mib'] / less['peak_memory_mib']:.2f} times the memory")
    if not quick:
        write_report("bench-decontaminate", {"seed": 0, "sizes": rows}, Path(__file__).with_suffix(".json"))


if __name__ == "__main__":
    command(main)

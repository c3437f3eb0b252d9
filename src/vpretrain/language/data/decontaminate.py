"""`vpretrain decontaminate`: a stream without the examples that are near-duplicates of evaluation problems."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from vpretrain.console import progress
from vpretrain.errors import UserError
from vpretrain.language.config import Recipe, SourceConfig
from vpretrain.language.data.overlap import OverlapIndex
from vpretrain.language.data.source import Example, count_rows, open_source, templates
from vpretrain.recipe import load_recipe, save_recipe

EXCERPT = 300  # characters of a text in the report
_PARAGRAPH = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Text:
    """Something that is compared: a part of an example (`whole`, `problem`, `paragraph 3`) of a source, both by number."""

    source: int
    example: int
    part: str
    text: str

    def shown(self) -> dict[str, Any]:
        """For the report."""
        return {"source": self.source, "example": self.example, "part": self.part, "text": self.text[:EXCERPT]}


def decontaminate(
    stream: str, against: Sequence[str], output: Path, *, n: int, threshold: float, overwrite: bool = False
) -> dict[str, Any]:
    """Copy a stream without what resembles evaluation problems.

    An example is dropped if its problem, its problem with its solution, or a paragraph of its raw text has a Jaccard
    similarity of at least `threshold`, over word n-grams, to the same of an evaluation example. It is read row by row: memory
    is that of the evaluation's texts and of one row.

    Args:
        stream: a recipe (its stream), or `PATH` or `PATH:FIELD,FIELD`: data files and the fields that count, the problem first.
        against: the same; of recipes, their evaluation.
        output: a directory for stream-N.jsonl (one a source), dropped.jsonl (what went, and why), report.json and, for a
            recipe, recipe.yaml with the cleaned stream. They appear when all is done: a stream can be cleaned in place.
        n: words an n-gram.
        threshold: the least similarity that is dropped.
        overwrite: write over an earlier result there.

    Returns:
        What report.json holds.

    Raises:
        UserError: something is not there, a row has not its fields, or `output` is taken.
    """
    recipe = _recipe(stream)
    sources = [_source(stream)] if recipe is None else recipe.stream.sources
    if (output / "report.json").exists() and not overwrite:
        raise UserError(f"{output} holds a result already: add --overwrite, or give another --output")
    evaluation = [source for one in against for source in _evaluation(one)]
    known, find = _index(evaluation, n, threshold)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror}; change --output") from None
    start = time.monotonic()
    hits: set[tuple[int, int]] = set()  # evaluation examples, by source and number
    with TemporaryDirectory(dir=output) as folder:
        aside = Path(folder)
        with (aside / "dropped.jsonl").open("w", encoding="utf-8") as dropped:

            def report_drop(text: Text, jaccard: float, like: Text) -> None:
                line = {**text.shown(), "jaccard": round(jaccard, 4), "like": like.shown()}
                dropped.write(json.dumps(line, ensure_ascii=False) + "\n")
                hits.add((like.source, like.example))

            files = [f"stream-{number}.jsonl" for number in range(len(sources))]
            cleaned = [
                _clean(source, number, aside / file, find, report_drop)
                for number, (source, file) in enumerate(zip(sources, files, strict=True))
            ]
        for old in [*output.glob("stream-*.jsonl"), output / "recipe.yaml"]:
            old.unlink(missing_ok=True)
        for file in (*files, "dropped.jsonl"):
            (aside / file).replace(output / file)
    if recipe is not None:
        new = [
            source.model_copy(update={"path": str(output / file)})
            for (source, _), file in zip(cleaned, files, strict=True)
        ]
        stream_config = recipe.stream.model_copy(update={"sources": new})
        save_recipe(recipe.model_copy(update={"stream": stream_config}), output / "recipe.yaml")
    report = {
        "stream": stream,
        "against": list(against),
        "recipe": recipe is not None,
        "ngram": n,
        "jaccard": threshold,
        "sources": [counts for _, counts in cleaned],
        "evaluation": [
            {
                "origin": source.origin,
                "examples": len({text.example for text in known if text.source == number}),
                "found": sum(hit[0] == number for hit in hits),
            }
            for number, source in enumerate(evaluation)
        ],
        "seconds": round(time.monotonic() - start, 1),
    }
    (output / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


def decontaminate_table(report: dict[str, Any]) -> Table:
    """For a terminal."""
    view = Table(title=f"near-duplicates: Jaccard {report['jaccard']:g} or more over {report['ngram']}-grams of words")
    for column in ("source", "examples", "dropped", "share"):
        view.add_column(column, justify="left" if column == "source" else "right")
    for role, key in (("stream", "dropped"), ("evaluation", "found")):
        for source in report["sources" if role == "stream" else role]:
            found, examples = source[key], source["examples"]
            what = f"{found:,}" if role == "stream" else f"{found:,} were in it"
            view.add_row(f"{role}: {source['origin']}", f"{examples:,}", what, f"{found / max(1, examples):.3%}")
        view.add_section()
    return view


def parts(example: Example, source: int, number: int) -> Iterator[Text]:
    """What of an example is compared."""
    if example.solution:
        yield Text(source, number, "problem", example.problem)
        yield Text(source, number, "whole", f"{example.problem} {example.solution}")
        return
    yield Text(source, number, "whole", example.problem)
    paragraphs = _PARAGRAPH.split(example.problem)
    if len(paragraphs) > 1:
        for place, paragraph in enumerate(paragraphs, start=1):
            yield Text(source, number, f"paragraph {place}", paragraph)


_Find = Callable[[Text], tuple[float, Text] | None]


def _index(sources: Sequence[SourceConfig], n: int, threshold: float) -> tuple[list[Text], _Find]:
    """The evaluation's texts, and what finds the one that another text is nearly."""
    index, known = OverlapIndex(n, threshold), list[Text]()
    for place, source in enumerate(sources):
        for number, example in enumerate(open_source(source)):
            for text in parts(example, place, number):
                if not text.part.startswith("paragraph"):  # one of them is no problem
                    index.add(text.text)
                    known.append(text)

    def find(text: Text) -> tuple[float, Text] | None:
        found = index.nearest(text.text)
        return None if found is None else (found[0], known[found[1]])

    return known, find


def _clean(
    source: SourceConfig, place: int, file: Path, find: _Find, report_drop: Callable[[Text, float, Text], None]
) -> tuple[SourceConfig, dict[str, Any]]:
    """Write what is kept of a source; returns the source of that, and counts."""
    examples = dropped = 0
    chosen: dict[str, str] = {}
    with file.open("w", encoding="utf-8") as kept:
        for example in _watched(source):
            chosen = chosen or templates(example.fields, source)
            for text in parts(example, place, examples):
                if (found := find(text)) is not None:
                    report_drop(text, *found)
                    dropped += 1
                    break
            else:
                kept.write(json.dumps(example.fields, ensure_ascii=False, default=str) + "\n")
            examples += 1
    same = {"streaming": source.streaming, "domain": source.domain, "weight": source.weight}
    clean = SourceConfig(path=str(file), **same, **chosen)  # rows have had their values renamed, skip and limit applied
    return clean, {"origin": source.origin, "examples": examples, "dropped": dropped}


def _watched(source: SourceConfig) -> Iterator[Example]:
    """The source's examples, once, with progress."""
    opened = open_source(source.model_copy(update={"streaming": True}))  # generators have their rows at hand anyway
    total = count_rows(source)
    start = time.monotonic()
    with progress(f"{'decontaminate':>18}") as update:
        for number, example in enumerate(opened, start=1):
            yield example
            left = None if total is None else (time.monotonic() - start) * max(0, total - number) / number
            update(0.0 if total is None else min(1.0, number / total), left, f"{source.origin}  {number:,}")


def _recipe(name: str) -> Recipe | None:
    if not name.endswith((".yaml", ".yml")):
        return None
    recipe = load_recipe(name)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{name} is no language recipe: pictures have no n-grams")
    return recipe


def _evaluation(name: str) -> list[SourceConfig]:
    recipe = _recipe(name)
    return [_source(name)] if recipe is None else recipe.evaluation.sources


def _source(name: str) -> SourceConfig:
    """From PATH or PATH:FIELD,FIELD."""
    path, colon, named = name.partition(":")
    fields = [field.strip() for field in named.split(",")]
    wrong = [field for field in fields if colon and not re.fullmatch(r"[\w-]+", field)]
    if wrong:
        raise UserError(f"{name}: '{wrong[0]}' is no name of a field; write for instance data.jsonl:question,answer")
    if len(fields) == 1:
        return SourceConfig(path=path, text=f"{{{fields[0]}}}" if colon else None)
    response = " ".join(f"{{{field}}}" for field in fields[1:])
    return SourceConfig(path=path, prompt=f"{{{fields[0]}}}", response=response)

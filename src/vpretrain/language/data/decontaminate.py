"""`vpretrain decontaminate`: remove the examples of a stream that are near-duplicates of evaluation problems."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.markup import escape
from rich.table import Table

from vpretrain.bounds import check_location
from vpretrain.console import progress
from vpretrain.errors import Unreadable, UserError
from vpretrain.files import read_json, write_json
from vpretrain.language.config import Recipe, SourceConfig, StreamConfig
from vpretrain.language.data.example import COLUMN, Example, templates
from vpretrain.language.data.overlap import OverlapIndex
from vpretrain.language.data.rows import as_json
from vpretrain.language.data.source import count_rows, open_source, with_form
from vpretrain.recipe import load_recipe, save_recipe
from vpretrain.run.skipped import SKIPPED, Skipped, TooManySkipped, entries, write
from vpretrain.types import Json

EXCERPT = 300  # characters of a text in the report
LEAST = 0.1  # similarity: below it the sketches, which grow with its inverse square, take longer than the texts
_PARAGRAPH = re.compile(r"\n\s*\n")
_CLEANED = re.compile(r"stream-\d+\.jsonl")


@dataclass(frozen=True)
class Text:
    """A text to compare: a part (`whole`, `problem`, `paragraph 3`) of an example of a source, both given by number."""

    source: int
    example: int
    part: str
    text: str

    def shown(self) -> Json:
        """The text as an entry of the report, cut to `EXCERPT` characters."""
        return {"source": self.source, "example": self.example, "part": self.part, "text": self.text[:EXCERPT]}


def decontaminate(
    stream: str, against: Sequence[str], output: Path, *, n: int, threshold: float, overwrite: bool = False
) -> Json:
    """Copy a stream without the examples that resemble evaluation problems.

    An example is dropped if its problem, its problem with its solution, or its raw text or a paragraph of it has a Jaccard
    similarity of at least `threshold`, over word n-grams, to an evaluation problem with or without its solution. The stream is
    read row by row: memory holds the evaluation's texts and one row. Rows that cannot be read are skipped as in a run.

    Args:
        stream: a recipe (its stream), or `PATH` or `PATH:FIELD,FIELD`: data files and the fields to compare, the problem first.
        against: the same; for recipes, their evaluation.
        output: a directory for stream-N.jsonl (one per source), dropped.jsonl (dropped examples, and why), skipped.jsonl (if
            rows cannot be read), report.json and, for a recipe, recipe.yaml with the cleaned stream. They are written at the
            end: a stream can be cleaned in place.
        n: words per n-gram.
        threshold: the lowest similarity that is dropped, at least `LEAST`.
        overwrite: write over files of these names there.

    Returns:
        The content of report.json.

    Raises:
        UserError: something does not exist, a row lacks its fields, the threshold is too low, or `output` has files of these
            names.
        Unreadable: a row of the evaluation cannot be read, or one of a stream that stops there.
        TooManySkipped: more rows of the stream cannot be read than may be skipped; skipped.jsonl names them.
    """
    if threshold < LEAST:
        raise UserError(f"--jaccard {threshold:g} is of texts with next to nothing in common: give {LEAST:g} or more")
    recipe = _recipe(stream)
    stream_config = StreamConfig(sources=[_source(stream)]) if recipe is None else recipe.stream
    sources = stream_config.sources
    others = (output / name for name in ("recipe.yaml", "dropped.jsonl", "report.json"))
    there = [*_streams(output), *(file for file in others if file.exists())]
    if there and not overwrite:
        raise UserError(f"{output} holds {there[0].name} already: add --overwrite, or give another --output")
    evaluation = [source for one in against for source in _evaluation(one)]
    known, index = _index(evaluation, n, threshold)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror}; change --output") from None
    start = time.monotonic()
    hits: set[tuple[int, int]] = set()  # evaluation examples, by source and number
    with TemporaryDirectory(dir=output) as folder:
        aside = Path(folder)
        with (aside / "dropped.jsonl").open("w", encoding="utf-8") as dropped:

            def report_drop(text: Text, jaccard: float, number: int) -> None:
                like = known[number]
                line = {**text.shown(), "jaccard": round(jaccard, 4), "like": like.shown()}
                dropped.write(json.dumps(line, ensure_ascii=False) + "\n")
                hits.add((like.source, like.example))

            files = [f"stream-{number}.jsonl" for number in range(len(sources))]
            skipped = [Skipped(source.origin, stream_config) for source in sources]
            try:
                cleaned = [
                    _clean(source, number, aside / file, index, report_drop, skipped[number])
                    for number, (source, file) in enumerate(zip(sources, files, strict=True))
                ]
            except TooManySkipped as error:
                write(output, error.entries)
                raise
        written = [*files, "dropped.jsonl"]
        states = [{"skipped": one.state_dict()} for one in skipped]
        if named := entries([source.origin for source in sources], {"0": states}):
            write(aside, named)
            written.append(SKIPPED)
        if recipe is not None:
            new = [
                SourceConfig(path=str(output / file), **kept) for file, (kept, _) in zip(files, cleaned, strict=True)
            ]
            cleaned_stream = stream_config.model_copy(update={"sources": new})
            save_recipe(recipe.model_copy(update={"stream": cleaned_stream}), aside / "recipe.yaml")
            written.append("recipe.yaml")
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
        write_json(aside / "report.json", report)
        # Only now: on a full disk the earlier result stays as it was.
        for old in _earlier(output):
            old.unlink(missing_ok=True)
        (output / SKIPPED).unlink(missing_ok=True)
        for file in (*written, "report.json"):
            (aside / file).replace(output / file)
    return report


def _streams(output: Path) -> list[Path]:
    """Files with the names of cleaned sources; others that begin so may be anybody's."""
    return [file for file in output.glob("stream-*.jsonl") if _CLEANED.fullmatch(file.name)]


def _earlier(output: Path) -> list[Path]:
    """Cleaned sources and recipe of an earlier result, as its report counts them; other files of these names are not ours."""
    try:
        report = read_json(output / "report.json")
        names = [f"stream-{number}.jsonl" for number in range(len(report["sources"]))]
        return [output / name for name in [*names, *(["recipe.yaml"] if report["recipe"] else [])]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # there is none, or it is another report
        return []


def decontaminate_table(report: Json) -> Table:
    """The report as a terminal table."""
    view = Table(title=f"near-duplicates: Jaccard {report['jaccard']:g} or more over {report['ngram']}-grams of words")
    for column in ("source", "examples", "dropped", "share"):
        view.add_column(column, justify="left" if column == "source" else "right")
    for role, key in (("stream", "dropped"), ("evaluation", "found")):
        for source in report["sources" if role == "stream" else role]:
            found, examples = source[key], source["examples"]
            what = f"{found:,}" if role == "stream" else f"{found:,} were in it"
            name = escape(f"{role}: {source['origin']}")
            view.add_row(name, f"{examples:,}", what, f"{found / max(1, examples):.3%}")
        view.add_section()
    return view


def parts(example: Example, source: int, number: int) -> Iterator[Text]:
    """Yield the texts of an example that are compared."""
    if example.solution:
        yield Text(source, number, "problem", example.problem)
        yield Text(source, number, "whole", f"{example.problem} {example.solution}")
        return
    yield Text(source, number, "whole", example.problem)
    paragraphs = _PARAGRAPH.split(example.problem)
    if len(paragraphs) > 1:
        for place, paragraph in enumerate(paragraphs, start=1):
            yield Text(source, number, f"paragraph {place}", paragraph)


def _index(sources: Sequence[SourceConfig], n: int, threshold: float) -> tuple[list[Text], OverlapIndex]:
    """The evaluation's texts, and an index of them that gives the same numbers."""
    index, known = OverlapIndex(n, threshold), list[Text]()
    for place, source in enumerate(sources):
        for number, example in enumerate(open_source(source)):
            for text in parts(example, place, number):
                if not text.part.startswith("paragraph"):  # a single paragraph is not a problem
                    index.add(text.text)
                    known.append(text)
    return known, index


def _clean(
    source: SourceConfig,
    place: int,
    file: Path,
    index: OverlapIndex,
    report_drop: Callable[[Text, float, int], None],
    skipped: Skipped,
) -> tuple[Json, Json]:
    """Write the examples of a source that are kept; return the settings of their source, and counts."""
    skips = skipped.config.on_error == "skip"
    source = with_form(source, skips=skips)
    dropped = 0
    with file.open("w", encoding="utf-8") as kept:
        for number, example in enumerate(_watched(source, skips=skips)):
            if isinstance(example, Unreadable):
                skipped.met(example, again=False)
                continue
            skipped.met(None, again=False)
            for text in parts(example, place, number):
                if (found := index.nearest(text.text)) is not None:
                    report_drop(text, *found)
                    dropped += 1
                    break
            else:
                kept.write(_line(source, example))
    same = {"streaming": source.streaming, "domain": source.domain, "weight": source.weight}
    counts = {
        "origin": source.origin,
        "examples": skipped.read - skipped.count,
        "dropped": dropped,
        "skipped": skipped.count,
    }
    form = templates(source) if source.messages is None else {"messages": source.messages}
    return {**same, **form}, counts  # in the file values are renamed, skip and limit applied


def _line(source: SourceConfig, example: Example) -> str:
    try:
        return as_json(example.fields) + "\n"
    except Unreadable as error:  # a column that the templates do not name
        raise UserError(f"{source.origin}: {error}, and kept rows are written as JSON: remove the column") from None


def _watched(source: SourceConfig, *, skips: bool) -> Iterator[Example | Unreadable]:
    """Yield the source's examples once, with an error in place of each that cannot be read, showing progress."""
    streamed = source.model_copy(update={"streaming": True})  # generators hold their rows in memory anyway
    opened = open_source(streamed, skips=skips)
    total, start = count_rows(source), time.monotonic()
    with progress(f"{'decontaminate':>18}") as update:
        for number, example in enumerate(opened.outcomes(), start=1):
            yield example
            left = None if total is None else (time.monotonic() - start) * max(0, total - number) / number
            update(0.0 if total is None else min(1.0, number / total), left, f"{source.origin}  {number:,}")


def _recipe(name: str) -> Recipe | None:
    if not name.endswith((".yaml", ".yml")):
        return None
    recipe = load_recipe(name)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{name} is no language recipe: images have no n-grams")
    return recipe


def _evaluation(name: str) -> list[SourceConfig]:
    recipe = _recipe(name)
    return [_source(name)] if recipe is None else recipe.evaluation.sources


def _source(name: str) -> SourceConfig:
    """Parse PATH or PATH:FIELD,FIELD; the path may be a URL."""
    path, colon, named = name.rpartition(":")
    if not colon or "/" in named:  # the colon of a URL, or of its port
        return SourceConfig(path=check_location(name))
    check_location(path)
    fields = [field.strip() for field in named.split(",")]
    wrong = [field for field in fields if not re.fullmatch(COLUMN, field)]
    if wrong:
        raise UserError(f"{name}: '{wrong[0]}' is no name of a field; write for instance data.jsonl:question,answer")
    if len(fields) == 1:
        return SourceConfig(path=path, text=f"{{{fields[0]}}}")
    response = " ".join(f"{{{field}}}" for field in fields[1:])
    return SourceConfig(path=path, prompt=f"{{{fields[0]}}}", response=response)

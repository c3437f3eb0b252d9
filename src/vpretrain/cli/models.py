"""Commands that take a trained model."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from vpretrain.cli.command import Options, argument, chosen, command, count, overrides, switch
from vpretrain.cli.terminal import hush_libraries, print_figures
from vpretrain.console import output
from vpretrain.errors import UserError
from vpretrain.files import check_writable, write_whole
from vpretrain.modality import modality_of
from vpretrain.recipe import load_recipe
from vpretrain.types import Json


@command(
    "vpretrain evaluate runs/quickstart/v recipes/quickstart.yaml\n"
    "  vpretrain evaluate runs/quickstart/v --tasks gsm8k,mmlu --limit 100 --output scores.json",
    argument("model", "MODEL", "hub name, directory of a model or of a run, or pypi:..."),
    argument("recipe", "RECIPE", "YAML file whose evaluation is used", nargs="?"),
    overrides,
    argument("--tasks", "TASKS", "comma-separated tasks of lm-eval, such as gsm8k,mmlu,minerva_math; omega is here"),
    count("--shots", None, "examples in the prompt (default: the task's)", least=0),
    count("--limit", None, "first problems of each task (default: all)"),
    argument("--include", "DIRECTORY", "task files of your own"),
    count("--batch-size", None, "requests of tasks at once (default: 8)"),
    switch("--run-code", "let tasks such as mbpp run what the model wrote, here"),
    argument("--output", "FILE", "write the results, with all answers, as JSON"),
    switch("--json", "print JSON, problem by problem"),
)
def evaluate(options: Options) -> None:
    """Measure a model on a recipe's evaluation, or on standard benchmarks."""
    if options.recipe is None and options.tasks is None:
        if options.model.endswith((".yaml", ".yml")):
            raise UserError(f"{options.model} is a recipe: name the model before it, e.g. runs/mine {options.model}")
        raise UserError("say what to measure on: a recipe, --tasks gsm8k,mmlu or both")
    of_tasks = chosen(options, "shots", "limit", "include", "batch_size", "run_code")
    given = [name for name, value in of_tasks.items() if value is not None and value is not False]
    if given and options.tasks is None:
        raise UserError(f"--{given[0].replace('_', '-')} is about --tasks: give both")
    if options.tasks is not None:
        os.environ["TQDM_DISABLE"] = ""  # the harness shows its own progress; tqdm reads this at its first import
    if options.output is not None:
        check_writable(Path(options.output), "--output")
    results: Json = {}
    if options.recipe is not None:
        recipe = load_recipe(options.recipe, options.overrides)
        hush_libraries()
        if options.tasks is not None:
            from vpretrain.language.evaluation.harness import find_tasks

            find_tasks(_tasks(options), options.include)  # mistakes show before the long work
        results = modality_of(recipe).measure(recipe, options.model)
        if not options.json:
            print_figures(results)
    if options.tasks is not None:
        results |= _run_tasks(options)
    if options.output is not None:
        write_whole(Path(options.output), json.dumps(results, indent=1, default=str))
        print(f"results: {options.output}", file=sys.stderr)
    if options.json:
        print(json.dumps(results, indent=1, default=str))


def _run_tasks(options: Options) -> Json:
    from vpretrain.language.evaluation.harness import run_tasks, tasks_table

    hush_libraries()
    asked = chosen(options, "shots", "limit", "include", "batch_size", "run_code")
    settings = {name: value for name, value in asked.items() if value is not None}
    results = run_tasks(options.model, _tasks(options), **settings)
    if not options.json:
        output().print(tasks_table(results))
    return results


def _tasks(options: Options) -> list[str]:
    return [name.strip() for name in options.tasks.split(",")]


@command(
    "vpretrain export runs/mine exported\n  vpretrain export runs/mine exported --push-to-hub USER/NAME --private",
    argument("run", "RUN", "directory of the run"),
    argument("directory", "DIR", "where to write; must be new or empty"),
    argument(
        "--push-to-hub",
        "USER/NAME",
        "then upload it to the Hugging Face hub, with the login of `hf auth login` or HF_TOKEN",
    ),
    switch("--private", "upload it where nobody else can read it, or not at all"),
)
def export(options: Options) -> None:
    """Write the learner of a run for from_pretrained (LoRA: merged, and the adapter), with a model card."""
    if options.private and options.push_to_hub is None:
        raise UserError("--private is about --push-to-hub: give both")
    from vpretrain.run.export import check_hub_name, export, push

    hush_libraries()
    if options.push_to_hub is not None:
        check_hub_name(options.push_to_hub)
    export(options.run, options.directory)
    print(f"{options.directory}: from_pretrained loads it; its card is README.md")
    if options.push_to_hub is not None:
        print(f"uploaded: {push(options.directory, options.push_to_hub, private=options.private)}")

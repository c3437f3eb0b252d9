"""Commands that compare several runs."""

from __future__ import annotations

import argparse

from vpretrain.bounds import LARGEST_SEED
from vpretrain.cli.command import Options, argument, chosen, complete_arms, count, recipe_command, resume
from vpretrain.cli.terminal import print_next, print_results
from vpretrain.config import Recipe
from vpretrain.console import output
from vpretrain.modality import MODALITIES
from vpretrain.recipe import load_recipe

_ARMS = "\n\n".join(
    f"Arms of a {name} recipe:\n" + "\n".join(f"  {arm.name}: {arm.summary}" for arm in modality.recipe.arms.values())
    for name, modality in MODALITIES.items()
)


def _to_seeds(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) <= LARGEST_SEED for word in words):
        raise argparse.ArgumentTypeError(
            f"{text}: give whole numbers from 0 to {LARGEST_SEED}, with commas between them, as 0,1,2"
        )
    return [int(word) for word in words]


_SEEDS = argument(
    "--seeds", "0,1,2", "run each with every one of these seeds (default: the recipe's)", type=_to_seeds, default=[]
)


@recipe_command(
    "vpretrain compare recipes/quickstart.yaml --arms one-hot,v,self-distillation",
    argument(
        "--arms",
        "ARMS",
        "comma-separated, such as one-hot,v,random-feedback (default: the baseline and v); an arm may carry settings "
        "of its own, each after a colon: v:value.align=dot:value.every_steps=4",
        complete=complete_arms,
    ),
    _SEEDS,
    count(
        "--rounds",
        1,
        "let the runs take turns of 1/N of their budget, so that a drift of the machine's speed affects all alike",
    ),
    *resume("a comparison"),
    notes=_ARMS,
)
def compare(recipe: Recipe, options: Options) -> None:
    """Run several arms under one budget and compare them with the untouched learner."""
    from vpretrain.compare.compare import compare
    from vpretrain.compare.entry import split_entries
    from vpretrain.compare.plots import draw_curves, draw_pass_at_k, draw_settings
    from vpretrain.compare.results import START, run_name
    from vpretrain.report.collect import collect
    from vpretrain.report.verdict import verdict_lines

    arms = [recipe.baseline, "v"] if options.arms is None else split_entries(options.arms)
    results = compare(recipe, arms, **chosen(options, "seeds", "rounds", "resume", "overwrite"))
    out = output()
    out.print(results)
    for line in results.remarks:
        out.print(line, highlight=False, markup=False, style="yellow" if line.startswith("warning") else None)
    directory = recipe.directory
    for number, line in enumerate(verdict_lines(collect(directory))):
        out.print(line, highlight=False, markup=False, style=None if number else "bold")
    curves = draw_curves(results.figures, recipe)
    print(f"results: {directory / 'results.json'}")
    print(f"curves:  {curves or 'not drawn; pip install matplotlib'}")
    for picture in (draw_settings(results.figures, recipe), draw_pass_at_k(results.figures, recipe)):
        if picture is not None:
            print(f"picture: {picture}")
    trained = [arm for arm in results.arms if arm != START]
    for name in (run_name(arm, seed, results.seeds) for arm in trained for seed in results.seeds):
        print(f"model:   {directory / name / 'model'}")
        if (sheet := directory / name / "views.png").exists():
            print(f"views:   {sheet}")
    print_next(directory)


@recipe_command(
    "vpretrain pareto recipes/quickstart-vision.yaml --point feedback.segmentation=4,feedback.depth=1",
    argument(
        "--point",
        "FIELD=VALUE,...",
        "settings of a point; give it once per point (default in vision: five weights of segmentation against depth)",
        action="append",
        default=[],
    ),
    *resume("the points"),
)
def pareto(recipe: Recipe, options: Options) -> None:
    """Run V-pretraining at several weights of the feedback, and draw what one objective costs the other."""
    from vpretrain.compare.entry import split_entries
    from vpretrain.compare.pareto import draw_pareto, pareto, pareto_table

    points = [split_entries(point) for point in options.point]  # commas in brackets belong to a value
    for point in points:
        load_recipe(options.recipe, [*options.overrides, *point])  # errors show before the long work
    recipe = recipe.model_copy(update={"name": f"{recipe.name}-pareto"})  # avoids a comparison of this name
    results = pareto(recipe, points, **chosen(options, "resume", "overwrite"))
    output().print(pareto_table(results, recipe))
    print_results(recipe.directory / "pareto.json", draw_pareto, results, recipe)


@recipe_command(
    "vpretrain posttrain recipe.yaml --paths v,sft,grpo,sft+grpo,v+sft,v+grpo evaluation.points=3",
    argument(
        "--paths",
        "ARM,ARM+ARM",
        "comma-separated: arms, with + between those of a path, and settings as in compare; sft and grpo are TRL's",
        required=True,
    ),
    _SEEDS,
    *resume("the paths"),
)
def posttrain(recipe: Recipe, options: Options) -> None:
    """Compare paths of several trainings under one budget, such as V-pretraining, then GRPO."""
    from vpretrain.compare.entry import split_entries
    from vpretrain.compare.posttrain import draw_posttrain, posttrain, posttrain_remarks, posttrain_table

    recipe = recipe.model_copy(update={"name": f"{recipe.name}-posttrain"})  # avoids a comparison of this name
    results = posttrain(recipe, split_entries(options.paths), **chosen(options, "seeds", "resume", "overwrite"))
    output().print(posttrain_table(results, recipe))
    for line in posttrain_remarks(results, recipe):
        output().print(line, highlight=False, markup=False)
    print_results(recipe.directory / "posttrain.json", draw_posttrain, results, recipe)


@recipe_command(
    "vpretrain sweep recipes/quickstart.yaml --space recipes/sweeps/language.yaml --trials 20 budget.minutes=2",
    argument("--space", "FILE", "YAML file: settings by name, each with choices, or low and high", required=True),
    count("--trials", 20, "trials in all"),
    argument("--objective", "OBJECTIVE", "figure of the evaluation, e.g. retention_nll (default: the first)"),
    count("--rungs", 3, "equal parts of the budget after which a trial may be ended early"),
    *resume("a sweep"),
)
def sweep(recipe: Recipe, options: Options) -> None:
    """Search for settings under a fixed budget per trial; trials that fall behind end early."""
    from vpretrain.compare.sweep import draw_sweep, load_space, sweep, sweep_table

    space = load_space(options.space)
    recipe = recipe.model_copy(update={"name": f"{recipe.name}-sweep-{recipe.arm}"})
    results = sweep(recipe, space, **chosen(options, "trials", "rungs", "objective", "resume", "overwrite"))
    output().print(sweep_table(results))
    for field, importance in results["importances"].items():
        print(f"{importance:>7.1%}  {field}")
    directory = recipe.directory
    print_results(directory / "sweep.json", draw_sweep, results, directory / "sweep.png")
    model = directory / f"trial-{results['best']}" / "model"
    print(f"best:    {directory / 'best.yaml'}   model: {model}")

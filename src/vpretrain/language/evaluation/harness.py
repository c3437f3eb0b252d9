"""Standard benchmarks through lm-evaluation-harness: `vpretrain evaluate MODEL --tasks gsm8k,mmlu`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import torch
from rich.markup import escape
from rich.table import Table

from vpretrain import hub, pretrained
from vpretrain.console import working
from vpretrain.errors import UserError
from vpretrain.language.model.load import PACKAGES
from vpretrain.plain import counted
from vpretrain.run.versions import versions
from vpretrain.types import Json

try:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
except ImportError:
    raise UserError('standard benchmarks need a package: pip install "vpretrain[evaluate]"') from None

OWN_TASKS = Path(__file__).parent / "tasks"  # tasks that the harness lacks


def run_tasks(
    model: str,
    tasks: Sequence[str],
    *,
    shots: int | None = None,
    limit: int | None = None,
    include: str | None = None,
    batch_size: int = 8,
    run_code: bool = False,
) -> Json:
    """Score a model on tasks of the harness.

    Args:
        model: a run's directory, a directory of save_pretrained, or a name.
        tasks: names of tasks, groups or tags of the harness, or patterns of them; OMEGA comes with this package.
        shots: examples in the prompt; None: the default of each task.
        limit: number of problems per task, from the first; None: all.
        include: a directory with the user's own task files.
        batch_size: requests per batch.
        run_code: let tasks such as MBPP run the model's code on this machine.

    Returns:
        `tasks`: task -> version, shots, problems, and metric by filter with its standard error, of OMEGA also for each of its
        settings (`parts`); everything else that is needed to repeat it; and versions.

    Raises:
        UserError: an unknown task, an unavailable data set, or code that is not allowed to run.
    """
    manager, wanted = find_tasks(tasks, include)
    if run_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    closed = None
    try:
        with hub.access() as closed:
            with working("loading the learner"):
                learner = HFLM(
                    pretrained=pretrained.resolve(model, PACKAGES),
                    trust_remote_code=pretrained.trusted,
                    use_safetensors=True,
                    batch_size=batch_size,
                    device="cuda" if torch.cuda.is_available() else "cpu",
                    dtype="bfloat16" if torch.cuda.is_available() else "float32",  # in whatever dtype a model was saved
                )
            found = lm_eval.simple_evaluate(
                model=learner,
                tasks=wanted,
                num_fewshot=shots,
                limit=limit,
                task_manager=manager,
                confirm_run_unsafe_code=run_code,
                log_samples=True,
            )
    except Exception as error:  # the harness and datasets raise many types if a task cannot be run
        reason = " ".join(str(error).split())[:300]
        if any(word in str(error) for word in ("marked as unsafe", "HF_ALLOW_CODE_EVAL")):
            reason = "it runs what the model wrote on this machine: add --run-code, inside a sandbox"
        elif closed is not None:
            reason = f"{reason}; {hub.remedy(closed)}"
        raise UserError(f"{', '.join(tasks)}: {reason}") from None
    return {
        "model": model,
        "tasks": {name: _scores(found, name) for name in found["results"]},
        "limit": limit,
        "dtype": found["config"].get("model_dtype"),
        "seeds": {key: value for key, value in found["config"].items() if key.endswith("seed")},
        "samples": found["samples"],
        "versions": versions() | {"lm_eval": lm_eval.__version__},
    }


def find_tasks(tasks: Sequence[str], include: str | None) -> tuple[TaskManager, list[str]]:
    """Return the harness's manager of tasks, and the names of those that are meant, see `run_tasks`. Raises UserError."""
    manager = TaskManager(include_path=[str(OWN_TASKS), *([include] if include else [])])
    names = [name for pattern in tasks for name in (manager.match_tasks([pattern]) or [_unknown(pattern, include)])]
    return manager, names


def tasks_table(results: Json) -> Table:
    """The results as a terminal table, one line per metric and filter, of a task and of its parts."""
    view = Table(
        title=escape(results["model"]) + (f", first {counted(results['limit'], 'problem')}" if results["limit"] else "")
    )
    for column in ("task", "version", "shots", "problems", "filter", "metric", "value"):
        view.add_column(column, justify="right" if column in ("shots", "problems", "value") else "left")
    for name, task in results["tasks"].items():
        first = [name, str(task["version"]), str(task["shots"]), f"{task['problems']:,}"]
        for score in task["scores"]:
            view.add_row(*first, *_cells(score))
            first = [""] * len(first)
        for part in task["parts"]:
            view.add_row(f"  {part['part']}", "", "", f"{part['problems']:,}", *_cells(part))
    return view


def _cells(score: Json) -> tuple[str, str, str]:
    error = "" if score["standard_error"] is None else f" ± {score['standard_error']:.4f}"
    return score["filter"], score["metric"], f"{score['value']:.4f}{error}"


def _unknown(pattern: str, include: str | None) -> str:
    where = f" and in {include}" if include else "; --include DIRECTORY adds task files"
    raise UserError(f"no task '{pattern}' among those of lm-eval{where} (`lm_eval ls tasks` lists them)")


def _scores(found: Json, name: str) -> Json:
    """The scores of a task or group under lm-eval's names: `exact_match,strict-match` is a metric and its filter."""
    scores, measured = [], found["results"][name]
    for key, value in measured.items():
        metric, comma, filtered = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = measured.get(f"{metric}_stderr,{filtered}")
            scores.append(
                {
                    "metric": metric,
                    "filter": filtered,
                    "value": float(value),
                    "standard_error": float(error) if isinstance(error, int | float) else None,
                    "higher_is_better": found["higher_is_better"].get(name, {}).get(metric),
                }
            )
    return {
        "version": found["versions"].get(name),
        "shots": found["n-shot"].get(name),
        "problems": found["n-samples"].get(name, {}).get("effective", measured.get("sample_len", 0)),
        "scores": scores,
        "parts": _parts(found, name),
    }


def _parts(found: Json, name: str) -> list[Json]:
    """The scores of a task's parts: problems with the same value of the field that its metadata names as `part`."""
    field = (found["configs"].get(name, {}).get("metadata") or {}).get("part")
    if field is None:
        return []
    values: dict[tuple[str, str, str], list[float]] = {}
    for sample in found["samples"][name]:
        for metric in sample["metrics"]:
            values.setdefault((str(sample["doc"][field]), metric, sample["filter"]), []).append(float(sample[metric]))
    return [
        {
            "part": part,
            "metric": metric,
            "filter": filtered,
            "value": mean(own),
            "standard_error": stdev(own) / math.sqrt(len(own)) if len(own) > 1 else None,
            "problems": len(own),
        }
        for (part, metric, filtered), own in sorted(values.items())
    ]

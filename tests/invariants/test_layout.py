"""The layout: folders and single modules lie on floors, and imports go down."""

from __future__ import annotations

import ast
from pathlib import Path

import vpretrain

SOURCE = Path(vpretrain.__file__).parent
# From the ground up; what stands on one floor does not import from each other.
MODALITY = [
    ["arms", "installed"],
    ["config"],
    ["model"],
    ["data"],
    ["task"],
    ["evaluation"],
    ["metrics", "warm_up", "direct", "verified"],
]
MODALITY += [["assemble"], ["inspection", "workload", "adapters"]]
FLOORS = [
    ["errors", "timing", "types", "hub", "metal"],
    ["files", "order", "plot", "console", "arms", "bounds", "plain"],
    ["config", "distributed", "pretrained", "devices"],
    ["modality"],
    ["recipe", "schema", "tables"],
    ["outcome"],
    ["method"],
    ["run"],
    ["compare", "inspection", "scaling"],
    *[[f"{modality}.{room}" for modality in ("language", "vision") for room in floor] for floor in MODALITY],
    ["report"],
    ["cli"],
    ["", "__main__"],  # what `import vpretrain` and `python -m vpretrain` give
]
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}


def room_of(module):
    """`vpretrain.run.session` is in `run`, `vpretrain.language.data.stream` in `language.data`; `vpretrain.config` is one."""
    parts = module.split(".")[1:]
    return ".".join(parts[: 2 if parts and parts[0] in ("language", "vision") else 1])


def nodes(tree):
    """All of a module but what only type checkers read: names of types are no dependency of what runs."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from nodes(node)


def imports():
    """(module, imported module) of the package, late imports too."""
    files = {path: ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in SOURCE.rglob("*.py")}
    files = {path: name.removesuffix(".__init__") for path, name in files.items()}
    modules = set(files.values())
    for path, name in files.items():
        for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vpretrain":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield name, inner if inner in modules else node.module


def test_imports_go_down():
    upward = {
        f"{module} imports {other}"
        for module, other in imports()
        if room_of(module) != room_of(other) and FLOOR[room_of(module)] <= FLOOR[room_of(other)]
    }
    assert not upward

"""The site of the documentation, built by `make docs`."""

import re
import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import generated  # noqa: E402

project = "vpretrain"
author = "The vpretrain contributors"
release = metadata.version("vpretrain")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"vpretrain {release}"
html_show_copyright = False
myst_heading_anchors = 3
nb_execution_mode = "off"  # `make notebook` executes it: ten minutes
default_role = "code"  # docstrings have single backticks
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
napoleon_use_rtype = False  # what comes before a colon is no type, but a part of the sentence
_MARKUP = re.compile(r"([*|]|(?<=\w)_(?=\W|$))")


def _plain(app: object, what: str, name: str, item: object, options: object, lines: list[str]) -> None:
    """Stars, bars and trailing underscores mean nothing in our docstrings, and much to reStructuredText."""
    for number, line in enumerate(lines):
        parts = line.split("`")
        lines[number] = "`".join(p if i % 2 else _MARKUP.sub(r"\\\1", p) for i, p in enumerate(parts))


def setup(app) -> None:
    """Make the generated parts of the pages; read docstrings as they are meant."""
    generated.write(HERE)
    app.connect("autodoc-process-docstring", _plain, priority=100)

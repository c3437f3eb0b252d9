"""The site of the documentation, built by `make docs`."""

import re
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import generated  # noqa: E402
from docutils import nodes  # noqa: E402
from docutils.utils.math.latex2mathml import tex2mathml  # noqa: E402

project = "vpretrain"
author = "The vpretrain contributors"
release = metadata.version("vpretrain")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"vpretrain {release}"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["copy.js"]
html_search_scorer = str(HERE / "scorer.js")
html_math_renderer = "mathml"  # by docutils: MathJax would come from a server, and the site works offline
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # `make notebook` executes it: ten minutes
default_role = "code"  # docstrings have single backticks
autodoc_member_order = "bysource"
autodoc_mock_imports = [] if find_spec("trl") else ["trl"]  # an extra, the base of VPretrainSFTTrainer
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
napoleon_use_rtype = False  # what comes before a colon is no type, but a part of the sentence
_MARKUP = re.compile(r"([*|]|(?<=\w)_(?=\W|$))")


def _plain(app: object, what: str, name: str, item: object, options: object, lines: list[str]) -> None:
    """Stars, bars and trailing underscores mean nothing in our docstrings, and much to reStructuredText."""
    for number, line in enumerate(lines):
        parts = line.split("`")
        lines[number] = "`".join(p if i % 2 else _MARKUP.sub(r"\\\1", p) for i, p in enumerate(parts))


def _formula(translator: object, node: nodes.Element) -> None:
    """Write a formula as MathML, which browsers draw themselves."""
    translator.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def setup(app) -> None:
    """Make the generated parts of the pages; read docstrings as they are meant; draw formulas."""
    generated.write(HERE)
    app.add_html_math_renderer("mathml", (_formula, None), (_formula, None))
    app.connect("autodoc-process-docstring", _plain, priority=100)

"""The packages that every vision recipe needs and the package alone does not bring."""

from __future__ import annotations

from importlib.util import find_spec

from vpretrain.errors import UserError

# Modules by the packages that have them. Those that only some data need are tried where they are read.
_NEEDED = {"kornia": "kornia", "torchmetrics": "torchmetrics", "scikit-learn": "sklearn", "pillow": "PIL"}


def check_installed() -> None:
    """Raise UserError if one of them is missing, before images are read or a learner is loaded."""
    if missing := [package for package, module in _NEEDED.items() if find_spec(module) is None]:
        raise UserError(
            f'vision needs packages that are missing ({", ".join(missing)}): pip install "vpretrain[vision]"'
        )

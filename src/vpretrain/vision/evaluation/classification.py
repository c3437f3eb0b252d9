"""Linear classification on frozen summaries. Shapes: N and M images, D width."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor

from vpretrain.errors import UserError
from vpretrain.vision.config import ClassesConfig
from vpretrain.vision.data.source import images_in


def read_classes_of_folders(config: ClassesConfig) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """List the training and the test images with their class numbers. Raises UserError if the folders do not match."""
    names = {root: _subfolders(root) for root in (config.train, config.test)}
    for root, other in ((config.train, config.test), (config.test, config.train)):
        if odd := sorted(set(names[root]) - set(names[other])):
            raise UserError(
                f"evaluation.classes: {other} lacks the class {odd[0]} of {root}: give both the same folders"
            )
    numbers = {name: number for number, name in enumerate(names[config.train])}
    train, test = (
        [(file, numbers[name]) for name in numbers for file in _images(Path(root).expanduser() / name, config.limit)]
        for root in (config.train, config.test)
    )
    return train, test


def classification_accuracy(
    train_ND: Float[Tensor, "N D"], train_N: Int[Tensor, " N"], test_MD: Float[Tensor, "M D"], test_M: Int[Tensor, " M"]
) -> float:
    """Return the test accuracy of a logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    return float(model.fit(train_ND.numpy(), train_N.numpy()).score(test_MD.numpy(), test_M.numpy()))


def _subfolders(root: str) -> list[str]:
    folder = Path(root).expanduser()
    names = sorted(child.name for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []
    if len(names) < 2:
        raise UserError(f"evaluation.classes: {root} must hold a folder of images for each of two classes or more")
    return names


def _images(folder: Path, limit: int | None) -> list[Path]:
    files = images_in(folder)[:limit]
    if not files:
        raise UserError(f"evaluation.classes: no images in {folder}")
    return files

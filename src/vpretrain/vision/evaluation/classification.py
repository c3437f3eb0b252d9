"""Linear classification on frozen summaries. Shapes: N and M images, B images of a batch, D width."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from vpretrain.errors import UserError
from vpretrain.order import Shuffled
from vpretrain.plain import nearest_file
from vpretrain.vision.config import ClassesConfig
from vpretrain.vision.data.image_files import images_in
from vpretrain.vision.data.own import distinct_images

ClassifiedFile = tuple[Path, int]  # an image, and the number of its class
_LEAST = 5  # images of a class, of which one is for the test
_BATCH, _LR, _MOMENTUM = 1024, 0.1, 0.9


def read_classes_of_folders(config: ClassesConfig) -> tuple[list[ClassifiedFile], list[ClassifiedFile]]:
    """List the training and the test images with their class numbers; without a folder for the test, divide the one.

    Raises:
        UserError: the folders do not match, or a class has too few images.
    """
    if config.test is None:
        return _divided(config.train, config.limit)
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


def _divided(root: str, limit: int | None) -> tuple[list[ClassifiedFile], list[ClassifiedFile]]:
    """Divide the images of each class by the hashes of their names; of copies in a folder the first counts."""
    train: list[ClassifiedFile] = []
    test: list[ClassifiedFile] = []
    for number, name in enumerate(_subfolders(root)):
        folder = Path(root).expanduser() / name
        files = distinct_images(folder)
        if len(files) < _LEAST:
            raise UserError(
                f"evaluation.classes: {folder} has fewer than {_LEAST} different images, of which one would be for the test: "
                "add some, or name a folder of others as test"
            )
        tested = len(files) // _LEAST
        test += [(file, number) for file in files[:tested][:limit]]
        train += [(file, number) for file in files[tested:][:limit]]
    return train, test


def classification_accuracy(
    train_ND: Float[Tensor, "N D"],
    train_N: Int[Tensor, " N"],
    test_MD: Float[Tensor, "M D"],
    test_M: Int[Tensor, " M"],
    steps: int,
    device: torch.device,
) -> float:
    """Return the test accuracy of a BatchNorm and a linear layer, fitted by SGD for so many steps of up to 1,024 images.

    Every backbone gets the same start and batches, and a learning rate that falls to 0 along a cosine.
    """
    batch = min(_BATCH, len(train_ND))
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        head = nn.Sequential(nn.BatchNorm1d(train_ND.shape[1]), nn.Linear(train_ND.shape[1], int(train_N.max()) + 1))
        head.to(device)
        optimizer = torch.optim.SGD(head.parameters(), lr=_LR, momentum=_MOMENTUM)
        schedule = CosineAnnealingLR(optimizer, steps)
        order = Shuffled(len(train_ND), "classes")
        for step in range(steps):
            rows = [order[step * batch + i] for i in range(batch)]
            loss = nn.functional.cross_entropy(head(train_ND[rows].to(device)), train_N[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    head.eval()
    with torch.no_grad():
        parts = [head(part_BD.to(device)).argmax(1).cpu() for part_BD in test_MD.split(_BATCH)]
    return float((torch.cat(parts) == test_M).double().mean())


def _subfolders(root: str) -> list[str]:
    folder = Path(root).expanduser()
    if not folder.is_dir():
        beside = [child.name for child in folder.parent.iterdir() if child.is_dir()] if folder.parent.is_dir() else []
        meant = nearest_file(folder, beside)
        hint = f"did you mean {meant}? " if meant else ""
        raise UserError(f"evaluation.classes: no folder at {root}: {hint}give one with a subfolder of images per class")
    names = sorted(child.name for child in folder.iterdir() if child.is_dir())
    if len(names) < 2:
        raise UserError(f"evaluation.classes: {root} must hold a folder of images for each of two classes or more")
    return names


def _images(folder: Path, limit: int | None) -> list[Path]:
    files = images_in(folder)[:limit]
    if not files:
        raise UserError(f"evaluation.classes: no images in {folder}")
    return files

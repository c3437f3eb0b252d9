"""Fingerprints of a vision run's data."""

from __future__ import annotations

import glob
from pathlib import Path

from vpretrain.run.fingerprint import generated, of_files, of_hub
from vpretrain.types import Json
from vpretrain.vision.config import Recipe, SourceConfig
from vpretrain.vision.data.image_files import images_in
from vpretrain.vision.data.own import own_images
from vpretrain.vision.data.readers import ade20k_images
from vpretrain.vision.data.source import is_archive


def fingerprints(recipe: Recipe) -> list[Json]:
    """Fingerprint every source, with its role. Raises OSError for missing files."""
    found = [
        {"role": role.replace(".", ", "), **_of(source)} for role, sources in recipe.roles.items() for source in sources
    ]
    if (classes := recipe.evaluation.classes) is not None:
        limit = {} if classes.limit is None else {"limit": classes.limit}
        folders = {"train": classes.train, "test": classes.test} if classes.test else {"train and test": classes.train}
        for part, folder in folders.items():
            role = f"classes, {part}"
            found.append({"role": role, "origin": folder, "rows": None, **_of_folder(folder), **limit})
    for truth in recipe.evaluation.retrieval.paths.values():
        file = Path(truth).expanduser()
        images = images_in(file.parent / "jpg")
        files = of_files([file, *images], file.parent)
        found.append({"role": "retrieval", "origin": truth, "rows": len(images), **files})
    return found


def _of(source: SourceConfig) -> Json:
    if source.hub is not None:
        return of_hub(source.hub, source.config, source.split)
    used = source.model_dump(mode="json", include={"skip", "limit", "classes"}, exclude_defaults=True)
    rows: int | None = None
    if source.scenes is not None:
        rows = source.scenes * source.cameras
        asked = {"seed": source.seed, "scenes": source.scenes, "cameras": source.cameras, "size": source.size}
        found = generated("pybullet", **asked)
    elif source.ade20k is not None:
        root = Path(source.ade20k).expanduser()
        images = sorted((root / "images" / source.split).glob("*.jpg"))
        labels = sorted((root / "annotations" / source.split).glob("*.png"))
        rows = len(ade20k_images(source))
        found = {"split": source.split, **of_files([*labels, *images], root)}
    elif source.labelled is not None:
        root = Path(source.labelled).expanduser()
        rows = len(own_images(source))
        found = of_files([file for part in ("images", "masks", "depths") for file in images_in(root / part)], root)
    elif source.nyuv2 is not None:
        found = of_files([Path(source.nyuv2).expanduser()])
        if source.splits is not None:
            found |= {"split": source.split, "splits": of_files([Path(source.splits).expanduser()])["sha256"]}
    elif source.path is not None and is_archive(source.path):
        found = of_files([Path(file) for file in sorted(glob.glob(str(Path(source.path).expanduser())))])
    else:
        found = _of_folder(str(source.path))
        rows = found["files"]
    return {"origin": source.origin, "rows": rows} | found | used


def _of_folder(folder: str) -> Json:
    root = Path(folder).expanduser()
    return of_files(images_in(root), root)

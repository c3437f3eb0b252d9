"""Image files in folders, by their names."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
LISTED = ", ".join(sorted(_SUFFIXES))


def images_in(folder: Path) -> list[Path]:
    """List the image files in a folder and below it, sorted."""
    return sorted(file for file in folder.rglob("*") if is_image(file.name))


def is_image(name: str) -> bool:
    """Whether a file's name is an image's; macOS writes other files beside them, as ._NAME."""
    path = PurePosixPath(name)
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith("._")

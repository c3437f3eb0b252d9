"""Image files in folders, by their names."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from vpretrain.errors import UserError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
LISTED = ", ".join(sorted(_SUFFIXES))


def images_in(folder: Path) -> list[Path]:
    """List the image files in a folder and below it, sorted. Raises UserError if some folder there cannot be listed."""
    try:
        return sorted(file for file in folder.rglob("*") if is_image(file.name))
    except OSError as error:
        raise UserError(f"cannot list {error.filename}, in {folder}: {error.strerror}; name another folder") from None


def folder_per_class(folder: Path) -> str:
    """Say that a folder looks as if each subfolder were a class, whose labels are of whole images; empty if it does not."""
    if (folder / "images").is_dir() or not folder.is_dir():
        return ""
    children = sorted(child for child in folder.iterdir() if child.is_dir())
    names = [child.name for child in children if any(is_image(file.name) for file in child.rglob("*"))]
    if len(names) < 2:
        return ""
    listed = ", ".join([*names[:2], *(["..."] if names[2:] else [])])
    return (
        f" (it looks like a folder per class: {listed}; vision's feedback needs a class for each pixel, as masks; "
        "evaluation.classes takes such folders)"
    )


def is_image(name: str) -> bool:
    """Whether a file's name is an image's; macOS writes other files beside them, as ._NAME."""
    path = PurePosixPath(name)
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith("._")

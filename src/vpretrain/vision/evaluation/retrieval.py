"""Instance retrieval: of the other images of a scene, and by the protocols of revisited Oxford and Paris.

Shapes: Q queries, G gallery images, N images, D width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from vpretrain.errors import UserError

PROTOCOLS = {"easy": ("easy",), "medium": ("easy", "hard"), "hard": ("hard",)}  # grades that count as matches
_GRADES = ("easy", "hard", "junk")


@dataclass(frozen=True)
class Query:
    """A part of an image, and its matches in the gallery.

    Attributes:
        file: the image.
        box: left, upper, right and lower edge of the part, in pixels.
        grades: indices of gallery images that show the same thing: `easy`, `hard`, and `junk`, which never counts.
    """

    file: Path
    box: tuple[float, float, float, float]
    grades: dict[str, list[int]]

    def part_of(self, image_3HW: Shaped[Tensor, "3 H W"]) -> Shaped[Tensor, "3 h w"]:
        """Return the pixels that the box touches. Raises UserError if it lies outside the image."""
        left, upper = (max(0, math.floor(edge)) for edge in self.box[:2])
        right, lower = (math.ceil(edge) for edge in self.box[2:])
        part_3HW = image_3HW[:, upper:lower, left:right]
        if part_3HW.numel() == 0:
            raise UserError(f"the box {list(self.box)} of a query lies outside its image {self.file}")
        return part_3HW


class Revisited(NamedTuple):
    """Queries, and the images that are searched."""

    queries: list[Query]
    gallery: list[Path]


def read_revisited(path: str) -> Revisited:
    """Read queries and gallery of revisited Oxford or Paris (Radenovic et al., CVPR 2018).

    The file is `gnd_roxford5k.json` or the like: the published ground truth as JSON, with the images in `jpg/` beside it.

    Raises:
        UserError: the file is a pickle (as published) or has another form, or an image is missing.
    """
    file = Path(path).expanduser()
    if file.suffix == ".pkl":
        raise UserError(
            f"{path} is a pickle, which may run code on loading: turn it into JSON where you trust it, with python -c "
            "\"import json, pickle; json.dump(pickle.load(open('gnd.pkl', 'rb')), open('gnd.json', 'w'), default=list)\""
        )
    if file.exists() and not file.is_file():  # a device may have no end
        raise UserError(f"cannot read {path}: it is no file; evaluation.retrieval names ground truths")
    try:
        truth = json.loads(file.read_text(encoding="utf-8"))
        gallery = [_image(file, name) for name in truth["imlist"]]
        queries = [
            Query(_image(file, name), _box(entry["bbx"]), {grade: list(map(int, entry[grade])) for grade in _GRADES})
            for name, entry in zip(truth["qimlist"], truth["gnd"], strict=True)
        ]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; evaluation.retrieval names ground truths") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no ground truth of revisited Oxford or Paris ({type(error).__name__}: {error}): it has imlist, "
            "qimlist and gnd, a list of easy, hard, junk and bbx"
        ) from None
    wrong = next((i for query in queries for grade in query.grades.values() for i in grade if i >= len(gallery)), None)
    if wrong is not None or not queries:
        raise UserError(f"{path}: " + ("it has no queries" if wrong is None else f"there is no image {wrong}"))
    missing = next((p for p in [*gallery, *(q.file for q in queries)] if not p.is_file()), None)
    if missing is not None:
        raise UserError(f"the image {missing} is missing: images lie in jpg/ beside {file.name}")
    return Revisited(queries, gallery)


def revisited_map(
    query_QD: Float[Tensor, "Q D"], gallery_GD: Float[Tensor, "G D"], queries: Sequence[Query]
) -> dict[str, float | None]:
    """Mean average precision by protocol, over the queries that have matches in it; None if none has.

    Images with grades that a protocol ignores are left out of the ranking: always junk, easy under `hard`, hard under `easy`.
    """
    similarity_QG = F.normalize(query_QD, dim=-1) @ F.normalize(gallery_GD, dim=-1).T
    precision: dict[str, float | None] = {}
    for protocol, wanted in PROTOCOLS.items():
        scores = []
        for similarity_G, query in zip(similarity_QG, queries, strict=True):
            relevant_G = torch.zeros(len(gallery_GD), dtype=torch.bool)
            ranked_G = torch.ones_like(relevant_G)
            for grade, numbers in query.grades.items():
                (relevant_G if grade in wanted else ranked_G)[numbers] = grade in wanted
            if relevant_G.any():
                order = similarity_G[ranked_G].argsort(descending=True, stable=True)
                scores.append(interpolated_precision(relevant_G[ranked_G][order]))
        precision[protocol] = sum(scores) / len(scores) if scores else None
    return precision


def interpolated_precision(relevant_N: Bool[Tensor, " N"]) -> float:
    """Area under the precision-recall curve of a ranking by trapezoids, the form that these benchmarks report."""
    ranks = relevant_N.nonzero()[:, 0].double()  # from 0
    found = torch.arange(len(ranks), dtype=torch.float64)
    before = torch.where(ranks == 0, 1.0, found / ranks.clamp_min(1))
    return float((before + (found + 1) / (ranks + 1)).mean() / 2)


def scene_map(features_ND: Float[Tensor, "N D"], scene_N: Int[Tensor, " N"]) -> float | None:
    """Mean average precision of finding the other images of a scene by cosine; None if no scene has two."""
    from sklearn.metrics import average_precision_score

    features_ND = F.normalize(features_ND, dim=-1)
    similarity_NN = features_ND @ features_ND.T
    relevant_NN = scene_N[:, None] == scene_N[None]
    others_NN = ~torch.eye(len(scene_N), dtype=torch.bool)
    scores = [
        float(average_precision_score(relevant[others].numpy(), similarity[others].numpy()))
        for similarity, relevant, others in zip(similarity_NN, relevant_NN, others_NN, strict=True)
        if bool(relevant[others].any())
    ]
    return sum(scores) / len(scores) if scores else None


def _image(truth: Path, name: object) -> Path:
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError(f"'{name}' is no name of an image")
    return truth.parent / "jpg" / f"{name}.jpg"


def _box(edges: Sequence[float]) -> tuple[float, float, float, float]:
    left, upper, right, lower = map(float, edges)
    if not (left < right and upper < lower):
        raise ValueError(f"the box {list(edges)} is empty")
    return left, upper, right, lower

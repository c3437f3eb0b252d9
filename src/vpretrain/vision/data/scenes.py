"""Any number of labelled scenes, rendered by PyBullet: images with exact classes and depths, several cameras per scene.

A scene depends on (seed, number) alone. Rendered sets are kept in the user's cache as safetensors, where there is one.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vpretrain.console import note, steady
from vpretrain.errors import UserError
from vpretrain.pretrained import CACHE_REMEDY, cache
from vpretrain.types import Json

CLASSES = ("floor", "wall", "block", "duck", "teddy", "mug", "ball", "cube")
_OBJECTS = {
    "duck": "duck_vhacd.urdf",
    "teddy": "teddy_vhacd.urdf",
    "mug": "objects/mug.urdf",
    "ball": "soccerball.urdf",
    "cube": "cube.urdf",
}
_TEXTURES = (
    "checker_grid.jpg", "tex256.png", "uvmap.png", "cube.png", "table/table.png", "tray/tray.jpg", "domino/domino.jpg",
    "roboschool/models_outdoor/stadium/stadium_grass.jpg", "heightmaps/gimp_overlay_out.png", "jenga/jenga.png",
)  # fmt: skip
_BLOCKS = 1000  # random objects that come with PyBullet
_NEAR, _FAR = 0.1, 6.0
_FORMAT = 1  # increase when the images of a seed change


def rendered(*, seed: int, scenes: int, cameras: int, size: int) -> dict[str, Tensor]:
    """Return the images of scenes 0 to `scenes` - 1 of a seed; from the cache if they were rendered before.

    Returns:
        image_N3HW (uint8), label_NHW (uint8, index into CLASSES), depth_NHW (fp16, metres along the optical axis),
        scene_N and category_N (class of the scene's main object), N = scenes x cameras, scene by scene.
    """
    settings = {"format": _FORMAT, "seed": seed, "scenes": scenes, "cameras": cameras, "size": size}
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    root = cache()
    file = root / f"scenes-{name}.safetensors"
    if os.path.exists(file):  # False also where the folder must not be looked into
        return load_file(file)
    images = _render(seed, scenes, cameras, size)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as aside:
            save_file(images, Path(aside) / "scenes")
            (Path(aside) / "scenes").rename(file)
    except (OSError, SafetensorError) as error:
        note(f"scenes: cannot write to the cache {root}, so they are rendered in each run: {error}; {CACHE_REMEDY}")
    return images


def _render(seed: int, scenes: int, cameras: int, size: int) -> dict[str, Tensor]:
    images: list[Json] = []
    with _client() as (bullet, data), steady(f"rendering {scenes} scenes", scenes, "scenes") as done:
        studio = _Studio(bullet, data)
        for number in range(scenes):
            draw = np.random.default_rng([seed, number])
            bodies, category = studio.build(draw)
            for _ in range(cameras):
                images.append({**studio.shoot(draw, bodies, size), "scene": number, "category": category})
            for body in bodies:
                bullet.removeBody(body)
            done(number + 1)
    return {
        "image_N3HW": torch.from_numpy(np.stack([p["image"] for p in images])).permute(0, 3, 1, 2).contiguous(),
        "label_NHW": torch.from_numpy(np.stack([p["label"] for p in images])),
        "depth_NHW": torch.from_numpy(np.stack([p["depth"] for p in images])),
        **{f"{key}_N": torch.tensor([p[key] for p in images]) for key in ("scene", "category")},
    }


@contextlib.contextmanager
def _client() -> Iterator[tuple[ModuleType, Path]]:
    with _silent():  # the import prints a build time
        try:
            import pybullet
            import pybullet_data
        except ImportError:
            raise UserError('pybullet scenes need a package: pip install "vpretrain[vision]"') from None
        client = pybullet.connect(pybullet.DIRECT)
    try:
        yield pybullet, Path(pybullet_data.getDataPath())
    finally:
        pybullet.disconnect(client)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Silence the process: PyBullet writes through C's stdio, not through sys.stdout."""
    sys.stdout.flush()
    kept: dict[int, int] = {}
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # it is closed
            kept[descriptor] = os.dup(descriptor)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in kept:
        os.dup2(nowhere, descriptor)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        for descriptor, saved in kept.items():
            os.dup2(saved, descriptor)
            os.close(saved)
        os.close(nowhere)


class _Studio:
    """Builds scenes and renders images of them."""

    def __init__(self, bullet: ModuleType, data: Path) -> None:
        self.bullet, self.data = bullet, data
        self.textures = [bullet.loadTexture(str(data / name)) for name in _TEXTURES]
        self.extents: dict[str, float] = {}

    def build(self, draw: np.random.Generator) -> tuple[dict[int, int], int]:
        """Build a floor, two walls, a large main object and smaller ones around it; return bodies with classes, main class."""
        bodies = {self._slab((3, 3, 0.05), (0, 0, -0.05), draw): CLASSES.index("floor")}
        for position, size in (((0, 1.6, 1), (3, 0.05, 1.5)), ((1.6, 0, 1), (0.05, 3, 1.5))):
            bodies[self._slab(size, position, draw)] = CLASSES.index("wall")
        main = int(draw.integers(2, len(CLASSES)))
        bodies[self._object(main, (0.0, 0.0), draw.uniform(0.45, 0.65), draw)] = main
        for angle in draw.uniform(0, 2 * math.pi) + np.arange(n := int(draw.integers(2, 6))) * 2 * math.pi / n:
            kind, away = int(draw.integers(2, len(CLASSES))), draw.uniform(0.5, 0.9)
            place = (away * math.cos(angle), away * math.sin(angle))
            bodies[self._object(kind, place, draw.uniform(0.18, 0.35), draw)] = kind
        return bodies, main

    def shoot(self, draw: np.random.Generator, bodies: dict[int, int], size: int) -> Json:
        """Render an image from a random place in front."""
        angle, height, away = draw.uniform(math.pi, 1.5 * math.pi), draw.uniform(0.5, 1.3), draw.uniform(1.2, 1.8)
        view = self.bullet.computeViewMatrix(
            (away * math.cos(angle), away * math.sin(angle), height),
            (draw.uniform(-0.15, 0.15), draw.uniform(-0.15, 0.15), draw.uniform(0.1, 0.3)),
            (0, 0, 1),
        )
        lens = self.bullet.computeProjectionMatrixFOV(draw.uniform(45, 60), 1.0, _NEAR, _FAR)
        light = draw.uniform((-1.5, -1.5, 1.0), (1.0, 1.0, 2.5)).tolist()
        _, _, colour, buffer, ids = self.bullet.getCameraImage(
            size, size, view, lens, lightDirection=light, lightAmbientCoeff=float(draw.uniform(0.4, 0.7)),
            shadow=1, renderer=self.bullet.ER_TINY_RENDERER,
        )  # fmt: skip
        buffer = np.asarray(buffer, dtype=np.float64).reshape(size, size)
        depth = _FAR * _NEAR / (_FAR - (_FAR - _NEAR) * buffer)
        classes = np.zeros(max(bodies) + 2, dtype=np.uint8)
        classes[list(bodies)] = list(bodies.values())
        classes[-1] = CLASSES.index("wall")  # id -1: beyond the walls
        image = np.asarray(colour, dtype=np.uint8).reshape(size, size, 4)[:, :, :3]
        label = classes[np.asarray(ids).reshape(size, size)]
        return {"image": image, "label": label, "depth": depth.astype(np.float16)}

    def _slab(self, size: tuple[float, ...], position: tuple[float, ...], draw: np.random.Generator) -> int:
        shape = self.bullet.createVisualShape(self.bullet.GEOM_BOX, halfExtents=size)
        body = self.bullet.createMultiBody(baseVisualShapeIndex=shape, basePosition=position)
        self._paint(body, draw, share_textured=0.7)
        return body

    def _object(self, kind: int, place: tuple[float, float], extent: float, draw: np.random.Generator) -> int:
        block = int(draw.integers(_BLOCKS))
        name = _OBJECTS.get(CLASSES[kind], f"random_urdfs/{block:03d}/{block:03d}.urdf")
        file = str(self.data / name)
        if file not in self.extents:
            body = self.bullet.loadURDF(file)
            low, high = np.array(self.bullet.getAABB(body))
            self.extents[file] = float((high - low).max())
            self.bullet.removeBody(body)
        upright = 0.5 * math.pi if CLASSES[kind] in ("duck", "teddy") else 0.0
        turn = self.bullet.getQuaternionFromEuler((upright, 0.0, float(draw.uniform(0, 2 * math.pi))))
        body = self.bullet.loadURDF(
            file, basePosition=(*place, 0.0), baseOrientation=turn, globalScaling=extent / self.extents[file]
        )
        (_, _, low), _ = self.bullet.getAABB(body)
        self.bullet.resetBasePositionAndOrientation(body, (*place, -low), turn)
        if CLASSES[kind] not in ("duck", "ball"):  # these have colours of their own
            self._paint(body, draw, share_textured=0.3)
        return body

    def _paint(self, body: int, draw: np.random.Generator, *, share_textured: float) -> None:
        colour = (*draw.uniform(0.25, 1.0, 3).tolist(), 1.0)
        texture = self.textures[int(draw.integers(len(self.textures)))] if draw.uniform() < share_textured else -1
        self.bullet.changeVisualShape(body, -1, rgbaColor=colour, textureUniqueId=texture)

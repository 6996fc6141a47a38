"""A procedural image dataset in which everything is known exactly: classes, masks, boxes, instances and motion.

A scene is a textured object (its class is one of five outlines in one of two textures) in front of a textured background. A parameter is the
probability that the background is the one of the object's class; otherwise it is uniform over all classes. So one can measure how much a
network relies on backgrounds. Scene ``index`` depends on ``(seed, index)`` alone, not on the batch in which it is rendered; scenes are
rendered many at a time.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from lib.data.layouts.common import table_of

# Whether points (u, v) lie inside an outline.
_INSIDE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": lambda u, v: u.square() + v.square() < 0.8,
    "square": lambda u, v: torch.maximum(u.abs(), v.abs()) < 0.78,
    "triangle": lambda u, v: (v < 0.6) & (v + 1.0 > 1.75 * u.abs()),
    "star": lambda u, v: u.square() + v.square() < (0.62 + 0.34 * torch.cos(5 * torch.atan2(u, v))).square(),
    "cross": lambda u, v: (torch.minimum(u.abs(), v.abs()) < 0.32) & (torch.maximum(u.abs(), v.abs()) < 0.95),
}
OUTLINES = tuple(_INSIDE)
TEXTURES = ("stripes", "checks")
CLASSES = tuple(f"{texture} {outline}" for outline in OUTLINES for texture in TEXTURES)  # label = 2 * outline + texture
SPLIT_SEEDS = {"train": 1, "validation": 2, "videos": 3, "queries": 4, "database": 4, "several_train": 5, "several_validation": 6}
FRAMES = 8  # of a video
SEVERAL, VISIBLE = 3, 32  # objects in a scene of the several_ splits; visible pixels from which an object counts
SIZE = 64  # pixels a side, by default
CHUNK = 64  # scenes rendered at a time, so that intermediate images stay in the cache


@dataclass(frozen=True)
class Scenes:
    """n scenes with k objects each; the first object is the main one, and later ones lie behind it."""

    images: Tensor  # uint8[n, 3, S, S]
    labels: Tensor  # Long[n], the main object's class
    masks: Tensor  # Bool[n, k, S, S], the visible part of each object
    boxes: Tensor  # Float[n, k, 4] around the visible part: x0, y0, x1, y1 in pixels, x1 and y1 exclusive; zeros when nothing is visible
    classes: Tensor  # Long[n, k]
    backgrounds: Tensor  # Long[n], the class to which the background belongs


def render(
    indices: Tensor,
    *,
    seed: int = 0,
    size: int = SIZE,
    correlation: float = 0.5,
    objects: int = 1,
    backgrounds_of: Tensor | None = None,
    instances: bool = False,
    time: float = 0.0,
) -> Scenes:
    """Render the scenes of ``indices``.

    Args:
        indices: Long[n], each at least 0; an index always gives the same scene.
        seed: each seed gives another dataset.
        size: pixels a side, at least 16.
        correlation: in [0, 1], probability that the background is the class's own instead of uniform over all ten.
        objects: k, at least 1.
        backgrounds_of: Long[n], scenes whose backgrounds replace those of ``indices``.
        instances: scenes 2i and 2i + 1 show the same objects (outline, texture and colours) in different poses and in front of different
            backgrounds, as retrieval needs.
        time: seconds into the scene's motion; objects drift and turn, backgrounds stand still.

    Raises:
        ValueError: an argument out of range.
    """
    indices = torch.as_tensor(indices, dtype=torch.int64)
    if indices.ndim != 1 or not len(indices) or indices.min() < 0:
        raise ValueError(f"indices: got shape {tuple(indices.shape)}, accepts Long[n] with n >= 1, none negative")
    if size < 16:
        raise ValueError(f"size: got {size}, accepts 16 or more")
    if not 0 <= correlation <= 1:
        raise ValueError(f"correlation: got {correlation}, accepts a number in [0, 1]")
    if objects < 1:
        raise ValueError(f"objects: got {objects}, accepts 1 or more")
    if backgrounds_of is None:
        backgrounds_of = indices
    elif len(backgrounds_of) != len(indices) or min(backgrounds_of) < 0:
        raise ValueError(f"backgrounds_of: got {backgrounds_of}, accepts {len(indices)} indices, one a scene, none negative")
    chunks = zip(indices.split(CHUNK), torch.as_tensor(backgrounds_of).split(CHUNK))
    parts = [_render(a.numpy(), b.numpy(), seed, size, correlation, objects, instances, time) for a, b in chunks]
    return Scenes(*(torch.cat([getattr(part, name) for part in parts]) for name in Scenes.__dataclass_fields__))


def videos(indices: Tensor, frames: int, *, seconds: float = 1.0, **options: Any) -> Scenes:
    """Short videos: as ``render``, every field with a time dimension after n (``images`` uint8[n, frames, 3, S, S])."""
    if frames < 1:
        raise ValueError(f"frames: got {frames}, accepts 1 or more")
    parts = [render(indices, time=seconds * t / max(frames - 1, 1), **options) for t in range(frames)]
    return Scenes(*(torch.stack([getattr(part, name) for part in parts], 1) for name in Scenes.__dataclass_fields__))


@cache
def table(split: str, count: int) -> pa.Table:
    """A split of the card ``scenes`` as a table of PNG images with label, boxes and mask (see ``lib.data.layouts``).

    ``videos`` has ``count`` frames: videos of ``FRAMES`` frames and two objects each, with ``sequence``. ``queries`` and ``database`` are the
    even and the odd scenes of pairs that show one instance: query i should find image i of the database, and no other image. The ``several_``
    splits have up to three objects per image, with ``boxes`` and ``classes``. Where there are several objects, masks number them from 1.
    """
    seed, indices = SPLIT_SEEDS[split], torch.arange(count)
    if split == "videos":
        videos_count = count // FRAMES
        scenes = videos(indices[:videos_count], FRAMES, seed=seed, objects=2)
        masks = (scenes.masks * torch.tensor([1, 2]).view(2, 1, 1)).sum(2).byte().flatten(0, 1)  # [n frames, S, S]
        sequences = [f"video {video}" for video in range(videos_count) for _ in range(FRAMES)]
        return _table(scenes.images.flatten(0, 1), masks, numbers=list(range(FRAMES)) * videos_count, sequence=sequences)
    if split in ("queries", "database"):
        scenes = render(2 * indices + (split == "database"), seed=seed, instances=True)
        truth: dict[str, Any] = dict(easy=[[i] for i in range(count)], hard=[[]] * count, junk=[[]] * count) if split == "queries" else {}
        return _table(scenes.images, label=scenes.labels.tolist(), **truth)
    if split.startswith("several_"):
        scenes = render(indices, seed=seed, objects=SEVERAL)
        counts = scenes.masks.sum((2, 3)) >= VISIBLE  # Bool[n, k]
        masks = (scenes.masks * (counts * counts.cumsum(1))[..., None, None]).sum(1).byte()  # [n, S, S]
        boxes, classes = ([part[rows].tolist() for part, rows in zip(parts, counts)] for parts in (scenes.boxes, scenes.classes))
        return _table(scenes.images, masks, boxes=boxes, classes=classes)
    scenes = render(indices, seed=seed)
    return _table(scenes.images, scenes.masks[:, 0].byte(), label=scenes.labels.tolist(), boxes=scenes.boxes.tolist())


def _table(images: Tensor, masks: Tensor | None = None, *, numbers: list[int] | None = None, **columns: Any) -> pa.Table:
    """Images uint8[n, 3, S, S] and masks uint8[n, S, S] as PNG, with file names from ``numbers`` (by default 0, 1, …), and further columns."""
    filenames = [f"{number:06d}.png" for number in numbers or range(len(images))]
    if masks is not None:
        columns["mask"] = list(map(_png, masks, filenames))
    return table_of(image=list(map(_png, images.permute(0, 2, 3, 1), filenames)), filename=filenames, **columns)


def _png(pixels: Tensor, filename: str) -> dict:
    stream = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(stream, "png", compress_level=0)
    return {"bytes": stream.getvalue(), "path": filename}


# ---- counter-based random numbers -----------------------------------------------------------------------------------------


def _uniform(seed: int, index: np.ndarray, slot: int) -> np.ndarray:
    """Float64[n] in [0, 1) from (seed, index, slot): the SplitMix64 finaliser over a counter."""
    with np.errstate(over="ignore"):
        z = index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed) * np.uint64(0xD1B54A32D192ED03)
        z = z + np.uint64(slot) * np.uint64(0x8CB92BA72F3D8DD7) + np.uint64(0x2545F4914F6CDD1D)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 0x9E3779B97F4A7C15), (29, 0xBF58476D1CE4E5B9)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        return (z >> np.uint64(11)).astype(np.float64) / 2**53


class _Draw:
    """Draws parameters Float32[n, 1, 1] of n scenes; each draw has a slot of its own."""

    def __init__(self, seed: int, index: np.ndarray, first_slot: int):
        self.seed, self.index, self.slot = seed, index, first_slot

    def __call__(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        self.slot += 1
        values = low + (high - low) * _uniform(self.seed, self.index, self.slot)
        return torch.from_numpy(values).float().view(-1, 1, 1)

    def choice(self, count: int) -> Tensor:
        return (self() * count).long().clamp_(max=count - 1)

    def colour(self, low: float, high: float) -> Tensor:
        return torch.stack([self(low, high) for _ in range(3)], 1).view(-1, 3, 1, 1)


# ---- drawing ------------------------------------------------------------------------------------------------------------


def _render(
    index: np.ndarray, background_index: np.ndarray, seed: int, size: int, correlation: float, objects: int, instances: bool, time: float
) -> Scenes:
    axis = (torch.arange(size).float() + 0.5) / size * 2 - 1  # [-1, 1] over the frame
    y, x = axis.view(1, -1, 1), axis.view(1, 1, -1)
    labels = [_classes(seed, index, k, instances) for k in range(objects)]
    draw = _Draw(seed, background_index, 900)
    own = draw().flatten() < correlation
    backgrounds = torch.where(own, _classes(seed, background_index, 0, instances), draw.choice(len(CLASSES)).flatten())
    image = _background(_Draw(seed, background_index, 1000), backgrounds, x, y)
    masks: list[Tensor] = []
    for k in reversed(range(objects)):  # the last object is painted first, and the main one on top of all
        mask, paint = _object(seed, index, k, objects, labels[k], instances, time, x, y)
        image = torch.where(mask[:, None], paint, image)
        masks = [mask] + [m & ~mask for m in masks]
    visible = torch.stack(masks, 1)
    grain = torch.from_numpy(_uniform(seed, index[:, None] * size * size + np.arange(size * size), 2000)).float()
    image = image + 0.06 * (grain.view(-1, 1, size, size) - 0.5)
    return Scenes(
        images=image.clamp_(0, 1).mul_(255).round_().byte(),
        labels=labels[0],
        masks=visible,
        boxes=_boxes(visible),
        classes=torch.stack(labels, 1),
        backgrounds=backgrounds,
    )


def _classes(seed: int, index: np.ndarray, k: int, instances: bool) -> Tensor:
    return _Draw(seed, index // 2 if instances else index, 10_000 * (k + 1)).choice(len(CLASSES)).flatten()


def _background(draw: _Draw, classes: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Float[n, 3, S, S]. Each class has its own background: a hue, and the direction and pitch of two gratings."""
    kind = classes.float().view(-1, 1, 1)
    hue = (kind / len(CLASSES) + draw(-0.04, 0.04)) * 2 * math.pi
    angle = kind * (math.pi / len(CLASSES)) + draw(-0.15, 0.15)
    pitch = 5 + 1.5 * (kind % 5) + draw(-0.5, 0.5)
    along, across = torch.cos(angle) * x + torch.sin(angle) * y, torch.cos(angle) * y - torch.sin(angle) * x
    warp = draw(0.1, 0.5) * torch.sin(draw(2, 4) * across + draw(0, 6.3))
    pattern = 0.6 * torch.sin(pitch * along + 4 * warp + draw(0, 6.3)) + 0.4 * torch.sin(0.6 * pitch * across + draw(0, 6.3))
    light = 0.45 + 0.1 * draw(-1, 1) + 0.16 * pattern
    tint = torch.stack([torch.cos(hue - turn) for turn in (0.0, 2.1, 4.2)], 1)  # [n, 3, 1, 1]
    return light[:, None] + 0.13 * tint * (1 + 0.5 * pattern[:, None])


def _object(
    seed: int, index: np.ndarray, k: int, objects: int, label: Tensor, instances: bool, time: float, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """The silhouette Bool[n, S, S] and the paint Float[n, 3, S, S] of object k of each scene."""
    look = _Draw(seed, index // 2 if instances else index, 20_000 * (k + 1))  # texture and colours, the same in all views of an instance
    pose = _Draw(seed, index, 30_000 * (k + 1) + 500)
    reach = 1.0 if objects == 1 else 0.75
    radius = pose(0.32, 0.62) * reach
    room = (1 - 0.8 * radius).clamp(min=0)
    left, top = pose(-1, 1) * room, pose(-1, 1) * room
    heading, speed, turning = pose(0, 2 * math.pi), pose(0.2, 0.5), pose(-1.0, 1.0)
    left, top = left + time * speed * torch.cos(heading), top + time * speed * torch.sin(heading)
    angle = pose(-math.pi, math.pi) * 0.25 + time * turning
    u = (torch.cos(angle) * (x - left) + torch.sin(angle) * (y - top)) / radius
    v = (torch.cos(angle) * (y - top) - torch.sin(angle) * (x - left)) / radius

    outline = (label // 2).view(-1, 1, 1)
    mask = torch.zeros(len(index), x.shape[2], y.shape[1], dtype=torch.bool)
    for i, inside in enumerate(_INSIDE.values()):
        rows = (outline == i).flatten().nonzero().squeeze(1)
        if len(rows):
            mask[rows] = inside(u[rows], v[rows])

    frequency, turn = look(7, 10), look(0, math.pi)
    p, q = torch.cos(turn) * u + torch.sin(turn) * v, torch.cos(turn) * v - torch.sin(turn) * u
    wave = torch.sin(frequency * p)
    wave = torch.where((label % 2 == 1).view(-1, 1, 1), wave * torch.sin(frequency * q), wave)
    bright, dark = look.colour(0.55, 1.0), look.colour(0.0, 0.35)
    return mask, torch.where((wave > 0)[:, None], bright, dark)


def _boxes(masks: Tensor) -> Tensor:
    """Bool[n, k, S, S] -> Float[n, k, 4]."""
    size = masks.shape[-1]
    edges = []
    for occupied in (masks.any(-2), masks.any(-1)):  # columns, rows that hold a pixel
        first, last = occupied.float().argmax(-1), size - occupied.flip(-1).float().argmax(-1)
        edges.append((first * occupied.any(-1), last * occupied.any(-1)))
    (x0, x1), (y0, y1) = edges
    return torch.stack([x0, y0, x1, y1], -1).float()

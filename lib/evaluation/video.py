"""Video object segmentation: the labels of the first frame are propagated through a video by the similarity of patches.

Source: Jabri et al., "Space-Time Correspondence as a Contrastive Random Walk", 2020, as used by DINO section 4.2.2; measures: Perazzi et
al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016, section 4.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lib.data.reading import Damage, encoded, full_images, name_of, read_objects
from lib.evaluation.base import DEFAULT, Context, Inputs
from lib.evaluation.frozen import FullResolutionEvaluation
from lib.evaluation.knn import stable_topk
from lib.keys import Keys
from lib.models import Model

BOUND = 0.008  # tolerance of the boundaries, as a part of the image's diagonal
BLOCK_ELEMENTS = 2**22  # similarities held at a time


def propagate_labels(
    features: list[Tensor],
    first_labels: Tensor,
    grid: tuple[int, int],
    *,
    topk: int = 5,
    radius: int = 12,
    n_last: int = 7,
    temperature: float = 0.1,
) -> list[Tensor]:
    """Propagate soft labels from the first frame through a video.

    Each patch takes the mean label of its ``topk`` nearest patches (cosine), weighted by exp(cosine / temperature). Candidates are the
    patches within ``radius`` rows and columns in the first frame and in the ``n_last`` preceding frames.

    Args:
        features: the patches Float[N, D] of each frame, not necessarily normalised.
        first_labels: Float[C, H, W], soft labels of the first frame.
        grid: (H, W) with N = H W.
        topk: nearest patches; all candidates if there are fewer.
        radius: patches, of a square window.
        n_last: preceding frames, besides the first.
        temperature: of the weights.

    Returns:
        Float[C, H, W] for each frame; for the first frame, ``first_labels``.
    """
    height, width = grid
    if not features or any(f.shape != features[0].shape or f.ndim != 2 or len(f) != height * width for f in features):
        raise ValueError(f"features: got shapes {[tuple(f.shape) for f in features]}, accepts [N, D] for each frame, N = {height * width}")
    if first_labels.ndim != 3 or first_labels.shape[1:] != (height, width):
        raise ValueError(f"first_labels: got shape {tuple(first_labels.shape)}, accepts [C, {height}, {width}]")
    for name, value, least in (("topk", topk, 1), ("radius", radius, 0), ("n_last", n_last, 0)):
        if value < least:
            raise ValueError(f"{name}: got {value}, accepts {least} or more")
    if temperature <= 0:
        raise ValueError(f"temperature: got {temperature}, accepts a positive number")
    frames = [F.normalize(f, dim=1).view(height, width, -1) for f in features]
    labels = [first_labels]
    for t in range(1, len(frames)):
        context = [0, *range(max(1, t - n_last), t)]
        near, near_labels = torch.stack([frames[i] for i in context]), torch.stack([labels[i] for i in context])
        labels.append(_propagate(frames[t], near, near_labels, topk, radius, temperature))
    return labels


def _propagate(frame: Tensor, near: Tensor, near_labels: Tensor, topk: int, radius: int, temperature: float) -> Tensor:
    """Labels [C, H, W] of a frame [H, W, D] from context frames [T, H, W, D] and their labels [T, C, H, W]."""
    height, width, _ = frame.shape
    column = torch.arange(width, device=frame.device)
    of_rows = len(near) * width * width  # number of similarities of one row with another
    block = next((rows for rows in range(height, 1, -1) if rows * min(height, rows + 2 * radius) * of_rows <= BLOCK_ELEMENTS), 1)
    rows = []
    for top in range(0, height, block):
        bottom = min(top + block, height)
        low, high = max(0, top - radius), min(height, bottom + radius)
        row, other = torch.arange(top, bottom, device=frame.device), torch.arange(low, high, device=frame.device)
        beside = (column[:, None] - column).abs() <= radius  # [W, W]
        above = (row[:, None] - other).abs() <= radius  # [R, S]
        reach = above[:, None, None, :, None] & beside[None, :, None, None, :]  # [R, W, 1, S, W]
        similarity = torch.einsum("rwd,tsvd->rwtsv", frame[top:bottom], near[:, low:high])
        similarity = similarity.masked_fill(~reach, -torch.inf).flatten(2).flatten(0, 1)  # [R W, T S W]
        values, places = stable_topk(similarity, min(topk, similarity.shape[1]))
        weights = (values / temperature).softmax(1)
        nearest = near_labels[:, :, low:high].transpose(0, 1).flatten(1)[:, places]  # [C, R W, topk]
        rows.append((nearest * weights).sum(-1).unflatten(1, (bottom - top, width)))
    return torch.cat(rows, 1)


def hard_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """The object of each pixel, Long[height, width], from soft labels Float[C, H, W].

    As in DINO's evaluation, labels are enlarged bilinearly, each is stretched to [0, 1], and the highest one wins. They are enlarged
    directly to ``size``; the released code enlarges by the patch size and then takes the nearest pixels. A constant label is not stretched.
    """
    labels = F.interpolate(labels[None], size, mode="bilinear", align_corners=False)[0]
    low, high = labels.amin((1, 2), keepdim=True), labels.amax((1, 2), keepdim=True)
    varies = high - low > 16 * torch.finfo(labels.dtype).eps * high  # more than by rounding
    return torch.where(varies, (labels - low) / (high - low), labels).argmax(0)


@torch.inference_mode()
def segment_videos(
    network: Model, table: pa.Table, *, shortest: int, patch_size: int, progress: bool = False, **options
) -> Iterator[tuple[str, list[int], Tensor, Tensor]]:
    """Propagate the masks of the first frame through every video of a table, whose rows are frames in order with ``mask`` and ``sequence``.
    ``shortest`` is the shorter side that the network sees, in pixels; ``options`` are of ``propagate_labels``.

    Yields:
        (sequence, the objects' numbers in the mask files, Long[frames, H, W] predicted, Long[frames, H, W] true): pixels are 0 for
        background and i + 1 for the i-th object.

    Raises:
        ValueError: a frame or mask that is missing or damaged, because the following frames depend on it; the message names it.
    """
    network.eval()
    device = next(network.parameters()).device
    names = table["sequence"].to_pylist()
    for sequence in tqdm(list(dict.fromkeys(names)), "videos", disable=not progress, mininterval=2):
        rows = [row for row, name in enumerate(names) if name == sequence]
        if len(rows) < 3:
            raise ValueError(f"table: {sequence} has {len(rows)} frames, accepts 3 or more a sequence")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Damage)
            try:
                images = list(full_images(table, rows=rows, shortest=shortest, multiple=patch_size, device=device))
            except Damage as damage:
                raise ValueError(str(damage).removesuffix("; left out")) from damage
        of_frames = [read_objects(encoded(table, row, "mask")) for row in rows]
        for column, sizes in (("image", [image.size for image in images]), ("mask", [tuple(mask.shape) for mask in of_frames])):
            for row, size in zip(rows, sizes):
                if size != sizes[0]:
                    culprit = name_of(encoded(table, row, column))
                    raise ValueError(f"{culprit}: got (height, width) {size}, accepts {sizes[0]}, that of the first frame")
        masks = torch.stack(of_frames)
        objects = [number for number in masks[0].unique().tolist() if number > 0]
        truth = sum(((masks == number) * (i + 1) for i, number in enumerate(objects)), torch.zeros_like(masks))
        features = [network.features(image.view) for image in images]
        grid = features[0].grid
        first = F.one_hot(truth[0], len(objects) + 1).permute(2, 0, 1).float()
        first = F.interpolate(first[None], grid, mode="nearest-exact")[0].to(device)
        soft = propagate_labels([of_frame.patches[0].float() for of_frame in features], first, grid, **options)
        predicted = torch.stack([truth[0], *(hard_labels(labels, (truth.shape[1], truth.shape[2])).cpu() for labels in soft[1:])])
        yield sequence, objects, predicted, truth


def video_accuracy(network: Model, table: pa.Table, **options) -> dict[str, float]:
    """J and F of label propagation in percent, mean over the objects, for each object over its frames without the first and the last.
    Arguments as of ``segment_videos``.

    Returns:
        ``j_mean``, ``f_mean`` and their mean ``jf_mean``; the same with the prefix ``still_`` for the masks of the first frame without any
        motion; ``objects``, their number.
    """
    scores: dict[str, list[float]] = {}
    for _, objects, predicted, truth in segment_videos(network, table, **options):
        for name, masks in (("", predicted), ("still_", truth[:1].expand_as(truth))):
            for number in range(1, len(objects) + 1):
                pairs = [(masks[t] == number, truth[t] == number) for t in range(1, len(truth) - 1)]
                for measure, function in (("j_mean", region_similarity), ("f_mean", boundary_accuracy)):
                    scores.setdefault(name + measure, []).append(100 * sum(function(*pair) for pair in pairs) / len(pairs))
    if not scores:
        raise ValueError(f"table: got {len(table)} frames without an object in a first frame, accepts at least one object")
    figures = {name: sum(values) / len(values) for name, values in scores.items()}
    for name in ("", "still_"):
        figures[f"{name}jf_mean"] = (figures[f"{name}j_mean"] + figures[f"{name}f_mean"]) / 2
    return figures | {"objects": float(len(scores["j_mean"]))}


def region_similarity(mask: Tensor, truth: Tensor) -> float:
    """J: the intersection over union of two masks Bool[H, W]; 1 if both are empty."""
    _check_masks(mask, truth)
    union = (mask | truth).sum().item()
    return (mask & truth).sum().item() / union if union else 1.0


def boundary_accuracy(mask: Tensor, truth: Tensor) -> float:
    """F: the harmonic mean of precision and recall of the boundary pixels of two masks Bool[H, W], in [0, 1]; 1 if neither mask
    has a boundary. A boundary pixel is right within a distance of 0.008 of the image's diagonal, rounded up to pixels.
    """
    _check_masks(mask, truth)
    radius = math.ceil(BOUND * math.hypot(*mask.shape))
    predicted, true = _boundary(mask), _boundary(truth)
    if not predicted.any() or not true.any():
        return float(not predicted.any() and not true.any())  # if only one mask has a boundary, precision or recall is 0
    precision = (predicted & _dilate(true, radius)).sum().item() / predicted.sum().item()
    recall = (true & _dilate(predicted, radius)).sum().item() / true.sum().item()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _check_masks(mask: Tensor, truth: Tensor) -> None:
    for name, given in (("mask", mask), ("truth", truth)):
        if given.dtype != torch.bool or given.ndim != 2 or not given.numel():
            raise ValueError(f"{name}: got {given.dtype} of shape {tuple(given.shape)}, accepts Bool[H, W]")
    if mask.shape != truth.shape:
        raise ValueError(f"truth: got shape {tuple(truth.shape)}, accepts {tuple(mask.shape)}, that of mask")


def _boundary(mask: Tensor) -> Tensor:
    """Pixels that differ from the pixel to the right, below, or below to the right; the edge of the frame is no boundary."""
    padded = F.pad(mask[None].float(), (0, 1, 0, 1), mode="replicate")[0].bool()
    return (mask ^ padded[:-1, 1:]) | (mask ^ padded[1:, :-1]) | (mask ^ padded[1:, 1:])


def _dilate(mask: Tensor, radius: int) -> Tensor:
    """Bool[H, W], True within a Euclidean distance of ``radius`` pixels from the mask."""
    height, width = mask.shape
    counts = F.pad(mask.int(), (radius + 1, radius)).cumsum(1, dtype=torch.int32)
    grown = torch.zeros_like(mask)
    for down in range(-min(radius, height - 1), min(radius, height - 1) + 1):
        reach = math.isqrt(radius**2 - down**2)
        row = counts[:, radius + 1 + reach :][:, :width] > counts[:, radius - reach :][:, :width]
        grown[max(0, down) : height + min(0, down)] |= row[max(0, -down) : height - max(0, down)]
    return grown


@dataclass(frozen=True, kw_only=True)
class VideoSettings(Keys):
    """Settings of the measurement ``video``."""

    data: str  # a card in data_cards/
    split: str  # of the videos
    shortest: int  # pixels of the shorter side that the network sees
    patch_size: int  # pixels a side of the network's patches
    radius: int  # patches, of the square window of the candidates
    n_last: int  # preceding frames, besides the first
    topk: int  # nearest patches
    temperature: float = 0.1  # of their weights


class VideoSegmentation(FullResolutionEvaluation, name="video"):
    """``video_accuracy``."""

    Settings = VideoSettings
    once = ("still_j_mean", "still_f_mean", "still_jf_mean", "objects", "left_out")

    def load(self, **options: Any) -> Inputs:
        """``test`` is a table of frames with ``mask`` and ``sequence``."""
        return replace(super().load(**options), left_out=0)  # a damaged frame is an error

    def measure(self, network: Model, inputs: Inputs, context: Context = DEFAULT) -> dict[str, float]:
        return video_accuracy(network, inputs.test, progress=context.progress, **self.options)

"""Image retrieval with the measures of the revisited Oxford and Paris datasets.

Source: Radenovic et al., "Revisiting Oxford and Paris: Large-Scale Image Retrieval Benchmarking", CVPR 2018, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.data.fingerprint import fingerprint
from lib.data.reading import fitted, full_images
from lib.data.retrieval import KINDS, RetrievalSet, load_retrieval
from lib.evaluation.base import DEFAULT, Context, Inputs
from lib.evaluation.frozen import FullResolutionEvaluation
from lib.keys import Count, Keys, Positive
from lib.models import Model

# protocol -> (positives, images that are left out of the ranking)
PROTOCOLS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
PRECISION_AT = (1, 5, 10)
SCALES = (1.0, 0.7071, 0.5)


def revisited_map(ranks: Tensor, ground_truth: list[dict], *, protocol: str = "easy") -> float:
    """Mean average precision in percent.

    Args:
        ranks: Long[n_db, n_q], for each query the images of the database from the nearest on.
        ground_truth: for each query ``{"easy", "hard", "junk"}``, each a list of images of the database. Queries without positives under
            the protocol are left out.
        protocol: ``easy`` (easy images are positives, hard and junk are ignored), ``medium`` (easy and hard are positives, junk is ignored)
            or ``hard`` (hard ones are positives, easy and junk are ignored).

    Average precision is the area under the precision-recall curve by the trapezoid rule.

    Raises:
        ValueError: shapes that do not fit, an unknown protocol, images that are not in the database, or no query with positives.
    """
    precisions = [_average_precision(places, count) for places, count in _positives(ranks, ground_truth, protocol)]
    return 100 * sum(precisions) / len(precisions)


def revisited_precision(ranks: Tensor, ground_truth: list[dict], *, protocol: str = "easy") -> dict[int, float]:
    """Mean precision in percent among the first 1, 5 and 10 images (mP@k); if the last positive of a query comes earlier, among the images
    up to it. Arguments and errors as of ``revisited_map``.
    """
    means = dict.fromkeys(PRECISION_AT, 0.0)
    queries = _positives(ranks, ground_truth, protocol)
    for places, _ in queries:
        for k in PRECISION_AT:
            among = min(k, int(places.max()) + 1) if len(places) else k
            means[k] += 100 * (places < among).sum().item() / among / len(queries)
    return means


def _positives(ranks: Tensor, ground_truth: list[dict], protocol: str) -> list[tuple[Tensor, int]]:
    """For each query with positives: their places in the ranking without the ignored images, and their number."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: got {protocol!r}, accepts {', '.join(PROTOCOLS)}")
    if ranks.ndim != 2 or ranks.is_floating_point() or ranks.dtype == torch.bool:
        raise ValueError(f"ranks: got {ranks.dtype} of shape {tuple(ranks.shape)}, accepts Long[n_db, n_q]")
    if not torch.equal(ranks.sort(0).values.long(), torch.arange(len(ranks), device=ranks.device)[:, None].expand_as(ranks)):
        raise ValueError(f"ranks: got a column that is no order of the images 0 to {len(ranks) - 1}, accepts each image once in each")
    if len(ground_truth) != ranks.shape[1]:
        raise ValueError(f"ground_truth: got {len(ground_truth)} queries, accepts {ranks.shape[1]}, those of ranks")
    positive, ignored = PROTOCOLS[protocol]
    queries = []
    for number, (ranking, truth) in enumerate(zip(ranks.T, ground_truth)):
        sets = {kind: _images(truth, kind, len(ranks), number).to(ranks.device) for kind in KINDS}
        positives = torch.cat([sets[kind] for kind in positive]).unique()
        if len(positives):
            keep = ~torch.isin(ranking, torch.cat([sets[kind] for kind in ignored]))
            queries.append((torch.isin(ranking[keep], positives).nonzero().flatten(), len(positives)))
    if not queries:
        raise ValueError(f"ground_truth: got no query with positives, the protocol {protocol} accepts at least one")
    return queries


def _images(truth: dict, kind: str, count: int, query: int) -> Tensor:
    if kind not in truth:
        raise ValueError(f"ground_truth: query {query} has {', '.join(truth)}, accepts {', '.join(KINDS)}")
    images = torch.as_tensor(truth[kind]).flatten()
    if len(images) and (images.is_floating_point() or images.dtype == torch.bool):
        raise ValueError(f"ground_truth: query {query} has {images.dtype} as {kind}, accepts the numbers of images")
    outside = images[(images < 0) | (images >= count)]
    if len(outside):
        raise ValueError(f"ground_truth: query {query} names image {int(outside[0])} as {kind}, accepts 0 to {count - 1}")
    return images.long()


def _average_precision(places: Tensor, count: int) -> float:
    """Average precision of a query with ``count`` positives, which are at ``places`` (from 0) of the ranking."""
    places = places.double()
    before = torch.arange(len(places), dtype=torch.float64, device=places.device)
    precision_before = torch.where(places > 0, before / places.clamp(min=1), 1.0)
    return ((precision_before + (before + 1) / (places + 1)).sum() / (2 * count)).item()


def rank(queries: Tensor, database: Tensor) -> Tensor:
    """Images of a database [n_db, D] by falling cosine with each query [n_q, D], Long[n_db, n_q]; those of equal cosine by number."""
    similarity = F.normalize(database, dim=1) @ F.normalize(queries, dim=1).T
    return similarity.argsort(dim=0, descending=True, stable=True)


@torch.inference_mode()
def image_descriptors(
    network: Model,
    table: pa.Table,
    *,
    longest: int,
    patch_size: int,
    scales: Sequence[float] = SCALES,
    batch_size: int = 16,
    progress: bool = False,
) -> tuple[Tensor, list[int]]:
    """Multi-scale descriptors of whole images: the normalised sum of the normalised pooled vectors of an image at several sizes.

    Args:
        table: of images with a ``box``, the network sees only the part in it.
        longest: pixels of the longer side at scale 1.
        patch_size: both sides are rounded down to multiples of it.
        scales: factors of the size. An image is decoded at the largest one, and the smaller views are resized from that (bilinear).
        batch_size: images at a time; only consecutive images of the same size form a batch.

    Returns:
        Float32[n, D] on the network's device, and the n rows that could be read; a warning names each of the others.

    Raises:
        ValueError: no scale, or no image that could be read.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales: got {scales}, accepts at least one factor above 0")
    network.eval()
    sides = [max(1, round(longest * scale)) for scale in scales]
    options: dict[str, Any] = dict(longest=max(sides), multiple=patch_size, device=next(network.parameters()).device)
    rows, descriptors = [], []
    for size, images in groupby(full_images(table, title="descriptors" if progress else None, **options), key=lambda image: image.size):
        while batch := list(islice(images, batch_size)):
            largest = torch.cat([image.view for image in batch])  # [B, 3, h, w]
            total = largest.new_zeros(())
            for side in sides:
                view = largest
                if side != max(sides):
                    view = F.interpolate(largest, size=fitted(size, longest=side, multiple=patch_size), mode="bilinear")
                total = total + F.normalize(network.features(view).cls.float(), dim=1)
            rows += [image.row for image in batch]
            descriptors.append(F.normalize(total, dim=1))
    if not descriptors:
        raise ValueError(f"table: got {len(table)} images, none of which could be read, accepts at least one")
    return torch.cat(descriptors), rows


class RetrievalAnswer(NamedTuple):
    """Rankings of a network for the images that could be read."""

    ranks: Tensor  # Long[n_db, n_q], for each query the images of the database from the nearest on
    ground_truth: list[dict[str, list[int]]]  # as of ``revisited_map``, with the same numbers
    database: Tensor  # Long[n_db], their rows in the table
    queries: Tensor  # Long[n_q], likewise


def retrieve(network: Model, retrieval: RetrievalSet, **options) -> RetrievalAnswer:
    """Rank a database for every query; ``options`` as of ``image_descriptors``. Images that cannot be read are left out of the ranking and
    of the ground truth.
    """
    database, rows = image_descriptors(network, retrieval.database, **options)
    queries, query_rows = image_descriptors(network, retrieval.queries, **options)
    number = {row: place for place, row in enumerate(rows)}
    answers = [retrieval.ground_truth[row] for row in query_rows]
    truth = [{kind: [number[row] for row in answer[kind] if row in number] for kind in KINDS} for answer in answers]
    return RetrievalAnswer(rank(queries, database).cpu(), truth, torch.tensor(rows), torch.tensor(query_rows))


def revisited_figures(ranks: Tensor, ground_truth: list[dict]) -> dict[str, float]:
    """Mean average precision and precision among the first images, in percent, under every protocol that has positives: ``easy_map``,
    ``easy_p1``, ``easy_p5``, ``easy_p10``, and the same of ``medium`` and ``hard``. Arguments and errors as of ``revisited_map``.
    """
    figures: dict[str, float] = {}
    for protocol, (positive, _) in PROTOCOLS.items():
        if any(len(truth.get(kind, ())) for truth in ground_truth for kind in positive):
            figures[f"{protocol}_map"] = revisited_map(ranks, ground_truth, protocol=protocol)
            precisions = revisited_precision(ranks, ground_truth, protocol=protocol)
            figures |= {f"{protocol}_p{k}": precision for k, precision in precisions.items()}
    if not figures:
        raise ValueError(f"ground_truth: got {len(ground_truth)} queries without positives, accepts at least one with them")
    return figures


def retrieval_accuracy(network: Model, retrieval: RetrievalSet, **options) -> dict[str, float]:
    """``revisited_figures`` of a network, ``images`` and ``queries``, the numbers of ranked images and of queries, and ``left_out``, the
    number of images and queries that could not be read. Arguments as of ``retrieve`` and ``image_descriptors``.
    """
    answer = retrieve(network, retrieval, **options)
    figures = revisited_figures(answer.ranks, answer.ground_truth)
    images, queries = len(answer.database), len(answer.queries)
    left_out = len(retrieval.database) + len(retrieval.queries) - images - queries
    return figures | {"images": float(images), "queries": float(queries), "left_out": float(left_out)}


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings(Keys):
    """Settings of the measurement ``retrieval``."""

    data: str  # a card with queries and a database
    longest: Count  # pixels of the longer side at scale 1
    patch_size: Count  # pixels a side of the network's patches
    scales: list[Positive] = field(default_factory=lambda: list(SCALES))  # factors of the size


class ImageRetrieval(FullResolutionEvaluation, name="retrieval"):
    """``retrieval_accuracy``."""

    Settings = RetrievalSettings
    once = ("images", "queries", "left_out")

    def load(self, *, root: str | Path | None = None, **options: Any) -> Inputs:
        """``test`` is a ``lib.data.retrieval.RetrievalSet``."""
        test = load_retrieval(self.settings.data, root=root)
        return Inputs(test, fingerprints={"database": fingerprint(test.database), "queries": fingerprint(test.queries)})

    def measure(self, network: Model, inputs: Inputs, context: Context = DEFAULT) -> dict[str, float]:
        return retrieval_accuracy(network, inputs.test, progress=context.progress, **self.options)

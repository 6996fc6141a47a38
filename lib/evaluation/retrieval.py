"""Image retrieval, measured as on the revisited Oxford and Paris sets.

Source: Radenovic et al., "Revisiting Oxford and Paris: Large-Scale Image Retrieval Benchmarking", CVPR 2018, section 3.
"""

from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.data.fingerprint import fingerprint
from lib.data.full_resolution import full_images
from lib.data.reading import fitted
from lib.data.retrieval import KINDS, RetrievalSet, load_retrieval
from lib.evaluation.base import DEFAULT, Context, Evaluation, Inputs
from lib.keys import Keys

# protocol -> (what counts as found, what is left out of the ranking)
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
        ground_truth: for each query ``{"easy", "hard", "junk"}``, each a list of images of the database. Queries without
            positives under the protocol are left out.
        protocol: ``easy`` (easy images count, hard and junk are ignored), ``medium`` (easy and hard count, junk is ignored) or
            ``hard`` (hard ones count, easy and junk are ignored). Average precision is the area under the precision-recall
            curve by the trapezoid rule.

    Raises:
        ValueError: shapes that do not fit, an unknown protocol, images that are not in the database, or no query with positives.
    """
    precisions = [_average_precision(places, count) for places, count in _found(ranks, ground_truth, protocol)]
    return 100 * sum(precisions) / len(precisions)


def revisited_precision(ranks: Tensor, ground_truth: list[dict], *, protocol: str = "easy") -> dict[int, float]:
    """Mean precision in percent among the first 1, 5 and 10 images (mP@k), or among those up to a query's last positive where
    that comes earlier; arguments and errors as of ``revisited_map``.
    """
    means = dict.fromkeys(PRECISION_AT, 0.0)
    queries = _found(ranks, ground_truth, protocol)
    for places, _ in queries:
        for k in PRECISION_AT:
            among = min(k, int(places.max()) + 1) if len(places) else k
            means[k] += 100 * (places < among).sum().item() / among / len(queries)
    return means


def _found(ranks: Tensor, ground_truth: list[dict], protocol: str) -> list[tuple[Tensor, int]]:
    """For each query with positives: the places of those among the images that are not ignored, and how many there are."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: got {protocol!r}, accepts {', '.join(PROTOCOLS)}")
    if ranks.ndim != 2 or ranks.is_floating_point() or ranks.dtype == torch.bool:
        raise ValueError(f"ranks: got {ranks.dtype} of shape {tuple(ranks.shape)}, accepts Long[n_db, n_q]")
    if not torch.equal(ranks.sort(0).values.long(), torch.arange(len(ranks), device=ranks.device)[:, None].expand_as(ranks)):
        raise ValueError(f"ranks: got a column that is no order of the images 0 to {len(ranks) - 1}, accepts each image once in each")
    if len(ground_truth) != ranks.shape[1]:
        raise ValueError(f"ground_truth: got {len(ground_truth)} queries, accepts {ranks.shape[1]}, those of ranks")
    wanted, ignored = PROTOCOLS[protocol]
    found = []
    for number, (ranking, truth) in enumerate(zip(ranks.T, ground_truth)):
        sets = {kind: _images(truth, kind, len(ranks), number).to(ranks.device) for kind in KINDS}
        positives = torch.cat([sets[kind] for kind in wanted]).unique()
        if len(positives):
            keep = ~torch.isin(ranking, torch.cat([sets[kind] for kind in ignored]))
            found.append((torch.isin(ranking[keep], positives).nonzero().flatten(), len(positives)))
    if not found:
        raise ValueError(f"ground_truth: got no query with positives, the protocol {protocol} accepts at least one")
    return found


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
    """Of positives at ``places`` (from 0) of a ranking, ``count`` in all."""
    places = places.double()
    before = torch.arange(len(places), dtype=torch.float64, device=places.device)
    precision_before = torch.where(places > 0, before / places.clamp(min=1), 1.0)
    return ((precision_before + (before + 1) / (places + 1)).sum() / (2 * count)).item()


def rank(queries: Tensor, database: Tensor) -> Tensor:
    """The images of a database by falling cosine, Long[n_db, n_q]; equal cosines by their number.

    Args:
        queries: Float[n_q, D].
        database: Float[n_db, D].
    """
    similarity = F.normalize(database, dim=1) @ F.normalize(queries, dim=1).T
    return similarity.argsort(dim=0, descending=True, stable=True)


@torch.inference_mode()
def image_descriptors(
    network: nn.Module, table: pa.Table, *, longest: int, patch_size: int, scales=SCALES, batch_size: int = 16, progress: bool = False
) -> tuple[Tensor, list[int]]:
    """Multi-scale descriptors of whole images: the sum of the normalised pooled vectors of an image at several sizes, normalised.

    Args:
        network: with ``features``; it is left in evaluation mode.
        table: see ``lib.data.layouts``; of images with a ``box`` that part alone is seen.
        longest: pixels of the longer side at scale 1.
        patch_size: both sides are rounded down to multiples of it.
        scales: factors of the size. An image is decoded at the largest, and the smaller views are made from that (bilinear).
        batch_size: images at a time, of those that follow each other and have one size.
        progress: show a bar.

    Returns:
        Float32[n, D] on the network's device, and the n rows that could be read; of the others a warning says so.

    Raises:
        ValueError: no scale, or no image that could be read.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales: got {scales}, accepts at least one factor above 0")
    network.eval()
    sides = [max(1, round(longest * scale)) for scale in scales]
    options = dict(longest=max(sides), multiple=patch_size, device=next(network.parameters()).device)
    rows, found = [], []
    for size, images in groupby(full_images(table, title="descriptors" if progress else None, **options), key=lambda image: image.size):
        while batch := list(islice(images, batch_size)):
            largest = torch.cat([image.view for image in batch])  # [B, 3, h, w]
            total = 0
            for side in sides:
                seen = fitted(size, longest=side, multiple=patch_size)
                view = largest if side == max(sides) else F.interpolate(largest, size=seen, mode="bilinear")
                total = total + F.normalize(network.features(view).cls.float(), dim=1)
            rows += [image.row for image in batch]
            found.append(F.normalize(total, dim=1))
    if not found:
        raise ValueError(f"table: got {len(table)} images, none of which could be read, accepts at least one")
    return torch.cat(found), rows


class RetrievalAnswer(NamedTuple):
    """Answers of a network, of the images that could be read.

    ranks: Long[n_db, n_q], for each query the images of the database from the nearest on; ground_truth: what it should have found,
    in the same numbers; database: Long[n_db] and queries: Long[n_q], their rows in the tables.
    """

    ranks: Tensor
    ground_truth: list[dict[str, list[int]]]
    database: Tensor
    queries: Tensor


def retrieve(network: nn.Module, retrieval: RetrievalSet, **options) -> RetrievalAnswer:
    """Rank a database for every query.

    Args:
        network, options: as of ``image_descriptors``.
        retrieval: see ``lib.data.retrieval``. Images that cannot be read are left out of the ranking and of the ground truth.
    """
    database, kept = image_descriptors(network, retrieval.database, **options)
    queries, asked = image_descriptors(network, retrieval.queries, **options)
    number = {row: place for place, row in enumerate(kept)}
    truth = [{kind: [number[row] for row in retrieval.ground_truth[query][kind] if row in number] for kind in KINDS} for query in asked]
    return RetrievalAnswer(rank(queries, database).cpu(), truth, torch.tensor(kept), torch.tensor(asked))


def revisited_figures(ranks: Tensor, ground_truth: list[dict]) -> dict[str, float]:
    """Mean average precision and precision among the first images, in percent, under every protocol that has positives.

    Args:
        ranks, ground_truth: as of ``revisited_map``.

    Returns:
        ``easy_map``, ``easy_p1``, ``easy_p5``, ``easy_p10``, and the same of ``medium`` and ``hard``.

    Raises:
        ValueError: as of ``revisited_map``.
    """
    figures = {}
    for protocol, (wanted, _) in PROTOCOLS.items():
        if any(len(truth.get(kind, ())) for truth in ground_truth for kind in wanted):
            figures[f"{protocol}_map"] = revisited_map(ranks, ground_truth, protocol=protocol)
            precisions = revisited_precision(ranks, ground_truth, protocol=protocol)
            figures |= {f"{protocol}_p{k}": precision for k, precision in precisions.items()}
    if not figures:
        raise ValueError(f"ground_truth: got {len(ground_truth)} queries without positives, accepts at least one with them")
    return figures


def retrieval_accuracy(
    network: nn.Module, retrieval: RetrievalSet, *, longest: int, patch_size: int, scales=SCALES, progress: bool = False
) -> dict[str, float]:
    """``revisited_figures`` of a network.

    Args:
        network, longest, patch_size, scales, progress: as of ``image_descriptors``.
        retrieval: as of ``retrieve``.

    Returns:
        The figures, ``images`` and ``queries``, the numbers of those ranked and asked, and ``left_out``, how many more of both
        could not be read.
    """
    found = retrieve(network, retrieval, longest=longest, patch_size=patch_size, scales=scales, progress=progress)
    figures = revisited_figures(found.ranks, found.ground_truth)
    images, queries = len(found.database), len(found.queries)
    left_out = len(retrieval.database) + len(retrieval.queries) - images - queries
    return figures | {"images": float(images), "queries": float(queries), "left_out": float(left_out)}


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings(Keys):
    """Settings of the measurement ``retrieval``."""

    data: str  # a card with queries and a database
    longest: int  # pixels of the longer side at scale 1
    patch_size: int  # pixels a side of the network's patches
    scales: list[float] = field(default_factory=lambda: list(SCALES))  # factors of the size


class ImageRetrieval(Evaluation, name="retrieval"):
    """``retrieval_accuracy``."""

    Settings = RetrievalSettings
    once = ("images", "queries", "left_out")

    def load(self, *, root: str | Path | None = None, device="cpu", progress: bool = False) -> Inputs:
        """``test`` is a ``lib.data.retrieval.RetrievalSet``."""
        test = load_retrieval(self.settings.data, root=root)
        return Inputs(test, fingerprints={"database": fingerprint(test.database), "queries": fingerprint(test.queries)})

    def measure(self, network: nn.Module, inputs: Inputs, context: Context = DEFAULT) -> dict[str, float]:
        return retrieval_accuracy(network, inputs.test, progress=context.progress, **self.options)

    @property
    def options(self) -> dict:
        """The settings as ``retrieve`` takes them."""
        return {name: getattr(self.settings, name) for name in ("longest", "patch_size", "scales")}

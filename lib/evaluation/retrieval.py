"""Image retrieval, measured as on the revisited Oxford and Paris sets.

Source: Radenovic et al., "Revisiting Oxford and Paris: Large-Scale Image Retrieval Benchmarking", CVPR 2018, section 3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lib.data.views import center_view

# protocol -> (what counts as found, what is left out of the ranking)
PROTOCOLS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
KINDS = ("easy", "hard", "junk")
PRECISION_AT = (1, 5, 10)


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
def descriptors(
    network: nn.Module, source, *, size: int, multiple: int = 16, scales=(1.0, 2**-0.5, 0.5), batch_size: int = 64, progress: bool = False
) -> Tensor:
    """Multi-scale descriptors: the sum of the normalised pooled vectors of an image at several sizes, normalised.

    Args:
        network: with ``features``; it is left in evaluation mode.
        source: a ``lib.data.Bank`` or ``Stream`` of M images.
        size: pixels a side at scale 1.
        multiple: sides are rounded to multiples of it, the patch size.
        scales: factors of the size.
        batch_size: images at a time.
        progress: show a bar.

    Returns:
        Float32[M, D] on the network's device.
    """
    network.eval()
    device = next(network.parameters()).device
    sides = [max(1, round(size * scale / multiple)) * multiple for scale in scales]
    found = []
    batches = torch.arange(len(source)).split(batch_size)
    for images, sizes, _ in tqdm(source.batches(batches), "descriptors", len(batches), disable=not progress, mininterval=2):
        vectors = [network.features(center_view(images, side, crop=1.0, sizes=sizes).to(device)).cls for side in sides]
        found.append(F.normalize(sum(F.normalize(vector.float(), dim=1) for vector in vectors), dim=1))
    return torch.cat(found)

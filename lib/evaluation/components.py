"""Connected parts: of a mask, and of a map at every threshold at once."""

import numpy as np
import torch
from torch import Tensor

THRESHOLDS = 255  # distinct binarisations ``byte > t`` that leave some foreground: t from 0 to 254
FORWARD_4 = ((0, 1), (1, 0))  # (down, right) to the neighbours that follow in row-major order
FORWARD_8 = (*FORWARD_4, (1, -1), (1, 1))


def label(mask: Tensor) -> Tensor:
    """Number the 4-connected parts of a mask.

    Args:
        mask: Bool[H, W].

    Returns:
        Long[H, W]: 0 outside the mask, then 1, 2, … in the row-major order of each part's first pixel.
    """
    places = torch.arange(1, mask.numel() + 1, device=mask.device).view_as(mask)
    parts = torch.where(mask, places, 0)
    beyond = mask.numel() + 1
    while True:  # each pixel takes the lowest number around it, and then that pixel's own number, until nothing changes
        around = torch.nn.functional.pad(torch.where(mask, parts, beyond), (1, 1, 1, 1), value=beyond)
        lowest = around[1:-1, 1:-1]
        for shifted in (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]):
            lowest = torch.minimum(lowest, shifted)
        lowest = torch.where(mask, lowest, 0)
        lowest = torch.where(mask, lowest.flatten()[(lowest - 1).clamp(min=0)], 0)
        if torch.equal(lowest, parts):
            break
        parts = lowest
    first = (parts == places).flatten()
    return torch.where(mask, first.cumsum(0)[(parts - 1).clamp(min=0)], 0)


def component_boxes(fine: np.ndarray, forward: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Every connected part of ``byte > t`` at every t.

    The map falls into basins, in each of which a path that never descends leads from any pixel to the basin's peak. So the
    pixels of a basin above t hang together at every t, and two basins do below the highest pass between them.

    Args:
        fine: UInt16[H, W], its high byte the map in 8 bits.
        forward: steps (down, right) to half of a pixel's neighbours.

    Returns:
        Int[K, 4], boxes x0, y0, x1, y1 with ends included, and Int[K], the t of each.
    """
    # Within a frame of zeros, which are above no t, each neighbour is a fixed offset in the flattened map of P pixels.
    fine = np.pad(fine, 1)
    byte = (fine >> 8).ravel()
    offsets = [down * fine.shape[1] + right for down, right in forward]
    basins, peaks = _basins(fine.ravel(), offsets)
    boxes = _bounds(fine, basins, len(peaks))
    first = np.zeros(len(peaks), int)  # the lowest t at which a basin is not yet part of another one's entry
    for b, into, height in _merges(basins, len(peaks), byte, offsets):
        first[b] = height
        np.minimum(boxes[:, into, :height], boxes[:, b, :height], out=boxes[:, into, :height])
    t = np.arange(THRESHOLDS)
    b, t = np.nonzero((t >= first[:, None]) & (t < byte[peaks][:, None]))
    return boxes[:, b, t].T * (1, 1, -1, -1), t


def _runs(line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the runs of a line [P] start that rise (or stay level) and then fall, and their peaks; it starts and ends with zeros."""
    rises = line[1:] >= line[:-1]
    turns = np.flatnonzero(rises[1:] != rises[:-1]) + 1  # peak, start, peak, …, start
    return np.append(0, turns[1::2]), np.append(turns[::2], len(line) - 1)


def _basins(fine: np.ndarray, offsets: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The basin of each pixel, Int[P] from 0, and where the basins' peaks are. On level ground pixels climb to later ones."""
    starts, tops = _runs(fine)
    goal = tops.copy()
    for offset in offsets:
        if offset > 1:  # along the row, a run's top is already the highest
            goal = np.where(fine.take(tops - offset, mode="clip") > fine[tops], tops - offset, goal)
            goal = np.where(fine.take(tops + offset, mode="clip") >= fine[tops], tops + offset, goal)
    run = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(fine)))
    goal = run.take(goal, mode="clip")
    peaks = tops[goal == np.arange(len(goal))]
    while not np.array_equal(further := goal[goal], goal):
        goal = further
    return np.searchsorted(peaks, tops[goal])[run], peaks


def _bounds(fine: np.ndarray, basins: np.ndarray, count: int) -> np.ndarray:
    """(x0, y0, -x1, -y1) of the pixels above each t, Int[4, count, THRESHOLDS].

    A basin's own entry may miss some of its pixels' rows and columns, those of the part of ``byte > t`` it belongs to do not:
    all of a run above t hangs together, so the run's peak stands for its row, or column.
    """
    height, width = fine.shape
    boxes = np.full((4, count * 256), max(height, width), np.int32)
    for axis, line, length in ((1, fine, width), (0, fine.T, height)):
        across, along = np.divmod(_runs(line.ravel())[1], length)
        y, x = (across, along) if axis else (along, across)
        place = basins[y * width + x] * 256 + (fine[y, x] >> 8)
        across = across.astype(np.int32) - 1  # of one type with the boxes, which is several times faster; -1 for the frame
        np.minimum.at(boxes[axis], place, across)
        np.minimum.at(boxes[axis + 2], place, -across)
    boxes = boxes.reshape(4, count, 256)[:, :, :0:-1]  # without byte 0, from the brightest down
    return np.minimum.accumulate(boxes, axis=2)[:, :, ::-1]


def _merges(basins: np.ndarray, count: int, byte: np.ndarray, offsets: list[int]) -> list[tuple[int, int, int]]:
    """(basin, the basin that takes it in, height of the pass) from the highest pass to the lowest, height 1 or more."""
    passes = []
    for offset in offsets:
        i = np.flatnonzero(basins[offset:] != basins[:-offset])
        a, b = basins[i], basins[i + offset]
        passes.append((np.minimum(a, b) * count + np.maximum(a, b)) * 256 + np.minimum(byte[i], byte[i + offset]))
    passes = np.sort(np.concatenate(passes))
    passes = passes[(np.diff(passes >> 8, append=-1) != 0) & (passes & 255 > 0)]  # the highest of every pair
    passes = passes[np.argsort(-(passes & 255), kind="stable")]
    parent = list(range(count))

    def root(i):
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    merges = []
    for pair, height in zip((passes >> 8).tolist(), (passes & 255).tolist()):
        i, j = root(pair // count), root(pair % count)
        if i != j:
            parent[j] = i
            merges.append((j, i, height))
    return merges

"""Connected components: of a mask, and of a map at every threshold at once."""

import numpy as np
import torch
from torch import Tensor

THRESHOLDS = 255  # binarisations ``byte > t`` that can leave some foreground: t from 0 to 254
FORWARD_4 = ((0, 1), (1, 0))  # (down, right) to the neighbours that follow in row-major order
FORWARD_8 = (*FORWARD_4, (1, -1), (1, 1))


def label(mask: Tensor) -> Tensor:
    """Number the 4-connected components of a mask Bool[H, W].

    Returns:
        Long[H, W]: 0 outside the mask, then 1, 2, … in the row-major order of the first pixel of each component.
    """
    places = torch.arange(1, mask.numel() + 1, device=mask.device).view_as(mask)
    components = torch.where(mask, places, 0)
    beyond = mask.numel() + 1
    # Each pixel takes the lowest number among its neighbours, then the number of the pixel of that number, until nothing changes.
    while True:
        around = torch.nn.functional.pad(torch.where(mask, components, beyond), (1, 1, 1, 1), value=beyond)
        lowest = around[1:-1, 1:-1]
        for shifted in (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]):
            lowest = torch.minimum(lowest, shifted)
        lowest = torch.where(mask, lowest, 0)
        lowest = torch.where(mask, lowest.flatten()[(lowest - 1).clamp(min=0)], 0)
        if torch.equal(lowest, components):
            break
        components = lowest
    first = (components == places).flatten()
    return torch.where(mask, first.cumsum(0)[(components - 1).clamp(min=0)], 0)


def component_boxes(fine: np.ndarray, forward: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray]:
    """The box of every connected component of ``byte > t``, at every t.

    The map is divided into basins. From every pixel of a basin, a path that never descends leads to the peak of the basin. The pixels of a
    basin that are above t are therefore connected at every t, and two basins are connected at every t below the highest pass between them.

    Args:
        fine: UInt16[H, W]; its high byte is the map in 8 bits.
        forward: steps (down, right) to half of a pixel's neighbours.

    Returns:
        Int[K, 4], boxes x0, y0, x1, y1 with ends included, and Int[K], the t of each.
    """
    # With a frame of zeros, which are above no t, each neighbour has a fixed offset in the flattened map of P pixels.
    fine = np.pad(fine, 1)
    byte = (fine >> 8).ravel()
    offsets = [down * fine.shape[1] + right for down, right in forward]
    basins, peaks = _basins(fine.ravel(), offsets)
    boxes = _bounds(fine, basins, len(peaks))
    first = np.zeros(len(peaks), int)  # the lowest t at which a basin is not yet part of the entry of another one
    for basin, into, height in _merges(basins, len(peaks), byte, offsets):
        first[basin] = height
        np.minimum(boxes[:, into, :height], boxes[:, basin, :height], out=boxes[:, into, :height])
    levels = np.arange(THRESHOLDS)
    entries, t = np.nonzero((levels >= first[:, None]) & (levels < byte[peaks][:, None]))
    return boxes[:, entries, t].T * (1, 1, -1, -1), t


def _runs(line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The starts and the peaks of the runs of a line [P] that starts and ends with zeros. A run rises (or stays level) and then falls."""
    rises = line[1:] >= line[:-1]
    turns = np.flatnonzero(rises[1:] != rises[:-1]) + 1  # peak, start, peak, …, start
    return np.append(0, turns[1::2]), np.append(turns[::2], len(line) - 1)


def _basins(fine: np.ndarray, offsets: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The basin of each pixel, Int[P] from 0, and the places of the peaks. Of level neighbours, the path goes to the later one."""
    starts, tops = _runs(fine)
    goal = tops.copy()
    for offset in offsets:
        if offset > 1:  # along the row, the top of a run is already the highest
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

    The entry of a single basin may lack some rows and columns of its pixels; the entries of all basins of a component together lack none.
    The pixels of a run above t are connected, so the peak of the run represents its row, or its column.
    """
    height, width = fine.shape
    boxes = np.full((4, count * 256), max(height, width), np.int32)
    for axis, line, length in ((1, fine, width), (0, fine.T, height)):
        across, along = np.divmod(_runs(line.ravel())[1], length)
        y, x = (across, along) if axis else (along, across)
        place = basins[y * width + x] * 256 + (fine[y, x] >> 8)
        across = across.astype(np.int32) - 1  # of the same type as the boxes, which is several times faster; -1 for the frame
        np.minimum.at(boxes[axis], place, across)
        np.minimum.at(boxes[axis + 2], place, -across)
    boxes = boxes.reshape(4, count, 256)[:, :, :0:-1]  # without byte 0, from the brightest down
    return np.minimum.accumulate(boxes, axis=2)[:, :, ::-1]


def _merges(basins: np.ndarray, count: int, byte: np.ndarray, offsets: list[int]) -> list[tuple[int, int, int]]:
    """(basin, the basin that absorbs it, height of the pass) from the highest pass to the lowest, height 1 or more."""
    of_offsets = []
    for offset in offsets:
        i = np.flatnonzero(basins[offset:] != basins[:-offset])
        a, b = basins[i], basins[i + offset]
        of_offsets.append((np.minimum(a, b) * count + np.maximum(a, b)) * 256 + np.minimum(byte[i], byte[i + offset]))
    passes = np.sort(np.concatenate(of_offsets))
    passes = passes[(np.diff(passes >> 8, append=-1) != 0) & (passes & 255 > 0)]  # the highest of every pair
    passes = passes[np.argsort(-(passes & 255), kind="stable")]
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    merges = []
    for pair, height in zip((passes >> 8).tolist(), (passes & 255).tolist()):
        into, basin = root(pair // count), root(pair % count)
        if into != basin:
            parent[basin] = into
            merges.append((basin, into, height))
    return merges

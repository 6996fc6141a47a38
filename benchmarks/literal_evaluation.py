"""The plain versions of measurements: a contour search at every threshold, loops over patches, one product of all with all."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def max_box_accuracy(maps: Tensor, boxes: list[Tensor], size: int = 224, step: float = 0.001) -> dict:
    thresholds = np.arange(0, 1, step)
    best = np.zeros((len(maps), len(thresholds)))
    for i, single in enumerate(maps):
        grey = F.interpolate(single.double()[None, None], size=size, mode="bicubic")[0, 0].numpy()
        grey = ((grey - grey.min()) / (grey.max() - grey.min()) * 255).astype(np.uint8)
        for j, t in enumerate(thresholds):
            contours, _ = cv2.findContours((grey > int(t * grey.max())).astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
            for x, y, w, h in map(cv2.boundingRect, contours):
                found = (x, y, min(x + w, size - 1), min(y + h, size - 1))
                best[i, j] = max(best[i, j], *(_iou(found, truth) for truth in boxes[i].tolist()))
    figures = {level: float(100 * (best >= level).mean(0).max()) for level in (0.3, 0.5, 0.7)}
    return figures | {"mean": sum(figures.values()) / 3}


def _iou(a, b) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    shared = max(width, 0) * max(height, 0)
    return shared / (sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)) - shared)


def lost(features: Tensor, grid: tuple[int, int], k: int = 100) -> list[float]:
    count = len(features)
    degrees = [sum(float(features[i] @ features[j]) > 0 for j in range(count) if j != i) for i in range(count)]
    order = sorted(range(count), key=lambda i: degrees[i])
    seed = order[0]
    members = [i for i in order[:k] if float(features[seed] @ features[i]) > 0]
    mask = [sum(float(features[m] @ features[i]) for m in members) > 0 for i in range(count)]
    part, waiting = {seed}, [seed]
    while waiting:
        y, x = divmod(waiting.pop(), grid[1])
        for row, column in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            i = row * grid[1] + column
            if 0 <= row < grid[0] and 0 <= column < grid[1] and mask[i] and i not in part:
                part.add(i)
                waiting.append(i)
    rows, columns = [i // grid[1] for i in part], [i % grid[1] for i in part]
    return [16.0 * side for side in (min(columns), min(rows), max(columns) + 1, max(rows) + 1)]


def propagate_labels(features: list[Tensor], first: Tensor, grid: tuple[int, int], radius: int = 12) -> list[Tensor]:
    height, width = grid
    features = [F.normalize(frame, dim=1) for frame in features]
    labels = [first]
    for t in range(1, len(features)):
        context = [0, *range(max(1, t - 7), t)]
        made = torch.zeros_like(first)
        for y in range(height):
            for x in range(width):
                rows, columns = (
                    range(max(0, y - radius), min(height, y + radius + 1)),
                    range(max(0, x - radius), min(width, x + radius + 1)),
                )
                places = [(c, row, column) for c in context for row in rows for column in columns]
                near = torch.stack([features[c][row * width + column] for c, row, column in places])
                values, chosen = (near @ features[t][y * width + x]).topk(5)
                for weight, i in zip((values / 0.1).softmax(0), chosen.tolist()):
                    c, row, column = places[i]
                    made[:, y, x] += weight * labels[c][:, row, column]
        labels.append(made)
    return labels


def knn_predict(train_x: Tensor, train_y: Tensor, test_x: Tensor, k: int = 20, num_classes: int = 1000) -> Tensor:
    similarity = F.normalize(test_x, dim=1) @ F.normalize(train_x, dim=1).T
    values, index = similarity.topk(k)
    votes = torch.zeros(len(test_x), num_classes, device=test_x.device)
    return votes.scatter_add_(1, train_y[index], (values / 0.07).exp()).topk(5).indices

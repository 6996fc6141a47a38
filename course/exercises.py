"""The exercises' checks, by chapter. Each notebook asks; ``notebooks/solutions`` answers. What a check is: ``course/checks.py``."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from scipy import stats
from timm.models.vision_transformer import Block

from course.checks import exercise
from lib.distillation.losses import DINOLoss
from lib.evaluation import dino_seg, in9_class, knn_predict, lost, region_similarity, revisited_map
from lib.evaluation.localization import trivial_accuracy
from lib.evaluation.segmentation import sliding_window
from lib.learning.contrastive import info_nce as lib_info_nce
from lib.learning.optimizers import layerwise_optimizer
from lib.masking import attention_mask
from lib.models import create_model
from lib.pooling import SimPool, landscape
from lib.results.papers import claims, paper_table
from lib.results.verdicts import interval


def draw(*shape: int):
    """Inputs of one tensor with normally distributed entries."""
    return lambda g: (torch.randn(shape, generator=g),)


# ---- 00 map ----------------------------------------------------------------------------------------------------------------


@exercise(wrong={"this gap is not an improvement: it lies below zero": "simpool-9"})
def smallest_gap():
    """00: a claim with the smallest positive published gap; of equal gaps any."""
    gaps = claims().set_index("id").paper_gap
    gaps = gaps[gaps > 0]
    return set(gaps.index[gaps < gaps.min() + 1e-6])


# ---- 01 learning the encoder -------------------------------------------------------------------------------------------------


@exercise(tolerance=0.1, wrong={"that is in how many places they agree": 1.0, "two orders agree in a place with probability 1/9": 4.5})
def average_distance():
    """01: places in which two random orders of nine things differ, on average."""
    return 9 * (1 - 1 / 9)


@exercise(
    tolerance=0.005,
    wrong={
        "a view is not compared with itself: that leaves one view less": lambda images=64: math.log(2 * images),
        "both views of the other images are candidates": lambda images=64: math.log(images),
        "in nats: take the natural logarithm": lambda images=64: math.log2(2 * images - 1),
    },
)
def blind_contrast(images=64):
    """01: the contrastive loss in nats of an encoder that gives all views of a batch the same vector."""
    return lib_info_nce(torch.ones(images, 2), torch.ones(images, 2))[0].item()


def _info_nce(first, second, temperature, *, unit=True, itself=False, sums=False):
    vectors = torch.cat([first, second])
    vectors = F.normalize(vectors, dim=1) if unit else vectors
    similarity = vectors @ vectors.T / temperature
    similarity = similarity if itself else similarity.fill_diagonal_(-torch.inf)
    partner = torch.arange(len(vectors)).roll(len(first))
    return F.cross_entropy(similarity, partner, reduction="sum" if sums else "mean")


@exercise(
    inputs=lambda g: (torch.randn(6, 5, generator=g), torch.randn(6, 5, generator=g), 0.2),
    wrong={
        "similarity is the cosine: normalise the vectors first": partial(_info_nce, unit=False),
        "a view is not compared with itself: set the diagonal to -infinity": partial(_info_nce, itself=True),
        "divide the similarities by the temperature": lambda first, second, temperature: _info_nce(first, second, 1.0),
        "take the mean over the views, not the sum": partial(_info_nce, sums=True),
        "all 2B views ask, and all others of the 2B are candidates": lambda first, second, temperature: F.cross_entropy(
            F.normalize(first) @ F.normalize(second).T / temperature, torch.arange(len(first))
        ),
    },
)
def info_nce(first, second, temperature):
    """01: the contrastive loss, a scalar in nats, of two views Float[B, D] of B images."""
    return lib_info_nce(first, second, temperature=temperature)[0]


def _turned(images, sign=1):
    return torch.cat([images.rot90(sign * turns, (2, 3)) for turns in range(4)])


@exercise(
    inputs=draw(3, 2, 5, 5),
    wrong={
        "the images come turn by turn, so each label stands B times in a row": lambda x: (_turned(x), torch.arange(4).repeat(len(x))),
        "rot90 turns the other way with a negative number of turns": lambda x: (_turned(x, -1), torch.arange(4).repeat_interleave(len(x))),
        "labels are the numbers of turns, from 0 on": lambda x: (_turned(x), torch.arange(1, 5).repeat_interleave(len(x))),
        "first all images as they are, then all of them turned once, and so on": lambda x: (
            torch.stack([x.rot90(turns, (2, 3)) for turns in range(4)], 1).flatten(0, 1),
            torch.arange(4).repeat(len(x)),
        ),
    },
)
def rotations(images):
    """01: images Float[B, C, S, S] turned by 0, 1, 2, 3 quarters, Float[4B, C, S, S], and the numbers of turns, Long[4B]."""
    return _turned(images), torch.arange(4).repeat_interleave(len(images))


# ---- 02 which tokens to mask --------------------------------------------------------------------------------------------------


@exercise(
    tolerance=0.005,
    wrong={
        "AttMask-High hides these tokens for certain: only the random mask is left to chance": 0.09,
        "that is the part that stays visible": 0.7,
    },
)
def expected_overlap():
    """02: the expected fraction of AttMask-High's tokens that a random mask of ratio 0.3 hides as well."""
    return 0.3


def _batch_high(attention, ratio):
    attention = attention.mean(1)
    return attention > attention.flatten().sort(descending=True).values[int(ratio * attention.shape[1]) * len(attention)]


@exercise(
    inputs=lambda g: (torch.rand(4, 3, 30, generator=g) ** 2, 0.36),
    wrong={
        "these are the least attended patches": lambda a, ratio: attention_mask(a.mean(1), ratio, strategy="low"),
        "round down: int(ratio * N) patches": lambda a, ratio: attention_mask(
            a.mean(1), math.ceil(ratio * a.shape[2]) / a.shape[2] + 1e-6, strategy="high"
        ),
        "average over the heads: you took one of them": lambda a, ratio: attention_mask(a[:, 0], ratio, strategy="high"),
        "average over the heads: their maximum ranks the patches otherwise": lambda a, ratio: attention_mask(
            a.amax(1), ratio, strategy="high"
        ),
        "argsort gives the patches in order, not the rank of each patch: scatter True to the first of them": lambda a, ratio: (
            a.mean(1).argsort(1, descending=True) < int(ratio * a.shape[2])
        ),
        "rank the patches within each image, not over the batch": _batch_high,
    },
)
def attmask_high(attention, ratio):
    """02: AttMask-High, Bool[B, N], of the attention of each head, Float[B, heads, N]."""
    return attention_mask(attention.mean(1), ratio, strategy="high")


def _middle(attention, ratio, *, shift=0):
    tokens = attention.shape[1]
    count = int(ratio * tokens)
    first = (tokens - count) // 2 + shift
    order = attention.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(attention, dtype=torch.bool).scatter_(1, order[:, first : first + count], True)


@exercise(
    inputs=lambda g: (torch.rand(3, 35, generator=g), 0.3),
    wrong={
        "off by one: leave out (N - count) // 2 patches, from the most attended on": partial(_middle, shift=1),
        "that is AttMask-High: leave out the most attended half of the rest first": partial(attention_mask, strategy="high"),
    },
)
def middle_mask(attention, ratio):
    """02: a mask of the int(ratio * N) tokens around the median of the attention Float[B, N]."""
    return _middle(attention, ratio)


# ---- 03 AttMask inside iBOT ---------------------------------------------------------------------------------------------------


@exercise(
    tolerance=0.01,
    wrong={
        "in nats: take the natural logarithm": lambda prototypes=256: math.log2(prototypes),
        "that is the probability of each prototype; the loss is minus its logarithm": lambda prototypes=256: 1 / prototypes,
    },
)
def collapse_loss(prototypes=256):
    """03: the [CLS] loss in nats when all outputs are uniform over K prototypes."""
    return DINOLoss(prototypes)(torch.zeros(4, 2, prototypes), torch.zeros(2, 2, prototypes), 0.04).item()


def _entropy(student, targets, temperature=0.1, axis=-1):
    return -(targets * (student / temperature).log_softmax(axis)).sum(-1)  # [B, N]


def _per_image(entropy, mask):
    return (entropy * mask).sum(1) / mask.sum(1).clamp(min=1)  # [B]


def _patch_inputs(g):
    mask = torch.rand(4, 9, generator=g) < 0.4
    mask[0], mask[1, :7], mask[2, 0] = False, True, True
    return torch.randn(4, 9, 6, generator=g), torch.randn(4, 9, 6, generator=g).mul(3).softmax(-1), mask


@exercise(
    inputs=_patch_inputs,
    wrong={
        "average within each image first, and then over the images": lambda s, t, m: _entropy(s, t)[m].mean(),
        "an image without hidden patches counts as 0; it stays in the mean": lambda s, t, m: _per_image(_entropy(s, t), m)[m.any(1)].mean(),
        "only the hidden patches count": lambda s, t, m: _entropy(s, t).mean(),
        "True means hidden: you took the visible patches": lambda s, t, m: _per_image(_entropy(s, t), ~m).mean(),
        "the softmax runs over the prototypes, the last dimension": lambda s, t, m: _per_image(_entropy(s, t, axis=1), m).mean(),
        "divide the student's logits by the temperature 0.1": lambda s, t, m: _per_image(_entropy(s, t, 1.0), m).mean(),
        "cross-entropy has a minus sign": lambda s, t, m: -_per_image(_entropy(s, t), m).mean(),
        "teacher and student are exchanged: the logarithm is of the student": lambda s, t, m: _per_image(
            -((s / 0.1).softmax(-1) * t.log()).sum(-1), m
        ).mean(),
    },
)
def patch_loss(student, targets, mask):
    """03: iBOT's patch loss, a scalar, of the student's logits Float[B, N, K] and the teacher's distributions Float[B, N, K], at a student
    temperature of 0.1; mask Bool[B, N]."""
    return _per_image(_entropy(student, targets), mask).mean()


@exercise(
    inputs=lambda g: (torch.randn(5, generator=g), torch.randn(5, generator=g), 0.9),
    wrong={
        "the momentum is the teacher's weight: you moved it almost all the way": lambda t, s, m: (1 - m) * t + m * s,
        "the two weights sum to 1: the student's is 1 - momentum": lambda t, s, m: m * t + s,
        "that is the student itself": lambda t, s, m: s,
    },
)
def ema(teacher, student, momentum):
    """03: the teacher's weights after one step of the moving average."""
    return momentum * teacher + (1 - momentum) * student


# ---- 04 strategies compared ---------------------------------------------------------------------------------------------------


@exercise(
    wrong={
        "with so few seeds take Student's t in place of 1.96": lambda gap=3.0, spread=1.5: next(
            n for n in range(1, 100) if 1.96 * spread / n**0.5 < gap
        ),
        "n seeds leave n - 1 degrees of freedom": lambda gap=3.0, spread=1.5: next(
            n for n in range(2, 100) if stats.t.ppf(0.975, n) * spread / n**0.5 < gap
        ),
    }
)
def seeds_needed(gap=3.0, spread=1.5):
    """04: the fewest seeds with which a gap, at the given standard deviation of the paired differences, is significant."""
    return next(n for n in range(2, 1000) if stats.t.ppf(0.975, n - 1) * spread / n**0.5 < gap)


def _around(mean, half):
    return mean, mean - half, mean + half


def _paired_inputs(g):
    other = torch.randn(5, generator=g)
    return other + 1 + 0.3 * torch.randn(5, generator=g), other


def _t(n):
    return stats.t.ppf(0.975, n - 1)


@exercise(
    inputs=_paired_inputs,
    wrong={
        "take the differences seed by seed first": lambda b, o: _around(
            (b.mean() - o.mean()).item(), stats.t.ppf(0.975, 2 * len(b) - 2) * ((b.var() + o.var()) / len(b)).sqrt().item()
        ),
        "the variance divides by n - 1": lambda b, o: _around(
            (b - o).mean().item(), _t(len(b)) * ((b - o).var(correction=0) / len(b)).sqrt().item()
        ),
        "with so few seeds take Student's t in place of 1.96": lambda b, o: _around(
            (b - o).mean().item(), 1.96 * ((b - o).var() / len(b)).sqrt().item()
        ),
        "the standard deviation of a mean is smaller by the root of n": lambda b, o: _around(
            (b - o).mean().item(), _t(len(b)) * (b - o).std().item()
        ),
        "the better arm less the other, not the other way round": lambda b, o: tuple(interval((o - b).tolist())),
    },
)
def paired_interval(better, other):
    """04: the mean paired difference and the ends of its 95% interval, (mean, low, high), of scores Float[n] of n seeds."""
    return tuple(interval((better - other).tolist()))


# ---- 05 convergence and data --------------------------------------------------------------------------------------------------

FAST = [(0, 30.0), (10, 36.0), (20, 41.0), (30, 43.0)]
SLOW = [(0, 30.0), (10, 33.0), (20, 37.0), (30, 40.0)]


@exercise(
    tolerance=0.05,
    wrong={
        "that is the first evaluated epoch after it: interpolate": lambda fast=FAST, slow=SLOW: next(
            (x for x, y in fast if y >= slow[-1][1]), None
        ),
        "that is where the slow curve ends: where does the fast one pass this height?": lambda fast=FAST, slow=SLOW: slow[-1][0],
    },
)
def epochs_saved(fast=FAST, slow=SLOW):
    """05: the first epoch, linearly interpolated, at which the fast curve reaches the slow one's final value."""
    goal = slow[-1][1]
    for (x0, y0), (x1, y1) in zip(fast, fast[1:]):
        if y1 >= goal > y0:
            return x0 + (x1 - x0) * (goal - y0) / (y1 - y0)
    return float("inf")


def _knn(train_x, train_y, test_x, k, classes, *, unit=True, weight=lambda s: (s / 0.07).exp(), largest=True):
    train_x, test_x = (F.normalize(x, dim=1) if unit else x for x in (train_x, test_x))
    similarity, nearest = (test_x @ train_x.T).topk(k, dim=1, largest=largest)
    votes = torch.zeros(len(test_x), classes).scatter_add_(1, train_y[nearest], weight(similarity))
    return votes.argmax(1)


@exercise(
    inputs=lambda g: (
        (1 + torch.randn(60, 6, generator=g)) * (0.2 + torch.rand(60, 1, generator=g)),
        torch.randint(4, (60,), generator=g),
        1 + torch.randn(40, 6, generator=g),
        9,
        4,
    ),
    wrong={
        "nearest by the cosine: normalise the vectors": partial(_knn, unit=False, weight=lambda s: ((s - s[:, :1]) / 0.07).exp()),
        "a vote weighs exp(cosine / 0.07)": partial(_knn, weight=torch.ones_like),
        "divide the cosine by the temperature 0.07": partial(_knn, weight=torch.exp),
        "these are the farthest, not the nearest": partial(_knn, largest=False),
        "k neighbours vote, not the nearest alone": lambda train_x, train_y, test_x, k, classes: _knn(train_x, train_y, test_x, 1, classes),
        "give back the class, not its number of votes": lambda train_x, train_y, test_x, k, classes: train_y[
            (F.normalize(test_x) @ F.normalize(train_x).T).topk(k).indices[:, -1]
        ],
    },
)
def knn(train_x, train_y, test_x, k, classes):
    """05: the class, Long[Q], that the k nearest of the training vectors Float[M, D] with labels Long[M] give to vectors Float[Q, D]."""
    return knn_predict(train_x, train_y, test_x, k=k, num_classes=classes)[:, 0]


# ---- 06 DINO, MST, iBOT, AttMask ------------------------------------------------------------------------------------------------


@exercise(
    tolerance=0.05,
    wrong={
        "that is by the linear probe": 1.1,
        "that is AttMask-High": 0.4,
        "that is over iBOT": 1.3,
        "the difference is the other way round": -0.7,
    },
)
def hint_over_mst():
    """06: points of k-NN that iBOT with AttMask-Hint gains over MST, as published."""
    published = paper_table("attmask", "full_imagenet").knn
    return published.ibot_attmask_hint - published.mst


def _hidden(attention, count, *, largest=False):
    return attention.topk(count, 1, largest=largest).values.sum(1)


@exercise(
    inputs=lambda g: (torch.rand(5, 36, generator=g) ** 4, 0.4),
    wrong={
        "MST hides the least attended patches": lambda a, ratio: _hidden(a, int(ratio * a.shape[1]), largest=True) / a.sum(1),
        "a part of all the attention: divide by its sum": lambda a, ratio: _hidden(a, int(ratio * a.shape[1])),
        "round down: int(ratio * N) patches": lambda a, ratio: _hidden(a, math.ceil(ratio * a.shape[1])) / a.sum(1),
        "that is the part of the patches, not of the attention": lambda a, ratio: torch.full(
            (len(a),), int(ratio * a.shape[1]) / a.shape[1]
        ),
        "the sum of each image, not of the batch": lambda a, ratio: _hidden(a, int(ratio * a.shape[1])) / a.sum(),
    },
)
def hidden_attention(attention, ratio):
    """06: the part Float[B] of the attention Float[B, N] that lies on the int(ratio * N) least attended patches."""
    return _hidden(attention, int(ratio * attention.shape[1])) / attention.sum(1)


@exercise(
    inputs=lambda g: (torch.randn(3, 7, 4, generator=g), torch.rand(3, 7, generator=g) < 0.4, torch.randn(4, generator=g)),
    wrong={
        "True means hidden: you replaced the visible patches": lambda x, mask, token: torch.where(mask.unsqueeze(-1), x, token),
        "the mask token replaces a patch; it is not added to it": lambda x, mask, token: x + mask.unsqueeze(-1) * token,
        "a hidden patch becomes the mask token, not 0": lambda x, mask, token: x * ~mask.unsqueeze(-1),
    },
)
def masked_tokens(tokens, mask, mask_token):
    """06: patch embeddings Float[B, N, D] in which the hidden ones, Bool[B, N], are replaced by the mask token Float[D]."""
    return torch.where(mask.unsqueeze(-1), mask_token, tokens)


# ---- 07 backgrounds -----------------------------------------------------------------------------------------------------------


@exercise(
    tolerance=1,
    wrong={
        "MN takes the background of the next class, which is never the object's own": (100, 10, 10),
        "a random class is the right one once in ten times": (100, 0, 0),
    },
)
def background_only():
    """07: accuracies in percent, on MS, MR and MN, of a classifier that names the class of the background."""
    return 100.0, 10.0, 0.0


@exercise(wrong={"that is *bird*; but in this hierarchy game birds stand elsewhere": 1})
def peacock():
    """07: ImageNet-9's class of class 84 of ImageNet-1k."""
    return in9_class(84)


def _in9_inputs(g):
    mapping = torch.randint(-5, 9, (1000,), generator=g).clamp(min=-1)
    predicted = torch.randint(1000, (80,), generator=g)
    guesses = torch.randint(9, (80,), generator=g)
    labels = torch.where((torch.rand(80, generator=g) < 0.7) & (mapping[predicted] >= 0), mapping[predicted], guesses)
    return predicted, labels, mapping


@exercise(
    inputs=_in9_inputs,
    wrong={
        "an answer outside the nine classes counts as wrong; it stays in the mean": lambda p, y, mapping: (
            100 * (mapping[p] == y)[mapping[p] >= 0].double().mean().item()
        ),
        "in percent": lambda p, y, mapping: (mapping[p] == y).double().mean().item(),
        "translate the answers into the nine classes first": lambda p, y, mapping: 100 * (p == y).double().mean().item(),
    },
)
def in9_accuracy(predicted, labels, mapping):
    """07: accuracy in percent of answers out of 1000 classes, Long[B], to labels out of nine, Long[B]; mapping Long[1000], -1 for none."""
    return 100 * (mapping[predicted] == labels).double().mean().item()


# ---- 08 retrieval -------------------------------------------------------------------------------------------------------------


@exercise(
    tolerance=0.1,
    wrong={"that is the precision at its place; the area below the line that leads there is half of it": 100 / 3, "in percent": 1 / 6},
)
def third_alone():
    """08: average precision in percent of a single positive at the third place."""
    return revisited_map(torch.arange(4)[:, None], [dict(easy=[2], hard=[], junk=[])])


@exercise(
    tolerance=0.05,
    wrong={
        "these are rectangles; by the trapezoid rule each area but the first is half as large": 100
        * sum(1 / k for k in range(1, 161))
        / 160
    },
)
def random_ranking():
    """08: mean average precision in percent where the one positive of 160 images is at each place once."""
    truths = [dict(easy=[place], hard=[], junk=[]) for place in range(160)]
    return revisited_map(torch.arange(160)[:, None].expand(160, 160), truths)


def _precision(right):
    return right.cumsum(0) / torch.arange(1, len(right) + 1)


@exercise(
    inputs=lambda g: (torch.cat([torch.rand(12, generator=g) < 0.4, torch.tensor([True, False])]),),
    wrong={
        "these are rectangles: take the mean of the precision before and at each right image": lambda right: (
            100 * _precision(right)[right].mean().item()
        ),
        "in percent": lambda right: average_precision.reference(right) / 100,
        "the area is over recall: only right images move it": lambda right: 100 * _precision(right).mean().item(),
        "that is the precision of the whole ranking": lambda right: 100 * right.double().mean().item(),
    },
)
def average_precision(right):
    """08: average precision in percent of a ranking Bool[n], right or not, by the trapezoid rule from recall 0, precision 1 on."""
    return revisited_map(torch.arange(len(right))[:, None], [dict(easy=right.nonzero().flatten().tolist(), hard=[], junk=[])])


# ---- 09 video -----------------------------------------------------------------------------------------------------------------


@exercise(wrong={"these are patches: each has 16 pixels": 12, "a window of 12 patches in each direction": 25 * 16})
def farthest_move():
    """09: pixels from the farthest patch of the window."""
    return 12 * 16


@exercise(tolerance=0.005, wrong={"that is the shared part of one square: divide by the union": 0.5})
def moved_square():
    """09: J of a square of 10 pixels that is 5 pixels aside."""
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[0, 5:15, 5:15] = masks[1, 5:15, 10:20] = True
    return region_similarity(*masks)


@exercise(
    inputs=lambda g: (torch.rand(9, 8, generator=g) < 0.5, torch.rand(9, 8, generator=g) < 0.4),
    wrong={
        "that is Dice's coefficient: divide by the union": lambda a, b: (2 * (a & b).sum() / (a.sum() + b.sum())).item(),
        "divide by the union, not by the true mask": lambda a, b: ((a & b).sum() / b.sum()).item(),
        "divide by the union, not by the predicted mask": lambda a, b: ((a & b).sum() / a.sum()).item(),
        "background that both leave out does not count": lambda a, b: (a == b).double().mean().item(),
    },
)
def region(mask, truth):
    """09: region similarity J of two masks Bool[H, W]."""
    return region_similarity(mask, truth)


def _propagate(frame, context, labels, topk, temperature, *, unit=True, axis=1, largest=True):
    frame, context = (F.normalize(x, dim=1) if unit else x for x in (frame, context))
    similarity, nearest = (frame @ context.T).topk(topk, dim=1, largest=largest)
    return ((similarity / temperature).softmax(axis).unsqueeze(-1) * labels[nearest]).sum(1)


@exercise(
    inputs=lambda g: (torch.randn(8, 5, generator=g), torch.randn(20, 5, generator=g), torch.rand(20, 3, generator=g), 4, 0.2),
    wrong={
        "similarity is the cosine: normalise the features": partial(_propagate, unit=False),
        "only the topk nearest patches give labels": lambda f, c, labels, topk, t: _propagate(f, c, labels, len(c), t),
        "the softmax runs over the nearest patches of each patch, dimension 1": partial(_propagate, axis=0),
        "weigh the labels by the similarity, not evenly": lambda f, c, labels, topk, t: _propagate(f, c, labels, topk, 1e6),
        "divide the similarity by the temperature": lambda f, c, labels, topk, t: _propagate(f, c, labels, topk, 1.0),
        "these are the farthest patches": partial(_propagate, largest=False),
    },
)
def propagation(frame, context, labels, topk, temperature):
    """09: labels Float[N, C] of patches Float[N, D] from context patches Float[M, D] with labels Float[M, C], without a window."""
    return _propagate(frame, context, labels, topk, temperature)


# ---- 10 detection and segmentation -----------------------------------------------------------------------------------------------


@exercise(
    wrong={"one window of 512 pixels does not cover 683": 1, "the second window ends at the edge, so that a third has nothing to cover": 3}
)
def windows():
    """10: windows of 512 pixels, moved by 341, that cover 512 x 683 pixels."""
    seen: list = []
    sliding_window(lambda view: seen.append(view) or view, torch.zeros(1, 3, 512, 683), window=512, stride=341)
    return len(seen)


@exercise(
    tolerance=0.001,
    wrong={
        "the last block is one step below the heads: twelve blocks and the embedding are thirteen steps": 0.8**12,
        "one step too many: the heads have the full rate": 0.8**14,
        "each step multiplies the rate by 0.8": 1 - 13 * 0.2,
    },
)
def lowest_rate():
    """10: the part of the peak rate at which the patch embedding of a ViT of twelve blocks learns under a layer decay of 0.8."""
    groups = layerwise_optimizer(create_model("vit_nano", depth=12), 0.8, torch.nn.Linear(2, 2)).param_groups
    return min(group["lr_scale"] for group in groups)


def _ious(predicted, truth, classes, *, union=lambda a, b: (a | b).sum()):
    pairs = [(predicted == c, truth == c) for c in range(classes)]
    return [((a & b).sum() / union(a, b)).item() for a, b in pairs if (a | b).any()]


def _classes_inputs(g):
    truth = torch.randint(4, (60,), generator=g)
    predicted = torch.where(torch.rand(60, generator=g) < 0.5, truth, torch.randint(4, (60,), generator=g))
    truth[50:] = 255
    return predicted, truth, 6


@exercise(
    inputs=_classes_inputs,
    wrong={
        "pixels of no class (255) do not count: leave them out first": lambda p, t, classes: sum(ious := _ious(p, t, classes)) / len(ious),
        "a class that is neither there nor predicted has no IoU: leave it out of the mean": lambda p, t, classes: (
            sum(_ious(p[t != 255], t[t != 255], classes)) / classes
        ),
        "that is the accuracy of pixels: take each class's IoU, and their mean": lambda p, t, classes: (
            (p == t)[t != 255].double().mean().item()
        ),
        "divide by the union, not by the true pixels": lambda p, t, classes: (
            sum(parts := _ious(p[t != 255], t[t != 255], classes, union=lambda a, b: b.sum())) / len(parts)
        ),
    },
)
def mean_iou(predicted, truth, classes):
    """10: the mean IoU over the classes that occur, of the classes of pixels, Long[P] found and Long[P] true; 255 is no class."""
    ious = _ious(predicted[truth != 255], truth[truth != 255], classes)
    return sum(ious) / len(ious)


# ---- 11 the pooling landscape ----------------------------------------------------------------------------------------------------


def _by(weights, x):
    return torch.einsum("bn,bnd->bd", weights, x), weights.unsqueeze(1)


@exercise(
    inputs=draw(2, 6, 5),
    wrong={
        "the softmax makes the weights of an image sum to 1, not a division": lambda x: _by(
            x.norm(dim=2) / x.norm(dim=2).sum(1, keepdim=True), x
        ),
        "the softmax runs over the tokens": lambda x: _by(x.norm(dim=2).softmax(0), x),
        "the norm is the root of the sum of squares": lambda x: _by(x.square().sum(2).softmax(1), x),
        "with phi_V, f and phi_U the vector is the weighted sum of the features": lambda x: (
            x.mean(1),
            x.norm(dim=2).softmax(1).unsqueeze(1),
        ),
    },
)
def norm_softmax(x):
    """11: a fifteenth pooling by its declaration: of Float[B, N, D] a vector Float[B, D] and an attention Float[B, 1, N]."""
    return _by(x.norm(dim=2).softmax(1), x)


def _simpool(X, W_Q, W_K, gamma, *, start=False, norm=True, axis=1, scaled=True, scope=(1, 2), root=True, back=False):
    LN = F.layer_norm(X, X.shape[2:], eps=1e-6)
    query = (LN if start else X).mean(1) @ W_Q.T
    key = (LN if norm else X) @ W_K.T
    attention = (torch.einsum("bnd,bd->bn", key, query) / (X.shape[2] ** 0.5 if scaled else 1)).softmax(axis)
    least = LN.amin(scope, keepdim=True)
    pooled = torch.einsum("bn,bnd->bd", attention, (LN - least + 1e-6) ** gamma)
    return (pooled ** (1 / gamma) if root else pooled) + (least.flatten(1) if back else 0)


@exercise(
    inputs=lambda g: (2 * torch.randn(3, 9, 4, generator=g), torch.randn(4, 4, generator=g), torch.randn(4, 4, generator=g), 1.25),
    wrong={
        "the query starts from the average of X itself, before the LayerNorm": partial(_simpool, start=True),
        "the keys come from the normalised features, W_K LN(X)": partial(_simpool, norm=False),
        "divide the scores by the root of d": partial(_simpool, scaled=False),
        "the softmax runs over the tokens, dimension 1": partial(_simpool, axis=0),
        "the minimum is over all elements of an image, tokens and channels": partial(_simpool, scope=(1,)),
        "the minimum is of each image alone; here a result depends on the batch": partial(_simpool, scope=(0, 1, 2)),
        "take the root at the end: the power 1 / gamma": partial(_simpool, root=False),
        "the minimum is not added back": partial(_simpool, back=True),
        "a generalised mean: raise the values to the power gamma first": lambda X, W_Q, W_K, gamma: _simpool(X, W_Q, W_K, 1.0),
        "multiply by the matrices from the other side: a row x becomes x W^T": lambda X, W_Q, W_K, gamma: _simpool(X, W_Q.T, W_K.T, gamma),
    },
)
def simpool(X, W_Q, W_K, gamma):
    """11: SimPool's vector Float[B, D] of features Float[B, N, D], with a LayerNorm without weights."""
    pool = SimPool(X.shape[2], gamma)
    with torch.no_grad():
        pool.wq.weight.copy_(W_Q)
        pool.wk.weight.copy_(W_K)
        return pool(X).vector


@exercise(wrong={"that gives the average of 1 and 3, which is 2": 1, "that is 1 / gamma: the root at the end": 0.5})
def gamma_of_root_five():
    """11: the power with which the generalised mean of 1 and 3 is the root of 5."""
    return 2.0


# ---- 12 the pooling benchmark ----------------------------------------------------------------------------------------------------


@exercise(
    tolerance=0.01,
    wrong={
        "that is over the strongest of the others, not over their mean": 0.4,
        "leave SimPool out of the mean of the others": lambda: (a := paper_table("simpool", "framework").accuracy)["simpool"] - a.mean(),
    },
)
def margin_over_mean():
    """12: SimPool's published accuracy less the mean of the other methods'."""
    accuracy = paper_table("simpool", "framework").accuracy
    return accuracy["simpool"] - accuracy.drop("simpool").mean()


def _different(row, other):
    return {part for part in row.index if row[part] != other[part]}


@exercise(
    wrong={
        "an empty entry differs from one that is not empty": lambda: {
            part for part, (a, b) in landscape().loc[["cait", "simpool"], "U0":].items() if a != b and a and b
        }
    }
)
def cait_and_simpool():
    """12: the parts of the algorithm that differ."""
    rows = landscape().loc[:, "U0":]
    return _different(rows.loc["cait"], rows.loc["simpool"])


@exercise(
    inputs=lambda g: (torch.randn(3, 8, 5, generator=g).relu(), 3.0),
    wrong={
        "average over the positions; you took the sum": lambda x, gamma: x.clamp(min=1e-6).pow(gamma).sum(1).pow(1 / gamma),
        "take the root at the end: the power 1 / gamma": lambda x, gamma: x.clamp(min=1e-6).pow(gamma).mean(1),
        "pool over the positions, dimension 1, and keep the channels": lambda x, gamma: x.clamp(min=1e-6).pow(gamma).mean(2).pow(1 / gamma),
        "raise to the power gamma before the mean": lambda x, gamma: x.clamp(min=1e-6).mean(1),
        "that is the maximum, GeM for an infinite gamma": lambda x, gamma: x.clamp(min=1e-6).amax(1),
    },
)
def gem(x, gamma):
    """12: the generalised mean Float[B, D] over the positions of features Float[B, N, D], which are clamped to at least 1e-6."""
    return x.clamp(min=1e-6).pow(gamma).mean(1).pow(1 / gamma)


# ---- 13 SimPool, supervised ------------------------------------------------------------------------------------------------------


@exercise(
    wrong={
        "the class token leaves, and so does its position": 2 * 768**2 + 2 * 768,
        "the class token leaves, but its position leaves as well": 2 * 768**2 + 768,
        "there are two matrices, W_Q and W_K": 768**2,
    }
)
def extra_parameters():
    """13: parameters of ViT-B with SimPool less those with a class token."""
    with torch.device("meta"):
        counts = [sum(p.numel() for p in create_model("vit_base_patch16_224", pooling=name).parameters()) for name in ("simpool", None)]
    return counts[0] - counts[1]


@exercise(
    inputs=lambda g: (torch.randn(3, 9, 4, generator=g), torch.randn(5, 4, generator=g), torch.randn(3, 5, generator=g)),
    wrong={
        "that is the class of the lowest logit": lambda x, weight, logits: torch.einsum("bnd,bd->bn", x, weight[logits.argmin(1)]),
        "choose the class that the network names, not the best of each patch": lambda x, weight, logits: (x @ weight.T).amax(2),
        "weigh the channels by the class's row of the classifier; do not add them up": lambda x, weight, logits: x.sum(2),
        "one class for each image, not one for the batch": lambda x, weight, logits: x @ weight[logits.sum(0).argmax()],
        "give back the sums themselves, without a softmax": lambda x, weight, logits: torch.einsum(
            "bnd,bd->bn", x, weight[logits.argmax(1)]
        ).softmax(1),
    },
)
def class_map(patches, weight, logits):
    """13: the class activation map Float[B, N] of the predicted class: patches [B, N, D], classifier [C, D], logits [B, C]."""
    return torch.einsum("bnd,bd->bn", patches, weight[logits.argmax(1)])


# ---- 14 SimPool with DINO --------------------------------------------------------------------------------------------------------


@exercise(wrong={"another architecture gains more: subtract the row baseline from the row simpool": "resnet50", "it gains least": "vit_s"})
def largest_gain():
    """14: the architecture that gains most k-NN from SimPool in the paper."""
    table = paper_table("simpool", "self_supervised")
    return (table.loc["simpool"] - table.loc["baseline"]).filter(like="knn").idxmax().removesuffix("_knn")


def _pairs(student, teacher, center, student_temp, teacher_temp, *, own=False, total=False):
    targets, logs = ((teacher - center) / teacher_temp).softmax(-1), (student / student_temp).log_softmax(-1)
    pairs = [(q, v) for q in range(2) for v in range(len(student)) if own or q != v]
    loss = sum(-(targets[q] * logs[v]).sum(-1).mean() for q, v in pairs)
    return loss if total else loss / len(pairs)


@exercise(
    inputs=lambda g: (torch.randn(4, 3, 6, generator=g), torch.randn(2, 3, 6, generator=g), torch.randn(6, generator=g), 0.5, 0.2),
    wrong={
        "a view is not compared with itself": partial(_pairs, own=True),
        "take the mean over the pairs of views, not the sum": partial(_pairs, total=True),
        "subtract the center from the teacher's logits": lambda s, t, c, ts, tt: _pairs(s, t, 0 * c, ts, tt),
        "the center is subtracted, not added": lambda s, t, c, ts, tt: _pairs(s, t, -c, ts, tt),
        "the temperatures are exchanged: the teacher has the lower one": lambda s, t, c, ts, tt: _pairs(s, t, c, tt, ts),
        "only the teacher is centered": lambda s, t, c, ts, tt: _pairs(s - c, t, c, ts, tt),
    },
)
def cls_loss(student, teacher, center, student_temp, teacher_temp):
    """14: DINO's loss, a scalar, of the student's logits Float[V, B, K], globals first, and the teacher's Float[2, B, K]."""
    return _pairs(student, teacher, center, student_temp, teacher_temp)


# ---- 15 attention maps -----------------------------------------------------------------------------------------------------------


@exercise(tolerance=1, wrong={"in percent": 0.3, "that is what falls outside of the boxes": 70})
def even_attention_mass():
    """15: attention mass of an even map, in percent."""
    return 30.0


def _bits(attention, axis=-1):
    return -(attention * attention.log()).sum(axis)


@exercise(
    inputs=lambda g: (torch.randn(4, 3, 25, generator=g).mul(2).softmax(-1),),
    wrong={
        "average the heads first, and then take the entropy": lambda a: 100 * _bits(a).mean(1) / math.log(a.shape[2]),
        "divide by the entropy of an even attention, ln N": lambda a: 100 * _bits(a.mean(1)),
        "in percent": lambda a: _bits(a.mean(1)) / math.log(a.shape[2]),
        "entropy has a minus sign": lambda a: -100 * _bits(a.mean(1)) / math.log(a.shape[2]),
        "sum over the patches": lambda a: 100 * _bits(a, 1).mean(1) / math.log(a.shape[2]),
        "the same base for both logarithms": lambda a: 100 * _bits(a.mean(1)) / math.log(2) / math.log(a.shape[2]),
        "average over the heads: you took one of them": lambda a: 100 * _bits(a[:, 0]) / math.log(a.shape[2]),
    },
)
def entropy(attention):
    """15: the entropy Float[B] of the attention Float[B, heads, N], averaged over heads, in percent of that of an even attention."""
    return 100 * _bits(attention.mean(1)) / math.log(attention.shape[2])


# ---- 16 localization -------------------------------------------------------------------------------------------------------------


@exercise(wrong={"0.45 does not reach 0.5": [0.3, 0.5], "at one level at least: the IoU is 0.45": []})
def whole_image_levels():
    """16: the IoU levels at which the whole image meets a box of 45% of it."""
    figures = trivial_accuracy([torch.tensor([[0, 0, 99, 44]])], image_size=100)["whole image"]
    return [level for level, value in figures.items() if level != "mean" and value == 100]


@exercise(
    tolerance=0.04,
    wrong={
        "all its attention lies on the object": (25, 0.25),
        "half as wide and half as high is a quarter": (100, 0.5),
        "the box around the map lies inside the object's, so they share less than all": (100, 1),
    },
)
def part_of_an_object():
    """16: attention mass, in percent, and the best IoU of a map that is even on a quarter of the object's square box."""
    return 100.0, 0.25


def _iou(found, true, *, end=1):
    sides = torch.minimum(found[2:], true[2:]) - torch.maximum(found[:2], true[:2]) + end
    areas = [(box[2:] - box[:2] + end).prod() for box in (found, true)]
    shared = sides.clamp(min=0).prod()
    return (shared / (areas[0] + areas[1] - shared)).item()


def _threshold_ious(single, box, *, end=1, exchanged=False, scaled=True):
    single = (single - single.min()) / (single.max() - single.min()) if scaled else single
    boxes = []
    for threshold in torch.arange(0, 1, 0.05):
        rows, columns = (single > threshold).nonzero(as_tuple=True)
        if len(rows):
            x, y = (rows, columns) if exchanged else (columns, rows)
            boxes.append(torch.stack([x.min(), y.min(), x.max(), y.max()]))
    return [_iou(found, box, end=end) for found in boxes]


def _map_inputs(g):
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    row, column = (torch.rand(2, generator=g) * 4 + 4).tolist()
    blob = torch.exp(-((x - column) ** 2) / 8 - (y - row) ** 2 / 4)
    box = torch.tensor([column - 3, row - 1, column + 4, row + 3]).round().long().clamp(0, 11)
    return 0.3 + 1.7 * blob + 0.05 * torch.rand(12, 16, generator=g), box


@exercise(
    inputs=_map_inputs,
    wrong={
        "a box from x0 to x1 is x1 - x0 + 1 pixels wide": lambda single, box: max(_threshold_ious(single, box, end=0)),
        "x counts columns and y counts rows": lambda single, box: max(_threshold_ious(single, box, exchanged=True)),
        "scale the map to 0 ... 1 first": lambda single, box: max(_threshold_ious(single, box, scaled=False)),
        "take the best threshold, not the mean over thresholds": lambda single, box: sum(ious := _threshold_ious(single, box)) / len(ious),
        "take the best threshold, not the first": lambda single, box: _threshold_ious(single, box)[0],
    },
)
def box_of_map(single, box):
    """16: the best IoU, over the thresholds 0, 0.05, ..., of the box around all pixels of a map Float[H, W] that lie above the threshold,
    after the map is scaled to 0 ... 1, with a true box Long[4]; ends are included."""
    return max(_threshold_ious(single, box))


# ---- 17 discovery ----------------------------------------------------------------------------------------------------------------


@exercise(wrong={"of equal degrees the first patch counts": (34, 35), "each patch resembles the seed, so each is in the mask": (0, 1)})
def lost_of_equal_keys():
    """17: LOST's seed and the patches in its mask where all keys are equal, on 5 x 7 patches."""
    found = lost(torch.ones(35, 2), (5, 7))
    return found.seed, int(found.mask.sum())


@exercise(
    wrong={
        "this would be right, but the released code takes the background where there is one component": [48, 32, 80, 64],
        "in pixels: a patch has 16": [0, 0, 8, 6],
        "first x and then y": [0, 0, 96, 128],
    }
)
def official_box():
    """17: the box of DINO-seg's released code around a single component."""
    attention = torch.zeros(6, 8)
    attention[2:4, 3:5] = 0.25
    return dino_seg(attention.view(1, -1), (6, 8), mass=1.0, component="official").box.tolist()


def _degree(keys):
    return (keys @ keys.T > 0).sum(1)


@exercise(
    inputs=draw(24, 5),
    wrong={
        "the seed has the lowest degree, not the highest": lambda keys: int(_degree(keys).argsort(descending=True, stable=True)[0]),
        "the degree counts positive products; it is not their sum": lambda keys: int((keys @ keys.T).sum(1).argmin()),
        "of equal degrees the first patch counts": lambda keys: len(keys) - 1 - int(_degree(keys).flip(0).argsort(stable=True)[0]),
        "patches count from 0": lambda keys: lost_seed.reference(keys) + 1,
        "that is the degree of the seed: give its number": lambda keys: int(_degree(keys).min()),
    },
)
def lost_seed(keys):
    """17: the number of LOST's seed among patches with keys Float[N, D]."""
    return int(_degree(keys).argsort(stable=True)[0])


# ---- 18 depth, cost, gamma -------------------------------------------------------------------------------------------------------


@exercise(tolerance=0.006, wrong={"that is how many SimPools a block costs": 6.0})
def blocks_for_simpool():
    """18: SimPool's parameters in blocks of ViT-S."""
    with torch.device("meta"):
        block = create_model("vit_small_patch16_224", depth=1).blocks[0]
    return (2 * 384**2 + 2 * 384) / sum(p.numel() for p in block.parameters())


@exercise(
    inputs=lambda g: (int(torch.randint(10, 400, (1,), generator=g)),),
    wrong={
        "each linear layer has a bias": lambda d: 12 * d**2 + 4 * d,
        "two LayerNorms have a weight and a bias each": lambda d: 12 * d**2 + 9 * d,
        "the projections to queries, keys and values have biases too": lambda d: 12 * d**2 + 10 * d,
        "no bias and no norm: these are the matrices alone": lambda d: 12 * d**2,
        "the attention has four matrices: queries, keys, values and the output": lambda d: 11 * d**2 + 12 * d,
    },
)
def block_parameters(d):
    """18: the number of parameters of a ViT's block of width d, whose MLP is four times as wide."""
    with torch.device("meta"):
        return sum(p.numel() for p in Block(d, 1, qkv_bias=True).parameters())


# ---- 19 beyond -------------------------------------------------------------------------------------------------------------------


@exercise(
    wrong={
        "SimPool's gain less [CLS]'s gain, not the other way round": 1,
        "that is the best against the worst; SimPool changes the features as well": 4,
        "that is what AttMask-High gains with SimPool; [CLS] gains something as well": 2,
    }
)
def guidance():
    """19: a difference of differences."""
    return (34 - 32) - (33 - 30)


@exercise(
    inputs=lambda g: (torch.rand(5, 20, generator=g) < 0.4, torch.rand(5, 20, generator=g) < torch.rand(5, 1, generator=g)),
    wrong={
        "a part of the objects' patches, not of the hidden ones": lambda mask, objects: 100 * ((mask & objects).sum() / mask.sum()).item(),
        "in percent": lambda mask, objects: ((mask & objects).sum() / objects.sum()).item(),
        "count over all images together": lambda mask, objects: 100 * ((mask & objects).sum(1) / objects.sum(1).clamp(min=1)).mean().item(),
        "a part of the objects' patches, not of all": lambda mask, objects: 100 * (mask & objects).double().mean().item(),
        "that is the part that stays visible": lambda mask, objects: 100 * ((~mask & objects).sum() / objects.sum()).item(),
    },
)
def hidden_share(mask, objects):
    """19: the part of the objects' patches, Bool[B, N], that a mask Bool[B, N] hides, in percent."""
    return 100 * ((mask & objects).sum() / objects.sum()).item()


# ---- 99 the report ---------------------------------------------------------------------------------------------------------------


@exercise(
    tolerance=0.02,
    wrong={
        "with three seeds take Student's t in place of 1.96": 1.96 / 3**0.5,
        "the standard deviation of a mean is smaller by the root of n": 4.303,
        "three values leave two degrees of freedom": float(stats.t.ppf(0.975, 3)) / 3**0.5,
    },
)
def smallest_reproduced():
    """99: half the width of the 95% interval of three values with standard deviation 1."""
    return interval([-1.0, 0.0, 1.0]).high

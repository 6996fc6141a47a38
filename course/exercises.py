"""Checks that tell a student whether an exercise's answer is right. Each notebook asks; ``notebooks/solutions`` answers."""

from collections.abc import Callable

import torch

from lib.distillation.losses import DINOLoss
from lib.evaluation import dino_seg, in9_class, lost, region_similarity, revisited_map
from lib.evaluation.backgrounds import background_variants
from lib.evaluation.localization import attention_mass, threshold_ious, trivial_accuracy
from lib.evaluation.segmentation import sliding_window
from lib.learning.contrastive import info_nce
from lib.learning.optimizers import layerwise_optimizer
from lib.masking import attention_mask
from lib.models import create_model
from lib.pooling import create_pooling, landscape, pooling_names
from lib.results.papers import claims, paper_table
from lib.results.verdicts import interval


def check(answer, reference: Callable[[], bool]) -> None:
    """Print whether an answer is right; None is not yet an answer."""
    if answer is None:
        print("not answered yet")
        return
    try:
        right = reference()
    except Exception as error:  # whatever a student's function does
        print(f"not yet: {type(error).__name__}: {error}")
        return
    print("right" if right else "not yet")


def average_distance(answer: float | None) -> None:
    """01: places in which two random orders of nine things differ, on average."""

    def right() -> bool:
        generator = torch.Generator().manual_seed(0)
        orders = torch.rand(4000, 9, generator=generator).argsort(1)
        return abs(answer - (orders[::2] != orders[1::2]).sum(1).double().mean().item()) < 0.1

    check(answer, right)


def blind_contrast(answer: float | None, images: int) -> None:
    """01: the contrastive loss in nats of an encoder that gives all views of a batch the same vector."""
    check(answer, lambda: abs(answer - info_nce(torch.ones(images, 2), torch.ones(images, 2))[0].item()) < 1e-2)


def expected_overlap(answer: float | None) -> None:
    """02: the expected fraction of AttMask-High's tokens that a random mask of ratio 0.3 hides as well."""
    check(answer, lambda: abs(answer - 0.3) < 0.005)


def middle_mask(answer: Callable | None) -> None:
    """02: mask the int(ratio * N) tokens around the median of attention."""

    def right() -> bool:
        for seed in range(5):
            attention = torch.rand(3, 36, generator=torch.Generator().manual_seed(seed))
            mask = answer(attention, 0.3)
            skipped = (36 - 10) // 2
            wanted = attention_mask(attention, (skipped + 10) / 36 + 1e-9, strategy="high") & ~attention_mask(
                attention, skipped / 36 + 1e-9, strategy="high"
            )
            if not torch.equal(mask, wanted):
                return False
        return True

    check(answer, right)


def hint_over_mst(answer: float | None) -> None:
    """06: points of k-NN that iBOT with AttMask-Hint gains over MST, as published."""
    published = paper_table("attmask", "full_imagenet").knn
    check(answer, lambda: abs(answer - (published.ibot_attmask_hint - published.mst)) < 0.05)


def hidden_attention(answer: Callable | None) -> None:
    """06: the part of the attention that lies on the int(ratio * N) least attended patches."""

    def right() -> bool:
        attention = torch.rand(5, 36, generator=torch.Generator().manual_seed(0)) ** 4
        lowest = attention.sort(1).values[:, : int(0.4 * 36)].sum(1) / attention.sum(1)
        return torch.allclose(answer(attention, 0.4), lowest) and torch.allclose(answer(torch.ones(2, 20), 0.25), torch.tensor(0.25))

    check(answer, right)


def collapse_loss(answer: float | None, prototypes: int) -> None:
    """03: the [CLS] loss in nats when all outputs are uniform over K prototypes."""

    def right() -> bool:
        logits = torch.zeros(4, 2, prototypes)
        return abs(answer - DINOLoss(prototypes)(logits, logits[:2], 0.04).item()) < 1e-2

    check(answer, right)


def seeds_needed(answer: int | None, gap: float, spread: float) -> None:
    """04: the fewest seeds with which a gap, at the given standard deviation of the paired differences, is significant."""

    def right() -> bool:
        def lower(n):
            # n values with this mean and exactly this standard deviation
            values = torch.linspace(-1, 1, n, dtype=torch.float64)
            return interval((gap + spread * values / values.std()).tolist()).low

        return lower(answer) > 0 and (answer == 2 or lower(answer - 1) <= 0)

    check(answer, right)


def epochs_saved(answer: float | None, fast: list, slow: list) -> None:
    """05: the first epoch, linearly interpolated, at which the fast curve reaches the slow one's final value."""

    def right() -> bool:
        goal = slow[-1][1]
        for (x0, y0), (x1, y1) in zip(fast, fast[1:]):
            if y1 >= goal > y0:
                return abs(answer - (x0 + (x1 - x0) * (goal - y0) / (y1 - y0))) < 0.05
        return answer == float("inf")

    check(answer, right)


def smallest_gap(answer: str | None) -> None:
    """00: the claim with the smallest positive published gap."""
    gaps = claims().set_index("id").paper_gap
    check(answer, lambda: answer == gaps[gaps > 0].idxmin())


def smallest_reproduced(answer: float | None) -> None:
    """99: half the width of the 95% interval of three values with standard deviation 1."""
    check(answer, lambda: abs(answer - interval([-1.0, 0.0, 1.0]).high) < 0.02)


def norm_softmax(answer) -> None:
    """11: a fifteenth pooling by its declaration."""

    def right() -> bool:
        if "norm_softmax" not in pooling_names():
            return False
        x = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
        attention = x.norm(dim=-1).softmax(1)
        found = create_pooling("norm_softmax", 5)(x)
        same = torch.allclose(found.vector, (attention.unsqueeze(-1) * x).sum(1), atol=1e-6)
        return same and torch.allclose(found.attention.squeeze(1), attention, atol=1e-6)

    check(answer, right)


def gamma_of_root_five(answer) -> None:
    """11: the power of a generalised mean."""
    check(answer, lambda: abs(((1 + 3**answer) / 2) ** (1 / answer) - 5**0.5) < 1e-6)


def margin_over_mean(answer: float | None) -> None:
    """12: SimPool's published accuracy against the mean of the other methods'."""
    accuracy = paper_table("simpool", "framework").accuracy
    check(answer, lambda: abs(answer - (accuracy["simpool"] - accuracy.drop("simpool").mean())) < 0.01)


def cait_and_simpool(answer: set | None) -> None:
    """12: the parts of the algorithm that differ."""
    rows = landscape().loc[["cait", "simpool"], "U0":]
    check(answer, lambda: set(answer) == set(rows.columns[rows.loc["cait"] != rows.loc["simpool"]]))


def extra_parameters(answer: int | None) -> None:
    """13: parameters of ViT-B with SimPool less those with a class token."""

    def right() -> bool:
        with torch.device("meta"):
            counts = [sum(p.numel() for p in create_model("vit_base_patch16_224", pooling=name).parameters()) for name in ("simpool", None)]
        return answer == counts[0] - counts[1]

    check(answer, right)


def largest_gain(answer: str | None) -> None:
    """14: the architecture that gains most k-NN from SimPool in the paper."""
    table = paper_table("simpool", "self_supervised")
    check(answer, lambda: answer == (table.loc["simpool"] - table.loc["baseline"]).filter(like="knn").idxmax().removesuffix("_knn"))


def background_only(same: float | None, random: float | None, following: float | None) -> None:
    """07: accuracy of a classifier of backgrounds, measured on images of one colour a class."""

    def right() -> bool:
        labels = torch.arange(200) % 10
        images = (20 * labels).byte().view(-1, 1, 1, 1).expand(-1, 3, 16, 16).contiguous()
        masks = torch.zeros(200, 16, 16, dtype=torch.bool)
        masks[:, 4:8, 4:8] = True
        boxes = torch.tensor([4.0, 4, 8, 8]).expand(200, 4)
        made = background_variants(images, masks, boxes, labels, num_classes=10, generator=torch.Generator().manual_seed(0))
        seen = {name: 100 * (changed[:, 0, 0, 0] // 20 == labels).double().mean().item() for name, changed in made.items()}
        return all(abs(answer - seen[name]) < 6 for name, answer in (("MS", same), ("MR", random), ("MN", following)))

    check(None if None in (same, random, following) else same, right)


def peacock(answer: int | None) -> None:
    """07: ImageNet-9's class of class 84 of ImageNet-1k."""
    check(answer, lambda: answer == in9_class(84))


def third_alone(answer: float | None) -> None:
    """08: average precision in percent of a single positive at the third place."""
    truth = [dict(easy=[2], hard=[], junk=[])]
    check(answer, lambda: abs(answer - revisited_map(torch.arange(4)[:, None], truth)) < 0.1)


def random_ranking(answer: float | None) -> None:
    """08: mean average precision in percent where the one positive of 160 images is at each place once."""

    def right() -> bool:
        truths = [dict(easy=[place], hard=[], junk=[]) for place in range(160)]
        return abs(answer - revisited_map(torch.arange(160)[:, None].expand(160, 160), truths)) < 0.05

    check(answer, right)


def farthest_move(answer: int | None) -> None:
    """09: pixels from the farthest patch of the window."""
    check(answer, lambda: answer == 12 * 16)


def windows(answer: int | None) -> None:
    """10: windows of 512 pixels, moved by 341, that cover 512 x 683 pixels."""

    def right() -> bool:
        seen = []
        sliding_window(lambda view: seen.append(view) or view, torch.zeros(1, 3, 512, 683), window=512, stride=341)
        return answer == len(seen)

    check(answer, right)


def lowest_rate(answer: float | None) -> None:
    """10: the part of the peak rate at which the patch embedding of a ViT of twelve blocks learns under a layer decay of 0.8."""

    def right() -> bool:
        groups = layerwise_optimizer(create_model("vit_nano", depth=12), 0.8, torch.nn.Linear(2, 2)).param_groups
        return abs(answer / min(group["lr_scale"] for group in groups) - 1) < 0.02

    check(answer, right)


def moved_square(answer: float | None) -> None:
    """09: J of a square of 10 pixels that is 5 pixels aside."""

    def right() -> bool:
        masks = torch.zeros(2, 20, 30, dtype=torch.bool)
        masks[0, 5:15, 5:15] = masks[1, 5:15, 10:20] = True
        return abs(answer - region_similarity(*masks)) < 0.005

    check(answer, right)


def even_attention_mass(answer: float | None) -> None:
    """15: attention mass of an even map, in percent."""
    check(answer, lambda: abs(answer - 30) < 1)


def whole_image_levels(answer: list[float] | None) -> None:
    """16: the IoU levels at which the whole image meets a box of 45% of it."""

    def right() -> bool:
        figures = trivial_accuracy([torch.tensor([[0, 0, 99, 44]])], image_size=100)["whole image"]
        return sorted(answer) == [level for level, value in figures.items() if level != "mean" and value == 100]

    check(answer, right)


def part_of_an_object(mass: float | None, iou: float | None) -> None:
    """16: attention mass, in percent, and the best IoU of a map that is bright on a quarter of the object's square box."""

    def right() -> bool:
        maps, objects = torch.zeros(1, 64, 64), torch.zeros(1, 64, 64)
        maps[:, 8:24, 8:24] = objects[:, 8:40, 8:40] = 1
        best = threshold_ious(maps, [torch.tensor([[8, 8, 39, 39]])], image_size=64).max().item()
        return abs(mass - 100 * attention_mass(maps, objects).item()) < 1 and abs(iou - best) < 0.04

    check(None if None in (mass, iou) else mass, right)


def lost_of_equal_keys(seed: int | None, size: int | None) -> None:
    """17: LOST where all keys are equal, on 5 x 7 patches."""
    found = lost(torch.ones(35, 2), (5, 7))
    check(None if seed is None or size is None else (seed, size), lambda: (seed, size) == (found.seed, int(found.mask.sum())))


def official_box(answer: list[float] | None) -> None:
    """17: the box of DINO-seg's released code around a single component."""

    def right() -> bool:
        attention = torch.zeros(6, 8)
        attention[2:4, 3:5] = 0.25
        return list(answer) == dino_seg(attention.view(1, -1), (6, 8), mass=1.0, component="official").box.tolist()

    check(answer, right)


def blocks_for_simpool(answer: float | None) -> None:
    """18: SimPool's parameters in blocks of ViT-S."""

    def right() -> bool:
        with torch.device("meta"):
            block = create_model("vit_small_patch16_224", depth=1).blocks[0]
        return abs(answer - (2 * 384**2 + 2 * 384) / sum(p.numel() for p in block.parameters())) < 0.006

    check(answer, right)


def guidance(answer: float | None) -> None:
    """19: a difference of differences."""
    check(answer, lambda: answer == (34 - 32) - (33 - 30))

"""Semantic segmentation by fine-tuning: UPerNet on a simple feature pyramid.

Source: AttMask, appendix (ADE20K, after iBOT). The UPerNet head (Xiao et al., ECCV 2018) is that of segmentation_models_pytorch. The papers
use the maps of four blocks; here it is ViTDet's pyramid.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from lib.data.segmentation import VOID, SemanticDataset
from lib.data.views import normalise
from lib.evaluation.base import DEFAULT, Context, Inputs
from lib.evaluation.finetuned import FineTunedEvaluation
from lib.keys import Count, In, Part, Positive
from lib.learning.base import Learner, TrainingConfig
from lib.learning.optimizers import layerwise_optimizer
from lib.models import Model
from lib.models.pyramid import SimplePyramid


@dataclass(frozen=True, kw_only=True)
class SegmentationSettings(TrainingConfig):
    """Settings of the measurement ``segmentation``. ``canvas`` is the shorter side of the images, ``train_size`` the side of the crops,
    ``eval_size`` the side of the sliding window.
    """

    FORMER = {"knn_epochs": 0, "knn_k": [1], "eval_crop": 1.0}

    batch_size: Annotated[int, In("[2, inf)")]  # images a step, over all processes; UPerNet's batch norms need two
    num_classes: Count
    void: int  # value of mask pixels that are ignored; -1 is none
    layer_decay: Part  # factor of the learning rate from each layer to the one below it; 1 is none
    width: Count  # channels of the pyramid and the head
    resize: list[Positive]  # bounds of the factor by which training images are resized

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.resize) != 2 or self.resize[0] > self.resize[1]:
            raise ValueError(f"resize: got {self.resize}, accepts two factors, the smaller one first")


class Segmenter(nn.Module):
    """Normalised images Float[B, 3, h, w] -> logits Float[B, C, h, w]; h and w are multiples of ``multiple``."""

    def __init__(self, network: Model, width: int, num_classes: int):
        super().__init__()
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

        self.pyramid = SimplePyramid(network, width)
        self.multiple = self.pyramid.multiple
        self.decoder = UPerNetDecoder([0, 0, *[width] * 4], encoder_depth=5, decoder_channels=width)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = list(self.pyramid(images).values())
        logits = self.classifier(self.decoder([None, None, *maps]))
        return F.interpolate(logits, images.shape[-2:], mode="bilinear")


class Segmentation(Learner):
    """A ``Segmenter`` that starts from a network, which is trained with it."""

    encoder: Segmenter

    def __init__(self, config: SegmentationSettings, network: Model):
        super().__init__()
        self.config, size = config, config.train_size
        self.encoder = Segmenter(network, config.width, config.num_classes)
        for name in ("train_size", "eval_size"):
            if getattr(config, name) % self.encoder.multiple:
                raise ValueError(f"{name}: got {getattr(config, name)}, this network accepts multiples of {self.encoder.multiple}")
        shortest = config.canvas * torch.tensor(config.resize)
        # The draws come from torch's global generator, which the training loop seeds for each step.
        self.augment = v2.Compose(
            [
                v2.RandomResize(int(shortest[0]), int(shortest[1]) + 1),
                v2.RandomCrop(size, pad_if_needed=True, fill={tv_tensors.Mask: VOID, "others": 0}),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(0.4, 0.4, 0.4),
            ]
        )

    def make_optimizer(self) -> torch.optim.Optimizer:
        pyramid, decoder, classifier = self.encoder.pyramid, self.encoder.decoder, self.encoder.classifier
        return layerwise_optimizer(pyramid.network, self.config.layer_decay, pyramid.levels, decoder, classifier)

    def forward(
        self, images: list[Tensor], sizes: Tensor, targets: list[Tensor], step: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Cross-entropy over the pixels of a random crop of each image, without void."""
        crops, masks = [], []
        for image, classes in zip(images, targets):
            classes = F.interpolate(classes[None, None].float(), image.shape[-2:], mode="nearest-exact")[0].byte()
            crop, mask = self.augment(tv_tensors.Image(image), tv_tensors.Mask(classes))
            crops.append(crop)
            masks.append(mask[0])
        logits, truth = self.encoder(normalise(torch.stack(crops).float() / 255)), torch.stack(masks).long()
        return {"loss": F.cross_entropy(logits, truth, ignore_index=VOID, reduction="sum") / (truth != VOID).sum().clamp(min=1)}


@torch.no_grad()
def sliding_window(segmenter: nn.Module, image: Tensor, *, window: int, stride: int) -> Tensor:
    """The mean logits of a segmenter over windows that cover an image; the last windows end at the edges of the image.

    Args:
        segmenter: Float[1, 3, window, window] -> Float[1, C, window, window].
        image: Float[1, 3, h, w], normalised; a side shorter than the window is padded with 0, the mean colour.
        window, stride: pixels a side, and from one window to the next.

    Returns:
        Float[1, C, h, w].
    """
    if not 1 <= stride <= window:
        raise ValueError(f"stride: got {stride}, accepts 1 to {window}, the window")
    height, width = image.shape[-2:]
    image = F.pad(image, (0, max(0, window - width), 0, max(0, window - height)))
    total, count = image.new_zeros(()), image.new_zeros(())
    tops, lefts = ([*range(0, length - window, stride), length - window] for length in image.shape[-2:])
    for top in tops:
        for left in lefts:
            edges = (left, image.shape[-1] - window - left, top, image.shape[-2] - window - top)
            logits = segmenter(image[..., top : top + window, left : left + window])
            total, count = total + F.pad(logits, edges), count + F.pad(torch.ones_like(logits[:, :1]), edges)
    return (total / count)[..., :height, :width]


@torch.no_grad()
def segment(segmenter: nn.Module, image: Tensor, size: tuple[int, int], *, window: int) -> Tensor:
    """The class of every pixel of the original of ``size`` (H, W), Long[H, W], by a ``sliding_window`` with a stride of two thirds of it over
    an image uint8[3, h, w]; the segmenter is in evaluation mode.
    """
    view = normalise(image[None].float() / 255)
    logits = sliding_window(segmenter, view, window=window, stride=max(1, round(2 * window / 3)))
    return F.interpolate(logits, size, mode="bilinear")[0].argmax(0)


def mean_iou(segmenter: nn.Module, dataset: SemanticDataset, *, window: int, progress: bool = False) -> dict[str, float]:
    """Mean over classes of the intersection over union of predicted and true pixels, both counted over the whole test set.

    The segmenter is left in evaluation mode; ``window`` as of ``segment``.

    Returns:
        ``miou`` over the classes that are predicted or true somewhere, and ``pixel_accuracy``, in percent; ``images``, and ``left_out``,
        the number of images that could not be read; a ``Damage`` warning names each.
    """
    segmenter.eval()
    classes = dataset.num_classes
    confusion = torch.zeros(classes, classes, dtype=torch.int64)  # [true, predicted]
    images = 0
    for image, size, truth in dataset.intact("segmentation" if progress else None):
        images += 1
        predicted, counts = segment(segmenter, image, size, window=window), truth != VOID
        confusion += torch.bincount(truth[counts] * classes + predicted[counts], minlength=classes**2).view(classes, classes).cpu()
    if not confusion.sum():
        raise ValueError(f"dataset: got {len(dataset)} without a pixel that counts, accepts at least one")
    shared = confusion.diag().double()
    union = confusion.sum(0) + confusion.sum(1) - shared
    figures = {"miou": 100 * (shared / union)[union > 0].mean().item(), "pixel_accuracy": 100 * (shared.sum() / confusion.sum()).item()}
    return figures | {"images": float(images), "left_out": float(len(dataset) - images)}


class SemanticSegmentation(FineTunedEvaluation, name="segmentation"):
    """``mean_iou`` of a segmenter that is trained starting from the network."""

    settings: SegmentationSettings
    Settings = SegmentationSettings
    learner_class = Segmentation
    once = ("images", "left_out")

    def load(self, *, progress: bool = False, **options: Any) -> Inputs:
        settings = self.settings
        options |= dict(shortest=settings.canvas, void=settings.void, num_classes=settings.num_classes)
        train, test = SemanticDataset.splits(settings.data, settings.fraction, **options)
        return Inputs(test, train, {"train": train.fingerprint, "test": test.fingerprint})

    def measure(self, network: Model, inputs: Inputs, context: Context = DEFAULT) -> dict[str, float] | None:
        learner = self.trained(network, inputs, context)
        if learner is None:
            return None
        return mean_iou(learner.encoder, inputs.test, window=self.settings.eval_size, progress=context.progress)

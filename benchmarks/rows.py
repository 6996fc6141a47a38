"""What is compared with what."""

import torch
from torch import Tensor
from torchvision.transforms import v2

from benchmarks import literal, literal_evaluation
from benchmarks.measure import Row
from lib import recipes
from lib.data.views import make_views, multi_crop_recipe, normalise
from lib.distillation.methods import Distillation
from lib.engine.seeds import seed_step
from lib.evaluation import knn_predict, lost, max_box_accuracy, propagate_labels
from lib.learning.optimizers import clip_each, make_optimizer
from lib.models import create_model
from lib.train import build, configure

# ViT-Ti/16 at 224 px, 2 global and 6 local crops, K = 8192, 8 images
STEP = dict(
    arch="vit_tiny_patch16_224",
    patch_size=16,
    train_size=224,
    local_size=96,
    local_crops=6,
    out_dim=8192,
    hidden_dim=2048,
    bottleneck_dim=256,
)
STEP |= dict(canvas=256, batch_size=8, drop_path=0.0, precision="float32", compile=False)


def _learner(device, **overrides) -> Distillation:
    config = configure(recipes.entry("small/ibot"), STEP | overrides)
    return build(config, 1000, device).train()


def _images(count: int, size: int, device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, size // 8, size // 8, generator=generator)
    return (torch.nn.functional.interpolate(coarse, size=size, mode="bilinear") * 255).byte().to(device)


def _training_step(images: Tensor, learner: Distillation, forward=None, optimizer=None, update=None):
    """A function that makes one whole step; whoever calls it sees the same views and masks every time."""
    forward = forward or (lambda pixels, generator: learner(pixels, None, None, 0, generator))
    optimizer = optimizer or make_optimizer(learner)
    update = update or _fused_update

    def step() -> dict:
        losses = forward(images, seed_step(0, 0))
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        update(learner, optimizer)
        return losses

    return step


def _fused_update(learner: Distillation, optimizer) -> None:
    clip_each([p for p in learner.parameters() if p.requires_grad], 3.0)
    optimizer.step()
    learner.after_update(0)


def ibot_step(device):
    images = _images(8, 256, device)
    plain, ours = (_learner(device, masking="attmask_high") for _ in range(2))
    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], foreach=False)
    return _training_step(images, plain, literal.LiteralStep(plain), optimizer, literal.update), _training_step(images, ours)


def attmask_cost(device):
    images = _images(8, 256, device)
    return [_training_step(images, _learner(device, masking=masking)) for masking in ("attmask_high", "random")]


def views(device):
    """torchvision's pipeline an image, in a DataLoader of two workers, against batched views."""
    images = _images(128, 112, "cpu")
    recipe = sum(multi_crop_recipe(64, 32, 4, (0.25, 1.0), (0.05, 0.25)), [])
    pipelines = [literal.torchvision_pipeline(view) for view in recipe]
    pictures = [v2.functional.to_pil_image(image) for image in images]
    loader = torch.utils.data.DataLoader(literal.Crops(pictures, pipelines), batch_size=64, num_workers=2, persistent_workers=True)
    batches = images.to(device).split(64)

    def batched():
        return [make_views(batch, recipe, generator=torch.Generator().manual_seed(0)) for batch in batches]

    return (lambda: [[crop.to(device) for crop in batch] for batch in loader]), batched


def _classifier_step(pooling: str | None, device):
    """A supervised step of ViT-S/16 at 224 px on two images."""
    torch.manual_seed(0)
    options = dict(gamma=1.25) if pooling == "simpool" else None
    network = create_model("vit_small_patch16_224", pooling=pooling, pooling_options=options, num_classes=1000).to(device).train()
    optimizer = make_optimizer(network)
    images, labels = normalise(_images(2, 224, device).float() / 255), torch.arange(2, device=device)

    def step() -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    return step


def simpool_cls(device):
    return _classifier_step("simpool", device), _classifier_step(None, device)


def simpool_gap(device):
    return _classifier_step("simpool", device), _classifier_step("gap", device)


def localization(device):
    """Smooth maps at 224 px with a thousand thresholds."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(16, 14, 14, generator=generator)
    ends = 224 * torch.rand(16, 2, 2, generator=generator)
    boxes = [torch.cat([low, high]).long()[None] for low, high in zip(ends.amin(1), ends.amax(1))]
    return (lambda: literal_evaluation.max_box_accuracy(maps, boxes)), (lambda: max_box_accuracy(maps, boxes))


def discovery(device):
    features, grid = torch.randn(20 * 15, 64, generator=torch.Generator().manual_seed(0)).to(device), (20, 15)
    return (lambda: literal_evaluation.lost(features, grid)), (lambda: lost(features, grid).box.tolist())


def video(device):
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(12 * 16, 64, generator=generator).to(device) for _ in range(4)]
    first = torch.rand(2, 12, 16, generator=generator).to(device)
    plain, ours = literal_evaluation.propagate_labels, propagate_labels
    return (lambda: plain(features, first, (12, 16), radius=4)), (lambda: ours(features, first, (12, 16), radius=4))


def knn(device):
    """A bank of the size of ImageNet-1k's training set, 1.97 GB."""
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(1_281_167, 384, generator=generator).to(device), torch.randn(64, 384, generator=generator).to(device)
    labels = torch.randint(1000, (len(bank),), generator=generator).to(device)
    return (lambda: literal_evaluation.knn_predict(bank, labels, queries)), (lambda: knn_predict(bank, labels, queries, num_classes=1000))


ROWS = {
    "ibot_step": Row("iBOT step: literal / ours", "time >= 1.8, memory >= 1.54", ibot_step, memory=True),
    "views": Row("multi-crop: torchvision an image, 2 workers / ours", "time >= 4", views),
    "simpool_cls": Row("ViT-S/16 step: SimPool / [CLS]", "time <= 1.05", simpool_cls, memory=True, metric="simpool_step_ratio"),
    "simpool_gap": Row("ViT-S/16 step: SimPool / GAP", "time <= 1.05", simpool_gap, memory=True),
    "localization": Row("MaxBoxAccV2, 16 maps: a search a threshold / ours", "time >= 10", localization),
    "discovery": Row("LOST: loops over patches / ours", "time >= 5", discovery),
    "video": Row("label propagation: loops over patches / ours", "time >= 5", video),
    "knn": Row("k-NN, 1.28 million vectors: one product / ours", "ours within 4 GB", knn, memory=True),
    "attmask_cost": Row("iBOT step: AttMask-High / random masking", "time <= 1.01", attmask_cost, metric="attmask_step_ratio"),
}

"""Masked accuracy: which patches are black, whose attention says so, and what a probe makes of the rest."""

import pytest
import torch

from lib.data import Bank
from lib.evaluation import masked
from lib.evaluation.base import Inputs, Origin
from lib.evaluation.features import centre_views, pooled_features
from lib.evaluation.linear import banked, train_probes
from lib.evaluation.masked import MaskedAccuracy, MaskedSettings, blackened
from lib.masking import attention_mask
from lib.measure import create_evaluation
from lib.models import create_model

SETTINGS = dict(
    data="scenes", split="validation", train="train", canvas=32, size=32, crop=1.0, blocks=2, lrs=[0.1, 1.0], epochs=6, batch_size=10
)


def measurement(**settings) -> MaskedAccuracy:
    return MaskedAccuracy(MaskedSettings.of("test", SETTINGS | dict(ratios=[0.0, 0.5, 0.75], reference="own"), settings), Origin())


def bank_of(seed, count=30) -> Bank:
    """Images of three colours, the class, with noise."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(120, (count, 3, 32, 32), generator=g)
    images[torch.arange(count), labels] += 100
    return Bank(images.byte(), torch.full((count, 2), 32), labels, str(seed))


def network(seed=0):
    torch.manual_seed(seed)
    return create_model("vit_nano", img_size=32).eval()


def literal(measured, reference, ratio, train, test):
    """Accuracy of the better of the two probes on images whose most attended patches are black."""
    features = pooled_features(measured, train, size=32, crop=1.0, blocks=2), pooled_features(measured, test, size=32, crop=1.0, blocks=2)
    probes = train_probes(banked(*features[0], batch_size=10), features[1], num_classes=3, lrs=[0.1, 1.0], epochs=6)
    [(views, labels)] = centre_views(measured, test, 32, 1.0, 100)
    attention = reference.features(views).attention.mean(1)
    order = attention.argsort(1, descending=True)[:, : int(ratio * 16)]
    pixels = views.clone()
    for image, patches in zip(pixels, order):
        for patch in patches.tolist():
            row, column = divmod(patch, 4)
            for channel, value in enumerate((-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225)):
                image[channel, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = value
    right = probes.classifiers[probes.best](measured.last_cls(pixels, 2)).argmax(1) == labels
    return 100 * right.double().mean().item()


@torch.no_grad()
def test_the_figures_equal_literal_ones(monkeypatch):
    train, test, measured, other = bank_of(0), bank_of(1), network(), network(3)
    figures = measurement().measure(measured, Inputs(test, train))
    assert figures["masked_0"] == pytest.approx(figures["linear"]) and figures["linear"] > 60
    for ratio in (0.0, 0.5, 0.75):
        with torch.enable_grad():
            assert figures[f"masked_{round(100 * ratio)}"] == pytest.approx(literal(measured, measured, ratio, train, test))
    asked = []
    monkeypatch.setattr(masked, "create_model", lambda arch, **options: asked.append((arch, options)) or other)
    found = measurement(reference="vit_base_patch16_224.dino").measure(measured, Inputs(test, train))
    assert asked == [("vit_base_patch16_224.dino", dict(img_size=32, pretrained=True))]
    with torch.enable_grad():
        assert found["masked_75"] == pytest.approx(literal(measured, other, 0.75, train, test))


def test_black_patches_are_black_and_the_others_as_they_were():
    views = torch.randn(2, 3, 8, 12)
    mask = attention_mask(torch.rand(2, 6), 0.5, strategy="high")
    found, hidden = blackened(views, mask, (2, 3)), mask.view(2, 2, 3).repeat_interleave(4, 1).repeat_interleave(4, 2)
    black = torch.tensor([-2.1179, -2.0357, -1.8044]).view(3, 1, 1).expand(2, 3, 8, 12)
    torch.testing.assert_close(found, torch.where(hidden[:, None], black, views), rtol=0, atol=1e-4)


def test_wrong_settings_and_networks_without_attention_are_refused():
    for ratios in ([], [1.0], [-0.1]):
        with pytest.raises(ValueError, match="ratios: got"):
            measurement(ratios=ratios)
    without = create_model("vit_nano", img_size=32, pooling="se")
    with pytest.raises(ValueError, match="network: got one without attention"):
        measurement().measure(without, Inputs(bank_of(1), bank_of(0)))
    assert create_evaluation("masked_accuracy", "paper").settings.reference == "vit_base_patch16_224.dino"
    assert create_evaluation("masked_accuracy", "smoke").settings.reference == "own"

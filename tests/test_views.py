"""Augmented views against torchvision's own, and what must not leak between images."""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from lib.data import views
from lib.data.views import View, center_view, denormalise, make_views, multi_crop_recipe, normalise, resize_matrix, separable

PLAIN = dict(flip=0.0, jitter_probability=0.0, grey=0.0)
GLOBAL, LOCAL = multi_crop_recipe(32, 16, 2, (0.25, 1.0), (0.05, 0.25))


def noise(batch: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (batch, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def resized(x: torch.Tensor, size: tuple[int, int] | list[int]) -> torch.Tensor:
    return reference.resize(x, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)


class Replayed(views._Draw):
    """The draws of a batch of 8, dealt out to the images ``chosen`` from it."""

    def __init__(self, chosen, seed=0):
        super().__init__(len(chosen), draws(seed), torch.device("cpu"))
        self.chosen = torch.as_tensor(chosen)

    def uniform(self, low=0.0, high=1.0):
        return low + (high - low) * torch.rand(8, generator=self.generator)[self.chosen]


# ---- resampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("canvas, size", [(64, 32), (64, 48), (64, 96), (40, 224), (112, 17)])
def test_crops_are_torchvisions_antialiased_resize_of_the_crop(canvas, size):
    images = noise(3, canvas).float() / 255
    top, left, height, width = [0, 5, canvas // 2], [0, 11, 3], [canvas, canvas // 3, canvas // 2], [canvas, canvas // 2, 7]
    rows = resize_matrix(torch.tensor(top).float(), torch.tensor(height).float(), canvas, size)
    columns = resize_matrix(torch.tensor(left).float(), torch.tensor(width).float(), canvas, size)
    ours = separable(images, rows, columns)
    for i in range(3):
        crop = images[i, :, top[i] : top[i] + height[i], left[i] : left[i] + width[i]]
        assert_close(ours[i], resized(crop, (size, size)), atol=1e-4, rtol=0)


def test_rows_of_a_resize_matrix_sum_to_one_and_stay_in_the_crop():
    weights = resize_matrix(torch.tensor([0.0, 3.3, 20.0]), torch.tensor([32.0, 7.2, 5.0]), 32, 12)
    assert_close(weights.sum(-1), torch.ones(3, 12))
    assert (weights[1, :, :3] == 0).all() and (weights[1, :, 11:] == 0).all()
    assert (weights[2, :, :20] == 0).all() and (weights[2, :, 25:] == 0).all()


def test_a_flip_mirrors_only_the_chosen_images():
    images = noise(2, 24).float() / 255
    start, length = torch.zeros(2), torch.full((2,), 24.0)
    rows = resize_matrix(start, length, 24, 16)
    columns = resize_matrix(start, length, 24, 16, torch.tensor([True, False]))
    plain, flipped = separable(images, rows, rows), separable(images, rows, columns)
    assert_close(flipped[0], reference.horizontal_flip(plain[0]))
    assert_close(flipped[1], plain[1])


def test_a_view_of_everything_is_the_resized_image():
    images = noise(2, 64)
    (view,) = make_views(images, [View(48, (1.0, 1.0), ratio=(1.0, 1.0), **PLAIN)], generator=draws())
    assert_close(denormalise(view), resized(images.float() / 255, (48, 48)).clamp(0, 1), atol=1e-4, rtol=0)
    (mirrored,) = make_views(images, [View(48, (1.0, 1.0), ratio=(1.0, 1.0), **PLAIN | {"flip": 1.0})], generator=draws())
    assert_close(mirrored, view.flip(-1), atol=1e-5, rtol=0)


def test_the_centre_view_is_resize_and_centre_crop():
    for size, crop, canvas in ((56, 0.875, 64), (28, 0.875, 64), (84, 0.75, 56)):
        images = noise(2, canvas)
        whole = resized(images.float() / 255, (round(size / crop), round(size / crop)))
        expected = normalise(reference.center_crop(whole, [size, size]).clamp(0, 1))
        assert_close(center_view(images, size, crop=crop), expected, atol=1e-3, rtol=0)


def test_the_centre_view_keeps_the_aspect_ratio_of_the_original():
    """A tall original, squeezed onto the canvas, comes out as torchvision shows the original itself."""
    small = torch.rand(1, 3, 8, 4, generator=draws())
    original = resized(small, (96, 48)).clamp(0, 1)  # smooth, so that squeezing loses little
    canvas = (resized(original, (64, 64)).clamp(0, 1) * 255).round().byte()
    expected = reference.center_crop(resized(original, (64, 32)), [32, 32]).clamp(0, 1)
    ours = denormalise(center_view(canvas, 32, crop=1.0, sizes=torch.tensor([[96, 48]])))
    assert (ours - expected).abs().mean() < 0.01
    assert (denormalise(center_view(canvas, 32, crop=1.0)) - expected).abs().mean() > 0.03


# ---- augmentations ----------------------------------------------------------------------------------------------------


def toned(change: int, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return views._tone(x, torch.full((len(x),), change), factor)


CHANGES = {
    "brightness": (partial(toned, 0), reference.adjust_brightness, [0.6, 1.0, 1.4]),
    "contrast": (partial(toned, 1), reference.adjust_contrast, [0.6, 1.0, 1.4]),
    "saturation": (partial(toned, 2), reference.adjust_saturation, [0.8, 1.0, 1.2]),
    "hue": (views._hue, reference.adjust_hue, [-0.1, 0.0, 0.37]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_colour_changes_are_torchvisions(name):
    ours, theirs, factors = CHANGES[name]
    images = torch.rand(3, 3, 16, 16, generator=draws())
    images[0, :, :4] = images[0, :1, :4]  # some grey, some saturated
    images[1, 0, :4], images[2] = 1.0, images[2].round()
    changed = ours(images.clone(), torch.tensor(factors).view(-1, 1, 1, 1))
    for i, factor in enumerate(factors):
        assert_close(changed[i], theirs(images[i], factor), atol=3e-4, rtol=0)


def test_grey_and_solarise_are_torchvisions():
    images = torch.rand(4, 3, 16, 16, generator=draws())
    always = dict(flip=0.0, jitter_probability=0.0)
    grey = views._augment(images.clone(), View(16, (1, 1), grey=1.0, **always), Replayed(range(4)))
    assert_close(grey, reference.rgb_to_grayscale(images, num_output_channels=3), atol=3e-4, rtol=0)
    solarised = views._augment(images.clone(), View(16, (1, 1), grey=0.0, solarise=1.0, **always), Replayed(range(4)))
    assert_close(solarised, reference.solarize(images, 0.5))


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_gaussian_away_from_the_edges(sigma):
    images = torch.rand(2, 3, 48, 48, generator=draws())
    view = View(48, (1, 1), blur=1.0, blur_sigma=(sigma, sigma), **PLAIN)
    blurred = views._augment(images.clone(), view, Replayed(range(2)))
    expected = reference.gaussian_blur(images, [23, 23], [sigma, sigma])
    inner = slice(12, 36)
    assert_close(blurred[..., inner, inner], expected[..., inner, inner], atol=1e-4, rtol=0)


def test_jitter_changes_as_many_images_as_asked_and_each_by_its_own_factor():
    images = torch.full((400, 3, 4, 4), 0.4)
    view = View(4, (1, 1), jitter=(0.4, 0.0, 0.0, 0.0), jitter_probability=0.8, grey=0.0)
    bright = views._augment(images.clone(), view, views._Draw(400, draws(), images.device))[:, 0, 0, 0]
    changed = (bright - 0.4).abs() > 1e-6
    assert changed.float().mean().item() == pytest.approx(0.8, abs=0.06)
    assert bright[changed].unique().numel() > 300
    assert 0.24 - 1e-6 <= bright.min() < 0.26 and 0.54 < bright.max() <= 0.56 + 1e-6


def test_the_recipe_is_that_of_dino():
    assert [v.size for v in GLOBAL + LOCAL] == [32, 32, 16, 16]
    assert [v.blur for v in GLOBAL + LOCAL] == [1.0, 0.1, 0.5, 0.5]
    assert [v.solarise for v in GLOBAL + LOCAL] == [0.0, 0.2, 0.0, 0.0]
    for view in GLOBAL + LOCAL:
        assert (view.flip, view.jitter, view.jitter_probability, view.grey) == (0.5, (0.4, 0.4, 0.2, 0.1), 0.8, 0.2)
        assert view.blur_sigma == (0.1, 2.0) and view.ratio == (3 / 4, 4 / 3)


# ---- geometry of random crops -----------------------------------------------------------------------------------------


def crop_boxes(monkeypatch, view: View, sizes: torch.Tensor, canvas: int = 64) -> torch.Tensor:
    """The crops' (top, left, height, width) in pixels of the originals."""
    intervals = []
    inner = views.resize_matrix

    def spy(start, length, *rest):
        intervals.append((start, length))
        return inner(start, length, *rest)

    monkeypatch.setattr(views, "resize_matrix", spy)
    make_views(torch.zeros(len(sizes), 3, canvas, canvas, dtype=torch.uint8), [view], sizes=sizes, generator=draws())
    (top, height), (left, width) = intervals
    rows, columns = sizes[:, 0] / canvas, sizes[:, 1] / canvas
    return torch.stack([top * rows, left * columns, height * rows, width * columns], 1)


@pytest.mark.parametrize("scale", [(0.25, 0.6), (0.05, 0.25)])
@pytest.mark.parametrize("original", [(64, 64), (300, 400)])
def test_crop_areas_are_uniform_over_the_scale_and_fit(monkeypatch, scale, original):
    sizes = torch.tensor([original] * 4000)
    top, left, height, width = crop_boxes(monkeypatch, View(8, scale), sizes).T
    area = height * width / (original[0] * original[1])
    assert scale[0] - 1e-4 <= area.min() and area.max() <= scale[1] + 1e-4
    assert area.mean().item() == pytest.approx(sum(scale) / 2, rel=0.02)
    assert area.std().item() == pytest.approx((scale[1] - scale[0]) / math.sqrt(12), rel=0.05)
    aspect = (width / height).log()
    assert aspect.abs().max() <= math.log(4 / 3) + 1e-3 and abs(aspect.mean()) < 0.02
    assert top.min() >= 0 and left.min() >= 0
    assert (top + height).max() <= original[0] + 1e-2 and (left + width).max() <= original[1] + 1e-2
    where = (left / (original[1] - width))[width < 0.99 * original[1]]
    assert where.mean().item() == pytest.approx(0.5, abs=0.02)


def test_originals_of_extreme_shape_still_give_crops(monkeypatch):
    sizes = torch.tensor([[10, 500], [500, 10], [1, 64]])
    top, left, height, width = crop_boxes(monkeypatch, View(8, (0.9, 1.0)), sizes).T
    assert (height > 0).all() and (width > 0).all()
    assert (top + height <= sizes[:, 0] + 1e-3).all() and (left + width <= sizes[:, 1] + 1e-3).all()
    (view,) = make_views(noise(3, 64), [View(8, (0.9, 1.0))], sizes=sizes, generator=draws())
    assert view.isfinite().all()


# ---- randomness and independence --------------------------------------------------------------------------------------


def test_views_follow_from_the_generator_alone():
    images = noise(6, 48)
    first, again, other = (make_views(images, GLOBAL + LOCAL, generator=draws(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not any(torch.equal(a, b) for a, b in zip(first, other))
    torch.manual_seed(5)
    unseeded = make_views(images, GLOBAL)
    torch.manual_seed(5)
    assert all(torch.equal(a, b) for a, b in zip(unseeded, make_views(images, GLOBAL)))


def test_global_randomness_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    make_views(noise(2, 32), GLOBAL + LOCAL, generator=draws())
    assert torch.equal(before, torch.get_rng_state())


def test_images_of_a_batch_do_not_leak_into_each_other():
    images = noise(8, 48)
    before = images.clone()
    plain = make_views(images, GLOBAL + LOCAL, generator=draws())
    assert torch.equal(images, before)
    for changed in (0, 5):
        others = [i for i in range(8) if i != changed]
        disturbed = images.clone()
        disturbed[changed] = noise(1, 48, seed=9)[0]
        for a, b in zip(plain, make_views(disturbed, GLOBAL + LOCAL, generator=draws())):
            assert torch.equal(a[others], b[others])
            assert not torch.equal(a[changed], b[changed])


@pytest.mark.parametrize("chosen", [[3, 1, 7, 0, 2, 6, 5, 4], [6], [2, 2, 5]])
def test_a_view_is_the_same_at_any_place_of_a_batch(chosen):
    pixels, sizes = noise(8, 48).float() / 255, torch.tensor([[48, 60]] * 8)
    for view in (*GLOBAL, LOCAL[0]):
        results = []
        for places in (list(range(8)), chosen):
            draw = Replayed(places)
            results.append(views._augment(views._crop(pixels[places], view, sizes[places], draw), view, draw))
        assert_close(results[1], results[0][chosen], atol=1e-5, rtol=0)


def test_views_have_the_asked_shapes_and_are_in_range():
    for batch in (1, 5):
        made = make_views(noise(batch, 40), GLOBAL + LOCAL, sizes=torch.tensor([[30, 50]] * batch), generator=draws())
        assert [tuple(v.shape) for v in made] == [(batch, 3, 32, 32)] * 2 + [(batch, 3, 16, 16)] * 2
        for view in made:
            assert view.dtype == torch.float32 and view.isfinite().all()
            raw = view * torch.tensor(views.STD).view(3, 1, 1) + torch.tensor(views.MEAN).view(3, 1, 1)
            assert raw.min() >= -1e-5 and raw.max() <= 1 + 1e-5
    assert_close(denormalise(normalise(torch.full((1, 3, 2, 2), 0.3))), torch.full((1, 3, 2, 2), 0.3))


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 8, 8),
        torch.zeros(3, 8, 8).byte(),
        torch.zeros(2, 1, 8, 8).byte(),
        torch.zeros(2, 3, 8, 9).byte(),
        torch.zeros(0, 3, 8, 8).byte(),
    ],
)
def test_other_images_are_refused(images):
    for call in (lambda: make_views(images, GLOBAL), lambda: center_view(images, 8)):
        with pytest.raises(ValueError, match="images: got .* accepts uint8"):
            call()

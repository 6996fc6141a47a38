"""Augmented views of a whole batch at once, on its device; every image has parameters of its own.

Cropping, resizing and blurring are products with small matrices: an output row is a weighted sum of input rows, and an output column one of
input columns. So one batched matrix product takes B different crops of B images to one size, with the antialiased bicubic weights of Pillow
and torchvision, and another blurs each by its own sigma.

Images are uint8[B, 3, S, S] canvases; ``sizes`` Int[B, 2] are the (height, width) of the originals that were squeezed onto the canvas, so that
crops keep the originals' aspect ratio. Views are Float[B, 3, s, s], normalised by ``MEAN`` and ``STD``.

Source of the augmentations: DINO's and iBOT's released code (random resized crop, flip, colour jitter, grey, blur, solarise).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.tensors import without_autocast

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet-1k
GREY = (0.299, 0.587, 0.114)  # luma weights of ITU-R 601, as in Pillow


@dataclass(frozen=True)
class View:
    """Parameters of one view. Probabilities are in [0, 1]; ``scale`` bounds the crop's area as a fraction of the image's."""

    size: int
    scale: Sequence[float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
    jitter_probability: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    blur_sigma: Sequence[float] = (0.1, 2.0)  # lower and upper bound, in pixels
    solarise: float = 0.0


def multi_crop_recipe(
    global_size: int,
    local_size: int,
    local_crops: int,
    global_scale: Sequence[float],
    local_scale: Sequence[float],
    *,
    blur: Sequence[float] = (1.0, 0.1, 0.5),
    blur_sigma: Sequence[float] = (0.1, 2.0),
    solarise: float = 0.2,
) -> tuple[list[View], list[View]]:
    """DINO's two global views and ``local_crops`` local ones; ``blur`` gives the probabilities of the first, the second and the local ones."""
    first = View(global_size, global_scale, blur=blur[0], blur_sigma=blur_sigma)
    second = View(global_size, global_scale, blur=blur[1], blur_sigma=blur_sigma, solarise=solarise)
    return [first, second], [View(local_size, local_scale, blur=blur[2], blur_sigma=blur_sigma)] * local_crops


def make_views(
    images: Tensor, recipe: list[View], *, sizes: Tensor | None = None, generator: torch.Generator | None = None
) -> list[Tensor]:
    """One view of every image for every entry of ``recipe``.

    Args:
        images: uint8[B, 3, S, S].
        recipe: views to make.
        sizes: Int[B, 2], (height, width) of the originals; None takes them as square.
        generator: source of randomness; None is torch's global one. Only through it do views depend on the rest of the batch.

    Returns:
        A list of Float32[B, 3, size, size].

    Raises:
        ValueError: images that are not uint8[B, 3, S, S].
    """
    check_images(images)
    draw = _Draw(len(images), generator, images.device)
    with without_autocast(images):  # bfloat16 has fewer bits than an image
        pixels = _pixels(images)
        return [normalise(_augment(_crop(pixels, view, sizes, draw), view, draw)) for view in recipe]


def center_view(images: Tensor, size: int, *, crop: float = 0.875, sizes: Tensor | None = None) -> Tensor:
    """The view for evaluation, Float32[B, 3, size, size], normalised: resize the shorter side of images uint8[B, 3, S, S] to ``size / crop``
    (256 for 224), then cut out the centre. ``sizes`` as in ``make_views``.
    """
    check_images(images)
    canvas = images.shape[-1]
    height, width = _extent(images, sizes)
    side = torch.minimum(height, width) * crop  # of the cut, in original pixels
    h, w = side / height * canvas, side / width * canvas
    rows = resize_matrix((canvas - h) / 2, h, canvas, size, cut=False)
    columns = resize_matrix((canvas - w) / 2, w, canvas, size, cut=False)
    return normalise(separable(_pixels(images), rows, columns).clamp_(0, 1))


def normalise(x: Tensor) -> Tensor:
    """Float[..., 3, h, w] in [0, 1], less ``MEAN`` and over ``STD``."""
    return ((x - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(STD).view(3, 1, 1)).contiguous()


def denormalise(x: Tensor) -> Tensor:
    """Back to [0, 1], for showing."""
    return (x * x.new_tensor(STD).view(3, 1, 1) + x.new_tensor(MEAN).view(3, 1, 1)).clamp(0, 1)


def check_images(images: Tensor) -> None:
    """Raise ``ValueError`` unless images are uint8[B, 3, S, S] with B >= 1."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or not len(images):
        raise ValueError(f"images: got {images.dtype} of shape {tuple(images.shape)}, accepts uint8 of shape [B, 3, S, S] with B >= 1")


def _pixels(images: Tensor) -> Tensor:
    """uint8[B, 3, S, S] -> Float[B, 3, S, S] in [0, 1], with a row's channels side by side in memory."""
    return images.transpose(1, 2).contiguous().float().div_(255).transpose(1, 2)


# ---- resampling -------------------------------------------------------------------------------------------------------


def separable(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``rows[b] @ x[b, c] @ columns[b].T``: x [B, C, H, W], rows [B, h, H], columns [B, w, W] -> [B, C, h, w].

    Each is a single batched product if x is in memory as [B, H, C, W], see ``_pixels``; the result is in memory in the same way.
    """
    batch, channels, height, width = x.shape
    x = torch.bmm(x.transpose(1, 2).reshape(batch, height * channels, width), columns.mT).view(batch, height, -1)
    return torch.bmm(rows, x).view(batch, rows.shape[1], channels, -1).transpose(1, 2)


def resize_matrix(start: Tensor, length: Tensor, canvas: int, size: int, flip: Tensor | None = None, *, cut: bool = True) -> Tensor:
    """Weights that resample [start, start + length) of ``canvas`` pixels to ``size`` pixels, bicubic and antialiased.

    The kernel is Keys' with a = -0.5, widened by the scale when shrinking.

    Args:
        start, length: Float[B], the interval in pixels of the canvas.
        canvas, size: pixels of the input and of the output.
        flip: Bool[B], the outputs to mirror.
        cut: use no pixels outside the interval, as if the crop was cut out before resizing; otherwise as if after it.

    Returns:
        Float[B, size, canvas]; rows sum to 1.
    """
    scale = length / size
    support = scale.clamp(min=1.0)[:, None]
    places = (torch.arange(size, device=start.device) + 0.5).expand(len(start), -1)
    if flip is not None:
        places = torch.where(flip[:, None], size - places, places)
    centers = start[:, None] + places * scale[:, None]  # [B, size]
    pixels = torch.arange(canvas, device=start.device) + 0.5  # [canvas]
    distance = ((pixels / support)[:, None, :] - (centers / support)[:, :, None]).abs_()  # [B, size, canvas]
    # With t = max(2 - d, 0) and s = max(1 - d, 0), Keys' kernel is t^2 (t - 1) / 2 + s^2 (1 - 2 s).
    t = distance.neg_().add_(2).clamp_(min=0)
    s = t - 1
    weights = t.square_().mul_(s).mul_(0.5)
    s.clamp_(min=0)
    squared = s * s
    weights.add_(squared).addcmul_(squared, s, value=-2)
    if cut:
        inside = (pixels >= start[:, None].floor()) & (pixels <= (start + length)[:, None].ceil())  # [B, canvas]
        weights.mul_(inside[:, None, :])
    return weights.div_(weights.sum(-1, keepdim=True))


def blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """Gaussian weights: sigma Float[B] in pixels -> Float[B, size, size]; rows sum to 1, edges lean inwards."""
    offsets = torch.arange(1 - size, size, device=sigma.device)
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]).square())  # [B, 2 size - 1]
    weights = kernel.unfold(1, size, 1).flip(1)  # each row is the kernel around its own pixel
    return weights.div_(weights.sum(-1, keepdim=True))


# ---- augmentations ----------------------------------------------------------------------------------------------------


class _Draw:
    """Random numbers, one per image."""

    def __init__(self, batch: int, generator: torch.Generator | None, device: torch.device):
        self.batch, self.generator, self.device = batch, generator, device

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        source = self.device if self.generator is None else self.generator.device
        return (low + (high - low) * torch.rand(self.batch, generator=self.generator, device=source)).to(self.device)

    def chance(self, probability: float) -> Tensor:
        return self.uniform() < probability


def _extent(images: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
    if sizes is None:
        side = torch.full((len(images),), float(images.shape[-1]), device=images.device)
        return side, side
    return sizes[:, 0].to(images.device).float(), sizes[:, 1].to(images.device).float()


def _crop(pixels: Tensor, view: View, sizes: Tensor | None, draw: _Draw) -> Tensor:
    """Random resized crop and flip of each image: [B, 3, S, S] -> [B, 3, size, size]."""
    canvas = pixels.shape[-1]
    height, width = _extent(pixels, sizes)
    # torchvision draws (area, aspect) up to ten times until the box fits; so do we, all attempts at once.
    area = torch.stack([draw.uniform(*view.scale) for _ in range(10)]) * height * width  # [10, B]
    aspect = torch.stack([draw.uniform(math.log(view.ratio[0]), math.log(view.ratio[1])) for _ in range(10)]).exp()
    w, h = (area * aspect).sqrt(), (area / aspect).sqrt()
    fits = (w <= width) & (h <= height)
    attempt = fits.float().argmax(0, keepdim=True)
    w, h = w.gather(0, attempt)[0], h.gather(0, attempt)[0]
    w, h = torch.minimum(w, width), torch.minimum(h, height)  # where no attempt fits
    top, left = draw.uniform() * (height - h), draw.uniform() * (width - w)
    y, x = canvas / height, canvas / width  # canvas pixels an original pixel
    rows = resize_matrix(top * y, h * y, canvas, view.size)
    columns = resize_matrix(left * x, w * x, canvas, view.size, draw.chance(view.flip))
    return separable(pixels, rows, columns).clamp_(0, 1)


def _augment(x: Tensor, view: View, draw: _Draw) -> Tensor:
    if view.jitter_probability > 0:
        x = _colour_jitter(x, view, draw)
    if view.grey > 0:
        x = _on(x, draw.chance(view.grey), lambda part: _luma(part).expand_as(part))
    if view.blur > 0:
        x = _on(x, draw.chance(view.blur), _blur, draw.uniform(*view.blur_sigma))
    if view.solarise > 0:
        x = _on(x, draw.chance(view.solarise), lambda part: torch.where(part >= 0.5, 1 - part, part))
    return x


def _colour_jitter(x: Tensor, view: View, draw: _Draw) -> Tensor:
    """Change brightness, contrast, saturation and hue in place; each image has its own factors and its own order."""
    *strengths, hue = view.jitter
    factors = torch.stack([draw.uniform(max(0.0, 1 - v), 1 + v) for v in strengths])  # [3, B]
    shifts = draw.uniform(-hue, hue)
    selection = draw.chance(view.jitter_probability)
    order = torch.stack([draw.uniform() for _ in strengths]).argsort(0)  # [3, B]: which change comes first, second, third
    factors = torch.where(selection, factors.gather(0, order), 1.0)
    turn = draw.uniform(0, 4).long()  # the hue changes before the first, second or third of them, or last
    for place in range(4):
        x = _on(x, selection & (turn == place), _hue, shifts)
        if place < 3:
            x = _tone(x, order[place], factors[place])
    return x


def _on(x: Tensor, selection: Tensor, change: Callable[..., Tensor], amount: Tensor | None = None) -> Tensor:
    """Replace the images in ``selection`` Bool[B] by ``change(images)``, or ``change(images, amount)`` with ``amount`` [B], in place."""
    indices = selection.nonzero().squeeze(1)
    if len(indices):
        part = x.index_select(0, indices)
        x.index_copy_(0, indices, change(part) if amount is None else change(part, amount[indices].view(-1, 1, 1, 1)))
    return x


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    matrix = blur_matrix(sigma.flatten(), x.shape[-1])
    return separable(x, matrix, matrix)


def _luma(x: Tensor) -> Tensor:
    return (GREY[0] * x[:, :1]).add_(x[:, 1:2], alpha=GREY[1]).add_(x[:, 2:], alpha=GREY[2])


def _tone(x: Tensor, change: Tensor, factor: Tensor) -> Tensor:
    """Change the brightness (0), contrast (1) or saturation (2) of each image [B, 3, h, w], in place.

    They mix it with black, with its mean grey, and with its own grey. ``change`` Int[B], ``factor`` Float[B].
    """
    change, factor = change.view(-1, 1, 1, 1), factor.view(-1, 1, 1, 1)
    grey = _luma(x)
    mean = grey.mean((2, 3), keepdim=True)
    other = (grey * (change == 2)).add_(mean * (change == 1))
    return torch.lerp(other, x, factor, out=x).clamp_(0, 1)


def _hue(x: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue of HSV by ``shift`` turns.

    With hue h in [0, 6), the channels are low + chroma * clamp(w, 0, 1), w being |h - 3| - 1 for red, 2 - |h - 2| for green and
    2 - |h - 4| for blue.
    """
    red, green, blue = x.unbind(1)
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    is_red, is_green = value == red, value == green
    hue = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green)).div_(chroma.clamp(min=1e-8))
    hue = hue.add_(torch.where(is_red, 0.0, torch.where(is_green, 2.0, 4.0))).div_(6).add_(shift.view(-1, 1, 1))
    hue = hue.sub_(hue.floor()).mul_(6)
    weights = (hue - 3).abs_().sub_(1), (hue - 2).abs_().neg_().add_(2), (hue - 4).abs_().neg_().add_(2)
    return torch.stack([torch.addcmul(low, chroma, weight.clamp_(0, 1)) for weight in weights], 1)

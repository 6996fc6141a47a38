"""Augmented views of a whole batch at once, on its device, with parameters of their own for every image.

Cropping, resizing and blurring are all products with small matrices: an output row is a weighted sum of input rows, an
output column one of input columns. So one batched matrix product takes B different crops of B images to one size, with
the antialiased bicubic weights of Pillow and torchvision, and another blurs each by its own sigma.

Images are uint8[B, 3, S, S] canvases; ``sizes`` Int[B, 2] are the (height, width) of the originals that were squeezed onto
the canvas, so that crops keep the originals' aspect ratio. Views are Float[B, 3, s, s], normalised by ``MEAN`` and ``STD``.

Source of the augmentations: DINO's and iBOT's released code (random resized crop, flip, colour jitter, grey, blur, solarise).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet-1k
GREY = (0.299, 0.587, 0.114)  # luma weights of ITU-R 601, as in Pillow


@dataclass(frozen=True)
class View:
    """How one view is made. Probabilities in [0, 1]; ``scale`` is the crop's area as a fraction of the image's."""

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
    jitter_probability: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    solarise: float = 0.0


def multi_crop_recipe(
    global_size: int, local_size: int, local_crops: int, global_scale: tuple[float, float], local_scale: tuple[float, float]
) -> tuple[list[View], list[View]]:
    """DINO's two global views and ``local_crops`` local ones."""
    first = View(global_size, tuple(global_scale), blur=1.0)
    second = View(global_size, tuple(global_scale), blur=0.1, solarise=0.2)
    return [first, second], [View(local_size, tuple(local_scale), blur=0.5)] * local_crops


def make_views(
    images: Tensor, recipe: list[View], *, sizes: Tensor | None = None, generator: torch.Generator | None = None
) -> list[Tensor]:
    """One view of every image for every entry of ``recipe``.

    Args:
        images: uint8[B, 3, S, S].
        recipe: views to make.
        sizes: Int[B, 2], (height, width) of the originals; None takes them as square.
        generator: source of randomness; None is torch's global one. Views do not depend on the batch they are drawn in
            other than through it.

    Returns:
        A list of Float32[B, 3, size, size].

    Raises:
        ValueError: images that are not uint8[B, 3, S, S].
    """
    check_images(images)
    draw = _Draw(len(images), generator, images.device)
    with torch.autocast(images.device.type, enabled=False):  # eight bits of an image do not survive bfloat16
        pixels = images.float().div_(255)
        return [normalise(_augment(_crop(pixels, view, sizes, draw), view, draw)) for view in recipe]


def center_view(images: Tensor, size: int, *, crop: float = 0.875, sizes: Tensor | None = None) -> Tensor:
    """The view for evaluation: resize the shorter side to ``size / crop`` (256 for 224), then cut out the centre.

    Args:
        images: uint8[B, 3, S, S].
        size: pixels a side of the result.
        crop: side of the cut over the resized shorter side.
        sizes: as in ``make_views``.

    Returns:
        Float32[B, 3, size, size], normalised.
    """
    check_images(images)
    canvas = images.shape[-1]
    height, width = _extent(images, sizes)
    side = torch.minimum(height, width) * crop  # of the cut, in original pixels
    h, w = side / height * canvas, side / width * canvas
    rows = resize_matrix((canvas - h) / 2, h, canvas, size, cut=False)
    columns = resize_matrix((canvas - w) / 2, w, canvas, size, cut=False)
    return normalise(separable(images.float().div_(255), rows, columns).clamp_(0, 1))


def normalise(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, device=x.device, dtype=x.dtype).view(3, 1, 1) for v in (MEAN, STD))
    return (x - mean) / std


def denormalise(x: Tensor) -> Tensor:
    """Back to [0, 1], for showing."""
    mean, std = (torch.tensor(v, device=x.device, dtype=x.dtype).view(3, 1, 1) for v in (MEAN, STD))
    return (x * std + mean).clamp(0, 1)


def check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or not len(images):
        raise ValueError(f"images: got {images.dtype} of shape {tuple(images.shape)}, accepts uint8 of shape [B, 3, S, S] with B >= 1")


# ---- resampling -------------------------------------------------------------------------------------------------------


def separable(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``rows[b] @ x[b, c] @ columns[b].T``: x [B, C, H, W], rows [B, h, H], columns [B, w, W] -> [B, C, h, w]."""
    batch, channels, height, width = x.shape
    # columns first, as one product over all rows of all channels
    x = torch.bmm(x.reshape(batch, channels * height, width), columns.mT).view(batch, channels, height, -1)
    return rows[:, None] @ x


def resize_matrix(start: Tensor, length: Tensor, canvas: int, size: int, flip: Tensor | None = None, *, cut: bool = True) -> Tensor:
    """Weights that resample [start, start + length) of ``canvas`` pixels to ``size`` pixels, bicubic and antialiased.

    The kernel is Keys' with a = -0.5, widened by the scale when shrinking.

    Args:
        start, length: Float[B], the interval in pixels of the canvas.
        canvas, size: pixels of the input and of the output.
        flip: Bool[B], which outputs to mirror.
        cut: see nothing outside the interval, as if the crop had been cut out before resizing; else as if after it.

    Returns:
        Float[B, size, canvas]; rows sum to 1.
    """
    scale = (length / size)[:, None, None]
    support = scale.clamp(min=1.0)
    centers = start[:, None, None] + (torch.arange(size, device=start.device)[:, None] + 0.5) * scale  # [B, size, 1]
    pixels = torch.arange(canvas, device=start.device) + 0.5  # [canvas]
    distance = ((pixels - centers) / support).abs()
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    if cut:
        weights = weights * ((pixels >= start[:, None, None].floor()) & (pixels <= (start + length)[:, None, None].ceil()))
    weights = weights / weights.sum(-1, keepdim=True)
    return weights if flip is None else torch.where(flip[:, None, None], weights.flip(1), weights)


def blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """Gaussian weights: sigma Float[B] in pixels -> Float[B, size, size]; rows sum to 1, edges lean inwards."""
    offsets = torch.arange(size, device=sigma.device)
    squared = (offsets[:, None] - offsets).square()
    weights = torch.exp(-0.5 * squared / sigma.square()[:, None, None])
    return weights / weights.sum(-1, keepdim=True)


# ---- augmentations ----------------------------------------------------------------------------------------------------


class _Draw:
    """Random numbers, one an image."""

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
    chosen = fits.float().argmax(0, keepdim=True)
    w, h = w.gather(0, chosen)[0], h.gather(0, chosen)[0]
    w, h = torch.minimum(w, width), torch.minimum(h, height)  # no attempt fits: the largest that does
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
    """Brightness, contrast, saturation and hue by factors of each image's own, in an order of its own."""
    *strengths, hue = view.jitter
    factors = [draw.uniform(max(0.0, 1 - v), 1 + v) for v in strengths] + [draw.uniform(-hue, hue)]
    applied = draw.chance(view.jitter_probability)
    order = torch.stack([draw.uniform() for _ in range(4)]).argsort(0)  # [4, B]
    for place in range(4):
        for i, change in enumerate((_brightness, _contrast, _saturation, _hue)):
            x = _on(x, applied & (order[place] == i), change, factors[i])
    return x


def _on(x: Tensor, chosen: Tensor, change, amount: Tensor | None = None) -> Tensor:
    """Replace the chosen images by ``change`` of them, in place; ``amount`` [B] gives it a number for each image."""
    indices = chosen.nonzero().squeeze(1)
    if len(indices):
        changed = change(x[indices]) if amount is None else change(x[indices], amount[indices].view(-1, 1, 1, 1))
        x.index_copy_(0, indices, changed)
    return x


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    matrix = blur_matrix(sigma.flatten(), x.shape[-1])
    return separable(x, matrix, matrix)


def _luma(x: Tensor) -> Tensor:
    return GREY[0] * x[:, :1] + GREY[1] * x[:, 1:2] + GREY[2] * x[:, 2:]


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp_(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_luma(x).mean((1, 2, 3), keepdim=True), x, factor).clamp_(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_luma(x), x, factor).clamp_(0, 1)


def _hue(x: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue of HSV by ``shift`` turns.

    With value v, chroma c and hue h in sixths of a turn, a channel is v - c * clamp(min(k, 4 - k), 0, 1) where
    k = (n + h) mod 6 and n = 5, 3, 1 for red, green, blue.
    """
    red, green, blue = x.unbind(1)
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    scale = chroma.clamp(min=1e-8)
    hue = torch.where(
        value == red, (green - blue) / scale, torch.where(value == green, (blue - red) / scale + 2, (red - green) / scale + 4)
    )
    hue = hue + 6 * shift.view(-1, 1, 1)
    channels = []
    for n in (5, 3, 1):
        k = (hue + n) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, 1)

"""Colours for a classifier: CIE Lab, and bins over the part of its ab plane that a screen can show.

Source: Zhang et al., "Colorful Image Colorization", ECCV 2016, section 2.1.
"""

import torch
from torch import Tensor

from lib.tensors import without_autocast

PITCH = 10  # of the bins, in units of a and b
NEAREST, SIGMA = 5, 5.0  # each colour is shared among so many bins, by a Gaussian of this width

# sRGB's primaries in CIE XYZ, over the white point D65
_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.950456, 1.0, 1.088754)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """sRGB Float[B, 3, h, w] in [0, 1] -> CIE Lab: L in [0, 100], a and b about [-100, 100]."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055).clamp(min=0) ** 2.4, rgb / 12.92)
    with without_autocast(rgb):
        xyz = torch.einsum("xc,bchw->bxhw", rgb.new_tensor(_TO_XYZ), linear) / rgb.new_tensor(_WHITE).view(3, 1, 1)
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=1e-8) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def quantise(ab: Tensor) -> tuple[Tensor, Tensor]:
    """Of colours ab Float[..., 2], the nearest bins of ``BINS``, Long[...], and the soft encoding (section 2.1), a Gaussian over the five
    nearest, Float[..., Q].
    """
    distance, nearest = torch.cdist(ab.flatten(0, -2), BINS.to(ab)).topk(NEAREST, largest=False)
    shares = (-distance.square() / (2 * SIGMA**2)).softmax(1)
    soft = torch.zeros(len(distance), len(BINS), dtype=ab.dtype, device=ab.device).scatter_(1, nearest, shares)
    return nearest[:, 0].view(ab.shape[:-1]), soft.view(*ab.shape[:-1], -1)


def _visible() -> Tensor:
    """Centres Float[Q, 2] of the ab bins that contain a colour of 8-bit sRGB, row by row: 261, while the paper's list has 313."""
    levels = torch.linspace(0, 1, 256)
    face = torch.cartesian_prod(levels, levels)  # the strongest colours lie on the faces of the cube
    faces = [face.new_full((len(face), 3), edge) for edge in (0.0, 1.0) for _ in range(3)]
    for number, cube in enumerate(faces):
        cube[:, [channel for channel in range(3) if channel != number % 3]] = face
    ab = rgb_to_lab(torch.cat(faces).T.view(1, 3, -1, 1))[0, 1:, :, 0].T
    return (ab / PITCH).round().unique(dim=0) * PITCH


BINS = _visible()

"""Look at pictures with a network: where it attends, and what each masking strategy hides by its attention.

python -m lib.show
python -m lib.show cat.jpg dog.png --heads --network timm:vit_small_patch16_224.dino --size 448 --to looked-at.png
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lib.data.views import denormalise
from lib.keep import kept_names, network_to_show
from lib.masking import STRATEGIES, draw_masks
from lib.models import Model
from lib.results.figures import drawn_grid, hide_patches, overlay, photographs, views_of
from lib.results.titles import TITLES


def show(views: Tensor, network: Model, *, ratio: float = 0.4, heads: bool = False, seed: int = 0) -> Figure:
    """A column for each picture: the picture, the attention, and what each strategy leaves to see.

    Args:
        views: Float[B, 3, H, W], normalised; sides are multiples of the network's patch size.
        network: with a class token or attention pooling.
        ratio: masked fraction of the patches, in [0, 1).
        heads: show the attention of each head below their mean.
        seed: of the masks that are drawn at random.

    Raises:
        ValueError: a network without attention, or a ratio out of range.
    """
    with torch.no_grad():
        features = network.features(views)
    if features.attention is None or features.attention.std() == 0:  # the same everywhere, as of an average
        raise ValueError("network: got one without attention, accepts networks with a class token or attention pooling")
    pictures, grid, attention = denormalise(views), features.grid, features.attention.mean(1)
    rows = {"picture": list(pictures), "attention": [overlay(p, a.view(grid)) for p, a in zip(pictures, attention)]}
    for head in range(features.attention.shape[1] if heads else 0):
        rows[f"head {head + 1}"] = [overlay(p, a.view(grid)) for p, a in zip(pictures, features.attention[:, head])]
    for name, strategy in STRATEGIES.items():
        if strategy.ratio is None:
            generator = torch.Generator().manual_seed(seed)
            ratios = (ratio, ratio)
            masks = draw_masks(name, len(views), grid, attention=attention, ratio_range=ratios, probability=1.0, generator=generator)
            rows[TITLES[name]] = [hide_patches(p, m, grid) for p, m in zip(pictures, masks)]
    return drawn_grid(rows, size=1.8)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.show", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "pictures", nargs="*", metavar="PICTURE", help="image files; without any, the photographs that come with the project"
    )
    parser.add_argument("--network", default="best", help=f"best, {', '.join(kept_names())}, or timm:NAME; the default is best")
    parser.add_argument("--size", type=int, default=224, metavar="PIXELS", help="side of what the network sees; the default is 224")
    parser.add_argument("--ratio", type=float, default=0.4, help="masked fraction of the patches; the default is 0.4")
    parser.add_argument("--heads", action="store_true", help="show the attention of each head as well")
    parser.add_argument("--to", type=Path, default=Path("attention.png"), metavar="FILE", help="the figure; the default is attention.png")
    options = parser.parse_args(arguments)
    matplotlib.use("Agg")
    try:
        views = views_of(options.pictures, options.size) if options.pictures else photographs("smoke", 5, options.size)
        figure = show(views, network_to_show(options.network), ratio=options.ratio, heads=options.heads)
        figure.savefig(options.to, dpi=80, bbox_inches="tight")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(options.to)
    return 0


if __name__ == "__main__":
    sys.exit(main())

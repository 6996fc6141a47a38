"""One style for all figures, and the drawings that several notebooks share."""

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
import seaborn as sns
import torch
from IPython.display import Image as Display
from IPython.display import Markdown
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from lib.data.bank import Stream
from lib.data.layouts.common import table_of_files
from lib.data.loading import read_table
from lib.data.reading import encoded, read_image
from lib.data.retrieval import RetrievalSet
from lib.data.views import center_view
from lib.evaluation.retrieval import RetrievalAnswer
from lib.results import papers
from lib.results.titles import STRATEGIES, TITLES
from lib.results.verdicts import statements

PALETTE = sns.color_palette("colorblind")
COLOURS = dict(zip(STRATEGIES, PALETTE)) | {"none": PALETTE[7], "gap": PALETTE[0], "simpool": PALETTE[3]}  # all others are grey


def use_style() -> None:
    """Set the project's figure style; call it once in a notebook."""
    sns.set_theme(style="whitegrid", context="notebook", palette="colorblind")
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 80,
            "figure.constrained_layout.use": True,
            "axes.spines.right": False,
            "axes.spines.top": False,
        }
    )


def image_grid(rows: dict[str, list], *, titles: list[str] | None = None, size: float = 1.3) -> None:
    """Show rows of pictures beside their names; arguments as of ``drawn_grid``."""
    drawn_grid(rows, titles=titles, size=size)
    plt.show()


def drawn_grid(rows: dict[str, list], *, titles: list[str] | None = None, size: float = 1.3) -> Figure:
    """Draw rows of pictures beside their names.

    Args:
        rows: name -> pictures, each Float[3, H, W] in [0, 1], uint8[3, H, W], or a map Float[H, W] in any range.
        titles: above the columns.
        size: inches a picture.
    """
    columns = max(len(pictures) for pictures in rows.values())
    figure, axes = plt.subplots(len(rows), columns, figsize=(size * columns + 1.2, size * len(rows) + 0.2), squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items()):
        for axis, picture in zip(line, pictures):
            picture = torch.as_tensor(picture).cpu()
            axis.imshow(picture.permute(1, 2, 0) if picture.ndim == 3 else picture, cmap="inferno")
        for axis in line:
            axis.set(xticks=[], yticks=[], frame_on=False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
    for axis, title in zip(axes[0], titles or []):
        axis.set_title(title, fontsize=10)
    return figure


def photographs(scale: str, count: int, size: int) -> Tensor:
    """Photographs to look at: at smoke scale the first of the card ``photographs``, else held-out ones of Imagenette, evenly spaced.

    Args:
        scale: smoke, small or paper.
        count: how many.
        size: pixels a side.

    Returns:
        Their centre views Float[count, 3, size, size], normalised.

    Raises:
        ValueError: more than there are, or missing data.
    """
    table = read_table("photographs" if scale == "smoke" else "imagenette", "validation")
    if not 1 <= count <= len(table):
        raise ValueError(f"count: got {count}, accepts 1 to {len(table)}, the number of photographs")
    rows = range(count) if scale == "smoke" else torch.linspace(0, len(table) - 1, count).long().tolist()
    return _centre_views(table.take(list(rows)), size)


def views_of(files: list[str], size: int) -> Tensor:
    """The centre views Float[n, 3, size, size] of image files, normalised.

    Raises:
        ValueError: a file that is missing or damaged; it is named.
    """
    return _centre_views(table_of_files([Path(file) for file in files]), size)


def _centre_views(table: pa.Table, size: int) -> Tensor:
    [(pixels, sizes, _)] = Stream(table, size).batches([torch.arange(len(table))])
    return center_view(pixels, size, crop=1.0, sizes=sizes)


def overlay(picture: Tensor, single: Tensor, *, strength: float = 0.6) -> Tensor:
    """A map Float[h, w], stretched to its range and resized (bicubic), in colours over the picture Float[3, H, W] in [0, 1]."""
    resized = torch.nn.functional.interpolate(single[None, None].float(), picture.shape[1:], mode="bicubic", align_corners=False)[0, 0]
    levels = (resized - resized.min()) / (resized.max() - resized.min()).clamp(min=1e-9)
    colours = torch.from_numpy(sns.color_palette("inferno", as_cmap=True)(levels.numpy())[..., :3]).permute(2, 0, 1).float()
    return torch.lerp(picture, colours, strength).clamp(0, 1)


def box_on(image: Image.Image, boxes: dict[str, list]) -> Tensor:
    """The image with boxes (x0, y0, x1, y1 in pixels) drawn on it, uint8[3, H, W]: those named ``true`` in white, others in the
    palette's colours, in turn.
    """
    image = image.convert("RGB")
    draw = ImageDraw.Draw(image)
    colours = iter(PALETTE[1:])
    for name, corners in boxes.items():
        colour = (255, 255, 255) if name == "true" else tuple(round(255 * part) for part in next(colours))
        for x0, y0, x1, y1 in corners:
            draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=max(1, min(image.size) // 100))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def heat_map(single: Tensor, size: int) -> Image.Image:
    """A map Float[h, w], not constant, resized (bicubic) to ``size`` pixels a side, in blues, on which boxes are easy to see."""
    resized = torch.nn.functional.interpolate(single.float()[None, None], (size, size), mode="bicubic", align_corners=False)[0, 0]
    levels = (resized - resized.min()) / (resized.max() - resized.min())
    return Image.fromarray(sns.color_palette("mako", as_cmap=True)(levels.numpy(), bytes=True)[..., :3])


def framed(image: Image.Image, colour: tuple[float, float, float]) -> Tensor:
    """The image in a frame outside of it, uint8[3, H, W]."""
    frame = ImageOps.expand(image, max(1, max(image.size) // 16), tuple(round(255 * part) for part in colour))
    return torch.from_numpy(np.array(frame)).permute(2, 0, 1)


def neighbours(retrieval: RetrievalSet, answer: RetrievalAnswer, query: int, *, count: int = 5) -> list[Tensor]:
    """A query and the ``count`` nearest images of the database, each uint8[3, H, W]; easy and hard ones are framed."""
    truth, nearest = answer.ground_truth[query], answer.ranks[:count, query].tolist()
    row, queries = int(answer.queries[query]), retrieval.queries
    box = queries["box"][row].as_py() if "box" in queries.column_names else None
    pictures = [framed(read_image(encoded(queries, row), box), (1, 1, 1))]
    for place in nearest:
        right = place in truth["easy"] or place in truth["hard"]
        picture = read_image(encoded(retrieval.database, int(answer.database[place])))
        pictures.append(framed(picture, PALETTE[2] if right else (1, 1, 1)))
    return pictures


def with_masks(image: Image.Image, masks: Tensor, *, strength: float = 0.55) -> Tensor:
    """The image with the objects of Long[H, W] (0 background) in the palette's colours, uint8[3, H, W]."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).float()
    colours = torch.tensor([(0, 0, 0), *PALETTE]) * 255
    painted = (1 - strength) * pixels + strength * colours[(masks - 1) % len(PALETTE) + 1]
    return torch.where((masks > 0)[..., None], painted, pixels).byte().permute(2, 0, 1)


def animation(frames: list[Tensor], *, seconds: float = 0.15, height: int = 160) -> Display:
    """Frames uint8[3, H, W] as a GIF that a notebook shows, ``height`` pixels high, each for some seconds."""
    pictures = []
    for frame in frames:
        picture = Image.fromarray(frame.permute(1, 2, 0).numpy())
        pictures.append(picture.resize((round(height * picture.width / picture.height), height)).quantize(64))
    stream = io.BytesIO()
    pictures[0].save(stream, "gif", save_all=True, append_images=pictures[1:], duration=round(1000 * seconds), loop=0)
    return Display(stream.getvalue(), format="gif")


def hide_patches(image: Tensor, mask: Tensor, grid: tuple[int, int], *, grey: float = 0.5) -> Tensor:
    """The image Float[3, H, W] with its masked patches (Bool[N], True = masked) in grey."""
    height, width = image.shape[1] // grid[0], image.shape[2] // grid[1]
    hidden = mask.view(grid).repeat_interleave(height, 0).repeat_interleave(width, 1)
    return torch.where(hidden, grey, image)


def dots(table: pd.DataFrame, *, title: str, ylabel: str) -> None:
    """Dots of a table with rows named as in ``TITLES``, one axis a column; a column ``<name> ±`` gives error bars."""
    columns = [c for c in table if not c.endswith("±")]
    width = max(3.4, 0.45 * len(table))
    figure, axes = plt.subplots(1, len(columns), figsize=(width * len(columns), 3.0), squeeze=False)
    for axis, column in zip(axes[0], columns):
        values = table[column].dropna()
        names = [TITLES.get(row, row) for row in values.index]
        axis.scatter(names, values, color=[COLOURS.get(row, "0.6") for row in values.index], s=60, zorder=3)
        if f"{column} ±" in table:
            axis.errorbar(names, values, table[f"{column} ±"].reindex(values.index), fmt="none", ecolor="0.3", capsize=3)
        axis.margins(x=0.4 / max(1, len(names)), y=0.2)
        axis.set(title=column)
        axis.tick_params(axis="x", rotation=40)
        plt.setp(axis.get_xticklabels(), ha="right")
    axes[0][0].set_ylabel(ylabel)
    figure.suptitle(title)
    plt.show()


def network_bars(table: pd.DataFrame, *, title: str, xlabel: str = "%") -> None:
    """Bars of a table, a group a row, which is a network, and a colour a column, which is a measure."""
    long = table.rename_axis("network").reset_index().melt("network", var_name="measure", value_name=xlabel)
    axis = sns.barplot(long, y="network", x=xlabel, hue="measure")
    axis.set(title=title, ylabel=None)
    sns.move_legend(axis, "upper left", bbox_to_anchor=(1, 1), title=None, frameon=False)
    plt.show()


def curves(table: pd.DataFrame, *, x: str, y: str, title: str, hue: str = "masking") -> None:
    """Lines of ``y`` over ``x``, one a strategy, with the range over seeds as a band; a dash pattern a ``setting`` where there are several."""
    figure, axis = plt.subplots()
    names = table[hue].map(lambda n: TITLES.get(n, n))
    palette = {TITLES.get(n, n): COLOURS.get(n, (0.4, 0.4, 0.4)) for n in table[hue].unique()}
    style = "setting" if "setting" in table and table.setting.nunique() > 1 else None
    options = dict(errorbar=("pi", 100), markers=True, ax=axis) if style else dict(errorbar=("pi", 100), marker="o", ax=axis)
    sns.lineplot(table.assign(**{hue: names}), x=x, y=y, hue=hue, style=style, palette=palette, **options)
    axis.set_title(title)
    axis.legend(title=None, fontsize=9)
    plt.show()


def quote(*identities: str) -> Markdown:
    """Claims of the talk, quoted with their ids, and what is to be noted of their figures."""
    notes = {claim["id"]: claim.get("note") for claim in papers.claim_details()}
    lines = [f"> **{i}** — {papers.claim(i)}" + (f" (*{notes[i]}*)" if notes[i] else "") for i in identities]
    return Markdown("\n>\n".join(lines))


def verdict_table(*identities: str) -> pd.DataFrame:
    """A row for each statement of some claims, or of all: the paper's gap and ours with its interval, each beside the figures of which it is
    the mean, and the verdict with its reason; rounded.
    """
    ours = statements().set_index("id").loc[list(identities) or slice(None)]
    low, high = ours.gap_low.round(2), ours.gap_high.round(2)
    table = {
        "statement": ours.statement,
        "paper's gap": ours.paper_gap.round(2),
        "of": ours.published.map(", ".join),
        "our gap": ours.gap_mean.round(2),
        "of ours": ours.metrics.map(", ".join),
        "95% interval": [f"[{a:.2f}, {b:.2f}]" if np.isfinite(a) else "" for a, b in zip(low, high)],
    }
    details = {name: list(ours[name]) for name in ("seeds", "scale", "verdict", "reason")}
    return pd.DataFrame({k: list(v) for k, v in table.items()} | details, index=ours.index).astype(object).fillna("")

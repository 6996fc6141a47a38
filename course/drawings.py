"""Drawings of the two methods and of the way to a verdict, made of a few words: ``box``, ``arrow``, ``label`` and ``patches``.

``python -m course.drawings FOLDER`` writes them as pictures, to be projected. They stand on a white card, so that they can be read on white
pages and on dark ones.
"""

import argparse
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import Tensor
from torch.nn.functional import avg_pool2d

from lib.masking import attention_mask
from lib.pooling import landscape, pooling_names
from lib.results.titles import TITLES
from lib.results.verdicts import interval, verdict_of

INK, PALE = "0.15", "0.6"
COLOURS = dict(zip(("teacher", "student", "data", "loss", "result"), (sns.color_palette("pastel")[i] for i in (0, 1, 7, 3, 2))))
TYPE = 16  # points, of names
NOTE = 13  # of notes
FONT = "DejaVu Sans"  # comes with matplotlib, so that words are as long everywhere
GREEK = {name: rf"\{name}" for name in ("pi", "psi", "sigma", "eta", "alpha", "tau", "eps")}
GREEK |= {"eps": r"\varepsilon", "inf": r"\infty"}


class Box(NamedTuple):
    """A place of a drawing: its centre and its size, in inches."""

    x: float
    y: float
    width: float
    height: float

    def side(self, name: str, shift: float = 0.0) -> tuple[float, float]:
        """The middle of a side, ``left``, ``right``, ``top`` or ``bottom``, moved along the side by ``shift``."""
        right = {"left": -0.5, "right": 0.5}.get(name, 0.0)
        up = {"bottom": -0.5, "top": 0.5}.get(name, 0.0)
        return self.x + right * self.width + (shift if up else 0), self.y + up * self.height + (shift if right else 0)


class Drawing:
    """A white card of so many inches with a title; its lower left corner is (0, 0)."""

    def __init__(self, width: float, height: float, title: str):
        self.figure = plt.figure(figsize=(width, height), layout="none")
        self.figure.patch.set_alpha(0)
        self.axis = self.figure.add_axes((0, 0, 1, 1))
        self.axis.set(xlim=(0, width), ylim=(0, height))
        self.axis.axis("off")
        self._rounded(Box(width / 2, height / 2, width - 0.1, height - 0.1), facecolor="white", edgecolor="0.8", zorder=0, rounding=0.25)
        self.axis.text(0.35, height - 0.4, title, fontsize=TYPE + 3, weight="bold", color=INK, va="center", family=FONT)

    def _rounded(self, box: Box, rounding: float = 0.12, **style) -> None:
        corner = (box.x - box.width / 2, box.y - box.height / 2)
        shape = f"round,pad=0,rounding_size={rounding}"
        self.axis.add_patch(FancyBboxPatch(corner, box.width, box.height, boxstyle=shape, **style))

    def box(self, x: float, y: float, width: float, height: float, text: str, colour: str = "data", *, dashed: bool = False) -> Box:
        """A rounded box with words in it; they become smaller where they would not fit."""
        box = Box(x, y, width, height)
        style = dict(facecolor="white", edgecolor=PALE, linestyle="--") if dashed else dict(facecolor=COLOURS[colour], edgecolor=INK)
        self._rounded(box, linewidth=1.2, zorder=2, **style)
        words = self.label(x, y, text, size=TYPE, colour=PALE if dashed else INK)
        extent = words.get_window_extent().transformed(self.axis.transData.inverted())
        words.set_fontsize(TYPE * min(1, 0.92 * width / max(extent.width, 1e-6), 0.92 * height / max(extent.height, 1e-6)))
        return box

    def label(self, x: float, y: float, text: str, *, size: float = NOTE, colour: str = INK, **style):
        """Words around a point."""
        return self.axis.text(x, y, text, fontsize=size, color=colour, va="center", zorder=4, **dict(ha="center", family=FONT) | style)

    def arrow(self, start: tuple[float, float], end: tuple[float, float], *, bend: str = "", dashed: bool = False) -> None:
        """From one point to another: straight, around a corner (``-|`` first along, ``|-`` first up), or ``over`` what is between."""
        corners = {"-|": "angle,angleA=0,angleB=90,rad=6", "|-": "angle,angleA=90,angleB=0,rad=6", "over": "bar,fraction=0.035"}
        style = corners.get(bend, "arc3")
        line = dict(linestyle="--" if dashed else "-", linewidth=1.6, color=PALE if dashed else INK, mutation_scale=16)
        self.axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", connectionstyle=style, shrinkA=0, shrinkB=0, zorder=3, **line))

    def patches(self, x: float, y: float, side: float, picture: Tensor) -> Box:
        """A square picture Float[n, n, 3] or a map Float[n, n], a cell a patch."""
        box, n = Box(x, y, side, side), len(picture)
        left, bottom = x - side / 2, y - side / 2
        extent = (left, left + side, bottom, bottom + side)
        self.axis.imshow(picture.numpy(), extent=extent, cmap="inferno", zorder=2, aspect="auto", interpolation="nearest")
        for i in range(n + 1):
            at = i * side / n
            self.axis.plot([left, left + side], [bottom + at] * 2, color="white" if 0 < i < n else INK, lw=0.8, zorder=3)
            self.axis.plot([left + at] * 2, [bottom, bottom + side], color="white" if 0 < i < n else INK, lw=0.8, zorder=3)
        return box

    def group(self, first: Box, last: Box, margin: float = 0.09) -> Box:
        """A pale ground behind pictures that belong together, from the first to the last of a row."""
        left, bottom = first.x - first.width / 2 - margin, first.y - first.height / 2 - margin
        width, height = last.x + last.width / 2 + margin - left, first.height + 2 * margin
        self.axis.add_patch(Rectangle((left, bottom), width, height, facecolor="0.93", edgecolor=PALE, linewidth=0.8, zorder=1))
        return Box(left + width / 2, bottom + height / 2, width, height)


# ---- iBOT with AttMask ---------------------------------------------------------------------------------------------------

STEPS = (
    "An image is cut into patches",
    "Two random views of the image, u and v",
    "The teacher sees both views whole",
    "The teacher's [CLS] token attends to the patches",
    "AttMask: the most attended patches are masked",
    "The student sees the masked views",
    "The student has to say what the teacher says",
    "The teacher follows the student slowly",
)
CELLS = 8  # patches a side


def scene(row: float, column: float, size: float) -> Tensor:
    """A picture Float[n, n, 3] of a ball before a sky and a meadow; the ball's centre and radius in patches."""
    y, x = torch.meshgrid(torch.arange(CELLS) + 0.5, torch.arange(CELLS) + 0.5, indexing="ij")
    sky, meadow, ball = torch.tensor([[0.62, 0.80, 0.93], [0.62, 0.78, 0.52], [0.87, 0.45, 0.13]])
    shade = 1 - 0.12 * ((x + 2 * y) % 3 / 2).unsqueeze(-1)
    picture = torch.where((y < 0.62 * CELLS).unsqueeze(-1), sky, meadow)
    return torch.where(((x - column) ** 2 + (y - row) ** 2 < size**2).unsqueeze(-1), ball, picture) * shade


def attention_of(picture: Tensor) -> Tensor:
    """What a teacher that knows balls attends in a picture, Float[n, n]."""
    redness = (picture[..., 0] - picture[..., 2]).clamp(min=0)
    smooth = avg_pool2d(avg_pool2d(redness[None, None], 3, 1, 1), 3, 1, 1)[0, 0]
    attention = (6 * smooth + redness).exp()
    return attention / attention.sum()


def ibot(step: int = len(STEPS)) -> Figure:
    """iBOT with AttMask, as far as it has been built up at a step, 1 to 8 (AttMask, figure 2; iBOT, figure 3).

    Raises:
        ValueError: another step.
    """
    if step not in range(1, len(STEPS) + 1):
        raise ValueError(f"step: got {step!r}, accepts 1 to {len(STEPS)}")
    drawing = Drawing(13.2, 7.0, f"{step}. {STEPS[step - 1]}")
    for _ in islice(_ibot(drawing), step):
        pass
    return drawing.figure


def _ibot(d: Drawing) -> Iterator[None]:
    """The parts of the drawing, a ``yield`` after each step."""
    top, middle, bottom = 5.3, 3.3, 1.15
    image = d.patches(1.15, middle, 1.6, scene(4, 4, 2.1))
    d.label(1.15, middle - 1.05, "image", size=TYPE)
    yield
    views = [scene(5, 3, 2.6), scene(3, 5, 2.1)]
    u, v = (d.patches(x, top, 1.3, view) for x, view in zip((3.3, 4.75), views))
    both = d.group(u, v)
    d.label(u.x, top + 0.92, "$u$", size=TYPE)
    d.label(v.x, top + 0.92, "$v$", size=TYPE)
    d.arrow(image.side("top"), both.side("left"), bend="|-")
    yield
    teacher = d.box(7.2, top, 2.2, 0.95, "teacher\n$f_{\\theta'}$", "teacher")
    d.arrow(both.side("right"), teacher.side("left"))
    yield
    maps = [attention_of(view) for view in views]
    first, second = (d.patches(x, middle, 1.0, single) for x, single in zip((6.2, 7.3), maps))
    attended = d.group(first, second)
    d.label(attended.x, middle - 0.92, "[CLS] attention,\nmean over heads")
    d.arrow(teacher.side("bottom", attended.x - teacher.x), attended.side("top"))
    yield
    hidden = [attention_mask(single.view(1, -1), 0.3, strategy="high").view(CELLS, CELLS, 1) for single in maps]
    masks = [d.patches(x, middle, 1.0, torch.where(mask, 0.35, torch.ones(3) * 0.92)) for x, mask in zip((3.3, 4.75), hidden)]
    chosen = d.group(*masks)
    d.label(chosen.x, middle - 0.92, "hide the\ntop $\\lfloor rN \\rfloor$")
    d.arrow(attended.side("left"), chosen.side("right"))
    yield
    masked = [d.patches(x, bottom, 1.3, torch.where(mask, 0.35, view)) for x, view, mask in zip((3.3, 4.75), views, hidden)]
    student = d.box(7.2, bottom, 2.2, 0.95, "student\n$f_\\theta$", "student")
    given = d.group(*masked)
    for view in (u, v):
        shift = view.x - both.x
        d.arrow(both.side("bottom", shift), chosen.side("top", shift))
        d.arrow(chosen.side("bottom", shift), given.side("top", shift))
    d.arrow(given.side("right"), student.side("left"))
    yield
    targets = [d.box(9.85, top + shift, 1.4, 0.52, name, "teacher") for name, shift in (("[CLS]", 0.36), ("patches", -0.36))]
    answers = [d.box(9.85, bottom + shift, 1.4, 0.52, name, "student") for name, shift in (("[CLS]", -0.36), ("patches", 0.36))]
    for network, outputs in ((teacher, targets), (student, answers)):
        for output in outputs:
            d.arrow(network.side("right", output.y - network.y), output.side("left"))
    patch_loss = d.box(9.85, middle, 1.7, 1.0, "patch loss\n$L_{\\mathrm{MIM}}$", "loss")
    cls_loss = d.box(12.15, middle, 1.7, 1.0, "[CLS] loss\n$L_{[\\mathrm{CLS}]}$", "loss")
    for (of_image, of_patches), side in ((targets, "top"), (answers, "bottom")):
        d.arrow(of_patches.side("bottom" if side == "top" else "top"), patch_loss.side(side))
        d.arrow(of_image.side("right"), cls_loss.side(side), bend="-|")
    d.label(9.98, 4.36, "same view,\nhidden patches", ha="left")
    d.label(12.0, 2.2, "different\nviews", ha="right")
    yield
    d.arrow(student.side("top", 0.9), teacher.side("bottom", 0.9), dashed=True)
    d.label(8.2, middle + 1.05, "EMA", ha="left")
    yield


# ---- the pooling framework -----------------------------------------------------------------------------------------------

ALGORITHM = {
    "U0": "$U^0$",
    "phi_Q": r"$\phi_Q(U)$",
    "phi_K": r"$\phi_K(X)$",
    "s": "$s(k_i, q_j)$",
    "A": "$h(S)$",
    "phi_V": r"$\phi_V(X)$",
    "f": "$f^{-1}(f(V)A)$",
    "phi_X": r"$\phi_X(X)$",
    "phi_U": r"$\phi_U(Z)$",
}


def pooling(*names: str) -> Figure:
    """The pooling algorithm, and below it some methods, each by the parts that it declares; dashed parts are left out.

    Args:
        names: as ``lib.pooling.pooling_names`` gives them; none draws SimPool.

    Raises:
        ValueError: an unknown name.
    """
    names = names or ("simpool",)
    for name in names:
        if name not in pooling_names():
            raise ValueError(f"names: got {name!r}, accepts {', '.join(pooling_names())}")
    table, height = landscape(), 3.6
    title = "One algorithm, and SimPool as an instance of it" if names == ("simpool",) else "One algorithm and instances of it"
    d = Drawing(13.2, height * (len(names) + 1) + 0.8, title)
    for line, name in enumerate(("", *names)):
        parts = {part: formula(table.loc[name, part]) for part in ALGORITHM} if name else ALGORITHM
        heading, iterative = (TITLES[name], table.loc[name, "iterative"]) if name else ("any pooling", True)
        _pooling(d, height * (len(names) + 1 - line), parts, heading, iterative)
    return d.figure


def formula(symbol: str) -> str:
    """A symbol of the landscape's table as mathematics: ``sigma_2(S/sqrt d)`` -> ``$\\sigma_2(S/\\sqrt{d})$``."""
    if not symbol:
        return ""
    text = symbol.replace("sqrt d", r"\sqrt{d}").replace("^T", r"^\top ").replace("^-1", "^{-1}").replace(", ", r",\ ")
    text = re.sub(r"_(-?[A-Za-z0-9]+)", r"_{\1}", text)
    text = re.sub(r"(?<![A-Za-z\\])[A-Za-z]{2,}", lambda m: GREEK.get(m[0], rf"\mathrm{{{m[0]}}}"), text)
    return "$" + re.sub(r"(?<=[A-Za-z}]) (?=[A-Za-z\\])", r"\\ ", text) + "$"


def _pooling(d: Drawing, y: float, parts: dict[str, str], title: str, iterative: bool) -> None:
    """One algorithm whose upper edge is at y: the pooled vectors above, the features below; dashed what the method leaves out."""
    above, middle, below = y - 0.95, y - 2.0, y - 3.05
    boxes = {"X": d.box(1.25, middle, 1.5, 0.7, "$X$")}
    places = {"U0": (1.25, above, "data"), "phi_X": (1.25, below, "result")}
    places |= {"phi_Q": (3.35, above, "teacher"), "phi_K": (3.35, middle, "teacher"), "phi_V": (3.35, below, "student")}
    places |= {"s": (5.6, above, "teacher"), "A": (7.8, above, "teacher"), "f": (10.05, above, "student"), "phi_U": (12.2, above, "result")}
    for name, (x, at, colour) in places.items():
        boxes[name] = d.box(x, at, 1.5 if name in ("U0", "phi_X", "phi_U") else 1.7, 0.7, parts[name], colour, dashed=not parts[name])

    def flow(first: str, second: str, sides: str = "right left", shifts: tuple[float, float] = (0, 0), bend: str = "") -> None:
        start, end = (boxes[name].side(side, by) for name, side, by in zip((first, second), sides.split(), shifts))
        d.arrow(start, end, bend=bend, dashed=not all(parts.get(name, "X") for name in (first, second)))

    line = ["U0", "phi_Q", "s", "A", "f", "phi_U"]
    for first, second in [*zip(line, line[1:]), ("X", "phi_K")]:
        flow(first, second)
    flow("X", "phi_V", shifts=(-0.15, 0.15))
    flow("phi_K", "s", "right bottom", bend="-|")
    flow("phi_V", "f", "right bottom", bend="-|")
    flow("X", "phi_X", "bottom top", (-0.3, -0.3))
    flow("phi_X", "X", "top bottom", (0.3, 0.3))
    if iterative:
        d.arrow(boxes["phi_U"].side("top"), boxes["phi_Q"].side("top"), bend="over")
        d.label(7.8, y - 0.1, "repeat")
    for x, at, name in (
        (4.48, above, "Q"),
        (6.7, above, "S"),
        (8.93, above, "A"),
        (11.18, above, "Z"),
        (4.9, middle, "K"),
        (7.0, below, "V"),
    ):
        d.label(x, at + 0.2, f"${name}$")
    d.label(0.5, y - 0.2, title, size=TYPE, weight="bold", ha="left")


# ---- from a run to a verdict ---------------------------------------------------------------------------------------------


def verdict() -> Figure:
    """The way from a recipe to a verdict on a claim."""
    d = Drawing(13.2, 5.6, "From a run to a verdict")
    stations = {
        "recipe": ("data", "all numbers that\na run depends on", "recipes/small.yaml"),
        "run": ("teacher", "a network for each\narm and each seed", "lib/train.py"),
        "record": ("teacher", "a line for each run,\nwith its commit", "records/small/"),
        "differences": ("student", "better arm minus the\nother, seed by seed", "lib/results/"),
        "verdict": ("result", "mean of these, and\nits 95% interval", "docs/evidence.md"),
    }
    boxes = [d.box(1.45 + 2.58 * i, 4.2, 2.0, 0.8, name, row[0]) for i, (name, row) in enumerate(stations.items())]
    for box, (_, what, where) in zip(boxes, stations.values()):
        d.label(box.x, 3.37, what)
        d.label(box.x, 2.8, where, family="DejaVu Sans Mono", colour="0.35")
    for first, second in zip(boxes, boxes[1:]):
        d.arrow(first.side("right"), second.side("left"))
    words = "Three examples. Dots: the differences of three\nseeds. Line: the 95% interval of their mean.\n"
    d.label(0.5, 1.4, words + "A comparison that could not have decided\nis not testable, whatever its numbers are.", ha="left")
    zero, unit = 8.6, 0.32
    d.axis.plot([zero, zero], [0.7, 2.3], color=PALE, lw=1.2, ls=":", zorder=1)
    d.label(zero, 0.42, "0 points")
    for y, gaps in zip((2.0, 1.5, 1.0), ([2.4, 3.0, 3.3], [-1.0, 0.6, 1.9], [-3.3, -2.9, -2.4])):
        found = interval(gaps)
        d.axis.plot([zero + unit * found.low, zero + unit * found.high], [y, y], color=INK, lw=2, zorder=2)
        d.axis.plot([zero + unit * gap for gap in gaps], [y] * len(gaps), "o", color=sns.color_palette("colorblind")[1], ms=8, zorder=3)
        d.label(10.7, y, verdict_of(found), ha="left", size=TYPE)
    return d.figure


def drawings() -> dict[str, Figure]:
    """All drawings by name."""
    return {f"ibot_{step}": ibot(step) for step in range(1, len(STEPS) + 1)} | {"pooling": pooling(), "verdict": verdict()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m course.drawings", description="Write the drawings as pictures, 200 dots an inch.")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawings().items():
        file = options.folder / f"{name}.png"
        figure.savefig(file, dpi=200)
        print(file)


if __name__ == "__main__":
    main()

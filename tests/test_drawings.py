"""The drawings can be read: words lie inside the picture, apart from each other, in their boxes, and no arrow crosses them."""

from itertools import combinations

import matplotlib
import matplotlib.pyplot as plt
import pytest
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from course.drawings import STEPS, drawings, formula, ibot, pooling
from lib.pooling import landscape, pooling_names

matplotlib.use("agg")


def words_of(figure) -> dict:
    """The extent of each label in pixels."""
    figure.canvas.draw()
    return {words: words.get_window_extent() for words in figure.axes[0].texts if words.get_text()}


def faults(figure) -> list[str]:
    axis, words = figure.axes[0], words_of(figure)
    shapes = [patch for patch in axis.patches if isinstance(patch, FancyBboxPatch)]
    arrows = [patch for patch in axis.patches if isinstance(patch, FancyArrowPatch)]
    pictures = [image.get_window_extent() for image in axis.images]
    card, *boxes = [shape.get_window_extent() for shape in shapes]
    found = [f"{a.get_text()!r} overlaps {b.get_text()!r}" for a, b in combinations(words, 2) if words[a].overlaps(words[b])]
    for label, extent in words.items():
        text = label.get_text()
        if not card.contains(*extent.min) or not card.contains(*extent.max):
            found.append(f"{text!r} leaves the card")
        for box in [*boxes, *pictures]:
            if extent.overlaps(box) and not (box.contains(*extent.min) and box.contains(*extent.max)):
                found.append(f"{text!r} crosses the edge of a box")
        for arrow in arrows:
            lines = arrow.get_transform().transform_path(arrow.get_path()).to_polygons(closed_only=False)
            if any(Path(line).intersects_bbox(extent, filled=False) for line in lines):
                found.append(f"{text!r} is crossed by an arrow")
    return found + [f"{a} overlaps {b}" for a, b in combinations(boxes + pictures, 2) if a.overlaps(b)]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_words_can_be_read():
    figures = drawings()
    assert set(figures) == {f"ibot_{step}" for step in range(1, 9)} | {"pooling", "verdict"}
    assert {name: faults(figure) for name, figure in figures.items() if faults(figure)} == {}
    sizes = [words.get_fontsize() for figure in figures.values() for words in words_of(figure)]
    assert min(sizes) >= 12  # points on a card of 13 inches, a slide's width


@pytest.mark.parametrize("name", pooling_names())
def test_every_pooling_can_be_drawn(name):
    assert faults(pooling(name)) == []


def test_faults_are_seen():
    figure = ibot(8)
    axis = figure.axes[0]
    teacher = next(words for words in axis.texts if words.get_text().startswith("teacher"))
    teacher.set_x(8.2)
    assert any("edge of a box" in fault for fault in faults(figure))
    teacher.set_position((6.75, 2.44))
    assert any("overlaps" in fault for fault in faults(figure))
    teacher.set_position((13.1, 6.9))
    assert any("leaves the card" in fault for fault in faults(figure))
    teacher.set_position((8.1, 2.4))
    assert any("crossed by an arrow" in fault for fault in faults(figure))


def test_a_step_only_adds():
    shown: set = set()
    for step in range(1, len(STEPS) + 1):
        title, *words = [words.get_text() for words in ibot(step).axes[0].texts]
        assert title == f"{step}. {STEPS[step - 1]}" and shown <= set(words)
        shown = set(words)
    for wrong in (0, 9, "all"):
        with pytest.raises(ValueError, match="step: got"):
            ibot(wrong)
    with pytest.raises(ValueError, match="names: got 'mean', accepts gap"):
        pooling("mean")


def test_symbols_of_the_table_become_mathematics():
    assert formula("sigma_2(S/sqrt d)") == r"$\sigma_{2}(S/\sqrt{d})$"
    assert formula("FC(avg_3(X))") == r"$\mathrm{FC}(\mathrm{avg}_{3}(X))$"
    assert formula("MLP(g_m^-1(Z))") == r"$\mathrm{MLP}(g_{m}^{-1}(Z))$"
    assert formula("sigma_2(S_i/sqrt d), m heads") == r"$\sigma_{2}(S_{i}/\sqrt{d}),\ m\ \mathrm{heads}$"
    assert formula("") == ""
    drawn = {words.get_text() for words in pooling("simpool").axes[0].texts}
    assert {formula(symbol) for symbol in landscape().loc["simpool", "U0":] if symbol} <= drawn

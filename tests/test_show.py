"""Pictures of what a network attends and of what masks hide."""

import matplotlib
import pytest
import torch
from PIL import Image

from lib import keep
from lib.keep import best_kept, kept_names, network_to_show
from lib.models import create_model
from lib.results.figures import overlay, photographs, views_of
from lib.results.titles import TITLES
from lib.show import main, show

matplotlib.use("Agg")


def rows_of(figure) -> list[str]:
    columns = len(figure.axes) // sum(1 for axis in figure.axes if axis.get_ylabel())
    return [axis.get_ylabel() for axis in figure.axes[::columns]]


def test_every_strategy_has_a_row_and_every_picture_a_column():
    torch.manual_seed(0)
    network = create_model("vit_nano", img_size=48).eval()
    figure = show(torch.randn(2, 3, 48, 48), network, ratio=0.5)
    names = ["picture", "attention", *(TITLES[n] for n in ("block", "random", "attmask_low", "attmask_hint", "attmask_high"))]
    assert rows_of(figure) == names and len(figure.axes) == 2 * len(names)
    assert rows_of(show(torch.randn(1, 3, 48, 48), network, heads=True))[2:6] == [f"head {i}" for i in (1, 2, 3, 4)]
    # AttMask-High leaves what AttMask-Low hides, where both hide half.
    low, high = (
        torch.from_numpy(figure.axes[2 * names.index(TITLES[n])].images[0].get_array().data) for n in ("attmask_low", "attmask_high")
    )
    assert ((low == 0.5).all(-1) ^ (high == 0.5).all(-1)).all()


def test_networks_without_attention_are_refused():
    with pytest.raises(ValueError, match="network: got one without attention"):
        show(torch.randn(1, 3, 64, 64), create_model("resnet_mini").eval())


def test_the_command_shows_files_and_names_what_is_wrong(tmp_path, capsys):
    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    target = tmp_path / "figure.png"
    assert main([str(tmp_path / "red.png"), "--size", "64", "--to", str(target)]) == 0 and Image.open(target).width > 50
    assert capsys.readouterr().out == f"{target}\n"
    (tmp_path / "text.png").write_text("no picture")
    for arguments, problem in (
        ([str(tmp_path / "text.png")], "text.png"),
        ([str(tmp_path / "none.png")], "none.png"),
        (["--network", "nobody"], "name: got 'nobody', accepts"),
        (["--size", "63"], "images: got shape"),
        (["--ratio", "1.5"], "ratio_range: got"),
    ):
        assert main([*arguments, "--to", str(target)]) == 1
        assert problem in capsys.readouterr().err


def test_the_best_kept_network_is_that_with_the_highest_contrast(monkeypatch):
    assert best_kept() in kept_names()
    figures = {
        "a": '{"hidden_attmask_high": 30, "hidden_attmask_low": 20}',
        "b": '{"hidden_attmask_high": 40, "hidden_attmask_low": 30}',
        "c": "{}",
    }
    monkeypatch.setattr(keep, "kept_names", lambda: list(figures))
    monkeypatch.setattr(keep, "_metadata", lambda name: {"metrics": figures[name]})
    assert best_kept() == "a"
    del figures["a"], figures["b"]
    with pytest.raises(ValueError, match="network: got best, but no kept network"):
        best_kept()


def test_networks_of_timm_are_shown_or_refused_by_name(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="network: got 'timm:vit_small_patch16_224.dino', whose weights could not be downloaded"):
        network_to_show("timm:vit_small_patch16_224.dino")
    asked = {}
    monkeypatch.setattr(keep, "create_model", lambda arch, **options: asked.update(options, arch=arch) or create_model("vit_nano"))
    assert not network_to_show("timm:deit_tiny_patch16_224").training
    assert asked == {"arch": "deit_tiny_patch16_224", "pretrained": True}
    assert all(not network_to_show(name).training for name in (kept_names()[0], "best"))


def test_photographs_are_those_of_the_scale():
    views = photographs("smoke", 2, 32)
    assert views.shape == (2, 3, 32, 32) and torch.equal(photographs("smoke", 5, 32)[:2], views)
    with pytest.raises(ValueError, match="count: got 6, accepts 1 to 5"):
        photographs("smoke", 6, 32)


def test_a_file_is_cut_to_its_centre(tmp_path):
    image = Image.new("RGB", (90, 30), "black")
    image.paste("white", (30, 0, 60, 30))
    image.save(tmp_path / "white middle.png")
    assert views_of([str(tmp_path / "white middle.png")], 32)[0, :, 8:-8, 8:-8].min() > 2  # white, normalised


def test_a_map_lies_over_the_picture():
    single = torch.zeros(4, 4)
    single[0, 0] = 1.0
    picture = overlay(torch.full((3, 32, 32), 0.5), single, strength=1.0)
    assert picture[:, :4, :4].mean() > 0.7 and picture[:, 16:, 16:].mean() < 0.15
    assert overlay(torch.full((3, 32, 32), 0.5), torch.ones(4, 4)).isfinite().all()

"""A result answers for its data, its guide and, half-trained, its libraries; asked with others it is refused, and nothing is lost."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from lib import keep, paths
from lib.data.loading import card, read_part, read_table
from lib.data.sources import noted
from lib.measure import measure
from lib.results import basis
from lib.train import run
from tests.test_training import ENTRY, TINY

CARD = """---
license: mit
dataset_info:
  features:
  - {name: image, dtype: image}
  - {name: label, dtype: {class_label: {names: {'0': a, '1': b}}}}
  splits:
  - {name: train, num_bytes: 0, num_examples: 16}
  - {name: validation, num_bytes: 0, num_examples: 4}
companion: {hub: nobody/noise, folders: {noise: 1.0}, layout: [image_folder], columns: {}, images_per_class: 8}
---
"""
NOISE = dict(data="noise", fraction=1.0, batch_size=8)


@pytest.fixture
def noise(tmp_path, monkeypatch):
    """A folder with a small set of two classes, and a run store of its own."""
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COMPANION_DATA", raising=False)
    (tmp_path / "cards" / "noise").mkdir(parents=True)
    (tmp_path / "cards" / "noise" / "README.md").write_text(CARD)
    monkeypatch.setattr(paths, "CARDS", tmp_path / "cards")
    card.cache_clear()
    draw(tmp_path / "data", 0)
    yield tmp_path / "data"
    card.cache_clear()


def draw(root, seed):
    generator = np.random.default_rng(seed)
    for split, count in (("train", 8), ("validation", 2)):
        for label in "ab":
            for number in range(count):
                file = root / "noise" / split / label / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)


def tiny(root, **more):
    return run(ENTRY, device="cpu", progress=False, root=root, **(TINY | more))


def test_what_is_read_is_noted():
    with noted() as sources:
        read_table("scenes", "validation")
        read_part("scenes", "train", 0.02)
        read_part("scenes", "train", 0.02)
    read_table("scenes", "videos")
    assert sources.keys() == {"scenes/validation/1", "scenes/train/0.02"}


def test_content_of_embedded_sets_is_their_code_and_of_missing_ones_unknown(noise):
    assert basis.content("scenes/train/1") == basis.content("scenes/validation/0.5")
    assert basis.content("noise/train/1") is None  # the Hub is not asked
    assert basis.content("noise/train/1", noise / "elsewhere") is None
    assert len({basis.content(f"noise/{part}", noise) for part in ("train/1", "train/0.5", "validation/1")}) == 3


def test_what_comes_from_the_hub_is_written_with_its_content(noise, tmp_path):
    """The data themselves are hashed that were read, wherever they came from."""
    with noted() as sources:
        read_part("noise", "train", 0.5, root=noise)
    basis.write_basis(tmp_path / "basis.json", sources)
    data = json.loads((tmp_path / "basis.json").read_text())["data"]
    assert data == {"noise/train/0.5": basis.content("noise/train/0.5", noise)} and None not in data.values()


def test_other_data_under_the_same_name_are_refused(noise, tmp_path):
    half = tiny(noise, budget=0, **NOISE)
    assert not half.finished and set(json.loads(half.basis.read_text())["data"]) == {"noise/train/1", "noise/validation/1"}
    draw(tmp_path / "others", 1)
    for _ in range(2):  # what is half-trained, then what is finished
        with pytest.raises(ValueError, match=rf"^noise/\w+/1: got \w+, {half.basis} was written with \w+ and accepts no other"):
            tiny(tmp_path / "others", **NOISE)
        done = tiny(noise, **NOISE)
        assert done.finished
    shutil.copytree(noise, tmp_path / "copy")
    assert tiny(tmp_path / "copy", **NOISE).metrics == done.metrics  # the same content elsewhere
    assert tiny(None, **NOISE).metrics == done.metrics  # where the data are not at hand, there is nothing to compare


def test_a_measurement_answers_for_its_data(noise, tmp_path):
    done = tiny(noise, **NOISE)
    settings = dict(data="noise", fraction=1.0)
    found = measure("linear", done, root=noise, device="cpu", progress=False, **settings)
    draw(tmp_path / "others", 1)
    with pytest.raises(ValueError, match="^noise/train/1: got .*linear"):
        measure("linear", done, root=tmp_path / "others", device="cpu", progress=False, **settings)
    assert measure("linear", done, root=noise, device="cpu", progress=False, **settings).metrics == found.metrics


def test_another_network_under_the_guides_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path))
    guided = dict(guide=keep.kept_names()[-1], train_size=48, canvas=48, eval_size=48)
    assert not tiny(None, budget=0, **guided).finished
    monkeypatch.setattr("lib.train.fingerprint", lambda name: "another")
    with pytest.raises(ValueError, match="^guide: got another, "):
        tiny(None, budget=0, **guided)


def test_versions_hold_for_what_is_half_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path))
    half, true = tiny(None, budget=0), basis.versions()
    monkeypatch.setattr(basis, "versions", lambda: true | {"torch": "0.1"})
    with pytest.raises(ValueError, match=f"^torch: got 0.1, {half.basis} was written with {re.escape(true['torch'])} "):
        tiny(None)
    monkeypatch.setattr(basis, "versions", lambda: true)
    done = tiny(None)
    monkeypatch.setattr(basis, "versions", lambda: true | {"torch": "0.1"})
    assert done.finished and tiny(None).metrics == done.metrics  # the result says with which it was made


def test_other_code_that_draws_the_embedded_set_is_other_data(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path))
    assert tiny(None).finished
    monkeypatch.setattr(basis.inspect, "getsource", lambda module: "drawn otherwise")
    with pytest.raises(ValueError, match="^scenes/train/0.02: got .* and accepts no other"):
        tiny(None)


def test_every_flipped_bit_of_a_result_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path))
    done = tiny(None)
    whole, result = done.file.read_bytes(), done.result()
    for place in range(len(whole)):
        done.file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            assert done.result() == result  # a bit of the white space between entries
        except ValueError as error:
            assert str(done.file) in str(error)

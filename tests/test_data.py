"""Cards, the layouts in which people have the sets, banks and streams."""

import importlib
import io
import os
import random
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from lib import paths
from lib.data import Stream, bank, card, card_names, layouts, load
from lib.data.fingerprint import fingerprint
from lib.data.layouts import common
from lib.data.loading import read_table
from lib.data.reading import read_ahead, read_canvas

CLASSES = ["n00000001", "n00000002", "n00000007"]
COLUMNS = {"image": ["image"], "label": ["label"], "boxes": ["bbox"], "filename": ["filename"]}
FRONT = {
    "license": "mit",
    "dataset_info": {
        "features": [
            {"name": "image", "dtype": "image"},
            {"name": "label", "dtype": {"class_label": {"names": dict(enumerate(CLASSES))}}},
            {"name": "filename", "dtype": "string"},
        ],
        "splits": [{"name": "train", "num_bytes": 1, "num_examples": 36}, {"name": "validation", "num_bytes": 1, "num_examples": 6}],
    },
    "companion": {
        "hub": None,
        "folders": {"toy": 1.0, "toy-half": 0.5},
        "layout": ["tiny_imagenet", "parquet", "image_folder"],
        "columns": COLUMNS,
        "images_per_class": 12,
    },
}


def png(seed: int, size=(10, 8)) -> bytes:
    """A small picture as the bytes of a PNG file; ``size`` is (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def pictures(split: str) -> list[SimpleNamespace]:
    """Twelve training pictures and two validation ones of each class, in a shuffled order."""
    found = []
    for label, name in enumerate(CLASSES):
        for i in range(12 if split == "train" else 2):
            filename = f"{name}_{i}.png" if split == "train" else f"val_{2 * label + i}.png"
            found.append(
                SimpleNamespace(
                    label=label, filename=filename, box=[i % 7, 1, i % 7 + 3, 6], data=png(100 * label + i + 1000 * (split != "train"))
                )
            )
    return random.Random(0).sample(found, len(found))


def write_parquet(folder, split: str, rows, file: str | None = None) -> None:
    (folder / (file or f"{split}.parquet")).parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "image": pa.array([{"bytes": p.data, "path": p.filename} for p in rows], layouts.IMAGE),
            "label": [p.label for p in rows],
            "bbox": pa.array([p.box for p in rows], pa.list_(pa.int32(), 4)),
            "filename": [p.filename for p in rows],
        }
    )
    pq.write_table(table, folder / (file or f"{split}.parquet"))


def single_files(folder) -> None:
    for split in ("train", "validation"):
        write_parquet(folder, split, pictures(split))


def hub_shards(folder) -> None:
    for split in ("train", "validation"):
        rows = pictures(split)
        for shard in range(3):
            write_parquet(folder, split, rows[shard::3], f"data/{split}-{shard:05d}-of-00003.parquet")


def shards_at_the_top(folder) -> None:
    for split in ("train", "validation"):
        rows = pictures(split)
        for shard in range(2):
            write_parquet(folder, split, rows[shard::2], f"{split}-{shard:05d}-of-00002.parquet")


def class_folders(folder) -> None:
    for split, name in (("train", "train"), ("validation", "val")):
        for picture in pictures(split):
            file = folder / name / CLASSES[picture.label] / picture.filename
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture.data)
            (file.parent / "notes.txt").write_text("no image")


def official_tiny_imagenet(folder) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "wnids.txt").write_text("\n".join(reversed(CLASSES)) + "\n")
    for picture in pictures("train"):
        home = folder / "train" / CLASSES[picture.label]
        (home / "images").mkdir(parents=True, exist_ok=True)
        (home / "images" / picture.filename).write_bytes(picture.data)
        with open(home / f"{CLASSES[picture.label]}_boxes.txt", "a") as stream:
            stream.write("\t".join(map(str, [picture.filename, *picture.box])) + "\n")
    (folder / "val" / "images").mkdir(parents=True)
    for picture in pictures("validation"):
        (folder / "val" / "images" / picture.filename).write_bytes(picture.data)
        with open(folder / "val" / "val_annotations.txt", "a") as stream:
            stream.write("\t".join(map(str, [picture.filename, CLASSES[picture.label], *picture.box])) + "\n")


LAYOUTS = [single_files, hub_shards, shards_at_the_top, class_folders, official_tiny_imagenet]


def write_card(folder, name: str = "toy", **ours) -> None:
    front = FRONT | {"companion": FRONT["companion"] | ours}
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "README.md").write_text(f"---\n{yaml.safe_dump(front)}---\n\n# Toy\n")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A card ``toy`` and the folder that its local copies go to."""
    write_card(tmp_path / "cards")
    monkeypatch.setattr(paths, "CARDS", tmp_path / "cards")
    card.cache_clear()
    yield tmp_path
    card.cache_clear()


def plain(table: pa.Table) -> list[dict]:
    """Rows with the pictures as pixels, whether they came as bytes or as files."""
    rows = table.to_pylist()
    for row in rows:
        row["image"] = read_canvas(row["image"], 8)[0].tolist()
    return rows


def expected(split: str, boxes: bool = True) -> list[dict]:
    rows = sorted(pictures(split), key=lambda p: (p.label, int(p.filename.rpartition("_")[2][:-4])))
    rows = [
        {"image": read_canvas({"bytes": p.data, "path": None}, 8)[0].tolist(), "label": p.label, "filename": p.filename, "boxes": [p.box]}
        for p in rows
    ]
    return rows if boxes else [{k: v for k, v in row.items() if k != "boxes"} for row in rows]


# ---- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", LAYOUTS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_layout_gives_the_same_table(toy, write, split):
    write(toy / "toy")
    assert plain(read_table("toy", split, root=toy)) == expected(split, boxes=write is not class_folders)


@pytest.mark.parametrize("write", LAYOUTS)
def test_every_layout_gives_the_same_dataset_and_bank(toy, write, monkeypatch):
    write(toy / "toy")
    dataset = load("toy", "train", root=toy)
    assert dataset.features["label"].names == CLASSES
    assert dataset["label"] == [0] * 12 + [1] * 12 + [2] * 12
    assert dataset[13]["image"].size == (10, 8) and dataset[13]["filename"] == "n00000002_1.png"
    monkeypatch.setenv("COMPANION_DATA", str(toy))
    banked = bank("toy", "train", 8, progress=False)
    assert banked.images.tolist() == [np.transpose(row["image"], (2, 0, 1)).tolist() for row in expected("train")]
    assert banked.sizes.tolist() == [[8, 10]] * 36 and banked.labels.tolist() == dataset["label"]


def test_files_are_in_natural_order():
    names = ["a_10.png", "a_9.png", "a_1.png", "b_0.png", "a_100.png", "7.png", "a.png"]
    assert sorted(names, key=common.natural) == ["7.png", "a.png", "a_1.png", "a_9.png", "a_10.png", "a_100.png", "b_0.png"]


def test_the_first_images_of_each_class_are_those_by_string_order(toy):
    """As torchvision's ImageFolder sorts them; they stay in the order of the table, in which numbers count by their value."""
    single_files(toy / "toy")
    table = layouts.first_of_each_class(read_table("toy", "train", root=toy), 5)
    assert table["filename"].to_pylist() == [f"{name}_{i}.png" for name in CLASSES for i in (0, 1, 2, 10, 11)]
    assert len(layouts.first_of_each_class(table, 0)) == 0
    assert len(layouts.first_of_each_class(table, 99)) == 15


def test_a_fraction_takes_the_first_images_of_each_class(toy):
    official_tiny_imagenet(toy / "toy")
    part = bank("toy", "train", 8, fraction=0.25, root=toy, progress=False)
    whole = bank("toy", "train", 8, root=toy, progress=False)
    assert part.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert torch.equal(part.images, torch.cat([whole.images[[12 * c, 12 * c + 1, 12 * c + 10]] for c in range(3)]))
    assert len(bank("toy", "validation", 8, fraction=0.25, root=toy, progress=False)) == 6  # fractions are of training images


@pytest.mark.parametrize("count, per_class", [(29, 100), (57, 100), (260, 1300), (100, 500), (7, 12)])
def test_a_fraction_is_not_short_of_an_image_by_rounding(toy, monkeypatch, count, per_class):
    asked = []
    write_card(toy / "cards", images_per_class=per_class)
    card.cache_clear()
    single_files(toy / "toy")
    monkeypatch.setattr(layouts, "first_of_each_class", lambda table, n: asked.append(n) or table)
    bank("toy", "train", 8, fraction=count / per_class, root=toy, progress=False)
    bank("toy", "train", 8, fraction=float(f"{count / per_class:.2f}") if per_class == 100 else count / per_class, root=toy, progress=False)
    assert asked == [count, count]


def test_a_fraction_that_the_folder_does_not_hold_is_refused(toy):
    single_files(toy / "toy-half")
    assert len(bank("toy", "train", 8, fraction=0.5, root=toy, progress=False)) == 18
    with pytest.raises(ValueError, match=r"fraction: got 0\.6, .*toy-half accepts at most 0\.5"):
        bank("toy", "train", 8, fraction=0.6, root=toy, progress=False)
    for fraction in (0, -0.5, 1.01, float("nan")):
        with pytest.raises(ValueError, match="fraction: got"):
            bank("toy", "train", 8, fraction=fraction, root=toy)


# ---- the Hub ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [hub_shards, class_folders])
def test_a_copy_in_the_hubs_layout_gives_the_same_table(toy, write, monkeypatch):
    """``datasets.load_dataset`` reads a local folder as it reads a repository of the Hub."""
    write(toy / "repository")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(toy / "hf"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", toy / "hf")
    write_card(toy / "cards", hub=str(toy / "repository"))
    card.cache_clear()
    for split in ("train", "validation"):
        assert plain(read_table("toy", split)) == expected(split, boxes=write is not class_folders)
    assert load("toy", "train")["filename"][:2] == ["n00000001_0.png", "n00000001_1.png"]
    assert bank("toy", "train", 8, fraction=0.25, progress=False).labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_a_set_that_is_nowhere_names_its_folders_and_repository():
    with pytest.raises(ValueError, match="imagenette: not under .COMPANION_DATA .*imagenette2-160.* Hub's frgfm/imagenette cannot be read"):
        read_table("imagenette", "train")


# ---- banks and streams ------------------------------------------------------------------------------------------------


def test_a_bank_is_cached_and_reads_the_same(toy, monkeypatch):
    single_files(toy / "toy")
    first = bank("toy", "train", 8, root=toy, progress=False)
    (file,) = (toy / "runs" / "banks").iterdir()
    monkeypatch.setattr(importlib.import_module("lib.data.bank"), "read_canvas", None)  # a second call decodes nothing
    again = bank("toy", "train", 8, root=toy, progress=False)
    assert again.fingerprint == first.fingerprint
    for name in ("images", "sizes", "labels"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{file}: missing or damaged"):
        bank("toy", "train", 8, root=toy, progress=False)


def test_other_pixels_labels_or_sizes_are_another_bank(toy):
    rows = pictures("train")
    fingerprints = []
    for change in ("none", "pixels", "label", "size"):
        if change == "pixels":
            rows[0].data = png(77)
        if change == "label":
            rows[0].label = (rows[0].label + 1) % 3
        write_parquet(toy / "toy", "train", rows)
        fingerprints.append(bank("toy", "train", 9 if change == "size" else 8, root=toy, progress=False).fingerprint)
    assert len(set(fingerprints)) == 3 and fingerprints[2] == fingerprints[3]  # they are of the content, whatever the canvas
    assert len(list((toy / "runs" / "banks").glob("*.safetensors"))) == 4


def test_fingerprints_are_of_content_and_of_no_machine(tmp_path):
    def table(folder, **columns):
        files = [tmp_path / folder / f"{i}.png" for i in range(3)]
        files[0].parent.mkdir(exist_ok=True)
        for i, file in enumerate(files):
            file.write_bytes(png(i))
        made = {"image": pa.array([{"bytes": None, "path": str(file)} for file in files], common.IMAGE)}
        return pa.table(made | {name: pa.array(values) for name, values in columns.items()})

    known = dict(label=[0, 1, 2], boxes=[[[0.0, 0, 1, 1]], [], []])
    first = fingerprint(table("here", **known))
    os.utime(tmp_path / "here" / "0.png", (1, 1))
    assert first == fingerprint(table("there", **known, filename=["a", "b", "c"])) == fingerprint(table("here", **known))
    with_bytes = table("here", **known)
    inside = [{"bytes": png(i), "path": "elsewhere"} for i in range(3)]
    assert first == fingerprint(with_bytes.set_column(0, "image", pa.array(inside, common.IMAGE)))
    others = [table("here", **known | dict(label=[0, 1, 1])), table("here", **known | dict(boxes=[[[0.0, 0, 1, 2]], [], []]))]
    masked = [table("here", **known).append_column("mask", table(folder).column("image")) for folder in ("here", "there")]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "0.png").write_bytes(png(9))
    mask = pa.array([{"bytes": None, "path": str(tmp_path / "more" / "0.png")}] * 3, common.IMAGE)
    others.append(table("here", **known).append_column("mask", mask))
    assert fingerprint(masked[0]) == fingerprint(masked[1])
    assert len({first, fingerprint(masked[0]), *map(fingerprint, others)}) == 5


def test_reading_ahead_keeps_the_order():
    groups = [range(0, 5), range(5, 6), range(6, 20)]
    read = read_ahead(lambda i: time.sleep(0.002 * (i % 3)) or i, groups, ahead=2)
    assert list(read) == [list(group) for group in groups]


@pytest.mark.parametrize("write", [single_files, class_folders])
def test_a_stream_gives_what_a_bank_gives(toy, write):
    write(toy / "toy")
    banked = bank("toy", "train", 8, root=toy, progress=False)
    streamed = bank("toy", "train", 8, root=toy, max_bytes=100)
    assert isinstance(streamed, Stream) and len(streamed) == len(banked) == 36
    assert torch.equal(streamed.labels, banked.labels)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0))
    batches = [*order.split(7), order[:0], order[:1]]
    pairs = list(zip(banked.batches(batches[:6]), streamed.batches(batches[:6]), strict=True))
    assert len(pairs) == 6
    for ours, theirs in pairs:
        for a, b in zip(ours, theirs):
            assert torch.equal(a, b.to(a.dtype))


def test_a_stream_can_be_left_early(toy):
    single_files(toy / "toy")
    streamed = bank("toy", "train", 8, root=toy, max_bytes=100)
    for images, _, _ in streamed.batches(torch.arange(36).split(4)):
        assert images.shape == (4, 3, 8, 8)
        break


def test_wide_grey_and_transparent_images_become_rgb_squares(tmp_path):
    for mode, size in (("L", (30, 7)), ("RGBA", (5, 21)), ("P", (9, 9)), ("CMYK", (64, 64))):
        file = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
        Image.new(mode, size, None).save(file)
        pixels, original = read_canvas({"bytes": None, "path": str(file)}, 8)
        assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8 and original == (size[1], size[0])


def test_a_large_jpeg_is_decoded_as_it_would_be_at_full_size():
    gradient = np.linspace(0, 255, 400)[None, :, None] * np.ones((300, 1, 3)) * np.array([1.0, 0.5, 0.2])
    stream = io.BytesIO()
    Image.fromarray(gradient.astype(np.uint8)).save(stream, "jpeg", quality=95)
    pixels, original = read_canvas({"bytes": stream.getvalue(), "path": "a.jpg"}, 32)
    whole = np.asarray(Image.open(io.BytesIO(stream.getvalue())).resize((32, 32), Image.Resampling.BICUBIC))
    assert original == (300, 400)
    assert np.abs(pixels.astype(int) - whole.astype(int)).max() <= 4


# ---- damage -----------------------------------------------------------------------------------------------------------


def damaged(data: bytes, how: str) -> bytes:
    cut, text, empty = data[: len(data) // 2], b"not an image", b"\x00"
    return {"cut": cut, "text": text, "empty": empty}[how]


@pytest.mark.parametrize("how", ["cut", "text", "empty"])
@pytest.mark.parametrize("write", [single_files, class_folders, official_tiny_imagenet])
def test_a_damaged_image_is_named(toy, write, how):
    write(toy / "toy")
    if write is single_files:
        rows = pictures("train")
        next(p for p in rows if p.filename == "n00000002_3.png").data = damaged(png(1), how)
        write_parquet(toy / "toy", "train", rows)
    else:
        file = next((toy / "toy").rglob("n00000002_3.png"))
        file.write_bytes(damaged(file.read_bytes(), how))
    for options in ({}, {"max_bytes": 100}):
        with pytest.raises(ValueError, match=r"n00000002_3\.png \(row 15\): damaged"):
            list(bank("toy", "train", 8, root=toy, progress=False, **options).batches(torch.arange(36).split(9)))


def test_whatever_is_damaged_in_an_image_is_a_value_error():
    generator = random.Random(0)
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(stream, "jpeg")
    refused = 0
    for data in (png(0, (24, 24)), stream.getvalue()):
        for _ in range(300):
            broken = bytearray(data)
            for _ in range(generator.randint(1, 12)):
                broken[generator.randrange(len(broken))] = generator.randrange(256)
            try:
                read_canvas({"bytes": bytes(broken[: generator.randint(1, len(broken))]), "path": "broken.png"}, 8)
            except ValueError as error:
                refused += str(error).startswith("broken.png: damaged")
    assert refused > 300


def test_a_damaged_parquet_file_is_named(toy):
    single_files(toy / "toy")
    file = toy / "toy" / "train.parquet"
    for data in (file.read_bytes()[:-50], b"", b"no parquet at all"):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{file}: damaged"):
            read_table("toy", "train", root=toy)


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_missing_column_is_named_with_the_file(toy, column):
    single_files(toy / "toy")
    file = toy / "toy" / "train.parquet"
    pq.write_table(pq.read_table(file).drop_columns([column]), file)
    with pytest.raises(ValueError, match=rf"{file}: has no column {column}, only "):
        read_table("toy", "train", root=toy)


def test_missing_or_damaged_annotations_are_named(toy):
    official_tiny_imagenet(toy / "toy")
    boxes, listing = toy / "toy/train/n00000002/n00000002_boxes.txt", toy / "toy/val/val_annotations.txt"
    for file, split in ((boxes, "train"), (listing, "validation")):
        good = file.read_text()
        first = good.splitlines()[0].split("\t")
        numberless = "\t".join([*first[:-1], "x"])
        for text in (good + "only a name\n", good + numberless + "\n"):
            file.write_text(text)
            with pytest.raises(ValueError, match=rf"{file}: line "):
                read_table("toy", split, root=toy)
        file.unlink()
        with pytest.raises(ValueError, match=rf"{file}: no such annotation file"):
            read_table("toy", split, root=toy)
        file.write_text(good)


def test_a_missing_image_or_class_folder_is_named(toy):
    official_tiny_imagenet(toy / "toy")
    file = toy / "toy/val/images/val_3.png"
    file.unlink()
    with pytest.raises(ValueError, match=str(file)):
        bank("toy", "validation", 8, root=toy, progress=False)
    folder = toy / "toy/train/n00000007"
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=str(folder)):
        read_table("toy", "train", root=toy)


def test_names_splits_and_roots_are_checked(toy):
    with pytest.raises(ValueError, match="name: got 'nothing', accepts toy"):
        load("nothing", "train")
    with pytest.raises(ValueError, match="split: got 'test', toy accepts train, validation"):
        load("toy", "test")
    with pytest.raises(ValueError, match="root: got .* none of the folders toy, toy-half"):
        load("toy", "train", root=toy)
    (toy / "toy").mkdir()
    with pytest.raises(ValueError, match=rf"{toy / 'toy'}: holds no split 'train' in the layouts"):
        load("toy", "train", root=toy)


@pytest.mark.parametrize("text", ["no front matter", "---\nlicense: mit\n---\n", "---\na: [\n---\n", "---\n- a\n---\n"])
def test_a_damaged_card_is_named(toy, text):
    file = toy / "cards" / "toy" / "README.md"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"{file}: front matter is incomplete or damaged"):
        card("toy")


# ---- the cards --------------------------------------------------------------------------------------------------------

TERMS = {"cifar10": "research", "cifar100": "research", "flowers102": "research", "scenes": "generated", "photographs": "public domain"}


@pytest.mark.parametrize("name", card_names())
def test_the_front_matter_of_every_card_is_what_the_hub_reads(name):
    import datasets
    from huggingface_hub import DatasetCard

    content = (paths.CARDS / name / "README.md").read_text()
    parsed = DatasetCard(content)
    assert parsed.data.pretty_name and len(parsed.data.task_categories) == 1
    assert parsed.data.license and (parsed.data.license != "other" or parsed.data.to_dict()["license_name"])
    info = datasets.DatasetInfo._from_yaml_dict(parsed.data.dataset_info)
    assert isinstance(info.features["image"], datasets.Image) and "filename" in info.features
    labelled = parsed.data.task_categories == ["image-classification"]
    assert ("label" in info.features) == labelled and (not labelled or {"validation", "test"} & set(info.splits))
    for split in info.splits.values():
        assert split.num_examples > 0 and split.num_bytes is not None and (split.num_bytes > 0 or name == "scenes")
        assert card(name).splits[split.name] == split.num_examples
    if isinstance(info.features.get("label"), datasets.ClassLabel):
        assert info.features["label"].names == card(name).class_names
    assert parsed.text.strip().startswith("# ")
    assert TERMS.get(name, "non-commercial research only") in parsed.text
    assert set(card(name).local_splits) <= set(info.splits)


def test_every_set_of_the_recipes_has_a_card():
    assert {"cifar10", "cifar100", "imagenet-1k", "imagenette", "scenes", "tiny-imagenet"} <= set(card_names())
    assert card("imagenet-1k").images_per_class * 0.2 == 260 and card("tiny-imagenet").images_per_class * 0.2 == 100


def test_scenes_need_nothing():
    dataset = load("scenes", "validation")
    assert len(dataset) == 500 and dataset[3]["image"].size == (64, 64) and len(dataset.features["label"].names) == 10
    banked = bank("scenes", "validation", 64)
    assert banked.labels.tolist() == dataset["label"]
    assert np.array_equal(np.asarray(dataset[3]["image"]), banked.images[3].permute(1, 2, 0).numpy())
    assert len(bank("scenes", "train", 32, fraction=0.15)) == 300
    with pytest.raises(ValueError, match="split: got 'test', scenes accepts train, validation"):
        bank("scenes", "test", 32)
    with pytest.raises(ValueError, match="fraction"):
        bank("scenes", "train", 32, fraction=1e-6)


# ---- real data --------------------------------------------------------------------------------------------------------

REAL = {
    ("tiny-imagenet", "train"): ("tiny-imagenet-20pct", 20_000, 200, 100),
    ("tiny-imagenet", "validation"): ("tiny-imagenet-20pct", 10_000, 200, 50),
    ("imagenette", "train"): ("imagenette-112", 9_469, 10, None),
    ("imagenette", "validation"): ("imagenette-112", 3_925, 10, None),
    ("cifar10", "train"): ("cifar10", 50_000, 10, 5_000),
    ("cifar10", "validation"): ("cifar10", 10_000, 10, 1_000),
}


@pytest.mark.data
@pytest.mark.parametrize("name, split", REAL)
def test_real_sets_load(real_data, name, split):
    folder, count, classes, each = REAL[name, split]
    if not (real_data / folder).is_dir():
        pytest.skip(f"no {folder} in {real_data}")
    dataset = load(name, split, root=real_data)
    labels = np.array(dataset["label"])
    assert len(dataset) == count and (np.diff(labels) >= 0).all()
    assert set(np.bincount(labels, minlength=classes)) == {each} if each else len(set(labels)) == classes
    assert dataset[0]["image"].mode == "RGB" and isinstance(dataset.features["label"].names[0], str)
    if name == "tiny-imagenet":
        boxes = np.array(dataset["boxes"]).squeeze(1)
        assert (boxes[:, 2:] >= boxes[:, :2]).all() and boxes.max() <= 64
    if split == "train" and name == "tiny-imagenet":
        assert dataset["filename"][:3] == ["n01443537_0.JPEG", "n01443537_1.JPEG", "n01443537_2.JPEG"]
        assert dataset["filename"][100] == "n01629819_0.JPEG"
        assert dataset[0]["boxes"] == [[0, 10, 63, 58]]
    if name == "imagenette":
        boxed = [filename for filename, boxes in zip(dataset["filename"], dataset["boxes"]) if boxes]
        assert len(boxed) == (366 if split == "train" else 134)
        assert all(filename.startswith("ILSVRC2012_val_") for filename in boxed)


@pytest.mark.data
def test_the_20_percent_protocol_on_real_data(real_data):
    if not (real_data / "tiny-imagenet-20pct").is_dir():
        pytest.skip(f"no tiny-imagenet-20pct in {real_data}")
    with pytest.raises(ValueError, match="tiny-imagenet-20pct accepts at most 0.2"):
        bank("tiny-imagenet", "train", 64, root=real_data)
    part = bank("tiny-imagenet", "train", 64, fraction=0.01, root=real_data, progress=False)
    assert part.labels.bincount().tolist() == [5] * 200
    whole = load("tiny-imagenet", "train", root=real_data)
    assert np.array_equal(part.images[7].permute(1, 2, 0).numpy(), np.asarray(whole[110]["image"]))  # 0, 1, 10, 11, 12 of each class
    streamed = bank("tiny-imagenet", "train", 64, fraction=0.01, root=real_data, max_bytes=1)
    images, sizes, labels = next(streamed.batches([torch.tensor([7, 500])]))
    assert torch.equal(images, part.images[[7, 500]]) and torch.equal(labels, part.labels[[7, 500]])


def test_imagenet_9_is_read_as_it_is_released(tmp_path):
    for variant in ("original", "only_fg"):
        for place in ("00_dog", "08_fish"):
            folder = tmp_path / "bg_challenge" / variant / "val" / place
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), "red" if variant == "original" else "blue").save(folder / f"{place}.JPEG", "JPEG")
    dataset = load("in9", "validation", root=tmp_path)
    assert list(dataset["variant"]) == ["only_fg"] * 2 + ["original"] * 2 and list(dataset["label"]) == [0, 8, 0, 8]
    assert dataset.features["label"].int2str(8) == "fish" and dataset[0]["image"].getpixel((4, 4))[2] > 200
    (tmp_path / "bg_challenge" / "original" / "val" / "dog").mkdir()
    with pytest.raises(ValueError, match="dog: is not named <number>_<class>"):
        load("in9", "validation", root=tmp_path)

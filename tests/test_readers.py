"""What users have on disk is read rightly or refused by name: classes, sizes, boxes, shards, masks, damage."""

import io
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib import paths
from lib.data import bank, card, load
from lib.data.bank import Stream
from lib.data.fingerprint import fingerprint
from lib.data.layouts import IMAGE, common
from lib.data.layouts.objects import read_coco, read_davis, read_masked, read_voc
from lib.data.loading import read_part, read_table
from lib.data.reading import Damage, encoded, read_canvas, read_fitted, read_image, read_mask, read_objects
from lib.data.segmentation import VOID, InstanceDataset, SemanticDataset
from lib.evaluation.backgrounds import known_objects
from lib.evaluation.detection import average_precision
from lib.evaluation.objects import true_objects

SIZE = (12, 9)  # (width, height) of all pictures


def png(pixels=None, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((SIZE[1], SIZE[0], 3), np.uint8) if pixels is None else pixels).save(stream, "png", **options)
    return stream.getvalue()


def write(file, content=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png() if content is None else content if isinstance(content, bytes) else str(content).encode())
    return file


@pytest.fixture
def make_card(tmp_path, monkeypatch):
    """Writes the only card, ``toy``, whose folder is ``toy``."""
    monkeypatch.setattr(paths, "CARDS", tmp_path / "cards")

    def make(names=("a", "b", "c"), count=99, classes="label", **ours):
        kind = {"class_label": {"names": names if isinstance(names, dict) else dict(enumerate(names))}} if names else "int64"
        feature = {"name": "label", "dtype": kind} if classes == "label" else {"name": "classes", "list": kind}
        splits = [{"name": split, "num_bytes": 1, "num_examples": count} for split in ("train", "validation")]
        ours = {"hub": None, "folders": {"toy": 1.0}, "layout": ["parquet", "image_folder"], "images_per_class": 9} | ours
        front = {"license": "mit", "dataset_info": {"features": [feature], "splits": splits}, "companion": ours}
        write(tmp_path / "cards" / "toy" / "README.md", f"---\n{yaml.safe_dump(front)}---\n\n# Toy\n")
        card.cache_clear()
        return tmp_path / "toy"

    yield make
    card.cache_clear()


def read(folder, split="train"):
    return read_table("toy", split, root=folder.parent)


def labels(folder, split="train"):
    table = read(folder, split)
    return dict(zip(table["filename"].to_pylist(), table["label"].to_pylist()))


# ---- classes ----------------------------------------------------------------------------------------------------------


def class_folders(folder, names, split="train"):
    for name in names:
        write(folder / split / name / f"of {name}.png")
    return folder


def test_numbered_class_folders_have_the_card_s_numbers(make_card):
    names = {str(i): i for i in (0, 10, 11, *range(1, 10))}  # as YAML may list them
    folder = class_folders(make_card(names), map(str, range(12)))
    assert labels(folder) == {f"of {i}.png": i for i in range(12)}
    assert card("toy").class_names == [str(i) for i in range(12)]


def test_a_class_without_images_in_a_split_moves_no_label(make_card):
    folder = class_folders(class_folders(make_card(), "abc"), "ac", "val")
    with pytest.raises(ValueError, match=re.escape(f"{folder / 'val' / 'b'}: no such folder")):
        read(folder, "validation")
    (folder / "val" / "b").mkdir()
    assert labels(folder, "validation") == {"of a.png": 0, "of c.png": 2}


def test_without_a_list_of_classes_folders_have_no_numbers(make_card):
    folder = class_folders(class_folders(make_card(names=None), "abc"), "ac", "val")
    with pytest.raises(ValueError, match=r"accepts a list of their names in the data card, or .*classes\.txt"):
        read(folder, "validation")
    write(folder / "classes.txt", "c\nb\na\n")
    (folder / "val" / "b").mkdir()
    assert labels(folder, "validation") == {"of c.png": 0, "of a.png": 2} and labels(folder) == {
        "of c.png": 0,
        "of b.png": 1,
        "of a.png": 2,
    }


def test_a_foreign_class_folder_is_refused(make_card):
    folder = class_folders(make_card(), "abcd")
    with pytest.raises(ValueError, match=re.escape(f"{folder / 'train' / 'd'}: is none of the 3 classes a, b, c")):
        read(folder)


@pytest.mark.parametrize(
    "stray", [".a/x.png", "__MACOSX/._x.png", "a/._of a.png", "a/.DS_Store", "b/.hidden.jpg", ".ipynb_checkpoints/x.png"]
)
def test_hidden_files_and_those_of_macos_are_skipped(make_card, stray):
    folder = class_folders(make_card(), "abc")
    write(folder / "train" / stray, b"no image")
    assert labels(folder) == {"of a.png": 0, "of b.png": 1, "of c.png": 2}
    assert bank("toy", "train", 8, root=folder.parent, progress=False).labels.tolist() == [0, 1, 2]


def test_hidden_files_beside_masks_and_frames_are_skipped(tmp_path):
    for part in ("x/a.png", "x/._a.png", "y/a.png", "JPEGImages/480p/s/0.jpg", "JPEGImages/480p/s/._0.jpg", "JPEGImages/480p/.s/0.jpg"):
        write(tmp_path / part)
    assert read_masked(tmp_path, "x:y", {}, [])["filename"].to_pylist() == ["a.png"]
    assert read_davis(tmp_path, "480p/val", {}, [])["sequence"].to_pylist() == ["s"]


def test_imagenet_9_has_no_hidden_variants_and_no_tenth_class(tmp_path):
    for place in ("original/val/00_dog/a.JPEG", "__MACOSX/val/00_dog/a.JPEG", "original/val/.x/a.JPEG"):
        write(tmp_path / "in9" / place)
    assert read_table("in9", "validation", root=tmp_path)["variant"].to_pylist() == ["original"]
    write(tmp_path / "in9" / "original" / "val" / "09_cat" / "b.JPEG")
    with pytest.raises(ValueError, match=r"in9: b\.JPEG \(row 1\): has the label 9, accepts 0 to 8"):
        read_table("in9", "validation", root=tmp_path)


def parquet(file, labels=(0, 1, 2), names=None, **columns):
    """One row a label; ``names`` are the classes in the Hub's metadata."""
    columns = {"image": pa.array([{"bytes": png(), "path": f"{i}.png"} for i in range(len(labels))], IMAGE), "label": labels} | columns
    table = pa.table({name: column for name, column in columns.items() if column is not None})
    if names:
        info = {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


@given(order=st.permutations("abc"))
@settings(max_examples=6, deadline=None)
def test_the_hub_s_classes_in_another_order_get_the_card_s_numbers(order):
    table = pa.table({"image": pa.array([{"bytes": png(), "path": f"{name}.png"} for name in order], IMAGE), "label": [0, 1, 2]})
    info = {"info": {"features": {"label": {"names": list(order)}}}}
    ours = common.with_our_columns(table.replace_schema_metadata({"huggingface": json.dumps(info)}), {}, "here", ["a", "b", "c"])
    assert dict(zip(ours["filename"].to_pylist(), ours["label"].to_pylist())) == {"a.png": 0, "b.png": 1, "c.png": 2}


def test_parquet_files_in_another_order_too(make_card):
    folder = make_card()
    parquet(folder / "train.parquet", names="cab")
    assert labels(folder) == {"0.png": 2, "1.png": 0, "2.png": 1}
    parquet(folder / "train.parquet", names=["one", "two", "three"])  # words for all: in the card's order
    assert labels(folder) == {"0.png": 0, "1.png": 1, "2.png": 2}
    for names in ("abd", "ab", "abcd", "abb"):
        parquet(folder / "train.parquet", names=names)
        with pytest.raises(ValueError, match=rf"{folder / 'train.parquet'}: names {len(names)} classes, the card 3"):
            read(folder)


def test_a_repository_of_the_hub_in_another_order_too(make_card, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    make_card(hub=str(tmp_path / "repository"))
    parquet(tmp_path / "repository" / "data" / "train-00000-of-00001.parquet", names="cab")
    table = read_table("toy", "train")
    assert dict(zip(table["filename"].to_pylist(), table["label"].to_pylist())) == {"0.png": 2, "1.png": 0, "2.png": 1}
    assert load("toy", "train").features["label"].names == ["a", "b", "c"]


@pytest.mark.parametrize("wrong", [-1, 3])
def test_labels_of_no_class_are_refused(make_card, wrong):
    folder = make_card()
    parquet(folder / "train.parquet", [0, wrong, 2])
    with pytest.raises(ValueError, match=rf"{folder}: 1\.png \(row {0 if wrong < 0 else 2}\): has the label {wrong}, accepts 0 to 2"):
        read(folder)
    folder = make_card(names=None)
    if wrong < 0:
        with pytest.raises(ValueError, match="has the label -1"):
            read(folder)


def test_the_first_images_are_those_by_string_order(make_card):
    """n01440764_10026 comes before n01440764_9981, as in AttMask's 20%."""
    folder = make_card(names=["a"], images_per_class=4)
    for number in (9981, 10026, 7, 10):
        write(folder / "train" / "a" / f"n_{number}.png")
    assert read_part("toy", "train", 0.5, root=folder.parent)["filename"].to_pylist() == ["n_10.png", "n_10026.png"]
    assert read(folder)["filename"].to_pylist() == ["n_7.png", "n_10.png", "n_9981.png", "n_10026.png"]


@pytest.mark.parametrize("name, split, count", [("imagenet-1k", "train", 1000), ("cifar100", "train", 100), ("coco2017", "train", 80)])
def test_cards_list_all_classes(name, split, count):
    assert len(set(card(name).class_names)) == count


# ---- shards -----------------------------------------------------------------------------------------------------------


def shards(folder, *names):
    for i, name in enumerate(names):
        rows = {"image": pa.array([{"bytes": png(), "path": f"{i}.png"}], IMAGE)}
        parquet(folder / f"{name}.parquet", [i % 3], **rows)
    return folder


@pytest.mark.parametrize("names", [
    ["train"], ["train-00000-of-00002", "train-00001-of-00002"], ["data/train-00000-of-00001-1359597a978bc4fa"],
    ["train", "data/validation-00000-of-00001", "trainer-00000-of-00001"],
])  # fmt: skip
def test_whole_sets_of_shards_are_read(make_card, names):
    assert len(read(shards(make_card(), *names))) == sum("train" in name and "trainer" not in name for name in names)


@pytest.mark.parametrize("names", [
    ["train-00001-of-00002"], ["train-00000-of-00003", "train-00002-of-00003"], ["train", "train-00000-of-00001"],
    ["train-00000-of-00001", "data/train-00000-of-00001"], ["train-00000-of-00001", "train-00001-of-00002"],
    ["train-0", "train-1"], ["train-00000-of-00002-aa", "train-00000-of-00002-bb"], ["train-copy"],
])  # fmt: skip
def test_missing_and_foreign_shards_are_refused(make_card, names):
    folder = shards(make_card(), *names)
    with pytest.raises(ValueError, match=rf"^{folder}.*(accepts each from 0 to|lies beside)"):
        read(folder)


def test_more_images_than_the_card_lists_are_refused(make_card):
    folder = make_card(count=2)
    parquet(folder / "train.parquet")
    with pytest.raises(ValueError, match=rf"{folder}: holds 3 images of train, accepts at most 2"):
        read(folder)


@pytest.mark.parametrize("change", [dict(names="cab"), dict(label=pa.array([0], pa.int32()))])
def test_shards_that_differ_are_refused(make_card, change):
    folder = shards(make_card(), "train-00000-of-00002")
    parquet(folder / "train-00001-of-00002.parquet", [0], **change)
    with pytest.raises(ValueError, match=rf"^{folder}/train-00001-of-00002\.parquet: has other columns or classes"):
        read(folder)


# ---- sizes and boxes --------------------------------------------------------------------------------------------------


def voc(folder, stem="1", box=(2, 2, 5, 5), size="<size><width>12</width><height>9</height></size>"):
    sides = "".join(f"<{side}>{edge}</{side}>" for side, edge in zip(("xmin", "ymin", "xmax", "ymax"), box))
    write(folder / "V" / "Annotations" / f"{stem}.xml", f"<annotation>{size}<object><bndbox>{sides}</bndbox></object></annotation>")
    write(folder / "V" / "JPEGImages" / f"{stem}.jpg")
    write(folder / "V" / "ImageSets" / "Main" / "all.txt", f"{stem}\n")
    return read_voc(folder, "V/all", {}, [])


def coco(folder, names=(), *, image=None, categories=({"id": 1, "name": "cat"},), **annotation):
    things = [{"id": 5, "image_id": 3, "category_id": 1, "bbox": [1, 1, 4, 4], "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]} | annotation]
    content = {"images": [{"id": 3, "file_name": "a.png"} | (image or {})], "categories": list(categories), "annotations": things}
    write(folder / "annotations" / "instances_v.json", json.dumps(content))
    write(folder / "v" / "a.png")
    return read_coco(folder, "v", {}, list(names))


BAD_BOXES = {
    "swapped": [5, 2, 3, 4],
    "nan": [1, 1, float("nan"), 4],
    "right": [1, 1, 14, 4],
    "above": [1, -3, 4, 4],
    "beyond": [90, 90, 99, 99],
}


@pytest.mark.parametrize("box", BAD_BOXES.values(), ids=BAD_BOXES.keys())
@pytest.mark.parametrize("reader", ["voc", "coco", "parquet", "one", "cub", "wsol"])
def test_boxes_that_are_none_or_outside_are_named(tmp_path, make_card, reader, box):
    x0, y0, x1, y1 = box
    if reader == "voc":

        def call():
            return voc(tmp_path, box=(x0 + 1, y0 + 1, x1, y1))
    elif reader == "coco":

        def call():
            return coco(tmp_path, bbox=[x0, y0, x1 - x0, y1 - y0])
    elif reader in ("parquet", "one"):
        folder = make_card(columns={"boxes": ["bbox"]})
        given = [[1, 1, 2, 2], box, [0, 0, 12, 9]]
        parquet(folder / "train.parquet", bbox=[[b] for b in given] if reader == "parquet" else given)

        def call():
            return read(folder)
    else:
        folder = tmp_path / "set"
        files = {"images": "1 a.png\n", "image_class_labels": "1 1\n", "train_test_split": "1 0\n"}
        files["bounding_boxes"] = f"1 {x0} {y0} {x1 - x0} {y1 - y0}\n"
        wsol = {"image_ids": "a.png\n", "class_labels": "a.png,0\n", "localization": ",".join(map(str, ["a.png", *box])) + "\n"}
        for name, text in (files if reader == "cub" else wsol).items():
            write(folder / ("" if reader == "cub" else "metadata/CUB/test") / f"{name}.txt", text)
        write(folder / ("images" if reader == "cub" else "dataset/CUB") / "a.png")
        from lib.data.layouts import LAYOUTS

        def call():
            return LAYOUTS[reader](folder, "CUB/test", {}, [])

    with pytest.raises(ValueError, match=r"(1\.png \(row 1\)|1\.jpg|1\.xml|a\.png|instances_v\.json|\.txt).*(box 0 is \[|damaged)"):
        call()


def test_boxes_may_end_on_the_last_pixel_or_begin_at_1():
    common.check_boxes([[0, 0, 12, 9], [-1, -1, 13, 10], [3, 3, 3, 3]], (9, 12), "x")
    for box in ([-1.1, 0, 1, 1], [0, 0, 13.1, 1], [0, 0, 1, 10.1], [0, 0, 1], None, [0, 0, None, 1]):
        with pytest.raises(ValueError, match=r"^x: box 0 is .*accepts"):
            common.check_boxes([box], (9, 12), "x")


def test_annotated_sizes_are_compared(tmp_path):
    assert len(voc(tmp_path)) == len(coco(tmp_path, image=dict(height=9, width=12))) == 1
    for call in (
        lambda: voc(tmp_path, size="<size><width>13</width><height>9</height></size>"),
        lambda: coco(tmp_path, image=dict(height=9, width=13)),
    ):
        with pytest.raises(ValueError, match=r"[1a]\.(jpg|png) \(row 0\): has \(height, width\) \(9, 12\), its annotation says \(9, 13\)"):
            call()


def test_images_that_cannot_be_read_are_left_to_whoever_decodes_them(tmp_path):
    voc(tmp_path)
    write(tmp_path / "V" / "JPEGImages" / "1.jpg", b"no image")
    assert len(read_voc(tmp_path, "V/all", {}, [])) == 1


def turned(file):
    """Red on the left, blue on the right; EXIF says that it is to be shown turned by a quarter."""
    pixels = np.zeros((9, 12, 3), np.uint8)
    pixels[:, :6, 0] = pixels[:, 6:, 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, quality=100, exif=exif)
    return {"bytes": None, "path": str(file)}


def test_exif_turns_nothing(tmp_path):
    """Pixels, sizes and boxes are of the stored image, as in Pillow and torchvision."""
    picture = turned(tmp_path / "a.jpg")
    assert Image.open(tmp_path / "a.jpg").getexif()[0x0112] == 6
    for pixels, size in (read_canvas(picture, 8), read_fitted(picture)):
        assert size == (9, 12) and (pixels[:, 0, 0] > 200).all() and (pixels[:, -1, 2] > 200).all()
    assert read_image(picture).size == (12, 9) and read_image(picture, [0, 0, 5, 9]).getpixel((2, 2))[0] > 200
    (tmp_path / "b").mkdir()
    voc(tmp_path)
    turned(tmp_path / "V" / "JPEGImages" / "1.jpg")
    assert read_voc(tmp_path, "V/all", {}, [])["boxes"].to_pylist() == [[[1, 1, 5, 5]]]
    xml = tmp_path / "V" / "Annotations" / "1.xml"
    xml.write_text(xml.read_text().replace("<width>12</width><height>9</height>", "<width>9</width><height>12</height>"))
    with pytest.raises(ValueError, match="as turned by EXIF"):
        read_voc(tmp_path, "V/all", {}, [])


def test_ids_and_names_are_unique(tmp_path):
    coco(tmp_path)
    file = tmp_path / "annotations" / "instances_v.json"
    good = json.loads(file.read_text())
    for part in ("images", "annotations", "categories"):
        file.write_text(json.dumps(good | {part: good[part] * 2}))
        with pytest.raises(ValueError, match=rf"{file}: damaged annotations .the id . is of two"):
            read_coco(tmp_path, "v", {}, [])
    file.write_text(json.dumps(good | {"images": good["images"] + [good["images"][0] | {"id": 4}]}))
    with pytest.raises(ValueError, match=r"a\.png: is listed 2 times"):
        read_coco(tmp_path, "v", {}, [])
    voc(tmp_path)
    write(tmp_path / "V" / "ImageSets" / "Main" / "all.txt", "1\n1\n")
    with pytest.raises(ValueError, match=r"1\.jpg: is listed 2 times"):
        read_voc(tmp_path, "V/all", {}, [])
    write(tmp_path / "x" / "a.png"), write(tmp_path / "x" / "a.jpg")
    with pytest.raises(ValueError, match=r"y/a\.png: is listed 2 times"):
        read_masked(tmp_path, "x:y", {}, [])


def test_rows_of_a_parquet_file_are_unique(make_card):
    folder = make_card()
    parquet(folder / "train.parquet", [0, 0, 2], image=pa.array([{"bytes": png(), "path": "x.png"}] * 3, IMAGE))
    with pytest.raises(ValueError, match=rf"{folder}/train\.parquet: 2 rows are of the file x\.png and the label 0"):
        read(folder)


# ---- COCO -------------------------------------------------------------------------------------------------------------


def test_categories_are_numbered_by_the_card_s_names(tmp_path):
    """Whatever the ids, and though only the used ones are listed."""
    assert coco(tmp_path, ["dog", "cat"])["classes"].to_pylist() == [[1]]
    assert coco(tmp_path, ["cat", "dog"], categories=[{"id": 1, "name": "dog"}])["classes"].to_pylist() == [[1]]
    with pytest.raises(ValueError, match=r"instances_v\.json: .*category 'cat' is none of the card's 1 classes dog"):
        coco(tmp_path, ["dog"])


def test_the_card_s_list_of_classes_of_objects_reaches_coco(make_card):
    folder = make_card(["dog", "cat"], classes="classes", layout=["coco"], local_splits={"train": "v"})
    coco(folder)
    assert (
        read(folder)["classes"].to_pylist() == [[1]]
        and load("toy", "train", root=folder.parent).features["classes"].feature.names[1] == "cat"
    )


def disc(size=(9, 12), centre=(4, 5), radius=3.2):
    y, x = np.mgrid[: size[0], : size[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2


def runs(mask):
    """COCO's uncompressed run-length encoding: runs of 0 and 1 in turn, column by column."""
    flat = np.concatenate([[0], mask.flatten("F").astype(int), [-1]])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges if len(edges) and flat[1:-1].any() else [mask.size]]))
    return [int(count) for count in counts]


@pytest.mark.parametrize("compressed", [False, True])
def test_run_lengths_are_read(tmp_path, compressed):
    shape = {"size": [9, 12], "counts": runs(disc())}
    if compressed:
        from faster_coco_eval.core import mask

        shape["counts"] = mask.frPyObjects(shape, 9, 12)["counts"].decode()
    source = InstanceDataset(coco(tmp_path, segmentation=shape))
    assert np.array_equal(source.read(0)[2].masks[0].numpy(), disc()) and source.outlined(0).tolist() == [True]


@pytest.mark.parametrize("shape", [
    {"size": [9, 12], "counts": [1, 2]}, {"size": [12, 9], "counts": [108]}, {"size": [9, 12], "counts": "x"}, {"size": [9, 12]},
    {"size": [9, 12], "counts": [-1, 109]}, {"size": [9, 12], "counts": ["a"]}, {"size": 3, "counts": [108]}, [["a"] * 6], [[1, 2, 3]], 7,
])  # fmt: skip
def test_damaged_outlines_are_named(tmp_path, shape):
    with pytest.raises(ValueError, match=r"instances_v\.json: damaged annotations \(annotation 0: "):
        coco(tmp_path, image=dict(height=9, width=12), segmentation=shape)


def test_crowds_are_ignored_regions(tmp_path):
    crowd = {"size": [9, 12], "counts": runs(disc())}
    rows = coco(tmp_path, iscrowd=1, segmentation=crowd)
    source = InstanceDataset(rows)
    assert rows["boxes"].to_pylist() == [[]] and len(source.read(0)[2].boxes) == 0
    region = source.crowds(0, (9, 12), (18, 24))
    assert region.boxes.tolist() == [[2, 2, 10, 10]] and region.classes.tolist() == [0] and region.masks.shape == (1, 18, 24)
    assert np.array_equal(region.masks[0, ::2, ::2].numpy(), disc())


class Fixed(torch.nn.Module):
    """Finds boxes [n, 4], which are filled, with falling scores, all of the first class."""

    def __init__(self, boxes):
        super().__init__()
        self.boxes = torch.tensor(boxes, dtype=torch.float32)

    def forward(self, images):
        masks = torch.zeros(len(self.boxes), 1, *images[0].shape[1:])
        for mask, (x0, y0, x1, y1) in zip(masks, self.boxes.int().tolist()):
            mask[:, y0:y1, x0:x1] = 1
        scores = torch.arange(len(self.boxes), 0, -1) / 10
        return [dict(boxes=self.boxes, labels=torch.ones(len(self.boxes), dtype=torch.int64), scores=scores, masks=masks)]


def things(folder, *annotations):
    coco(folder)
    file = folder / "annotations" / "instances_v.json"
    content = json.loads(file.read_text())
    content["annotations"] = [content["annotations"][0] | {"id": i} | annotation for i, annotation in enumerate(annotations)]
    file.write_text(json.dumps(content))
    return InstanceDataset(read_coco(folder, "v", {}, []))


def test_what_is_found_in_a_crowd_is_not_wrong(tmp_path):
    """The surer detection lies in a crowd: without the crowd it halves the precision."""
    found = Fixed([[6, 1, 10, 5], [1, 1, 5, 5]])
    crowd = dict(iscrowd=1, bbox=[6, 0, 6, 9], segmentation={"size": [9, 12], "counts": [54, 54]})
    assert average_precision(found, things(tmp_path, {}))["ap_box_50"] == pytest.approx(50, abs=0.1)
    for region in (crowd, crowd | {"segmentation": []}):
        figures = average_precision(found, things(tmp_path, {}, region))
        assert figures["ap_box_50"] == figures["ap_mask_50"] == pytest.approx(100)


def test_an_object_without_an_outline_counts_for_boxes_only(tmp_path):
    source = things(tmp_path, {}, dict(bbox=[6, 1, 4, 4], segmentation=[]))
    assert source.outlined(0).tolist() == [True, False] and len(source.read(0)[2].boxes) == 2
    figures = average_precision(Fixed([[1, 1, 5, 5]]), source)
    assert figures["ap_mask_50"] == pytest.approx(100) and figures["ap_box_50"] == pytest.approx(50, abs=1)
    with pytest.raises(ValueError, match="without an object that has an outline"):
        average_precision(Fixed([[1, 1, 5, 5]]), things(tmp_path, dict(segmentation=None)))


# ---- masks ------------------------------------------------------------------------------------------------------------


def mask_file(values, mode="L", palette=None) -> dict:
    stream = io.BytesIO()
    image = Image.fromarray(np.asarray(values))
    if palette is not None:
        image.putpalette(palette)
    if mode == "LA":
        image = Image.merge("LA", [image, Image.new("L", image.size, 255)])
    image.save(stream, "png")
    return {"bytes": stream.getvalue(), "path": "m.png", "row": 4}


def u8(values):
    return np.array(values, np.uint8)


def test_palettes_of_greys_are_read_by_their_greys_and_others_by_index():
    assert read_mask(mask_file(u8([[0, 1]]), palette=[255] * 3 + [0] * 3)).tolist() == [[255, 0]]  # drawn the other way round
    assert read_mask(mask_file(u8([[0, 1, 2]]), palette=[0] * 3 + [128] * 3 + [255] * 3)).tolist() == [[0, 128, 255]]
    assert read_mask(mask_file(u8([[0, 1, 2]]), palette=[0] * 3 + [128] * 3 + [128, 0, 0])).tolist() == [[0, 1, 2]]


def test_grey_with_alpha_is_read_by_its_greys():
    assert read_mask(mask_file(u8([[0, 7], [255, 1]]), "LA")).tolist() == [[0, 7], [255, 1]]


@given(st.lists(st.integers(0, 255), min_size=2, max_size=40))
@settings(max_examples=60, deadline=None)
def test_soft_edges_of_one_object_are_cut_at_half(levels):
    values = u8([levels + [0, 101, 255]])
    found = read_objects(mask_file(values), count=1)
    assert found.tolist() == (values >= 128).astype(int).tolist()
    assert read_objects(mask_file(values) | {"one_object": True}).tolist() == (255 * (values >= 128)).astype(int).tolist()


def test_numbers_of_objects_are_not_cut_and_255_beside_them_is_void():
    assert read_objects(mask_file(u8([[0, 1, 255]])), count=1).tolist() == [[0, 1, -1]]
    assert read_objects(mask_file(u8([[0, 2, 5, 255]]))).tolist() == [[0, 2, 5, -1]]
    assert read_objects(mask_file(u8([[0, 255]]))).tolist() == [[0, 255]]  # the only object
    assert read_objects(mask_file(u8([[0, 255]])), count=1).tolist() == [[0, 1]]
    assert read_objects(mask_file(u8([[0, 255]])), count=0).tolist() == [[0, -1]]
    assert read_objects(mask_file(np.array([[0, 65535, 300, 40000]], np.uint16)), count=1).tolist() == [[0, 1, 0, 1]]


@pytest.mark.parametrize("values, count", [
    (range(0, 256, 2), None), ([0, 60, 130, 255], None), ([0, 60, 130, 255], 2), ([0, 1, 2, 3], 2), ([0, 2], 1), ([0, 1], 0),
])  # fmt: skip
def test_greys_where_numbers_are_expected_are_refused(values, count):
    with pytest.raises(ValueError, match=r"^m\.png \(row 4\): holds .*accepts the numbers of"):
        read_objects(mask_file(u8([list(values)])), count=count)


def masked(mask, boxes, **columns):
    image = {"bytes": png(), "path": "a.png"}
    rows = dict(image=[image], boxes=[boxes], mask=[mask_file(mask)], filename=["a.png"], **columns)
    return common.table_of(**rows)


SOFT = np.where(disc(), 255, 0).astype(np.uint8)
SOFT[disc(radius=4) & ~disc()] = 110


def test_every_reader_of_objects_cuts_soft_edges():
    rows = masked(SOFT, [[1, 0, 9, 8]], label=[0], classes=[[2]])
    assert np.array_equal(InstanceDataset(rows).read(0)[2].masks[0].numpy(), disc())
    assert np.array_equal(SemanticDataset(rows, void=-1, num_classes=4).read(0)[2].numpy(), 3 * disc())
    assert true_objects(Stream(rows, 12), crop=None, size=72)[1]["mask_area"].mean().item() == pytest.approx(disc().mean(), abs=1e-6)
    assert known_objects(Stream(rows, 36))[1].float().mean().item() == pytest.approx(disc().mean(), abs=1e-6)


def test_void_beside_objects_is_void_in_every_reader():
    values = np.where(disc(), 1, 0)
    values[0, :3], values[8, 3:5] = 2, 255
    rows = masked(u8(values), [[1, 0, 9, 8], [0, 0, 3, 1]], classes=[[2, 0]])
    assert [int(mask.sum()) for mask in InstanceDataset(rows).read(0)[2].masks] == [disc().sum(), 3]
    found = SemanticDataset(rows, void=-1, num_classes=4).read(0)[2]
    assert found.unique().tolist() == [0, 1, 3, VOID] and int((found == VOID).sum()) == 2
    areas = true_objects(Stream(rows.drop_columns(["boxes"]), 12), crop=None, size=36)
    assert len(areas[0][0]) == 2


@pytest.mark.parametrize("name, split, place", [("horses", "test", "weizmann-horse"), ("davis2016", "val", "davis2016")])
def test_the_cards_of_one_object_say_so(tmp_path, name, split, place):
    files = {"horses": ("horse_test/a.jpg", "mask_test/a.png"), "davis2016": ("JPEGImages/480p/s/a.jpg", "Annotations/480p/s/a.png")}[name]
    write(tmp_path / place / files[0]), write(tmp_path / place / files[1], mask_file(SOFT)["bytes"])
    table = read_table(name, split, root=tmp_path)
    for rows in (table, table.slice(0, 1), table.take([0]), table.filter([True])):
        assert np.array_equal(read_objects(encoded(rows, 0, "mask")).numpy(), 255 * disc())
    assert "mask" in load(name, split, root=tmp_path).features


def test_pictures_of_16_bits_are_scaled():
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    picture = mask_file(values)
    assert np.asarray(read_image(picture)).tolist() == [[[v] * 3 for v in (0, 1, 128, 255)]]
    assert np.array_equal(read_canvas(picture, 4)[0], np.asarray(Image.fromarray(u8([[0, 1, 128, 255]])).convert("RGB").resize((4, 4), 3)))
    stream = io.BytesIO()
    Image.fromarray(np.array([[0.5, 2.0]], np.float32)).save(stream, "tiff")
    with pytest.raises(ValueError, match=r"^x\.tif: has pixels of the type F, accepts 8 or 16 bits"):
        read_image({"bytes": stream.getvalue(), "path": "x.tif"})


# ---- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [
    dict(image=pa.array([1, 2, 3])), dict(image=pa.array([b"x"] * 3)), dict(label=[[0], [1], [2]]), dict(label=["a", "b", "c"]),
    dict(label=[0, None, 1]), dict(label=[0.5, 1, 2]), dict(bbox=[1, 2, 3]), dict(bbox=["x", "y", "z"]), dict(bbox=[["x"], [], []]), dict(image=None),
])  # fmt: skip
def test_columns_of_other_types_are_named(make_card, columns):
    folder = make_card(columns={"boxes": ["bbox"]})
    parquet(folder / "train.parquet", **columns)
    with pytest.raises(ValueError, match=rf"^{folder / 'train.parquet'}: .*(accepts image|has no column image)"):
        read(folder)


def test_rows_without_an_image_are_named(make_card):
    folder = make_card()
    parquet(folder / "train.parquet", image=pa.array([None, {"bytes": None, "path": None}, {"bytes": png(), "path": "2.png"}], IMAGE))
    table = read(folder)
    for row in (0, 1):
        for call in (lambda row=row: read_canvas(encoded(table, row), 8), lambda row=row: fingerprint(table.slice(row, 1))):
            with pytest.raises(ValueError, match=r"^picture without a name \(row \d\): "):
                call()


def test_a_picture_that_is_too_large_is_refused(monkeypatch, make_card):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    picture = {"bytes": png(), "path": "bomb.png", "row": 3}
    for call in (lambda: read_canvas(picture, 8), lambda: read_image(picture), lambda: read_mask(picture)):
        with pytest.raises(ValueError, match=r"^bomb\.png \(row 3\): damaged or not an image"):
            call()
    folder = make_card(columns={"boxes": ["bbox"]})
    parquet(folder / "train.parquet", bbox=[[1, 1, 2, 2]] * 3)
    assert len(read(folder)) == 3


@pytest.mark.parametrize("how", ["folder", "no text", "deep"])
@pytest.mark.parametrize("kind", ["json", "xml", "list", "lines"])
def test_annotations_that_cannot_be_read_are_named(tmp_path, kind, how):
    voc(tmp_path), coco(tmp_path)
    file = {
        "json": tmp_path / "annotations" / "instances_v.json",
        "xml": tmp_path / "V" / "Annotations" / "1.xml",
        "list": tmp_path / "V" / "ImageSets" / "Main" / "all.txt",
        "lines": tmp_path / "classes.txt",
    }[kind]
    file.unlink(missing_ok=True)
    if how == "folder":
        file.mkdir()
    else:
        write(file, b"\xff\xfe\x81" if how == "no text" else b"[" * 100_000)
    if (kind, how) in (("json", "folder"), ("list", "folder"), ("list", "deep"), ("lines", "deep")):
        return  # no such split, or a text like any other
    call = {"json": lambda: read_coco(tmp_path, "v", {}, []), "lines": lambda: common.lines_of(file)}.get(
        kind, lambda: read_voc(tmp_path, "V/all", {}, [])
    )
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: "):
        call()


def test_a_card_that_is_no_text_is_named(make_card, tmp_path):
    make_card()
    write(tmp_path / "cards" / "toy" / "README.md", b"---\n\xff\xfe\n---\n")
    card.cache_clear()
    with pytest.raises(ValueError, match=r"cards/toy/README\.md: front matter is incomplete or damaged"):
        card("toy")


def test_names_that_are_not_utf_8_are_refused(make_card):
    folder = class_folders(make_card(), "abc")
    try:
        write(folder / "train" / "a" / "caf\udce9.png")
    except OSError:
        pytest.skip("this file system has names in UTF-8 alone")
    with pytest.raises(ValueError, match=r"caf\\\\udce9\.png': is not a name in UTF-8"):
        read(folder)


# ---- surroundings -----------------------------------------------------------------------------------------------------


def test_home_is_expanded(make_card, tmp_path, monkeypatch):
    class_folders(make_card(), "abc")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COMPANION_DATA", "~")
    assert paths.data_folder() == tmp_path and len(read_table("toy", "train")) == len(read_table("toy", "train", root="~")) == 3


def test_text_is_read_as_utf_8_whatever_the_locale(tmp_path, monkeypatch):
    file = write(tmp_path / "x.txt", "é\n".encode())
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    assert common.lines_of(file) == ["é"]


def test_bytes_in_a_table_are_hashed_once(monkeypatch):
    import lib.data.fingerprint as module

    hashed = []
    real = module.hashlib.sha256

    def counted(data=b""):
        hashed.append(len(data))
        return real(data)

    data = png()
    table = common.table_of(image=[{"bytes": data, "path": f"{i}.png"} for i in range(3)], label=[0, 1, 2])
    monkeypatch.setattr(module.hashlib, "sha256", counted)
    assert fingerprint(table) == "EXPECTED" and hashed.count(len(data)) == 3


def test_damaged_images_are_still_left_out_with_a_warning(tmp_path):
    """Comparing boxes with images does not end an evaluation that leaves a damaged image out."""
    from lib.data.reading import intact

    table = common.table_of_files([write(tmp_path / "a.png"), write(tmp_path / "b.png", b"x")], boxes=[[[0, 0, 3, 3]]] * 2)
    with pytest.warns(Damage, match=r"b\.png \(row 1\)"):
        assert len(intact(table)) == 1

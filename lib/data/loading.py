"""Datasets by the name of their card in ``data_cards/``."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import yaml
from PIL import Image
from torch import Tensor

from lib import paths
from lib.data import layouts, photographs, scenes, shards
from lib.data.reading import name_of, opened
from lib.data.sources import note
from lib.files import parse_yaml

if TYPE_CHECKING:
    import datasets


EMBEDDED: dict[str, Callable[[str, int], pa.Table]] = {"scenes": scenes.table, "photographs": photographs.table}  # come with the project


@dataclass(frozen=True)
class Card:
    """The front matter of a data card, as far as loading needs it."""

    name: str
    hub: str | None  # repository on the Hub
    folders: dict[str, float]  # local folder -> fraction of each class's training images that it holds
    layout: tuple[str, ...]  # names in lib.data.layouts.LAYOUTS, tried in turn
    splits: dict[str, int]  # split -> images in the full dataset
    class_names: list[str]
    num_classes: int  # 0 where the card does not say
    licence: str
    local_splits: dict[str, str] = field(default_factory=dict)  # split -> its name in local folders
    hub_splits: dict[str, str] = field(default_factory=dict)  # split -> its name on the Hub
    hub_options: dict[str, str] = field(default_factory=dict)  # further arguments of datasets.load_dataset
    columns: dict[str, list[str]] = field(default_factory=dict)  # our name of a column -> possible names in the source
    one_object: bool = False  # whether masks show one object each, of any grey
    images_per_class: int = 0  # of the full training split, at most; 0 where a fraction counts all images, not those of each class


@cache
def card(name: str) -> Card:
    """Read ``data_cards/<name>/README.md``.

    Raises:
        ValueError: no such card, or incomplete front matter.
    """
    file = paths.CARDS / name / "README.md"
    if not file.is_file():
        raise ValueError(f"name: got {name!r}, accepts {', '.join(card_names())}")
    try:
        front = parse_yaml(file.read_text(encoding="utf-8").split("---\n")[1])
        info, ours = front["dataset_info"], front["companion"]
        kinds = {f["name"]: f.get("dtype", f.get("list")) for f in info["features"]}
        classes: dict = next(
            (kinds[name]["class_label"]["names"] for name in ("label", "classes") if isinstance(kinds.get(name), dict)), {}
        )
        optional = ("local_splits", "hub_splits", "hub_options", "columns", "one_object", "images_per_class")
        names = [str(classes[number]) for number in sorted(classes, key=int)]
        return Card(
            name=name,
            hub=ours["hub"],
            folders=ours["folders"],
            layout=tuple(ours["layout"]),
            splits={s["name"]: s["num_examples"] for s in info["splits"]},
            class_names=names,
            num_classes=int(ours.get("num_classes", len(names))),
            licence=front["license_name"] if front["license"] == "other" else front["license"],
            **{key: ours[key] for key in optional if key in ours},
        )
    except (OSError, ValueError, AttributeError, IndexError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: front matter is incomplete or damaged ({error!r})") from error


def card_names() -> list[str]:
    return sorted(p.parent.name for p in paths.CARDS.glob("*/README.md"))


def load(name: str, split: str, *, root: str | Path | None = None) -> "datasets.Dataset":
    """A split that a card in ``data_cards/`` lists, as a ``datasets.Dataset``: ``image`` and ``filename`` and, where the dataset has them,
    ``label``, ``boxes``, ``mask`` and ``sequence``. Images and masks are decoded on access.

    ``root`` is the parent of the dataset's local folder; None looks in ``$COMPANION_DATA`` and then on the Hub. ``scenes`` and ``photographs`` need nothing.

    Raises:
        ValueError: an unknown name or split, a root without the dataset, or a damaged file, which is named.
    """
    import datasets

    table = read_table(name, split, root=root).replace_schema_metadata(None)
    features, class_names = datasets.Features.from_arrow_schema(table.schema), card(name).class_names

    class Stored(datasets.Image):
        """Images as they are stored: those of ``datasets`` are turned by EXIF, and boxes are not."""

        def decode_example(self, value: dict, token_per_repo_id: dict | None = None) -> Image.Image:
            with opened(value) as (image, _):
                return image.copy()

    types = {"image": Stored(), "mask": Stored(), "filename": datasets.Value("string")}
    types["label"] = datasets.ClassLabel(names=class_names) if class_names else datasets.Value("int64")
    types["classes"] = datasets.List(types["label"])
    types["boxes"] = datasets.List(datasets.List(datasets.Value("float32")))
    features.update({column: kind for column, kind in types.items() if column in features})
    return datasets.Dataset(table).cast(features)


def read_table(name: str, split: str, *, root: str | Path | None = None) -> pa.Table:
    """As ``load``, but a table of encoded images (see ``lib.data.layouts``). Only the Hub needs the package ``datasets``."""
    return note(name, split, 1.0, _read(name, split, root))


def _read(name: str, split: str, root: str | Path | None) -> pa.Table:
    the_card = card(name)
    if split not in the_card.splits:
        raise ValueError(f"split: got {split!r}, {name} accepts {', '.join(the_card.splits)}")
    if name in EMBEDDED:
        return EMBEDDED[name](split, the_card.splits[split])
    folder = find_folder(name, root)
    if folder is None:
        return _agreeing(_from_hub(the_card, split), the_card, split, str(the_card.hub), whole=1.0)
    for layout in the_card.layout:
        table = layouts.LAYOUTS[layout](folder, the_card.local_splits.get(split, split), the_card.columns, the_card.class_names)
        if table is not None:
            part = the_card.folders[folder.name] if split == "train" else 1.0
            return _agreeing(table, the_card, split, str(folder), whole=part if layout == "parquet" else 0.0)
    raise ValueError(f"{folder}: holds no split {split!r} in the layouts {', '.join(the_card.layout)}")


def _agreeing(table: pa.Table, the_card: Card, split: str, source: str, *, whole: float) -> pa.Table:
    """A table that agrees with its card; its masks know whether they show one object. It holds at least the part ``whole`` of the split:
    parquet files do not show by themselves whether one is missing.
    """
    most, least = the_card.splits[split], int(whole * the_card.splits[split] + 1e-9)
    if not least <= len(table) <= most:
        raise ValueError(f"{source}: holds {len(table)} images of {split}, accepts {least} to {most}, by the number in its card")
    labels = table["label"].to_pylist() if "label" in table.column_names else []
    classes = the_card.num_classes or max(labels, default=0) + 1
    for row, label in enumerate(labels):
        if not 0 <= label < classes:
            picture = name_of({"path": table["filename"][row].as_py(), "row": row})
            raise ValueError(f"{source}: {picture}: has the label {label}, accepts 0 to {classes - 1}")
    if the_card.one_object and "mask" in table.column_names:
        place = table.column_names.index("mask")
        return table.set_column(place, table.field(place).with_metadata({"one_object": "yes"}), table.column(place))
    return table


def read_part(name: str, split: str, fraction: float, *, root: str | Path | None = None) -> pa.Table:
    """A part of a training split; other splits are always whole.

    The part is the first ``int(fraction * images_per_class)`` images of every class by the string order of file names, where
    ``images_per_class`` is that of the full dataset (AttMask: 20% of ImageNet-1k is the first 260 of each class). They are the first of those
    that the local folder holds. In datasets without it, the part is the first images of all.

    Raises:
        ValueError: as in ``read_table``, or a fraction that is not in (0, 1], holds no image, or is more than the local folder holds.
    """
    the_card = card(name)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: got {fraction!r}, accepts a number in (0, 1]")
    folder = find_folder(name, root) if split in the_card.splits and name not in EMBEDDED else None
    if split == "train" and folder is not None and fraction > the_card.folders[folder.name] + 1e-9:
        raise ValueError(f"fraction: got {fraction}, {folder} accepts at most {the_card.folders[folder.name]}, the part that it holds")
    table = _read(name, split, root)
    if fraction == 1 or not split.endswith("train"):
        return note(name, split, fraction, table)
    whole = the_card.images_per_class if split == "train" else 0
    count = int(fraction * (whole or len(table)) + 1e-9)  # 0.29 * 100 is a little less than 29
    if count == 0:
        raise ValueError(f"fraction: got {fraction}, accepts at least {1 / (whole or len(table)):.2g}, one image of {whole or len(table)}")
    return note(name, split, fraction, layouts.first_of_each_class(table, count) if whole else table.slice(0, count))


def check_num_classes(num_classes: int | None, name: str, labels: Tensor) -> int:
    """The number of classes of a dataset, from its card or else from its labels.

    Raises:
        ValueError: ``num_classes`` is another number.
    """
    classes = card(name).num_classes or int(labels.max()) + 1
    if num_classes not in (None, classes):
        raise ValueError(f"num_classes: got {num_classes}, {name} accepts {classes}")
    return classes


def find_folder(name: str, root: str | Path | None = None) -> Path | None:
    """The local folder of a dataset; None where only the Hub has it.

    Raises:
        ValueError: neither the root nor the Hub has the dataset.
    """
    base = Path(root).expanduser() if root is not None else paths.data_folder()
    if base is None:
        return None
    for folder in card(name).folders:
        if (base / folder).is_dir():
            return base / folder
    if root is not None or card(name).hub is None:
        raise ValueError(f"root: got {base}, which has none of the folders {', '.join(card(name).folders)} of {name}")
    return None


def _from_hub(the_card: Card, split: str) -> pa.Table:
    if the_card.hub is None:
        raise ValueError(f"{the_card.name}: needs $COMPANION_DATA with one of the folders {', '.join(the_card.folders)}")
    import datasets

    try:
        dataset = datasets.load_dataset(the_card.hub, split=the_card.hub_splits.get(split, split), **the_card.hub_options)
    except Exception as error:
        local, cause = f"not under $COMPANION_DATA (folders {', '.join(the_card.folders)})", f"{type(error).__name__}: {error}"
        raise ValueError(f"{the_card.name}: {local}, and the Hub's {the_card.hub} cannot be read ({cause})") from error
    arrow_files = [Path(file["filename"]) for file in dataset.cache_files]
    table = pa.concat_tables(map(shards.mapped, arrow_files)).replace_schema_metadata(dataset.features.arrow_schema.metadata)
    return layouts.with_our_columns(table, the_card.columns, the_card.hub, the_card.class_names, arrow_files)

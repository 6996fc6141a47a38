"""Data sets by the name of their card in ``data_cards/``."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow as pa
import yaml

from lib import paths
from lib.data import annotated, layouts, scenes

LAYOUTS = layouts.LAYOUTS | annotated.LAYOUTS


@dataclass(frozen=True)
class Card:
    """The front matter of a data card, as far as loading needs it."""

    name: str
    hub: str | None  # repository on the Hub
    folders: dict[str, float]  # local folder -> fraction of each class's training images that it holds
    layout: tuple[str, ...]  # names in LAYOUTS, tried in turn
    splits: dict[str, int]  # split -> images in the full set
    local_splits: dict[str, str]  # split -> its name in local folders
    hub_splits: dict[str, str]  # split -> its name on the Hub
    hub_options: dict[str, str]  # what else datasets.load_dataset needs
    columns: dict[str, list[str]]  # our column -> possible names of theirs
    class_names: list[str]
    images_per_class: int  # of the full training split, at most; 0 where images have no class
    licence: str


@cache
def card(name: str) -> Card:
    """Read ``data_cards/<name>/README.md``.

    Raises:
        ValueError: no such card, or front matter that lacks something.
    """
    file = paths.CARDS / name / "README.md"
    if not file.is_file():
        raise ValueError(f"name: got {name!r}, accepts {', '.join(card_names())}")
    try:
        front = yaml.safe_load(file.read_text().split("---\n")[1])
        info, ours = front["dataset_info"], front["companion"]
        label = next((f["dtype"] for f in info["features"] if f["name"] == "label"), None)  # none where images have no class
        names = list(label["class_label"]["names"].values()) if isinstance(label, dict) else []
        return Card(
            name=name,
            hub=ours["hub"],
            folders=ours["folders"],
            layout=tuple(ours["layout"]),
            splits={s["name"]: s["num_examples"] for s in info["splits"]},
            local_splits=ours.get("local_splits", {}),
            hub_splits=ours.get("hub_splits", {}),
            hub_options=ours.get("hub_options", {}),
            columns=ours.get("columns", {}),
            class_names=names,
            images_per_class=ours.get("images_per_class", 0),
            licence=front["license_name"] if front["license"] == "other" else front["license"],
        )
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: front matter is incomplete or damaged ({error!r})") from error


def card_names() -> list[str]:
    return sorted(p.parent.name for p in paths.CARDS.glob("*/README.md"))


def load(name: str, split: str, *, root: str | Path | None = None):
    """A split as a ``datasets.Dataset``.

    Args:
        name: a card in ``data_cards/``.
        split: a split that the card lists.
        root: folder that holds the set's local folder; None looks in ``$COMPANION_DATA`` and then on the Hub. ``scenes``
            needs nothing.

    Returns:
        ``datasets.Dataset`` with ``image`` (decoded on access), ``filename`` and, where known, ``label``, ``boxes``, ``mask``
        (decoded on access) and ``sequence``.

    Raises:
        ValueError: an unknown name or split, a root without the set, or a damaged file, which is named.
    """
    import datasets

    table = read_table(name, split, root=root)
    features = {"image": datasets.Image(), "mask": datasets.Image(), "label": datasets.Value("int64"), "filename": datasets.Value("string")}
    if card(name).class_names:
        features["label"] = datasets.ClassLabel(names=card(name).class_names)
    if "boxes" in table.column_names:
        features["boxes"] = datasets.List(datasets.List(datasets.Value("float32")))
    for other in table.column_names:
        if other not in features:
            features[other] = datasets.Features.from_arrow_schema(table.select([other]).schema)[other]
    features = datasets.Features({column: features[column] for column in table.column_names})
    return datasets.Dataset(table.replace_schema_metadata(None)).cast(features)


def read_table(name: str, split: str, *, root: str | Path | None = None) -> pa.Table:
    """As ``load``, but a table of encoded images (see ``lib.data.layouts``), without the package ``datasets``.

    ``datasets`` is imported only where a set comes from the Hub.
    """
    described = card(name)
    if split not in described.splits:
        raise ValueError(f"split: got {split!r}, {name} accepts {', '.join(described.splits)}")
    if name == "scenes":
        return scenes.table(split, described.splits[split])
    folder = find_folder(name, root)
    if folder is not None:
        for layout in described.layout:
            table = LAYOUTS[layout](folder, described.local_splits.get(split, split), described.columns, described.class_names)
            if table is not None:
                return table
        raise ValueError(f"{folder}: holds no split {split!r} in the layouts {', '.join(described.layout)}")
    return _from_hub(described, split)


def find_folder(name: str, root: str | Path | None = None) -> Path | None:
    """The local folder of a set, or None when there is none and the Hub has to serve.

    Raises:
        ValueError: a given root that lacks it.
    """
    base = Path(root) if root is not None else paths.data_folder()
    if base is None:
        return None
    for folder in card(name).folders:
        if (base / folder).is_dir():
            return base / folder
    if root is not None or card(name).hub is None:
        raise ValueError(f"root: got {base}, which has none of the folders {', '.join(card(name).folders)} of {name}")
    return None


def _from_hub(described: Card, split: str) -> pa.Table:
    if described.hub is None:
        raise ValueError(f"{described.name}: needs $COMPANION_DATA with one of the folders {', '.join(described.folders)}")
    import datasets

    try:
        dataset = datasets.load_dataset(described.hub, split=described.hub_splits.get(split, split), **described.hub_options)
    except Exception as error:
        raise ValueError(
            f"{described.name}: not under $COMPANION_DATA (folders {', '.join(described.folders)}), and the Hub's "
            f"{described.hub} cannot be read ({type(error).__name__}: {error})"
        ) from error
    return layouts.normalise(dataset.with_format("arrow")[:], described.columns, described.hub)  # images stay encoded

"""Queries and databases: the revisited Oxford and Paris sets."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa

from lib.data.layouts.common import table_of_files
from lib.data.pickled import read_plain

KINDS = ("easy", "hard", "junk")


def read_revisited(folder: Path, split: str, columns: dict, names: list[str]) -> pa.Table | None:
    """``<file>:imlist`` or ``<file>:qimlist``: the database or the queries in the pickle of revisited Oxford or Paris; images are in ``jpg/``.

    Queries have ``box``, the part of the image that is the query, and ``easy``, ``hard`` and ``junk``, rows of the database.
    """
    name, _, listing = split.partition(":")
    file = folder / name
    if not file.is_file():
        return None
    contents = read_plain(file)
    try:
        stems = [str(stem) for stem in contents[listing]]
        if any(Path(stem).name != stem for stem in stems):
            raise ValueError(f"{listing} holds what is no name of a file")
        truth = {}
        if listing == "qimlist":
            queries = [_revisited_truth(query, len(contents["imlist"])) for query in contents["gnd"]]
            if len(queries) != len(stems):
                raise ValueError(f"{len(queries)} entries in gnd for {len(stems)} queries")
            truth = {name: [query[name] for query in queries] for name in ("box", *KINDS)}
        return table_of_files([folder / "jpg" / f"{stem}.jpg" for stem in stems], **truth)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{file}: damaged or not the ground truth of a revisited set ({error!r})") from error


def _revisited_truth(query: dict, count: int) -> dict[str, list]:
    box = [float(edge) for edge in np.ravel(query["bbx"])]
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise ValueError(f"bbx is {box}")
    truth: dict[str, list] = {"box": box}
    for kind in KINDS:
        truth[kind] = [int(image) for image in np.ravel(query[kind])]
        if truth[kind] != np.ravel(query[kind]).tolist() or not all(0 <= image < count for image in truth[kind]):
            raise ValueError(f"{kind} holds what is no image of the {count} in imlist")
    return truth

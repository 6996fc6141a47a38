"""Five photographs that come with scikit-image and matplotlib, for pictures that need no download. Their terms are in the data card."""

from importlib.resources import files

import pyarrow as pa

from lib.data.layouts.common import table_of

FILES = {
    "astronaut.png": ("skimage", "data"),
    "chelsea.png": ("skimage", "data"),
    "coffee.png": ("skimage", "data"),
    "rocket.jpg": ("skimage", "data"),
    "grace_hopper.jpg": ("matplotlib", "mpl-data/sample_data"),
}


def table(split: str, count: int) -> pa.Table:
    """The first ``count`` photographs as a table of encoded images (see ``lib.data.layouts``); there is one ``split``."""
    images = [{"bytes": (files(package) / folder / name).read_bytes(), "path": name} for name, (package, folder) in FILES.items()]
    return table_of(image=images, filename=list(FILES)).slice(0, count)

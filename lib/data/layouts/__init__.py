"""Readers of the local layouts in which people have these datasets, each returning one table (see ``lib.data.layouts.common``).

A reader is called with the dataset's folder, the place of the split in it (the card's ``local_splits``), the possible names of our columns
and the names of the classes. It returns None where the folder does not hold the split in this layout.
"""

from lib.data.layouts.classification import read_cub, read_image_folder, read_in9, read_parquet, read_tiny_imagenet, read_wsol
from lib.data.layouts.common import BOXES, IMAGE, first_of_each_class, with_our_columns
from lib.data.layouts.objects import read_coco, read_davis, read_masked, read_voc
from lib.data.layouts.retrieval import read_revisited

__all__ = ["BOXES", "IMAGE", "LAYOUTS", "first_of_each_class", "with_our_columns"]

LAYOUTS = {
    "parquet": read_parquet,
    "image_folder": read_image_folder,
    "tiny_imagenet": read_tiny_imagenet,
    "in9": read_in9,
    "voc": read_voc,
    "coco": read_coco,
    "cub": read_cub,
    "wsol": read_wsol,
    "masked": read_masked,
    "davis": read_davis,
    "revisited": read_revisited,
}

"""Measurements of what a network has learned.

These arguments have the same meaning everywhere: ``network`` (or ``encoder``, ``classifier``) is left in evaluation mode; ``size`` is the
side of the views that the network sees and ``patch_size`` the side of its patches, in pixels; ``batch_size`` is the number of images at a
time; ``progress`` shows a bar. An argument that is empty, out of range, or of a shape or type that does not fit raises a ValueError that
names it; docstrings list only other errors.
"""

from lib.evaluation.backgrounds import in9_class
from lib.evaluation.discovery import Discovery, corloc, dino_seg, lost
from lib.evaluation.knn import knn_predict
from lib.evaluation.localization import max_box_accuracy
from lib.evaluation.retrieval import revisited_map
from lib.evaluation.video import boundary_accuracy, propagate_labels, region_similarity

__all__ = [
    "Discovery",
    "boundary_accuracy",
    "corloc",
    "dino_seg",
    "in9_class",
    "knn_predict",
    "lost",
    "max_box_accuracy",
    "propagate_labels",
    "region_similarity",
    "revisited_map",
]

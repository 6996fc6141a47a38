"""What a network has learned, measured."""

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

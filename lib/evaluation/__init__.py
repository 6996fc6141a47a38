"""What a network has learned, measured."""

from lib.evaluation.knn import knn_predict
from lib.evaluation.localization import max_box_accuracy

__all__ = ["knn_predict", "max_box_accuracy"]

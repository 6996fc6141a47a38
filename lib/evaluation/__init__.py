"""What a network has learned, measured."""

from lib.evaluation.knn import knn_predict

__all__ = ["knn_predict"]

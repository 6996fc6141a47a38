"""Networks that give features and attention alike."""

from lib.models.heads import ProjectionHead
from lib.models.vit import Features, create_model

__all__ = ["Features", "ProjectionHead", "create_model"]

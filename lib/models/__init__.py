"""Networks that give features and attention alike."""

from lib.models.base import Features, Model
from lib.models.factory import create_model, network_of
from lib.models.heads import ProjectionHead, RestorationDecoder
from lib.models.released import load_released

__all__ = ["Features", "Model", "ProjectionHead", "RestorationDecoder", "create_model", "load_released", "network_of"]

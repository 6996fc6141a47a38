"""Learning without labels from a teacher that is the student's moving average."""

from lib.distillation.losses import DINOLoss, IBOTLoss
from lib.distillation.schedules import cosine_schedule
from lib.models.heads import ProjectionHead

__all__ = ["DINOLoss", "IBOTLoss", "ProjectionHead", "cosine_schedule"]

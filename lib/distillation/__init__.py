"""Learning without labels from a teacher that is the student's moving average."""

from lib.distillation.losses import DINOLoss, IBOTLoss
from lib.models.heads import ProjectionHead
from lib.schedules import cosine_schedule

__all__ = ["DINOLoss", "IBOTLoss", "ProjectionHead", "cosine_schedule"]

"""Images: cards, local layouts, procedural scenes, decoded banks and augmented views."""

from lib.data.bank import Bank, Stream, bank
from lib.data.dataset import Dataset
from lib.data.loading import card, card_names, load

__all__ = ["Bank", "Dataset", "Stream", "bank", "card", "card_names", "load"]

"""A training's checkpoint: complete at every moment, and read without executing pickled code."""

import zipfile
from pathlib import Path

import torch

from lib import files

CHECKPOINT = "checkpoint.pt"


def save_checkpoint(state: dict, folder: Path) -> None:
    """Write a training's state with ``lib.files.replacing``."""
    with files.replacing(folder / CHECKPOINT) as partial:
        torch.save(state, partial)


def load_checkpoint(folder: Path, device: str | torch.device = "cpu") -> dict:
    """Read a training's state.

    Raises:
        ValueError: a missing or damaged file, named.
    """
    file = folder / CHECKPOINT
    try:
        with zipfile.ZipFile(file) as archive:
            if damaged := archive.testzip():  # torch does not compare checksums
                raise ValueError(f"{damaged} does not have its checksum")
        return torch.load(file, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(f"{file}: damaged checkpoint ({type(error).__name__}: {error}); delete it to start this run anew") from error

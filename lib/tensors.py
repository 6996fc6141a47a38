"""Tensors in files: safetensors with a checksum, so that a damaged file is refused and not read as other numbers."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lib import files

CHECKSUM = "checksum"


def save_tensors(file: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write tensors, with words about them."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    words = dict(about or {})
    with files.replacing(file) as partial:
        save_file(plain, partial, metadata=words | {CHECKSUM: _checksum(plain, words)})


def load_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, and the words about them.

    Raises:
        ValueError: a missing or damaged file, named.
    """
    try:
        with safe_open(file, "pt") as stream:
            tensors, words = {name: stream.get_tensor(name) for name in stream.keys()}, dict(stream.metadata() or {})
    except Exception as error:
        raise ValueError(f"{file}: missing or damaged ({error}); delete it to make it anew") from error
    stated = words.pop(CHECKSUM, None)
    if stated not in (None, _checksum(tensors, words)):  # older files have none
        raise ValueError(f"{file}: damaged, its content does not have its checksum {stated}; delete it to make it anew")
    return tensors, words


def _checksum(tensors: Mapping[str, Tensor], words: Mapping[str, str]) -> str:
    shapes = {name: [str(tensors[name].dtype), list(tensors[name].shape)] for name in sorted(tensors)}
    checksum = zlib.crc32(json.dumps([shapes, words], sort_keys=True).encode())
    for name in sorted(tensors):
        if tensors[name].numel():
            checksum = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"

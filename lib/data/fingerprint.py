"""Fingerprints of datasets: hashes of their content, the same on every machine, in every folder and at every time."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from lib import files, paths
from lib.data.reading import encoded, name_of, read_ahead

NAMES = {"filename"}  # columns that are not content
PICTURES = ("image", "mask")
AHEAD = 512  # pictures hashed in advance


def fingerprint(table: pa.Table) -> str:
    """Hash of a table's content: its encoded images and masks, labels, boxes and all other columns except the file names.

    Paths and times do not count. Files are read whole once; the result is stored in the run store under their paths, sizes and times.

    Raises:
        ValueError: a file that cannot be read, named.
    """
    content = hashlib.sha256()
    for name in sorted(set(table.column_names) - set(PICTURES) - NAMES):
        content.update(json.dumps([name, table[name].to_pylist()]).encode())
    known = [_known(picture) for picture in _pictures(table)]
    location = hashlib.sha256(content.digest())
    for mark, _ in known:
        location.update(mark)
    file = paths.runs_folder() / "fingerprints" / location.hexdigest()[:32]
    if file.is_file() and len(text := file.read_text(encoding="utf-8")) == 16:
        return text
    for [digest] in read_ahead(_digest, ([picture] for picture in known), ahead=AHEAD):
        content.update(digest)
    result = content.hexdigest()[:16]
    files.write_text(file, result)
    return result


def _pictures(table: pa.Table) -> Iterator[dict]:
    """All encoded images of a table, then all masks."""
    return (encoded(table, row, name) for name in PICTURES if name in table.column_names for row in range(len(table)))


def _known(picture: dict) -> tuple[bytes, dict | None]:
    """The SHA-256 of bytes in the table; of a file, its path, size and time, and the picture, whose bytes are not read yet."""
    if picture["bytes"]:
        return hashlib.sha256(picture["bytes"]).digest(), None
    with _readable(picture):
        stat = os.stat(picture["path"] or "")
        return f"{picture['path']}:{stat.st_size}:{stat.st_mtime_ns};".encode(), picture


def _digest(known: tuple[bytes, dict | None]) -> bytes:
    """The SHA-256 of a picture's encoded bytes."""
    mark, picture = known
    if picture is None:
        return mark
    with _readable(picture), open(picture["path"], "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


@contextmanager
def _readable(picture: dict) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{name_of(picture)}: listed but not readable ({error})") from error

"""Images of large sets stay on the disk: a table holds the file and the row of each, and its bytes are read when it is used.

So memory does not grow with the set, and any order of its rows costs the same. Parquet files are copied once into Arrow files of the run store,
which can be read by row; the Hub's library keeps such files already.
"""

import hashlib
import re
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lib import files, paths

LARGEST = 2 * 2**30  # bytes of the parquet files of a split that are read into memory
ROWS = 100  # of a batch while a file is copied
PLACE = re.compile(r"(.+\.arrow)#(\w+)#(\d+)")  # the path of an image in an Arrow file: the column and the row


def as_arrow(file: Path) -> Path:
    """The Arrow file with the rows of a parquet file, made once and again when the file's size or time changes.

    Raises:
        ValueError: a damaged file, or no space for it, named.
    """
    state = file.stat()
    mark = hashlib.sha256(f"{file.resolve()}:{state.st_size}:{state.st_mtime_ns}".encode()).hexdigest()[:16]
    target = paths.runs_folder() / "shards" / mark / f"{file.stem}.arrow"
    if not target.is_file():
        try:
            with pq.ParquetFile(file) as source, files.replacing(target) as partial:
                with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, source.schema_arrow) as stream:
                    for batch in source.iter_batches(ROWS):
                        stream.write_batch(batch)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file}: damaged, or no space for a copy at {target} ({error})") from error
    return target


@cache
def mapped(file: Path) -> pa.Table:
    """The rows of an Arrow file, of which only what is used comes into memory.

    Raises:
        ValueError: a missing or damaged file, named.
    """
    try:
        return pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: missing or damaged ({error}); delete it to make it anew") from error


def places(arrow_files: list[Path], column: str) -> list[dict]:
    """The image of each row, in the order of the files, without its bytes; images that lie in files of their own as they are."""
    pictures = []
    for file in arrow_files:
        images = mapped(file)[column]
        own = pc.struct_field(images, "bytes").is_null().to_pylist()
        pictures += [images[row].as_py() if own[row] else {"bytes": None, "path": f"{file}#{column}#{row}"} for row in range(len(own))]
    return pictures


def file_of(path: str) -> str:
    """The file in which an image lies."""
    return found[1] if (found := PLACE.fullmatch(path)) else path


def bytes_of(picture: dict) -> bytes | None:
    """The bytes of an encoded image in the table or in an Arrow file; None for an image in a file of its own."""
    if picture["bytes"] or not (found := PLACE.fullmatch(picture["path"] or "")):
        return picture["bytes"]
    return mapped(Path(found[1]))[found[2]][int(found[3])].as_py()["bytes"]

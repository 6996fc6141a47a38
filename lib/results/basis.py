"""What a result is based on: the content of the data, the network that guided it, and the versions of the libraries.

The basis is written when a run or a measurement has read its data, and compared whenever its result or its checkpoint is asked for again: under
the same names, other data give another result.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from lib import files
from lib.data import loading
from lib.data.fingerprint import fingerprint
from lib.results.provenance import versions


def write_basis(file: Path, sources: Mapping[str, pa.Table], **others: str) -> None:
    """Write the basis of what is computed now, unless the file exists: ``sources`` as ``lib.data.sources.noted`` gives them, ``others`` by name."""
    if not file.is_file():
        contents = {source: _code_of(source) or fingerprint(table) for source, table in sorted(sources.items())}
        files.write_text(file, json.dumps({"data": contents, "others": others, "versions": versions()}, indent=1))


def check_basis(file: Path, *, root: str | Path | None, finished: bool, **others: str) -> None:
    """Compare a basis with what is there now. Data that are not there at all are not compared, nor are the versions of what is finished.

    Raises:
        ValueError: something is another now; it is named, with both values.
    """
    if not file.is_file():
        return
    stored = json.loads(file.read_text(encoding="utf-8"))
    now: dict[str, dict] = {"data": {source: content(source, root) for source in stored["data"]}, "others": others, "versions": versions()}
    for part in ("data", "others") if finished else stored:
        for name, before in stored[part].items():
            if (found := now[part].get(name)) not in (None, before):
                way = "name another folder in COMPANION_RUNS to compute it anew"
                raise ValueError(f"{name}: got {found}, {file} was written with {before} and accepts no other; {way}")


def content(source: str, root: str | Path | None = None) -> str | None:
    """The hash of a source's content; of an embedded set, of the code that draws it. None where the set is not on this machine."""
    name, split, fraction = source.split("/")
    if code := _code_of(source):
        return code
    try:
        folder = loading.find_folder(name, root)
    except ValueError:  # neither here nor on the Hub
        folder = None
    return None if folder is None else fingerprint(loading.read_part(name, split, float(fraction), root=root))


def _code_of(source: str) -> str:
    """The hash of the code that draws an embedded set; "" for another set."""
    draw = loading.EMBEDDED.get(source.partition("/")[0])
    return hashlib.sha256(inspect.getsource(inspect.getmodule(draw)).encode()).hexdigest()[:16] if draw else ""  # type: ignore[arg-type]

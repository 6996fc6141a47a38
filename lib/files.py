"""Files that are whole at every moment, and YAML that means what it looks like."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

PATIENCE = 3.0  # seconds of waiting for a lock before a word is said


class Yaml(yaml.SafeLoader):
    """YAML 1.2: ``010`` is ten, ``1e-4`` a number, ``1:30``, ``no`` and ``2026-11-28`` are words. A key that stands twice is an error."""

    yaml_implicit_resolvers: dict[str, list] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if repeated := {key for key in keys if not isinstance(key, list) and keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(sorted(repeated))} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


SCALARS = {  # the core schema of YAML 1.2, and the merge key of 1.1
    "bool": "true|false",
    "int": "[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
    "null": "null|~|",
    "merge": "<<",
}
for _kind, _pattern in SCALARS.items():
    Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), None)
Yaml.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def parse_yaml(text: str) -> Any:
    """What a text in YAML says; raises ``yaml.YAMLError``."""
    return yaml.load(text, Yaml)


def read_yaml(file: Path) -> Any:
    """What a file in YAML says.

    Raises:
        ValueError: a missing or damaged file, named.
    """
    try:
        return parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: missing or damaged ({error})") from error


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path to write to; when all went well, that file takes the place of ``file``, so that a kill at any moment leaves one whole file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        yield partial
        with open(partial, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock of a file. Whoever has to wait for another process says so after a moment.

    Raises:
        ValueError: the folder cannot be written.
    """
    lock = FileLock(f"{file}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        warnings.warn(f"waiting for another process, which holds {file}.lock", stacklevel=3)
        lock.acquire()
    except OSError as error:
        raise ValueError(f"{file.parent}: cannot be written ({error}); COMPANION_RUNS names another folder for runs") from error
    try:
        yield
    finally:
        lock.release()


def write_text(file: Path, text: str) -> None:
    """Write a text file by ``replacing``."""
    with replacing(file) as partial:
        partial.write_text(text, encoding="utf-8")

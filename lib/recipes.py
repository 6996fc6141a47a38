"""Recipe entries: the numbers that runs depend on, read from ``recipes/<scale>.yaml``.

An entry is named ``scale/name``. Its keys are the fields of its method's configuration, all of them and no others, besides
``about`` (what it is, costs and gives) and ``experiment`` (the file of ``records/`` that its runs go to).
"""

import itertools
import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from lib import files, paths

SCALES = ("smoke", "small", "paper")


@dataclass(frozen=True)
class Entry:
    """A recipe entry: ``settings`` are the configuration's, as the file has them."""

    scale: str
    name: str
    about: str
    experiment: str
    settings: dict


@cache
def _read(scale: str) -> dict:
    if scale not in SCALES:
        raise ValueError(f"scale: got {scale!r}, accepts {', '.join(SCALES)}")
    return files.read_yaml(paths.RECIPES / f"{scale}.yaml")


def entry(name: str) -> Entry:
    """The entry ``scale/name``.

    Raises:
        ValueError: no such entry.
    """
    scale, _, short = name.partition("/")
    if scale not in SCALES or short not in _read(scale)["entries"]:
        raise ValueError(f"entry: got {name!r}, accepts {', '.join(names())}")
    settings = dict(_read(scale)["entries"][short])
    return Entry(scale, short, settings.pop("about"), settings.pop("experiment"), settings)


def names(scales=SCALES) -> list[str]:
    """All entries of the scales, as ``scale/name``."""
    return [f"{scale}/{name}" for scale in scales for name in _read(scale)["entries"]]


def entry_for(scale: str, role: str, device: str) -> str:
    """The entry that notebooks run at a scale on a kind of device: the file's ``notebooks`` names one for each role.

    Args:
        scale: smoke, small or paper.
        role: ``main``, ``comparison``, ``fractions`` …
        device: ``cpu`` or ``cuda``.

    Raises:
        ValueError: a role that the scale does not have.
    """
    roles = _read(scale)["notebooks"]
    if role not in roles:
        raise ValueError(f"role: got {role!r}, {scale} accepts {', '.join(roles)}")
    name = roles[role]
    return f"{scale}/{name[device] if isinstance(name, dict) else name}"


def measurement(scale: str, name: str) -> dict:
    """The settings of a measurement at a scale, the file's ``measurements``.

    Raises:
        ValueError: a measurement that the scale does not have.
    """
    known = _read(scale).get("measurements") or {}
    if name not in known:
        raise ValueError(f"name: got {name!r}, {scale} accepts {', '.join(known) or 'none'}")
    return dict(known[name])


def deviations() -> list[dict]:
    """Where the paper scale differs from the authors' commands, see ``lib.authors``: ``settings, commands, why`` each."""
    return _read("paper")["deviations"]


def released(name: str) -> dict:
    """What to measure of a released checkpoint, and where the figures to expect are published.

    Raises:
        ValueError: no such checkpoint.
    """
    known = _read("paper")["released"]
    if name not in known:
        raise ValueError(f"name: got {name!r}, accepts {', '.join(known)}")
    return dict(known[name])


def fractions(scale: str, device: str) -> list[float]:
    """The fractions of the data that are compared at a scale on a kind of device."""
    listed = _read(scale)["fractions"]
    return listed[device] if isinstance(listed, dict) else listed


def evidence(scale: str, device: str) -> list[tuple[str, dict, list[tuple[str, dict]]]]:
    """What a scale's evidence on a kind of device consists of, the most wanted first: (entry, overrides, measurements) of each run, a
    measurement being (name, overrides).

    An item of the file's ``evidence`` names an entry and the device (``cpu`` or ``cuda``), the measurements of its runs in ``measure``, as
    ``name`` or ``name key=value …``, and gives values, or lists of them, for some keys of the entry; the first key varies slowest.
    """
    runs = []
    for item in _read(scale).get("evidence", []):
        if item["device"] == device:
            keys = [key for key in item if key not in ("entry", "device", "measure")]
            values = [item[key] if isinstance(item[key], list) else [item[key]] for key in keys]
            named = [words.split() for words in item.get("measure", [])]
            measured = [(name, parse(assignments)) for name, *assignments in named]
            runs += [(f"{scale}/{item['entry']}", dict(zip(keys, values_of_run)), measured) for values_of_run in itertools.product(*values)]
    return runs


def words(overrides: dict) -> str:
    """Overrides as on a command line; ``parse`` reads them."""
    values = {key: value if isinstance(value, str) else json.dumps(value, separators=(",", ":")) for key, value in overrides.items()}
    return shlex.join(f"{key}={value}" for key, value in values.items())


def parse(assignments: Iterable[str]) -> dict[str, Any]:
    """The overrides ``key=value …`` of a command line; values are read as YAML.

    Raises:
        ValueError: a word without ``=``, a value that is not YAML, or a key that stands twice.
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"override: got {assignment!r}, accepts key=value")
        if key in overrides:
            raise ValueError(f"{key}: got {words({key: overrides[key]})} and {assignment}, accepts one value")
        try:
            overrides[key] = files.parse_yaml(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{key}: got {value!r}, accepts a number, a word, or a list in brackets") from error
    return overrides

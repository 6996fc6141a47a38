"""Keys and their values: one rule for the types of recipe entries, measurements, commands and notebooks' parameters.

A set of keys is a frozen dataclass that derives from ``Keys``. A field without a default stands in every recipe that needs it. A field
with a default was added later: the default is its neutral value, with which everything is as it was before the field existed. The hash
that names a run leaves neutral values out, so that a new field does not change the names of the runs that do not use it.
"""

import copy
import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

NAMES = {float: "a number", int: "an integer", bool: "true or false", str: "a word", type(None): "null", dict: "names with values"}


class Mismatch(ValueError):
    """A value is not of its key's type."""


@dataclasses.dataclass(frozen=True)
class In:
    """The numbers that a key accepts, beside its type: ``Annotated[float, In("(0, 1]")]``. A round bracket leaves the end out."""

    interval: str

    def __contains__(self, number: float) -> bool:
        low, high = map(float, self.interval[1:-1].split(","))
        return low <= number <= high and (self.interval[0] == "[" or number > low) and (self.interval[-1] == "]" or number < high)


Count = Annotated[int, In("[1, inf)")]
Number = Annotated[int, In("[0, inf)")]  # a count that may be 0
Amount = Annotated[float, In("[0, inf)")]
Positive = Annotated[float, In("(0, inf)")]
Part = Annotated[float, In("(0, 1]")]
Probability = Annotated[float, In("[0, 1]")]
Seed = Annotated[int, In("[0, 2147483647]")]  # so that lib.engine.seeds does not overflow


def typed(name: str, value: Any, kind: Any) -> Any:
    """A value as the type of its key.

    An integer serves as a number, and so does a word like ``1e-4``. Nothing else is converted. Numbers are finite.

    Args:
        name: of the key, for the error.
        value: what was given.
        kind: ``float``, ``int``, ``bool``, ``str``, ``dict``, a list of one of them, a ``Literal``, one of them ``Annotated`` with
            ``In``, or a union, of which the first that fits is taken.

    Raises:
        ValueError: a value of another type.
    """
    try:
        return _converted(value, kind)
    except (TypeError, ValueError, OverflowError) as error:
        raise Mismatch(f"{name}: got {value!r}, accepts {describe(kind)}") from error


def check_parameters(namespace: dict[str, Any]) -> None:
    """Check and convert the parameters of a notebook by the annotations of their cell: ``check_parameters(globals())`` after it.

    Raises:
        ValueError: a parameter of another type than its annotation.
    """
    for name, kind in namespace["__annotations__"].items():
        namespace[name] = typed(name, namespace[name], kind)


def describe(kind: Any) -> str:
    """A type in words, as errors say it."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return " or ".join(map(describe, typing.get_args(kind)))
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is Annotated:
        return f"{describe(typing.get_args(kind)[0])} in {typing.get_args(kind)[1].interval}"
    if typing.get_origin(kind) is list and typing.get_origin(typing.get_args(kind)[0]) is Annotated:
        inner, bounds = typing.get_args(typing.get_args(kind)[0])
        return f"{describe(types.GenericAlias(list, inner))} in {bounds.interval}"
    if typing.get_origin(kind) is list:
        plural = {float: "numbers", int: "integers", str: "words", bool: "true or false"}
        return f"a list of {plural[typing.get_args(kind)[0]]}"
    return NAMES[kind]


def _converted(value: Any, kind: Any) -> Any:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        for member in typing.get_args(kind):
            try:
                return _converted(value, member)
            except (TypeError, ValueError, OverflowError):
                continue
        raise TypeError
    if typing.get_origin(kind) is Literal:
        if not any(type(value) is type(member) and value == member for member in typing.get_args(kind)):
            raise ValueError
        return value
    if typing.get_origin(kind) is Annotated:
        inner, bounds = typing.get_args(kind)
        number = _converted(value, inner)
        if number not in bounds:
            raise ValueError
        return number
    if typing.get_origin(kind) is list:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        return [_converted(item, typing.get_args(kind)[0]) for item in value]
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        value = float(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise ValueError
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keys:
    """Base of all sets of keys. Values are checked and converted by ``typed`` when one is made."""

    FORMER: ClassVar[dict[str, Any]] = {}  # fields that this class once had, with the only value that they had; the hash still has them

    def __post_init__(self) -> None:
        for name, kind in typing.get_type_hints(type(self), include_extras=True).items():
            if typing.get_origin(kind) is not ClassVar:
                object.__setattr__(self, name, typed(name, getattr(self, name), kind))

    @classmethod
    def of(cls, where: str, settings: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Self:
        """The keys of a recipe with some values overridden.

        Args:
            where: name of the recipe, for errors.
            settings: what it states.
            overrides: keys and other values for them.

        Raises:
            ValueError: a key that is not known or is missing, or a value of the wrong type.
        """
        known = {field.name: neutral(field) for field in dataclasses.fields(cls)}
        for source, given in ((where, settings), ("overrides", overrides or {})):
            for key in given:
                if key not in known:
                    raise ValueError(f"{key}: unknown key in {source}; {where} accepts {', '.join(known)}")
        given = {**settings, **(overrides or {})}
        missing = [key for key, value in known.items() if value is dataclasses.MISSING and key not in given]
        if missing:
            raise ValueError(f"{where}: lacks {', '.join(missing)}")
        return cls(**given)

    def stated(self) -> dict[str, Any]:
        """The keys as plain data, as records keep them and hashes see them: without neutral values, with the fields of former times."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return copy.deepcopy(self.FORMER) | {f.name: values[f.name] for f in dataclasses.fields(self) if values[f.name] != neutral(f)}

    def changes(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The keys and values that differ from those of a recipe."""
        kinds, changes = typing.get_type_hints(type(self), include_extras=True), {}
        for field in dataclasses.fields(self):
            value, name = getattr(self, field.name), field.name
            if value != (typed(name, settings[name], kinds[name]) if name in settings else neutral(field)):
                changes[name] = value
        return changes


def neutral(field: dataclasses.Field) -> Any:
    """A field's neutral value, or ``dataclasses.MISSING``."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()

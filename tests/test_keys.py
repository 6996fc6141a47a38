"""The types of keys, sets of keys, what of them is stated and hashed, and what differs from a recipe."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Optional, Union

import pytest

from lib.keys import Count, In, Keys, Mismatch, Part, Probability, Seed, check_parameters, describe, neutral, typed

OWN = int | Literal["own"]

# ---- types ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, value, expected",
    [
        (float, 1.5, 1.5),
        (float, 3, 3.0),
        (float, "1e-4", 1e-4),
        (float, "1E-6", 1e-6),
        (float, "-2", -2.0),
        (int, 3, 3),
        (int, -1, -1),
        (bool, True, True),
        (bool, False, False),
        (str, "block", "block"),
        (str, "1e-4", "1e-4"),
        (str, "", ""),
        (dict, {"beta": True}, {"beta": True}),
        (list[float], [1, "1e-4", 0.5], [1.0, 1e-4, 0.5]),
        (list[float], (0, 1), [0.0, 1.0]),
        (list[float], [], []),
        (list[int], (1, 10), [1, 10]),
        (list[str], ["a", "b"], ["a", "b"]),
        (list[bool], [True, False], [True, False]),
        (Literal["all", "largest"], "largest", "largest"),
        (Literal["own", 3], 3, 3),
        (OWN, 64, 64),
        (OWN, "own", "own"),
        (float | None, None, None),
        (float | None, 1, 1.0),
        (float | None | Literal["own"], "own", "own"),
        (float | None | Literal["own"], "0.5", 0.5),
        (str | None, "1e-4", "1e-4"),
        (int | float, 1, 1),  # the first that fits
        (int | float, 1.0, 1.0),
        (float | int, 1, 1.0),
        (int | str, "3", "3"),
        (bool | int, True, True),
        (int | bool, True, True),
        (list[int] | int, 3, 3),
        (list[int] | int, (3, 4), [3, 4]),
        (Part, 1, 1.0),
        (Part, "1e-4", 1e-4),
        (Probability, 0, 0.0),
        (Seed, 2**31 - 1, 2**31 - 1),
        (list[Probability], [0, 1], [0.0, 1.0]),
        (Count | None, None, None),
        (Optional[int], None, None),  # noqa: UP045 the other spelling of a union
        (Union[int, str], "a", "a"),  # noqa: UP007
    ],
)
def test_values_become_their_keys_types(kind, value, expected):
    found = typed("key", value, kind)
    assert found == expected and type(found) is type(expected)
    if isinstance(found, list):
        assert [type(item) for item in found] == [type(item) for item in expected] and found is not value


@pytest.mark.parametrize(
    "kind, value, words",
    [
        (float, True, "a number"),
        (float, False, "a number"),
        (float, None, "a number"),
        (float, "fast", "a number"),
        (float, "", "a number"),
        (float, [0.1], "a number"),
        (int, True, "an integer"),
        (int, False, "an integer"),
        (int, 2.0, "an integer"),
        (int, "2", "an integer"),
        (int, None, "an integer"),
        (bool, 1, "true or false"),
        (bool, 0, "true or false"),
        (bool, "yes", "true or false"),
        (bool, None, "true or false"),
        (str, 5, "a word"),
        (str, True, "a word"),
        (str, None, "a word"),
        (str, ["a"], "a word"),
        (dict, [], "names with values"),
        (dict, None, "names with values"),
        (list[float], 0.3, "a list of numbers"),
        (list[float], "0.3", "a list of numbers"),
        (list[float], ["a"], "a list of numbers"),
        (list[float], [None], "a list of numbers"),
        (list[float], [0.1, True], "a list of numbers"),
        (list[float], {0.1: 0.2}, "a list of numbers"),
        (list[int], [1, 2.0], "a list of integers"),
        (list[int], [True], "a list of integers"),
        (list[int], ["1"], "a list of integers"),
        (list[str], "word", "a list of words"),
        (list[str], [1], "a list of words"),
        (list[bool], [1], "a list of true or false"),
        (Literal["all", "largest"], "some", "all or largest"),
        (Literal["all", "largest"], None, "all or largest"),
        (Literal["all", "largest"], ["all"], "all or largest"),
        (Literal["own", 1], True, "own or 1"),
        (Literal["own", 1], 1.0, "own or 1"),
        (OWN, True, "an integer or own"),
        (OWN, "other", "an integer or own"),
        (OWN, None, "an integer or own"),
        (OWN, 1.5, "an integer or own"),
        (float | None, "none", "a number or null"),
        (float | None, True, "a number or null"),
        (float | None | Literal["own"], "others", "a number or null or own"),
        (float, math.nan, "a number"),
        (float, "-inf", "a number"),
        (list[float], [math.inf], "a list of numbers"),
        (Part, 0, "a number in (0, 1]"),
        (Part, 1.01, "a number in (0, 1]"),
        (Annotated[float, In("[0, 1)")], 1, "a number in [0, 1)"),
        (Probability, -1e-9, "a number in [0, 1]"),
        (Probability, "nan", "a number in [0, 1]"),
        (Count, 0, "an integer in [1, inf)"),
        (Count, 1.0, "an integer in [1, inf)"),
        (Seed, 2**31, "an integer in [0, 2147483647]"),
        (Seed, -1, "an integer in [0, 2147483647]"),
        (list[Probability], [0.5, 2], "a list of numbers in [0, 1]"),
        (Count | Literal["own"], 0, "an integer in [1, inf) or own"),
        (list[int] | int, ["a"], "a list of integers or an integer"),
        (Optional[int], "a", "an integer or null"),  # noqa: UP045
    ],
)
def test_values_of_other_types_are_named(kind, value, words):
    assert describe(kind) == words
    with pytest.raises(Mismatch) as refused:
        typed("some_key", value, kind)
    assert str(refused.value) == f"some_key: got {value!r}, accepts {words}"
    assert isinstance(refused.value, ValueError)


def test_parameters_of_a_notebook_are_checked_by_their_annotations():
    cell = "scale: str = 'small'\nrates: list[float] = [1]\nbudget: float | None = None\nother = 3"
    namespace: dict[str, Any] = {}
    exec(cell, namespace)
    check_parameters(namespace)
    assert (namespace["scale"], namespace["budget"], namespace["other"]) == ("small", None, 3)
    assert namespace["rates"] == [1.0] and type(namespace["rates"][0]) is float
    namespace["budget"] = "soon"
    with pytest.raises(Mismatch, match="^budget: got 'soon', accepts a number or null$"):
        check_parameters(namespace)


# ---- sets of keys -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class First(Keys):
    """Keys of a time before there were others."""

    lr: float
    epochs: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Later(First):
    """With keys that were added."""

    size: OWN = "own"
    parts: list[int] = field(default_factory=list)
    compiled: bool = False
    crop: float | None = 0.875
    LIMIT: ClassVar[int] = 3  # no key


@dataclass(frozen=True, kw_only=True)
class Shorter(Keys):
    """Without two that there once were."""

    FORMER = {"depth": 0, "knn_k": [1]}

    lr: float
    size: int = 0


GIVEN = dict(lr="1e-4", epochs=3, name="toy")
STATED = dict(lr=1e-4, epochs=3, name="toy")


def test_values_are_converted_when_a_set_is_made():
    found = First(**GIVEN)
    assert (found.lr, found.epochs, found.name) == (1e-4, 3, "toy") and found == First.of("small/toy", GIVEN) == First(**STATED)
    assert Later(**GIVEN, parts=(1, 2)).parts == [1, 2]
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.lr = 1.0
    for make in (lambda: First(**GIVEN | {"epochs": True}), lambda: First.of("small/toy", GIVEN, {"epochs": True})):
        with pytest.raises(ValueError, match="^epochs: got True, accepts an integer$"):
            make()
    with pytest.raises(ValueError, match="^epochs: got '4', accepts an integer$"):
        dataclasses.replace(found, epochs="4")


def test_overrides_come_in_the_recipes_place():
    settings, overrides = dict(GIVEN), {"epochs": 5, "size": 64}
    found = Later.of("small/toy", settings, overrides)
    assert (found.lr, found.epochs, found.size) == (1e-4, 5, 64)
    assert settings == GIVEN and overrides == {"epochs": 5, "size": 64}
    assert Later.of("small/toy", {"lr": 1}, {"epochs": 5, "name": "x"}) == Later(lr=1, epochs=5, name="x")  # and also where it has none


def test_unknown_keys_are_named_with_those_that_are_known():
    with pytest.raises(ValueError, match="^rate: unknown key in small/toy; small/toy accepts lr, epochs, name$"):
        First.of("small/toy", GIVEN | {"rate": 1}, {"other": 2})
    with pytest.raises(
        ValueError, match="^rate: unknown key in overrides; small/toy accepts lr, epochs, name, size, parts, compiled, crop$"
    ):
        Later.of("small/toy", GIVEN, {"rate": 1})
    for key in ("LIMIT", "FORMER"):
        with pytest.raises(ValueError, match=f"^{key}: unknown key in overrides"):
            Later.of("small/toy", GIVEN, {key: 4})


def test_missing_keys_are_named_and_neutral_ones_may_miss():
    with pytest.raises(ValueError, match="^small/toy: lacks lr, name$"):
        Later.of("small/toy", {"epochs": 3})
    with pytest.raises(ValueError, match="^small/toy: lacks name$"):
        Later.of("small/toy", {"epochs": 3}, {"lr": 1})
    found = Later.of("small/toy", GIVEN)
    assert (found.size, found.parts, found.compiled, found.crop) == ("own", [], False, 0.875)
    assert found.parts is not Later.of("small/toy", GIVEN).parts


def test_neutral_values_are_those_of_the_fields():
    neutrals = {one.name: neutral(one) for one in dataclasses.fields(Later)}
    missing = dict.fromkeys(("lr", "epochs", "name"), dataclasses.MISSING)
    assert neutrals == missing | {"size": "own", "parts": [], "compiled": False, "crop": 0.875}


# ---- what is stated, and what differs ---------------------------------------------------------------------------------


def test_neutral_values_are_not_stated():
    assert First(**GIVEN).stated() == Later(**GIVEN).stated() == STATED
    assert Later(**GIVEN, size="own", parts=(), compiled=False, crop="0.875").stated() == STATED
    others = dict(size=64, parts=[1], compiled=True, crop=None)
    for name, value in others.items():
        assert Later(**GIVEN, **{name: value}).stated() == STATED | {name: value}
    found = Later(**GIVEN, **others)
    assert found.stated() == STATED | others and Later.of("again", found.stated()) == found


def test_former_fields_are_stated_and_are_no_keys():
    assert Shorter(lr=1).stated() == {"depth": 0, "knn_k": [1], "lr": 1.0}
    assert Shorter(lr=1, size=3).stated() == {"depth": 0, "knn_k": [1], "lr": 1.0, "size": 3}
    assert First.FORMER == Keys.FORMER == {} and not hasattr(Shorter(lr=1), "depth")
    with pytest.raises(ValueError, match="^depth: unknown key in overrides; small/toy accepts lr, size$"):
        Shorter.of("small/toy", {"lr": 1}, {"depth": 0})
    Shorter(lr=1).stated()["depth"] = 7
    assert Shorter.FORMER["depth"] == 0


def test_changes_are_what_differs_from_the_recipe():
    assert Later.of("small/toy", GIVEN).changes(GIVEN) == {}
    assert Later.of("small/toy", GIVEN, {"lr": 1e-4, "epochs": 3, "size": "own", "parts": ()}).changes(GIVEN) == {}
    assert Later.of("small/toy", GIVEN, {"lr": "2e-4", "crop": None}).changes(GIVEN) == {"lr": 2e-4, "crop": None}
    recipe = GIVEN | {"size": 64, "parts": (1,)}
    assert Later.of("small/toy", recipe).changes(recipe) == {}
    assert Later.of("small/toy", recipe, {"size": "own"}).changes(recipe) == {"size": "own"}  # which the recipe has otherwise
    assert Later.of("small/toy", GIVEN, {"size": 64}).changes(recipe) == {"parts": []}
    assert Shorter.of("small/toy", {"lr": 1}).changes({"lr": 1}) == {}


def test_an_integer_that_no_number_can_hold_is_refused_by_name():
    for kind in (float, float | None):
        with pytest.raises(ValueError, match="lr: got 1000"):
            typed("lr", 10**400, kind)

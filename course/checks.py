"""How answers are checked: beside a reference, on random inputs. An answer that equals a usual mistake gets the hint that belongs to it.

An exercise is a function: the reference. The decorator says on which inputs an answer is tried, and which mistakes are usual::

    @exercise(
        inputs=lambda g: (torch.rand(4, 36, generator=g),),
        wrong={"divide by the sum, so that it is 1": lambda attention: attention},
    )
    def distribution(attention):
        '''02: attention Float[B, N] as shares that sum to 1.'''
        return attention / attention.sum(1, keepdim=True)

    distribution(answer)  # prints "right", or a hint; None is not yet an answer

Without ``inputs`` the answer is not a function but a value.
"""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from numbers import Real
from typing import Any

import torch
from torch import Generator, Tensor

TRIALS = 3


class Exercise:
    """A check; ``exercise`` makes it from a reference."""

    def __init__(self, reference: Callable, inputs: Callable[[Generator], tuple] | None, wrong: Mapping[str, Any], tolerance: float):
        self.reference, self.inputs, self.wrong, self.tolerance = reference, inputs, wrong, tolerance
        self.__doc__ = reference.__doc__

    def __call__(self, answer: Any, *given: Any) -> None:
        """Print what there is to say about an answer; ``given`` are the numbers of the question where a notebook chooses them."""
        print(self.feedback(answer, *given))

    def feedback(self, answer: Any, *given: Any) -> str:
        """``right``, ``not answered yet``, or ``not yet`` with a hint."""
        trials = [given] if self.inputs is None else [self.inputs(Generator().manual_seed(seed)) for seed in range(TRIALS)]
        try:
            found = None if answer is None else [answer(*deepcopy(t)) if self.inputs else answer for t in trials]
        except Exception as error:  # whatever a student's function does
            return f"not yet: {type(error).__name__}: {error}"
        if found is None or all(part is None for part in found):
            return "not answered yet"
        wanted = [self.reference(*deepcopy(trial)) for trial in trials]
        if self.same(found, wanted):
            return "right"
        for hint, mistake in self.wrong.items():
            if self.same(found, [mistake(*deepcopy(trial)) if callable(mistake) else mistake for trial in trials]):
                return f"not yet: {hint}"
        seen = describe(found[0], wanted[0], self.tolerance) if self.inputs else direction(answer, wanted[0], self.tolerance)
        return f"not yet: {seen}" if seen else "not yet"

    def same(self, found: list, wanted: list) -> bool:
        return all(agree(a, b, self.tolerance) for a, b in zip(found, wanted))


def exercise(
    *, inputs: Callable[[Generator], tuple] | None = None, wrong: Mapping[str, Any] | None = None, tolerance: float = 1e-4
) -> Callable[[Callable], Exercise]:
    """Make a check of a reference.

    Args:
        inputs: the arguments of one trial, drawn from a generator; None: the answer is a value.
        wrong: hint -> the mistake that it belongs to, a function of the same arguments, or the value that it leads to.
        tolerance: how far numbers may lie apart.
    """
    return lambda reference: Exercise(reference, inputs, wrong or {}, tolerance)


def agree(found: Any, wanted: Any, tolerance: float) -> bool:
    """The same type and shape, with numbers that differ by the tolerance at most. A word agrees with a set that has it."""
    if isinstance(wanted, Tensor):
        found = tensor(found)
        if found is None or found.shape != wanted.shape or (found.dtype == torch.bool) != (wanted.dtype == torch.bool):
            return False
        return torch.allclose(found.double(), wanted.double(), rtol=tolerance, atol=tolerance, equal_nan=True)
    if isinstance(wanted, (tuple, list)):
        same_length = isinstance(found, (tuple, list, Tensor)) and len(found) == len(wanted)
        return same_length and all(agree(a, b, tolerance) for a, b in zip(found, wanted))
    if isinstance(wanted, Real):
        found = found.item() if isinstance(found, Tensor) and found.numel() == 1 else found
        return isinstance(found, Real) and math.isclose(found, wanted, rel_tol=0, abs_tol=tolerance)
    if isinstance(wanted, set) and isinstance(found, str):
        return found in wanted
    return found == wanted


def tensor(value: Any) -> Tensor | None:
    """A tensor of an answer, or None if it is none."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def describe(found: Any, wanted: Any, tolerance: float) -> str:
    """In what the answer of a function differs, where no usual mistake explains it."""
    if isinstance(wanted, (tuple, list)):
        if not isinstance(found, (tuple, list)) or len(found) != len(wanted):
            return f"give back {len(wanted)} things"
        place, pair = next((i, pair) for i, pair in enumerate(zip(found, wanted)) if not agree(*pair, tolerance))
        return f"part {place}: {describe(*pair, tolerance)}"
    found, wanted = tensor(found), torch.as_tensor(wanted)
    if found is None:
        return f"give back a tensor of shape {tuple(wanted.shape)}"
    if found.shape != wanted.shape:
        transposed = found.ndim > 1 and agree(found.mT, wanted, tolerance)
        averaged = not wanted.ndim and agree(found.double().mean(), wanted.double(), tolerance)
        more = "; it is transposed" if transposed else "; take the mean of all its entries" if averaged else ""
        return f"shape {tuple(found.shape)}, but {tuple(wanted.shape)} is asked{more}"
    if (found.dtype == torch.bool) != (wanted.dtype == torch.bool):
        return f"the result is {found.dtype}, but {wanted.dtype} is asked"
    if wanted.dtype == torch.bool:
        wrong = (found != wanted).sum().item()
        return (
            "the other way round: True and False are exchanged"
            if wrong == wanted.numel()
            else f"{wrong} of {wanted.numel()} entries differ"
        )
    found, wanted = found.double(), wanted.double()
    largest = wanted.abs().argmax()
    factor = (found.flatten()[largest] / wanted.flatten()[largest]).item()
    if wanted.abs().max() > 0 and abs(factor) > tolerance and agree(found / factor, wanted, tolerance):
        return f"right but for a factor of {factor:.4g}"
    return f"the largest difference is {(found - wanted).abs().max().item():.3g}"


def direction(found: Any, wanted: Any, tolerance: float) -> str:
    """On which side of the value an answer lies; nothing that gives it away."""
    if isinstance(wanted, (tuple, list)) and isinstance(found, (tuple, list)) and len(found) == len(wanted):
        place, pair = next((i, pair) for i, pair in enumerate(zip(found, wanted)) if not agree(*pair, tolerance))
        return f"entry {place}: {direction(*pair, tolerance)}"
    if isinstance(wanted, Real) and isinstance(found, Real):
        return "too large" if found > wanted else "too small"
    return ""

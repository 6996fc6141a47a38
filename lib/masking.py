"""Which patch tokens to hide from the student: random, block-wise and attention-guided masks.

A mask is ``Bool[batch, tokens]`` over the patch tokens in row-major order (no class token); **True means masked**.
Every function draws from its ``generator`` alone, on the generator's device; None is torch's global generator on the CPU.

Sources: AttMask (Kakogeorgiou et al., ECCV 2022, section 3.2), BEiT (Bao et al., ICLR 2022, algorithm 1) as used by
iBOT (Zhou et al., ICLR 2022), MAE (He et al., CVPR 2022) for the ratio of 75%.
"""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

Device = torch.device | str | None


class Request(NamedTuple):
    """The arguments of a strategy."""

    counts: Tensor  # Long[B], tokens to mask in each row
    ratios: Tensor  # Float64[B], the ratios that gave the counts
    grid: tuple[int, int]  # (H, W) in patches
    attention: Tensor | None  # Float[B, H * W], for strategies that need it
    hint_pool: float  # fraction of the tokens, the most attended, from which hints are drawn
    generator: torch.Generator | None


@dataclass(frozen=True)
class Strategy:
    """A masking strategy. ``STRATEGIES`` lists all of them by name."""

    sample: Callable[[Request], Tensor]  # returns Bool[B, H * W], True = masked
    needs_attention: bool = False
    ratio: float | None = None  # a fixed ratio that replaces the random one


def needs_attention(strategy: str) -> bool:
    """Whether a strategy of ``STRATEGIES`` needs the teacher's attention."""
    _check_choice("strategy", strategy, STRATEGIES)
    return STRATEGIES[strategy].needs_attention


def random_mask(batch: int, tokens: int, ratio: float, *, generator: torch.Generator | None = None, device: Device = None) -> Tensor:
    """A mask Bool[batch, tokens] of exactly ``int(ratio * tokens)`` random tokens in each row.

    Args:
        batch, tokens: number of rows, and of tokens in each row.
        ratio: masked fraction in [0, 1); 0 gives an empty mask.
        generator, device: source of randomness, and the device of the mask; None is the generator's device.

    Raises:
        ValueError: a count below 1, or a ratio outside [0, 1).
    """
    _check_count("batch", batch)
    _check_count("tokens", tokens)
    _check_ratio("ratio", ratio)
    counts = torch.full((batch,), int(ratio * tokens))
    return _random(counts, tokens, generator).to(device or _device_of(generator))


def block_mask(
    batch: int, grid: tuple[int, int], ratio: float, *, generator: torch.Generator | None = None, device: Device = None
) -> Tensor:
    """A mask Bool[batch, H * W] of random rectangles with ``int(ratio * H * W)`` tokens, never more (BEiT algorithm 1, as in iBOT).

    A block covers at least ``(min(H, W) // 3) ** 2`` tokens (fewer where the target itself is smaller), has a log-uniform
    aspect ratio in [0.3, 1 / 0.3] and is smaller than the grid on both sides. After ten attempts in a row that do not fit, the
    mask stays below its target. So a grid of one row or one column stays unmasked.

    Args:
        batch, generator, device: as in ``random_mask``.
        grid: patches (down, across).
        ratio: target fraction in [0, 1); 0 gives an empty mask.

    Raises:
        ValueError: a count below 1, a grid that is not two counts, or a ratio outside [0, 1).
    """
    _check_count("batch", batch)
    _check_grid(grid)
    _check_ratio("ratio", ratio)
    counts = torch.full((batch,), int(ratio * grid[0] * grid[1]))
    return _blocks(counts, grid, generator).to(device or _device_of(generator))


def attention_mask(
    attention: Tensor,
    ratio: float,
    *,
    strategy: str,
    hint_pool: float = 0.1,
    hint_ratio: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """AttMask: a mask Bool[B, N] of the tokens that the teacher attends most (or least).

    Args:
        attention: Float[B, N], the teacher's attention of [CLS] over the patches, mean over heads (AttMask eq. 5). Of tokens
            with equal attention, the one with the lower index comes first.
        ratio: masked fraction r in [0, 1).
        strategy: ``"high"`` masks the ``int(r N)`` most attended tokens, ``"low"`` the least attended. ``"hint"`` masks like
            ``"high"`` and then reveals up to ``int(hint_ratio N)`` masked tokens, drawn without replacement from the
            ``int(hint_pool N)`` most attended ones.
        hint_pool: fraction of the tokens, the most attended, from which hints are drawn.
        hint_ratio: fraction of the tokens that is revealed; None is ``hint_pool * ratio`` as in the paper's text (the
            released code draws a second ratio r' and reveals ``hint_pool * r'``).
        generator: source of randomness of the hints.

    Raises:
        ValueError: attention that is not a floating [B, N], an unknown strategy, or a ratio out of range.
    """
    if attention.ndim != 2 or not attention.is_floating_point():
        raise ValueError(f"attention: got {attention.dtype} of shape {tuple(attention.shape)}, accepts floats of shape [B, N]")
    _check_ratio("ratio", ratio)
    _check_choice("strategy", strategy, ("high", "low", "hint"))
    batch, tokens = attention.shape
    counts, ratios = torch.full((batch,), int(ratio * tokens)), torch.full((batch,), ratio, dtype=torch.float64)
    return _attended(Request(counts, ratios, (1, tokens), attention, hint_pool, generator), strategy, hint_ratio)


def draw_masks(
    strategy: str,
    batch: int,
    grid: tuple[int, int],
    *,
    attention: Tensor | None = None,
    ratio_range: tuple[float, float] = (0.1, 0.5),
    probability: float = 0.5,
    share_ratio: bool = True,
    hint_pool: float = 0.1,
    generator: torch.Generator | None = None,
    device: Device = None,
) -> Tensor:
    """The masks Bool[batch, H * W] of one training step. Each row is masked with ``probability``, at a ratio r ~ U(ratio_range) or
    at the fixed ratio of a strategy such as ``random75``.

    Args:
        strategy: one of ``STRATEGIES``.
        batch: number of rows, two global crops of each image.
        grid, hint_pool: as in ``block_mask`` and ``attention_mask``.
        attention: Float[batch, H * W], needed by the AttMask strategies only.
        ratio_range: bounds of r, within [0, 1).
        probability: probability that a row is masked at all.
        share_ratio: draw one r for the whole batch, as AttMask's code does for its own strategies, instead of one for each row,
            as iBOT's code does for block and random. A comparison must use one setting for all strategies.
        generator: source of randomness, best on the CPU.
        device: device of the masks; None is the device of the attention or, without attention, of the generator.

    Raises:
        ValueError: an argument out of range, or an AttMask strategy without attention.
    """
    _check_choice("strategy", strategy, STRATEGIES)
    _check_count("batch", batch)
    _check_grid(grid)
    if len(ratio_range) != 2 or not 0 <= ratio_range[0] <= ratio_range[1] < 1:
        raise ValueError(f"ratio_range: got {ratio_range!r}, accepts (low, high) with 0 <= low <= high < 1")
    _check_ratio("probability", probability, top=True)
    tokens, where = grid[0] * grid[1], _device_of(generator)
    fits = attention is not None and attention.shape == (batch, tokens) and attention.is_floating_point()
    if needs_attention(strategy) and not fits:
        got = None if attention is None else f"{attention.dtype} of shape {tuple(attention.shape)}"
        raise ValueError(f"attention: got {got}, {strategy} accepts floats of shape {(batch, tokens)}")

    method = STRATEGIES[strategy]
    low, high = ratio_range if method.ratio is None else (method.ratio, method.ratio)
    ratios = low + (high - low) * torch.rand(1 if share_ratio else batch, generator=generator, device=where, dtype=torch.float64)
    has_mask = torch.rand(batch, generator=generator, device=where) < probability
    ratios = torch.where(has_mask, ratios.expand(batch), 0.0)
    masks = method.sample(Request((ratios * tokens).long(), ratios, grid, attention, hint_pool, generator))
    return masks.to(device or (where if attention is None else attention.device))


def _random(counts: Tensor, tokens: int, generator: torch.Generator | None) -> Tensor:
    scores = torch.rand(len(counts), tokens, generator=generator, device=_device_of(generator))
    return _first(scores.argsort(dim=1, stable=True), counts)


def _attended(request: Request, strategy: str, hint_ratio: float | None = None) -> Tensor:
    """Mask by attention; ``strategy`` and ``hint_ratio`` as in ``attention_mask``."""
    attention, counts, generator = request.attention, request.counts, request.generator
    assert attention is not None  # draw_masks checks it
    _check_ratio("hint_pool", request.hint_pool, top=True)
    tokens = attention.shape[1]
    order = attention.argsort(dim=1, descending=strategy != "low", stable=True)  # [B, N], the first to mask first
    mask = _first(order, counts)
    if strategy == "hint":
        if hint_ratio is not None:
            _check_ratio("hint_ratio", hint_ratio, top=True)
        shares = request.hint_pool * request.ratios if hint_ratio is None else torch.full_like(request.ratios, hint_ratio)
        pool = counts.clamp(max=int(request.hint_pool * tokens))  # hints come from tokens that are masked
        scores = torch.rand(counts.shape[0], tokens, generator=generator, device=_device_of(generator)).to(attention.device)
        outside = torch.arange(tokens, device=attention.device) >= pool.to(attention.device)[:, None]
        positions = scores.masked_fill(outside, 2.0).argsort(dim=1, stable=True)  # positions within the order, those of the pool first
        mask &= ~_first(order.gather(1, positions), (shares * tokens).long().minimum(pool))
    return mask


def _first(order: Tensor, counts: Tensor) -> Tensor:
    """Bool[B, N]: True for the first ``counts[b]`` indices of each row of ``order``."""
    is_first = torch.arange(order.shape[1], device=order.device) < counts.to(order.device)[:, None]
    return torch.zeros_like(is_first).scatter_(1, order, is_first)


def _blocks(counts: Tensor, grid: tuple[int, int], generator: torch.Generator | None) -> Tensor:
    height, width = grid
    draws = _uniforms(generator)
    masks = torch.zeros(len(counts), height, width, dtype=torch.bool)
    for mask, target in zip(masks.numpy(), counts.tolist()):
        min_area = min((min(height, width) // 3) ** 2, target)
        tokens_left = target
        while tokens_left > 0:
            for _ in range(10):
                area = min_area + (tokens_left - min_area) * next(draws)
                aspect = math.exp(math.log(0.3) + 2 * math.log(1 / 0.3) * next(draws))
                h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
                if h >= height or w >= width:
                    continue
                top, left = int(next(draws) * (height - h + 1)), int(next(draws) * (width - w + 1))
                block = mask[top : top + h, left : left + w]
                new = h * w - int(block.sum())
                if 0 < new <= tokens_left:
                    block[:] = True
                    tokens_left -= new
                    break
            else:
                break  # ten attempts in a row did not fit
    return masks.flatten(1).to(_device_of(generator))


def _uniforms(generator: torch.Generator | None) -> Iterator[float]:
    """Uniform numbers in [0, 1) without end, drawn 256 at a time: single draws would make ``_blocks`` slow."""
    while True:
        yield from torch.rand(256, generator=generator, device=_device_of(generator), dtype=torch.float64).tolist()


_uniform = Strategy(lambda request: _random(request.counts, request.grid[0] * request.grid[1], request.generator))

STRATEGIES: dict[str, Strategy] = {
    "block": Strategy(lambda request: _blocks(request.counts, request.grid, request.generator)),
    "random": _uniform,
    "random75": Strategy(_uniform.sample, ratio=0.75),
    "attmask_low": Strategy(partial(_attended, strategy="low"), needs_attention=True),
    "attmask_hint": Strategy(partial(_attended, strategy="hint"), needs_attention=True),
    "attmask_high": Strategy(partial(_attended, strategy="high"), needs_attention=True),
}


def _device_of(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: got {value!r}, accepts an integer of at least 1")


def _check_grid(grid: tuple[int, int]) -> None:
    if len(grid) != 2:
        raise ValueError(f"grid: got {grid!r}, accepts (height, width) in patches")
    for side in grid:
        _check_count("grid", side)


def _check_ratio(name: str, value: float, *, top: bool = False) -> None:
    if not (0 <= value < 1 or top and value == 1):
        raise ValueError(f"{name}: got {value!r}, accepts a number in [0, 1{']' if top else ')'}")


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, accepts one of {', '.join(choices)}")

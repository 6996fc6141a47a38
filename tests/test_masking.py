import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lib.masking import STRATEGIES, attention_mask, block_mask, draw_masks, needs_attention, random_mask

RATIOS = (0.0, 0.01, 0.1, 0.29, 0.3, 0.5, 0.57, 0.75, 0.999)
GRIDS = ((14, 14), (6, 6), (3, 3), (2, 2), (1, 1), (1, 9), (9, 1), (4, 7))
few = settings(max_examples=60, deadline=None, derandomize=True)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def shuffled_attention(batch, tokens, seed=0):
    """Rows of distinct positive values that sum to 1."""
    rows = torch.stack([torch.randperm(tokens, generator=seeded(seed + i)) + 1.0 for i in range(batch)])
    return rows / rows.sum(1, keepdim=True)


# ---- literal versions -------------------------------------------------------------------------------------------------


def literal_order(row, strategy):
    """Tokens in the order in which they are masked, the lower index first among equals."""
    return sorted(range(len(row)), key=lambda i: (row[i] if strategy == "low" else -row[i], i))


def literal_attention_mask(row, ratio, strategy):
    mask = np.zeros(len(row), dtype=bool)
    for i in literal_order(row, strategy)[: int(ratio * len(row))]:
        mask[i] = True
    return mask


def literal_block_mask(grid, ratio, rng):
    (height, width), target = grid, int(ratio * grid[0] * grid[1])
    mask = np.zeros(grid, dtype=bool)
    low = min((min(height, width) // 3) ** 2, target)
    while mask.sum() < target:
        for _ in range(10):
            remaining = target - mask.sum()
            area, aspect = low + (remaining - low) * rng.random(), math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top, left = rng.integers(0, height - h, endpoint=True), rng.integers(0, width - w, endpoint=True)
                block = mask[top : top + h, left : left + w]
                if 0 < (~block).sum() <= remaining:
                    block[:] = True
                    break
        else:
            break
    return mask


# ---- random -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 2, 36, 100, 196])
@pytest.mark.parametrize("ratio", RATIOS)
def test_random_masks_exactly_the_integer_part(tokens, ratio):
    mask = random_mask(7, tokens, ratio, generator=seeded())
    assert mask.shape == (7, tokens) and mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [int(ratio * tokens)] * 7


def test_random_masks_every_token_equally_often():
    counts = random_mask(4000, 20, 0.3, generator=seeded()).sum(0)
    # Without replacement the counts vary by a factor (N - n) / (N - 1) less than independent draws do.
    statistic = ((counts - 1200).double().square() / 1200).sum().item() * 19 / 14
    assert 0.001 < stats.chi2(df=19).sf(statistic) < 0.999


def test_random_masks_every_pair_equally_often():
    mask = random_mask(6000, 6, 0.34, generator=seeded(1)).double()
    pairs = (mask.T @ mask)[*torch.triu_indices(6, 6, 1)]
    assert pairs.sum() == 6000
    assert stats.chisquare(pairs.numpy()).pvalue > 0.001


# ---- block ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_block_never_masks_more_than_its_target(grid, ratio):
    mask = block_mask(40, grid, ratio, generator=seeded())
    assert mask.shape == (40, grid[0] * grid[1]) and mask.dtype == torch.bool
    assert mask.sum(1).max() <= int(ratio * grid[0] * grid[1])


@pytest.mark.parametrize(
    "grid, ratio, share", [((14, 14), 0.1, 0.8), ((14, 14), 0.3, 0.9), ((14, 14), 0.5, 0.9)] + [((6, 6), r, 0.75) for r in (0.1, 0.3, 0.5)]
)
def test_block_reaches_most_of_its_target(grid, ratio, share):
    counts = block_mask(300, grid, ratio, generator=seeded()).sum(1).double()
    assert counts.mean() > share * int(ratio * grid[0] * grid[1])
    assert counts.min() > 0


@pytest.mark.parametrize("grid, ratio", [((14, 14), 0.4), ((14, 14), 0.1), ((14, 14), 0.04), ((6, 6), 0.3), ((5, 8), 0.5), ((3, 3), 0.5)])
def test_block_is_distributed_as_the_literal_sampler(grid, ratio):
    """Equal means of the masked cells, of their number and of the length of their outline."""
    rng, rows = np.random.default_rng(0), 1500
    literal = np.stack([literal_block_mask(grid, ratio, rng) for _ in range(rows)])
    ours = block_mask(rows, grid, ratio, generator=seeded()).view(rows, *grid).numpy()
    outline = [(np.diff(m, axis=1).sum((1, 2)) + np.diff(m, axis=2).sum((1, 2))).astype(float) for m in (literal, ours)]
    counts = [m.sum((1, 2)).astype(float) for m in (literal, ours)]
    for a, b in (outline, counts):
        error = math.sqrt((a.var() + b.var()) / rows)
        assert abs(a.mean() - b.mean()) <= 4 * error + 1e-9
    cells = [m.mean(0) for m in (literal, ours)]
    assert np.abs(cells[0] - cells[1]).max() < 5 * math.sqrt(0.5 / rows)
    for flipped in (ours[:, ::-1], ours[:, :, ::-1]):  # no side is preferred
        assert np.abs(flipped.mean(0) - cells[1]).max() < 5 * math.sqrt(0.5 / rows)


# ---- attention --------------------------------------------------------------------------------------------------------


@few
@given(
    rows=st.integers(1, 30).flatmap(lambda n: st.lists(st.lists(st.integers(0, 6), min_size=n, max_size=n), min_size=1, max_size=4)),
    ratio=st.one_of(st.sampled_from(RATIOS), st.floats(0, 1, exclude_max=True)),
    strategy=st.sampled_from(["high", "low"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_high_and_low_equal_the_literal_version(rows, ratio, strategy, dtype):
    mask = attention_mask(torch.tensor(rows, dtype=dtype), ratio, strategy=strategy)
    assert mask.tolist() == [literal_attention_mask(row, ratio, strategy).tolist() for row in rows]


@pytest.mark.parametrize("strategy", ["high", "low", "hint"])
def test_ties_go_to_the_lower_index(strategy):
    mask = attention_mask(torch.full((3, 100), 0.01), 0.3, strategy=strategy, hint_ratio=0.0)
    assert mask.tolist() == [[True] * 30 + [False] * 70] * 3


@pytest.mark.parametrize("tokens", [1, 2, 36, 196])
@pytest.mark.parametrize("ratio", RATIOS)
def test_high_and_low_mask_exactly_the_integer_part_from_opposite_ends(tokens, ratio):
    attention = shuffled_attention(3, tokens)
    high, low = (attention_mask(attention, ratio, strategy=s) for s in ("high", "low"))
    assert high.sum(1).tolist() == low.sum(1).tolist() == [int(ratio * tokens)] * 3
    assert torch.equal(high, attention_mask(-attention, ratio, strategy="low"))
    for row, h, low_row in zip(attention, high, low):
        assert not h.any() or h.all() or row[h].min() > row[~h].max()
        assert not low_row.any() or low_row.all() or row[low_row].max() < row[~low_row].min()


def test_high_and_low_of_one_half_are_complementary():
    attention = shuffled_attention(5, 196)
    assert torch.equal(attention_mask(attention, 0.5, strategy="high"), ~attention_mask(attention, 0.5, strategy="low"))


@few
@given(
    tokens=st.integers(1, 60),
    ratio=st.one_of(st.sampled_from(RATIOS), st.floats(0, 1, exclude_max=True)),
    hint_pool=st.one_of(st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.floats(0, 1)),
    hint_ratio=st.one_of(st.none(), st.sampled_from([0.0, 0.1, 1.0]), st.floats(0, 1)),
    seed=st.integers(0, 99),
)
def test_hint_reveals_as_many_of_the_pool_as_it_is_asked_to(tokens, ratio, hint_pool, hint_ratio, seed):
    attention = shuffled_attention(3, tokens, seed)
    asked = int((hint_pool * ratio if hint_ratio is None else hint_ratio) * tokens)
    hint = attention_mask(attention, ratio, strategy="hint", hint_pool=hint_pool, hint_ratio=hint_ratio, generator=seeded(seed))
    for row, mask in zip(attention.tolist(), hint.numpy()):
        order, high = literal_order(row, "high"), literal_attention_mask(row, ratio, "high")
        revealed = set(np.flatnonzero(high & ~mask).tolist())
        allowed = set(order[: int(hint_pool * tokens)]) & set(np.flatnonzero(high).tolist())
        assert not (mask & ~high).any()
        assert revealed <= allowed
        assert len(revealed) == min(asked, len(allowed))


def test_hint_default_is_the_pool_times_the_ratio():
    attention = shuffled_attention(20, 1000)
    revealed = 500 - attention_mask(attention, 0.5, strategy="hint", generator=seeded()).sum(1)
    assert revealed.tolist() == [50] * 20
    assert (400 - attention_mask(attention, 0.4, strategy="hint", hint_pool=0.2, generator=seeded()).sum(1)).tolist() == [80] * 20


def test_hint_with_nothing_to_reveal_is_high():
    attention = shuffled_attention(4, 36)
    for options in (dict(hint_ratio=0.0), dict(hint_pool=0.0, hint_ratio=0.5), dict()):  # 0.1 * 0.25 of 36 tokens is none
        hint = attention_mask(attention, 0.25, strategy="hint", generator=seeded(), **options)
        assert torch.equal(hint, attention_mask(attention, 0.25, strategy="high"))


def test_hint_pool_larger_than_the_mask_reveals_all_of_it():
    hint = attention_mask(shuffled_attention(4, 100), 0.2, strategy="hint", hint_pool=0.5, hint_ratio=0.3, generator=seeded())
    assert not hint.any()


def test_hint_draws_uniformly_from_its_pool():
    attention = torch.arange(100, 0, -1.0).expand(5000, 100)
    hint = attention_mask(attention, 0.5, strategy="hint", hint_pool=0.1, hint_ratio=0.05, generator=seeded())
    revealed = (~hint[:, :50]).sum(0)
    assert revealed[:10].sum() == 5000 * 5 and revealed[10:].sum() == 0
    assert (revealed[:10] - 2500).abs().max() < 150
    assert (~hint[:, :10]).unique(dim=0).shape[0] == math.comb(10, 5)


# ---- the masks of a step ----------------------------------------------------------------------------------------------


def draw(strategy, batch=400, grid=(14, 14), seed=0, **options):
    attention = shuffled_attention(batch, grid[0] * grid[1]) if needs_attention(strategy) else None
    return draw_masks(strategy, batch, grid, attention=attention, generator=seeded(seed), **options)


def test_attention_is_needed_by_attmask_alone():
    assert [s for s in STRATEGIES if needs_attention(s)] == ["attmask_low", "attmask_hint", "attmask_high"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("share_ratio", [True, False])
def test_half_of_the_rows_stay_whole(strategy, share_ratio):
    masked = draw(strategy, share_ratio=share_ratio).any(1).double().mean()
    assert 0.42 < masked < 0.58
    assert not draw(strategy, share_ratio=share_ratio, probability=0.0).any()
    assert draw(strategy, share_ratio=share_ratio, probability=1.0).any(1).all()


@pytest.mark.parametrize("probability", [0.2, 0.9])
def test_probability_is_that_of_a_masked_row(probability):
    masked = draw("random", batch=5000, grid=(4, 4), ratio_range=(0.4, 0.5), probability=probability).any(1).double().mean()
    assert abs(masked - probability) < 0.03


@pytest.mark.parametrize("strategy", ["random", "attmask_high", "attmask_low", "attmask_hint"])
def test_one_ratio_a_batch_or_one_a_row(strategy):
    shared = [draw(strategy, batch=20, seed=seed, probability=1.0).sum(1).unique() for seed in range(200)]
    assert all(len(counts) == 1 for counts in shared)
    own = draw(strategy, batch=400, probability=1.0, share_ratio=False).sum(1).unique()
    assert len(own) > 50
    kept = 0.9 if strategy == "attmask_hint" else 1
    for counts in (torch.cat(shared), own):
        assert 19 - 2 <= counts.min() and counts.max() <= 98
        assert abs(counts.double().mean() - kept * 0.3 * 196) < 5


@pytest.mark.parametrize("strategy", ["random", "attmask_high", "attmask_low"])
def test_own_ratios_are_uniform_over_the_range(strategy):
    counts = draw(strategy, batch=3000, probability=1.0, share_ratio=False, ratio_range=(0.2, 0.7)).sum(1)
    assert counts.min() == 39 and counts.max() <= 137
    assert stats.kstest(counts.double().numpy() / 196, stats.uniform(0.2, 0.5).cdf).statistic < 0.04


@pytest.mark.parametrize("strategy", ["random", "attmask_high", "attmask_low"])
@pytest.mark.parametrize("ratio", [0.29, 0.3, 0.57])
def test_drawn_counts_are_the_integer_part(strategy, ratio):
    for side in (3, 6, 10, 14):
        masks = draw(strategy, batch=3, grid=(side, side), probability=1.0, ratio_range=(ratio, ratio))
        assert masks.sum(1).tolist() == [int(ratio * (side * side))] * 3


def test_random75_hides_three_quarters_of_half_the_rows():
    assert set(draw("random75", ratio_range=(0.1, 0.2)).sum(1).tolist()) == {0, 147}


@pytest.mark.parametrize("strategy", ["high", "low"])
def test_drawn_attention_masks_are_attention_masks(strategy):
    attention = shuffled_attention(50, 36)
    masks = draw_masks(f"attmask_{strategy}", 50, (6, 6), attention=attention, share_ratio=False, generator=seeded())
    for row, mask in zip(attention, masks):
        expected = literal_order(row.tolist(), strategy)[: int(mask.sum())]
        assert mask.nonzero().flatten().tolist() == sorted(expected)


def test_drawn_hints_reveal_a_tenth():
    masks = draw("attmask_hint", probability=0.5, ratio_range=(0.5, 0.5))
    assert set(masks.sum(1).tolist()) == {0, 98 - 9}


@pytest.mark.parametrize("share_ratio", [True, False])
def test_drawn_blocks_stay_within_the_range(share_ratio):
    counts = draw("block", probability=1.0, share_ratio=share_ratio).sum(1)
    assert counts.min() > 0 and counts.max() <= 98
    assert share_ratio == (counts.max() - counts.min() < 20)


def test_no_ratio_is_no_mask():
    assert not any(draw(strategy, ratio_range=(0.0, 0.0), probability=1.0).any() for strategy in STRATEGIES if strategy != "random75")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_generator_alone_decides(strategy):
    torch.manual_seed(1)
    first = draw(strategy, seed=3)
    torch.manual_seed(2)
    assert torch.equal(first, draw(strategy, seed=3))
    assert not torch.equal(first, draw(strategy, seed=4))


def test_successive_draws_differ_and_follow_the_generator():
    calls = (
        lambda g: random_mask(8, 36, 0.5, generator=g),
        lambda g: block_mask(8, (6, 6), 0.5, generator=g),
        lambda g: attention_mask(shuffled_attention(8, 100), 0.5, strategy="hint", generator=g),
    )
    for call in calls:
        one, other = seeded(5), seeded(5)
        first = call(one)
        assert torch.equal(first, call(other))
        assert not torch.equal(first, call(one))
        torch.manual_seed(7)
        from_global = call(None)
        torch.manual_seed(7)
        assert torch.equal(from_global, call(None))


# ---- refusals ---------------------------------------------------------------------------------------------------------

HIGH = dict(strategy="high")
UNIFORM = torch.full((2, 4), 0.25)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
@pytest.mark.parametrize(
    "call", [lambda r: random_mask(2, 4, r), lambda r: block_mask(2, (2, 2), r), lambda r: attention_mask(UNIFORM, r, **HIGH)]
)
def test_a_ratio_lies_between_0_and_1(call, ratio):
    with pytest.raises(ValueError, match="^ratio: got .* accepts"):
        call(ratio)


@pytest.mark.parametrize(
    "name, call",
    [
        ("batch", lambda: random_mask(0, 4, 0.5)),
        ("batch", lambda: block_mask(0, (2, 2), 0.5)),
        ("batch", lambda: draw_masks("random", 0, (2, 2))),
        ("tokens", lambda: random_mask(2, 0, 0.5)),
        ("tokens", lambda: random_mask(2, 4.0, 0.5)),
        ("grid", lambda: block_mask(2, (4,), 0.5)),
        ("grid", lambda: block_mask(2, (0, 4), 0.5)),
        ("grid", lambda: block_mask(2, (2.0, 4), 0.5)),
        ("grid", lambda: draw_masks("random", 2, (2, 2, 2))),
        ("strategy", lambda: attention_mask(UNIFORM, 0.5, strategy="attmask_high")),
        ("strategy", lambda: draw_masks("high", 2, (2, 2), attention=UNIFORM)),
        ("strategy", lambda: needs_attention("none")),
        ("attention", lambda: attention_mask(UNIFORM[0], 0.5, **HIGH)),
        ("attention", lambda: attention_mask(UNIFORM[None], 0.5, **HIGH)),
        ("attention", lambda: attention_mask(torch.ones(2, 4, dtype=torch.int64), 0.5, **HIGH)),
        ("attention", lambda: attention_mask(torch.ones(2, 4, dtype=torch.bool), 0.5, **HIGH)),
        ("attention", lambda: draw_masks("attmask_low", 2, (2, 2))),
        ("attention", lambda: draw_masks("attmask_low", 2, (2, 3), attention=UNIFORM)),
        ("attention", lambda: draw_masks("attmask_low", 2, (2, 2), attention=torch.ones(2, 4, dtype=torch.int64))),
        ("hint_pool", lambda: attention_mask(UNIFORM, 0.5, strategy="hint", hint_pool=1.1)),
        ("hint_pool", lambda: attention_mask(UNIFORM, 0.5, strategy="hint", hint_pool=-0.1)),
        ("hint_ratio", lambda: attention_mask(UNIFORM, 0.5, strategy="hint", hint_ratio=1.1)),
        ("hint_ratio", lambda: attention_mask(UNIFORM, 0.5, strategy="hint", hint_ratio=-0.1)),
        ("ratio_range", lambda: draw_masks("random", 2, (2, 2), ratio_range=(0.1, 1.0))),
        ("ratio_range", lambda: draw_masks("random", 2, (2, 2), ratio_range=(-0.1, 0.5))),
        ("ratio_range", lambda: draw_masks("random", 2, (2, 2), ratio_range=(0.5, 0.1))),
        ("probability", lambda: draw_masks("random", 2, (2, 2), probability=1.5)),
        ("probability", lambda: draw_masks("random", 2, (2, 2), probability=-0.5)),
    ],
)
def test_bad_arguments_are_named(name, call):
    with pytest.raises(ValueError, match=f"^{name}: got .* accepts"):
        call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_masks_on_a_gpu_equal_those_on_the_cpu():
    attention = shuffled_attention(16, 196)
    for strategy in ("high", "low", "hint"):
        masks = [attention_mask(attention.to(d), 0.4, strategy=strategy, generator=seeded()) for d in ("cpu", "cuda")]
        assert masks[1].is_cuda and torch.equal(masks[0], masks[1].cpu())
    for strategy in STRATEGIES:
        on_gpu = draw_masks(strategy, 16, (14, 14), attention=attention.cuda(), generator=seeded())
        assert on_gpu.is_cuda and torch.equal(on_gpu.cpu(), draw_masks(strategy, 16, (14, 14), attention=attention, generator=seeded()))
    generator = torch.Generator("cuda").manual_seed(0)
    for mask in (
        random_mask(4, 36, 0.5, generator=generator),
        block_mask(4, (6, 6), 0.5, generator=generator),
        random_mask(4, 36, 0.5, device="cuda"),
    ):
        assert mask.is_cuda and mask.any()

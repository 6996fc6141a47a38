"""Published figures, verdicts from hand-made records, the run store."""

import json
import math
import os
import re
import shlex
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors import safe_open
from torch import nn

from lib import keep, paths, recipes
from lib.evaluation.base import evaluation_names
from lib.measure import measurement_of
from lib.results import claims, paper_tables, papers, verdicts
from lib.results.records import append_line, records
from lib.results.report import PAGE, README, readme, report
from lib.results.runs import Run
from lib.results.tables import treatments
from lib.results.verdicts import COLUMNS, VERDICTS, Interval, coverage, finding_of, interval, rules_of, statements, verdict_of
from lib.train import find_run

PAPERS = Path(__file__).resolve().parent.parent.parent / "shared" / "papers"
T2, T4 = 4.302652729911275, 2.7764451051977987  # 97.5% points of Student's t, from its tables


# ---- the papers -------------------------------------------------------------------------------------------------------


def value(paper: str, table: str, row: str, column: str) -> float:
    found = paper_tables().query("paper == @paper and table == @table and row == @row and column == @column").value
    assert len(found) == 1
    return found.item()


def test_known_figures_are_there():
    assert value("attmask", "strategies", "attmask_high", "imagenet_knn") == 49.7
    assert value("attmask", "strategies", "block", "imagenet_knn") == 46.7
    assert value("attmask", "data_fraction", "attmask_high", "5%") == 17.5
    assert value("attmask", "full_imagenet", "ibot_attmask_hint", "knn") == 72.8
    assert value("attmask", "downstream", "ibot_attmask", "davis_f") == 63.5
    assert value("simpool", "framework", "simpool", "accuracy") == 57.1
    assert value("simpool", "supervised", "simpool_100ep", "vit_s") == 74.3
    assert value("simpool", "depth", "cls+4", "params_million") == 29.2
    table = paper_tables()
    assert list(table)[:5] == ["paper", "table", "row", "column", "value"]
    assert not table.duplicated(["paper", "table", "row", "column"]).any() and table.value.notna().all()
    shown = papers.paper_table("attmask", "data_fraction")
    assert list(shown) == ["5%", "10%", "20%", "100%"] and list(shown.index) == ["block", "attmask_high"]
    assert math.isnan(papers.paper_table("attmask", "full_imagenet").loc["dino", "knn_nu1"])
    with pytest.raises(ValueError, match="table: got attmask/none, accepts attmask/strategies"):
        papers.paper_table("attmask", "none")


def test_known_claims_are_there():
    table = claims().set_index("id")
    assert list(claims()) == ["id", "paper", "text", "metric", "better", "worse", "paper_gap"]
    assert list(table.index) == [f"attmask-{i}" for i in range(1, 12)] + [f"simpool-{i}" for i in range(1, 12)]
    assert table.paper_gap["attmask-1"] == pytest.approx((3.0 + 1.5) / 2)
    assert table.paper_gap["attmask-5"] == pytest.approx((1.8 + 1.9 + 3.0 + 1.0) / 4)
    assert table.paper_gap["simpool-1"] == pytest.approx(57.1 - 56.7)  # over the strongest of the others
    assert table.paper_gap["simpool-9"] == pytest.approx(-0.2)
    assert math.isnan(table.paper_gap["attmask-4"])
    assert papers.claim("simpool-10") == table.text["simpool-10"]
    with pytest.raises(ValueError, match="identity: got 'x', accepts attmask-1"):
        papers.claim("x")


@pytest.fixture(params=["attmask", "simpool"])
def published(request):
    file = PAPERS / f"{request.param}.yaml"
    if not file.is_file():
        pytest.skip(f"no {file.name} beside the repository")
    return yaml.safe_load(file.read_text())


def test_every_published_figure_is_there(published):
    expected = {}
    for table in published["tables"]:
        for row, line in table["rows"].items():
            assert len(line["values"]) == len(table["columns"])
            for column, number in zip(table["columns"], line["values"]):
                if number is not None:
                    expected[table["id"], row, column] = (number, line.get("note", ""))
    for row, line in published.get("framework", {}).get("rows", {}).items():
        expected["framework", row, "accuracy"] = (line["accuracy"], "")
    ours = paper_tables()
    ours = ours[ours.paper == published["paper"]]
    found = {(r.table, r.row, r.column): (r.value, r.note) for r in ours.itertuples()}
    assert found.keys() == expected.keys()
    assert {key: number for key, (number, _) in found.items()} == {key: number for key, (number, _) in expected.items()}
    assert all(found[key][1] == note for key, (_, note) in expected.items() if note)


def test_every_claim_is_there(published):
    ours = {claim["id"]: claim for claim in papers.claim_details() if claim["paper"] == published["paper"]}
    assert list(ours) == [claim["id"] for claim in published["claims"]]
    for claim in published["claims"]:
        mine = ours[claim["id"]]
        assert mine["text"] == claim["text"]
        for key in ("measure", "limit", "tolerance", "note"):
            assert mine.get(key) == claim.get(key), (claim["id"], key)
        if "table" in claim:
            worse = claim["worse"] if isinstance(claim["worse"], list) else [claim["worse"]]
            wanted = {"table": claim["table"], "better": claim["better"], "worse": worse, "columns": claim.get("columns", [])}
            assert mine["published"] == wanted, claim["id"]
        else:
            assert not mine["published"]


def test_the_landscape_is_the_published_one(published):
    if "framework" not in published:
        pytest.skip(f"no landscape in {published['paper']}.yaml")
    ours = papers.published_landscape()
    rows = published["framework"]["rows"]
    assert list(ours.index) == list(rows)
    for name, line in rows.items():
        for part in ("U0", "phi_Q", "phi_K", "s", "A", "phi_V", "f", "phi_X", "phi_U"):
            assert ours.loc[name, part] == line.get(part, ""), (name, part)
        assert str(ours.loc[name, "k"]) == str(line["k"]) and ours.loc[name, "group"] == line["group"]
        assert bool(ours.loc[name, "category_level"]) == line["cat"] and bool(ours.loc[name, "iterative"]) == line["iter"]
        assert bool(ours.loc[name, "simplified"]) == bool(line.get("simplified", False))


def test_every_claim_with_evidence_can_be_answered():
    experiments = {recipes.entry(name).experiment for name in recipes.names()} | {"cost"} | set(evaluation_names())
    for claim in papers.claim_details():
        for rule in rules_of(claim):
            named = rule["experiment"] if isinstance(rule["experiment"], list) else [rule["experiment"]]
            assert experiments.issuperset(named) and rule["metrics"], claim["id"]
            assert ("limit" in rule) != ("better" in rule)


# ---- verdicts ---------------------------------------------------------------------------------------------------------


HIDDEN = {"attmask_high": 40.0, "attmask_hint": 38.0, "random": 30.0, "block": 32.0, "attmask_low": 20.0}  # percent of the objects


def record(masking: str, seed: int, knn, *, scale="small", experiment="strategies", device="CPU", lr=1.0, hidden=HIDDEN, **metrics) -> dict:
    row = {"scale": scale, "experiment": experiment, "device": device, "config.masking": masking, "config.seed": seed, "config.lr": lr}
    if experiment == "strategies" and masking in hidden:
        metrics |= {f"hidden_{masking}": hidden[masking]}
    return row | {"config.method": "ibot", "metrics.knn": knn} | {f"metrics.{name}": x for name, x in metrics.items()}


def pairs(high: list, block: list, **more) -> list[dict]:
    rows = [record("attmask_high", seed, knn, **more) for seed, knn in enumerate(high)]
    return rows + [record("block", seed, knn, **more) for seed, knn in enumerate(block)]


def judge(rows: list[dict], identity: str = "attmask-1", statement: str = "k-NN") -> pd.Series:
    """The verdict on a statement; a claim of one statement has no names for it."""
    table = statements(pd.DataFrame(rows))
    assert list(table)[:7] == COLUMNS and set(table.verdict) <= set(VERDICTS)
    whole = verdicts(pd.DataFrame(rows))
    assert list(whole) == COLUMNS and list(whole.id) == list(claims().id) and set(whole.verdict) <= set(VERDICTS)
    for row in table[table.id == identity].itertuples():
        assert bool(row.reason) == (row.verdict == "not testable") and bool(row.scale) == (row.verdict != "not run")
    table = table[table.id == identity].set_index("statement")
    return table.iloc[0] if len(table) == 1 else table.loc[statement]


def test_the_interval_is_students():
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - T2 / math.sqrt(3), 2 + T2 / math.sqrt(3)))
    five = [0.0, 1.0, 1.0, 2.0, 6.0]
    half = T4 * math.sqrt(sum((x - 2) ** 2 for x in five) / 4) / math.sqrt(5)
    assert interval(five) == pytest.approx((2.0, 2 - half, 2 + half))
    single = interval([4.0])
    assert single.mean == 4 and math.isnan(single.low) and math.isnan(single.high)
    assert interval([2.0, 2.0]) == (2, 2, 2)
    with pytest.raises(ValueError, match="values: got none"):
        interval([])


def test_the_verdict_is_the_side_of_zero_on_which_the_interval_lies():
    assert verdict_of(Interval(2, 0.1, 4)) == "reproduced"
    assert verdict_of(Interval(-2, -4, -0.1)) == "contradicted"
    for gap in (Interval(1, -0.1, 2), Interval(0, 0, 0), Interval(9, math.nan, math.nan)):
        assert verdict_of(gap) == "inconclusive"
    assert verdict_of(Interval(-0.1, -0.2, 0.0), 0.3) == "reproduced"
    assert verdict_of(Interval(-1, -2, -0.4), 0.3) == "contradicted"


@pytest.mark.parametrize(
    "gaps, verdict", [([2.0, 2.5, 3.0], "reproduced"), ([-2.0, -2.5, -3.0], "contradicted"), ([-1.0, 2.0, 0.5], "inconclusive")]
)
def test_gaps_are_paired_by_seed(gaps, verdict):
    block = [20.0, 60.0, 40.0]  # seeds differ far more than strategies do
    found = judge(pairs([b + g for b, g in zip(block, gaps)], block))
    half = T2 * np.std(gaps, ddof=1) / math.sqrt(3)
    assert (found.gap_mean, found.gap_low, found.gap_high) == pytest.approx((np.mean(gaps), np.mean(gaps) - half, np.mean(gaps) + half))
    assert (found.seeds, found.scale, found.verdict) == (3, "small", verdict)
    shuffled = pairs([b + g for b, g in zip(block, gaps)], block)[::-1]
    assert judge(shuffled).gap_low == pytest.approx(found.gap_low)


def test_fewer_than_three_seeds_give_no_verdict():
    one = judge(pairs([50.0], [40.0]))
    assert one.gap_mean == 10 and math.isnan(one.gap_low) and one.seeds == 1
    assert (one.verdict, one.reason) == ("not testable", "1 seed; a verdict needs 3")
    two = judge(pairs([50.0, 50.1], [40.0, 40.0]))
    assert two.gap_low > 0 and (two.verdict, two.reason) == ("not testable", "2 seeds; a verdict needs 3")


# ---- what has to be true before records count -----------------------------------------------------------------------------

THREE = ([50.0, 51.0, 52.0], [40.0, 41.0, 42.5])


def test_arms_whose_masks_hide_the_same_are_not_compared():
    assert judge(pairs(*THREE)).verdict == "reproduced"
    alike = judge(pairs(*THREE, hidden={"attmask_high": 28.4, "block": 28.2}))
    assert (alike.verdict, alike.reason) == ("not testable", "the masks do not hide more of the objects: 28.4% and 28.2%")
    assert alike.gap_mean == judge(pairs(*THREE)).gap_mean
    reversed_ = judge(pairs(*THREE, hidden={"attmask_high": 20.0, "block": 40.0}))
    assert reversed_.verdict == "not testable"  # the treatment that the claim is about was not applied
    assert judge(pairs(*THREE, hidden={"attmask_high": 33.0, "block": 30.0})).verdict == "reproduced"  # a tenth more is enough
    unknown = judge(pairs(*THREE, hidden={}))
    assert (unknown.verdict, unknown.reason) == ("not testable", "what the masks hide of the objects is not recorded")


def test_the_second_half_of_a_run_tells_what_its_masks_hide():
    def rows(high, block):
        rows = pairs(*THREE, hidden={})
        for row in rows:
            masking, values = row["config.masking"], high if row["config.masking"] == "attmask_high" else block
            row[f"metrics.hidden_{masking}_curve"] = [[epoch, value] for epoch, value in enumerate(values)]
        return rows

    assert judge(rows([30, 30, 30, 40, 40], [30, 90, 90, 30, 30])).verdict == "reproduced"
    alike = judge(rows([30, 90, 90, 30, 31], [30, 30, 30, 30, 30]))
    assert alike.reason == "the masks do not hide more of the objects: 30.5% and 30.0%"


def test_measurements_are_checked_by_the_runs_that_they_measure():
    figures = [
        record(m, seed, 0.0, experiment="linear", linear=k) for m, k in (("attmask_high", 60.0), ("block", 50.0)) for seed in range(3)
    ]
    judged = judge(figures, statement="linear probe")
    assert judged.gap_mean == 10 and judged.reason == "what the masks hide of the objects is not recorded"
    assert judge(figures + pairs(*THREE), statement="linear probe").verdict == "reproduced"
    other = pairs(*THREE, lr=2.0)  # runs of another setting say nothing
    assert judge(figures + other, statement="linear probe").reason == "what the masks hide of the objects is not recorded"


def test_arms_below_the_untrained_network_are_not_compared():
    below = judge(pairs(*THREE, untrained_knn=60.0))
    assert (below.verdict, below.reason) == ("not testable", "no arm is better than the untrained network: 51.0 and 41.2 against 60.0")
    assert judge(pairs(*THREE, untrained_knn=45.0)).verdict == "reproduced"  # one of them learns


def test_arms_below_a_trivial_box_are_not_compared():
    def rows(box):
        common = dict(experiment="localization", centred_box_maxbox=box, whole_image_maxbox=20.0)
        rows = [record("none", seed, 0.0, attention_maxbox=52.0 + seed, **common) for seed in range(3)]
        rows += [record("none", seed, 0.0, attention_maxbox=45.0 + seed, **common) for seed in range(3)]
        return [row | {"config.pooling": "simpool" if i < 3 else "none", "config.method": "supervised"} for i, row in enumerate(rows)]

    assert judge(rows(40.0), "simpool-4", "supervised").verdict == "reproduced"
    below = judge(rows(56.0), "simpool-4", "supervised")
    assert below.reason == "no arm is better than centred box maxbox: 53.0 and 46.0 against 56.0"
    assert judge(rows(40.0), "simpool-4", "self-supervised").verdict == "not run"


@pytest.mark.parametrize("level", [0.0, 99.0])
def test_saturated_figures_are_not_compared(level):
    rows = pairs([level + x for x in (0.5, 0.6, 0.7)], [level + x for x in (0.1, 0.2, 0.2)])
    assert judge(rows).reason.startswith("all arms are at an end of the scale")


def test_a_setting_that_can_answer_comes_before_one_with_more_seeds():
    many = pairs([50.0] * 5, [40.0] * 5, lr=1.0, hidden={})
    found = judge(many + pairs(*THREE, lr=2.0))
    assert found.seeds == 3 and found.verdict == "reproduced"


def test_a_claim_of_several_statements_is_reproduced_if_all_are():
    def linear(high, block):
        return [
            record(m, seed, 0.0, experiment="linear", linear=k + seed / 10)
            for m, k in (("attmask_high", high), ("block", block))
            for seed in range(3)
        ]

    def whole(rows):
        return verdicts(pd.DataFrame(rows)).set_index("id").loc["attmask-1"]

    runs = pairs(*THREE)
    assert whole(runs).verdict == "inconclusive" and math.isnan(whole(runs).gap_mean)  # the linear probe is not run
    probes = [row | {"metrics.linear": row["metrics.linear"] + 0.01 * i} for i, row in enumerate(linear(60.0, 50.0))]
    assert whole(runs + probes).verdict == "reproduced" and whole(runs + probes).seeds == 3
    worse = [row | {"metrics.linear": row["metrics.linear"] + 0.01 * i} for i, row in enumerate(linear(40.0, 50.0))]
    assert whole(runs + worse).verdict == "contradicted"
    assert whole(pairs(*THREE, hidden={})).verdict == "not testable" and whole([]).verdict == "not run"


def test_runs_without_a_partner_do_not_count():
    assert judge(pairs([50.0, 51.0, 52.0], [])).verdict == "not run"
    found = judge(pairs([50.0, 51.0, 58.0, 99.0], [40.0, 41.0, 42.0]))
    assert found.seeds == 3 and found.gap_mean == pytest.approx((10 + 10 + 16) / 3)
    none = judge([])
    assert (none.verdict, none.seeds, none.scale) == ("not run", 0, "") and math.isnan(none.gap_mean)
    unknown = judge(pairs([50.0, 51.0], [40.0, math.nan]))
    assert unknown.seeds == 1


def test_settings_and_devices_are_not_mixed():
    few, many = pairs([50.0, 52.0], [40.0, 41.0], lr=1.0), pairs([31.0, 32.0, 34.0], [30.0, 30.0, 30.0], lr=2.0)
    found = judge(few + many)
    assert found.seeds == 3 and found.gap_mean == pytest.approx(7 / 3)
    crossed = [record("attmask_high", 0, 50.0, device="GPU"), record("block", 0, 40.0, device="CPU")]
    assert judge(crossed).verdict == "not run"


def test_the_largest_scale_that_has_evidence_counts():
    small, paper = pairs([50.0, 52.0, 51.0], [40.0, 41.0, 40.0]), pairs([49.7], [46.7], scale="paper")
    assert judge(small + paper).scale == "paper" and judge(small + paper).verdict == "not testable"
    smoke = pairs([10.0] * 4, [20.0] * 4, scale="smoke")
    assert judge(small + smoke).scale == "small" and judge(smoke).verdict == "not run"
    assert judge(small + [record("block", 0, 46.7, scale="paper")]).scale == "small"  # a scale without a pair has none


def test_the_strongest_alternative_counts():
    rows = pairs([50.0, 51.0], [40.0, 49.0])
    how = {"experiment": "strategies", "field": "masking", "better": "attmask_high", "worse": ["block", "random"], "metrics": ["knn"]}
    rows += [record("random", 0, 47.0), record("random", 1, 45.0)]
    finding = finding_of(how, pd.DataFrame(rows))
    assert finding.scale == "small" and finding.gaps.tolist() == [3.0, 2.0]


def test_methods_that_differ_in_their_own_keys_are_compared():
    def line(method, masking, seed, experiment, **own):
        figure = {"knn": own.pop("knn")} if "knn" in own else {"linear": own.pop("linear")}
        row = record(masking, seed, 0.0, experiment=experiment) | {f"config.{k}": v for k, v in {"method": method, **own}.items()}
        del row["metrics.knn"]
        return row | {f"metrics.{k}": v for k, v in figure.items()}

    rows = [
        line("ibot", "attmask_hint", 0, "strategies", knn=40.0),
        line("ibot", "attmask_low", 0, "strategies", knn=90.0),  # of another method: no opponent
        line("mst", "attmask_low", 0, "methods", knn=37.0, decoder_dim=128, restoration=1.0),
        line("ibot", "attmask_hint", 0, "linear", linear=50.0),
        line("mst", "attmask_low", 0, "linear", linear=49.0, decoder_dim=128, restoration=1.0),
    ]
    for statement, gap in (("k-NN", 3.0), ("linear probe", 1.0)):
        found = judge(rows, "attmask-11", statement)
        assert found.seeds == 1 and found.gap_mean == gap and found.verdict == "not testable"
    rows[2]["config.lr"] = 7.0  # not the same setting any more
    assert judge(rows, "attmask-11").verdict == "not run"


def test_methods_of_different_recipes_share_the_keys_that_the_claim_names():
    (rule,) = [rule for claim in papers.claim_details() if claim["id"] == "simpool-11" for rule in rules_of(claim)]
    shared = {f"config.{key}": 1 for key in rule["same"]}

    def line(method, seed, maxbox, **own):
        row = record("none", seed, 0.0, experiment="localization", attention_maxbox=maxbox) | shared
        return row | {f"config.{key}": value for key, value in {"method": method, "pooling": "none", **own}.items()}

    rows = [line("dino", 0, 53.0, epochs=10), line("supervised", 0, 50.0, epochs=6, mixup=0.2)]
    rows += [line("dino", 0, 90.0, pooling="simpool"), line("supervised", 0, 20.0, train_size=64)]
    assert judge(rows, "simpool-11").gap_mean == pytest.approx(3.0)
    again = line("dino", 0, 99.0, masking="attmask_high")  # of runs that the named keys do not tell apart, the first
    assert judge([*rows, again], "simpool-11").gap_mean == pytest.approx(3.0)
    for key in rule["same"]:
        other = [rows[0], rows[1] | {f"config.{key}": 2}]
        assert judge(other, "simpool-11").verdict == "not run", key
        assert judge([{k: v for k, v in row.items() if k != f"config.{key}"} for row in rows], "simpool-11").verdict == "not run", key


def test_curves_compare_by_their_mean_after_the_start():
    rows = []
    for seed, lift in enumerate((1.0, 2.0, 3.0)):
        rows.append(record("attmask_high", seed, 50.0, knn_curve=[[0, 90.0], [1, 10.0 + lift], [2, 30.0 + lift]]))
        rows.append(record("block", seed, 50.0, knn_curve=[[0, 10.0], [1, 10.0], [2, 30.0]]))
    found = judge(rows, "attmask-4")
    assert found.gap_mean == pytest.approx(2.0) and found.gap_low == pytest.approx(2 - T2 / math.sqrt(3)) and found.seeds == 3


def test_several_metrics_are_averaged_within_a_seed():
    few = ("knn_nu1", "knn_nu5", "knn_nu10", "knn_nu20")
    rows = []
    for seed in range(2):
        rows.append(record("attmask_hint", seed, 50.0, **{name: 10.0 + i + seed for i, name in enumerate(few)}))
        rows.append(record("block", seed, 50.0, **dict.fromkeys(few, 10.0)))
    assert judge(rows, "attmask-7").gap_mean == pytest.approx(2.0)
    del rows[0]["metrics.knn_nu5"]
    assert judge(rows, "attmask-7").seeds == 1


def test_a_ratio_is_judged_by_its_limit():
    def cost(*ratios):
        rows = [
            {"scale": "small", "experiment": "cost", "device": "CPU", "config.seed": i, "metrics.attmask_step_ratio": r}
            for i, r in enumerate(ratios)
        ]
        return judge(rows, "attmask-10")

    assert cost(1.001, 1.002, 1.003).verdict == "reproduced" and cost(1.001, 1.002, 1.003).gap_mean == pytest.approx(0.008)
    assert cost(1.10, 1.11, 1.12).verdict == "contradicted"
    assert cost(1.00, 1.02, 1.01).verdict == "inconclusive"


def test_records_of_another_kind_change_no_verdict():
    ratio = {
        "scale": "small",
        "experiment": "cost",
        "device": "CPU",
        "config.seed": 0,
        "config.row": "x",
        "metrics.attmask_step_ratio": 1.0,
    }
    rows = pairs([2.0, 3.0], [1.0, 1.0])
    for mixed in ([ratio, *rows], [*rows, ratio]):
        assert judge(mixed).seeds == 2 and judge(mixed).gap_mean == pytest.approx(1.5)


def test_a_published_number_counts_once_in_the_coverage():
    table = coverage(pd.DataFrame(pairs(*THREE)))
    strategies = table.loc["attmask", "strategies"]
    # attmask-1, 2 and 3 rest on five rows of the table; on four columns of three of them, and on two of attmask_high and block
    assert strategies["numbers of claims"] == 3 * 4 + 2 * 2 and strategies.answered == 2  # of attmask-1, the k-NN of both
    assert table.answered.sum() == 2 and (table.answered <= table["numbers of claims"]).all()


def test_treatments_are_those_of_the_second_half():
    def line(masking, seed, high):
        curves = dict(attention_mass_curve=[[0, 50.0], [1, 60.0], [2, 70.0]], attention_entropy_curve=[[0, 99.0], [1, 98.0], [2, 90.0]])
        curves |= dict(
            hidden_attmask_high_curve=[[0, 28.0], [1, 30.0], [2, high]], hidden_attmask_low_curve=[[0, 28.0], [1, 26.0], [2, 20.0]]
        )
        return {
            "setting": "small/ibot",
            "masking": masking,
            "seed": seed,
            "hidden_random": 30.0,
            "hidden_block": 33.0,
            "hidden_centre": 38.0,
        } | curves

    table = treatments(pd.DataFrame([line("block", 0, 36.0), line("block", 1, 40.0), line("random", 0, 31.0)]))
    row = table.loc["small/ibot", "block"]
    assert (row.high, row.low, row.attention_entropy, row.runs, row.random) == (38.0, 20.0, 90.0, 2, 30.0)
    assert treatments(pd.DataFrame({"setting": ["small/ibot"], "masking": ["block"]})).empty


# ---- records ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RECORDS", tmp_path / "records")
    return tmp_path


def toy(entry="small/toy", experiment="strategies", **changes) -> Run:
    return Run(entry, experiment, {"seed": 0, "lr": 0.1, "sizes": (1, 2)} | changes)


def finished(seed: int = 0) -> Run:
    run = toy(seed=seed)
    with run.lock():
        run.save_encoder(nn.Linear(2, 2))
        run.finish({"knn": 10.0 + seed}, seconds=1.26, data={"train": "a"}, device=torch.device("cpu"))
    return run


def test_a_runs_key_follows_its_configuration_alone(store):
    one = toy()
    assert one.key == toy("smoke/other", "methods").key == Run("small/toy", "strategies", one.config, {"lr": 0.1}).key
    assert one.key == Run("x/y", "z", {"sizes": [1, 2], "lr": 0.1, "seed": 0}).key
    assert len({toy(**changes).key for changes in ({}, dict(seed=1), dict(lr=0.2), dict(sizes=(2, 1)))}) == 4
    assert one.folder == store / "runs" / f"small/toy-{one.key}" and not one.folder.exists()


def test_the_key_of_an_entry_is_that_of_its_values():
    from lib.train import find_run

    plain = find_run("smoke/ibot")
    assert find_run("smoke/ibot", lr="8.0e-3", seed=0).key == plain.key == find_run("smoke/ibot", mask_ratio=(0.1, 0.5)).key
    others = {find_run("smoke/ibot", **{key: x}).key for key, x in (("seed", 1), ("lr", 0.1), ("masking", "block"), ("compile", True))}
    assert len(others | {plain.key}) == 5


def test_a_finished_run_has_figures_and_provenance(store):
    run = finished()
    result = run.result()
    assert run.finished and run.metrics == {"knn": 10.0} and result["seconds"] == 1.3
    assert {"entry", "key", "config", "metrics", "seconds", "data", "finished", "device", "python", "versions", "commit"} <= set(result)
    assert set(run.encoder_weights()) == {"weight", "bias"}
    assert json.loads((run.folder / "config.json").read_text())["config"]["lr"] == 0.1


def test_a_run_that_is_not_finished_says_so(store):
    run = toy()
    assert not run.finished and run.log().empty
    with pytest.raises(ValueError, match="not finished; make it with python -m lib.train small/toy"):
        run.result()
    with pytest.raises(ValueError, match="encoder.safetensors: missing or damaged"):
        run.encoder_weights()


def test_a_damaged_result_or_encoder_is_named(store):
    run = finished()
    for name, read in (("result.json", run.result), ("encoder.safetensors", run.encoder_weights)):
        file = run.folder / name
        good = file.read_bytes()
        for data in (good[: len(good) // 2], b"", b"\xff\xfe\x00"):
            file.write_bytes(data)
            with pytest.raises(ValueError, match=f"{file}: .*damaged"):
                read()
        file.write_bytes(good)
        read()


def test_a_result_is_written_whole_or_not_at_all(store, monkeypatch):
    """A kill between writing and renaming leaves an unfinished run."""
    pid = os.fork()
    if not pid:
        rename = os.replace
        monkeypatch.setattr(os, "replace", lambda a, b: os.kill(os.getpid(), signal.SIGKILL) if b.name == "result.json" else rename(a, b))
        finished()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    run = toy()
    assert run.folder.is_dir() and not run.finished
    assert finished().finished


def test_a_run_is_recorded_once(store):
    file = finished().record()
    assert file == store / "records" / "small" / "strategies.jsonl"
    finished().record()
    finished(seed=1).record()
    assert len(file.read_text().splitlines()) == 2
    table = records("strategies")
    assert list(table["metrics.knn"]) == [10.0, 11.0] and list(table["config.seed"]) == [0, 1] and set(table.scale) == {"small"}
    assert len(records()) == 2 and records("fractions").empty


def test_smoke_runs_are_no_evidence(store):
    with pytest.raises(ValueError, match="record: smoke/ibot shows a mechanism"):
        toy("smoke/ibot").record()


def test_processes_that_record_at_once_lose_no_line_and_write_none_twice(store):
    for seed in range(3):
        finished(seed)
    pids = []
    for _ in range(4):
        pids.append(os.fork())
        if not pids[-1]:
            for seed in range(3):
                toy(seed=seed).record()
            os._exit(0)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
    lines = [json.loads(line)["key"] for line in (store / "records/small/strategies.jsonl").read_text().splitlines()]
    assert len(lines) == len(set(lines)) == 3


def test_the_last_line_of_a_key_counts(store):
    run = finished()
    file = run.record()
    append_line(file, run.result() | {"metrics": {"knn": 77.0}})
    assert list(records()["metrics.knn"]) == [77.0]


@pytest.mark.parametrize("line", ['{"key": "cut of', "", "3", '{"no": "key"}'])
def test_a_damaged_record_is_named_with_its_line(store, line):
    run = finished()
    file = run.record()
    append_line(file, run.result() | {"key": "another"})
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], line, lines[1]]) + "\n")
    for read in (records, finished(seed=5).record):
        with pytest.raises(ValueError, match=f"{file}:2: damaged record"):
            read()


def test_the_committed_records_are_whole():
    table = records()
    if len(table):
        assert not table.duplicated(["scale", "experiment", "key"]).any()
        assert table.scale.isin(recipes.SCALES).all() and (table.seconds.dropna() > 0).all()
        assert set(verdicts().verdict) <= set(VERDICTS)


# ---- the page of evidence ------------------------------------------------------------------------------------------------


def test_the_page_of_evidence_is_current():
    assert PAGE.read_text(encoding="utf-8") == report(), "run python -m lib.results.report"
    assert README.read_text(encoding="utf-8") == readme(), "run python -m lib.results.report"


def test_the_commands_of_the_page_repeat_the_recorded_runs():
    text = PAGE.read_text(encoding="utf-8")
    commands = {line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()}
    keys = set(records().key)
    assert len(commands) > 20
    for command in commands:
        _, _, module, *words = shlex.split(command)
        name = words.pop(0) if module == "lib.measure" else ""
        overrides = recipes.parse(word for word in words[1:] if "=" in word)
        own = {key.removeprefix(f"{name}."): overrides.pop(key) for key in list(overrides) if name and key.startswith(f"{name}.")}
        run = find_run(words[0], **overrides)
        assert (measurement_of(run, name, **own) if name else run).key in keys, command


def test_the_page_says_what_was_compared():
    rows = [
        row | {"command": "python -m lib.train small/ibot_cpu", "entry": "small/ibot_cpu", "key": str(i)}
        for i, row in enumerate(pairs(*THREE))
    ]
    text = report(pd.DataFrame(rows))
    assert "| attmask_high | 0, 1, 2 | knn 51.00; hidden_attmask_high 40.00 |" in text and "**Reproduced**" in text
    assert "| attmask-2 | not run | 0 |" in text and "| attmask-1 | inconclusive | 3 |" in text


# ---- kept networks ----------------------------------------------------------------------------------------------------


def test_every_kept_network_has_a_name_and_an_untrained_twin():
    networks = keep.kept_networks()
    trained = {name: network for name, network in networks.items() if not name.startswith("untrained")}
    assert len(trained) == len(keep.kept_names())
    assert {"DINO, [CLS]", "DINO, SimPool", "iBOT, AttMask-High", "supervised, SimPool"} <= set(trained)
    for name, network in trained.items():
        twin = networks["untrained, SimPool" if "SimPool" in name else "untrained, [CLS]"]
        assert type(twin.pooling) is type(network.pooling)
        assert not torch.equal(twin.patch_embed.proj.weight, network.patch_embed.proj.weight)


def test_kept_networks_are_chosen_by_their_method():
    assert {name.partition(",")[0] for name in keep.kept_networks("dino")} == {"untrained", "DINO"}


def test_kept_networks_are_recorded_runs():
    """The record beside which a measurement stands is that of the weights that are kept."""
    table = records().set_index("key")
    for name in keep.kept_names():
        with safe_open(paths.RECORDS / "checkpoints" / f"{name}.safetensors", "pt") as stream:
            about = {key: json.loads(value) for key, value in stream.metadata().items()}
        row = table.loc[about["key"]]
        assert (row["entry"], row["metrics.knn"], row["commit"]) == (about["entry"], about["metrics"]["knn"], about["commit"])

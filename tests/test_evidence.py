"""The evidence: its order, what is recorded already, budgets, failures, the command."""

import pytest

from lib import evidence, paths, recipes
from lib.evidence import main, record_evidence
from lib.measure import measurement_of
from lib.results.records import records
from lib.train import find_run

TINY = dict(fraction=0.02, epochs=1, knn_epochs=0, checkpoint_steps=1)
ENTRY, SEEDS = "small/toy", (0, 1)
LINEAR = dict(data="scenes", split="validation", train="train", canvas=64, blocks=1, epochs=1, batch_size=64, lrs=[0.1])


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch):
    """A scale whose evidence is two classifiers of scenes and a linear probe of each."""
    entry = recipes.entry("smoke/benchmark")
    toy = dict(entry.settings, **TINY, about="a classifier of some scenes", experiment="supervised")
    file = dict(
        entries={"toy": toy},
        measurements={"linear": LINEAR},
        evidence=[{"entry": "toy", "device": "cpu", "measure": ["linear"], "seed": list(SEEDS)}],
    )
    read = recipes._read
    monkeypatch.setattr(recipes, "_read", lambda scale: file if scale == "small" else read(scale))
    monkeypatch.setattr(paths, "RECORDS", tmp_path / "records")
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path / "runs"))
    return file


def record(**options) -> bool:
    return record_evidence("small", device="cpu", progress=False, **options)


def lines(experiment: str) -> list[int]:
    table = records(experiment)
    return list(table["config.seed"]) if len(table) else []


def test_what_is_missing_is_made_in_order_and_once(capsys, monkeypatch):
    assert record()
    assert lines("supervised") == [0, 1] and lines("linear") == [0, 1]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[") and "%" not in line]
    starts = ["[1/2] small/toy seed=0", "[1/2] small/toy seed=0 linear", "[2/2] small/toy seed=1", "[2/2] small/toy seed=1 linear"]
    assert said[::2] == starts and all(after.startswith(f"{start}: ") for start, after in zip(starts, said[1::2]))
    monkeypatch.setattr(evidence, "run", None)
    assert record()
    assert capsys.readouterr().out.splitlines() == [f"{start}: recorded" for start in starts]


def test_the_budget_leaves_what_the_same_call_continues(capsys):
    assert not record(budget=0)
    assert "no time left; the same command continues here" in capsys.readouterr().out and not len(records())
    assert record(budget=1e6) and lines("linear") == [0, 1]


def test_a_budget_that_ends_within_a_run_leaves_its_checkpoint(capsys, monkeypatch, toy):
    toy["entries"]["toy"]["epochs"] = 3
    train = evidence.run
    monkeypatch.setattr(evidence, "run", lambda entry, budget, **options: train(entry, budget=1e-9, **options))
    assert not record(budget=1e6)
    assert "stopped early" in capsys.readouterr().out
    assert (find_run(ENTRY, seed=0).folder / "checkpoint.pt").is_file() and not len(records())


def test_a_run_that_left_the_store_is_trained_again_for_its_measurement(toy):
    toy["evidence"][0]["measure"] = []
    assert record() and not lines("linear")
    found = find_run(ENTRY, seed=0)
    (found.folder / "result.json").unlink()
    toy["evidence"][0]["measure"] = ["linear"]
    assert record() and lines("linear") == [0, 1] and lines("supervised") == [0, 1] and found.finished
    assert measurement_of(found, "linear").finished


def test_a_run_that_fails_is_named_and_the_next_goes_on(capsys, toy):
    toy["evidence"].insert(0, {"entry": "toy", "device": "cpu", "measure": ["linear"], "seed": 5, "num_classes": 3})
    assert not record()
    said = capsys.readouterr()
    assert said.err.strip() == "[1/3] small/toy seed=5 num_classes=3: failed: num_classes: got 3, scenes accepts 10"
    assert lines("supervised") == [0, 1] and lines("linear") == [0, 1]


def test_a_measurement_that_fails_is_named_and_the_next_goes_on(capsys, toy, tmp_path):
    toy["measurements"]["video"] = dict(data="davis2016", split="val", shortest=240, patch_size=8, radius=12, n_last=7, topk=5)
    toy["evidence"][0]["measure"] = ["video", "linear"]
    assert not record(root=tmp_path / "nowhere")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all(f"seed={seed} video: failed: " in line for seed, line in zip(SEEDS, said))
    assert lines("linear") == [0, 1] and not lines("video")


def test_a_device_without_evidence_is_named(toy):
    toy["evidence"][0]["device"] = "cuda"
    with pytest.raises(ValueError, match="^device: got cpu, on which recipes/small.yaml has no evidence"):
        record()


def test_the_command(capsys):
    assert main(["small", "--budget", "0", "--device", "cpu"]) == 3
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--budget" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["smoke"])
    assert "invalid choice: 'smoke'" in capsys.readouterr().err
    (paths.RECORDS / "small").mkdir(parents=True)
    (paths.RECORDS / "small" / "linear.jsonl").write_text("{\n")
    assert main(["small", "--device", "cpu"]) == 1
    assert "linear.jsonl:1: damaged record" in capsys.readouterr().err

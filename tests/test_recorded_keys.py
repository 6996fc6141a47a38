"""Every recorded run and measurement is found again: its configuration has the same hash now as when it was made."""

import json

import pytest

from lib import paths
from lib.evaluation.base import evaluation_class
from lib.measure import measurement_of
from lib.results.runs import Result
from lib.train import find_run

FILES = sorted(paths.RECORDS.rglob("*.jsonl"))
WITHOUT_ENTRY = {"cost"}  # benchmarks, which are no runs


def found_again(entry: str, experiment: str, config: dict) -> Result:
    """The run or measurement of a recorded configuration."""
    run = find_run(entry, **{key: value for key, value in config.items() if "." not in key})
    own = {key.partition("."): value for key, value in config.items() if "." in key}
    if not own:
        return run
    assert {name for name, _, _ in own} == {experiment}
    settings = {key: value for (_, _, key), value in own.items()}
    for key, value in evaluation_class(experiment).Settings.FORMER.items():
        assert settings.pop(key) == value, key
    return measurement_of(run, experiment, **settings)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_recorded_runs_are_found_by_their_configuration(file):
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    runs = [line for line in lines if line.get("entry")]
    assert lines and len(runs) == (0 if file.stem in WITHOUT_ENTRY else len(lines))
    for line in runs:
        found = found_again(line["entry"], file.stem, line["config"])
        assert (found.key, found.config) == (line["key"], line["config"]), line["command"]
        assert (found.scale, found.experiment) == (file.parent.name, file.stem)
        # And to the letter, as the hash sees it: 1 is not 1.0.
        assert json.dumps(found.config, sort_keys=True) == json.dumps(line["config"], sort_keys=True)


def test_there_are_records_of_runs_and_of_measurements():
    assert {file.stem for file in FILES} >= {"strategies", "supervised", "linear", "finetune", "detection", "segmentation", *WITHOUT_ENTRY}

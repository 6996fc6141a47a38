"""The trials of docs/reliability.md, a few of each, and the page itself."""

import re
from collections import Counter

from benchmarks import reliability


def test_nothing_goes_wrong_when_processes_are_stopped_and_files_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path / "runs"))
    table = list(reliability.rows(1, tmp_path, seed=1))
    assert len(table) == 17 and all(found.total() == 1 for _, found in table)
    assert not [title for title, found in table if found["WRONG"]]


def test_what_goes_wrong_is_seen():
    def fails():
        raise RuntimeError("a.file")

    def refuses():
        raise ValueError("a.file: damaged")

    assert [reliability.outcome(get, 1, "a.file") for get in (lambda: 1, lambda: 2, fails, refuses)] == [
        "unharmed",
        "WRONG",
        "WRONG",
        "refused",
    ]
    assert reliability.outcome(refuses, 1, "b.file") == "WRONG"  # names another file
    assert "| killed | 3 | 1 | 0 | 2 |" in reliability.page([("killed", Counter(unharmed=1, WRONG=2))])


def test_the_page_states_trials_of_which_none_went_wrong():
    found = re.findall(r"^\| (.+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", reliability.PAGE.read_text(encoding="utf-8"), re.M)
    assert len(found) == 17
    for title, times, unharmed, refused, wrong in found:
        assert int(times) == int(unharmed) + int(refused) >= 10 and wrong == "0", title

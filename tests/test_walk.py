"""The README's walk from an image to a verdict: its functions run, in its order."""

import re
import sys
import threading

import pytest

from lib import paths, recipes
from lib.measure import measure
from lib.results.records import records
from lib.results.verdicts import verdicts
from lib.train import run

WALK = re.search(r"A reader's walk(.+?)\.\nFor the second paper", (paths.ROOT / "README.md").read_text(encoding="utf-8"), re.S).group(1)
STOPS = [(name, paths.ROOT / file) for name, file in re.findall(r"\[`(\w+)`\]\(([\w/.]+)\)", WALK)]
LINEAR = dict(data="scenes", split="validation", train="train", canvas=64, images=50, blocks=1, epochs=1, batch_size=64, lrs=[0.1])


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A scale that records what smoke runs may not."""
    entry = recipes.entry("smoke/ibot_brief")
    settings = dict(entry.settings, fraction=0.05, about="iBOT on some scenes", experiment="strategies")
    file = dict(entries={"toy": settings}, measurements={"linear": LINEAR})
    read = recipes._read
    monkeypatch.setattr(recipes, "_read", lambda scale: file if scale == "small" else read(scale))
    monkeypatch.setattr(paths, "RECORDS", tmp_path / "records")


def test_the_walk_names_what_runs_in_its_order(toy):
    calls = []

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(str(paths.ROOT / "lib")):
            calls.append((frame.f_code.co_name, frame.f_code.co_filename))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        trained = run("small/toy", masking="block", progress=False, record=True)
        measure("linear", trained, progress=False, record=True)
        verdicts()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert len(STOPS) >= 15 and len(records()) == 2
    rest = iter([*calls, ("", "")])
    for name, file in STOPS:
        assert any(call == (name, str(file)) for call in rest), f"{name} of {file} does not run after the one before it"

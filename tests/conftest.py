"""Every test gets a run store of its own and sees no local data unless it asks for them."""

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def clean_surroundings(tmp_path, monkeypatch):
    """An empty run store, no data folder, no network and one thread."""
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COMPANION_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    torch.set_num_threads(1)


@pytest.fixture
def real_data() -> Path:
    """The folder with real data sets: ``$COMPANION_TEST_DATA``, or ``shared/data`` beside the repository."""
    places = [Path(os.environ.get("COMPANION_TEST_DATA") or REPOSITORY.parent / "shared" / "data")]
    for place in places:
        if place.is_dir():
            return place
    pytest.skip(f"no real data (tiny-imagenet-20pct, imagenette-112, cifar10 …) in {places[0]}; COMPANION_TEST_DATA names their folder")

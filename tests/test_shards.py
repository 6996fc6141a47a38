"""Large sets stay on the disk: the same table, batches and fingerprint as in memory, and memory that does not grow."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lib import paths
from lib.data import shards
from lib.data.bank import Stream
from lib.data.fingerprint import fingerprint
from lib.data.loading import card, load, read_part, read_table
from lib.data.reading import encoded, read_image
from tests.test_basis import CARD, draw


@pytest.fixture
def sharded(tmp_path, monkeypatch):
    """The set ``noise`` of two classes in two shards a split."""
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path / "runs"))
    (tmp_path / "cards" / "noise").mkdir(parents=True)
    (tmp_path / "cards" / "noise" / "README.md").write_text(CARD.replace("[image_folder]", "[parquet]"))
    monkeypatch.setattr(paths, "CARDS", tmp_path / "cards")
    card.cache_clear()
    draw(tmp_path / "files", 0)
    (tmp_path / "noise").mkdir()
    for split in ("train", "validation"):
        images = sorted((tmp_path / "files" / "noise" / split).glob("*/*.png"), key=lambda file: (file.name, file.parent.name))
        rows = [{"image": {"bytes": f.read_bytes(), "path": f.name}, "label": "ab".index(f.parent.name)} for f in images]
        for number, part in enumerate(np.array_split(np.arange(len(rows)), 2)):
            table = pa.Table.from_pylist([rows[row] for row in part])
            pq.write_table(table, tmp_path / "noise" / f"{split}-{number:05d}-of-00002.parquet")
    yield tmp_path
    card.cache_clear()


def test_on_the_disk_is_as_in_memory(sharded, monkeypatch):
    held = read_table("noise", "train", root=sharded)
    monkeypatch.setattr(shards, "LARGEST", 0)
    table = read_table("noise", "train", root=sharded)
    assert table["image"][0].as_py()["bytes"] is None and held["image"][0].as_py()["bytes"]
    assert table["filename"].to_pylist() == held["filename"].to_pylist() and table["label"] == held["label"]
    assert fingerprint(table) == fingerprint(held)
    order = torch.randperm(16).split(5)
    for ours, theirs in zip(Stream(table, 16).batches(order), Stream(held, 16).batches(order)):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    dataset = load("noise", "train", root=sharded)
    assert np.array_equal(np.asarray(dataset[3]["image"]), np.asarray(read_image(encoded(held, 3))))
    assert dataset["label"] == held["label"].to_pylist() and dataset[5]["filename"] == held["filename"][5].as_py()
    part = read_part("noise", "train", 0.25, root=sharded)
    assert len(part) == 4 and part["filename"].to_pylist() == ["0.png", "1.png"] * 2


def test_a_changed_shard_is_copied_again_and_a_damaged_one_named(sharded, monkeypatch):
    monkeypatch.setattr(shards, "LARGEST", 0)
    before = fingerprint(read_table("noise", "validation", root=sharded))
    file = sharded / "noise" / "validation-00000-of-00002.parquet"
    first, second = pq.read_table(file).to_pylist()
    first["image"]["bytes"], second["image"]["bytes"] = second["image"]["bytes"], first["image"]["bytes"]
    pq.write_table(pa.Table.from_pylist([first, second]), file)
    assert fingerprint(read_table("noise", "validation", root=sharded)) != before
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"^{file}: damaged, or no space"):
        read_table("noise", "validation", root=sharded)
    assert not list((sharded / "runs").rglob("*.partial"))


MEASURE = """
import sys, torch
import pyarrow as pa, pyarrow.parquet as pq
from pathlib import Path
from lib.data import shards

def held():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) / 1024

folder = Path(sys.argv[1])
image = {"bytes": bytes(2**20), "path": "zeros"}
schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())])
with pq.ParquetWriter(folder / "train.parquet", schema) as writer:
    for start in range(0, 2200, 100):
        writer.write_table(pa.Table.from_pylist([{"image": image, "label": row} for row in range(start, start + 100)], schema))
before = held()
file = shards.as_arrow(folder / "train.parquet")
pictures = shards.places([file], "image")
most = 0.0
for row in torch.randperm(2200)[:300].tolist():
    assert len(shards.bytes_of(pictures[row])) == 2**20
    most = max(most, held() - before)
print(file.stat().st_size, round(most))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_a_set_of_more_than_two_gigabytes(tmp_path):
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, cwd=paths.ROOT, check=True)
    size, most = map(int, done.stdout.split())
    assert size > 2 * 2**30 and most < 800, done.stdout  # megabytes

"""CONTRIBUTING.md, followed: a copy of the project gets what the page adds, and the page's commands run in it."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lib import paths

PAGE = (paths.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCK = re.compile(r'<!-- (append to|write|insert into) (\S+)(?: after "([^"]+)")? -->\n```\w+\n(.*?)```', re.S)
SECTIONS = dict(zip(*[iter(re.split(r"^## (.+)$", PAGE, flags=re.M)[1:])] * 2))
ADDITIONS = [name for name, text in SECTIONS.items() if "```sh\n" in text]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project as somebody has it who did what the page says."""
    root = tmp_path_factory.mktemp("companion")
    for folder in ("lib", "recipes", "data_cards", "records"):
        shutil.copytree(paths.ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for what, name, place, text in BLOCK.findall(PAGE):
        file = root / name
        if what == "write":
            assert not file.exists()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        elif what == "append to":
            file.write_text(file.read_text(encoding="utf-8") + "\n\n" + text, encoding="utf-8")
        else:
            before = file.read_text(encoding="utf-8")
            assert before.count(f"\n{place}\n") == 1
            file.write_text(before.replace(f"\n{place}\n", f"\n{place}\n{text}"), encoding="utf-8")
    for split, count in (("train", 16), ("validation", 8)):
        for name, colour in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
            folder = root / "data" / "squares" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((32, 32, 3), colour, np.uint8) + np.uint8(i)).save(folder / f"{i}.png")
    return root


def test_the_page_has_all_five():
    assert ADDITIONS == ["A masking strategy", "A pooling", "A data set", "A measurement", "A method"]
    assert len(BLOCK.findall(PAGE)) == 7


@pytest.mark.parametrize("addition", ADDITIONS)
def test_what_the_page_adds_works(addition, copy):
    [command] = re.findall(r"```sh\n(.*?)```", SECTIONS[addition], re.S)
    surroundings = {key: value for key, value in os.environ.items() if not key.startswith("COMPANION")}
    surroundings |= dict(PYTHONPATH=str(copy), COMPANION_RUNS=str(copy / "runs"), COMPANION_DATA=str(copy / "data"), OMP_NUM_THREADS="1")
    for line in command.strip().splitlines():
        if addition == "A measurement":  # of the run that the page has made before
            train = line.replace("lib.measure uniformity", "lib.train")
            subprocess.run([sys.executable, *train.split()[1:]], cwd=copy, env=surroundings, check=True, capture_output=True)
        done = subprocess.run([sys.executable, *line.split()[1:]], cwd=copy, env=surroundings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    assert ("uniformity" if addition == "A measurement" else "k-NN") in done.stdout

"""Grids of notebooks: planning, skipping and failing."""

import json
import os
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lib import batch, paths
from lib.batch import Job, execute, find_notebooks, main, notebook_parameters, plan, run_jobs


def notebook(name: str, *cells: str, parameters: str | None = 'scale: str = "smoke"  # which entries\nseed: int = 0  # of everything'):
    """Write a notebook whose second cell is its parameters."""
    made = [new_markdown_cell(f"# {name}")]
    if parameters is not None:
        made.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    content = new_notebook(cells=made + [new_code_cell(c) for c in cells])
    content.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    paths.NOTEBOOKS.mkdir(exist_ok=True)
    nbformat.write(content, paths.NOTEBOOKS / f"{name}.ipynb")
    return paths.NOTEBOOKS / f"{name}.ipynb"


@pytest.fixture(autouse=True)
def own_notebooks(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def stamp(job: Job, text: str | None = None) -> None:
    """Leave the output that an execution would leave."""
    made = new_notebook()
    made.metadata[batch.STAMP] = {"stamp": text or job.stamp}
    job.target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(made, job.target)


def test_notebooks_are_found_by_the_start_of_their_names(tmp_path):
    for name in ("10_last", "00_map", "04_strategies", "scratch"):
        notebook(name)
    assert [p.stem for p in find_notebooks()] == ["00_map", "04_strategies", "10_last"]
    assert [p.stem for p in find_notebooks(["10", "00_m"])] == ["00_map", "10_last"]
    with pytest.raises(ValueError, match="notebooks: got '07', accepts the start of one of 00_map, 04_strategies, 10_last"):
        find_notebooks(["04", "07"])


def test_a_plan_passes_only_parameters_that_a_notebook_has():
    """papermill merely warns of a parameter that a notebook lacks, and the cell that it adds changes nothing."""
    full = notebook("03_full", parameters='scale: str = "smoke"\nseed: int = 0\nrecord: bool = False')
    short, bare = notebook("00_short", parameters='scale: str = "smoke"'), notebook("01_bare", parameters=None)
    assert notebook_parameters(full) == {"scale", "seed", "record"} and notebook_parameters(bare) == set()
    jobs = plan([short, bare, full], "small", seeds=[0, 2], record=True)
    assert [(job.target.name, job.parameters) for job in jobs] == [
        ("00_short.ipynb", {"scale": "small"}),
        ("01_bare.ipynb", {}),
        ("03_full-seed0.ipynb", {"scale": "small", "record": True, "seed": 0}),
        ("03_full-seed2.ipynb", {"scale": "small", "record": True, "seed": 2}),
    ]
    assert all(job.target.parent == paths.runs_folder() / "notebooks" / "small" for job in jobs)
    (plain,) = plan([full], "smoke")
    assert plain.parameters == {"scale": "smoke"} and plain.target.name == "03_full.ipynb"


def test_what_is_done_is_skipped_until_something_changes(tmp_path, monkeypatch):
    source = notebook("00_a", "print(1)")
    (job,) = plan([source], "smoke")
    assert not job.done
    stamp(job)
    assert job.done and run_jobs([job]) == {}
    for text in ("{", "{}", json.dumps({"metadata": {}})):
        job.target.write_text(text)
        assert not job.done
    stamp(job, "another")
    assert not job.done
    stamp(job)
    assert not plan([source], "small")[0].done and not Job(source, job.target, {"scale": "smoke", "seed": 1}, job.surroundings).done
    before = job.stamp
    source.write_text(source.read_text().replace("print(1)", "print(2)"))
    assert before != job.stamp


def test_the_stamp_follows_all_that_a_notebook_depends_on(tmp_path, monkeypatch):
    source = notebook("00_a")
    for name in ("ROOT", "RECIPES", "CARDS", "RECORDS"):
        monkeypatch.setattr(paths, name, tmp_path / name)
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "data"))
    stamps = [plan([source], "smoke")[0].stamp]
    for file in (
        "ROOT/lib/x.py", "ROOT/lib/deep/y.py", "ROOT/lib/results/published/claims.yaml", "ROOT/course/exercises.py", "RECIPES/smoke.yaml",
        "CARDS/noise/README.md", "RECORDS/small/strategies.jsonl", "RECORDS/checkpoints/a.safetensors", "data/noise/train/a/0.png",
    ):  # fmt: skip
        for text in ("text", "other text"):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text(text)
            stamps.append(plan([source], "smoke")[0].stamp)
    monkeypatch.setattr(batch, "versions", lambda: {"torch": "0.1"})
    stamps.append(plan([source], "smoke")[0].stamp)
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "elsewhere"))
    stamps.append(plan([source], "smoke")[0].stamp)
    assert len(set(stamps)) == len(stamps) == 21
    (tmp_path / "RECORDS/small/strategies.jsonl.lock").write_text("")
    assert plan([source], "smoke")[0].stamp == stamps[-1]


def test_mistakes_on_the_command_line(capsys):
    notebook("00_a")
    assert main(["--scale", "smoke", "--notebooks", "42"]) == 2
    assert "error: notebooks: got '42', accepts the start of one of 00_a" in capsys.readouterr().err
    for arguments in ([], ["--scale", "huge"], ["--scale", "smoke", "--seeds", "x"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--scale", "--notebooks", "--seeds", "--record", "--budget", "--parallel", "--gpus"))


def outputs(file) -> str:
    cells = nbformat.read(file, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def execute_all(*jobs: Job) -> list[str | None]:
    """What the workers do, at the same time."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(lambda job: execute(str(job.source), str(job.target), job.parameters, job.stamp, 1), jobs))


def test_failures_are_told_with_their_cell_and_outputs_are_kept():
    notebook("00_fails", "print('before')", "1 / 0", "print('never')")
    notebook("01_dies", "print('alive', flush=True)", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    notebook("02_good", "import os\nprint('scale is', scale, os.path.basename(os.getcwd()), os.environ['OMP_NUM_THREADS'])")
    jobs = plan(find_notebooks(), "small")
    fails, dies, good = execute_all(*jobs)
    assert good is None and outputs(jobs[2].target) == "scale is small notebooks 1\n"
    assert fails.endswith(": ZeroDivisionError: division by zero") and fails.startswith("cell ")
    assert outputs(jobs[0].target).startswith("before\n") and "never" not in outputs(jobs[0].target)
    assert dies.startswith("DeadKernelError") and "alive" in outputs(jobs[1].target)
    assert [job.done for job in jobs] == [False, False, True]


def test_a_notebook_that_lost_its_pictures_is_not_done():
    draws = "import matplotlib.pyplot as plt\nplt.plot([0, 1]) if wanted else None"
    source = notebook("00_draws", draws, parameters="wanted: bool = True")
    (job,) = plan([source], "smoke")
    assert execute_all(job) == [None] and job.done and len(batch.pictures(nbformat.read(job.target, as_version=4))) >= 1
    nbformat.write(nbformat.read(job.target, as_version=4), source)  # as it is committed: with its pictures
    lost = execute(str(source), str(job.target), {"wanted": False}, job.stamp, 1)
    assert re.fullmatch(r"has no pictures, where 00_draws.ipynb has \d", lost) and not plan([source], "smoke")[0].done


def test_what_jupyter_and_matplotlib_prefer_does_not_reach_the_kernels(tmp_path, monkeypatch):
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "another", "language": "python"}))
    (tmp_path / "matplotlibrc").write_text("figure.facecolor: black\nbackend: svg\n")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path))
    look = "import matplotlib, sys\nprint(sys.executable, matplotlib.get_backend(), matplotlib.rcParams['figure.facecolor'])"
    source = notebook("00_a", look)
    (job,) = plan([source], "smoke")
    assert execute_all(job) == [None]
    assert outputs(job.target).split()[1:] == ["module://matplotlib_inline.backend_inline", "white"] and os.path.samefile(
        outputs(job.target).split()[0], sys.executable
    )


def test_a_grid_that_is_stopped_or_whose_ray_dies_ends_soon(capsys):
    notebook("00_slow", "import time\ntime.sleep(300)")
    assert main(["--scale", "smoke", "--budget", "0.05"]) == 3
    assert "stopped early; the same command continues" in capsys.readouterr().out
    from ray._private import worker

    def kill() -> None:
        while worker._global_node is None:
            time.sleep(0.5)
        time.sleep(3)
        worker._global_node.kill_raylet(check_alive=False)

    threading.Thread(target=kill, daemon=True).start()
    started = time.monotonic()
    assert main(["--scale", "smoke"]) == 1 and time.monotonic() - started < 90
    assert "error: ray: " in (shown := capsys.readouterr().err) or "worker died" in shown


def test_a_grid_goes_on_after_a_failure_and_skips_what_is_done(capsys):
    notebook("00_fails", "1 / 0")
    notebook("01_good", "print(seed + 1)")
    assert main(["--scale", "smoke", "--parallel", "2", "--seeds", "4"]) == 1
    shown, folder = capsys.readouterr(), paths.runs_folder() / "notebooks" / "smoke"
    assert "2 notebooks, 0 done already" in shown.out
    assert f"FAILED {folder / '00_fails-seed4.ipynb'}" in shown.err and "ZeroDivisionError: division by zero" in shown.err
    assert "01_good" not in shown.err and outputs(folder / "01_good-seed4.ipynb") == "5\n"
    assert [job.done for job in plan(find_notebooks(), "smoke", seeds=[4])] == [False, True]
    assert main(["--scale", "smoke", "--notebooks", "01", "--seeds", "4"]) == 0
    assert "1 notebooks, 1 done already" in capsys.readouterr().out


def test_a_second_call_executes_nothing(capsys):
    notebook("00_a")
    (job,) = plan(find_notebooks(), "smoke")
    stamp(job)
    before = os.stat(job.target).st_mtime_ns
    assert main(["--scale", "smoke"]) == 0
    assert "1 notebooks, 1 done already" in capsys.readouterr().out and os.stat(job.target).st_mtime_ns == before


def test_folders_given_relative_to_the_caller_reach_the_kernels_as_such(tmp_path, monkeypatch):
    """Kernels work in the folder of their notebook, so a relative folder would be another one there."""
    notebook("00_a", "import os\nprint(os.environ['COMPANION_RUNS'], os.environ['COMPANION_DATA'])")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPANION_RUNS", "my_runs")
    monkeypatch.setenv("COMPANION_DATA", "my_data")
    from lib.paths import data_folder, runs_folder

    here = runs_folder().absolute(), data_folder().absolute()
    monkeypatch.setattr(batch, "run_jobs", lambda jobs, **options: {})
    main(["--scale", "smoke"])
    monkeypatch.chdir(paths.NOTEBOOKS)
    assert (runs_folder().absolute(), data_folder().absolute()) == here

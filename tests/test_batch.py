"""Grids of notebooks: planning, skipping, failing, and two notebooks that want the same run."""

import json
import os

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lib import batch, paths
from lib.batch import Job, find_notebooks, main, notebook_parameters, plan, run_jobs

SAME_RUN = """
from lib.train import run

found = run("smoke/ibot_brief", device="cpu", progress=False, seed=seed, fraction=0.02, epochs=1, batch_size=8, canvas=32, eval_size=16,
            global_size=16, local_size=8, out_dim=32, hidden_dim=32, bottleneck_dim=16, knn_k=[1], log_steps=1)
print("steps", found.log().step.tolist())
"""


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
    assert not plan([source], "small")[0].done and not Job(source, job.target, {"scale": "smoke", "seed": 1}).done
    before = job.stamp
    source.write_text(source.read_text().replace("print(1)", "print(2)"))
    changed = job.stamp
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    assert len({before, changed, job.stamp}) == 3 and not job.done


def test_the_stamp_follows_code_recipes_and_records(tmp_path, monkeypatch):
    (job,) = plan([notebook("00_a")], "smoke")
    stamps = []
    for name in ("ROOT", "RECIPES", "RECORDS"):
        monkeypatch.setattr(paths, name, tmp_path / name)
    for file in ("ROOT/lib/x.py", "ROOT/lib/deep/y.py", "RECIPES/smoke.yaml", "RECORDS/small/strategies.jsonl"):
        stamps.append(job.stamp)
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("text")
    assert len({*stamps, job.stamp}) == 5


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


def test_a_failure_is_reported_and_the_others_go_on_and_a_run_is_trained_once(capsys, monkeypatch):
    notebook("00_fails", "print('before')", "1 / 0", "print('never')")
    notebook("01_dies", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    notebook("02_good", "print('scale is', scale)")
    notebook("03_trains", SAME_RUN)
    notebook("04_trains_too", SAME_RUN)
    assert main(["--scale", "smoke", "--parallel", "2"]) == 1
    shown = capsys.readouterr()
    assert "5 notebooks, 0 done already" in shown.out
    folder = paths.runs_folder() / "notebooks" / "smoke"
    assert f"FAILED {folder / '00_fails.ipynb'}" in shown.err and "ZeroDivisionError: division by zero" in shown.err
    assert "cell 3: ZeroDivisionError" in shown.err
    assert f"FAILED {folder / '01_dies.ipynb'}" in shown.err and "DeadKernelError" in shown.err
    assert shown.err.count("FAILED") == 2 + shown.out.count("never")
    assert outputs(folder / "00_fails.ipynb") == "before\n" and (folder / "01_dies.ipynb").is_file()
    assert outputs(folder / "02_good.ipynb") == "scale is smoke\n"
    steps = outputs(folder / "03_trains.ipynb")
    assert steps.startswith("steps [0, 1, ") and outputs(folder / "04_trains_too.ipynb") == steps
    (log,) = paths.runs_folder().rglob("log.jsonl")
    lines = [json.loads(line)["step"] for line in log.read_text().splitlines() if '"loss"' in line]
    assert lines == list(range(1, 6))
    assert len(list((log.parent / "tensorboard").iterdir())) == 1  # a file a training

    monkeypatch.setattr(batch, "run_jobs", lambda jobs, **options: [job.target.name for job in jobs if not job.done] and {})
    jobs = plan(find_notebooks(), "smoke")
    assert [job.target.stem for job in jobs if not job.done] == ["00_fails", "01_dies"]
    assert main(["--scale", "smoke", "--notebooks", "02", "03", "04"]) == 0


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

"""A grid of notebooks: papermill executes them, Ray spreads them over the machine or the cluster.

    python -m lib.batch --scale smoke
    python -m lib.batch --scale small --notebooks 04 05 --seeds 0 1 2 --record --budget 120

Executed notebooks go to ``runs/notebooks/<scale>/``. What is done is skipped; a notebook that fails is reported with its cell
while the others go on, and its output is kept.
"""

import argparse
import base64
import hashlib
import json
import os
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from lib import paths
from lib.engine.interrupts import stop_wanted, stopping
from lib.recipes import SCALES
from lib.results.provenance import versions

STAMP = "companion"  # key of our metadata in executed notebooks
POLL = 5.0  # seconds between looks at the clock, at signals and at Ray
UNFINISHED = "not finished when the grid was stopped"


@dataclass(frozen=True)
class Job:
    """One notebook with one set of parameters."""

    source: Path
    target: Path
    parameters: dict
    surroundings: str  # see the function of this name

    @property
    def stamp(self) -> str:
        """Hash of everything that the output depends on."""
        digest = hashlib.sha256(json.dumps([self.parameters, self.surroundings], sort_keys=True).encode())
        digest.update(self.source.read_bytes())
        return digest.hexdigest()[:16]

    @property
    def done(self) -> bool:
        try:
            return json.loads(self.target.read_text(encoding="utf-8"))["metadata"][STAMP]["stamp"] == self.stamp
        except (OSError, KeyError, ValueError):
            return False


def surroundings() -> str:
    """Hash of what notebooks depend on beside their own text: the code, recipes, cards, published figures and claims, records, kept networks,
    the libraries' versions, and the names, sizes and times of all data files.
    """
    digest = hashlib.sha256(json.dumps([versions(), str(paths.data_folder())]).encode())
    ours = ("lib/**/*.py", "lib/**/*.csv", "lib/**/*.yaml", "course/*.py")
    found = [(paths.ROOT, pattern) for pattern in ours] + [(paths.RECIPES, "*.yaml"), (paths.CARDS, "*/*.md"), (paths.RECORDS, "*/*")]
    for folder, pattern in found:
        for file in sorted(file for file in folder.glob(pattern) if file.suffix != ".lock" and file.is_file()):
            digest.update(file.read_bytes())
    for parent, folders, names in os.walk(paths.data_folder() or os.devnull, followlinks=True):
        folders.sort()
        for name in sorted(names):
            state = os.lstat(os.path.join(parent, name))
            digest.update(os.fsencode(f"{parent}/{name}:{state.st_size}:{state.st_mtime_ns};"))
    return digest.hexdigest()[:16]


def find_notebooks(prefixes: list[str] | None = None) -> list[Path]:
    """The project's notebooks, or those whose names start with one of ``prefixes``.

    Raises:
        ValueError: a prefix that no notebook has.
    """
    everything = sorted(paths.NOTEBOOKS.glob("[0-9]*.ipynb"))
    for prefix in prefixes or []:
        if not any(p.name.startswith(prefix) for p in everything):
            raise ValueError(f"notebooks: got {prefix!r}, accepts the start of one of {', '.join(p.stem for p in everything)}")
    return [p for p in everything if not prefixes or p.name.startswith(tuple(prefixes))]


def plan(notebooks: list[Path], scale: str, *, seeds: list[int] | None = None, record: bool = False) -> list[Job]:
    """A job for each notebook, and for each seed where the notebook has that parameter."""
    jobs, around = [], surroundings()
    for source in notebooks:
        known = notebook_parameters(source)
        for seed in seeds or (None,):
            wanted = {"scale": scale, "record": record or None, "seed": seed}
            parameters = {name: value for name, value in wanted.items() if value is not None and name in known}
            suffix = f"-seed{seed}" if "seed" in parameters else ""
            job = Job(source, paths.runs_folder() / "notebooks" / scale / f"{source.stem}{suffix}.ipynb", parameters, around)
            if job not in jobs:
                jobs.append(job)
    return jobs


def notebook_parameters(notebook: Path) -> set[str]:
    """Names of a notebook's parameters."""
    import papermill

    return set(papermill.inspect_notebook(str(notebook)))


def execute(source: str, target: str, parameters: dict, stamp: str, threads: int) -> str | None:
    """Execute a notebook; runs in a worker.

    Returns:
        None, or what failed and in which cell. The output is written in either case.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    settle_kernels()
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    Path(target).parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(source, target, parameters, cwd=str(Path(source).parent), progress_bar=False, log_output=False)
    except PapermillExecutionError as error:
        return f"cell {error.exec_count}: {error.ename}: {error.evalue}"
    except Exception as error:  # a killed kernel, a full disk
        return f"{type(error).__name__}: {error}"
    notebook = nbformat.read(target, as_version=4)
    if not pictures(notebook) and (expected := len(pictures(nbformat.read(source, as_version=4)))):
        return f"has no pictures, where {Path(source).name} has {expected}"
    export_figures(notebook, Path(target))
    notebook.metadata[STAMP] = {"stamp": stamp}
    nbformat.write(notebook, target)
    return None


def settle_kernels() -> None:
    """Kernels that start from this process run this Python and this checkout and draw as the project does, whatever the user's Jupyter and
    matplotlib prefer.
    """
    import matplotlib

    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", str(paths.ROOT))]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(paths.ROOT), *others])
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    os.environ["MATPLOTLIBRC"] = str(Path(matplotlib.get_data_path()) / "matplotlibrc")


def pictures(notebook) -> list[str]:
    """A notebook's PNG pictures, in base64."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]


def export_figures(notebook, target: Path) -> None:
    """Write a notebook's pictures as ``figures/<notebook>-<number>.png`` beside it."""
    folder = target.parent / "figures"
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(pictures(notebook), 1):
        (folder / f"{target.stem}-{number}.png").write_bytes(base64.b64decode(picture))


def _start_ray(**options) -> None:
    """Start Ray, once more where a busy machine lets its start time out."""
    import ray

    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # of this grid's own Ray, which would write one into the home folder
    for attempt in range(3):
        try:
            ray.init(**options)
            return
        except Exception as error:
            ray.shutdown()
            if attempt == 2:
                raise RuntimeError(f"ray: could not start ({error})") from error


def run_jobs(jobs: list[Job], *, parallel: int | None = None, gpus: float | None = None, budget: float | None = None) -> dict[Path, str]:
    """Execute the jobs that are not done yet.

    Args:
        jobs: see ``plan``.
        parallel: notebooks at a time; None is one a processor, or one a GPU.
        gpus: GPUs a notebook; fractions share one.
        budget: seconds after which no notebook is started and running ones are stopped, as by SIGTERM and Ctrl-C; what they trained can be
            resumed.

    Returns:
        Output file -> what failed, or ``UNFINISHED``.

    Raises:
        RuntimeError: Ray has ended.
    """
    started = time.monotonic()
    todo = [job for job in jobs if not job.done]
    print(f"{len(jobs)} notebooks, {len(jobs) - len(todo)} done already", flush=True)
    if not todo:
        return {}
    import ray

    # No dashboard and no log of the workers: one progress bar is what a reader wants to see.
    _start_ray(
        address=os.environ.get("RAY_ADDRESS"), include_dashboard=False, log_to_driver=False, logging_level="ERROR", configure_logging=True
    )
    try:
        resources = ray.cluster_resources()
        cores, cards = int(resources.get("CPU", 1)), resources.get("GPU", 0)
        parallel = parallel or max(1, int(cards / (gpus or 1)) if cards else cores)
        threads = max(1, cores // parallel)
        options = {"num_cpus": threads, "num_gpus": (gpus or 1) if cards else 0, "max_retries": 0}
        remote = ray.remote(execute).options(**options)
        waiting = {remote.remote(str(j.source), str(j.target), j.parameters, j.stamp, threads): j for j in todo}
        failures = {}
        with stopping(), tqdm(total=len(todo), desc="notebooks", unit="notebook") as bar:
            while waiting:
                left = POLL if budget is None else max(0.0, min(POLL, budget - (time.monotonic() - started)))
                ready, _ = ray.wait(list(waiting), timeout=left)
                if not ready and (left == 0 or stop_wanted()):
                    for reference, job in waiting.items():
                        ray.cancel(reference, force=True)
                        failures[job.target] = UNFINISHED
                    break
                if not ready and not any(node["Alive"] for node in ray.nodes()):
                    raise RuntimeError("ray: its last node has ended; the same command goes on with what is left")
                for reference in ready:
                    job = waiting.pop(reference)
                    try:
                        problem = ray.get(reference)
                    except ray.exceptions.RayError as error:
                        problem = f"worker died: {error}"
                    if problem:
                        failures[job.target] = problem
                        tqdm.write(f"FAILED {job.target}: {problem}")
                    bar.update()
    finally:
        ray.shutdown()
    return failures


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.batch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", required=True, choices=SCALES, help="which recipe entries the notebooks run")
    parser.add_argument("--notebooks", nargs="+", metavar="NN", help="starts of notebook names; the default is all")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="run each notebook that has a seed once for each of these")
    parser.add_argument("--record", action="store_true", help="leave a line in records/ for each finished run")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="stop after this time; what was trained can be resumed")
    parser.add_argument("--parallel", type=int, metavar="N", help="notebooks at a time; the default is one a processor, or one a GPU")
    parser.add_argument("--gpus", type=float, metavar="G", help="GPUs a notebook; 0.5 lets two share one")
    options = parser.parse_args(arguments)
    if options.record and options.scale == "smoke":
        parser.error("--record: smoke runs show mechanisms and are no evidence; accepts --scale small or paper")
    for variable in ("COMPANION_RUNS", "COMPANION_DATA"):  # kernels run in another folder
        if os.environ.get(variable):
            os.environ[variable] = str(Path(os.environ[variable]).resolve())
    try:
        jobs = plan(find_notebooks(options.notebooks), options.scale, seeds=options.seeds, record=options.record)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    budget = None if options.budget is None else 60 * options.budget
    try:
        failures = run_jobs(jobs, parallel=options.parallel, gpus=options.gpus, budget=budget)
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    folder = paths.runs_folder() / "notebooks" / options.scale
    print(f"executed notebooks  {folder}\nfigures             {folder / 'figures'}")
    report = next((job.target for job in jobs if job.target.name.startswith("99") and job.target.is_file()), None)
    if report:
        print(f"report              {report}")
    for target, problem in failures.items():
        print(f"FAILED {target}\n       {problem}", file=sys.stderr)
    if UNFINISHED in failures.values():
        print("stopped early; the same command continues")
        return 3
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

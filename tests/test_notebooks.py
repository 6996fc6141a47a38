"""The anatomy that every notebook shares, and that notebooks, their scripts and the Makefile agree."""

import ast
import importlib
import re
import sys

import nbformat
import pytest

from lib import paths
from lib.results.papers import claim_details

REPOSITORY = paths.ROOT
NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("[0-9]*.ipynb"))
SCRIPTS = sorted((paths.NOTEBOOKS / "percent").glob("[0-9]*.py"))
SOLUTIONS = sorted((paths.NOTEBOOKS / "solutions").glob("*.ipynb"))
LITERALS = {"str": str, "int": int, "float": float, "bool": bool, "list": list}

pytestmark = pytest.mark.skipif(not SCRIPTS, reason="no notebooks")
each = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


def read(file):
    return nbformat.read(file, as_version=4)


def code(file) -> list:
    return [cell for cell in read(file).cells if cell.cell_type == "code" and cell.source.strip()]


def prose(file) -> str:
    return "\n\n".join(cell.source for cell in read(file).cells if cell.cell_type == "markdown")


def parameters(file):
    tagged = [cell for cell in read(file).cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    return tagged[0]


def test_every_script_has_its_notebook_and_solutions():
    names = [file.stem for file in SCRIPTS]
    made = {file.stem for file in NOTEBOOKS + SOLUTIONS}
    assert [name for name in names if name not in made] == []
    assert {file.stem for file in NOTEBOOKS} <= set(names)
    assert {f"{file.stem[:2]}_solutions" for file in NOTEBOOKS} <= {file.stem for file in SOLUTIONS}


@each
def test_the_first_cell_gives_title_time_and_question(file):
    first = read(file).cells[0]
    assert first.cell_type == "markdown"
    assert re.match(rf"# {file.stem[:2]} · \S.+\n", first.source)
    assert re.search(r"\*\*(CPU|GPU), \d+ (s|min)\b.*?\*\*", first.source)
    question = re.search(r"\*\*Question\.\*\* (.+?)(?:\n\n|\Z)", first.source, re.S)
    assert question and question.group(1).rstrip().endswith("?")


@each
def test_claims_are_quoted_by_ids_that_exist(file):
    calls = [node for cell in code(file) for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)]
    quotes = [call for call in calls if getattr(call.func, "id", "") == "quote"]
    known = {claim["id"] for claim in claim_details()}
    quoted = {argument.value for call in quotes for argument in call.args}
    assert quoted and quoted <= known
    shown = "".join(out.data.get("text/markdown", "") for cell in code(file) for out in cell.outputs if "data" in out)
    assert all(f"**{identity}**" in shown for identity in quoted)


@each
def test_versions_are_printed(file):
    printed = [cell for cell in code(file) if "__version__" in cell.source]
    assert printed and re.search(r"torch \d+\.\d+", "".join(out.get("text", "") for out in printed[0].outputs))


@each
def test_parameters_are_annotated_literals_with_a_comment(file):
    import papermill

    cell = parameters(file)
    lines = [line for line in cell.source.splitlines() if line.strip()]
    assert lines
    for line in lines:
        (statement,) = ast.parse(line).body
        assert isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name), line
        kind = ast.unparse(statement.annotation).partition("[")[0]
        assert isinstance(ast.literal_eval(statement.value), LITERALS[kind]), line
        assert re.search(r"#\s*\S{2}", line), line
    known = papermill.inspect_notebook(str(file))
    assert set(known) == {ast.parse(line).body[0].target.id for line in lines}
    for parameter in known.values():
        assert parameter["inferred_type_name"].partition("[")[0] in LITERALS and parameter["help"].strip()
    assert "scale" not in known or known["scale"]["default"] == '"smoke"'


@each
def test_parameters_are_used(file):
    names = {node.target.id for node in ast.parse(parameters(file).source).body}
    rest = [ast.parse(cell.source) for cell in code(file) if "parameters" not in cell.metadata.get("tags", [])]
    used = {node.id for tree in rest for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert names <= used


@each
def test_it_ends_with_doubt_and_exercises(file):
    headings = re.findall(r"^## (.+)$", prose(file), re.M)
    assert headings[-2:] == ["What would change your mind?", "Exercises"]
    assert f"solutions/{file.stem[:2]}_solutions" in prose(file)


@each
def test_code_cells_are_short(file):
    longest = max(code(file), key=lambda cell: cell.source.count("\n"))
    assert longest.source.count("\n") + 1 <= 25, longest.source


@pytest.mark.parametrize("file", NOTEBOOKS + SOLUTIONS, ids=lambda file: file.stem)
def test_it_was_executed_from_top_to_bottom_without_errors(file):
    cells = code(file)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert not [out for out in cell.outputs if out.output_type == "error"], cell.source
        assert not [out for out in cell.outputs if out.get("name") == "stderr"], cell.source
        last = ast.parse(cell.source).body[-1]
        displays = isinstance(last, ast.Expr) and (
            not isinstance(last.value, ast.Call) or getattr(last.value.func, "id", "") in ("print", "quote")
        )
        assert cell.outputs or not (displays or "plt.show()" in cell.source), cell.source


@pytest.mark.parametrize("file", NOTEBOOKS + SOLUTIONS, ids=lambda file: file.stem)
def test_it_is_small_and_carries_no_traces_of_its_machine(file):
    text = file.read_text()
    assert len(text) < 1_500_000
    for trace in ('"papermill"', '"companion"', '"start_time"', str(paths.ROOT), "/home/", "/tmp/"):
        assert trace not in text, trace


@each
def test_the_percent_script_has_the_same_cells(file):
    import jupytext

    script = jupytext.read(paths.NOTEBOOKS / "percent" / f"{file.stem}.py")

    def plain(cells):
        return [(cell.cell_type, cell.source.strip(), sorted(cell.metadata.get("tags", []))) for cell in cells if cell.source.strip()]

    assert plain(read(file).cells) == plain(script.cells)


@each
def test_figures_come_with_their_numbers(file):
    """Pictures are never compared, so a notebook shows tables as well, and says which outputs may differ."""
    pictures = [cell for cell in code(file) if any("image/png" in out.get("data", {}) for out in cell.outputs)]
    tables = [cell for cell in code(file) if any("text/html" in out.get("data", {}) or out.output_type == "stream" for out in cell.outputs)]
    assert pictures and len(tables) >= 2


def test_notebooks_name_only_files_that_exist():
    for file in NOTEBOOKS:
        for name in re.findall(r"`((?:lib|recipes|notebooks|benchmarks)/[\w/.]+\.(?:py|yaml|ipynb))`", prose(file)):
            assert (REPOSITORY / name).is_file(), (file.name, name)


def test_the_readme_uses_targets_that_the_makefile_has():
    readme = REPOSITORY / "README.md"
    if not readme.is_file():
        pytest.skip("no README.md")
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.M))
    used = set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(re.findall(r"`[^`]+`|```.*?```", readme.read_text(), re.S))))
    assert used and used <= targets
    assert {"reproduce", "test", "record"} <= targets
    phony = set(re.search(r"^\.PHONY: (.+)$", makefile, re.M).group(1).split())
    assert targets <= phony


def test_commands_of_the_makefile_know_their_options(capsys, monkeypatch):
    makefile = (REPOSITORY / "Makefile").read_text()
    called = re.findall(r"-m ((?:lib|course)(?:\.\w+)+) (.+)$", makefile, re.M)
    assert {"lib.batch", "lib.evidence", "course.chapters"} <= {module for module, _ in called}
    for module, arguments in called:
        monkeypatch.setattr(sys, "argv", [module, "--help"])
        with pytest.raises(SystemExit, match="0"):
            importlib.import_module(module).main()
        known = capsys.readouterr().out
        assert all(option in known for option in re.findall(r"--[a-z-]+", arguments.partition(";")[0])), module

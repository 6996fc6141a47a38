"""The anatomy that every notebook shares, and that notebooks, their scripts and the Makefile agree."""

import ast
import contextlib
import importlib
import io
import re
import sys

import nbformat
import pytest
import torch

from course import exercises
from course.checks import Exercise, agree
from lib import paths
from lib.results.papers import claim_details

REPOSITORY = paths.ROOT
NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("[0-9]*.ipynb"))
SCRIPTS = sorted((paths.NOTEBOOKS / "percent").glob("[0-9]*.py"))
SOLUTIONS = sorted((paths.NOTEBOOKS / "solutions").glob("*.ipynb"))
EXERCISES = {name: found for name, found in vars(exercises).items() if isinstance(found, Exercise)}
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
    assert headings[-4:] == ["What to remember", "References", "What would change your mind?", "Exercises"]
    remember, references = (prose(file).partition(f"## {name}\n")[2].partition("\n## ")[0] for name in headings[-4:-2])
    assert len(re.findall(r"^- ", remember, re.M)) == 3
    listed = re.findall(r"^- .+?(?=^- |\Z)", references, re.M | re.S)
    assert listed and all(re.search(r"\]\(https://(arxiv\.org/abs/\d{4}\.\d{4,5}|doi\.org/10\.\S+)\)", line) for line in listed)
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


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_code_beside_equations_stands_in_its_file(file):
    """A table whose last column is named "code in `FILE`" quotes that file; other rows of a table may point below."""
    import jupytext

    for cell in jupytext.read(file).cells:
        name = re.search(r"\| code in `(\S+)` \|", cell.source)
        for row in re.findall(r"^\|.*\| (.+) \|$", cell.source, re.M)[1:] if name else []:
            quoted = re.fullmatch(r"`(.+)`", row)
            assert not quoted or quoted[1] in (REPOSITORY / name[1]).read_text(), row


# ---- exercises -----------------------------------------------------------------------------------------------------------


def asked(file) -> set[str]:
    """The checks that a script calls."""
    return set(re.findall(r"exercises\.(\w+)\(", file.read_text()))


def test_each_exercise_is_asked_and_solved():
    chapters = [file for file in SCRIPTS if not file.stem.endswith("_solutions")]
    for file in chapters:
        assert asked(file) and asked(file) == asked(file.with_name(f"{file.stem[:2]}_solutions.py")), file.name
        assert file.stem[:2] in ("00", "99") or any(EXERCISES[name].inputs for name in asked(file)), f"{file.stem} asks for no code"
    assert set().union(*map(asked, chapters)) == set(EXERCISES)


@pytest.mark.parametrize("file", [f for f in SCRIPTS if f.stem.endswith("_solutions")], ids=lambda file: file.stem)
def test_solutions_are_right(file):
    import jupytext

    from lib.pooling.framework import POOLINGS

    cells = [cell.source for cell in jupytext.read(file).cells if cell.cell_type == "code"]
    space, said, declared = {"__name__": "solutions"}, io.StringIO(), set(POOLINGS)
    with contextlib.redirect_stdout(said):
        for cell in cells:
            if "lib.train" not in cell:  # these train, and answer no check
                exec(cell, space)
    for name in set(POOLINGS) - declared:
        del POOLINGS[name]
    assert said.getvalue().split().count("right") == len(asked(file)) and "not yet" not in said.getvalue()


@pytest.mark.parametrize("name", EXERCISES)
def test_each_usual_mistake_gets_its_hint(name):
    check = EXERCISES[name]
    right = check.reference if check.inputs else check.reference()
    for answer in sorted(right) if name == "smallest_gap" else [right]:
        assert check.feedback(answer) == "right"
    assert check.feedback(None) == "not answered yet"
    for hint, mistake in check.wrong.items():
        answer = mistake if check.inputs or not callable(mistake) else mistake()
        assert check.feedback(answer) == f"not yet: {hint}"


def test_other_answers_are_told_what_differs():
    mask, simpool = exercises.attmask_high, exercises.simpool
    assert mask.feedback(lambda attention, ratio: None) == "not answered yet"
    assert mask.feedback(lambda attention, ratio: attention[ratio]).startswith("not yet: IndexError: ")
    assert mask.feedback(lambda *given: mask.reference(*given).T) == "not yet: shape (30, 4), but (4, 30) is asked; it is transposed"
    assert mask.feedback(lambda *given: mask.reference(*given).float()) == "not yet: the result is torch.float32, but torch.bool is asked"
    assert mask.feedback(lambda *given: ~mask.reference(*given)) == "not yet: the other way round: True and False are exchanged"
    assert simpool.feedback(lambda *given: 3 * simpool.reference(*given)) == "not yet: right but for a factor of 3"
    assert simpool.feedback(lambda *given: simpool.reference(*given) + 0.25) == "not yet: the largest difference is 0.25"
    assert simpool.feedback(lambda *given: "vector") == "not yet: give back a tensor of shape (3, 4)"
    turned = exercises.rotations.feedback(lambda images: (torch.zeros(12, 2, 5, 5), torch.zeros(12)))
    assert re.fullmatch(r"not yet: part 0: the largest difference is \d\.\d+", turned)
    assert exercises.background_only.feedback((100, 10, 50)) == "not yet: entry 2: too large"
    assert exercises.collapse_loss.feedback(1.0, 64) == "not yet: too small"


def test_checks_do_not_hang_on_the_last_digit():
    """The smallest published gap occurs twice, as 0.3999999999999986 and as 0.3999999999999915."""
    assert exercises.smallest_gap.reference() == {"simpool-1", "simpool-8"}
    assert agree(0.1 + 0.2, 0.3, 1e-9) and not agree(0.31, 0.3, 1e-3)
    assert agree(torch.tensor([1.0, 2]), (1, 2), 1e-6) and not agree([1.0], (1, 2), 1e-6)


def test_answers_cannot_change_what_they_are_compared_with():
    def in_place(teacher, student, momentum):
        teacher.zero_()
        return teacher

    assert exercises.ema.feedback(in_place).startswith("not yet: the largest difference")


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

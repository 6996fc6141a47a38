"""The house: which part may know which, and how large its rooms are."""

import ast
import re
from pathlib import Path

from lib import paths

# From the ground up: a module imports what stands on floors below its own, and within its own package what makes no circle.
FLOORS = [
    ["paths", "files"],
    ["tensors", "keys", "schedules", "masking", "pooling"],
    ["recipes", "data", "models"],
    ["learning"],
    ["engine", "distillation"],
    ["evaluation"],
    ["results"],
    ["keep"],
    ["train"],
    ["measure", "batch", "show"],
    ["evidence", "authors"],
]
LONGEST = 60  # lines of a function beside its docstring
LIB = paths.ROOT / "lib"


def modules() -> dict[str, Path]:
    return {".".join(file.relative_to(paths.ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in LIB.rglob("*.py")}


def imports(file: Path, known) -> set[str]:
    """The modules of ours that a file imports, within functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lib":
            found |= {name if (name := f"{node.module}.{alias.name}") in known else node.module for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("lib.")}
    return found


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_arrows_point_down():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    known = modules()
    assert {room(module) for module in known} - {""} == set(floor)
    up = [
        f"{module} -> {other}"
        for module, file in known.items()
        for other in imports(file, known)
        if room(module) and room(other) and room(module) != room(other) and floor[room(other)] >= floor[room(module)]
    ]
    assert not up


def test_no_module_imports_itself_by_a_detour():
    known = modules()
    arrows = {module: {other for other in imports(file, known) if other != module} for module, file in known.items()}
    # A package hands on names of its modules; the arrow from a module to its own package's face is no detour.
    arrows = {module: {other for other in others if known[other].name != "__init__.py"} for module, others in arrows.items()}
    while free := {module for module, others in arrows.items() if not others & arrows.keys()}:
        arrows = {module: others for module, others in arrows.items() if module not in free}
    assert not arrows


def test_nothing_in_lib_knows_the_course_the_tests_or_the_benchmarks():
    for file in LIB.rglob("*.py"):
        assert not re.search(r"^\s*(?:from|import) (?:course|tests|benchmarks)\b", file.read_text(encoding="utf-8"), re.M), file


def test_functions_are_short():
    long = []
    for file in [*LIB.rglob("*.py"), *(paths.ROOT / "course").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                if ast.get_docstring(node):
                    lines -= node.body[0].end_lineno - node.body[0].lineno + 1
                if lines > LONGEST:
                    long.append(f"{file.name}:{node.name} {lines}")
    assert not long

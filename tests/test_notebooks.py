"""Every notebook runs, is clean, says what a lesson must say, and reads well without a kernel."""
import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from lessonlib.cli import course_notebooks, published_rows, solution_cells

ROOT = Path(__file__).resolve().parents[1]
COURSE_MAP = (ROOT / "README.md").read_text(encoding="utf-8")
LESSONS = [path for path in course_notebooks(ROOT) if f"(nbs/lessons/{path.name})" in COURSE_MAP]  # the others are being written
NOTEBOOKS = course_notebooks(ROOT, library=True)
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
every_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code" and cell.source.strip()]


def code_lines(source):
    """Lines that hold code: blank lines, comments and directives do not count."""
    return [line for line in source.splitlines() if line.strip() and not line.lstrip().startswith(("#", "%"))]


@every_notebook
def test_executes_on_a_fresh_kernel(path, records):
    assert records[path.stem].error == ""


@every_lesson
def test_committed_headline_is_what_a_fresh_run_gives(path, records):
    """The committed outputs are those of an execution: same rows, and the deterministic ones with the same numbers."""
    committed, fresh = published_rows(read(path)), records[path.stem].published
    assert committed, "the lesson needs a `published_here` table, with its outputs committed"
    assert [row["quantity"] for row in committed] == [row["quantity"] for row in fresh]
    assert [row["published"] for row in committed] == [row["published"] for row in fresh]


@every_notebook
def test_committed_outputs(path):
    notebook = read(path)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs, "execute the notebook and commit its outputs: lessonlib run --save"
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]
    assert path.stat().st_size < 1_000_000
    assert not re.search(r"/(home|root|tmp|work|Users)/\w+", str(outputs)), "an output shows a path of the machine it was made on"


@pytest.fixture(scope="session")
def processed_copy(clean_copy):
    """The copy after `nbdev_clean` and `nbdev_export`: nothing may differ from what is committed."""
    for command in ("nbdev_clean", "nbdev_export"):
        subprocess.run([Path(sys.executable).with_name(command)], cwd=clean_copy, check=True, capture_output=True)
    return clean_copy


@every_notebook
def test_is_clean(path, processed_copy):
    assert (processed_copy / path.relative_to(ROOT)).read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), "run: make export"


def test_package_is_exported_from_the_notebooks(processed_copy):
    modules = {file.name for file in (ROOT / "lessonlib").glob("*.py")}
    assert modules == {file.name for file in (processed_copy / "lessonlib").glob("*.py")}
    for name in sorted(modules):
        assert (processed_copy / "lessonlib" / name).read_text(encoding="utf-8") == (ROOT / "lessonlib" / name).read_text(encoding="utf-8"), (
            f"lessonlib/{name} is out of date, run: make export")


def test_every_module_has_a_notebook_of_its_stem():
    exporting = {re.sub(r"^\d\d_", "", path.stem) for path in NOTEBOOKS if "#| default_exp" in path.read_text(encoding="utf-8")}
    assert exporting == {file.stem for file in (ROOT / "lessonlib").glob("[!_]*.py")}
    for path in NOTEBOOKS:
        for name in re.findall(r"#\| default_exp (\w+)", path.read_text(encoding="utf-8")):
            assert re.sub(r"^\d\d_", "", path.stem) == name


def test_course_map_and_lessons_agree():
    """The map's rows are lessons that exist, in order; a lesson that it does not link yet is named there as planned."""
    linked = re.findall(r"^\| \[\d\d [^]]+\]\(nbs/lessons/([^)]+)\)", COURSE_MAP, flags=re.MULTILINE)
    assert linked == [path.name for path in LESSONS] and len(linked) >= 7
    planned = re.search(r"^Planned[^:]*:(.*?)\.\n\n", COURSE_MAP, flags=re.MULTILINE | re.DOTALL)
    for path in set(course_notebooks(ROOT)) - set(LESSONS):
        assert planned and path.stem[:2] in planned[1], f"{path.name} is neither in the README's course map nor among the planned lessons"


@every_notebook
def test_begins_with_a_title_and_a_promise(path):
    title = read(path).cells[0].source
    assert re.match(r"# [^\n]+\n\n> [^\n]+\n?(\n|$)", title), title


@every_lesson
def test_lesson_has_its_parts(path):
    notebook = read(path)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    code = "\n".join(cell.source for cell in code_cells(path))
    for heading in ("## Published and here", "## What we learned", "## Exercises"):
        assert re.search(rf"^{heading}\b", text, flags=re.MULTILINE), f"no section {heading!r}"
    assert len(solution_cells(notebook)) == 3, "three exercises with folded solutions"
    assert len(re.findall(r"\bguess\(", code)) >= 2
    assert re.search(r"\bExplorer\(", code), "a slider or an experiment"
    assert "import *" not in code


@every_lesson
def test_cells_are_short(path):
    """One idea a cell: at most 8 lines of code outside of exported definitions."""
    long = [cell.source for cell in code_cells(path) if "#| export" not in cell.source and len(code_lines(cell.source)) > 8]
    assert not long, "\n\n".join(long)


@every_lesson
def test_going_deeper_is_folded_and_only_the_questionnaire_comes_after(path):
    headings = [(cell.source.splitlines()[0], cell.metadata) for cell in read(path).cells
                if cell.cell_type == "markdown" and cell.source.startswith("## ")]
    deeper = [position for position, (heading, _) in enumerate(headings) if heading.startswith("## Going deeper")]
    assert deeper, "no going-deeper section"
    assert deeper == list(range(deeper[0], len(headings) - 1)) and headings[-1][0] == "## Questionnaire"
    assert f'questionnaire("{path.stem}"' in read(path).cells[-1].source
    assert all(headings[position][1].get("jp-MarkdownHeadingCollapsed") for position in deeper)


@every_lesson
def test_links_lead_somewhere(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text):
        assert (path.parent / target).exists(), target


def body_lines(node, source):
    """Code lines of a function or class without its signature, docstrings, comments and blank lines."""
    lines = source.splitlines()
    docstrings = set()
    for inner in ast.walk(node):
        if isinstance(inner, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(inner):
            docstrings |= set(range(inner.body[0].lineno, inner.body[0].end_lineno + 1))
    numbers = [number for number in range(node.body[0].lineno, node.end_lineno + 1) if number not in docstrings]
    return len(code_lines("\n".join(lines[number - 1] for number in numbers)))


@pytest.mark.parametrize("file", sorted((ROOT / "lessonlib").glob("[!_]*.py")), ids=lambda file: file.stem)
def test_definitions_are_short_and_documented(file):
    source = file.read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            limit = 20 if isinstance(node, ast.FunctionDef) else 60
            assert body_lines(node, source) <= limit, f"{node.name}: {body_lines(node, source)} lines, at most {limit}"
            assert node.name.startswith("_") or ast.get_docstring(node), f"{node.name} has no docstring"


def test_style_of_tests_benches_and_package():
    result = subprocess.run([sys.executable, "-m", "ruff", "check", "tests", "bench", "lessonlib"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr

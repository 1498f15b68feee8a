"""The lessonlib command: what it runs, what it leaves, what it says when something is wrong."""
import json
import os

import nbformat
import pytest

from lessonlib import cli


def write_notebook(path, *sources, markdown=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [nbformat.v4.new_markdown_cell(text) for text in markdown] + [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.fixture
def clone(tmp_path):
    """A clone of a course with two lessons, of which the second fails."""
    root = tmp_path / "course"
    plot = ["import matplotlib.pyplot as plt", "plt.plot([1, 2]);"]
    write_notebook(root / "nbs/lessons/00_one.ipynb", *plot, markdown=["# One\n\n> See [two](01_two.ipynb)."])
    write_notebook(root / "nbs/lessons/01_two.ipynb", "total = 0", "1 / total", "print('never')")
    (root / "settings.ini").write_text("[DEFAULT]\n")
    return root


def test_course_root_is_found_from_inside_and_named_when_missing(clone, tmp_path, monkeypatch):
    assert cli.course_root(clone / "nbs/lessons") == clone
    monkeypatch.setattr(cli.lessonlib, "__file__", str(tmp_path / "site-packages/lessonlib/__init__.py"))
    with pytest.raises(FileNotFoundError, match="inside a clone"):
        cli.course_root(tmp_path)


def test_run_leaves_pages_records_and_a_scoreboard(clone, monkeypatch, capsys):
    monkeypatch.chdir(clone)
    assert cli.main(["run"]) == 1
    printed = capsys.readouterr()
    assert "01_two failed" in printed.err and "ZeroDivisionError" in printed.err
    board = [line.split() for line in printed.out.splitlines() if line.startswith("0")]
    assert board[0][0] == "00_one" and "FAILED" in board[1]
    page = (clone / "_build/00_one.html").read_text(encoding="utf-8")
    assert "image/png;base64" in page and 'href="01_two.html"' in page
    assert "FAILED" in (clone / "_build/index.html").read_text(encoding="utf-8")
    assert json.loads((clone / "_build/executed/00_one.json").read_text())["error"] == ""


def test_reuse_keeps_only_what_still_holds(clone, monkeypatch):
    paths = cli.course_notebooks(clone)
    first = cli.run_course(paths[:1], clone)[0]
    monkeypatch.setattr(cli, "execute_notebook", lambda *_, **__: pytest.fail("executed again"))
    assert cli.run_course(paths[:1], clone, reuse=True) == [first]
    monkeypatch.undo()
    write_notebook(paths[0], "changed = 1")
    assert cli.saved_record(paths[0], clone, clone / "_build") is None
    cli.run_course(paths[1:], clone)
    assert cli.saved_record(paths[1], clone, clone / "_build") is None, "a failed run is never reused"


def test_package_change_makes_a_record_stale(clone):
    path = cli.course_notebooks(clone)[0]
    before = cli.notebook_fingerprint(path, clone)
    (clone / "lessonlib").mkdir()
    (clone / "lessonlib/new.py").write_text("x = 1\n")
    assert cli.notebook_fingerprint(path, clone) != before


def test_save_writes_outputs_back_but_not_those_of_a_failed_run(clone):
    good, bad = cli.course_notebooks(clone)
    before = bad.read_bytes()
    cli.run_course([good, bad], clone, save=True)
    assert any("image/png" in output.get("data", {}) for output in nbformat.read(good, 4).cells[-1].outputs)
    assert bad.read_bytes() == before


def test_an_explorer_that_cannot_be_moved_after_the_last_cell_fails_the_lesson(clone):
    cells = ["from lessonlib.explore import Explorer, Panel, Scene\nheights = [1, 2, 3]\n"
             "def draw(place): return Scene(Panel('bars').bars([0], [heights[place]]), text='a bar')",
             "explorer = Explorer(draw, place=(0, 2, 1, 0))\nexplorer"]
    whole = write_notebook(clone / "nbs/lessons/02_three.ipynb", *cells)
    rebound = write_notebook(clone / "nbs/lessons/03_four.ipynb", *cells, "heights = [1]")
    assert [bool(record.error) for record in cli.run_course([whole, rebound], clone)] == [False, True]


def test_a_broken_solution_fails_the_lesson(clone):
    solution = "<details><summary>Solution</summary>\n\n```python\nassert 1 == 2, 'old solution'\n```\n\n</details>"
    path = write_notebook(clone / "nbs/lessons/02_three.ipynb", "1", markdown=["# Three\n\n> x", solution])
    record = cli.run_course([path], clone)[0]
    assert "old solution" in record.error
    assert len(nbformat.read(clone / "_build/executed/02_three.ipynb", 4).cells) == 3, "solutions leave no trace"


def test_kernel_gets_its_share_of_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert cli._kernel_environment(2)["OMP_NUM_THREADS"] == "4"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cli._kernel_environment(2)["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("arguments, words", [(["run", "nowhere.ipynb"], "no notebook"), ([], "usage"), (["data", "--rebuild", "imagenet"], "mnist")])
def test_mistakes_are_one_line(arguments, words, capsys):
    try:
        status = cli.main(arguments)
    except SystemExit as stop:
        status = stop.code
    assert status == 2 and words in capsys.readouterr().err


def test_data_command_lists_and_checks(capsys):
    assert cli.main(["data"]) == 0 and "mnist_sample" in capsys.readouterr().out
    assert cli.main(["data", "--check"]) == 0 and "as listed" in capsys.readouterr().out

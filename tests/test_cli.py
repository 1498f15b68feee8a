"""The lessonlib command: what it runs, what it leaves, what it says when something is wrong."""
import json
import os
import sys

import nbformat
import pytest

from lessonlib import cli

DRAWN = 90  # pictures in a new project

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


# --- a project of one's own, and the page -----------------------------------------------------------------------------
def test_new_project_runs_at_once_from_its_own_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "my_birds"]) == 0 and "open my_birds" in capsys.readouterr().out
    project = tmp_path / "my_birds"
    assert [path.name for path in tmp_path.iterdir()] == ["my_birds"], "nothing is left beside it"
    assert sorted(path.name for path in project.iterdir()) == [".gitignore", "README.md", "images", "sample", "start.ipynb"]
    assert "one folder for each class" in (project / "images" / "README.md").read_text(encoding="utf-8")
    assert len(list((project / "sample").glob("*/*.jpg"))) == DRAWN and "# my_birds" in (project / "README.md").read_text(encoding="utf-8")
    notebook, error = cli.execute_notebook(project / "start.ipynb")
    assert error == "" and len(notebook.cells) <= 15 and notebook.cells[0].source.startswith("# my_birds\n")
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    imported = {line.split()[1].split(".")[0] for line in code.splitlines() if line.startswith(("import ", "from "))}
    assert imported == {"lessonlib"} and code.count("DATA = ") == 2, "one line to change, and what to change it to"
    outputs = str([cell.get("outputs") for cell in notebook.cells])
    assert "nothing wrong found" in outputs and "model.safetensors" in outputs and "data:image/jpeg" in outputs
    assert (project / "model.safetensors").is_file()
    change_data_to_own_pictures(project, monkeypatch, capsys)


def change_data_to_own_pictures(project, monkeypatch, capsys):
    """The one line is enough: the same notebook works on the folder images/."""
    (project / "sample").rename(project / "images" / "taken")
    for breed in list((project / "images" / "taken").iterdir()): breed.rename(project / "images" / breed.name)
    (project / "images" / "taken").rmdir()
    (project / "images" / "pug" / "broken.jpg").write_text("no picture")
    cells = [cell.source for cell in nbformat.read(project / "start.ipynb", 4).cells if cell.cell_type == "code"]
    assert cells[1].startswith('DATA = "sample"')
    monkeypatch.chdir(project)
    exec("\n".join([cells[0], 'DATA = "images"', *cells[2:4]]), {})
    assert f"{DRAWN + 1} files, cannot be opened: ['broken.jpg']" in capsys.readouterr().out


@pytest.mark.parametrize("name, words", [
    ("", "empty"), ("  ", "empty"), ("a/b", "path"), ("..", "dot"), ("a\\b", "path"), ("/tmp", "path"), ("con", "Windows"), ("NUL.txt", "Windows"),
    ("a?b", "sign"), ("a\nb", "sign"), (" a", "space"), ("-a", "dash"), ("x" * 101, "101 letters")])
def test_new_project_refuses_bad_names_in_one_line(tmp_path, monkeypatch, capsys, name, words):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", *(["--"] if name.startswith("-") else []), name]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lessonlib: ") and words in said and said.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_new_project_leaves_what_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text.md").write_text("precious")
    assert cli.main(["new", "thesis"]) == 2 and "is there already and stays as it is" in capsys.readouterr().err
    monkeypatch.setattr(cli, "_draw_samples", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError): cli.new_project("other", tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["thesis", "text.md"], "half a project is no project"


def test_app_command_exports_and_says_what_is_wrong(pets_model, tmp_path, monkeypatch, capsys):
    assert cli.main(["app", str(pets_model), "--export", str(tmp_path / "page")]) == 0
    assert "app.py, model.safetensors, requirements.txt" in capsys.readouterr().out and (tmp_path / "page" / "app.py").is_file()
    (tmp_path / "notes.txt").write_text("this is no model at all")
    monkeypatch.setitem(sys.modules, "gradio", None)
    for arguments, words in [(["nowhere.safetensors"], "write one with learn.export"), ([str(tmp_path / "notes.txt")], "no file of learn.export"),
                             ([str(pets_model), "--export", str(tmp_path)], "choose a new folder"),
                             ([str(pets_model)], 'pip install "lessonlib[app]"')]:
        assert cli.main(["app", *arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith("lessonlib: ") and words in said and said.count("\n") == 1


@pytest.mark.parametrize("port", [-1, 0, 65536, 99999])
def test_app_command_refuses_a_port_that_cannot_be(pets_model, capsys, port):
    assert cli.main(["app", str(pets_model), f"--port={port}"]) == 2
    assert capsys.readouterr().err == f"lessonlib: port={port}: expected 1 to 65535, such as 7860\n"


def test_app_command_passes_its_options_on(pets_model, monkeypatch):
    import lessonlib.app

    served = []
    monkeypatch.setattr(lessonlib.app, "serve", lambda *arguments, **options: served.append((arguments, options)))
    assert cli.main(["app", str(pets_model), "--port", "8080", "--browser"]) == 0
    assert served == [((str(pets_model),), {"port": 8080, "open_browser": True})]

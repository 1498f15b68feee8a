"""Lesson 13's explorer of the slips and its picture of the layers in a real JupyterLab, without the lesson's long runs."""
import re

import nbformat
import pytest
from jupyter_browser import REPOSITORY, write_notebook

EXPLORER = ".lessonlib-explorer"
WORDS = f"{EXPLORER} .lessonlib-words"
RECORD = """
import matplotlib.pyplot as plt
import pandas as pd
from lessonlib.data import _data_folder
from lessonlib.explore import Explorer, Panel, Scene
recorded = pd.read_csv(_data_folder()/"recorded"/"crests.csv")
switches = list(recorded.columns[:4])
at_end = recorded[recorded.epoch == 20].set_index(switches)
"""
LAYERS = """
import torch
from lessonlib.data import Batches, DataLoaders
from lessonlib.learner import Learner
from lessonlib.pipeline import LayerLog, plot_layers
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
x = torch.randn(256, 8)
part, log = Batches(x, x[:, :1].sign(), batch_size=16, shuffle=True), LayerLog()
Learner(DataLoaders(part, part), net, torch.nn.functional.mse_loss, callbacks=[log], show=False).fit(3, lr=0.1)
plot_layers(log);
"""


def lesson_cell(text):
    """The lesson's own code cell that has this text."""
    cells = [cell.source for cell in nbformat.read(REPOSITORY / "nbs" / "lessons" / "13_pipeline.ipynb", as_version=4).cells
             if cell.cell_type == "code" and text in cell.source]
    assert len(cells) == 1, text
    return cells[0]


@pytest.fixture(scope="module")
def notebook(lab, folder):
    cells = [RECORD, lesson_cell("runs_of = {"), lesson_cell("table.round(3)"), lesson_cell("def draw_slips"),
             lesson_cell("slip_explorer = Explorer"), lesson_cell("ax.invert_yaxis()"), LAYERS]
    write_notebook(folder / "slips.ipynb", *cells)
    with lab.notebook("slips.ipynb"): yield lab


def test_it_runs_without_an_error(notebook):
    assert notebook.errors() == []
    assert notebook.page.locator(EXPLORER).count() == 1
    notebook.tall_screenshot("13_pipeline_slips")


def test_repairing_by_keyboard_lifts_the_curve(notebook):
    explorer = notebook.page.locator(EXPLORER)
    explorer.evaluate("(explorer) => explorer.scrollIntoView({block: 'center'})")

    def words(): return notebook.page.locator(WORDS).text_content()

    accuracies = [float(re.search(r"epochs: (0\.\d+)", words())[1])]
    for number in range(4):
        before = words()
        explorer.locator("input[type=checkbox]").nth(number).focus()
        notebook.page.keyboard.press("Space")
        notebook.page.wait_for_function("([found, old]) => document.querySelector(found).textContent !== old", arg=[WORDS, before])
        accuracies.append(float(re.search(r"epochs: (0\.\d+)", words())[1]))
    assert accuracies[-1] > accuracies[0] + 0.1
    assert explorer.locator(".lessonlib-problem").text_content() == ""
    notebook.screenshot("13_pipeline_repaired", explorer)


def test_the_pictures_say_what_they_show(notebook):
    pictures = notebook.page.locator(".jp-OutputArea-child img")
    assert pictures.count() >= 3  # the static twin of the explorer, the dots of the ten starts, the layers
    for row in ("as it was found", "all four repaired"): assert notebook.page.locator(".jp-RenderedHTML table th", has_text=row).count() == 1

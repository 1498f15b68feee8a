"""Scenes, their two drawings, the explorer's state and widget, and the published / here table; no browser needed."""
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lessonlib import explore
from lessonlib.explore import Explorer, ExplorerState, Panel, Scene, published_here

NUMBERS = st.floats(-1e9, 1e9)
HEAVY = ["torch", "matplotlib", "pandas", "ipywidgets", "anywidget", "PIL", "IPython", "traitlets"]


def marks(panel):
    return Scene(panel).to_dict()["panels"][0]["marks"]


def draw(a, whole, on, kind):
    if kind == "broken": raise ZeroDivisionError("asked to")
    return Scene(Panel("t", "x", "y").line([0, 1], [0, a], dash=on), text=f"a={a} whole={whole} on={on} kind={kind}")


CONTROLS = {"a": (-5, 5, 0.5, 1), "whole": (0, 9, 1, 3), "on": False, "kind": ["first", "second", "broken"]}


# --- importing --------------------------------------------------------------------------------------------------------
def test_import_is_light():
    code = f"import sys, lessonlib.explore; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# --- panels and scenes ------------------------------------------------------------------------------------------------
def trained(values): return torch.tensor(values, requires_grad=True)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, trained])
def test_marks_take_lists_arrays_and_tensors(kind):
    line, = marks(Panel().line(kind([1.0, 2.0]), kind([3.0, 4.0])))
    assert (line["x"], line["y"], line["color"]) == ([1, 2], [3, 4], "#1f77b4")


def test_a_scene_is_json_even_with_values_that_are_not_finite():
    panel = Panel(log_y=True).line([0, 1, 2, 3], [1, math.nan, math.inf, -1]).points([0], [0]).bars(["a", "b"], [1, 2])
    panel.rule(y=1).text(0, 1, "note")
    scene = Scene(panel, Panel().table([[1, 2]]), Panel().image(np.eye(3)), text="words")
    text = json.dumps(scene.to_dict(), allow_nan=False)
    assert json.loads(text)["panels"][0]["marks"][0]["y"] == [1, None, None, -1]


def test_colours_run_through_the_palette_and_may_be_named():
    panel = Panel().line([0], [0]).points([0], [0], color="C3").bars([0], [1]).rule(x=0)
    assert [mark["color"] for mark in marks(panel)] == ["#1f77b4", "#d62728", "#ff7f0e", "gray"]


@pytest.mark.parametrize("call, words", [
    (lambda: Panel().line([1, 2], [1]), "x has 2 values and y has 1"),
    (lambda: Panel().line([1], [1], color="k"), "color 'k'"),
    (lambda: Panel().image(np.zeros(3)), "shape (3,)"),
    (lambda: Panel().image(np.eye(2), cmap="jet"), "cmap 'jet'"),
    (lambda: Panel().table([[1, 2], [3]]), "equal length"),
    (lambda: Panel().table([[1, 2]], pick={(1, 0): {"a": 1}}), "no cell (1, 0) in a table of 1 rows and 2 columns"),
    (lambda: Panel().table([[1, 2]], pick={(0, -1): {"a": 1}}), "no cell (0, -1)"),
    (lambda: Panel().table([[1, 2]], pick={(0, 0): {"a": None}}), "a=None is of type NoneType: expected a str"),
    (lambda: Panel().rule(), "give x"),
    (lambda: Panel(ylim=(0, 1), log_y=True), "ylim=(0, 1) on a log axis"),
    (lambda: Panel(xlim=(1, 1)), "two different"),
    (lambda: Scene("a panel"), "not str"),
])
def test_errors_name_the_value_and_the_fix(call, words):
    with pytest.raises((ValueError, TypeError)) as error: call()
    assert words in str(error.value)


def test_table_cells_and_highlight():
    table, = marks(Panel().table(np.arange(4).reshape(2, 2), fmt="{:d}", highlight={(0, 1): "C0", (1, 1): "#abcdef"}))
    assert table["cells"] == [["0", "1"], ["2", "3"]] and table["highlight"] == [[0, 1, "#1f77b4"], [1, 1, "#abcdef"]]
    table, = marks(Panel().table([["·", 1.5]], highlight=[(0, 0)]))
    assert table["cells"] == [["·", "1.50"]] and table["highlight"] == [[0, 0, "#ff7f0e"]]


def test_cells_to_pick_are_plain_data_and_the_still_picture_does_not_show_them():
    values = {"a": np.float32(2), "on": np.bool_(True), "kind": np.str_("first"), "whole": torch.tensor(3)}
    panel = Panel().table([[1, 2]], pick={(0, np.int64(1)): values})
    table, = json.loads(json.dumps(marks(panel)))
    assert table["pick"] == [[0, 1, {"a": 2.0, "on": True, "kind": "first", "whole": 3}]]
    assert explore._figure_png(Scene(panel).figure()) == explore._figure_png(Scene(Panel().table([[1, 2]])).figure())
    assert marks(Panel().table([[1, 2]]))[0]["pick"] == []


def test_image_colours():
    assert explore._rgb([[0, 128, 255]], 0, 255, "gray")[0, :, 0].tolist() == [0, 128, 255]
    red, white, blue = explore._rgb([[-1, 0, 3]], None, None, "RdBu")[0]
    assert red[0] > red[2] and white.min() > 240 and blue[2] > blue[0]
    assert explore._rgb([[7, 7]], None, None, "gray").tolist() == [[[0, 0, 0]] * 2]
    colour = np.zeros((2, 3, 3), dtype=np.uint8)
    assert marks(Panel().image(colour))[0]["columns"] == 3


def test_image_fills_the_box_upside_down_and_pixels_are_square():
    panel = Scene(Panel().image(np.zeros((10, 20)))).to_dict()["panels"][0]
    left, top, width, height = panel["box"]
    assert panel["x"]["lim"] == [-0.5, 19.5] and panel["y"]["lim"] == [9.5, -0.5]
    assert width == pytest.approx(2 * height) and not panel["axes"]
    assert Scene(Panel(xlim=(0, 1), ylim=(0, 1)).image(np.eye(2))).to_dict()["panels"][0]["axes"]


def test_equal_axes_have_equal_units():
    panel = Scene(Panel(xlim=(0, 4), ylim=(0, 1), equal=True)).to_dict()["panels"][0]
    assert panel["box"][2] == pytest.approx(4 * panel["box"][3])


@given(st.lists(NUMBERS, min_size=1, max_size=30), st.booleans())
def test_limits_hold_all_values(values, log):
    low, high = explore._limits(Panel(log_y=log).line(values, values), "y")
    shown = [value for value in values if value > 0 or not log]
    assert low < high and all(low <= value <= high for value in shown)


@given(NUMBERS, st.floats(1e-6, 1e9), st.integers(2, 9))
def test_ticks_are_few_and_inside(low, width, count):
    high = low + width
    ticks = explore._ticks([low, high], False, count)
    places = [value for value, _ in ticks]
    assert 1 <= len(ticks) <= count + 2 or count == 2 and not ticks
    assert all(low - 0.01 * width <= place <= high + 0.01 * width for place in places) and places == sorted(places)


@given(st.floats(1e-12, 1e6), st.floats(1.5, 1e9), st.integers(3, 9))
def test_log_ticks_are_few_and_inside(low, times, count):
    places = [value for value, _ in explore._ticks([low, low * times], True, count)]
    assert len(places) <= count + 3 and all(low * 0.99 <= place <= low * times * 1.01 for place in places)


def test_tick_labels_are_round_numbers():
    def labels(*ends, log=False, count=5): return [label for _, label in explore._ticks(list(ends), log, count)]
    assert labels(-2, 2) == ["−2", "−1", "0", "1", "2"] and labels(2, -2) == labels(-2, 2)
    assert labels(0, 1, count=4) == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    assert labels(0, 1e-4) == ["0", "2e−5", "4e−5", "6e−5", "8e−5", "0.0001"]
    assert labels(0, 1e6) == ["0", "2e5", "4e5", "6e5", "8e5", "1e6"]
    assert labels(0.001, 20, log=True) == ["0.001", "0.01", "0.1", "1", "10"]
    assert labels(1, 8, log=True) == ["1", "2", "5"]


def test_legend_wraps_instead_of_covering_the_axes():
    panel = Panel("title")
    for number in range(8): panel.line([0, 1], [0, number], label=f"a rather long label {number}")
    panel = Scene(panel).to_dict()["panels"][0]
    rows = sorted({entry["y"] for entry in panel["legend"]})
    assert len(rows) > 1 and rows[-1] < panel["box"][1]
    assert all(entry["x"] < panel["size"][0] for entry in panel["legend"])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_figure_has_the_size_of_the_live_picture(count):
    panels = [Panel(f"panel {number}", "x", "y").line([0, 1], [0, 1], label="line") for number in range(count)]
    scene = Scene(*panels, text="words")
    width, height = scene.figure().get_size_inches() * 100
    panels = scene.to_dict()["panels"]
    assert width <= 1000 and height >= max([panel["size"][1] for panel in panels], default=0)
    if 0 < count < 4: assert width == pytest.approx(sum(panel["size"][0] for panel in panels))


def test_figure_draws_every_kind_of_mark():
    lines = Panel("a", "x", "y").line([0, 1], [0, 1], label="l").points([0], [1], label="p")
    lines.bars([0, 1], [1, 2], label="b").rule(x=0.5, label="r").rule(y=0.5).text(0, 0, "note")
    others = Panel().image(np.eye(4), cmap="RdBu"), Panel().table([[1, 2]], highlight=[(0, 0)])
    figure = Scene(lines, *others, text="words").figure()
    page, axes, image, table = figure.axes
    assert len(axes.lines) == 4 and len(axes.patches) == 2 and len(image.images) == 1
    assert {text.get_text() for text in table.texts} == {"1.00", "2.00"}
    assert {"words", "l", "p", "b", "r", "x", "y", "a"} <= {text.get_text() for text in page.texts}


def test_scene_shows_itself_as_a_small_png():
    data, metadata = Scene(Panel().line([0, 1], [0, 1]), text="a line")._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG") and len(data["image/png"]) < 20_000
    assert data["text/plain"] == metadata["image/png"]["alt"] == "a line"


# --- the state --------------------------------------------------------------------------------------------------------
def test_state_starts_and_changes():
    state = ExplorerState(draw, **CONTROLS)
    assert state.values == {"a": 1.0, "whole": 3, "on": False, "kind": "first"}
    assert state.set(a=np.float32(2), on=True) is state
    assert state.scene.text == "a=2.0 whole=3 on=True kind=first" and isinstance(state.values["whole"], int)


@pytest.mark.parametrize("values, words", [
    ({"a": 5.1}, "from -5 to 5"), ({"a": math.nan}, "from -5 to 5"), ({"a": "1"}, "a='1'"),
    ({"whole": 2.5}, "whole number"), ({"whole": True}, "whole=True"), ({"on": 1}, "True or False"),
    ({"kind": "third"}, "one of ['first'"),
    ({"knd": "first"}, "try kind"), ({"zzz": 1}, "a, whole, on, kind")])
def test_bad_values_raise_and_change_nothing(values, words):
    state = ExplorerState(draw, **CONTROLS)
    before, scene = dict(state.values), state.scene
    with pytest.raises(ValueError) as error: state.set(**{"a": 0, **values})
    assert words in str(error.value) and state.values == before and state.scene is scene


@pytest.mark.parametrize("spec", [(0, 1), (1, 0, 0.1, 0), (0, 1, 0, 0), (0, 1, 0.1, 2), [], 3, "text"])
def test_bad_controls_raise(spec):
    with pytest.raises(ValueError, match="a="): ExplorerState(lambda a: Scene(), a=spec)


def test_error_in_draw_leaves_the_last_good_scene():
    state = ExplorerState(draw, **CONTROLS)
    scene = state.scene
    with pytest.raises(ZeroDivisionError): state.set(kind="broken")
    assert state.scene is scene and state.values["kind"] == "first"


def test_draw_must_return_a_scene():
    with pytest.raises(TypeError, match="draw returned NoneType"): ExplorerState(lambda a: None, a=True)


def test_numbers_from_numpy_and_torch_make_a_whole_slider():
    state = ExplorerState(lambda a: Scene(), a=(np.int64(0), torch.tensor(9), 1, torch.tensor(4)))
    assert state.values == {"a": 4} and isinstance(state.values["a"], int)


@given(st.dictionaries(st.sampled_from(["a", "whole"]), st.floats(allow_nan=True)))
def test_state_holds_only_values_in_range(values):
    state = ExplorerState(draw, **CONTROLS)
    try: state.set(**values)
    except (ValueError, OverflowError): pass
    assert -5 <= state.values["a"] <= 5 and 0 <= state.values["whole"] <= 9
    assert state.scene.text.startswith(f"a={state.values['a']} whole={state.values['whole']}")


# --- the widget -------------------------------------------------------------------------------------------------------
def test_explorer_without_a_kernel_prints_words(capsys):
    explorer = Explorer(draw, **CONTROLS)
    explorer._ipython_display_()
    words = "a=1.0 whole=3 on=False kind=first\na = 1, whole = 3, on = False, kind = first"
    assert capsys.readouterr().out.strip() == repr(explorer) == words


def test_explorer_follows_its_sliders():
    explorer = Explorer(draw, **CONTROLS)
    kinds = [type(widget).__name__ for widget in explorer.controls.values()]
    assert kinds == ["FloatSlider", "IntSlider", "Checkbox", "Dropdown"]
    assert all(explorer.controls[name].continuous_update for name in ("a", "whole"))
    assert "lessonlib-explorer" in explorer.widget._dom_classes
    explorer.controls["a"].value = -2
    assert explorer.state.values["a"] == -2 and explorer.view.scene["text"].startswith("a=-2.0")
    assert explorer.view.scene["panels"][0]["marks"][0]["y"] == [0, -2]


def test_explorer_shows_an_error_in_words_and_recovers():
    explorer = Explorer(draw, **CONTROLS)
    scene = explorer.view.scene
    explorer.controls["kind"].value = "broken"
    assert "ZeroDivisionError: asked to" in explorer.view.problem and explorer.view.scene is scene
    explorer.controls["kind"].value = "second"
    assert explorer.view.problem == "" and "kind=second" in explorer.view.scene["text"]


def test_state_set_in_code_leaves_the_sliders_alone():
    explorer = Explorer(draw, **CONTROLS)
    explorer.widget, explorer.state.set(a=5)
    assert explorer.controls["a"].value == 1 and explorer.view.scene["text"].startswith("a=1.0")
    explorer.controls["on"].value = True
    assert explorer.state.values["a"] == 1


def test_state_set_before_the_first_display_is_where_the_sliders_start():
    explorer = Explorer(draw, **CONTROLS)
    explorer.state.set(a=5)
    assert explorer.controls["a"].value == 5 and explorer.view.scene["text"].startswith("a=5.0")


def test_a_picture_that_was_high_stays_high():
    explorer = Explorer(lambda rows: Scene(Panel().table([[1]] * rows)), rows=(1, 9, 1, 9))
    high = explorer.view.scene["panels"][0]["size"][1]
    explorer.controls["rows"].value = 1
    assert explorer.view.scene["panels"][0]["size"][1] == high


def tables(row, column, size=1, calls=None):
    "A table of 2 x 2 whose cells stand for their row and column; the last one for a value that no control takes."
    if calls is not None: calls.append((row, column, size))
    if (row, column) == ("b", 0): raise ZeroDivisionError("asked to")
    pick = {(0, 0): {"row": "a", "column": 0}, (0, 1): {"row": "a", "column": 1}, (1, 0): {"row": "b", "column": 0},
            (1, 1): {"row": "c", "column": 1}}
    return Scene(Panel().table([[1, 2], [3, 4]], pick=pick), text=f"{row} {column} {size}")


def picking(calls):
    explorer = Explorer(lambda **values: tables(**values, calls=calls), row=["b", "a"], column=(0, 1, 1, 1), size=(1, 9, 1, 1))
    explorer.widget, calls.clear()
    return explorer


def pick(explorer, count, **values):
    "What the browser does at a click."
    explorer.view.set_state({"picked": {"count": count, "values": values}})


def test_a_click_on_a_cell_moves_the_controls_together_and_draws_once():
    explorer = picking(calls := [])
    explorer.controls["size"].value = 5
    calls.clear()
    pick(explorer, 1, row="a", column=0)
    assert [widget.value for widget in explorer.controls.values()] == ["a", 0, 5] and explorer.controls["row"].index == 1
    assert calls == [("a", 0, 5)], "drawn once, and not with one old and one new value"
    assert explorer.view.scene["text"] == explorer.view.words == "a 0 5" and explorer.state.values == {"row": "a", "column": 0, "size": 5}
    explorer.controls["column"].value = 1
    pick(explorer, 2, row="a", column=0)
    assert explorer.view.scene["text"] == "a 0 5", "the same cell again"


@pytest.mark.parametrize("values, words", [
    ({"row": "c", "column": 0}, "row='c': expected one of"), ({"row": "a", "column": 2}, "whole number from 0 to 1"),
    ({"row": "a", "column": None}, "TypeError"), ({"rows": "a"}, "no control is called 'rows': try row")])
def test_a_picked_value_that_its_control_refuses_changes_nothing(values, words):
    explorer = picking(calls := [])
    scene, before = explorer.view.scene, dict(explorer.state.values)
    pick(explorer, 1, **values)
    assert explorer.view.scene is scene and explorer.state.values == before and calls == []
    assert {name: widget.value for name, widget in explorer.controls.items()} == before and words in explorer.view.problem
    explorer.controls["row"].value = "a"
    assert explorer.view.problem == "" and explorer.view.scene["text"] == "a 1 1", "the controls still work"


def test_an_error_after_a_click_is_said_as_after_a_move():
    explorer = picking([])
    scene = explorer.view.scene
    pick(explorer, 1, row="b", column=0)
    assert "ZeroDivisionError: asked to" in explorer.view.problem and explorer.view.scene is scene
    pick(explorer, 2, row="a", column=0)
    assert explorer.view.problem == "" and explorer.view.scene["text"] == "a 0 1"


def test_a_table_that_picks_an_unknown_control_raises_when_the_explorer_is_made():
    with pytest.raises(ValueError, match="pick of a table: no control is called 'column': try columns"):
        Explorer(lambda row, columns: tables(row, columns), row=["a"], columns=(0, 1, 1, 1))


# --- published and here -----------------------------------------------------------------------------------------------
ROWS = [("accuracy <3>", 0.9511, 0.951079), ("counts", "6131 / 6265", "6131 / 6265", "training set"),
        ("loss", 0.979, 0.97456), ("new", None, torch.tensor(3))]


def shown(rows, lesson=None):
    """The display bundle that a notebook would get."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    InteractiveShell.instance()
    try:
        with capture_output() as captured: published_here(rows, lesson)
        return captured.outputs[0].data
    finally:
        InteractiveShell.clear_instance()


def test_published_table_has_three_forms():
    bundle = shown(ROWS, lesson="01_pixels")
    record = bundle["application/vnd.lessonlib.published+json"]
    assert record["lesson"] == "01_pixels" and record["rows"][0] == {
        "quantity": "accuracy <3>", "published": "0.9511", "here": "0.9511", "note": ""}
    assert record["rows"][2]["here"] == "0.975", "as many decimals as the published value"
    assert record["rows"][3]["published"] == "–" and record["rows"][3]["here"] == "3"
    assert "accuracy &lt;3&gt;" in bundle["text/html"] and "training set" in bundle["text/plain"]
    assert bundle["text/plain"].splitlines()[1].split() == ["accuracy", "<3>", "0.9511", "0.9511"]


def test_published_table_is_valid_in_a_notebook_and_survives_conversion_and_cleaning():
    import nbformat
    from nbconvert import HTMLExporter
    from nbdev.clean import clean_nb
    bundle = shown(ROWS)
    cell = nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output("display_data", bundle)])
    notebook = nbformat.v4.new_notebook(cells=[cell])
    clean_nb(notebook)
    nbformat.validate(notebook)
    assert notebook.cells[0].outputs[0].data["application/vnd.lessonlib.published+json"]["rows"][0]["here"] == "0.9511"
    assert "accuracy &lt;3&gt;" in HTMLExporter().from_notebook_node(notebook)[0]


def test_published_table_in_plain_python(capsys):
    published_here(ROWS[:1])
    assert capsys.readouterr().out.splitlines()[0].split() == ["quantity", "published", "here"]


def test_published_row_of_wrong_length_raises():
    with pytest.raises(ValueError, match="expected"): published_here([("accuracy", 1)])

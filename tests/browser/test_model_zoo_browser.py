"""The chart of lesson 11 in a real JupyterLab: drawn without a network, and its menus and sliders follow the keyboard."""
from urllib.parse import urlsplit

import pytest
from jupyter_browser import SCREENSHOTS, write_notebook

CELL = """
import pandas as pd
from lessonlib.data import _data_folder
from lessonlib.model_zoo import ModelExplorer, plot_models
recorded = pd.read_csv(_data_folder()/"recorded"/"model_zoo.csv")
chart = ModelExplorer(recorded, at_least=75, at_most="50 ms")
chart
"""
LIVE = ".lessonlib-explorer:has(.js-plotly-plot)"


@pytest.fixture(scope="module")
def addresses(lab):
    """Every address that the page asks for."""
    asked = []
    lab.page.on("request", lambda request: asked.append(request.url))
    return asked


@pytest.fixture(scope="module")
def chart(lab, folder, addresses):
    write_notebook(folder / "zoo.ipynb", CELL, "plot_models(recorded, y='params')")
    with lab.notebook("zoo.ipynb"):
        assert not lab.errors()
        view = lab.page.locator(LIVE)
        view.locator(".scatterlayer .point").first.wait_for()
        view.evaluate("(view) => view.scrollIntoView({block: 'start'})")
        yield view


def words(chart):
    return chart.locator(".lessonlib-words").text_content()


def wait_for_words(chart, text):
    chart.locator(".lessonlib-words", has_text=text).wait_for(timeout=20_000)


def visible_points(chart):
    return chart.locator(".scatterlayer .point").count()


def control(chart, name):
    """The slider's handle or the menu behind a label."""
    row = chart.locator(".lessonlib-controls > *").filter(has=chart.page.get_by_text(name, exact=True))
    return row.locator(".noUi-handle, select")


def test_the_chart_is_drawn_and_its_still_twin_hides(lab, chart):
    assert visible_points(chart) >= 30 and chart.locator(".legendtext").count() >= 17
    assert chart.locator(".main-svg").first.bounding_box()["width"] > 800
    twin = lab.page.locator(f".jp-OutputArea-child:has({LIVE}) + .jp-OutputArea-child")
    assert twin.locator("img").count() == 1 and not twin.is_visible()
    assert "The fastest with at least 75%" in words(chart) and "The best within 50 ms" in words(chart)
    lab.screenshot("model_zoo_chart_live", chart)


def test_the_sliders_move_by_keyboard_and_the_last_value_wins(lab, chart):
    handle = control(chart, "at least percent")
    handle.focus()
    for _ in range(5): lab.page.keyboard.press("ArrowRight")
    wait_for_words(chart, "at least 80%")
    assert handle.get_attribute("aria-valuenow") == "80.0" and handle.get_attribute("aria-label") == "at least percent"
    chart.locator(".legendtext", has_text="fastest with at least 80%").wait_for()
    control(chart, "at most").focus()
    lab.page.keyboard.press("Home")
    wait_for_words(chart, "The best within 10 ms")
    lab.page.keyboard.press("End")
    wait_for_words(chart, "The best within any cost")
    chart.locator(".legendtext", has_text="best within any cost").wait_for()


def test_the_menus_choose_families_by_keyboard(lab, chart):
    everything = visible_points(chart)
    control(chart, "family").focus()
    lab.page.keyboard.type("resnet")
    wait_for_words(chart, "models of resnet")
    chart.page.wait_for_function(f"(all) => document.querySelectorAll('{LIVE} .scatterlayer .point').length < all - 20", arg=everything)
    control(chart, "and family").focus()
    lab.page.keyboard.type("convnext")
    wait_for_words(chart, "models of convnext, resnet")
    assert "on the Pareto front: " in words(chart)
    for ring in ("fastest with", "best within"): chart.locator(".legendtext", has_text=ring).wait_for()
    lab.screenshot("model_zoo_two_families", chart)
    control(chart, "family").select_option("all")
    wait_for_words(chart, "models of all families")
    chart.page.wait_for_function(f"(all) => document.querySelectorAll('{LIVE} .scatterlayer .point').length === all", arg=everything)


def test_the_mouse_brings_up_details(lab, chart):
    point = chart.locator(".scatterlayer .trace .point").nth(3)
    box = point.bounding_box()
    lab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = chart.locator(".hoverlayer .hovertext").first
    label.wait_for()
    assert "top-1" in label.text_content() and "parameters" in label.text_content()
    lab.page.mouse.move(5, 5)


def test_a_plain_figure_is_drawn_too(lab, chart):
    plain = lab.page.locator(".js-plotly-plot").filter(has_text="parameters (log scale)")
    plain.locator(".point").first.wait_for()
    assert plain.count() == 1 and plain.locator(".point").count() >= 30
    lab.screenshot("model_zoo_parameters", plain)


def test_nothing_is_asked_of_the_network(chart, addresses):
    hosts = {urlsplit(address).hostname for address in addresses if not address.startswith(("data:", "blob:"))}
    assert hosts <= {"127.0.0.1"} and addresses


def test_all_controls_have_names(chart):
    unnamed = chart.evaluate("""(view) => [...view.querySelectorAll(".lessonlib-controls select, .lessonlib-controls .noUi-handle")].filter((node) =>
        !(node.getAttribute("aria-label") || node.labels && node.labels.length)).length""")
    assert unnamed == 0


def test_the_chart_of_this_course_as_a_picture():
    """The still picture of the recording, for those who ask what it looks like."""
    import pandas as pd

    from lessonlib.data import _data_folder
    from lessonlib.model_zoo import models_picture

    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    models_picture(pd.read_csv(_data_folder() / "recorded" / "model_zoo.csv")).savefig(SCREENSHOTS / "model_zoo_recorded.png", dpi=150)
    assert (SCREENSHOTS / "model_zoo_recorded.png").stat().st_size > 20_000

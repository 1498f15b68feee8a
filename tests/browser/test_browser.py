"""The explorers and the lessons in a real JupyterLab, driven by keyboard."""
import json
import re
import time

import pytest
from jupyter_browser import PICTURE, REPOSITORY, write_notebook

COURSE_MAP = (REPOSITORY / "README.md").read_text(encoding="utf-8")  # lessons that it does not link are being written
LESSONS = sorted(path.stem for path in (REPOSITORY / "nbs" / "lessons").glob("*.ipynb") if f"(nbs/lessons/{path.name})" in COURSE_MAP)
EXPLORER = ".lessonlib-explorer"
HANDLE = ".widget-slider .noUi-handle"

PARABOLA = """
import time
from lessonlib.explore import Explorer, Panel, Scene
calls = []
def draw(a, c, dashed, shape):
    "A parabola; slow or broken on demand."
    calls.append(a)
    if shape == "slow": time.sleep(0.3)
    if shape == "broken": raise ZeroDivisionError("no such shape")
    x = [step / 50 - 2 for step in range(200)]
    curve = Panel("A parabola", "x", "y", ylim=(-10, 10))
    curve.line(x, [a * value ** 2 + c for value in x], label="curve", dash=dashed)
    bars = Panel("Its parts", "part", "value", ylim=(-5, 5)).bars(["a", "c"], [a, c])
    text = f"Here a is {a:.1f} and c is {c}." + "\\nThat is steep." * (a == 5)
    return Scene(curve, bars, Panel("Pixels").image([[0, 1], [1, 0]]), text=text)
explorer = Explorer(draw, a=(-5, 5, 0.1, 1), c=(-3, 3, 1, 1), dashed=False, shape=["good", "slow", "broken"])
explorer
"""


def words(explorer):
    return explorer.locator(".lessonlib-words").text_content().strip()  # text_content: also of what is scrolled away


def wait_for_words(explorer, text):
    explorer.locator(".lessonlib-words", has_text=text).wait_for(timeout=10_000)


def scroll_to(explorer):
    """Bring an explorer into view; JupyterLab does not lay out cells that are far away."""
    explorer.evaluate("(explorer) => explorer.scrollIntoView({block: 'center'})")
    explorer.locator(PICTURE).first.wait_for()


def focus_slider(explorer, number=0):
    handle = explorer.locator(HANDLE).nth(number)
    handle.focus()
    return handle


def twin(lab):
    """The output that follows the first live explorer: its static picture."""
    return lab.page.locator(f"{lab.live} + .jp-OutputArea-child").first


@pytest.fixture(scope="class")
def parabola(lab, folder):
    """A notebook with one explorer, run and left open for the tests that need only the widget."""
    write_notebook(folder / "parabola.ipynb", PARABOLA)
    with lab.notebook("parabola.ipynb"):
        explorer = lab.page.locator(EXPLORER)
        explorer.locator(".lessonlib-row > svg").first.wait_for()
        yield explorer


# --- the widget alone -------------------------------------------------------------------------------------------------
class TestWidget:
    def test_live_picture_hides_its_static_twin(self, lab, parabola):
        assert parabola.locator(".lessonlib-row > svg").count() == 3
        assert twin(lab).locator("img").count() == 1 and not twin(lab).is_visible()
        lab.screenshot("explorer_light")

    def test_each_control_works_by_keyboard(self, lab, parabola):
        path = parabola.locator(".lessonlib-row > svg svg path").first
        before = path.get_attribute("d")
        handle = focus_slider(parabola)
        handle.press("ArrowRight")
        wait_for_words(parabola, "a is 1.1")
        assert path.get_attribute("d") != before and handle.get_attribute("aria-valuenow") == "1.1"
        handle.press("End")
        wait_for_words(parabola, "a is 5.0")
        handle.press("Home")
        wait_for_words(parabola, "a is -5.0")
        lab.page.keyboard.press("Tab")  # the slider's number, which can be typed
        lab.page.keyboard.press("Tab")
        lab.page.keyboard.press("ArrowRight")
        wait_for_words(parabola, "c is 2")
        parabola.locator("input[type=checkbox]").focus()
        lab.page.keyboard.press("Space")
        parabola.locator("path[stroke-dasharray='7 4']").first.wait_for(state="attached")
        lab.page.keyboard.press("Space")
        menu = parabola.locator("select")
        menu.focus()
        for key, choice in (("ArrowDown", "slow"), ("ArrowUp", "good")):
            lab.page.keyboard.press(key)
            assert menu.input_value() == choice, f"{key} did not reach the menu"

    def test_readable_by_a_screen_reader(self, parabola):
        assert [handle.get_attribute("aria-label") for handle in parabola.locator(HANDLE).all()] == ["a", "c"]
        row = parabola.locator(".lessonlib-row")
        assert row.get_attribute("role") == "img" and row.get_attribute("aria-label") == words(parabola)
        assert parabola.locator(".lessonlib-words").get_attribute("aria-live") == "polite"

    def test_picture_changes_in_place_without_a_jump(self, lab, parabola):
        """The same SVG elements stay, and the explorer keeps its height, while a slider moves."""
        art = parabola.locator(".lessonlib-row > svg svg path").first
        art.evaluate("(path) => { path.seenBefore = true; }")
        height = parabola.bounding_box()["height"]
        focus_slider(parabola).press("End")
        wait_for_words(parabola, "a is 5.0")
        assert art.evaluate("(path) => path.seenBefore") and parabola.bounding_box()["height"] == height

    def test_error_is_said_in_words_and_the_last_good_picture_stays(self, parabola):
        picture = parabola.locator(".lessonlib-row").inner_html()
        menu, problem = parabola.locator("select"), parabola.locator(".lessonlib-problem")
        menu.select_option("broken")
        problem.filter(has_text="ZeroDivisionError: no such shape").wait_for()
        assert parabola.locator(".lessonlib-row").inner_html() == picture
        menu.select_option("good")
        problem.filter(has_text=re.compile("^$")).wait_for(state="attached")

    def test_latest_value_wins_when_drawing_is_slow(self, lab, parabola):
        """Thirty key presses on a drawing of 0.3 s: few are drawn, and the last one is."""
        handle = focus_slider(parabola)
        handle.press("Home")
        wait_for_words(parabola, "a is -5.0")
        parabola.locator("select").select_option("slow")
        lab.page.wait_for_timeout(600)
        handle.focus()
        start = time.monotonic()
        for _ in range(30): lab.page.keyboard.press("ArrowRight", delay=15)
        pressed = time.monotonic()
        wait_for_words(parabola, "a is -2.0")
        assert time.monotonic() - pressed < 2, "the picture lags behind"
        assert handle.get_attribute("aria-valuenow") == "-2.0"
        lab.page.wait_for_timeout(500)
        assert words(parabola).startswith("Here a is -2.0"), "an old value came late"
        parabola.locator("select").select_option("good")
        print(f"30 presses in {pressed - start:.2f} s")

    def test_static_picture_follows_at_rest(self, lab, parabola):
        def pictures(): return [png for output in lab.outputs() if (png := output.get("data", {}).get("image/png"))]
        before = pictures()
        focus_slider(parabola).press("PageUp")
        for _ in range(50):
            if pictures() != before: break
            lab.page.wait_for_timeout(100)
        assert len(pictures()) == len(before) == 1 and pictures() != before

    def test_narrow_window_wraps_the_panels(self, lab, parabola):
        size = lab.page.viewport_size
        lab.page.set_viewport_size({"width": 520, "height": 900})
        try:
            lab.page.wait_for_timeout(300)
            boxes = [svg.bounding_box() for svg in parabola.locator(".lessonlib-row > svg").all()]
            lab.screenshot("explorer_narrow")
            assert boxes[-1]["y"] > boxes[0]["y"] and all(box["x"] + box["width"] <= 521 for box in boxes)
        finally:
            lab.page.set_viewport_size(size)

    def test_dark_theme(self, lab, parabola):
        theme = "(name) => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})"
        lab.page.evaluate(theme, "JupyterLab Dark")
        try:
            lab.page.wait_for_function("() => document.body.dataset.jpThemeLight === 'false'")
            lab.page.wait_for_timeout(500)
            lab.screenshot("explorer_dark")
            label = parabola.locator(".lessonlib-row > svg text").first
            color = label.evaluate("(text) => getComputedStyle(text).fill")
            assert min(map(int, re.findall(r"\d+", color)[:3])) > 128, f"dark text {color} on a dark page"
        finally:
            lab.page.evaluate(theme, "JupyterLab Light")
            lab.page.wait_for_function("() => document.body.dataset.jpThemeLight === 'true'")


CELLS = """
from lessonlib.explore import Explorer, Panel, Scene
NAMES = ["cat", "dog", "bird"]
calls = []
def draw(label, prediction):
    "A table whose cells choose, and a picture of the one that is chosen."
    calls.append((label, prediction))
    place = NAMES.index(label) + 1, NAMES.index(prediction) + 1
    grid = [["label", *NAMES]] + [[name, *(f"{row}{column}" for column in range(3))] for row, name in enumerate(NAMES)]
    pick = {(row, column): {"label": one, "prediction": other} for row, one in enumerate(NAMES, 1) for column, other in enumerate(NAMES, 1)}
    image = [[row == place[0] and column == place[1] for column in range(1, 4)] for row in range(1, 4)]
    table = Panel("label (row), prediction").table(grid, highlight=[place], pick=pick)
    return Scene(table, Panel(f"{label}, {prediction}").image(image), text=f"{label} as {prediction}, drawn {len(calls)} times.")
explorer = Explorer(draw, label=list(NAMES), prediction=list(NAMES))
explorer
"""


def test_a_click_on_a_cell_of_a_table_moves_the_controls(lab, folder):
    """By mouse and by keyboard; the two lists and the picture follow, drawn once for each click; the latest wins."""
    write_notebook(folder / "cells.ipynb", CELLS)
    with lab.notebook("cells.ipynb"):
        explorer = lab.page.locator(EXPLORER)
        lists, image = explorer.locator("select"), explorer.locator("image")
        def chosen(): return [menu.evaluate("(menu) => menu.selectedOptions[0].textContent") for menu in lists.all()]
        cells = explorer.get_by_role("button")  # by role: so they exist for a screen reader
        cells.first.wait_for()
        assert cells.count() == 9 and explorer.locator(".lessonlib-row").get_attribute("role") == "group"
        assert chosen() == ["cat", "cat"] and cells.first.evaluate("(cell) => getComputedStyle(cell).cursor") == "pointer"
        before = image.get_attribute("href")
        explorer.get_by_role("button", name="02: choose label cat, prediction bird").click()
        wait_for_words(explorer, "cat as bird, drawn 2 times.")
        assert chosen() == ["cat", "bird"] and image.get_attribute("href") != before
        lists.nth(1).focus()
        for _ in range(4): lab.page.keyboard.press("Tab")  # the fourth cell
        assert cells.nth(3).evaluate("(cell) => cell === document.activeElement && getComputedStyle(cell).strokeWidth") == "2px"
        lab.page.keyboard.press("Enter")
        wait_for_words(explorer, "dog as cat, drawn 3 times.")
        lab.page.keyboard.press("Tab")
        lab.page.keyboard.press("Space")
        wait_for_words(explorer, "dog as dog, drawn 4 times.")
        assert chosen() == ["dog", "dog"] and cells.nth(4).evaluate("(cell) => cell === document.activeElement")
        lab.screenshot("explorer_pick")
        lists.first.select_option("bird")
        wait_for_words(explorer, "bird as dog, drawn 5 times.")
        cells.nth(4).click()
        wait_for_words(explorer, "dog as dog, drawn 6 times.")  # the same cell as before
        # All nine at once: the first is drawn, and the last; what lay between is dropped as for a slider.
        explorer.evaluate("""(explorer) => explorer.querySelectorAll("[role=button].lessonlib-pick").forEach((cell) =>
            cell.dispatchEvent(new MouseEvent("click", {bubbles: true})))""")
        wait_for_words(explorer, "bird as bird, drawn 8 times.")


def without_kernel(path):
    """Make JupyterLab ask before it starts a kernel for this notebook: it names no kernel and no language."""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metadata": {}}))


def test_student_reopens_a_notebook_without_a_kernel(lab, folder):
    """Saved in JupyterLab, opened again with no kernel: the picture shows."""
    path = write_notebook(folder / "saved.ipynb", PARABOLA)
    with lab.notebook("saved.ipynb"):
        lab.page.locator(lab.live).wait_for()
        lab.save()
    without_kernel(path)
    with lab.notebook("saved.ipynb", kernel=False):
        picture = lab.page.locator(".jp-OutputArea-child img")
        picture.wait_for()
        assert picture.is_visible() and lab.page.locator(EXPLORER).count() == 0
        assert lab.page.get_by_text("Run this cell to get the sliders").is_visible()
        lab.screenshot("explorer_without_kernel")


def test_reader_opens_the_committed_notebook_without_a_kernel(lab, folder):
    """As it is in the repository: pictures and tables, and no broken widget."""
    without_kernel(folder / "nbs" / "lib" / "explore.ipynb")
    with lab.notebook("nbs/lib/explore.ipynb", kernel=False):
        lab.page.locator(".jp-OutputArea-child img").first.wait_for()
        assert lab.page.locator(".jp-OutputArea-child img").count() >= 4
        assert lab.page.get_by_text("model not found").count() == 0
        assert lab.page.locator(".jp-RenderedHTML table td", has_text="0.9511").count() == 2
        lab.tall_screenshot("explore_notebook_without_kernel")


# --- the lessons ------------------------------------------------------------------------------------------------------
def changed(explorer, before, seconds=5):
    """Wait until an explorer's picture or words differ; False when they did not in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if picture_and_words(explorer) != before: return True
        time.sleep(0.05)
    return False


def picture_and_words(explorer):
    return explorer.locator(".lessonlib-row").inner_html() + words(explorer)


def move_something(explorer):
    """Move the first control by keyboard, one way or the other; True when the picture or the words followed."""
    before = picture_and_words(explorer)
    sliders, others = explorer.locator(HANDLE), explorer.locator("input[type=checkbox], select")
    (sliders if sliders.count() else others).first.focus()
    for key in ("ArrowRight", "ArrowLeft") if sliders.count() else ("ArrowDown", "Space"):
        explorer.page.keyboard.press(key)
        if changed(explorer, before, 2): return True
    return False


def check_fitting(lab):
    """Lesson 02: moving a slider by keyboard changes the curve and the loss."""
    explorer = lab.page.locator(EXPLORER, has_text="loss (MAE) =").first
    scroll_to(explorer)
    curve, sentence = explorer.locator(".lessonlib-row > svg svg path").nth(1), words(explorer)
    before = curve.get_attribute("d")
    focus_slider(explorer).press("ArrowRight")
    wait_for_words(explorer, "a = 1.2")
    losses = [re.search(r"loss \(MAE\) = (\d+\.\d+)", text)[1] for text in (sentence, words(explorer))]
    assert curve.get_attribute("d") != before and losses[0] != losses[1]


CHECKS = {"02_fitting": check_fitting}


def hidden_twins(lab):
    twins = lab.page.locator(f"{lab.live} + .jp-OutputArea-child:has(img)")
    return sum(not twin.is_visible() for twin in twins.all())


@pytest.mark.parametrize("stem", LESSONS)
def test_lesson_runs_and_its_explorers_move(lab, stem):
    """Open, run all: no error; every explorer is alive, hides its static twin, and follows the keyboard."""
    with lab.notebook(f"nbs/lessons/{stem}.ipynb"):
        assert lab.errors() == []
        lab.unfold()
        lab.top()
        lab.screenshot(stem)
        if stem in CHECKS: CHECKS[stem](lab)
        explorers = lab.page.locator(EXPLORER).all()
        for number, explorer in enumerate(explorers, 1):
            scroll_to(explorer)
            assert move_something(explorer), f"explorer {number} stands still: {explorer.text_content()}"
            lab.screenshot(f"{stem}_explorer_{number}", explorer)
        for _ in range(20):  # plotly draws a chart anew when it comes into view
            if hidden_twins(lab) == len(explorers): break
            lab.page.wait_for_timeout(500)
        assert hidden_twins(lab) == len(explorers)
        assert [text for text in lab.page.locator(".lessonlib-problem").all_text_contents() if text] == []
        lab.tall_screenshot(f"{stem}_full")


# --- guesses ----------------------------------------------------------------------------------------------------------
def test_guess_by_keyboard(lab, folder):
    """Type, Enter: the verdict comes in words; the static version is hidden while the live one is there."""
    write_notebook(folder / "guess.ipynb", """
from lessonlib.quiz import guess
guess("How many sides has a cube?", 6, why="Think of a die.")
""")
    with lab.notebook("guess.ipynb"):
        live, static = lab.page.locator(".lessonlib-guess-live"), lab.page.locator(".lessonlib-guess")
        live.locator("input").fill("4")
        lab.page.keyboard.press("Enter")
        live.get_by_role("button", name="certain").click()
        live.get_by_text("You said 4, 33% below. It is 6. Think of a die.").wait_for()
        assert static.count() == 1 and not static.is_visible()
        lab.screenshot("guess")

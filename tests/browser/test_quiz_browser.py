"""The questionnaire in a real JupyterLab: by keyboard and by mouse, kept over a reload and a restart."""
import json
import re

import pytest
from jupyter_browser import write_notebook
from test_quiz_widget import EVERY_KIND, IDS

STATIC = ".lessonlib-questionnaire-static"
CHANGE_THEME = "(name) => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})"
CELLS = """
import os
os.environ["LESSONLIB_PROGRESS"] = "answers.db"
from lessonlib.progress import store
from lessonlib.quiz import questionnaire, review
""", """
questionnaire("steps.yml")
"""


class Page:
    """What a student sees of a questionnaire, and what they can do with it."""

    def __init__(self, lab):
        self.lab, self.page, self.root = lab, lab.page, lab.page.locator(".lq")
        self.said, self.notice = self.root.locator(".lq-said"), self.root.locator(".lq-notice[role=alert]")
        self.press = self.page.keyboard.press

    def wait(self, number):
        """Until a question is on the page, by its number in the list."""
        self.root.locator(".lq-count", has_text=f"Question {number} of 9").wait_for()

    def go(self, question_id):
        """Choose a question in the list by mouse."""
        number = IDS.index(question_id) + 1
        self.root.locator("nav button").nth(number - 1).click()
        self.wait(number)

    def choice(self, text):
        return self.root.locator(".lq-question > fieldset:not(.lq-sure) .lq-choice", has_text=text)

    def sure(self, words="fairly sure"):
        self.root.locator(".lq-sure .lq-choice", has_text=words).click()

    def button(self, name):
        return self.root.get_by_role("button", name=name, exact=True)

    def hears(self, text, seconds=10):
        self.said.filter(has_text=text).wait_for(timeout=seconds * 1000)

    def status(self, question_id):
        return self.root.locator("nav li").nth(IDS.index(question_id)).locator(".lq-state").text_content()

    def progress(self): return self.root.locator(".lq-progress").text_content()

    def focused(self): return self.page.evaluate("() => document.activeElement.outerHTML")


def focus(quiz): quiz.root.locator(".lq-question :is(input, textarea, select, button):not([disabled])").first.focus()


@pytest.fixture(scope="module")
def course(folder):
    """The folder of the notebooks, with a questionnaire in it."""
    (folder / "steps.yml").write_text(EVERY_KIND, encoding="utf-8")
    return folder


@pytest.fixture(scope="class")
def quiz(lab, course):
    """A notebook with a questionnaire, run and open; nothing answered yet."""
    (course / "answers.db").unlink(missing_ok=True)
    write_notebook(course / "quiz.ipynb", *CELLS)
    with lab.notebook("quiz.ipynb"):
        assert lab.errors() == []
        found = Page(lab)
        found.wait(1)
        yield found


class TestAnswering:
    """One question after another, in this order."""

    def test_live_page_hides_its_static_twin(self, lab, quiz):
        twin = lab.page.locator(STATIC)
        assert twin.count() == 1 and not twin.is_visible() and quiz.progress() == "0 of 9 right"
        lab.screenshot("quiz_first")

    def test_one_choice_by_keyboard(self, lab, quiz):
        """Wrong, its feedback, a hint, right: with keys alone."""
        wrong = quiz.choice("It makes training random.").locator("kbd").text_content()
        right = quiz.choice("It moves the output").locator("kbd").text_content()
        cells = lab.page.locator(".jp-Cell").count()
        focus(quiz)
        quiz.press(wrong)
        quiz.press("Enter")
        quiz.notice.filter(has_text="How sure are you?").wait_for()
        quiz.press("2")
        lab.screenshot("quiz_choice_sure", quiz.root)
        quiz.press("Enter")
        quiz.hears("The bias is a number that is learned.")
        assert quiz.status("90-bias") == "wrong" and "Not yet." in quiz.said.text_content() and quiz.said.get_attribute("role") == "status"
        for _ in range(2): quiz.press("Tab")  # the answer button, then the hint
        quiz.press("Enter")
        quiz.root.locator(".lq-hints li", has_text="all black").wait_for()
        lab.screenshot("quiz_choice_wrong", quiz.root)
        quiz.choice("It moves the output").locator("input").focus()
        quiz.press(right)
        quiz.press("Enter")
        quiz.hears("Without a bias, an input of zeros")
        assert quiz.status("90-bias") == "right after hints" and quiz.progress() == "1 of 9 right"
        lab.screenshot("quiz_choice_right", quiz.root)
        assert "Next" in quiz.focused(), "the next key goes on"
        quiz.press("Enter")
        quiz.wait(2)
        assert lab.page.locator(".jp-Cell").count() == cells and lab.page.locator(".jp-Cell.jp-mod-editMode").count() == 0

    def test_arrow_keys_move_between_questions(self, quiz):
        focus(quiz)
        quiz.press("ArrowRight")
        quiz.wait(3)
        quiz.root.locator("nav [aria-current]").focus()
        quiz.press("ArrowUp")
        quiz.press("Enter")
        quiz.wait(2)
        assert "parameters" in quiz.focused() and "aria-current" in quiz.focused()
        focus(quiz)
        quiz.press("ArrowLeft")
        quiz.wait(1)

    def test_several_by_mouse(self, lab, quiz):
        quiz.go("90-several")
        quiz.choice("weights").click()
        quiz.sure("certain")
        quiz.button("Answer").click()
        quiz.hears("Partly right (50%)")
        lab.screenshot("quiz_several", quiz.root)
        quiz.choice("bias").click()
        quiz.button("Answer").click()
        quiz.hears("the learning rate is chosen")

    def test_number(self, lab, quiz):
        quiz.go("90-number")
        size = int(re.search(r"layer of (\d+)", quiz.root.locator(".lq-prompt").text_content())[1])
        quiz.root.locator("input.lq-number").fill(str(size * 10))
        quiz.sure()
        quiz.button("Answer").click()
        quiz.hears("That leaves out the ten biases.")
        lab.screenshot("quiz_number", quiz.root)
        quiz.root.locator("input.lq-number").fill("about ten")
        quiz.press("Enter")
        quiz.notice.filter(has_text="about ten").wait_for()
        quiz.root.locator("input.lq-number").fill(str(size * 10 + 10))
        quiz.press("Enter")
        quiz.hears("one bias for each output")

    def test_text_and_shape(self, lab, quiz):
        quiz.go("90-text")
        quiz.root.locator("input.lq-text").fill("The bias")
        quiz.sure()
        quiz.root.locator("input.lq-text").press("Enter")
        quiz.hears("It is the bias.")
        quiz.go("90-shape")
        quiz.root.locator("input.lq-shape").fill("784, 1")
        quiz.sure("a guess")
        quiz.button("Answer").click()
        quiz.hears("the outer ones stay")
        lab.screenshot("quiz_shape", quiz.root)
        quiz.root.locator("input.lq-shape").fill("(64, 1)")
        quiz.press("Enter")
        quiz.hears("(64, 784) @ (784, 1) is (64, 1)")

    def test_order_by_keyboard(self, lab, quiz):
        quiz.go("90-order")
        wanted = ["predict", "loss", "gradient", "step"]
        def items(): return [re.sub(r"^\d+", "", text) for text in quiz.root.locator(".lq-grip").all_text_contents()]
        assert sorted(items()) == sorted(wanted) and items() != wanted
        quiz.root.locator(".lq-grip").first.focus()
        for place, item in enumerate(wanted):
            quiz.press("Home")
            while not quiz.focused().startswith('<button type="button" class="lq-grip"') or f'aria-label="{item},' not in quiz.focused():
                quiz.press("ArrowDown")
            for _ in range(items().index(item) - place): quiz.press("Shift+ArrowUp")
            for _ in range(4): quiz.press("ArrowUp")
        assert items() == wanted
        lab.screenshot("quiz_order", quiz.root)
        quiz.sure("certain")
        quiz.button("Answer").click()
        quiz.hears("Predict, loss, gradient, step.")

    def test_match_by_keyboard(self, lab, quiz):
        quiz.go("90-match")
        for label, right in (("xb", "(64, 784)"), ("weights", "(784, 1)")):
            menu = quiz.root.get_by_label(label, exact=True)
            menu.focus()
            while menu.input_value() != right: quiz.press("ArrowDown")
        quiz.sure()
        lab.screenshot("quiz_match", quiz.root)
        quiz.button("Answer").click()
        quiz.hears("Rows are images.")

    def test_code(self, lab, quiz):
        """Tab indents, Enter keeps the indent, an endless loop ends, the mistake is recognised."""
        quiz.go("90-code")
        editor = quiz.root.locator(".lq-editor textarea")
        quiz.root.locator(".lq-examples", has_text="step(1.0, 2.0, 0.1) → 0.8").wait_for()
        editor.fill("")
        quiz.page.keyboard.type("def step(weights, gradient, lr):\n# while it is true, go on\nif lr > 0:\nreturn 1\nwhile True: pass")
        assert editor.input_value().split("\n")[2:] == ["    if lr > 0:", "        return 1", "        while True: pass"]
        quiz.press("Shift+Tab")
        assert editor.input_value().split("\n")[-1] == "    while True: pass"
        editor.fill("def step(weights, gradient, lr):\n    while True: pass")
        quiz.sure()
        editor.focus()
        quiz.press("Control+Enter")
        quiz.root.get_by_role("button", name="Checking").wait_for()
        lab.screenshot("quiz_code_checking", quiz.root)
        quiz.hears(re.compile("second|endless|loop"), seconds=40)
        editor.fill('def step(weights, gradient, lr):\n    "One step of 0.5"\n    return weights + lr * gradient  # uphill')
        quiz.press("Control+Enter")
        quiz.hears("You walked uphill", seconds=40)
        assert quiz.root.locator(".lq-editor .lq-keyword").count() >= 2
        lab.screenshot("quiz_code", quiz.root)
        editor.press("End")
        quiz.press("Escape")
        quiz.press("Tab")
        assert "radio" in quiz.focused(), "a reader without a mouse must get out of the editor"
        editor.fill("def step(w, g, lr):\n    return w - lr * g")
        quiz.press("Control+Enter")
        quiz.hears("so the step subtracts", seconds=40)

    def test_free(self, lab, quiz):
        quiz.go("90-free")
        quiz.root.locator("textarea.lq-free").fill("To test on new data.")
        quiz.sure()
        quiz.button("Compare").click()
        quiz.root.locator(".lq-model", has_text="data it was not trained on").wait_for()
        quiz.root.locator(".lq-choice", has_text="not trained on").click()
        quiz.root.locator(".lq-choice", has_text="generalises").click()
        lab.screenshot("quiz_free", quiz.root)
        assert quiz.root.locator("textarea.lq-free").input_value() == "To test on new data."
        quiz.button("Keep my marks").click()
        quiz.hears("Only data that was not trained on")
        assert quiz.progress() == "9 of 9 right"

    def test_the_frame_keeps_its_height(self, quiz):
        heights = set()
        for question_id in IDS:
            quiz.go(question_id)
            heights.add(quiz.root.bounding_box()["height"])
        assert len(heights) == 1

    def test_each_field_has_a_label(self, quiz):
        for question_id in IDS:
            quiz.go(question_id)
            for control in quiz.root.locator(".lq-question :is(input, select, textarea)").all():
                named = control.evaluate("(control) => control.labels.length ? control.labels[0].textContent : ''")
                assert named.strip(), f"{question_id}: a field without a label"
            for group in quiz.root.locator("fieldset").all(): assert group.locator("legend").text_content().strip()

    def test_narrow_and_dark(self, lab, quiz):
        size = lab.page.viewport_size
        quiz.go("90-bias")
        try:
            lab.page.set_viewport_size({"width": 700, "height": 900})
            lab.page.wait_for_timeout(400)
            lab.screenshot("quiz_narrow")
            wide = quiz.root.evaluate("(root) => root.scrollWidth - root.clientWidth")
            right = max(box["x"] + box["width"] for box in (one.bounding_box() for one in quiz.root.locator("button:visible").all()))
            assert wide <= 0 and right <= 700
        finally:
            lab.page.set_viewport_size(size)
        lab.page.evaluate(CHANGE_THEME, "JupyterLab Dark")
        try:
            lab.page.wait_for_function("() => document.body.dataset.jpThemeLight === 'false'")
            lab.page.wait_for_timeout(400)
            quiz.go("90-code")
            lab.screenshot("quiz_dark_code", quiz.root)
            quiz.go("90-bias")
            lab.screenshot("quiz_dark", quiz.root)
            color = quiz.root.locator(".lq-prompt").evaluate("(text) => getComputedStyle(text).color")
            assert min(map(int, re.findall(r"\d+", color)[:3])) > 128, f"dark text {color} on a dark page"
        finally:
            lab.page.evaluate(CHANGE_THEME, "JupyterLab Light")
            lab.page.wait_for_function("() => document.body.dataset.jpThemeLight === 'true'")


def reload_page(lab):
    """What F5 does; the kernel goes on."""
    lab.page.goto(f"{lab.address}/lab?token={lab.token}&reset")
    lab.page.wait_for_function("() => window.jupyterapp && document.querySelector('#jp-main-dock-panel')")
    lab.page.evaluate("async () => { await window.jupyterapp.restored; }")


def test_kept_over_a_reload_and_a_restart(lab, course):
    """Answer, type half of another answer, save, reload: all there. Restart the kernel, run again: the answers are there."""
    (course / "answers.db").unlink(missing_ok=True)
    path = write_notebook(course / "kept.ipynb", *CELLS)
    lab.open("kept.ipynb")
    lab.run_all()
    quiz = Page(lab)
    quiz.wait(1)
    for text in ("It makes training random.", "It moves the output"):
        quiz.choice(text).click()
        quiz.sure()
        quiz.button("Answer").click()
        quiz.hears({"I": "Not yet"}.get(text[0]) if "random" in text else "Right.")
    quiz.go("90-text")
    quiz.root.locator("input.lq-text").fill("wei")
    lab.page.wait_for_timeout(600)
    lab.save()
    assert "1 of 9 right" in json.dumps(json.loads(path.read_text())["cells"][1]["outputs"]), "the static list follows"
    reload_page(lab)
    lab.open("kept.ipynb")
    quiz = Page(lab)
    quiz.wait(4)
    assert quiz.root.locator("input.lq-text").input_value() == "wei" and quiz.status("90-bias") == "right" and quiz.progress() == "1 of 9 right"
    lab.screenshot("quiz_after_reload")
    lab._do("() => window.lessonPanel.sessionContext.restartKernel()", seconds=60)
    lab._do("async () => { await window.lessonPanel.sessionContext.session.kernel.info; }", seconds=60)
    lab.run_all()
    quiz = Page(lab)
    quiz.wait(2)  # the next that is not right yet
    assert quiz.status("90-bias") == "right" and quiz.progress() == "1 of 9 right"
    quiz.go("90-bias")
    quiz.hears("You had this right.")
    lab.screenshot("quiz_after_restart")
    lab.save()
    lab.close()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metadata": {}}))  # JupyterLab asks which kernel: none
    with lab.notebook("kept.ipynb", kernel=False):
        static = lab.page.locator(STATIC)
        static.wait_for()
        assert static.is_visible() and lab.page.locator(".lq").count() == 0 and "1 of 9 right" in static.text_content()
        static.locator("summary").first.click()
        assert static.get_by_text("What does the bias in").is_visible()
        lab.screenshot("quiz_without_kernel")


def test_review_shows_what_is_due(lab, course):
    """Nothing is due: said in words."""
    write_notebook(course / "review.ipynb", CELLS[0].replace("answers.db", "none.db"), "review()")
    with lab.notebook("review.ipynb"):
        lab.page.locator(".lq-empty", has_text="Nothing is due today.").wait_for()
        lab.screenshot("quiz_review_empty")

"""The app in a real browser: the page of `lessonlib app`, and the widget in a notebook. Upload, drop, paste, refusals, 20 files, 50 megapixels."""
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from jupyter_browser import SCREENSHOTS, _free_port, write_notebook
from PIL import Image

CELL = """
from lessonlib.app import UploadWidget
widget = UploadWidget("pets.safetensors")
widget
"""
SEND = """(node, [kind, name, type, content]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0)), data = new DataTransfer();
  data.items.add(new File([bytes], name, {type}));
  const options = {bubbles: true, cancelable: true, composed: true};
  if (kind === "paste") node.dispatchEvent(new ClipboardEvent("paste", {...options, clipboardData: data}));
  else node.dispatchEvent(new DragEvent(kind, {...options, dataTransfer: data}));
}"""


@pytest.fixture(scope="module")
def files(pets_model, tmp_path_factory):
    """What people upload, by what it is."""
    folder = tmp_path_factory.mktemp("uploads")
    noise = np.random.default_rng(0)
    Image.fromarray(noise.integers(0, 255, (58, 87, 3), np.uint8)).resize((8700, 5800)).save(folder / "fifty_megapixels.jpg")
    Image.fromarray(noise.integers(0, 255, (2000, 2000, 3), np.uint8)).save(folder / "twelve_megabytes.png", compress_level=1)
    (folder / "notes.txt").write_text("dear model")
    (folder / "renamed.jpg").write_text("dear model")
    assert (folder / "twelve_megabytes.png").stat().st_size > 11e6
    for number in range(20): shutil.copy(pets_model.with_name("beagle") / f"beagle_{number % 12}.jpg", folder / f"beagle_{number:02}.jpg")
    shutil.copy(pets_model.with_name("Siamese") / "Siamese_4.jpg", folder / "<b>cat & co.jpg")
    return folder


def send(node, kind, path, mime="image/jpeg"):
    """A drop or a paste of one file."""
    node.evaluate(SEND, [kind, path.name, mime, base64.b64encode(path.read_bytes()).decode()])


# --- the page of lessonlib app ----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def address(pets_model, tmp_path_factory):
    """`lessonlib app` in a process of its own."""
    port, log = _free_port(), tmp_path_factory.mktemp("app") / "log.txt"
    environment = os.environ | {"NO_PROXY": "127.0.0.1,localhost", "GRADIO_TEMP_DIR": str(log.parent / "uploads")}
    with log.open("w") as output:
        command = [Path(sys.executable).with_name("lessonlib"), "app", pets_model, "--port", str(port)]
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    for _ in range(900):
        if "The page is at" in log.read_text() or process.poll() is not None: break
        time.sleep(0.1)
    assert process.poll() is None, log.read_text()
    yield f"http://127.0.0.1:{port}/"
    left = [path.name for path in (log.parent / "uploads").rglob("*") if path.is_file() and path.stat().st_size]
    assert left == [], "no upload is kept"
    process.terminate()
    process.wait(20)


@pytest.fixture(scope="module")
def page(lab, address):
    """The page, opened once; every address that it asks for is noted."""
    page = lab.page.context.browser.new_page(viewport={"width": 1000, "height": 900})
    page.set_default_timeout(60_000)
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address)
    page.locator("#pictures input[type=file]").wait_for(state="attached")
    yield page
    page.close()


def upload(page, *paths):
    """Start anew, choose files, wait for an answer to each."""
    clear = page.locator("#pictures button[aria-label='Clear'], #pictures button[title='Clear']")
    if clear.count(): clear.first.click()
    page.locator("#answers .answer").first.wait_for(state="detached")
    page.locator("#pictures input[type=file]").first.set_input_files([str(path) for path in paths])
    page.locator("#answers .answer").nth(len(paths) - 1).wait_for()
    return page.locator("#answers .answer")


def picture(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(500)
    page.screenshot(path=SCREENSHOTS / f"app_{name}.png", full_page=True)


def test_page_predicts_and_refuses_politely(page, files):
    assert "2 classes (Siamese, beagle) and nothing else" in page.locator("body").inner_text()
    picture(page, "page_empty")
    answers = upload(page, files / "beagle_03.jpg", files / "notes.txt", files / "renamed.jpg", files / "<b>cat & co.jpg")
    texts = answers.all_inner_texts()
    assert "beagle_03.jpg" in texts[0] and "%" in texts[0] and "beagle" in texts[0] and "Siamese" in texts[0]
    assert "No answer for notes.txt" in texts[1] and "It is not a picture that can be read here" in texts[1]
    assert "No answer for renamed.jpg" in texts[2] and "cat & co.jpg" in texts[3]
    assert page.locator("#answers img").count() == 2
    picture(page, "page_answers")


def test_page_takes_twenty_files_at_once(page, files):
    twenty = [files / f"beagle_{number:02}.jpg" for number in range(20)]
    answers = upload(page, *twenty)
    assert answers.count() == 20
    for path, text in zip(twenty, answers.all_inner_texts()): assert path.name in text and "%" in text
    picture(page, "page_twenty")


def test_page_forgets_a_file_that_is_taken_away(page, files):
    upload(page, files / "beagle_03.jpg", files / "notes.txt", files / "beagle_04.jpg")
    page.locator("#pictures button[aria-label='Remove this file']").nth(1).click()
    page.locator("#answers .refused").wait_for(state="detached")
    texts = page.locator("#answers .answer").all_inner_texts()
    assert len(texts) == 2 and "beagle_03.jpg" in texts[0] and "beagle_04.jpg" in texts[1]


def test_page_takes_fifty_megapixels(page, files):
    assert "fifty_megapixels.jpg" in upload(page, files / "fifty_megapixels.jpg").first.inner_text()
    assert page.locator("#answers .refused").count() == 0


def test_page_takes_a_pasted_picture_and_the_keyboard(page, files):
    """Each is tried until it works: after a reload the page is drawn before it listens."""
    page.reload()
    page.locator("#pictures input[type=file]").wait_for(state="attached")
    answer = page.locator("#answers .answer", has_text="beagle_05.jpg")
    for _ in range(20):
        send(page.locator("body"), "paste", files / "beagle_05.jpg")
        page.wait_for_timeout(1000)
        if answer.count(): break
    answer.wait_for()
    page.reload()
    choosers = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    for _ in range(20):
        page.locator("#pictures button.upload-container, #pictures button[aria-label*='upload']").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_timeout(1000)
        if choosers: break
    choosers[0].set_files(str(files / "beagle_06.jpg"))
    page.locator("#answers .answer", has_text="beagle_06.jpg").wait_for()


def test_page_fits_a_telephone(page, files):
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("() => document.documentElement.scrollWidth <= 391")
    wider = "() => [...document.querySelectorAll('#answers .answer')].filter((card) => card.scrollWidth > card.clientWidth + 1).length"
    assert page.evaluate(wider) == 0, "nothing sticks out of its frame"
    picture(page, "page_telephone")


def test_nothing_on_the_page_came_from_elsewhere(page, address):
    outside = [url for url in page.asked if not url.startswith((address, "data:", "blob:"))]
    assert outside == [] and len(page.asked) > 10


# --- the widget in a notebook -----------------------------------------------------------------------------------------
UPLOAD = ".lessonlib-upload"


@pytest.fixture(scope="module")
def widget(lab, folder, pets_model):
    shutil.copy(pets_model, folder / "pets.safetensors")
    write_notebook(folder / "upload.ipynb", CELL)
    with lab.notebook("upload.ipynb"):
        assert not lab.errors()
        view = lab.page.locator(UPLOAD)
        view.locator(".area").wait_for()
        yield view


def answered(widget, name, timeout=60_000):
    """The card of a file, once it is there."""
    card = widget.locator(".answer", has_text=name).first
    card.wait_for(timeout=timeout)
    return card


def test_widget_has_a_button_and_a_drop_area_and_hides_its_twin(lab, widget):
    twin = lab.page.locator(f".jp-OutputArea-child:has({UPLOAD}) + .jp-OutputArea-child")
    assert twin.count() == 1 and not twin.is_visible()
    assert lab.page.get_by_role("button", name="Choose pictures").is_visible()
    area = widget.locator(".area")
    assert "2 classes (Siamese, beagle) and nothing else" in widget.locator(".note").inner_text()
    assert area.get_attribute("aria-label").startswith("Drop pictures") and widget.locator(".status").get_attribute("aria-live") == "polite"
    lab.screenshot("app_widget_empty")


def test_button_drop_paste_and_keyboard(lab, widget, files):
    with lab.page.expect_file_chooser() as chooser: lab.page.get_by_role("button", name="Choose pictures").click()
    chooser.value.set_files([str(files / "beagle_01.jpg"), str(files / "notes.txt")])
    assert "No answer for notes.txt" in answered(widget, "notes.txt").inner_text()
    assert "%" in widget.locator(".answer", has_text="beagle_01.jpg").inner_text()
    assert "wrong" in widget.locator(".status").get_attribute("class")
    area = widget.locator(".area")
    send(area, "dragover", files / "beagle_02.jpg")
    assert "over" in area.get_attribute("class")
    send(area, "drop", files / "beagle_02.jpg")
    assert "%" in answered(widget, "beagle_02.jpg").inner_text() and "over" not in area.get_attribute("class").split()
    send(area, "drop", files / "beagle_02.jpg")  # the same once more: the same answer, and the area does not wait for another
    widget.page.wait_for_function("(node) => node.querySelectorAll('.answer').length === 4", arg=widget.element_handle())
    widget.locator(".status", has_text="beagle_02.jpg: ").wait_for()
    area.click()
    send(area, "paste", files / "<b>cat & co.jpg")
    assert "cat & co.jpg" in answered(widget, "cat & co.jpg").inner_text()
    area.focus()
    with lab.page.expect_file_chooser() as chooser: lab.page.keyboard.press("Enter")
    chooser.value.set_files(str(files / "beagle_04.jpg"))
    answered(widget, "beagle_04.jpg")
    assert lab.page.evaluate("() => window.lessonPanel.content.mode") != "edit", "Enter was not taken for JupyterLab's own"
    assert widget.locator(".answer").first.inner_text().find("beagle_04.jpg") >= 0, "the last answer comes first"
    lab.screenshot("app_widget_answers")


def test_area_takes_what_the_connection_would_refuse(lab, widget, files):
    """More than 10 MB, Jupyter's limit for one message, and 50 million pixels."""
    for name in ("twelve_megabytes.png", "fifty_megapixels.jpg"):
        widget.locator("input[type=file]").set_input_files(str(files / name))
        assert "%" in answered(widget, name).inner_text()


def test_twenty_files_at_once(widget, files):
    widget.locator("input[type=file]").set_input_files([str(files / f"beagle_{number:02}.jpg") for number in range(20)])
    answered(widget, "beagle_19.jpg")
    assert widget.locator(".answer").count() == 24 and re.search(r"and \d more", widget.locator(".answers").inner_text())


def test_static_twin_is_saved_with_the_last_answers(lab, widget, folder):
    widget.page.wait_for_timeout(2500)
    lab.save()
    outputs = json.loads((folder / "upload.ipynb").read_text())["cells"][0]["outputs"]
    static = [output["data"] for output in outputs if "text/html" in output.get("data", {})]
    assert len(static) == 1 and "beagle_19.jpg" in "".join(static[0]["text/html"]) and "".join(static[0]["text/plain"]).startswith("beagle_19.jpg: ")


def test_when_the_kernel_is_gone_the_widget_says_so(lab, widget, files):
    lab.page.evaluate("async () => { await window.lessonPanel.sessionContext.shutdown(); }")
    send(widget.locator(".area"), "drop", files / "beagle_07.jpg")
    widget.locator(".status", has_text="No answer yet: the kernel is busy with another cell, or it has stopped").wait_for(timeout=20_000)


def test_without_a_kernel_the_last_answers_are_seen(lab, widget, folder):
    saved = json.loads((folder / "upload.ipynb").read_text())
    (folder / "read_only.ipynb").write_text(json.dumps(saved | {"metadata": {}}))  # names no kernel: JupyterLab asks before it starts one
    lab.close()
    lab.open("read_only.ipynb", kernel=False)
    twin = lab.page.locator(".jp-RenderedHTMLCommon", has_text="beagle_19.jpg").first
    twin.wait_for()
    assert twin.is_visible() and twin.locator("img").count() >= 1
    lab.screenshot("app_widget_without_kernel")

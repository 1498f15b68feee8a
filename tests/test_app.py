"""The app: answers for whatever people upload, the notebook's widget, the page on 127.0.0.1, the folder for a hosting service."""
import io
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lessonlib import app
from lessonlib.app import Answer, Predictor, UploadWidget, build_page, export_app, serve
from lessonlib.learner import load_learner
from lessonlib.sketches import draw_pet


def content_of(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def beagle(pets_model):
    return pets_model.with_name("beagle") / "beagle_3.jpg"


@pytest.fixture
def predictor(pets_model):
    return Predictor(pets_model)


def change_description(source, target, **changes):
    """A copy of an exported model with another description."""
    import json

    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(source, "pt") as file:
        described, tensors = json.loads(file.metadata()["lessonlib"]), {name: file.get_tensor(name) for name in file.keys()}
    save_file(tensors, target, {"lessonlib": json.dumps(described | changes)})
    return target


# --- answers ----------------------------------------------------------------------------------------------------------
def test_nobody_is_told_that_a_model_is_certain():
    assert [app._percent(share) for share in (0, 0.0049, 0.005, 0.5, 0.994, 0.996, 1)] == [
        "under 1%", "under 1%", "0%" if f"{0.005:.0%}" == "0%" else "1%", "50%", "99%", "over 99%", "over 99%"]


def test_text_has_at_most_three_classes_or_the_problem():
    assert Answer("a.jpg", "x", {"x": 0.5, "y": 0.3, "z": 0.15, "w": 0.05}).text == "a.jpg: x (50%), then y (30%), z (15%)"
    assert Answer("a.jpg", "x", {"x": 1.0}).text == "a.jpg: x (over 99%)"
    assert Answer("a.jpg", problem="it is empty").text == "a.jpg: it is empty"


# --- the predictor ----------------------------------------------------------------------------------------------------
def test_a_picture_gets_exactly_the_learners_answer(predictor, pets_model, beagle):
    label, _, probs = load_learner(pets_model).predict(beagle)
    for content in (beagle, str(beagle), beagle.read_bytes(), Image.open(beagle)):
        answer = predictor.predict(content)
        assert answer.label == label and answer.problem == ""
        assert list(answer.probabilities.values()) == sorted(probs.tolist(), reverse=True), "the same numbers, the highest first"
    assert [answer.name for answer in predictor.history] == ["beagle_3.jpg", "beagle_3.jpg", "picture", "picture"]
    assert predictor.classes == ["Siamese", "beagle"] and set(answer.probabilities) == {"Siamese", "beagle"}
    assert max(Image.open(io.BytesIO(answer.thumbnail)).size) <= 160


def test_a_learner_in_memory_serves_too(pets_model, beagle):
    assert Predictor(load_learner(pets_model)).predict(beagle) == Predictor(pets_model).predict(beagle)


def test_pictures_of_every_kind(predictor):
    drawn = draw_pet("beagle", 30)
    deep = Image.fromarray(np.asarray(drawn.convert("L")).astype(np.uint16) * 256)
    kinds = {"grey": content_of(drawn.convert("L")), "16 bits": content_of(deep), "palette": content_of(drawn.convert("P")),
             "two colours": content_of(drawn.convert("1")), "transparent": content_of(drawn.convert("RGBA")),
             "CMYK": content_of(drawn.convert("CMYK"), "JPEG"),
             "WebP": content_of(drawn, "WEBP"), "GIF": content_of(drawn, "GIF"),
             "one pixel": content_of(Image.new("RGB", (1, 1))), "long": content_of(Image.new("RGB", (4000, 1)))}
    assert {name: predictor.predict(content, name).problem for name, content in kinds.items()} == dict.fromkeys(kinds, "")


def test_a_picture_taken_sideways_is_turned(predictor):
    drawn, exif = draw_pet("beagle", 31), Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned by 90 degrees clockwise
    sideways = content_of(drawn.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert predictor.predict(sideways).probabilities == predictor.predict(drawn).probabilities


@pytest.mark.parametrize("mode, kind", [("RGB", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("L", "PNG")])
def test_a_large_picture_is_made_smaller_and_answered_nearly_the_same(predictor, mode, kind):
    drawn = draw_pet("Siamese", 33)
    large = content_of(drawn.resize((2600, 2400)).convert(mode), kind)
    small = content_of(drawn.resize((650, 600)).convert(mode), kind)
    one, two = predictor.predict(large), predictor.predict(small)
    assert one.problem == "" and abs(one.probabilities["Siamese"] - two.probabilities["Siamese"]) < 0.1
    picture = app._picture(large, 50)
    assert picture.mode == "RGB" and picture.width * picture.height <= 1.01 * app._MOST_PIXELS


MEMORY = """
import io, resource, sys
from PIL import Image
from lessonlib.app import Predictor
predictor = Predictor(sys.argv[1])
predictor.predict(Image.new("RGB", (100, 100)))
def grown(path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = predictor.predict(path)
    assert not answer.problem, answer
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes
print(*[grown(path) for path in sys.argv[2:]])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell a process its largest size")
def test_fifty_million_pixels_need_bounded_memory(pets_model, tmp_path):
    """JPEG: never decoded at full size (150 MB). PNG with transparency: decoded once (200 MB), not three times."""
    image = Image.new("RGB", (8660, 5774), "orange")
    image.save(tmp_path / "large.jpg")
    image.convert("RGBA").save(tmp_path / "large.png", compress_level=1)
    command = [sys.executable, "-c", MEMORY, pets_model, tmp_path / "large.jpg", tmp_path / "large.png"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    jpeg, png = map(int, result.stdout.split())
    assert jpeg < 130 and png < 400, f"grown by {jpeg} and {png} MB"


WHOLE = content_of(draw_pet("beagle", 32), "JPEG")
DAMAGED = content_of(draw_pet("beagle", 32))
NO_PICTURES = {"empty": (b"", "the file is empty"), "text": (b"dear model", "expected PNG, JPEG"), "PDF": (b"%PDF-1.7 ...", "PDF document"),
               "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC picture.*save it as JPEG"), "page": (b"\n<!DOCTYPE html><html>", "web page"),
               "SVG": (b"<svg xmlns=''></svg>", "save it as PNG"), "zip": (b"PK\3\4....", "zip archive"),
               "cut short": (WHOLE[:900], "damaged or cut short"), "damaged": (DAMAGED[:2000] + b"?" * 2000 + DAMAGED[4000:], "damaged or cut short")}


@pytest.mark.parametrize("content, words", NO_PICTURES.values(), ids=NO_PICTURES)
def test_what_is_no_picture_gets_a_sentence(predictor, content, words):
    answer = predictor.predict(content, "upload.jpg")
    assert re.search(words, answer.problem) and not answer.label and not answer.probabilities and answer.text.startswith("upload.jpg: ")
    assert predictor.history == [answer]


def test_too_many_pixels_too_many_bytes_no_file(predictor, pets_model, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.warns(Image.DecompressionBombWarning): assert "too many pixels" in predictor.predict(content_of(Image.new("L", (40, 40)))).problem
    assert "at most 0.0001 MB" in Predictor(pets_model, max_mb=0.0001).predict(WHOLE).problem
    assert predictor.predict(tmp_path / "nowhere.jpg").problem == predictor.predict(tmp_path).problem == "there is no such file"
    (tmp_path / "a.jpg").write_bytes(WHOLE)

    def refused(path): raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refused)
    assert predictor.predict(tmp_path / "a.jpg").problem == "it cannot be read (Permission denied)"


@pytest.mark.parametrize("problem, words", [(RuntimeError("out of memory: 9 GiB\nfor experts"), "out of memory: 9 GiB"),
                                            (MemoryError(), "MemoryError")], ids=["PyTorch", "Python"])
def test_a_model_that_fails_gets_a_sentence(predictor, monkeypatch, problem, words):
    def fail(*_): raise problem

    expected = f"the model could not answer ({words}): try a smaller picture"
    with monkeypatch.context() as patch:
        patch.setattr(predictor.learn, "predict", fail)
        assert predictor.predict(WHOLE, "a.jpg") == predictor.history[-1] == Answer("a.jpg", problem=expected)
    with monkeypatch.context() as patch:
        patch.setattr(app, "_made_smaller", fail)
        assert ("damaged" in predictor.predict(WHOLE).problem) == isinstance(problem, RuntimeError), "a full memory is no fault of the file"
    assert predictor.predict(WHOLE).label, "the next picture is answered"


@pytest.mark.parametrize("content", [None, 7, ["a.jpg"], {"a": 1}])
def test_what_cannot_hold_a_picture_is_a_mistake_in_the_program(predictor, content):
    with pytest.raises(TypeError, match="expected a path"): predictor.predict(content)


def test_twenty_at_once_one_at_a_time(predictor, beagle):
    inside, most, predict = [], [], predictor.learn.predict

    def watched(item):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.005)
        try: return predict(item)
        finally: inside.pop()

    predictor.learn.predict = watched
    contents = [beagle.read_bytes(), b"no picture"] * 10
    with ThreadPoolExecutor(20) as pool: answers = list(pool.map(predictor.predict, contents))
    assert max(most) == 1 and len(predictor.history) == 20
    assert [bool(answer.problem) for answer in answers] == [False, True] * 10
    assert len({answer.probabilities["beagle"] for answer in answers[::2]}) == 1


def test_history_is_bounded(predictor, monkeypatch):
    monkeypatch.setattr(app, "_MOST_ANSWERS", 3)
    for number in range(5): predictor.predict(b"", f"{number}")
    assert [answer.name for answer in predictor.history] == ["2", "3", "4"]


def test_models_that_are_refused(pets_model, tmp_path):
    with pytest.raises(FileNotFoundError, match="write one with learn.export"): Predictor(tmp_path / "nowhere.safetensors")
    (tmp_path / "notes.txt").write_text("this is no model at all")
    with pytest.raises(ValueError, match="no file of learn.export"): Predictor(tmp_path / "notes.txt")
    newer = change_description(pets_model, tmp_path / "newer.safetensors", format=2, versions={"lessonlib": "9.0"})
    with pytest.raises(ValueError, match=r"newer lessonlib \(9\.0, here is .*pip install --upgrade lessonlib"): Predictor(newer)
    numbers = change_description(pets_model, tmp_path / "numbers.safetensors", preprocessing=None)
    with pytest.raises(ValueError, match="not trained on picture files"): Predictor(numbers)
    with pytest.raises(TypeError, match="expected a learner"): Predictor(42)


# --- HTML -------------------------------------------------------------------------------------------------------------
def test_names_and_classes_are_escaped_and_every_bar_has_its_number():
    html = app._card(Answer("<img src=x onerror=alert(1)>", "<b>", {"<b>": 0.7, "y": 0.3}, thumbnail=b"x"))
    assert "<img src=x" not in html and "<b><b>" not in html and "&lt;b&gt;" in html
    assert html.count("70%") and html.count("30%")


def test_more_than_five_classes_and_more_than_all_answers_are_counted():
    many = Answer("a", "c0", {f"c{number}": 0.1 for number in range(10)}, thumbnail=b"x")
    assert "and 5 more classes" in app._card(many) and "c5" not in app._card(many)
    assert "and 6 more" in app._answers_html([many] * 30)


# --- the widget -------------------------------------------------------------------------------------------------------
def test_widget_answers_what_is_chosen_and_what_comes_in_parts(predictor):
    from datetime import datetime

    widget, now = UploadWidget(predictor), datetime(2026, 1, 1)
    assert widget.widget is widget.widget
    widget.button.value = ({"name": "a.jpg", "type": "image/jpeg", "size": len(WHOLE), "content": memoryview(WHOLE), "last_modified": now},)
    assert predictor.history[-1].name == "a.jpg" and widget.button.value == () and "a.jpg" in widget.view.words and not widget.view.wrong
    for number, (part, last) in enumerate([(WHOLE[:500], False), (WHOLE[500:], True)]):
        widget._received({"do": "part", "number": 7, "name": f"{number}.jpg", "last": last}, [memoryview(part)])
    assert predictor.history[-1].name == "1.jpg" and not predictor.history[-1].problem
    assert predictor.history[-1].probabilities == predictor.history[0].probabilities
    widget._received({"do": "part", "number": 8, "name": "<i>.txt", "last": True}, [memoryview(b"text")])
    assert widget.view.wrong and "<i>" not in widget.view.html and "&lt;i&gt;" in widget.view.html
    widget._received({"do": "something else"}, [])
    assert len(predictor.history) == 3


def test_parts_of_a_file_that_never_ends_are_not_collected(pets_model):
    widget = UploadWidget(Predictor(pets_model, max_mb=0.01))
    widget.widget  # noqa: B018
    for _ in range(100): widget._received({"do": "part", "number": 1, "name": "x", "last": False}, [memoryview(b"0" * 5000)])
    assert sum(map(len, widget._parts)) <= 11_000
    widget._received({"do": "part", "number": 2, "name": "a.txt", "last": True}, [memoryview(b"text")])
    assert widget.predictor.history[-1].problem and widget._parts == []


def test_widget_without_a_kernel_is_text(predictor, beagle, capsys):
    widget = UploadWidget(predictor)
    assert repr(widget) == "No picture yet." and "No picture yet" in widget._bundle()["text/html"]
    widget.add(beagle)
    widget._ipython_display_()
    assert capsys.readouterr().out.startswith("beagle_3.jpg: ") and "data:image/jpeg" in widget._bundle()["text/html"]


# --- the page ---------------------------------------------------------------------------------------------------------
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def page(pets_model):
    page = serve(pets_model, port=free_port(), block=False)
    yield page
    page.close()


def asked(address, *paths):
    from gradio_client import Client, handle_file
    return Client(address, verbose=False, analytics_enabled=False).predict([handle_file(path) for path in paths], api_name="/predict")


def test_without_gradio_the_page_says_what_to_install(predictor, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r'pip install "lessonlib\[app\]"'): build_page(predictor)


def test_page_is_on_this_computer_only_and_does_not_report(page):
    assert page.local_url.startswith("http://127.0.0.1:") and page.share_url is None and not page.analytics_enabled and not page.share
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_twenty_people_at_once(page, beagle, tmp_path):
    (tmp_path / "notes.jpg").write_text("no picture")
    files = [beagle, tmp_path / "notes.jpg"] * 10
    with ThreadPoolExecutor(20) as pool: answers = list(pool.map(lambda file: asked(page.local_url, str(file)), files))
    for file, html in zip(files, answers):
        assert ("No answer for notes.jpg" in html) if file.name == "notes.jpg" else ("<b>" in html and "beagle_3.jpg" in html)


def test_uploads_are_deleted_once_they_are_answered_and_answers_stay_for_a_while(predictor, tmp_path):
    answered, paths = app._answer_and_delete(predictor, most=2), [str(tmp_path / f"{number}.jpg") for number in range(3)]
    for path in paths: Path(path).write_bytes(WHOLE)
    first = [answered(path) for path in paths]
    assert list(tmp_path.iterdir()) == [] and not any(answer.problem for answer in first)
    assert answered(paths[2]) is first[2] and answered(paths[0]).problem == "there is no such file", "the oldest of three is forgotten"


def test_uploads_are_deleted_also_when_the_model_fails(predictor, tmp_path, monkeypatch):
    answered, path, problems = app._answer_and_delete(predictor), tmp_path / "a.jpg", [KeyError("a mistake"), RuntimeError("out of memory")]

    def fail(*_): raise problems.pop()

    with monkeypatch.context() as patch:
        patch.setattr(predictor.learn, "predict", fail)
        path.write_bytes(WHOLE)
        assert "out of memory" in answered(str(path)).problem and not path.exists()
        assert "out of memory" in answered(str(path)).problem, "Gradio asks again: kept"
        path.write_bytes(WHOLE)
        with pytest.raises(KeyError): answered(str(path))
        assert not path.exists()
    path.write_bytes(WHOLE)
    assert not answered(str(path)).problem and not path.exists(), "the same picture, sent again later, is looked at again"


def test_a_taken_port_is_told(pets_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="try another --port"): serve(pets_model, port=taken.getsockname()[1], block=False)


# --- the folder for a hosting service ---------------------------------------------------------------------------------
WATCH = """
import runpy, sys
def hook(event, arguments):
    if event == "socket.getaddrinfo": host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple): host = arguments[1][0]
    else: return
    if host not in (None, "127.0.0.1", "localhost", "::1"): print("OUTSIDE", host, flush=True)
sys.addaudithook(hook)
runpy.run_path("app.py", run_name="__main__")
"""


def test_the_exported_app_runs_in_a_fresh_process_and_asks_nobody(pets_model, beagle, tmp_path):
    folder, port = export_app(pets_model, tmp_path / "page"), free_port()
    assert {path.name for path in folder.iterdir()} == {"app.py", "requirements.txt", "model.safetensors", "README.md"}
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "NO_PROXY": "127.0.0.1,localhost"}
    environment.pop("GRADIO_ANALYTICS_ENABLED", None)
    log = tmp_path / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, "-c", WATCH], cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        for _ in range(600):
            if "The page is at" in log.read_text() or process.poll() is not None: break
            time.sleep(0.1)
        assert process.poll() is None, log.read_text()
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20).status == 200
        assert "beagle_3.jpg" in asked(f"http://127.0.0.1:{port}/", str(beagle))
    finally:
        process.terminate()
        process.wait(20)
    assert "OUTSIDE" not in log.read_text()


def test_export_refuses_what_it_must_not_touch(pets_model, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.docx").write_text("precious")
    with pytest.raises(FileExistsError, match="thesis.docx"): export_app(pets_model, tmp_path / "mine")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="choose a new folder"): export_app(pets_model, tmp_path / "file")
    newer = change_description(pets_model, tmp_path / "newer.safetensors", format=2)
    with pytest.raises(ValueError, match="newer lessonlib"): export_app(newer, tmp_path / "page")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine", "newer.safetensors"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.docx"]


def test_export_reaches_the_disk_and_app_py_comes_last(pets_model, tmp_path, monkeypatch):
    """An interrupted export leaves nothing that starts without its model. Windows refuses to fsync a file that was opened for reading only."""
    if sys.platform != "win32":
        import fcntl

        def fsync(number):
            if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY: raise OSError(9, "Bad file descriptor")

        monkeypatch.setattr(app.os, "fsync", fsync)
    put, moved = app._put, []

    def put_two(source, target):
        if len(moved) == 2: raise KeyboardInterrupt
        moved.append(target.name)
        put(source, target)

    assert (export_app(pets_model, tmp_path / "whole") / "app.py").is_file()
    monkeypatch.setattr(app, "_put", put_two)
    with pytest.raises(KeyboardInterrupt): export_app(pets_model, tmp_path / "half")
    assert moved == ["model.safetensors", "requirements.txt"] and sorted(path.name for path in (tmp_path / "half").iterdir()) == moved


def test_export_is_renewed_and_takes_a_learner(pets_model, tmp_path):
    folder = export_app(pets_model, tmp_path / "new" / "page")
    (folder / "app.py").write_text("old")
    assert export_app(load_learner(pets_model), folder) == folder
    assert "serve(" in (folder / "app.py").read_text() and Predictor(folder / "model.safetensors").classes == ["Siamese", "beagle"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page"]
    assert oct(folder.stat().st_mode & 0o777) == oct(0o777 & ~current_mask())


def current_mask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_requirements_are_ranges_and_name_this_version(pets_model, tmp_path):
    from packaging.requirements import Requirement

    import lessonlib

    lines = (export_app(pets_model, tmp_path / "page") / "requirements.txt").read_text().splitlines()
    needed = {requirement.name: requirement for requirement in map(Requirement, [line for line in lines if line[0] not in "#-"])}
    assert {"lessonlib", "gradio", "torch", "torchvision"} <= set(needed) and needed["lessonlib"].specifier.contains(lessonlib.__version__)
    assert all(len(requirement.specifier) == 2 for requirement in needed.values())


def test_threads_have_one_door(predictor):
    """A thread that fails leaves the door open for the next."""
    with pytest.raises(TypeError): predictor.predict(object())
    done = []
    thread = threading.Thread(target=lambda: done.append(predictor.predict(WHOLE)), daemon=True)
    thread.start()
    thread.join(20)
    assert done and not done[0].problem

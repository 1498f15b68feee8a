"""Lesson 14: what it teaches, its small functions, the way through with real photographs, and bad input on the way."""
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from PIL import Image

from lessonlib import vision
from lessonlib.data import _thread_map, image_files, parent_label, verify_images
from lessonlib.vision import image_dataloaders, vision_learner

ROOT = Path(__file__).parents[1]
NOTEBOOK = nbformat.read(ROOT / "nbs" / "lessons" / "14_your_turn.ipynb", as_version=4)
CODE = [cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code"]


# ---- The lesson as a lesson

def sections(kinds=("markdown", "code")):
    """Heading -> the sources of its cells, up to the next heading."""
    found, heading = {}, ""
    for cell in NOTEBOOK.cells:
        title = re.match(r"#{1,3} (.*)", cell.source) if cell.cell_type == "markdown" else None
        heading = title[1] if title else heading
        if cell.cell_type in kinds: found.setdefault(heading, []).append(cell.source)
    return found


# One line for each topic of the questionnaire: its section, and words that must be there.
TOPICS = {
    "drivetrain": ("What do you want to achieve? The drivetrain approach", ["**Objective.**", "**Levers.**", "**Data.**", "**Models.**"]),
    "recommending": ("Recommending is not predicting", ["not** have found alone", "**chosen at random**", "compare"]),
    "tables": ("Not only images: tables with many categories", ["ensemble of decision trees", "baseline", "embedding", "no bias", "postcode 4001"]),
    "text": ("Not only images: text, and what it gets wrong", ["hallucination", "confabulation", "Fluent is not true", "disinformation", "filter"]),
    "getting data": ("Getting pictures, and the right to use them", ["licence", "smaller copy", "half a file", "never answers", "without an end"]),
    "order of the work": ("Verify, label, split", ["**verify**", "**label**", "**split**", "**small model**", "**clean**", "**once**", "**export**"]),
    "vendor": ("A baseline, and a test set that nobody touches", ["Keep back a test set", "Choose the metric", "plain baseline"]),
    "what is in the file": ("Export: what is in the file", ["parameters", "names of the classes", "prepared", "training pictures", "code"]),
    "pickle": ("Why not a pickle?", ["call functions", "with your rights"]),
    "server or device": ("Server or device?", ["without a network", "private pictures", "too large for a phone"]),
    "roll-out": ("Rolling out in steps", ["A human in parallel", "Limited scope", "Gradual", "still measured", "limit", "stop it", "false alarm"]),
    "three troubles": ("Three things that go wrong in production", ["Out-of-domain", "Domain shift", "Feedback loop", "lesson 09"]),
    "really well": ("What if it went really well?", ["success", "Who may stop it"]),
}


@pytest.mark.parametrize("topic", TOPICS)
def test_topic_is_taught_in_its_section(topic):
    heading, words = TOPICS[topic]
    text = "\n".join(sections()[heading]).lower()
    assert [word for word in words if word.lower() not in text] == []


def test_every_question_has_its_section_in_order():
    asked = yaml.safe_load((ROOT / "data" / "questionnaires" / "14_your_turn.yml").read_text(encoding="utf-8"))
    headings = list(sections())
    assert "planned" not in asked and {question["section"] for question in asked["questions"]} <= set(headings)
    assert headings.index("Published and here") > headings.index("A project folder of your own") > headings.index("What if it went really well?")


def test_exports_nothing_and_needs_no_network():
    assert not any(line.startswith("#|") for source in CODE for line in source.splitlines())
    assert "ONLINE = False" in "\n".join(CODE)
    addresses = set(re.findall(r"https?://[^\s\"'{]+", "\n".join(CODE)))
    assert addresses == {"http://127.0.0.1:"}


def test_guesses_and_explorers():
    assert 3 <= sum(source.count("guess(") for source in CODE) <= 6 and sum(source.count("Explorer(") for source in CODE) >= 3


def run_cells(*first_words, **names):
    """Execute the code cells that contain these words, in order, and return their names."""
    for words in first_words:
        found = [source for source in CODE if words in source]
        assert len(found) == 1, f"{len(found)} cells contain {words!r}"
        exec(found[0], names)
    return names


def test_levers_and_alarms():
    names = run_cells("def still_empty(", "def alarms_a_week(")
    assert names["still_empty"](0.5, 0.5) == 75 and names["still_empty"](0, 1) == 100 and names["still_empty"](1, 1) == 0
    assert names["alarms_a_week"](1000, 0.01) == 70


def test_parts_follow_the_content(tmp_path):
    import hashlib

    part_of = run_cells("def part_of(", hashlib=hashlib)["part_of"]
    places = [tmp_path / f"{number}.jpg" for number in range(300)]
    for number, place in enumerate(places): place.write_bytes(f"picture {number}".encode())
    parts = [part_of(place) for place in places]
    assert 175 < parts.count("train") < 245 and 25 < parts.count("valid") < 70 and 25 < parts.count("test") < 70
    moved = [shutil.copy(place, tmp_path / f"copy_of_{place.name}") for place in places]
    assert [part_of(Path(place)) for place in moved] == parts


def test_a_pickle_runs_what_it_holds(tmp_path, capsys):
    import pickle

    names = run_cells("class Surprise:", PRACTICE=tmp_path / "my_pictures")
    assert capsys.readouterr().out == ""
    pickle.loads(names["letter"].read_bytes())
    assert "printed by the file" in capsys.readouterr().out


def test_text_goes_on_word_by_word():
    names = run_cells("books = {", "def go_on(")
    for sentence in names["written"][:50]:
        words = sentence.split()
        assert words[0] == "The" and words[-1] == "." and all(two in names["follows"][one] for one, two in zip(words, words[1:]))
    assert 0 < sum(sentence in names["sentences"] for sentence in names["written"]) < 100


# ---- The whole way with real photographs

def imports():
    """Every import of the lesson, as source: each section can use what earlier ones have imported."""
    lines = [ast.unparse(node) for source in CODE for node in ast.parse(source).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return "\n".join(line for line in lines if "matplotlib_inline" not in line)


def own_way(folder):
    """The code cells of the lesson from the folder to the app, with a folder of one's own in place of the practice one."""
    wanted = ["Verify, label, split", "A baseline, and a test set that nobody touches", "Fine-tune a small model", "Look, clean, train again",
              "Export: what is in the file", "Use it: in the notebook and as a small app"]
    cells = [source for heading in wanted for source in sections(["code"])[heading] if "matplotlib_inline" not in source]
    assert sum(source.startswith("FOLDER = PRACTICE") for source in cells) == 1
    return [f"FOLDER = Path({str(folder)!r})" if source.startswith("FOLDER = PRACTICE") else source for source in cells]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".lessonlib" not in path.parts}


def test_the_way_through_with_real_photographs(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    for label in ("cat", "dog"):
        (tmp_path / "mine" / label).mkdir(parents=True)
        for path in sorted((photos / label).iterdir())[:40]: shutil.copy(path, tmp_path / "mine" / label)
    (tmp_path / "mine" / "dog" / "broken.jpg").write_bytes(b"half a picture")
    before, names = contents(tmp_path / "mine"), {}
    exec(imports(), names)
    exec("drawings_here = image_files(get_data('pet_sketches')/'images')", names)
    for source in own_way(tmp_path / "mine"): exec(source, names)
    assert contents(tmp_path / "mine") == before, "nobody has decided anything, so no picture of one's own may move or change"
    assert [path.name for path in names["broken"]] == ["broken.jpg"] and sum(map(len, names["parts"].values())) == 80
    assert names["described"]["vocab"] == ["cat", "dog"] and names["predictor"].predict(names["parts"]["test"][0]).label in ("cat", "dog")
    assert "1 broken: broken.jpg" in capsys.readouterr().out


# ---- Bad input

def drawn(folder, **classes):
    """A folder with so many small pictures of each class; no two have the same name."""
    for label, count in classes.items():
        (folder / label).mkdir(parents=True)
        for number in range(count): Image.new("RGB", (20, 20), (number * 7 % 256, 100, 50)).save(folder / label / f"{label}_{number}.png")
    return folder


def test_an_unknown_network_gets_the_nearest_names_each_once(tmp_path):
    dls = image_dataloaders(image_files(drawn(tmp_path, cat=20, dog=20)), parent_label, size=32, cache="memory")
    with pytest.raises(ValueError, match="'resnet19'.*did you mean resnet18 or") as raised: vision_learner(dls, "resnet19")
    names = re.findall(r"[\w.]*net\w*", str(raised.value).split("did you mean")[1].split("?")[0])
    assert len(names) == len(set(names)) == 3


def test_one_class(tmp_path):
    with pytest.raises(ValueError, match="all 12 images have the label 'cat': expected two classes or more"):
        image_dataloaders(image_files(drawn(tmp_path, cat=12)), parent_label)


def test_the_doctor_names_a_single_class():
    import torch

    from lessonlib.data import Batches, DataLoaders
    from lessonlib.doctor import doctor

    batches = Batches(torch.rand(60, 3, 32, 32), torch.zeros(60, dtype=torch.int64), batch_size=20)
    problems = doctor(DataLoaders(batches, batches), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 2))).problems
    assert problems.value.str.contains("every label is 0").any()


def test_three_pictures(tmp_path):
    with pytest.raises(ValueError, match="classes with fewer than two images: 'dog'; expected one to train with and one to validate with"):
        image_dataloaders(image_files(drawn(tmp_path, cat=2, dog=1)), parent_label)


def test_a_few_pictures_that_fall_on_one_side(tmp_path):
    files = image_files(drawn(tmp_path, cat=3, dog=3))
    with pytest.raises(ValueError, match="validation set is empty, all 6 images.*6 images are too few to train and judge with"):
        image_dataloaders(files, parent_label, valid_pct=1e-9)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_only_unreadable_files(tmp_path, cache):
    files = image_files(drawn(tmp_path, cat=20, dog=20))
    for path in files: path.write_bytes(b"half a picture")
    assert verify_images(files) == files
    with pytest.raises(ValueError, match=r"none of the 40 files can be read as an image \(cat_0.png, .*37 more\). The first problem: .*png is not"):
        image_dataloaders(files, parent_label, cache=cache)


FORBIDDEN = """
import os, sys
from pathlib import Path
from lessonlib.data import image_files, parent_label, verify_images
from lessonlib.vision import image_dataloaders
folder = Path(sys.argv[1])
image_dataloaders(image_files(folder / "good"), parent_label, size=16, cache="memory")  # whatever has to be imported is imported as root
verify_images(image_files(folder / "good"))
if os.geteuid() == 0: os.setuid(65534)  # root may read everything: go on as nobody
print("forbidden:", *[path.name for path in verify_images(image_files(folder / "good"))])
image_dataloaders(image_files(folder / "good"), parent_label, size=16, cache="memory")
try: image_files(folder)
except PermissionError as problem: print(f"{type(problem).__name__}: {problem}")
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions, chmod does not take them away")
def test_without_permission():
    """By a real process that may not read two files and one folder, also where the tests run as root."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)  # pytest's own folders are closed to others
        folder = Path(place, "pictures")
        drawn(folder / "good", cat=20, dog=20)
        drawn(folder / "locked", cat=2)
        for label, number in (("cat", 3), ("dog", 4)): os.chmod(folder / "good" / label / f"{label}_{number}.png", 0)
        os.chmod(folder / "locked", 0)
        done = subprocess.run([sys.executable, "-c", FORBIDDEN, folder], capture_output=True, text=True, cwd=place)
        os.chmod(folder / "locked", 0o755)
    assert done.returncode == 0, done.stderr
    assert "forbidden: cat_3.png dog_4.png" in done.stdout
    assert "Left out 2 of 40 files" in done.stdout and "2 of them you may not read: change their permissions" in done.stdout
    assert re.search(r"PermissionError: .*you may not look into this folder.*chmod u\+rx.*locked", done.stdout)


# ---- A hundred thousand files

def test_few_results_wait_at_a_time():
    begun = []
    results = _thread_map(lambda number: begun.append(number) or number, range(10_000), 4)
    assert next(results) == 0 and len(begun) <= 16 * 4
    assert [*results] == list(range(1, 10_000)) and len(begun) == 10_000


def test_an_error_cancels_what_has_not_begun():
    begun = []

    def fails(number):
        begun.append(number)
        if number == 5: raise OSError("the fifth")
        return number

    with pytest.raises(OSError, match="the fifth"): list(_thread_map(fails, range(10_000), 2))
    assert len(begun) <= 6 + 16 * 2


def own_memory():
    """MB that belong to this process alone; pages of mapped files, which the system can take back at any time, do not count."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"RssAnon:\s+(\d+) kB", text)[1]) / 1024


class Watched:
    """The highest growth of this process's memory during a `with` block, in MB."""
    def __enter__(self):
        self.start, self.grown, self.stopped = own_memory(), 0.0, threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def look(self):
        while not self.stopped.is_set():
            self.grown = max(self.grown, own_memory() - self.start)
            time.sleep(0.01)

    def __exit__(self, *error):
        self.stopped.set()
        self.thread.join()


@pytest.fixture(scope="module")
def very_many(tmp_path_factory):
    """A hundred thousand small pictures in two classes: links to one file each, for a hundred thousand files would take a minute to write."""
    folder = tmp_path_factory.mktemp("many")
    for label in "ab":
        (folder / label).mkdir()
        first = folder / label / f"{label}0.png"
        Image.new("RGB", (2, 2)).save(first)
        for number in range(1, 50_000): os.link(first, f"{folder}/{label}/{label}{number}.png")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the memory of a process is read from /proc, which only Linux has")
def test_a_hundred_thousand_files(very_many, monkeypatch, capfd):
    """Checked with a progress bar, a few at a time: what grows is the list of names. (All at once took 200 MB more.)"""
    files = image_files(very_many)
    assert len(files) == 100_000
    with Watched() as checking: assert verify_images(files) == []
    pixels = vision._read_square(files[0], 64, "crop")
    monkeypatch.setattr(vision, "_read_square", lambda *arguments, **options: pixels.copy())  # decoding is not what is measured
    with Watched() as decoding: dls = image_dataloaders(files, parent_label, size=64, cache="none")
    bars = capfd.readouterr().err
    assert re.search(r"checking images: +\d+%", bars) and re.search(r"decoding training images: +\d+%", bars)
    assert checking.grown < 100 and decoding.grown < 200  # all pictures together would be 1200 MB
    assert len(dls.train_files) + len(dls.valid_files) == 100_000 and next(iter(dls.train))[0].shape == (64, 3, 64, 64)

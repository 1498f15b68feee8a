"""Lesson 08 as a lesson: what it teaches, and that it runs on the real set's layout by changing one word."""
import re
from pathlib import Path

import nbformat
import pytest

LESSON = Path(__file__).parents[1] / "nbs" / "lessons" / "08_vision.ipynb"
CELLS = nbformat.read(LESSON, as_version=4).cells
HEADINGS = [line for cell in CELLS if cell.cell_type == "markdown" for line in cell.source.splitlines() if re.match("#{1,3} ", line)]


def core():
    """The code cells of the core: all before the first section that goes deeper."""
    for cell in CELLS:
        if cell.cell_type == "markdown" and cell.source.startswith("## Going deeper"):
            return
        if cell.cell_type == "code":
            yield cell.source


def text_under(heading):
    """The Markdown from a heading up to the next of the same level or a higher one."""
    text = "\n\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
    match = re.search(rf"^(#+) {re.escape(heading)}.*?\n(.*?)(?=^#{{1,2}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"no heading {heading!r}"
    return match[2]


TOPICS = {  # heading: words that must stand under it
    "The same with pretrained weights": ["pretrained model", "transfer learning", "fine-tuning"],
    "Body and head": ["head", "body", "Why it helps"],
    "Freezing and unfreezing": ["freeze", "unfreezing", "Batch-norm", "`fine_tune(epochs, lr)`"],
    "The learning-rate finder": ["How to read it"],
    "One-cycle": ["Smith 2018"],
    "Early stopping reconsidered": ["one-cycle", "train *again*"],
    "Discriminative learning rates": ["slice(low, high)"],
    "Presizing": ["interpolation"],
    "Crop, pad, squish": ["random crop", "When which?", "Must the size be 224?"],
    "Augmentation on a slider": ["for each item", "for each batch", "When an augmentation is wrong"],
    "Deeper networks, and their price": ["0.0602", "0.0480"],
    "Labels by a regular expression": ["\\d+", "\\."],
    "The four things a loader must know": ["kinds of things", "items", "label", "split"],
    "Mixed precision": ["16 bits"],
    "How few images are enough?": ["recorded", "five seeds"],
    "What the pretraining had already seen": ["three are cats", "six are dogs"],
    "Not only classes": ["Segmentation", "Detection", "Regression"],
    "Sound and time series as images": ["spectrogram", "time series"],
}


@pytest.mark.parametrize("heading", TOPICS)
def test_topic_is_taught_under_its_heading(heading):
    text = text_under(heading)
    assert [word for word in TOPICS[heading] if word not in text] == []


def test_the_data_set_is_named_in_one_place():
    assigned = [source for source in core() if re.search(r"^DATA = ", source, re.MULTILINE)]
    assert len(assigned) == 1 and 'DATA = "pet_sketches"' in assigned[0]
    elsewhere = "\n".join(source for source in core() if source != assigned[0])
    assert not re.search(r'"pets?(_sketches)?"', elsewhere.replace('DATA != "pet_sketches"', "")), "another cell names the data set"


def test_story_uses_the_installed_module_only():
    """Classes of the notebook and of the module must not meet: the story ends before the first definition that is exported."""
    assert not [source for source in core() if source.startswith("#| export")]


CATS = ("Abyssinian Bengal Birman Bombay British_Shorthair Egyptian_Mau Maine_Coon Persian Ragdoll Russian_Blue Siamese Sphynx").split()
DOGS = ("american_bulldog american_pit_bull_terrier basset_hound beagle boxer chihuahua english_cocker_spaniel english_setter german_shorthaired "
        "great_pyrenees havanese japanese_chin keeshond leonberger miniature_pinscher newfoundland pomeranian pug saint_bernard samoyed "
        "scottish_terrier shiba_inu staffordshire_bull_terrier wheaten_terrier yorkshire_terrier").split()


def write_small_pets(folder, each=12):
    """A folder laid out like the Oxford-IIIT Pet set: 37 breeds in images/, with some .mat files among them, and annotations/."""
    import numpy as np
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(0)
    for place in ("images", "annotations/trimaps", "annotations/xmls"): (folder / place).mkdir(parents=True)
    for breed in CATS + DOGS:
        colour = rng.integers(0, 200, 3)
        for number in range(1, each + 1):
            (width, height), (left, top) = rng.integers(90, 200, 2), rng.integers(5, 40, 2)
            image = Image.new("RGB", (int(width), int(height)), tuple(int(value) for value in rng.integers(150, 255, 3)))
            shape = ImageDraw.Draw(image)
            (shape.polygon if breed in CATS else shape.ellipse)((int(left), int(top), int(left) + 50, int(top) + 45), fill=tuple(map(int, colour)))
            image.save(folder / "images" / f"{breed}_{number}.jpg")
            Image.new("L", image.size, 2).save(folder / "annotations" / "trimaps" / f"{breed}_{number}.png")
        (folder / "annotations" / "xmls" / f"{breed}_1.xml").write_text("<annotation/>")
    for breed in CATS[:3]: (folder / "images" / f"{breed}_100.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    (folder / "annotations" / "list.txt").write_text("#Image CLASS-ID SPECIES BREED ID\n")
    (folder / ".lessonlib-complete").touch()


def test_another_word_is_all_that_the_real_set_needs(home, capsys):
    """The whole core, every cell of it, on 37 breeds: only DATA is changed."""
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    write_small_pets(home / "pets")
    names = {"__name__": "lesson"}
    for source in core():
        exec(compile(source.replace('DATA = "pet_sketches"', 'DATA = "pets"'), "lesson 08", "exec"), names)
        plt.close("all")
    assert names["DATA"] == "pets" and len(names["breeds"]) == 37 and len(names["every_file"]) == 37 * 12
    assert names["pets"].vocab == ["cat", "dog"] and all("annotations" not in str(file) for file in names["every_file"])
    assert (home / "cat_or_dog.safetensors").is_file()
    assert "trained on pictures grey" in capsys.readouterr().out

"""What all tests share: a cache of their own, and the one run of every notebook that the course and the tests have in common."""
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# A deadline for each example would test the machine's load, not the code.
settings.register_profile("lessonlib", deadline=None)
settings.load_profile("lessonlib")

# A process that was started in the background ignores Ctrl-C, but the tests of interruptions need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The tests never touch the user's cache or answers, unless told where to work.
os.environ.setdefault("LESSONLIB_HOME", str(ROOT / "_build" / "home"))


@pytest.fixture(scope="session")
def records(request):
    """Every notebook executed once, in order, on a fresh kernel; a run that still holds is reused. By stem."""
    from lessonlib.cli import course_notebooks, run_course, scoreboard

    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():  # the progress bar is for the eye
        ran = run_course(course_notebooks(ROOT, library=True), ROOT, reuse=True)
        print(f"\n{scoreboard(ran)}")
    return {record.name: record for record in ran}


@pytest.fixture(scope="session")
def clean_copy(tmp_path_factory):
    """A copy of what git would hold of the working tree: no build folders, no caches."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    folder = tmp_path_factory.mktemp("clone") / "lessonlib"
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty LESSONLIB_HOME for one test."""
    monkeypatch.setenv("LESSONLIB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def threes_and_sevens():
    """Training and validation set: rows (n, 784) in [0, 1] and targets (n, 1), 1 for a 3; all 3s come first. Not to be changed."""
    import torch

    from lessonlib.data import get_data, image_files, load_images

    path, found = get_data("mnist_sample"), []
    for part in ("train", "valid"):
        images = [load_images(image_files(path / part / digit)) for digit in "37"]
        targets = torch.cat([torch.ones(len(images[0]), 1), torch.zeros(len(images[1]), 1)])
        found.append((torch.cat(images).view(len(targets), -1) / 255, targets))
    return found


@pytest.fixture(scope="session")
def photos():
    """A folder with 400 real photographs of cats in cat/ and 400 of dogs in dog/, which are not part of the repository."""
    named = os.environ.get("LESSONLIB_TEST_PHOTOS")
    folder = Path(named) if named else ROOT.parent / "shared" / "data" / "photos"
    if not (folder / "cat").is_dir():
        if named: pytest.fail(f"LESSONLIB_TEST_PHOTOS={named}: there is no folder cat/ in it")
        pytest.skip("no photographs here: put cat/ and dog/ in a folder and name it in LESSONLIB_TEST_PHOTOS")
    return folder


@pytest.fixture(scope="session")
def pets_model(tmp_path_factory):
    """The file of a small exported model of two drawn breeds, and beside it twelve drawings of each in Siamese/ and beagle/."""
    from lessonlib.data import image_files, parent_label
    from lessonlib.sketches import draw_pet
    from lessonlib.vision import image_dataloaders, vision_learner

    folder = tmp_path_factory.mktemp("pets")
    for breed in ("Siamese", "beagle"):
        (folder / breed).mkdir()
        for number in range(12): draw_pet(breed, number).save(folder / breed / f"{breed}_{number}.jpg")
    dls = image_dataloaders(image_files(folder), parent_label, size=48, batch_size=8)
    learn = vision_learner(dls, show=False, precision="float32")
    learn.fine_tune(2)
    return learn.export(folder / "pets.safetensors")

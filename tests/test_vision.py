"""How images get in: what a person sees, sizes, labels, the split, decoding once, mini-batches, and what is refused."""
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from lessonlib.data import RegexLabeller, image_files, parent_label, random_split
from lessonlib.vision import Augment, ImageDataLoaders, image_dataloaders, prepare_image, split_by_group

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
quiet = partial(image_dataloaders, cache="memory")


def painted(width=40, height=30, seed=0):
    """A picture without symmetry: a random background, a disc on the left, a bar at the bottom."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), tuple(rng.integers(100, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    draw.ellipse((2, 2, width // 2, height // 2), fill=tuple(rng.integers(0, 100, 3).tolist()))
    draw.rectangle((width // 3, height - height // 5, width, height), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


@pytest.fixture
def folder(tmp_path):
    """Sixty pictures, some PNG and some JPEG, in a/ and b/, of many shapes."""
    for number in range(60):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.{('png', 'jpg')[number % 3 == 0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        painted(30 + number % 7 * 5, 30 + number % 5 * 6, number).save(path)
    return tmp_path / "images"


@pytest.fixture
def files(folder):
    return image_files(folder)


def as_bytes(pixels):
    """Floats from 0 to 1 as an array (h, w, 3) of uint8."""
    return (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


# What a person sees

def two_halves(mode, left, right, **options):
    image = Image.new(mode, (8, 8), left)
    image.paste(right, (4, 0, 8, 8))
    return image, options


def palette(transparent):
    image = Image.new("P", (8, 8), 3)
    image.putpalette([0, 0, 0, 9, 9, 9, *GREEN, *RED])
    image.paste(2, (4, 0, 8, 8))
    return image, {"transparency": 2} if transparent else {}


def grey_numbers(values, dtype):
    return Image.fromarray(np.repeat(np.array([values], dtype), 8, 0).repeat(4, 1)), {}


KINDS = {  # file name: picture with its options, colours of the left and right half
    "grey.png": (two_halves("L", 10, 200), (10,) * 3, (200,) * 3),
    "bits.png": (two_halves("1", 0, 1), (0,) * 3, WHITE),
    "grey_alpha.png": (two_halves("LA", (10, 255), (10, 0)), (10,) * 3, WHITE),
    "half_transparent.png": (two_halves("RGBA", (255, 0, 0, 255), (0, 0, 0, 128)), RED, (127,) * 3),
    "hidden_colour.png": (two_halves("RGBA", (0, 0, 255, 255), (0, 255, 0, 0)), BLUE, WHITE),
    "palette.png": (palette(False), RED, GREEN),
    "palette_transparent.png": (palette(True), RED, WHITE),
    "palette.gif": (palette(False), RED, GREEN),
    "palette_transparent.gif": (palette(True), RED, WHITE),
    "one_colour_transparent.png": (two_halves("RGB", RED, GREEN, transparency=GREEN), RED, WHITE),
    "grey_transparent.png": (two_halves("L", 10, 200, transparency=200), (10,) * 3, WHITE),
    "sixteen.png": (grey_numbers([0x1234, 0xFF00], np.uint16), (0x12,) * 3, WHITE),
    "sixteen.tif": (grey_numbers([0x1234, 0xFF00], np.uint16), (0x12,) * 3, WHITE),
    "sixteen.pgm": (grey_numbers([0x0034, 0xFF00], np.uint16), (0,) * 3, WHITE),
    "integers.tif": (grey_numbers([0x12345678, 0x7F000000], np.int32), (0x24,) * 3, (254,) * 3),
    "small_integers.tif": (grey_numbers([10, 200], np.int32), (10,) * 3, (200,) * 3),
    "floats.tif": (grey_numbers([0.2, 1.0], np.float32), (51,) * 3, WHITE),
    "cmyk.tif": (two_halves("CMYK", (0, 255, 255, 0), (255, 0, 255, 0)), RED, GREEN),
    "cmyk.jpg": (two_halves("CMYK", (0, 255, 255, 0), (255, 0, 255, 0), quality=100), RED, GREEN),
    "colour.webp": (two_halves("RGBA", (255, 0, 0, 255), (0, 255, 0, 0), lossless=True), RED, WHITE),
    "colour.bmp": (two_halves("RGB", RED, GREEN), RED, GREEN),
}


@pytest.mark.parametrize("name", KINDS)
def test_files_come_out_as_a_person_sees_them(name, tmp_path):
    (image, options), left, right = KINDS[name]
    image.save(tmp_path / name, **options)
    expected = np.empty((8, 8, 3), np.uint8)
    expected[:, :4], expected[:, 4:] = left, right
    found = as_bytes(prepare_image(tmp_path / name, 8))
    assert np.abs(found.astype(int) - expected).max() <= (6 if name.endswith("jpg") else 1), found[0]
    with Image.open(tmp_path / name) as opened: assert np.array_equal(as_bytes(prepare_image(opened, 8)), found)


def test_a_palette_with_alpha_lies_on_white():
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0)).convert("PA")
    assert (prepare_image(image, 8) == 1).all()


TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
         6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_may_be_held_in_any_way(orientation, suffix, tmp_path):
    """The file holds the picture as the sensor saw it, and a note; what we read is the picture."""
    picture, exif = painted(40, 24), Image.Exif()
    exif[0x0112] = orientation
    seen = picture if orientation == 1 else picture.transpose(TURNS[orientation])
    seen.save(tmp_path / f"a.{suffix}", exif=exif, **({"quality": 95} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}))
    expected, found = (as_bytes(prepare_image(item, 16, "squish")).astype(int) for item in (picture, tmp_path / f"a.{suffix}"))
    assert np.abs(expected - found).mean() < (4 if suffix == "jpg" else 0.001)


def test_damaged_exif_does_not_spoil_an_image(tmp_path):
    painted().save(tmp_path / "a.jpg", exif=b"Exif\x00\x00nonsense", quality=95)
    assert prepare_image(tmp_path / "a.jpg", 16).shape == (3, 16, 16)


# One size

def test_crop_takes_the_middle():
    image = Image.new("RGB", (30, 10), RED)
    image.paste(GREEN, (10, 0, 20, 10))
    assert (as_bytes(prepare_image(image, 10)) == GREEN).all()
    assert (as_bytes(prepare_image(image.transpose(Image.Transpose.ROTATE_90), 10)) == GREEN).all()


def test_squish_keeps_everything():
    image = Image.new("RGB", (32, 8), RED)
    image.paste(GREEN, (16, 0, 32, 8))
    found = as_bytes(prepare_image(image, 16, "squish"))
    assert (found[:, :7] == RED).all() and (found[:, 9:] == GREEN).all()


def test_pad_mirrors_what_is_there():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    found = as_bytes(prepare_image(pixels, 10, "pad"))
    assert np.array_equal(found[2:8], pixels) and np.array_equal(found[:2], pixels[1::-1]) and np.array_equal(found[8:], pixels[:-3:-1])
    assert np.array_equal(as_bytes(prepare_image(pixels.transpose(1, 0, 2).copy(), 10, "pad")), found.transpose(1, 0, 2))


@pytest.mark.parametrize("resize", ["crop", "pad", "squish"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 5), (500, 333), (64, 64)])
def test_every_shape_becomes_a_square(shape, resize):
    pixels = np.full((*shape, 3), 77, np.uint8)
    found = prepare_image(pixels, 16, resize)
    assert found.shape == (3, 16, 16) and found.dtype == torch.float32 and (as_bytes(found) == 77).all()


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.sampled_from(["crop", "pad", "squish"]))
@settings(max_examples=40)
def test_no_new_extremes_from_resizing(height, width, size, resize):
    pixels = np.random.default_rng(height * 61 + width).integers(50, 200, (height, width, 3), dtype=np.uint8)
    found = as_bytes(prepare_image(pixels, size, resize))
    assert found.shape == (size, size, 3) and found.min() >= pixels.min() and found.max() <= pixels.max()


# One image from anywhere

def test_every_kind_of_item_gives_the_same_pixels(tmp_path):
    image = painted(50, 40)
    image.save(tmp_path / "a.png")
    pixels = np.asarray(image)
    expected = prepare_image(tmp_path / "a.png", 24)
    tensor = torch.tensor(pixels).permute(2, 0, 1)
    for item in (str(tmp_path / "a.png"), image, pixels, tensor, tensor / 255, pixels / 255, (tmp_path / "a.png").read_bytes(),
                 image.convert("RGBA"), np.dstack([pixels, np.full((40, 50), 255, np.uint8)]), pixels[:, ::-1][:, ::-1]):
        assert torch.equal(prepare_image(item, 24), expected), type(item)
    assert torch.equal(prepare_image(expected, 24), expected), "an image that is prepared stays as it is"


def test_grey_items():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    expected = np.repeat(grey[:, :, None], 3, 2)
    for item in (grey, grey[:, :, None], torch.tensor(grey), torch.tensor(grey)[None], Image.fromarray(grey)):
        assert np.array_equal(as_bytes(prepare_image(item, 8)), expected)


@pytest.fixture(scope="module")
def server():
    """A web server of this computer: an image, a page, an image that is far too large, an error."""
    buffer = io.BytesIO()
    painted(50, 40).save(buffer, "PNG")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, kind, content = {"/a.png": (200, "image/png", buffer.getvalue()),
                                     "/image_named_wrongly": (200, "text/plain", buffer.getvalue()),
                                     "/page": (200, "text/html", b"<html><img src=a.png></html>"),
                                     "/empty": (200, "image/png", b""), "/huge": (200, "image/png", b"\0" * (21 * 2**20)),
                                     "/broken": (500, "text/html", b"oh")}.get(self.path, (404, "text/html", b"not here"))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            try: self.wfile.write(content)
            except OSError: pass  # the other side has heard enough

        def log_message(self, *args): pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


@pytest.fixture
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")


def test_images_from_the_network(server, no_proxy):
    for name in ("a.png", "image_named_wrongly"):
        assert torch.equal(prepare_image(f"{server}/{name}", 24), prepare_image(painted(50, 40), 24))


@pytest.mark.parametrize("name, error, words", [
    ("page", ValueError, "is not an image: the server sent 28 bytes of text/html"), ("empty", ValueError, "is not an image"),
    ("huge", ValueError, "larger than 20 MB"), ("gone", ValueError, "answers 404"), ("broken", ConnectionError, "500")])
def test_addresses_that_are_no_images(server, no_proxy, name, error, words):
    with pytest.raises(error, match=words): prepare_image(f"{server}/{name}", 24)


def test_no_network(no_proxy):
    with pytest.raises(ConnectionError, match="check the network"): prepare_image("http://127.0.0.1:9/a.png", 24)
    with pytest.raises(ValueError, match="no address of an image"): prepare_image("http://", 24)


@pytest.mark.parametrize("item, error, words", [
    (np.zeros((3, 8, 8), np.uint8), ValueError, r"shape \(3, 8, 8\).*transpose\(1, 2, 0\)"),
    (np.zeros((2, 8, 8, 3), np.uint8), ValueError, "one image"),
    (np.zeros((0, 8), np.uint8), ValueError, "one image"),
    (torch.zeros(8, 8, 3), ValueError, "one image"), (np.zeros((8, 8)) - 1, ValueError, "0 to 1"),
    (np.full((8, 8), np.nan), ValueError, "0 to 1"), (np.zeros((8, 8), np.int64), TypeError, "int64"), (None, TypeError, "NoneType"),
    (b"no image", OSError, "not a readable image"), ("nowhere.jpg", FileNotFoundError, "nowhere")])
def test_items_that_are_refused(item, error, words):
    with pytest.raises(error, match=words): prepare_image(item, 8)


@pytest.mark.parametrize("size", [0, -1, 1.5, "64", None, True, (8, 8)])
def test_sizes_that_are_refused(size, files):
    for call in (partial(prepare_image, painted()), partial(image_dataloaders, files, parent_label)):
        with pytest.raises(ValueError, match="size=.*whole number of 1 or more"): call(size=size)


@pytest.mark.parametrize("options, error, words", [
    ({"resize": "stretch"}, ValueError, "crop, pad, squish"), ({"cache": "ram"}, ValueError, "'auto', 'memory', 'disk', 'none' or a folder"),
    ({"cache": 3}, ValueError, "cache=3"), ({"batch_size": 0}, ValueError, "batch_size=0"), ({"valid_pct": 0}, ValueError, "between 0 and 1"),
    ({"valid_pct": 20}, ValueError, "0.2 for 20 per cent"), ({"presize": 32, "size": 64}, ValueError, "presize=32 is smaller than size=64"),
    ({"presize": 0}, ValueError, "presize=0"), ({"augment": "flip"}, TypeError, "augment is 'flip'"), ({"augment": Augment}, TypeError, "augment is"),
    ({"augment": Augment(32)}, ValueError, r"images of 32 pixels.*size=64: try Augment\(64")])
def test_options_that_are_refused(options, error, words, files):
    with pytest.raises(error, match=words): image_dataloaders(files, parent_label, **options)


# Labels

def test_labels_of_every_kind(files):
    by_folder = quiet(files, parent_label, size=16)
    assert by_folder.vocab == ["a", "b"] and set(by_folder.train_labels) == {"a", "b"}
    names = [parent_label(path) for path in files]
    for labels in (names, tuple(names), np.array(names), iter(names)):
        assert quiet(files, labels, size=16).valid_labels == by_folder.valid_labels
    by_pattern = quiet(files, RegexLabeller(r"/(.)/\d+\.\w+$"), size=16)
    assert torch.equal(by_pattern.train.targets, by_folder.train.targets)
    by_bool = quiet(files, lambda path: parent_label(path) == "b", size=16)
    assert by_bool.vocab == ["False", "True"] and torch.equal(by_bool.train.targets, by_folder.train.targets)
    assert set(by_bool.valid_labels) == {True, False}
    numbers = [10 if name == "b" else 9 for name in names]
    for labels in (numbers, np.array(numbers), torch.tensor(numbers), [float(number) for number in numbers], [np.int8(number) for number in numbers]):
        assert quiet(files, labels, size=16).vocab == ["9", "10"], "numbers are sorted as numbers"


def test_a_table_of_labels(files):
    import pandas as pd

    table = pd.DataFrame({"file": [str(path) for path in files], "label": [parent_label(path) for path in files]}, index=range(100, 160))
    assert quiet(table.file, table.label, size=16).vocab == ["a", "b"]
    table.loc[107, "label"] = None
    with pytest.raises(ValueError, match=f"1 of 60 files have no label: {files[7]}"): quiet(table.file, table.label)


@pytest.mark.parametrize("labels, error, words", [
    (lambda path: "pet", ValueError, "all 60 images have the label 'pet'"),
    (lambda path: path.stem, ValueError, r"fewer than two images: .* and 57 more"),
    (["a"] * 59, ValueError, "59 labels for 60 files"), (["a", "b"] * 29 + ["b", None], ValueError, "1 of 60 files have no label.*None"),
    (["a", "b"] * 29 + ["b", float("nan")], ValueError, "nan is no label"), (["a", "b"] * 29 + ["b", " "], ValueError, "' ' is no label"),
    ([0.5, 1.5] * 30, ValueError, "0.5 is no label"), (["a", 1] * 30, TypeError, "several kinds"), ("ab" * 30, TypeError, "expected a function"),
    (None, TypeError, "labels is None"), ({}, TypeError, "labels is {}"), ([["a"], ["b"]] * 30, ValueError, r"\['a'\] is no label"),
    (RegexLabeller(r"^(\d\d)\."), ValueError, r"10 of 60 files have no label: .*0.jpg.* and 7 more.*does not match"),
    ({}.__getitem__, ValueError, "60 of 60 files have no label.*KeyError")])
def test_labels_that_are_refused(labels, error, words, files):
    with pytest.raises(error, match=words): image_dataloaders(files, labels)


def test_files_that_are_refused(files):
    with pytest.raises(ValueError, match="empty list"): image_dataloaders([], parent_label)
    with pytest.raises(TypeError, match="single path"): image_dataloaders(files[0].parent, parent_label)
    with pytest.raises(ValueError, match=f"1 files are in the list more than once .*{files[0].name}"):
        image_dataloaders([*files, files[0]], parent_label)
    again = files[0].parent / ".." / files[0].parent.name / files[0].name
    with pytest.raises(ValueError, match="more than once"): image_dataloaders([*files, again], parent_label)


# The split

names = st.lists(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=12), min_size=2, max_size=60, unique=True)


def valid_names(paths, **options):
    from lessonlib.vision import _split_rows

    train, valid = _split_rows(paths, options.get("valid_pct", 0.2), options.get("seed", 42), options.get("split"))
    assert sorted(train + valid) == list(range(len(paths)))
    return {paths[row].name for row in valid}


@given(names, st.data(), st.integers(-5, 100), st.floats(0.05, 0.9))
@settings(max_examples=60)
def test_deleting_and_adding_files_moves_no_other(found, data, seed, valid_pct):
    kept = data.draw(st.lists(st.sampled_from(found), unique=True))
    added = data.draw(names)
    first = valid_names([Path("a") / name for name in found], seed=seed, valid_pct=valid_pct)
    second = valid_names([Path("elsewhere/b") / name for name in dict.fromkeys(added + kept)], seed=seed, valid_pct=valid_pct)
    assert first & set(kept) == second & set(kept)


def test_the_split_is_the_same_everywhere():
    """Written down once: another computer, Python or hash seed must give the same."""
    assert valid_names([Path(f"{number}.jpg") for number in range(30)]) == {"10.jpg", "13.jpg", "19.jpg", "24.jpg"}
    accent = [Path(unicodedata.normalize(form, "chaton_é_7.jpg")) for form in ("NFC", "NFD")]
    sides = [{bool(valid_names([path, Path("x")], seed=seed) - {"x"}) for path in accent} for seed in range(20)]
    assert accent[0] != accent[1] and all(len(side) == 1 for side in sides)


def test_about_the_right_share_and_another_for_another_seed():
    paths = [Path(f"{number}.jpg") for number in range(4000)]
    first, second = valid_names(paths), valid_names(paths, seed=1)
    assert abs(len(first) / 4000 - 0.2) < 0.02 and abs(len(first & second) / 4000 - 0.04) < 0.015
    assert valid_names(paths, valid_pct=0.1) < first, "a smaller share is a part of a larger one"


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 1000)), unique=True, min_size=1), st.integers(0, 50))
@settings(max_examples=40)
def test_groups_stay_together(items, seed):
    paths = [Path(f"{group}_{number}.jpg") for group, number in items]
    valid = valid_names(paths, split=split_by_group(lambda path: path.stem.split("_")[0], 0.4, seed))
    for group in {path.stem.split("_")[0] for path in paths}:
        inside = {path.name for path in paths if path.stem.split("_")[0] == group}
        assert inside <= valid or not inside & valid


def test_a_split_that_is_given(files):
    train, valid = random_split(60, 0.3, seed=1)
    for split in ((train, valid), [train.tolist(), valid.tolist()], (train.numpy(), valid.numpy())):
        dls = quiet(files, parent_label, size=16, split=split)
        assert dls.train_files == [files[row] for row in train] and dls.valid_files == [files[row] for row in valid]
    few = quiet(files, parent_label, size=16, split=(range(0, 60, 3), range(1, 60, 6)))
    assert few.train_files == files[::3] and few.valid_files == files[1::6], "not all need be used"
    by_name = quiet(files, parent_label, size=16, split=lambda path: int(path.stem) % 5 == 0)
    assert {int(path.stem) for path in by_name.valid_files} == set(range(0, 60, 5)) and len(by_name.train_files) == 48


@pytest.mark.parametrize("split, error, words", [
    (([0, 1], [1, 2]), ValueError, "1 indices twice"), (([0, 0], [1, 2]), ValueError, "twice"),
    (([0, 60], [1]), ValueError, "index 60: 60 files are numbered 0 to 59"),
    (([0, -1], [1]), ValueError, "index -1"), (([0.5], [1]), TypeError, "0.5"), (([True] * 60, [False] * 60), TypeError, "True"),
    ([0, 1, 2], TypeError, r"split is \[0, 1, 2\]"),
    ("valid", TypeError, "split is 'valid'"), (([0, 1], []), ValueError, "the validation set is empty"),
    (([], [0, 1]), ValueError, "the training set is empty"),
    (lambda path: True, ValueError, "the training set is empty"), (lambda path: False, ValueError, "the validation set is empty, all 60 images"),
    (lambda path: "valid", ValueError, "'valid': expected True for validation"), (lambda path: None, ValueError, "None: expected True"),
    (lambda path: 1 / 0, ValueError, "60 of 60 files have no side of the split.*ZeroDivisionError")])
def test_splits_that_are_refused(split, error, words, files):
    with pytest.raises(error, match=words): image_dataloaders(files, parent_label, split=split)


def test_a_class_that_is_missing_on_one_side_is_named(files):
    with pytest.warns(UserWarning, match="no image of b is in the validation set") as caught:
        quiet(files, parent_label, size=16, split=lambda path: path.parent.name == "a" and int(path.stem) < 20)
    assert caught[0].filename == __file__, "the warning points at the user's line"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet(files, parent_label, size=16)


# Files that cannot be read

@pytest.fixture
def damaged(files):
    """Damage of five kinds; the names of the files, on both sides of the split."""
    files[0].write_bytes(files[0].read_bytes()[:100])
    files[7].write_bytes(b"")
    files[20].write_text("<html>")
    files[33].unlink()
    files[45].unlink()
    files[45].mkdir()
    return [files[row] for row in (0, 7, 20, 33, 45)]


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_damaged_files_are_left_out_and_named(files, damaged, cache, home, capsys):
    for _ in range(2):
        dls = image_dataloaders(files, parent_label, size=16, batch_size=8, cache=cache)
        line = capsys.readouterr().out
        assert "Left out 5 of 60 files that cannot be read: " in line and "and 2 more" in line and line.count("\n") == 1
        assert sorted(dls.left_out) == damaged and len(dls.train_files) + len(dls.valid_files) == 55
        assert not set(damaged) & {*dls.train_files, *dls.valid_files}
        for part in (dls.train, dls.valid):
            assert [dls.vocab[target] for target in part.targets] == [path.parent.name for path in part.files] == part.labels
        for row, path in enumerate(dls.valid_files): assert torch.equal(dls.valid.batch(torch.tensor([row]))[0][0], prepare_image(path, 16))
        assert sum(len(xb) for xb, yb in dls.train) == len(dls.train_files) // 8 * 8


def test_nothing_can_be_read(tmp_path):
    files = [tmp_path / f"{number}.jpg" for number in range(20)]
    with pytest.raises(ValueError, match="none of the 20 files can be read as an image"): quiet(files, ["a", "b"] * 10)


# Decoding once

@pytest.mark.parametrize("cache", ["auto", "memory", "disk", "folder"])
def test_later_epochs_do_not_decode(folder, files, cache, home, tmp_path, capsys):
    """The files are deleted after the first epoch: whoever still decodes fails."""
    dls = image_dataloaders(files, parent_label, size=16, batch_size=8, augment=True, cache=tmp_path / "own" if cache == "folder" else cache)
    valid = [xb for xb, yb in dls.valid]
    shutil.rmtree(folder)
    for _ in range(2):
        assert sum(len(xb) for xb, yb in dls.train) == len(dls.train) * 8
        assert all(torch.equal(xb, before) for (xb, yb), before in zip(dls.valid, valid, strict=True))
    assert ("kept in memory (0 MB)" in capsys.readouterr().out) == (cache == "auto")
    assert (home / "image_cache").is_dir() == (cache == "disk") and (tmp_path / "own").is_dir() == (cache == "folder")


def test_without_a_cache_files_are_decoded_each_time(folder, files):
    dls = image_dataloaders(files, parent_label, size=16, cache="none")
    first, again = next(iter(dls.valid)), next(iter(dls.valid))
    assert torch.equal(first[0], again[0]) and "decoded in every epoch" in repr(dls)
    shutil.rmtree(folder)
    with pytest.raises(OSError): next(iter(dls.valid))


def test_large_sets_go_to_the_disk(files, home, monkeypatch, capsys):
    monkeypatch.setattr("lessonlib.vision._MEMORY", 60 * 3 * 16 * 16 - 1)
    dls = image_dataloaders(files, parent_label, size=16)
    assert "kept on the disk (0 MB)" in capsys.readouterr().out and "on the disk" in repr(dls)
    assert len(list((home / "image_cache").glob("*/pixels.raw"))) == 2


def on_disk(files, folder, **options):
    """The pixels of all files from a cache in the folder; with options the data loaders."""
    dls = image_dataloaders(files, parent_label, **{"size": 16, "cache": folder, **options})
    return torch.cat([dls.train.pixels, dls.valid.pixels]) if not options else dls


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("[!.]*/pixels.raw")}


def test_a_disk_cache_is_used_again(folder, files, tmp_path):
    cache = tmp_path / "cache"
    first, made = on_disk(files, cache), stamps(cache)
    assert len(made) == 2 and torch.equal(on_disk(files, cache), first) and stamps(cache) == made
    on_disk(files, cache, size=24)
    assert len(stamps(cache)) == 4 and not list(cache.glob(".*.partial"))


@pytest.mark.parametrize("damage", ["cut", "bytes", "note", "no note", "no pixels", "nonsense in note", "wrong rows"])
def test_a_damaged_cache_is_made_anew(files, tmp_path, damage):
    cache = tmp_path / "cache"
    first = on_disk(files, cache)
    for folder in [path.parent for path in cache.glob("*/pixels.raw")]:
        raw, note = folder / "pixels.raw", folder / "about.json"
        content, about = bytearray(raw.read_bytes()), json.loads(note.read_text())
        if damage == "cut": raw.write_bytes(content[:-5])
        if damage == "bytes":
            content[len(content) // 2] ^= 1
            raw.write_bytes(content)
        if damage == "note": note.write_text(note.read_text()[:-7])
        if damage == "no note": note.unlink()
        if damage == "no pixels": raw.unlink()
        if damage == "nonsense in note": note.write_text("[1, 2]")
        if damage == "wrong rows": note.write_text(json.dumps({**about, "rows": about["rows"][:-1]}))
    assert torch.equal(on_disk(files, cache), first)


def test_a_stale_cache_is_made_anew(files, tmp_path):
    cache = tmp_path / "cache"
    first, made = on_disk(files, cache), set(stamps(cache))
    painted(40, 40, 99).save(files[3])
    os.utime(files[3], ns=(1, 1))  # older or newer, both are another file
    second = on_disk(files, cache)
    assert (first != second).flatten(1).any(1).sum() == 1 and set(stamps(cache)) == made, "one file differs, and no second cache lies about"
    files[5].write_bytes(b"broken")
    assert on_disk(files, cache, size=16).left_out == [files[5]]


def test_writing_into_a_batch_does_not_change_the_cache(files, tmp_path):
    first = on_disk(files, tmp_path / "cache").clone()
    dls = image_dataloaders(files, parent_label, size=16, cache=tmp_path / "cache")
    dls.train.pixels.zero_()
    assert torch.equal(on_disk(files, tmp_path / "cache"), first)


def test_killed_while_writing(files, tmp_path):
    """A process dies in the middle of the cache; the next one is not misled by what it left."""
    program = ("import sys, time\nfrom pathlib import Path\nfrom lessonlib import vision\nfrom lessonlib.data import image_files, parent_label\n"
               "read = vision._Squares.read\n"
               "def slow(self, path):\n"
               "    if path == self.files[9]: print('halfway', flush=True), time.sleep(600)\n"
               "    return read(self, path)\n"
               "vision._Squares.read = slow\n"
               "vision.image_dataloaders(image_files(sys.argv[1]), parent_label, size=16, cache=Path(sys.argv[2]))\n")
    cache = tmp_path / "cache"
    process = subprocess.Popen([sys.executable, "-c", program, str(files[0].parents[1]), str(cache)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "halfway\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(cache.glob(".*.partial")) and not stamps(cache)
    dls = quiet(files, parent_label, size=16)
    assert torch.equal(on_disk(files, cache), torch.cat([dls.train.pixels, dls.valid.pixels]))
    assert not list(cache.glob(".*.partial")) and len(stamps(cache)) == 2


def test_several_at_once_build_one_cache(files, tmp_path, capfd):
    with ThreadPoolExecutor(4) as pool: found = list(pool.map(lambda _: on_disk(files, tmp_path / "cache"), range(4)))
    assert all(torch.equal(one, found[0]) for one in found) and len(stamps(tmp_path / "cache")) == 2


def test_a_disk_that_cannot_be_written(files, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot keep decoded images in .*cache='memory'"): on_disk(files, tmp_path / "file" / "cache")


def test_large_jpegs_are_decoded_smaller_for_augmented_training_only(tmp_path):
    for number in range(20): painted(900, 700, number).save(tmp_path / f"{number}.jpg", quality=95)
    files, options = image_files(tmp_path), {"size": 32, "split": (range(10), range(10, 20))}
    plain = quiet(files, ["a", "b"] * 10, **options)
    changed = quiet(files, ["a", "b"] * 10, augment=True, presize=32, **options)
    assert torch.equal(plain.train.batch(torch.tensor([0]))[0][0], prepare_image(files[0], 32))
    assert torch.equal(plain.valid.pixels, changed.valid.pixels)
    difference = (plain.train.pixels.int() - changed.train.pixels.int()).abs().float()
    assert 0 < difference.max() and difference.mean() < 1, "another decoder, and nobody can see it"


# Mini-batches

@pytest.mark.parametrize("resize", ["crop", "pad", "squish"])
@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_validation_set_and_prepare_agree_to_the_bit(files, resize, cache, home):
    dls = image_dataloaders(files, parent_label, size=20, resize=resize, cache=cache, augment=True, batch_size=5)
    xb = torch.cat([xb for xb, yb in dls.valid])
    assert torch.equal(xb, torch.stack([dls.prepare(path) for path in dls.valid_files]))
    for row, path in enumerate(dls.valid_files):
        with Image.open(path) as image: assert torch.equal(xb[row], dls.prepare(image))
    assert dls.preprocessing == {"kind": "image", "size": 20, "resize": resize} == json.loads(json.dumps(dls.preprocessing))


@pytest.mark.parametrize("batch_size", [1, 7, 16, 48, 49, 1000])
def test_batches_are_whole_and_never_none(files, batch_size):
    dls = quiet(files, parent_label, size=16, batch_size=batch_size)
    train, valid = [list(part) for part in (dls.train, dls.valid)]
    count = len(dls.train_files)
    assert len(train) == len(dls.train) == max(1, count // batch_size) and len(valid) == len(dls.valid) == -(-len(dls.valid_files) // batch_size)
    assert all(len(xb) == len(yb) == min(batch_size, count) for xb, yb in train) and sum(len(yb) for _, yb in valid) == len(dls.valid_files)
    assert all(xb.shape[1:] == (3, 16, 16) and xb.dtype == torch.float32 and yb.dtype == torch.int64 for xb, yb in train + valid)
    assert torch.equal(torch.cat([yb for _, yb in valid]), dls.valid.targets)


def test_a_new_order_each_epoch_from_the_global_generator(files):
    dls = quiet(files, parent_label, size=16, batch_size=8)
    epochs = []
    for seed in (0, None, 0):
        if seed is not None: torch.manual_seed(seed)
        epochs.append(torch.cat([xb for xb, yb in dls.train]))
    assert torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])
    found = {tuple(image.flatten().tolist()) for image in epochs[0]}
    assert len(found) == len(epochs[0]), "no image comes twice in an epoch"
    torch.manual_seed(5)
    state = torch.get_rng_state()
    list(dls.valid)
    assert torch.equal(torch.get_rng_state(), state), "validation draws nothing"


def test_images_and_labels_belong_together(files):
    dls = quiet(files, parent_label, size=16, batch_size=8)
    where = {prepare_image(path, 16).numpy().tobytes(): path.parent.name for path in files}
    for part in (dls.train, dls.valid):
        for xb, yb in part: assert [where[image.numpy().tobytes()] for image in xb] == [dls.vocab[target] for target in yb]


@pytest.mark.parametrize("presize, expected", [(None, 20), (24, 24), (16, 16)])
def test_presizing(files, presize, expected):
    dls = quiet(files, parent_label, size=16, presize=presize, augment=True, batch_size=8)
    assert dls.train.pixels.shape[1:] == (3, expected, expected) and dls.valid.pixels.shape[1:] == (3, 16, 16)
    xb, yb = next(iter(dls.train))
    assert xb.shape == (8, 3, 16, 16) and 0 <= xb.min() and xb.max() <= 1


def test_augmentation_differs_between_epochs_and_images(files):
    dls = quiet(files, parent_label, size=16, augment=Augment(16, light=0), batch_size=8)
    one = dls.train.batch(torch.zeros(6, dtype=torch.int64))[0]
    assert len({image.numpy().tobytes() for image in one}) == 6
    whole = quiet(files, parent_label, size=16, presize=16, augment=Augment(16, scale=(1, 1), ratio=(1, 1), flip=0, light=0))
    plain = quiet(files, parent_label, size=16)
    rows = torch.arange(5)
    assert (whole.train.batch(rows)[0] - plain.train.batch(rows)[0]).abs().max() < 1e-5, "an augmentation that changes nothing"


def test_transforms_of_torchvision(files):
    from torchvision.transforms import v2

    crop = v2.Compose([v2.RandomResizedCrop(16), v2.RandomHorizontalFlip()])
    dls = quiet(files, parent_label, size=16, augment=crop, batch_size=8)
    xb, yb = next(iter(dls.train))
    assert xb.shape == (8, 3, 16, 16) and xb.dtype == torch.float32 and 0 <= xb.min() and 0.5 < xb.max() <= 1
    assert len({image.numpy().tobytes() for image in dls.train.batch(torch.zeros(6, dtype=torch.int64))[0]}) == 6, "a draw for each image"
    flipped = quiet(files, parent_label, size=16, augment=v2.RandomHorizontalFlip(1.0))  # of 20 x 20: brought to the size
    assert flipped.train.batch(torch.tensor([0]))[0].shape == (1, 3, 16, 16)
    floats = v2.Compose([crop, v2.ToDtype(torch.float32, scale=True)])
    assert next(iter(quiet(files, parent_label, size=16, augment=floats, batch_size=8).train))[0].max() > 0.5
    normal = v2.Compose([floats, v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    with pytest.raises(ValueError, match="leave Normalize out"): list(quiet(files, parent_label, size=16, augment=normal).train)
    with pytest.raises(ValueError, match=r"augment made \(1, 20, 20\) of one image"):
        list(quiet(files, parent_label, size=16, augment=v2.Grayscale()).train)


def test_show_batch(files):
    import matplotlib.pyplot as plt

    dls = quiet(files, parent_label, size=16, augment=True)
    plain = quiet(files, parent_label, size=16)
    figure = dls.show_batch()
    assert len([ax for ax in figure.axes if ax.images]) == 12 and {ax.get_title() for ax in figure.axes if ax.images} == {"a", "b"}
    same = [ax for ax in dls.show_batch(unique=True).axes if ax.images]
    assert len({ax.get_title() for ax in same}) == 1 and len({ax.images[0].get_array().tobytes() for ax in same}) == 12
    assert len(dls.show_batch("valid", count=3).axes) == 3
    with pytest.raises(ValueError, match="expected 'train' or 'valid'"): dls.show_batch("test")
    with pytest.raises(ValueError, match="augment=True"): plain.show_batch(unique=True)
    plt.close("all")


def test_summary(folder, files):
    dls = quiet(files, parent_label, size=16, augment=True, batch_size=8)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    table = dls.summary().set_index("step")
    assert torch.equal(torch.get_rng_state(), state)
    assert list(dls.summary().columns) == ["step", "what", "shape", "dtype", "low", "high"]
    assert files[0].name in table.what["file"] or dls.train_files[0].name in table.what["file"]
    assert table["shape"]["resize"] == "(3, 20, 20)" and table["dtype"]["resize"] == "uint8" and table.what["resize"] == "crop to 20 x 20"
    assert table["shape"]["augment"] == "(3, 16, 16)" and table["dtype"]["augment"] == "float32"
    assert table["shape"]["mini-batch xb"] == "(8, 3, 16, 16)" and table["dtype"]["mini-batch yb"] == "int64"
    shutil.rmtree(folder)
    assert "not there any more" in dls.summary().what[0]


def test_what_it_says_of_itself(files):
    dls = quiet(files, parent_label, size=16)
    assert isinstance(dls, ImageDataLoaders) and dls.size == 16 and dls.left_out == []
    assert repr(dls) == (f"ImageDataLoaders: {len(dls.train_files)} images for training, {len(dls.valid_files)} for validation, 2 classes, "
                         "16 x 16 pixels, in memory")


# With the rest of the course

@pytest.fixture
def balls_and_boxes(tmp_path):
    """Two hundred small drawings that a small network can tell apart: red balls and blue boxes."""
    rng = np.random.default_rng(0)
    for number in range(200):
        image = Image.new("RGB", tuple(rng.integers(30, 50, 2).tolist()), tuple(rng.integers(150, 256, 3).tolist()))
        left, top = rng.integers(0, 10, 2).tolist()
        shape = (ImageDraw.Draw(image).ellipse, ImageDraw.Draw(image).rectangle)[number % 2]
        light, dark = rng.integers(150, 220).item(), rng.integers(0, 60, 2).tolist()
        shape((left, top, left + 19, top + 19), fill=((light, *dark), (*dark, light))[number % 2])
        image.save(tmp_path / f"{('ball', 'box')[number % 2]}_{number}.png")
    return image_files(tmp_path)


def small_network():
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 32), nn.ReLU(), nn.Linear(32, 2))


def test_learner_and_doctor(balls_and_boxes):
    from lessonlib.doctor import doctor
    from lessonlib.learner import Learner, accuracy

    for augment in (False, True):
        dls = quiet(balls_and_boxes, RegexLabeller(r"^(.*)_\d+"), size=24, augment=augment, batch_size=20)
        report = doctor(dls, small_network())
        assert report.problems.empty, f"{report}"
    learn = Learner(dls, small_network(), torch.nn.functional.cross_entropy, torch.optim.Adam, metrics=accuracy, show=False)
    learn.fit(5, 1e-3)
    assert learn.history.train_loss.iloc[-1] < learn.history.train_loss.iloc[0]
    preds, targets = learn.get_preds()
    assert torch.equal(targets, dls.valid.targets)
    for row in range(3):
        label, index, probs = learn.predict(dls.valid_files[row])
        assert label == dls.vocab[index] and torch.allclose(probs, preds[row].softmax(0), atol=1e-5)


def test_real_photographs(photos):
    files = image_files(photos)
    dls = quiet(files, parent_label, size=32, augment=True, batch_size=64)
    assert dls.vocab == ["cat", "dog"] and not dls.left_out and len(dls.train_files) + len(dls.valid_files) == 800
    xb, yb = next(iter(dls.train))
    assert xb.shape == (64, 3, 32, 32) and 0.3 < xb.mean() < 0.6 and yb.float().mean() not in (0, 1)
    for row in range(0, len(dls.valid_files), 40):
        path = dls.valid_files[row]
        with Image.open(path) as image: assert torch.equal(dls.prepare(path), dls.prepare(image.convert("RGB")))
        assert torch.equal(dls.valid.batch(torch.tensor([row]))[0][0], dls.prepare(path))

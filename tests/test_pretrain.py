"""Lesson 12: reading Tiny-ImageNet, training that resumes exactly, several processes, weights and their card."""
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lessonlib import pretrain as module
from lessonlib.data import Batches
from lessonlib.learner import Callback
from lessonlib.pretrain import (
    AugmentedBatches,
    Checkpoint,
    MatrixConv,
    Normalised,
    PlainBatches,
    Recipe,
    build_model,
    bundled_file,
    main,
    pets_among,
    pretrain,
    read_log,
    read_tiny_imagenet,
    top5,
    write_card,
    write_weights,
)
from lessonlib.vision import Augment

# not sorted, as in the archive
NAMES = {"n02124075": "Egyptian cat, mau", "n01443537": "goldfish, Carassius auratus", "n07873807": "pizza, pizza pie"}
TINY = Recipe(epochs=2, size=32, batch_size=8, lr=0.01, seed=5)


@pytest.fixture(autouse=True)
def one_thread():
    """Bit-equal runs need the same number of threads in every process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_jpeg(path, colour, size, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.clip(np.array(colour) + rng.integers(-60, 60, (size, size, 3)), 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=90)


def make_tiny(root, train=6, valid=4, size=32):
    """A folder laid out like the official archive: boxes, test/ and words for classes that are not in it."""
    rng = np.random.default_rng(0)
    rows = []
    for place, wnid in enumerate(NAMES):
        colour = np.roll([220, 120, 30], place)
        for number in range(train): write_jpeg(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", colour, size, rng)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("box\n")
        for _ in range(valid):
            write_jpeg(root / "val" / "images" / f"val_{len(rows)}.JPEG", colour, size, rng)
            rows.append(f"val_{len(rows)}.JPEG\t{wnid}\t0\t0\t31\t31")
    write_jpeg(root / "test" / "images" / "test_0.JPEG", (0, 0, 0), size, rng)
    (root / "wnids.txt").write_text("\n".join(NAMES) + "\n")
    (root / "words.txt").write_text("".join(f"{wnid}\t{words}\n" for wnid, words in NAMES.items()) + "n00001740\tentity\n")
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    return root


def zipped(folder, path, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file(): archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("data") / "tiny-imagenet-200")


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    return read_tiny_imagenet(tiny_folder)


@pytest.fixture
def broken(tiny_folder, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


# reading

def same_set(one, other):
    assert one.classes == other.classes
    for left, right in zip([*one.train, *one.valid], [*other.train, *other.valid], strict=True): assert torch.equal(left, right)


def test_folder_gives_images_and_classes_in_wordnet_order(tiny):
    assert tiny.classes == ["goldfish", "Egyptian cat", "pizza"]
    images, labels = tiny.train
    assert images.dtype == torch.uint8 and images.shape == (18, 3, 32, 32) and labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert tiny.valid[0].shape == (12, 3, 32, 32) and tiny.valid[1].bincount().tolist() == [4, 4, 4]
    channels = [images[labels == number].float().mean((0, 2, 3)).argmax().item() for number in range(3)]
    assert channels == [1, 0, 2]  # the colour of each class: labels belong to their images
    assert [tiny.valid[0][tiny.valid[1] == number].float().mean((0, 2, 3)).argmax().item() for number in range(3)] == [1, 0, 2]


@pytest.mark.parametrize("prefix", ["", "tiny-imagenet-200/", "a/b/"])
def test_zip_gives_the_same_as_the_folder(tiny_folder, tiny, tmp_path, prefix):
    same_set(read_tiny_imagenet(zipped(tiny_folder, tmp_path / "some.zip", prefix)), tiny)


def test_folder_around_the_folder_and_text_path(tiny_folder, tiny):
    same_set(read_tiny_imagenet(str(tiny_folder.parent)), tiny)


def test_class_without_words_keeps_its_number(broken):
    (broken / "words.txt").write_text("n01443537\tgoldfish\nnonsense without a tab\n")
    assert read_tiny_imagenet(broken).classes == ["goldfish", "n02124075", "n07873807"]
    (broken / "words.txt").unlink()
    assert read_tiny_imagenet(broken).classes == sorted(NAMES)


def test_grey_jpegs_become_three_channels(broken):
    file = broken / "train" / "n07873807" / "images" / "n07873807_0.JPEG"
    Image.open(file).convert("L").save(file)
    image = read_tiny_imagenet(broken).train[0][12]
    assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])


def spoil_wnids(root): (root / "wnids.txt").unlink()
def spoil_train(root): shutil.rmtree(root / "train")
def spoil_class(root): shutil.rmtree(root / "train" / "n07873807")
def spoil_train_image(root): (root / "train" / "n01443537" / "images" / "n01443537_3.JPEG").unlink()
def spoil_valid_image(root): (root / "val" / "images" / "val_7.JPEG").unlink()
def spoil_table(root): (root / "val" / "val_annotations.txt").unlink()
def spoil_empty_table(root): (root / "val" / "val_annotations.txt").write_text("\n")
def spoil_listed_class(root): (root / "wnids.txt").write_text("n01443537\nn02124075\n")
def spoil_jpeg(root): (path := root / "train" / "n02124075" / "images" / "n02124075_2.JPEG").write_bytes(path.read_bytes()[:300])
def spoil_empty_jpeg(root): (root / "val" / "images" / "val_2.JPEG").write_bytes(b"")
def spoil_size(root): Image.new("RGB", (16, 24)).save(root / "train" / "n07873807" / "images" / "n07873807_5.JPEG")
def spoil_pixel(root): Image.new("RGB", (1, 1)).save(root / "train" / "n07873807" / "images" / "n07873807_5.JPEG")


def spoil_table_end(root):
    path = root / "val" / "val_annotations.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:10]))


def spoil_table_line(root):
    path = root / "val" / "val_annotations.txt"
    path.write_text(path.read_text()[:-20])


INCOMPLETE = {
    spoil_wnids: "wnids.txt", spoil_train: "no training images", spoil_class: "n07873807 has 0 training images, others 6",
    spoil_train_image: "n01443537 has 5 training images, others 6", spoil_valid_image: "val/images/val_7.JPEG is missing",
    spoil_table: "val_annotations.txt", spoil_empty_table: "val_annotations.txt", spoil_listed_class: "'n07873807', which is not in wnids.txt",
    spoil_jpeg: "n02124075_2.JPEG cannot be read", spoil_empty_jpeg: "val_2.JPEG cannot be read", spoil_size: "16 x 24 pixels",
    spoil_pixel: "1 x 1 pixels", spoil_table_end: "n07873807 has 2 validation images, others 4", spoil_table_line: "not in wnids.txt",
}


@pytest.mark.parametrize("spoil", INCOMPLETE, ids=lambda spoil: spoil.__name__)
def test_incomplete_folder_is_refused_and_named(broken, tmp_path, spoil):
    spoil(broken)
    with pytest.raises(ValueError, match=INCOMPLETE[spoil]): read_tiny_imagenet(broken)
    with pytest.raises(ValueError, match=INCOMPLETE[spoil]): read_tiny_imagenet(zipped(broken, tmp_path / "broken.zip"))


def test_truncated_and_damaged_zip(tiny_folder, tmp_path):
    whole = zipped(tiny_folder, tmp_path / "whole.zip").read_bytes()
    cut = tmp_path / "cut.zip"
    cut.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match="not a whole zip"): read_tiny_imagenet(cut)
    flipped = bytearray(whole)
    place = whole.index(b"n02124075_2.JPEG") + 200  # inside that image's content
    flipped[place:place + 8] = bytes(255 - byte for byte in flipped[place:place + 8])
    cut.write_bytes(flipped)
    with pytest.raises(ValueError, match="n02124075_2.JPEG cannot be read"): read_tiny_imagenet(cut)
    cut.write_text("this is a web page, not an archive")
    with pytest.raises(ValueError, match="not a whole zip"): read_tiny_imagenet(cut)
    with pytest.raises(FileNotFoundError, match="none.zip does not exist"): read_tiny_imagenet(tmp_path / "none.zip")


def test_two_classes_are_enough_and_one_size_is_kept(tmp_path):
    wnids = list(NAMES)[:2]
    root = make_tiny(tmp_path / "data", train=3, valid=2, size=20)
    shutil.rmtree(root / "train" / "n07873807")
    (root / "wnids.txt").write_text("\n".join(wnids))
    rows = [row for row in (root / "val" / "val_annotations.txt").read_text().splitlines() if "n07873807" not in row]
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows))
    data = read_tiny_imagenet(root)
    assert len(data.classes) == 2 and data.train[0].shape == (6, 3, 20, 20)


# mini-batches

def at_32(epoch): return Augment(32, scale=(0.5, 1.0))


def test_epochs_depend_on_seed_and_number_only(tiny):
    def epoch(number, seed=1):
        batches = AugmentedBatches(*tiny.train, at_32, batch_size=4, seed=seed)
        batches.epoch = number
        return torch.cat([xb for xb, yb in batches])
    torch.manual_seed(0)
    first = epoch(7)
    torch.manual_seed(9)
    assert torch.equal(first, epoch(7)) and not torch.equal(first, epoch(8)) and not torch.equal(first, epoch(7, seed=2))
    assert first.shape == (16, 3, 32, 32)  # 18 images, four mini-batches of 4: two wait
    assert first.min() >= 0 and first.max() <= 1


def test_every_image_is_seen_once_and_with_its_label(tiny):
    images, labels = torch.arange(18, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32), torch.arange(18)
    plain = AugmentedBatches(images, labels, lambda epoch: Augment(32, light=0.0), batch_size=6)
    seen = [(round(255 * image.mean().item()), label.item()) for xb, yb in plain for image, label in zip(xb, yb)]
    assert sorted(seen) == [(number, number) for number in range(18)]


@pytest.mark.parametrize("world", [2, 3, 6])
def test_processes_share_what_one_sees(tiny, world):
    alone = list(AugmentedBatches(*tiny.train, at_32, batch_size=6, seed=3))
    shares = [list(AugmentedBatches(*tiny.train, at_32, batch_size=6, seed=3, rank=rank, world=world)) for rank in range(world)]
    for batch, (xb, yb) in enumerate(alone):
        for rank in range(world):
            assert torch.equal(shares[rank][batch][0], xb[rank::world]) and torch.equal(shares[rank][batch][1], yb[rank::world])


def test_batch_sizes_that_do_not_fit(tiny):
    with pytest.raises(ValueError, match="batch_size 8 cannot be shared by 3 processes: try 6"): AugmentedBatches(*tiny.train, at_32, 8, world=3)
    with pytest.raises(ValueError, match="18 images are fewer than one mini-batch of 20"): AugmentedBatches(*tiny.train, at_32, 20)


def test_plain_batches(tiny):
    batches = PlainBatches(*tiny.valid, batch_size=5)
    assert len(batches) == 3 and isinstance(batches, Batches)
    assert torch.allclose(torch.cat([xb for xb, _ in batches]), tiny.valid[0] / 255)


# the network

@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2), (3, 5, 4), (2, 7, 7), (1, 1, 6)])
@pytest.mark.parametrize("kernel, stride, padding", [(3, 1, 1), (3, 2, 1), (1, 1, 0), (1, 2, 0), (5, 3, 2), (2, 2, 1)])
def test_matrix_conv_is_the_convolution(shape, kernel, stride, padding):
    count, height, width = shape
    if min(height, width) + 2 * padding < kernel: pytest.skip("no place for the kernel")
    torch.manual_seed(0)
    usual = nn.Conv2d(6, 5, kernel, stride, padding, bias=kernel == 2).double()
    matrix = MatrixConv(6, 5, kernel, stride, padding, bias=kernel == 2).double()
    matrix.load_state_dict(usual.state_dict())
    found = []
    for layer in (usual, matrix):
        xb = torch.randn(count, 6, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
        output = layer(xb)
        output.sin().sum().backward()
        found.append([output, xb.grad, *(param.grad for param in layer.parameters())])
    for left, right in zip(*found, strict=True): assert left.shape == right.shape and torch.allclose(left, right, atol=1e-12)


@pytest.mark.parametrize("options", [{"groups": 2}, {"dilation": 2}, {"padding": "same"}, {"padding": (0, 1)}, {"stride": (1, 2)},
                                     {"padding_mode": "reflect"}])
def test_matrix_conv_refuses_what_it_cannot(options):
    with pytest.raises(ValueError, match="expected a square kernel"): MatrixConv(4, 4, 3, **options)


def test_network_is_torchvisions_resnet18():
    from torchvision.models import resnet18
    fast, theirs = build_model(Recipe(), 200), resnet18(num_classes=200)
    assert list(fast.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(fast.state_dict(), strict=True)
    assert sum(isinstance(layer, MatrixConv) for layer in fast.modules()) == 10  # 2 x 2 x 2, and two shortcuts
    assert not any(isinstance(layer, MatrixConv) for layer in build_model(Recipe(), 3, on_cpu=False).modules())
    xb = torch.rand(2, 3, 40, 40)
    assert torch.allclose(fast.eval()(xb), theirs.eval()(xb), atol=1e-4)
    assert torch.equal(build_model(Recipe(), 3).fc.weight, build_model(Recipe(), 3).fc.weight)
    assert not torch.equal(build_model(Recipe(), 3).fc.weight, build_model(Recipe(seed=1), 3).fc.weight)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in build_model(Recipe(norm="group"), 3).modules())


def test_normalised_and_top5():
    model = Normalised(nn.Identity())
    xb = torch.rand(2, 3, 4, 4)
    assert torch.allclose(model(xb)[:, 1], (xb[:, 1] - 0.456) / 0.224) and not model.state_dict()
    preds = torch.arange(12.0).view(2, 6)
    assert top5(preds, torch.tensor([0, 5])) == 0.5 and top5(preds, torch.tensor([1, 1])) == 1
    assert top5(preds[:, :2], torch.tensor([0, 1])) == 1


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"epochs": 1.5}, {"size": 4}, {"batch_size": 1}, {"lr": 0.0}, {"lr": float("nan")},
                                   {"scale": (0.0, 1.0)}, {"scale": (0.9, 0.5)}, {"scale": (0.5,)}, {"norm": "layer"},
                                   {"label_smoothing": 1.0}, {"light": -0.1}])
def test_recipes_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))): Recipe(**wrong)


# training, checkpoints, log

@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory):
    """One whole run, which others are compared with: its folder, state and rows."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    learn = pretrain(tiny, TINY, folder, "float32")
    return folder, {name: tensor.clone() for name, tensor in learn.model.state_dict().items()}, learn.rows


def without_seconds(rows): return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def equal(state, other): return set(state) == set(other) and all(torch.equal(tensor, other[name]) for name, tensor in state.items())


KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from lessonlib.learner import Callback
from lessonlib.pretrain import Recipe, pretrain, read_tiny_imagenet

class Killed(Callback):
    def before_batch(self, learn):
        if (learn.epoch, learn.batch) == (1, 1): os.kill(os.getpid(), signal.SIGKILL)

pretrain(read_tiny_imagenet(sys.argv[1]), Recipe(epochs=2, size=32, batch_size=8, lr=0.01, seed=5), sys.argv[2], "float32", [Killed()])
"""


def test_resumes_exactly_after_a_kill(tiny, tiny_folder, trained, tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, tiny_folder, tmp_path], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(read_log(tmp_path / "log.jsonl")[1]) == 1
    resumed = pretrain(tiny, TINY, tmp_path, "auto")  # the precision of the run that goes on
    whole, state, rows = trained
    assert equal(resumed.model.state_dict(), state)
    assert without_seconds(resumed.rows) == without_seconds(rows)
    (there, logged), (about, expected) = read_log(tmp_path / "log.jsonl"), read_log(whole / "log.jsonl")
    assert there == about and without_seconds(logged) == without_seconds(expected)
    saved = [torch.load(folder / "checkpoint.pt", weights_only=True)["opt"] for folder in (whole, tmp_path)]
    assert saved[0]["param_groups"] == saved[1]["param_groups"]
    assert all(torch.equal(saved[0]["state"][key]["momentum_buffer"], saved[1]["state"][key]["momentum_buffer"]) for key in saved[0]["state"])


def test_log_is_json_lines(trained):
    lines = [json.loads(line) for line in (trained[0] / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and lines[0]["recipe"] == json.loads(json.dumps(asdict(TINY)))
    facts = {"precision": "float32", "images": 18, "valid_images": 12, "processes": 1}
    assert facts.items() <= lines[0].items() and set(lines[0]) == {"recipe", "device", "torch", *facts}
    assert [set(line) for line in lines[1:]] == [{"epoch", "train_loss", "valid_loss", "accuracy", "top5", "seconds"}] * 2
    assert [line["epoch"] for line in lines[1:]] == [0, 1] and all(line["top5"] == 1 for line in lines[1:])  # three classes
    assert read_log(trained[0] / "log.jsonl") == (lines[0], lines[1:])


def test_finished_run_returns_at_once(tiny, trained, monkeypatch):
    monkeypatch.setattr(module.Learner, "fit", lambda *arguments: pytest.fail("it trained"))
    before = {file.name: file.read_bytes() for file in trained[0].iterdir()}
    learn = pretrain(tiny, TINY, trained[0], "float32")
    assert equal(learn.model.state_dict(), trained[1]) and learn.rows == trained[2]
    assert learn.model.net.fc.out_features == 3 and {file.name: file.read_bytes() for file in trained[0].iterdir()} == before


@pytest.mark.parametrize("changed, message", [({"lr": 0.02}, "lr 0.01 there, 0.02 here"), ({"epochs": 3}, "epochs 2 there, 3 here"),
                                              ({"scale": (0.4, 1.0)}, "scale"), ({"start": "a.safetensors"}, "start")])
def test_changed_recipe_is_refused(tiny, trained, changed, message):
    with pytest.raises(ValueError, match=message): pretrain(tiny, replace(TINY, **changed), trained[0], "float32")


def test_changed_data_and_precision_are_refused(tiny, trained):
    with pytest.raises(ValueError, match="in float32, not bf16"): pretrain(tiny, TINY, trained[0], "bf16")
    more = replace(tiny, classes=[*tiny.classes, "more"])
    with pytest.raises(ValueError, match="with 3 classes, the data have 4"): pretrain(more, TINY, trained[0])
    fewer = replace(tiny, train=tuple(part[:16] for part in tiny.train))
    with pytest.raises(ValueError, match="on 18 images, here are 16"): pretrain(fewer, TINY, trained[0])
    with pytest.raises(ValueError, match="precision is 'int8'"): pretrain(tiny, TINY, trained[0].with_name("int8"), "int8")


def test_lists_and_tuples_are_the_same_recipe(tiny, trained):
    assert len(pretrain(tiny, replace(TINY, scale=[0.5, 1.0]), trained[0]).rows) == 2


def test_damaged_checkpoint_and_log(tiny, trained, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes((trained[0] / "checkpoint.pt").read_bytes()[:5000])
    with pytest.raises(ValueError, match="checkpoint.pt is damaged"): pretrain(tiny, TINY, tmp_path)
    for content in ("", "no json", "[1, 2]\n", '{"epoch": 0}\n', '{"recipe": {}}\n{"loss": 1}\n'):
        (tmp_path / "log.jsonl").write_text(content)
        with pytest.raises(ValueError, match="is no log of a training"): read_log(tmp_path / "log.jsonl")
    with pytest.raises(FileNotFoundError, match="none.jsonl"): read_log(tmp_path / "none.jsonl")


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_checkpoint_is_never_half(tmp_path, monkeypatch, name):
    path = tmp_path / "checkpoint.pt"
    module._save({"epoch": 1}, path)

    def fails(*arguments): raise OSError(28, "No space left on device")
    with monkeypatch.context() as patched:
        patched.setattr(os, name, fails)
        with pytest.raises(OSError, match="No space"): module._save({"epoch": 2, "more": torch.zeros(1000)}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1} and [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_folder_that_cannot_be_written(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write in the folder .*file.* choose another"): pretrain(tiny, TINY, tmp_path / "file" / "run")

    def refuses(*arguments, **options): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(module.tempfile, "TemporaryFile", refuses)  # also for root, who may write anywhere
    with pytest.raises(OSError, match="Permission denied"): pretrain(tiny, TINY, tmp_path / "run")


def test_train_loss_of_one_process_stays(monkeypatch):
    assert module._mean_of_processes(0.25, torch.device("cpu")) == 0.25


def test_checkpoint_has_only_hooks():
    assert issubclass(Checkpoint, Callback)


# weights, card, command

@pytest.fixture(scope="session")
def written(tiny, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    learn = pretrain(tiny, TINY, trained[0])
    measured = write_weights(learn, folder / "new" / "three.safetensors")
    return folder / "new" / "three.safetensors", measured, learn


def test_weights_round_trip(tiny, trained, written):
    from safetensors import safe_open
    from torchvision.models import resnet18
    path, measured, learn = written
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    assert json.loads(metadata["mean"]) == list(module.MEAN) and json.loads(metadata["classes"]) == tiny.classes
    assert all(tensor.dtype in (torch.float16, torch.int64) for tensor in tensors.values())
    for name, tensor in tensors.items(): assert torch.allclose(tensor.double(), trained[1][f"net.{name}"].double(), rtol=1e-3, atol=1e-7)
    assert measured["bytes"] == path.stat().st_size and measured["file"] == path.name
    assert measured["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    theirs = resnet18(num_classes=3)
    theirs.load_state_dict(tensors, strict=True)
    mean, std = (torch.tensor(json.loads(metadata[name]))[:, None, None] for name in ("mean", "std"))
    with torch.no_grad(): preds = theirs.float().eval()((tiny.valid[0] / 255 - mean) / std)
    assert abs((preds.argmax(1) == tiny.valid[1]).float().mean().item() - measured["accuracy"]) < 1e-6  # what was written is what was measured
    assert abs(measured["valid_loss"] - trained[2][-1]["valid_loss"]) < 0.05


def test_file_for_200_classes_is_small(tiny, tmp_path):
    classes = [str(number) for number in range(200)]
    recipe = replace(TINY, epochs=1)
    dls = module._loaders(replace(tiny, classes=classes), recipe, 0, 1, torch.device("cpu"))
    learn = module.Learner(dls, Normalised(build_model(recipe, 200)), nn.CrossEntropyLoss(), show=False, device="cpu")
    assert write_weights(learn, tmp_path / "weights.safetensors")["bytes"] < 23_000_000


def test_card_says_what_it_must(tmp_path, trained, written):
    path, measured, learn = written
    about, rows = read_log(trained[0] / "log.jsonl")
    about = {**about, "recipe": {**about["recipe"], "start": "/some/where/resnet18_tiny_imagenet_20epochs.safetensors"}}
    text = write_card(tmp_path / "card.md", (about, rows), measured, learn.dls.vocab, "THE COMMAND").read_text()
    for words in (measured["sha256"], f"**{measured['accuracy']:.4f}**", f"**{measured['top5']:.4f}**", "THE COMMAND", "research", "2 epochs",
                  "Cats among the classes: Egyptian cat.", "Dogs among the classes: none.", "18 training and 12 validation images",
                  "used a part of it", "must not be used", "0.4392", "lr 0.01"):
        assert words in text, words
    assert "/some/where" not in text and "{" not in text
    plain = write_card(tmp_path / "card.md", read_log(trained[0] / "log.jsonl"), measured, learn.dls.vocab, "x").read_text()
    assert "Begun from random numbers" in plain
    whole = {**about, "images": 100_000, "valid_images": 10_000}
    assert "a part of it." not in write_card(tmp_path / "card.md", (whole, rows), measured, learn.dls.vocab, "x").read_text()


def test_pets_among():
    assert pets_among(["tabby", "cardigan", "lion", "Chihuahua"]) == {"cats": ["tabby"], "dogs": ["Chihuahua"]}


def test_start_continues_from_a_file(tiny, written, tmp_path):
    path = written[0]
    net = build_model(replace(TINY, start=str(path)), 3)
    assert torch.equal(net.fc.weight.half(), written[2].model.net.fc.weight.half())
    with pytest.raises(ValueError, match="does not fit a ResNet-18 with 4 classes"): build_model(replace(TINY, start=str(path)), 4)
    with pytest.raises(FileNotFoundError, match="none.safetensors does not exist"): build_model(replace(TINY, start="none.safetensors"), 3)
    (tmp_path / "half.safetensors").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="no whole safetensors"): build_model(replace(TINY, start=str(tmp_path / "half.safetensors")), 3)


def arguments(*more): return ["--epochs", "2", "--size", "32", "--batch-size", "8", "--lr", "0.01", "--seed", "5", "--precision", "float32", *more]


def test_command_of_a_finished_run_writes_three_files(tiny_folder, trained, tmp_path, capsys):
    folder = Path(shutil.copytree(trained[0], tmp_path / "run"))
    main([str(tiny_folder), "--folder", str(folder), *arguments()])
    measured = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    place = folder / "resnet18_tiny_imagenet"
    assert hashlib.sha256(place.with_suffix(".safetensors").read_bytes()).hexdigest() == measured["sha256"]
    assert read_log(place.with_suffix(".log.jsonl")) == read_log(trained[0] / "log.jsonl")
    card = place.with_suffix(".md").read_text()
    assert measured["sha256"] in card and str(tmp_path) not in card
    options = "--epochs 2 --size 32 --batch-size 8 --lr 0.01 --seed 5 --folder run --precision float32"
    assert f"python -m lessonlib.pretrain tiny-imagenet-200 {options}" in card


def test_command_line_in_the_card():
    text = module._command("/data/tiny-imagenet-200.zip", "/tmp/pretrain", "bf16", Recipe(start="/x/first.safetensors", scale=(0.4, 1.0)), 2)
    assert text == ("torchrun --nproc-per-node 2 -m lessonlib.pretrain tiny-imagenet-200.zip --scale 0.4 1.0 --start first.safetensors "
                    "--folder pretrain --precision bf16")
    options = module._parser().parse_args(text.split()[5:])
    assert options.scale == [0.4, 1.0] and options.start == "first.safetensors" and options.epochs == Recipe().epochs


@pytest.mark.parametrize("extra, message", [
    (["--norm", "layer"], "norm is 'layer'"), (["--epochs", "0"], "epochs is 0"),
    (["--batch-size", "64"], "18 images are fewer than one mini-batch of 64"), (["--start", "none.safetensors"], "none.safetensors does not exist")])
def test_command_errors_are_one_line(tiny_folder, tmp_path, extra, message):
    with pytest.raises(SystemExit, match=message) as end: main([str(tiny_folder), "--folder", str(tmp_path / "run"), *arguments(*extra)])
    assert str(end.value).startswith("pretrain: ") and "\n" not in str(end.value)


def test_command_refuses_before_it_reads(tiny_folder, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "read_tiny_imagenet", lambda source: pytest.fail("the images were read"))
    with pytest.raises(SystemExit, match="another recipe"): main([str(tiny_folder), "--folder", str(trained[0]), *arguments("--light", "0.5")])
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="cannot write in the folder"): main([str(tiny_folder), "--folder", str(tmp_path / "file"), *arguments()])


def test_command_explains_a_full_disk_and_ctrl_c(tiny_folder, tmp_path, monkeypatch):
    def full(*_):
        try: raise OSError(28, "No space left on device")
        except OSError as problem: raise RuntimeError(f"callback Checkpoint.after_epoch raised OSError in epoch 0, batch 1: {problem}") from problem

    def stopped(*_): raise KeyboardInterrupt
    for stand_in, message in ((full, "No space left"), (stopped, "goes on from the last whole epoch")):
        monkeypatch.setattr(module, "pretrain", stand_in)
        with pytest.raises(SystemExit, match=message): main([str(tiny_folder), "--folder", str(tmp_path / "run"), *arguments()])


def test_two_processes_equal_one(tiny, tiny_folder, tmp_path):
    """`torchrun` with gloo on the CPU: same weights and log as one process with the same global mini-batch. Group norm treats each image alone."""
    options = ["--epochs", "1", "--size", "32", "--batch-size", "8", "--lr", "0.01", "--norm", "group", "--precision", "float32"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lessonlib.pretrain", str(tiny_folder),
               "--folder", str(tmp_path / "two"), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    if torch.cuda.is_available(): pytest.skip("one process would train on the GPU here")
    one = pretrain(tiny, Recipe(epochs=1, size=32, batch_size=8, lr=0.01, norm="group"), tmp_path / "one", "float32")
    saved = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)
    for name, tensor in one.model.state_dict().items(): assert torch.allclose(tensor, saved["model"][name], atol=1e-5), name
    about, rows = read_log(tmp_path / "two" / "log.jsonl")
    assert about["processes"] == 2 and len(rows) == 1
    for name in ("train_loss", "valid_loss", "accuracy", "top5"): assert abs(rows[0][name] - one.rows[0][name]) < 1e-4, name
    measured = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    card = (tmp_path / "two" / "resnet18_tiny_imagenet.md").read_text()
    assert measured["sha256"] in card and "torchrun --nproc-per-node 2 -m lessonlib.pretrain" in card


# the files in the package


def test_bundled_weights_strict_load_and_their_card_is_theirs():
    from safetensors import safe_open
    from torchvision.models import resnet18
    path, card, (about, rows) = bundled_file(), bundled_file("md").read_text(encoding="utf-8"), read_log()
    with safe_open(path, "pt") as file: tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    resnet18(num_classes=200).load_state_dict(tensors, strict=True)
    assert "num_batches_tracked" in " ".join(tensors) and path.stat().st_size < 23_000_000
    assert all(torch.isfinite(tensor.float()).all() for tensor in tensors.values())
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    assert len(json.loads(metadata["classes"])) == 200 and json.loads(metadata["mean"]) == list(module.MEAN)
    assert {kind: len(names) for kind, names in pets_among(json.loads(metadata["classes"])).items()} == {"cats": 3, "dogs": 6}
    said = float(card.split("**top-1 accuracy** | **")[1][:6])
    assert abs(said - rows[-1]["accuracy"]) < 0.005 and len(rows) == about["recipe"]["epochs"] and said > 0.397
    assert "/" not in about["recipe"].get("start", "")  # no folder of the machine it was made on


def test_missing_bundled_file_is_explained():
    with pytest.raises(FileNotFoundError, match="expected kind 'safetensors', 'md' or 'log.jsonl'"): bundled_file("txt")

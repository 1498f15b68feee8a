"""Epochs of images: decoded once and cached, against torchvision's `ImageFolder` and `DataLoader` with two workers, on the same files.

All crop at random, mirror and change the light, and train the same network with the same steps. Contenders take turns, as in bench/training.py.
The last table is fine-tuning: `vision_learner` against the bare loop on the same mini-batches.

    python bench/images.py                        # drawings made here; --folder FOLDER for photographs of your own, one folder for each class
"""
import argparse
import io
import os
import platform
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the budgets are for a processor

import numpy as np
import torch
from PIL import Image, ImageDraw
from timing import interleave, percentiles, ratios, spread, verdict
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import v2

from lessonlib.data import image_files, parent_label
from lessonlib.vision import image_dataloaders, vision_learner

FIRST, LATER, EACH = "lessonlib, first epoch", "lessonlib, later epochs", "lessonlib, cache='none'"
FOLDER, BARE, OURS = "ImageFolder, 2 workers", "bare loop", "vision_learner"


def draw_photographs(folder, count):
    "JPEG files of 500 x 375, the usual size of the pets' photographs, in two classes."
    for number in range(count):
        rng = np.random.default_rng(number)
        grain = rng.integers(0, 60, (47, 63, 3), dtype=np.uint8)
        image = Image.fromarray(grain + rng.integers(0, 190, 3, dtype=np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
        left, top = rng.integers(0, 200, 2).tolist()
        draw = ImageDraw.Draw(image)
        (draw.ellipse, draw.rectangle)[number % 2]((left, top, left + 150, top + 150), fill=tuple(rng.integers(0, 256, 3).tolist()))
        path = folder / ("ball", "box")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        image.save(path, quality=90)


def bare_epoch(model, batches):
    "An epoch as one writes it without a library."
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()
    for xb, yb in batches:
        cross_entropy(model(xb), yb).backward()
        opt.step()
        opt.zero_grad()


def walk(batches):
    "The data alone."
    return sum(len(xb) for xb, yb in batches)


def loaders(folder, size, batch_size):
    "For each contender a function that gives the mini-batches of an epoch."
    files, options = image_files(folder), {"size": size, "augment": True, "batch_size": batch_size}
    every_fifth = set(files[::5])
    options["split"] = lambda path: path in every_fifth

    def new(cache): return image_dataloaders(files, parent_label, cache=cache, **options).train

    crop = v2.RandomResizedCrop(size, scale=(0.5, 1), antialias=True)
    change = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.ColorJitter(0.2, 0.2, 0.2), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    data = torch.utils.data.Subset(ImageFolder(folder, change), [row for row, path in enumerate(files) if path not in every_fifth])
    theirs = DataLoader(data, batch_size, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
    kept, each = new("memory"), new("none")
    assert len(kept) == len(theirs), "not the same work"
    return {FIRST: lambda: new("memory"), LATER: lambda: kept, EACH: lambda: each, FOLDER: lambda: theirs}, kept


def table(title, seconds, images, base):
    "Seconds of each contender, and how many times as long as the base they take."
    print(f"\n{title}: ms an epoch, median (p10-p90), images a second, times as long as {base}")
    for name, values in seconds.items():
        found = percentiles([1000 * value for value in values])
        print(f"  {name:26}{spread(found):>22} {1000 * images / found[0]:>9.0f} {spread(ratios(values, seconds[base]), '{:.1f}'):>20}")


def measure_epochs(found, rounds, images, use, title):
    "One table. Making the loaders is a part of the first epoch, and only of that."
    seconds = interleave({name: lambda get=get: lambda: use(get()) for name, get in found.items()}, rounds)
    table(title, seconds, images, LATER)
    return seconds


def fine_tuning(kept, size, rounds, images):
    "`vision_learner` and the bare loop: the same architecture from scratch, and two validation images, so that training is what is measured."
    class Little:
        train, valid, vocab, size, preprocessing = kept, [kept.batch(torch.arange(2))], ["ball", "box"], None, None
    Little.size = size

    def bare():
        torch.manual_seed(0)
        model = resnet18(num_classes=2)
        return lambda: bare_epoch(model, kept)

    def ours():
        learn = vision_learner(Little, weights=None, show=False, opt_func=torch.optim.SGD, precision="float32")
        return lambda: learn.fit(1, 0.01)

    seconds = interleave({BARE: bare, OURS: ours}, rounds)
    table("Fine-tuning a ResNet-18, cached images, float32", seconds, images, BARE)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="photographs, one folder for each class (drawings of 500 x 375 pixels)")
    parser.add_argument("--count", type=int, default=320, help="how many drawings (320)")
    parser.add_argument("--size", type=int, default=64, help="height and width for the network (64)")
    parser.add_argument("--rounds", type=int, default=5, help="how many epochs of each, data only (5); with the network fewer")
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary, redirect_stderr(io.StringIO()):  # without the progress bars
        folder = options.folder or Path(temporary)
        if options.folder is None: draw_photographs(folder, options.count)
        with redirect_stdout(io.StringIO()): found, kept = loaders(folder, options.size, options.batch_size)
        images = len(kept) * options.batch_size
        print(f"{images} training images an epoch, {options.size} x {options.size}, batch {options.batch_size}: torch {torch.__version__}, "
              f"{torch.get_num_threads()} threads, {platform.machine()}")
        seconds = measure_epochs(found, options.rounds, images, walk, "Data only")
        for other in (FOLDER, EACH):
            print(f"  {other} / {LATER}: {verdict(ratios(seconds[other], seconds[LATER])[0], 3, at_least=True)}")
        rounds = max(1, options.rounds // 3)
        model = resnet18(num_classes=2)
        some = {name: found[name] for name in (LATER, FOLDER)}
        measure_epochs(some, rounds, images, lambda batches: bare_epoch(model, batches), "With a ResNet-18")
        fine_tuning(kept, options.size, rounds, images)
    print(f"\n{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()

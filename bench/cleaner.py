"""The image cleaner with 7,390 images and their predictions: time to the first page, time of a decision, memory.

The files are hard links to 200 generated JPEGs of 500 x 375, predictions and flags are made up: the model and the search for flaws are not timed.
A page is what a student waits for: the object, the words of the page and its 40 small pictures. A decision is from the message that a key
was pressed to the new words of the page, with the decision on the disk. Memory is the peak of a fresh process less what it has after
importing all that is used (torch as well).

    python bench/cleaner.py                       # also 50,000 entries, which must stay usable; --count 7390 for one of them
"""
import argparse
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from timing import interleave, percentiles, ratios, spread, verdict

CLASSES = [f"breed_{number:02}" for number in range(37)]
FLAGS = ["near duplicate", "dark", "blurred", "unreadable"]
FIRST, AGAIN = "first page, pictures to be made", "first page, pictures kept"


def write_images(folder, count, pool=200):
    "So many files in 37 class folders; a pool of pictures with more than one name each."
    (folder.parent/"pool").mkdir(exist_ok=True)
    for number in range(pool):
        rng = np.random.default_rng(number)
        grain = Image.fromarray(rng.integers(0, 255, (47, 63, 3), dtype=np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
        grain.save(folder.parent/"pool"/f"{number}.jpg", quality=90)
    for name in CLASSES: (folder/name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        os.link(folder.parent/"pool"/f"{number % pool}.jpg", folder/CLASSES[number % 37]/f"{number}.jpg")


def predictions(folder, count):
    "A table of predictions, four of five right, and a table of flags: a score of each label, and other flags for one image in ten."
    rng = np.random.default_rng(0)
    labels = [CLASSES[number % 37] for number in range(count)]
    paths = [f"{folder}/{label}/{number}.jpg" for number, label in enumerate(labels)]
    guessed = np.where(rng.random(count) < 0.8, labels, rng.choice(CLASSES, count))
    table = pd.DataFrame({"path": paths, "label": labels, "split": np.where(rng.random(count) < 0.2, "valid", "train"), "prediction": guessed,
                          "confidence": rng.uniform(0.2, 1, count), "loss": rng.exponential(1, count)})
    scores = pd.DataFrame({"path": paths, "flag": "wrong label", "score": rng.random(count), "threshold": 0.05, "other": "",
                           "why": [f"A model that has not seen this label gives {label} 3 %, and another one 90 %." for label in labels]})
    some = rng.choice(count, count // 10, replace=False)
    others = pd.DataFrame({"path": [paths[row] for row in some], "flag": rng.choice(FLAGS, len(some)), "score": 0.1, "threshold": 0.3,
                           "why": "Some other flaw.", "other": ""})
    return table, pd.concat([scores, others], ignore_index=True)


def open_page(inputs):
    "The cleaner with its first page: words and pictures."
    from lessonlib.cleaner import ImageCleaner, _thumbnail

    table, flags = inputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the plan of the round before is still open
        cleaner = ImageCleaner(table, flags=flags)
    cards = cleaner.view.screen["cards"]
    assert len(cards) == 40 and all(_thumbnail(cleaner.plan.folder, card["path"]) for card in cards)
    return cleaner


def decisions(cleaner, count):
    "Seconds of so many decisions by key, with steps and pages between them, and of changes of the filter."
    keys, decided, filtered = ["d", "k", "3", "p"], [], []
    for number in range(count):
        begin = time.perf_counter()
        cleaner._asked({"do": "key", "key": keys[number % 4], "columns": 5})
        decided.append(time.perf_counter() - begin)
        cleaner._asked({"do": "key", "key": "ArrowRight", "columns": 5})
        if number % 10: continue
        begin = time.perf_counter()
        cleaner._asked({"do": "menu", "name": "label", "value": CLASSES[number // 10 % 37] if number % 20 else ""})
        filtered.append(time.perf_counter() - begin)
    assert cleaner.state.summary()["decided"] > 10 and "Not done" not in cleaner.state.status, cleaner.state.status
    return decided, filtered


def peak_memory(folder, count):
    "Megabytes by which a process grows: inputs, cleaner, 40 pages of pictures, 200 decisions. Run alone, by `measure_memory`."
    import psutil
    from sklearn.linear_model import LogisticRegression  # noqa: F401

    import lessonlib.data  # noqa: F401
    from lessonlib.cleaner import ImageCleaner, _cleaner_view, _thumbnail

    assert ImageCleaner and _cleaner_view()
    before = psutil.Process().memory_info().rss
    cleaner = open_page(predictions(folder, count))
    for number in range(1, 41):
        cleaner._asked({"do": "page", "page": number})
        for card in cleaner.view.screen["cards"]: _thumbnail(cleaner.plan.folder, card["path"])
    decisions(cleaner, 200)
    print((1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)


def measure_memory(folder, count):
    command = [sys.executable, __file__, "--peak", str(folder), "--count", str(count)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure(count, rounds, presses, budget):
    "One table for so many images."
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)/"pets"
        write_images(folder, count)
        inputs = predictions(folder, count)

        def prepare(fresh):
            if fresh: shutil.rmtree(folder/".lessonlib"/"thumbnails", ignore_errors=True)
            return lambda: open_page(inputs)

        found = interleave({FIRST: lambda: prepare(True), AGAIN: lambda: prepare(False)}, rounds)
        decided, filtered = decisions(open_page(inputs), presses)
        shutil.rmtree(folder/".lessonlib")
        memory = measure_memory(folder, count)
    found |= {"a decision": decided, "another class": filtered}
    print(f"\n{count:,} images: ms, median (p10-p90)")
    for name, seconds in found.items(): print(f"  {name:34}{spread(percentiles([1000 * value for value in seconds])):>20}")
    print(f"  kept pictures save {spread(ratios(found[FIRST], found[AGAIN]), '{:.1f}')} times the first page; memory {memory:.0f} MB")
    if not budget: return
    print(f"  first page, s: {verdict(percentiles(found[FIRST])[0], 1)}\n  a decision, ms: {verdict(1000 * percentiles(decided)[0], 50)}")
    print(f"  memory, MB: {verdict(memory, 300)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, help="how many images (7390, then 50000)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--presses", type=int, default=60, help="decisions that are timed (60)")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak: return peak_memory(options.peak, options.count)
    print(f"{platform.machine()}, {os.cpu_count()} cores")
    for count in [options.count] if options.count else [7390, 50_000]: measure(count, options.rounds, options.presses, count <= 7390)


if __name__ == "__main__":
    main()

"""What the bundled weights are worth on real photographs: cats and dogs, 200 to learn from, 400 others to judge by, 96 pixels, five epochs.

    python bench/photographs.py FOLDER      # FOLDER/cat/*.jpg and FOLDER/dog/*.jpg; default: $LESSONLIB_TEST_PHOTOS, else ../shared/data/photos

Bundled weights and random ones get the same pictures, the same number of epochs and the same four seeds. Budget: the mean of the bundled ones is at
least 0.80, and at least 12 points above scratch. About ten minutes on one core.
"""
import os
import random
import statistics
import sys
from pathlib import Path

import torch

from lessonlib.data import image_files, parent_label
from lessonlib.vision import image_dataloaders, vision_learner

FOLDER = Path(os.environ.get("LESSONLIB_TEST_PHOTOS") or Path(__file__).resolve().parents[2] / "shared/data/photos")
SEEDS, LEARN, JUDGE = range(4), 100, 200  # pictures of each kind


def accuracy_of(folder, weights, lr, seed):
    "Accuracy on the judges after five epochs."
    chosen, judges = [], []
    for kind in ("cat", "dog"):
        files = random.Random(seed).sample(image_files(folder / kind), LEARN + JUDGE)
        chosen, judges = chosen + files[:LEARN], judges + files[LEARN:]
    split = list(range(len(chosen))), list(range(len(chosen), len(chosen) + len(judges)))
    dls = image_dataloaders(chosen + judges, parent_label, split=split, size=96, presize=144, augment=True, batch_size=16, cache="memory")
    torch.manual_seed(seed)
    learn = vision_learner(dls, weights=weights, show=False)
    learn.fine_tune(5, lr=lr)
    return learn.history["accuracy"].iloc[-1]


def main(folder=FOLDER):
    found = {}
    for name, weights, lr in [("bundled", "bundled", 2e-3), ("scratch", None, slice(2e-3, 2e-3))]:
        found[name] = [accuracy_of(Path(folder), weights, lr, seed) for seed in SEEDS]
        print(f"{name}: {statistics.mean(found[name]):.3f} ({min(found[name]):.3f} to {max(found[name]):.3f}, {len(SEEDS)} seeds)", flush=True)
    bundled, gain = statistics.mean(found["bundled"]), statistics.mean(found["bundled"]) - statistics.mean(found["scratch"])
    print(f"bundled, at least 0.80: {'held' if bundled >= 0.8 else 'MISSED'}; "
          f"gain {100 * gain:.1f} points, at least 12: {'held' if gain >= 0.12 else 'MISSED'}")


if __name__ == "__main__": main(*sys.argv[1:])

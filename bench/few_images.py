"""How few pictures are enough? Writes data/recorded/few_images.csv, which lesson 08 shows: python bench/few_images.py [OUTPUT]

Cats and dogs of the pet sketches, 48 pixels: 5 to 100 pictures of each kind, from scratch and with the bundled weights, five seeds,
always judged by the same 200 other pictures. Every run takes about 40 steps. About nine minutes on one core.
"""
import csv
import random
import sys
from pathlib import Path

import torch

from lessonlib.data import get_data, image_files, is_cat
from lessonlib.vision import image_dataloaders, vision_learner

COUNTS, SEEDS, STEPS, JUDGES = (5, 10, 20, 50, 100), range(5), 40, 100  # judges: pictures of each kind


def one_run(kinds, count, seed, weights):
    "Accuracy on the judges after training on `count` pictures of each kind, drawn anew for each seed."
    judges = [file for files in kinds for file in files[:JUDGES]]
    chosen = [file for files in kinds for file in random.Random(seed).sample(files[JUDGES:], count)]
    split = list(range(len(chosen))), list(range(len(chosen), len(chosen) + len(judges)))
    dls = image_dataloaders(chosen + judges, is_cat, split=split, size=48, batch_size=min(16, 2 * count), cache="memory")
    torch.manual_seed(seed)
    learn = vision_learner(dls, weights=weights, show=False, precision="float32")
    learn.validate = lambda: {"valid_loss": 0.0}  # judged once, at the end
    learn.fine_tune(max(1, round(STEPS / len(dls.train))), lr=2e-3)
    preds, targets = learn.get_preds()
    return (preds.argmax(1) == targets).float().mean().item()


def main(output, weights="auto"):
    "All runs, a row each, written as they come."
    files = image_files(get_data("pet_sketches") / "images")
    random.Random(0).shuffle(files)
    kinds = [[file for file in files if is_cat(file) == kind] for kind in (False, True)]
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["weights", "images_a_class", "seed", "accuracy"])
        for seed in SEEDS:
            for count in COUNTS:
                for name, source in (("from scratch", None), ("pretrained", weights)):
                    row = [name, count, seed, f"{one_run(kinds, count, seed, source):.4f}"]
                    table.writerow(row)
                    stream.flush()
                    print(*row, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "data" / "recorded" / "few_images.csv",
         Path(sys.argv[2]) if len(sys.argv) > 2 else "auto")

"""What torchvision's models cost. Writes data/recorded/model_zoo.csv, which lesson 11 shows: python bench/model_zoo.py [OUTPUT [SECONDS]]

Every classifier that fits in the time, the smallest first: one picture, and a batch of eight, at the size its accuracy is published for. One thread,
and the clock counts what this process computed (`process_time`), so that other programs on the machine disturb less. Three rounds, each model's
quickest is kept: what disturbs a measurement makes it longer. About twenty minutes on one core; interrupted, it goes on where it was.
"""
import sys
from pathlib import Path

import pandas as pd
import torch

from lessonlib.model_zoo import measure_models, model_table

FOLDER = Path(__file__).resolve().parents[1]


def main(output, seconds):
    "Three rounds of a third of the time each."
    torch.set_num_threads(1)
    rounds = [measure_models(model_table(), batch_size=8, repeats=repeats, clock="process_time", budget=seconds / 3,
                             cache=FOLDER / "_build" / "model_zoo") for repeats in (5, 6, 7)]
    both = pd.concat(rounds).sort_values("seconds", kind="stable").drop_duplicates("name")
    order = [name for name in model_table().name if name in set(both.name)]
    output.parent.mkdir(parents=True, exist_ok=True)
    both.set_index("name").loc[order].to_csv(output, float_format="%.5g", lineterminator="\n")
    print(f"{len(order)} models in {output}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER / "data" / "recorded" / "model_zoo.csv",
         float(sys.argv[2]) if len(sys.argv) > 2 else 1500)

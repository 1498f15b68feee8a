"""Which slip does what? Writes data/recorded/crests.csv, which lesson 13 shows: python bench/crests.py [OUTPUT]

Two clubs' crests, a linear model, twenty epochs: every combination of the four slips, ten starts each, after each epoch the accuracy on the
validation set and on crests that another artist has drawn. About four minutes on one core.
"""
import csv
import io
import sys
from dataclasses import astuple, fields
from itertools import product
from pathlib import Path

from lessonlib.data import _write_atomically
from lessonlib.pipeline import Slips, crest_data, crest_experiment

CLUBS = ["harbour_lions", "hilltop_falcons"]


def main(output):
    "All runs, a row for each slip combination, seed and epoch."
    data, stream = crest_data(CLUBS), io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    names = [field.name for field in fields(Slips)]
    table.writerow([*names, "seed", "lr", "epoch", "accuracy", "redrawn"])
    for slips in (Slips(*switches) for switches in product([True, False], repeat=len(names))):
        record = crest_experiment(data, slips).record
        for row in record.sort_values(["seed", "epoch"]).itertuples():
            table.writerow([*map(int, astuple(slips)), row.seed, f"{row.lr:g}", row.epoch, f"{row.accuracy:.4f}", f"{row.redrawn:.4f}"])
        last = record[record.epoch == record.epoch.max()]
        low, mean, high = last.accuracy.min(), last.accuracy.mean(), last.accuracy.max()
        print(slips, f"{mean:.4f} ({low:.4f} to {high:.4f}), redrawn {last.redrawn.mean():.4f}", flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    _write_atomically(output, stream.getvalue().encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "data" / "recorded" / "crests.csv")

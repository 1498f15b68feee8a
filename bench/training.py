"""How fast `Learner` trains: the same MLP on MNIST 3/7 by a bare PyTorch loop, `Learner`, torch's DataLoader and fastai's `Learner`.

One process, contenders taking turns. All start from the same weights, take the same mini-batches (256) in the same order, measure
the same loss and accuracy on the validation set after each epoch, and must end with the same weights: otherwise this program fails.

    python bench/training.py                      # where fastai is importable it takes part; it is not one of our requirements
    python -m venv compare && compare/bin/pip install fastai -e . && compare/bin/python bench/training.py
"""
import argparse
import io
import os
import platform
import time
from contextlib import redirect_stdout

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the budgets are for a processor

import torch
from timing import interleave, percentiles, ratios, spread, verdict
from torch import nn
from torch.utils.data import DataLoader

from lessonlib.data import Batches, DataLoaders, get_data, image_files, load_images
from lessonlib.learner import Learner
from lessonlib.linear_sgd import batch_accuracy, mnist_loss

try:
    import fastai.callback.progress  # noqa: F401  its users have the progress bar, as ours have the table
    from fastai.data.core import DataLoaders as FastaiLoaders
    from fastai.data.load import DataLoader as FastaiLoader
    from fastai.learner import Learner as FastaiLearner
    from fastai.optimizer import SGD as FastaiSGD
except ImportError:
    FastaiLearner = None

BARE, FLOOR, OURS, LOADER = "bare loop", "bare loop, training only", "Learner", "DataLoader on a list"
FASTAI, SILENT = "fastai Learner", "fastai Learner, silent"
BATCH_SIZE, LR = 256, 0.1


def threes_and_sevens():
    "Training and validation set: rows (n, 784) in [0, 1] and targets (n, 1), 1 for a 3."
    path, found = get_data("mnist_sample"), []
    for part in ("train", "valid"):
        images = [load_images(image_files(path / part / digit)) for digit in "37"]
        targets = torch.cat([torch.ones(len(images[0]), 1), torch.zeros(len(images[1]), 1)])
        order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))  # mixed once, so that a fixed order learns
        found.append((torch.cat(images).view(len(targets), -1)[order] / 255, targets[order]))
    return found


def new_model():
    "The same weights at every call."
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 30), nn.ReLU(), nn.Linear(30, 1))


def train_by_hand(model, train_batches, valid_batches, epochs):
    "The loop as one writes it without a library; loss and accuracy of each epoch, as the others report them."
    opt, history = torch.optim.SGD(model.parameters(), lr=LR), []
    for _ in range(epochs):
        total = items = 0
        model.train()
        for xb, yb in train_batches():
            loss = mnist_loss(model(xb), yb)
            loss.backward()
            opt.step()
            opt.zero_grad()
            total, items = total + loss.item() * len(xb), items + len(xb)
        sums, measured = torch.zeros(2), 0
        model.eval()
        with torch.no_grad():
            for xb, yb in valid_batches():
                preds = model(xb)
                sums += len(xb) * torch.stack([mnist_loss(preds, yb), batch_accuracy(preds, yb)])
                measured += len(xb)
        history.append((total / items, *(sums / measured).tolist()))
    return history


def train_only(model, train_batches, epochs):
    "Less work than the others do: nothing measured, no validation. The floor."
    opt = torch.optim.SGD(model.parameters(), lr=LR)
    for _ in range(epochs):
        for xb, yb in train_batches():
            mnist_loss(model(xb), yb).backward()
            opt.step()
            opt.zero_grad()


def slices(x, y, shuffle):
    "A function that gives the mini-batches of an epoch as slices of the tensors."
    def batches():
        order = torch.randperm(len(x)) if shuffle else None
        for start in range(0, len(x), BATCH_SIZE):
            if shuffle:
                rows = order[start:start + BATCH_SIZE]
                yield x.index_select(0, rows), y.index_select(0, rows)
            else: yield x[start:start + BATCH_SIZE], y[start:start + BATCH_SIZE]
    return batches


def contenders(train, valid, epochs, shuffle, finished):
    "Each contender prepares a fresh model and returns its training as a function. `finished` keeps the last model of each."
    lists = [list(zip(*part)) for part in (train, valid)]  # data sets as lists of pairs

    def by_hand():
        model = finished[BARE] = new_model()
        return lambda: train_by_hand(model, slices(*train, shuffle), slices(*valid, False), epochs)

    def floor():
        model = finished[FLOOR] = new_model()
        return lambda: train_only(model, slices(*train, shuffle), epochs)

    def ours():
        model = finished[OURS] = new_model()
        dls = DataLoaders(Batches(*train, batch_size=BATCH_SIZE, shuffle=shuffle), Batches(*valid, batch_size=BATCH_SIZE))
        learn = Learner(dls, model, mnist_loss, metrics=batch_accuracy)
        return lambda: learn.fit(epochs, LR)

    def loader():
        model = finished[LOADER] = new_model()
        found = [DataLoader(part, batch_size=BATCH_SIZE, shuffle=shuffle and part is lists[0]) for part in lists]
        return lambda: train_by_hand(model, *(part.__iter__ for part in found), epochs)

    def fastai(name):
        model = finished[name] = new_model()
        dls = FastaiLoaders(*(FastaiLoader(part, bs=BATCH_SIZE, shuffle=shuffle and part is lists[0]) for part in lists))
        learn = FastaiLearner(dls, model, loss_func=mnist_loss, opt_func=FastaiSGD, metrics=batch_accuracy)

        def silent():
            with learn.no_bar(), learn.no_logging(): learn.fit(epochs, LR)
        return silent if name == SILENT else lambda: learn.fit(epochs, LR)

    found = {BARE: by_hand, FLOOR: floor, OURS: ours, LOADER: loader}
    return found if FastaiLearner is None else {**found, FASTAI: lambda: fastai(FASTAI), SILENT: lambda: fastai(SILENT)}


def largest_difference(model, other):
    "Between the parameters of two models."
    return max((one.cpu() - two.cpu()).abs().max().item() for one, two in zip(model.parameters(), other.parameters(), strict=True))


def measure(train, valid, epochs, rounds, shuffle, clock):
    "One table: seconds of each contender, and whether all did the same work."
    finished = {}
    with redirect_stdout(io.StringIO()):  # what the learners print while training
        seconds = interleave(contenders(train, valid, epochs, shuffle, finished), rounds, clock=clock)
    print(f"\n{'Shuffled each epoch' if shuffle else 'Fixed order'}: ms an epoch, median (p10-p90) of {rounds} rounds of {epochs} epochs")
    for name, values in seconds.items():
        difference = largest_difference(finished[BARE], finished[name])
        same = f"weights differ by {difference:.0e}"
        if shuffle and name in (LOADER, FASTAI, SILENT): same = "an order of its own"  # the same random numbers, drawn otherwise
        elif difference > 1e-5: raise SystemExit(f"{name}: {same} from the bare loop's: this comparison is not of the same work")
        ms = spread(percentiles([1000 * value / epochs for value in values]))
        print(f"  {name:25}{ms:>18}   {spread(ratios(values, seconds[BARE]), '{:.2f}'):>18} x bare   {same}")
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="how many times each contender trains (15)")
    parser.add_argument("--epochs", type=int, default=4, help="epochs in each training (4)")
    parser.add_argument("--threads", type=int, help="how many threads torch uses (as many as it chooses)")
    parser.add_argument("--processor-time", action="store_true", help="what this process computed, not the clock: for a machine that others use")
    options = parser.parse_args()
    clock = time.process_time if options.processor_time else time.perf_counter
    if options.threads: torch.set_num_threads(options.threads)
    train, valid = threes_and_sevens()
    print(f"MNIST 3/7, {len(train[0])} training images, 784-30-1 with ReLU, batch {BATCH_SIZE}: torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, {platform.machine()}")
    for shuffle in (False, True):
        seconds = measure(train, valid, options.epochs, options.rounds, shuffle, clock)
        print(f"  Learner / bare loop: {verdict(ratios(seconds[OURS], seconds[BARE])[0], 1.15)}")
        print(f"  DataLoader on a list / Learner: {ratios(seconds[LOADER], seconds[OURS])[0]:.2f}")
        if FASTAI in seconds:
            print(f"  fastai Learner / Learner: {verdict(ratios(seconds[FASTAI], seconds[OURS])[0], 3, at_least=True)}; "
                  f"without its bar and table {ratios(seconds[SILENT], seconds[OURS])[0]:.2f}")
        else: print("  fastai Learner: not importable here (see the head of this file)")


if __name__ == "__main__":
    main()

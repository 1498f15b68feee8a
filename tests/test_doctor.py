"""The doctor: silent on healthy set-ups, names what is broken, and leaves everything as it was."""
import copy
import random
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from lessonlib.data import Batches, DataLoaders, _embedded_mnist
from lessonlib.doctor import _PREFLIGHT, _TRAINING, Finding, Report, _content_hashes, doctor
from lessonlib.fitting import mae, mse
from lessonlib.learner import BREAKS, Learner, break_it
from lessonlib.linear_sgd import BasicOptim, init_params, linear, mnist_loss
from lessonlib.mlp import MLP


@pytest.fixture(scope="module")
def digits():
    """700 training and 300 validation images as rows (n, 784) from 0 to 1, with their digits."""
    images, labels = _embedded_mnist("images"), _embedded_mnist("labels").astype("int64")
    parts = [slice(700), slice(60_000, 60_300)]
    return [torch.from_numpy(part) for rows in parts for part in (images[rows].reshape(-1, 784) / np.float32(255), labels[rows])]


@pytest.fixture(scope="module")
def pairs():
    """The 3s and 7s among 2,000 and 600 images, all 3s first, targets (n, 1), as in lesson 03."""
    images, labels = _embedded_mnist("images"), _embedded_mnist("labels")
    found = []
    for rows in (slice(2000), slice(60_000, 60_600)):
        numbers = [np.flatnonzero(labels[rows] == digit) + rows.indices(70_000)[0] for digit in (3, 7)]
        found.append(torch.from_numpy(images[np.concatenate(numbers)].reshape(-1, 784) / np.float32(255)))
        found.append((torch.arange(len(found[-1])) < len(numbers[0])).float()[:, None])
    return found


def loaders(data, batch_size=64, shuffle=True):
    """DataLoaders of four tensors: training inputs and targets, validation inputs and targets."""
    train_x, train_y, valid_x, valid_y = data
    return DataLoaders(Batches(train_x, train_y, batch_size=batch_size, shuffle=shuffle), Batches(valid_x, valid_y, batch_size=400))


def images_of(digits):
    """The same data as images (n, 1, 28, 28)."""
    return [part.view(-1, 1, 28, 28) if part.ndim == 2 else part for part in digits]


def complaints(*setup, **learner):
    """What is neither ok nor skip: {check: (status, all that is said)}; a check that broke off counts, too."""
    findings = doctor(*setup, **learner).findings
    return {name: (found.status, f"{found.value} {found.told()}") for name, found in findings.items() if found.status in ("warn", "fail")}


def statuses(*setup):
    return {name: status for name, (status, _) in complaints(*setup).items()}


def mlp():
    torch.manual_seed(0)
    return MLP([784, 30, 1])


def network(*sizes):
    torch.manual_seed(0)
    layers = [layer for pair in zip(sizes, sizes[1:]) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def small_cnn(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
                         nn.Flatten(), nn.Dropout(dropout), nn.Linear(784, 10))


class ByHand:
    """The linear model of lesson 03, with its own parameters()."""
    def __init__(self, std=1.0): self.weights, self.bias = init_params((784, 1), std), init_params(1)
    def __call__(self, xb): return linear(xb, self.weights, self.bias)
    def parameters(self): return [self.weights, self.bias]


# Findings and the report

def test_a_finding_has_one_of_four_statuses():
    with pytest.raises(ValueError, match="'good': expected one of fail, warn, ok, skip"):
        Finding("good", "1")


def test_report_is_a_table_of_flat_columns_and_shows_itself(digits):
    report = doctor(loaders(digits), network(784, 10), F.cross_entropy)
    assert isinstance(report, Report) and isinstance(report.checks, pd.DataFrame)
    assert list(report.checks.columns) == ["check", "status", "value", "advice"]
    assert set(report.checks.status) <= {"ok", "warn", "fail", "skip"} and report.checks.check.is_unique
    assert "nothing wrong found" in report.verdict and report.verdict in repr(report) and report.verdict in report._repr_html_()
    assert all(name in repr(report) and name in report._repr_html_() for name in report.checks.check)
    assert report.problems.empty and (report.checks[report.checks.status == "ok"].value != "").all()


def test_report_shows_problems_first_and_escapes_html():
    report = Report({"a": Finding("ok", "fine"), "b": Finding("fail", "<x>", "y", "z & more")})
    shown = report._repr_html_()
    assert "&lt;x&gt;" in shown and "<x>" not in shown and "z &amp; more" in shown
    assert shown.index("&lt;x&gt;") < shown.index("<details") < shown.index("fine")
    assert repr(report).index("fail  b") < repr(report).index("ok    a") and list(report.problems.check) == ["b"]


# Preflight

def test_preflight_covers_the_machine():
    report = doctor()
    assert list(report.checks.check) == ["python", "torch", "device", "threads", "memory", "disk", "packages", "optional packages", "embedded data"]
    assert not {"fail"} & set(report.checks.status), report
    assert report.findings["embedded data"].status == "ok"
    if not torch.cuda.is_available() and not torch.backends.mps.is_available(): assert report.findings["device"].status == "skip"


def test_preflight_names_damaged_data(monkeypatch):
    monkeypatch.setattr("lessonlib.doctor.verify_data", lambda: ["mnist/images.npy.xz: SHA-256 0, expected 1"])
    found = doctor().findings["embedded data"]
    assert found.status == "fail" and "mnist/images.npy.xz" in found.value


def test_preflight_tells_needed_from_optional_packages(monkeypatch):
    wanted = ["torch<3,>=2", "surely-missing>=1", 'never-heard-of>1; extra == "course"', 'torch[some]<4,>=2; extra == "other"',
              'for-developers; extra == "dev"', "torch<1"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: wanted)
    findings = doctor().findings
    assert findings["packages"].status == "fail" and "surely-missing is missing" in findings["packages"].value
    assert "needs <1" in findings["packages"].value and findings["optional packages"].status == "skip"
    assert findings["optional packages"].value == "never-heard-of is missing" and "lessonlib[course]" in findings["optional packages"].advice


def test_import_is_light():
    heavy = ["pandas", "matplotlib", "torchvision", "PIL", "ipywidgets"]
    code = f"import sys, lessonlib.doctor; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# No false alarm

def test_no_preflight_rows_with_data(digits):
    assert not set(_PREFLIGHT) & set(_TRAINING)
    training = [name for name in _TRAINING if name.startswith("training")]
    assert list(doctor(loaders(digits), network(784, 10)).checks.check) == list(_TRAINING)[:-len(training)]
    assert {name.split(":")[0] for name in doctor(loaders(digits)).checks.check} == {"inputs", "labels", "split"}


@pytest.mark.parametrize("model", [ByHand, lambda: nn.Linear(784, 1), mlp, lambda: network(784, 30, 1)], ids=["by hand", "nn.Linear", "MLP", "nn"])
@pytest.mark.parametrize("loss_func", [mnist_loss, F.binary_cross_entropy_with_logits, None])
def test_lessons_03_and_04_are_healthy(pairs, model, loss_func):
    torch.manual_seed(0)
    assert complaints(loaders(pairs, 256), model(), loss_func) == {}


def test_lesson_03_in_its_published_order_gets_one_warning(pairs):
    found = complaints(loaders(pairs, 64, shuffle=False), ByHand(), mnist_loss)
    assert list(found) == ["labels: order"] and found["labels: order"][0] == "warn"


@pytest.mark.parametrize("seed", range(5))
def test_healthy_for_any_start(digits, pairs, seed):
    torch.manual_seed(seed)
    assert complaints(loaders(digits), nn.Sequential(nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10)), F.cross_entropy) == {}
    assert complaints(loaders(pairs), MLP([784, 30, 1]), mnist_loss) == complaints(loaders(pairs), ByHand(), mnist_loss) == {}


@pytest.mark.parametrize("model", [lambda: network(784, 10), lambda: network(784, 50, 10), lambda: MLP([784, 50, 10])], ids=["linear", "nn", "MLP"])
@pytest.mark.parametrize("loss_func", [F.cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss(reduction="sum"), None])
def test_ten_digits_are_healthy(digits, model, loss_func):
    torch.manual_seed(0)
    assert complaints(loaders(digits), model(), loss_func) == {}


def test_normalised_inputs_are_healthy(digits):
    train_x, train_y, valid_x, valid_y = digits
    data = [(train_x - 0.13) / 0.31, train_y, (valid_x - 0.13) / 0.31, valid_y]
    assert complaints(loaders(data), network(784, 50, 10)) == {}
    data = [torch.randn(200, 20), torch.arange(200) % 3, torch.randn(60, 20), torch.arange(60) % 3]
    assert complaints(loaders(data), network(20, 30, 3)) == {}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_small_cnn_with_batch_norm_is_healthy(digits, dropout):
    assert complaints(loaders(images_of(digits)), small_cnn(dropout), nn.CrossEntropyLoss()) == {}


def test_colour_images_are_healthy():
    generator = torch.Generator().manual_seed(0)
    train_x, valid_x = torch.rand(96, 3, 32, 32, generator=generator), torch.rand(32, 3, 32, 32, generator=generator)
    data = [train_x, torch.arange(96) % 4, valid_x, torch.arange(32) % 4]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(1800, 4))
    assert complaints(loaders(data, 16), model, nn.CrossEntropyLoss()) == {}


def test_half_empty_starts_are_healthy(digits):
    """A residual branch that starts at 0 has no gradient before the second step; a frozen body has none by intention."""
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(3136, 10)
            nn.init.zeros_(self.norm.weight)

        def forward(self, xb): return self.head((xb + self.norm(self.conv(xb))).flatten(1))

    torch.manual_seed(0)
    assert complaints(loaders(images_of(digits)), Residual(), F.cross_entropy) == {}
    frozen = network(784, 50, 10)
    frozen[0].requires_grad_(False)
    assert complaints(loaders(digits), frozen, F.cross_entropy) == {}
    zero = nn.Linear(784, 10)
    nn.init.zeros_(zero.weight), nn.init.zeros_(zero.bias)
    assert complaints(loaders(digits), zero, F.cross_entropy) == {}


def test_a_lazy_model_is_healthy_and_stays_lazy(digits):
    model = nn.Sequential(nn.LazyLinear(50), nn.ReLU(), nn.LazyLinear(10))
    report = doctor(loaders(digits), model, F.cross_entropy)
    assert report.problems.empty and report.findings["model: overfit one batch"].status == "ok"
    assert isinstance(model[0].weight, nn.UninitializedParameter)


def test_a_trained_model_is_healthy(digits):
    model = network(784, 50, 10)
    opt = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(15):
        for xb, yb in loaders(digits).train: opt.zero_grad(), F.cross_entropy(model(xb), yb).backward(), opt.step()
    report = doctor(loaders(digits), model, F.cross_entropy)
    assert report.problems.empty and "learned already" in report.findings["model: loss at the start"].value


@pytest.mark.parametrize("loss_func", [mse, mae, nn.MSELoss(), None])
def test_regression_on_noisy_points_is_healthy(loss_func):
    torch.manual_seed(0)
    x = torch.linspace(-2, 2, 60)[torch.randperm(60)][:, None]
    y = (3 * x**2 + 2 * x + 1) * (1 + 0.15 * torch.randn(60, 1)) + 1.5 * torch.randn(60, 1)
    data = [x[:40], y[:40], x[40:], y[40:]]
    for model in (MLP([1, 30, 1]), network(1, 50, 1)): assert complaints(loaders(data, 40), model, loss_func) == {}


@pytest.mark.parametrize("kind", ["tensors", "sampler", "lazy", "list", "arrays", "iterable", "subset"])
def test_every_kind_of_loader_is_healthy(digits, kind):
    train_x, train_y, valid_x, valid_y = digits

    class Lazy(Dataset):
        def __init__(self, x, y): self.x, self.y = x, y
        def __len__(self): return len(self.x)
        def __getitem__(self, index): return self.x[index], int(self.y[index])

    class Stream(IterableDataset):
        def __init__(self, x, y): self.x, self.y = x, y
        def __iter__(self): return iter(zip(self.x, self.y))

    def loader(x, y, shuffle):
        if kind == "list": return list(Batches(x, y, batch_size=64, shuffle=shuffle))
        if kind == "arrays": return [(xb.numpy(), yb.numpy()) for xb, yb in Batches(x, y, batch_size=64, shuffle=shuffle)]  # as `Learner` takes them
        if kind == "iterable": return DataLoader(Stream(x, y), batch_size=64)
        dataset = TensorDataset(x, y) if kind in ("tensors", "sampler", "subset") else Lazy(x, y)
        if kind == "sampler": return DataLoader(dataset, batch_size=64, sampler=SubsetRandomSampler(range(len(x) // 2)))
        return DataLoader(Subset(dataset, range(300)) if kind == "subset" else dataset, batch_size=64, shuffle=shuffle)

    dls = DataLoaders(loader(train_x, train_y, True), loader(valid_x, valid_y, False))
    report = doctor(dls, network(784, 50, 10), F.cross_entropy)
    assert report.problems.empty, report
    assert report.findings["inputs: loading"].status == report.findings["model: overfit one batch"].status == "ok"


def test_an_embedding_may_have_whole_numbers_as_inputs():
    torch.manual_seed(0)
    words, labels = torch.randint(0, 500, (200, 6)), torch.randint(0, 2, (200,))
    model = nn.Sequential(nn.Embedding(500, 8), nn.Flatten(), nn.Linear(48, 2))
    assert complaints(loaders([words[:150], labels[:150], words[150:], labels[150:]]), model) == {}


def test_a_function_is_a_model_whose_parameter_checks_are_skipped(pairs):
    weights, bias = init_params((784, 1), 0.1), init_params(1)
    report = doctor(loaders(pairs), lambda xb: linear(xb, weights, bias), mnist_loss)
    assert report.problems.empty and report.findings["model: forward"].status == "ok"
    for name in ("model: parameters", "model: gradients", "model: overfit one batch", "speed: epoch"):
        assert report.findings[name].status == "skip" and "parameters()" in report.findings[name].told()


# The toggles that it can see

def test_inputs_scaled_twice(pairs):
    train_x, train_y, valid_x, valid_y = pairs
    found = complaints(loaders([train_x / 255, train_y, valid_x / 255, valid_y]), mlp(), mnist_loss)
    assert found["inputs: range"][0] == "fail" and "scaled twice" in found["inputs: range"][1] and "0.00392" in found["inputs: range"][1]
    again = [(part - 0.13) / 0.31 if part.shape[1] > 1 else part for part in (train_x / 255, train_y, valid_x / 255, valid_y)]
    assert "scaled twice" in complaints(loaders(again), mlp(), mnist_loss)["inputs: range"][1]
    twice = [((part - 0.13) / 0.31 - 0.13) / 0.31 if part.shape[1] > 1 else part for part in pairs]
    assert complaints(loaders(twice), mlp(), mnist_loss)["inputs: range"][0] == "warn"
    assert list(complaints(loaders([train_x, train_y, valid_x / 255, valid_y]), mlp(), mnist_loss)) == ["split: alike"]


def test_inputs_never_scaled(pairs):
    train_x, train_y, valid_x, valid_y = pairs
    assert complaints(loaders([train_x * 255, train_y, valid_x * 255, valid_y]), mlp(), mnist_loss)["inputs: range"][0] == "fail"
    found = complaints(loaders([(train_x * 255).byte(), train_y, (valid_x * 255).byte(), valid_y]), mlp(), mnist_loss)
    assert found["inputs: dtype"][0] == "fail" and "255" in found["inputs: dtype"][1] and found["inputs: range"][0] == "fail"


@pytest.mark.parametrize("stored", [True, False])
def test_sorted_and_not_shuffled(digits, stored):
    train_x, train_y, valid_x, valid_y = digits
    order = train_y.argsort()
    data = loaders([train_x[order], train_y[order], valid_x, valid_y], 32, shuffle=False)
    if not stored: data = DataLoaders(DataLoader([*zip(train_x[order], train_y[order])], batch_size=32), data.valid)
    found = complaints(data, network(784, 50, 10), F.cross_entropy)
    assert list(found) == ["labels: order"] and "sorted and not shuffled" in found["labels: order"][1] and "one class" in found["labels: order"][1]
    assert complaints(loaders([train_x[order], train_y[order], valid_x, valid_y], 32), network(784, 50, 10), F.cross_entropy) == {}


def test_dead_relus(pairs, digits):
    model = mlp()
    with torch.no_grad(): model.biases[0] -= 50
    found = complaints(loaders(pairs), model, mnist_loss)
    assert found["model: dead units"][0] == "fail" and "Dead ReLUs" in found["model: dead units"][1] and "30 of 30" in found["model: dead units"][1]
    assert found["model: gradients"][0] == "fail" and "model: outputs" not in found
    partly = network(784, 50, 10)
    with torch.no_grad(): partly[0].bias[:30] -= 50
    assert statuses(loaders(digits), partly, F.cross_entropy) == {"model: dead units": "warn"}
    functional = MLP([784, 30, 1])
    with torch.no_grad(): functional.weights[0].abs_().neg_()
    assert complaints(loaders(pairs), lambda xb: functional(xb), mnist_loss)["model: dead units"][0] == "fail"


def test_all_weights_zero(pairs):
    model = mlp()
    with torch.no_grad(): [param.zero_() for param in model.parameters()]
    found = complaints(loaders(pairs), model, mnist_loss)
    assert found["model: gradients"][0] == "fail" and "always 0" in found["model: gradients"][1]


def test_labels_counted_from_one(digits, pairs):
    train_x, train_y, valid_x, valid_y = digits
    found = complaints(loaders([train_x, train_y + 1, valid_x, valid_y + 1]), network(784, 10), F.cross_entropy)
    assert list(found) == ["labels: range"] and found["labels: range"][0] == "fail" and "Labels shifted by one" in found["labels: range"][1]
    found = complaints(loaders([train_x, train_y + 1, valid_x, valid_y + 1]), network(784, 11), F.cross_entropy)
    assert list(found) == ["labels: range"] and found["labels: range"][0] == "warn" and "shifted by one" in found["labels: range"][1]
    train_x, train_y, valid_x, valid_y = pairs
    for loss_func in (mnist_loss, None):
        found = complaints(loaders([train_x, train_y + 1, valid_x, valid_y + 1]), mlp(), loss_func)
        assert "Labels shifted by one" in found["labels: range"][1]


@pytest.mark.parametrize("places", [1, -1])
def test_labels_shifted_by_one_item(digits, places):
    train_x, train_y, valid_x, valid_y = digits
    found = complaints(loaders([train_x, train_y.roll(places), valid_x, valid_y]), network(784, 50, 10), F.cross_entropy)
    assert found["labels: slipped"][0] == "fail" and "Labels shifted by one item" in found["labels: slipped"][1]
    assert f"yb.roll({-places}, 0)" in found["labels: slipped"][1]
    assert "labels: slipped" in complaints(loaders([train_x, train_y, valid_x, valid_y.roll(places)]), network(784, 50, 10), F.cross_entropy)


def test_labels_shifted_by_one_in_one_set(digits):
    train_x, train_y, valid_x, valid_y = digits
    found = complaints(loaders([train_x, (train_y + 1) % 10, valid_x, valid_y]), network(784, 50, 10), F.cross_entropy)
    assert list(found) == ["split: label numbers"] and "Labels shifted by one" in found["split: label numbers"][1]


def test_metric_on_the_training_set(pairs):
    train_x, train_y, valid_x, valid_y = pairs
    found = complaints(loaders([train_x, train_y, train_x[:300], train_y[:300]]), mlp(), mnist_loss)
    assert found["split: duplicates"][0] == "fail" and "metric is measured on the training set" in found["split: duplicates"][1]
    train = Batches(train_x, train_y, batch_size=64, shuffle=True)
    assert "split: duplicates" in complaints(DataLoaders(train, train), mlp(), mnist_loss)


def test_what_a_much_too_large_learning_rate_leaves_behind(digits):
    model = network(784, 50, 10)
    with torch.no_grad(): model[0].weight.fill_(torch.nan)
    status, said = complaints(loaders(digits), model, F.cross_entropy)["model: parameters"]
    assert status == "fail" and "learning rate" in said and "0.weight" in said


NAMED = {"learning rate ÷ 1000": {"training: learning rate": "far too small"}, "inputs scaled twice": {"inputs: range": "scaled twice"},
         "labels shifted by one": {"labels: slipped": "shifted by one"},
         "metric measured on the training set": {"split: duplicates": "measured on the training set"},
         "learning rate × 100": {"training: learning rate": "far too large"},
         "gradients never zeroed": {"training: gradients zeroed": "never zeroed"},
         "sorted and never shuffled": {"labels: order": "sorted and not shuffled"},
         "dead ReLUs from a bad start": {"model: gradients": "dead", "model: dead units": "Dead ReLUs", "model: overfit one batch": ""}}


@pytest.mark.parametrize("case", BREAKS.values())
def test_each_case_of_lesson_05_is_named_and_its_repair_is_healthy(threes_and_sevens, case):
    def setup(broken):
        torch.manual_seed(0)
        return dict(zip(("learn", "lr"), break_it(case, *threes_and_sevens, broken)))

    found = complaints(**setup(True))
    assert {name for name in found if "scaled" not in case or name == "inputs: range"} == set(NAMED[case])
    for name, words in NAMED[case].items(): assert words in found[name][1]
    assert complaints(**setup(False)) == {}


# With a learner

HEALTHY = {"lesson 03 by hand": (ByHand, mnist_loss, BasicOptim, 1.0), "lesson 03": (lambda: nn.Linear(784, 1), mnist_loss, BasicOptim, 1.0),
           "lesson 04": (lambda: MLP([784, 30, 1]), mnist_loss, BasicOptim, 0.1),
           "lesson 05": (lambda: MLP([784, 30, 1]), mnist_loss, BasicOptim, 0.5),
           "Adam": (lambda: MLP([784, 30, 1]), mnist_loss, torch.optim.Adam, 0.05),
           "AdamW": (lambda: network(784, 30, 1), F.binary_cross_entropy_with_logits, torch.optim.AdamW, 2e-3),
           "momentum": (lambda: network(784, 30, 1), mnist_loss, partial(torch.optim.SGD, momentum=0.9), 0.1)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", HEALTHY)
def test_optimisers_and_learning_rates_of_the_lessons_are_healthy(pairs, name, seed):
    build, loss_func, opt_func, lr = HEALTHY[name]
    torch.manual_seed(seed)
    learn = Learner(loaders(pairs, 256), build(), loss_func, opt_func, show=False)
    assert complaints(learn=learn, lr=lr) == {}
    learn.fit(2, lr)
    assert complaints(learn=learn) == {}


def test_lesson_06_is_healthy_with_its_learning_rate(digits):
    for model in (network(784, 10), network(784, 50, 10)):
        learn = Learner(loaders(digits, 128), model, F.cross_entropy, show=False)
        assert complaints(learn=learn, lr=0.3) == {}


def test_a_learning_rate_that_is_not_known_is_asked_for(digits):
    learn = Learner(loaders(digits), network(784, 10), F.cross_entropy, show=False)
    found = doctor(learn=learn).findings
    assert found["training: learning rate"].status == "skip" and "lr=0.1" in found["training: learning rate"].told()
    assert found["training: gradients zeroed"].status == "ok"
    learn.fit(1, 1e-5)
    assert "far too small" in complaints(learn=learn)["training: learning rate"][1]


def test_a_learner_is_as_before_and_alone(digits):
    class Groups(Learner):
        """As `VisionLearner`: the learning rate is a slice, with a group for each layer."""
        def make_opt(self, lr):
            return self.opt_func([{"params": part.parameters(), "lr": rate} for part, rate in zip(self.model[::2], (lr.start, lr.stop))], lr=lr.stop)

    learn = Groups(loaders(digits), network(784, 50, 10), F.cross_entropy, torch.optim.AdamW, show=False)
    before = copy.deepcopy(everything(learn.model, digits))
    assert complaints(learn=learn, lr=slice(1e-4, 1e-3)) == {}
    assert "far too small" in complaints(learn=learn, lr=slice(1e-9, 1e-8))["training: learning rate"][1]
    assert same(before, everything(learn.model, digits)) and learn.rows == [] and not hasattr(learn, "opt")
    with pytest.raises(TypeError, match=r"doctor\(learn=learn\)"): doctor(learn.dls, learn=learn)


# What else it names

@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_in_one_place_of_either_set(pairs, bad):
    for part in (0, 2):
        data = [tensor.clone() for tensor in pairs]
        data[part][5, 400] = bad
        found = complaints(loaders(data), mlp(), mnist_loss)
        assert found["inputs: NaN or infinite"][0] == "fail" and "1 of " in found["inputs: NaN or infinite"][1]


def test_a_few_duplicates_across_the_split(pairs):
    train_x, train_y, valid_x, valid_y = pairs
    data = [train_x, train_y, torch.cat([valid_x, train_x[7:9]]), torch.cat([valid_y, train_y[7:9]])]
    assert "2 of " in complaints(loaders(data), mlp(), mnist_loss)["split: duplicates"][1]
    assert statuses(loaders(data), mlp(), mnist_loss) == {"split: duplicates": "warn"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64, torch.bool])
def test_content_hashes_are_equal_exactly_for_equal_content(dtype):
    torch.manual_seed(0)
    rows = torch.randint(0, 2, (2000, 40)).to(dtype)  # numbers with few different bits are the hard ones
    hashes = _content_hashes(torch.cat([rows, rows[:100]]))
    assert torch.equal(hashes[-100:], hashes[:100]) and len(hashes.unique()) == len(rows.unique(dim=0))


def test_constant_channel_and_equal_items(digits):
    torch.manual_seed(0)
    images, labels = torch.rand(60, 4, 8, 8), torch.arange(60) % 2
    images[:, 3] = 1
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    found = complaints(loaders([images[:40], labels[:40], images[40:], labels[40:]]), model)
    assert list(found) == ["inputs: constant channels"] and "[3]" in found["inputs: constant channels"][1]
    same = torch.rand(1, 784).expand(100, -1)
    assert complaints(loaders([same, digits[1][:100], *digits[2:]]), network(784, 10))["inputs: constant channels"][0] == "fail"


@pytest.mark.parametrize(("change", "model", "word"), [
    (lambda x: x.view(-1, 28, 28), network(784, 10), "x.view(len(x), -1)"),
    (lambda x: x.view(-1, 28, 28), small_cnn(), "x[:, None]"),
    (lambda x: x, small_cnn(), "not rows"),
    (lambda x: x.view(-1, 28, 28, 1), small_cnn(), "permute"),
    (lambda x: x.view(-1, 1, 28, 28).expand(-1, 3, -1, -1), small_cnn(), "1 channels; there are 3"),
    (lambda x: x[:, :700], MLP([784, 10]), "784 numbers for each item; there are 700"),
])
def test_shapes_that_do_not_fit_the_model(digits, change, model, word):
    train_x, train_y, valid_x, valid_y = digits
    found = complaints(loaders([change(train_x), train_y, change(valid_x), valid_y]), model, F.cross_entropy)
    assert found["inputs: shape"][0] == found["model: forward"][0] == "fail" and word in found["inputs: shape"][1]
    assert not {name for name in found if name.startswith("model")} - {"model: forward"}, "what follows from it is skipped"


@pytest.mark.parametrize(("labels", "loss_func", "word"), [
    (lambda y: y.float(), F.cross_entropy, "targets.long()"),
    (lambda y: y[:, None], F.cross_entropy, "targets[:, 0]"),
    (lambda y: y.int(), nn.CrossEntropyLoss(), "targets.long()"),
    (lambda y: (y > 4).float(), F.binary_cross_entropy_with_logits, "(64, 10)"),
])
def test_labels_of_the_wrong_type(digits, labels, loss_func, word):
    train_x, train_y, valid_x, valid_y = digits
    found = complaints(loaders([train_x, labels(train_y), valid_x, labels(valid_y)]), network(784, 10), loss_func)
    assert found["labels: type"][0] == "fail" and word in found["labels: type"][1]


def test_binary_targets_of_the_wrong_shape_or_type(pairs):
    train_x, train_y, valid_x, valid_y = pairs
    for loss_func in (nn.MSELoss(), F.binary_cross_entropy_with_logits, mnist_loss, None):
        found = complaints(loaders([train_x, train_y[:, 0], valid_x, valid_y[:, 0]]), mlp(), loss_func)
        assert found["labels: type"][0] == "fail" and "targets[:, None]" in found["labels: type"][1]
    found = complaints(loaders([train_x, train_y.long(), valid_x, valid_y.long()]), mlp(), nn.BCEWithLogitsLoss())
    assert "targets.float()" in found["labels: type"][1] and found["model: loss function"][0] == "fail"
    assert complaints(loaders([train_x, train_y.long(), valid_x, valid_y.long()]), mlp(), mnist_loss) == {}  # which takes whole numbers


def test_labels_outside_of_the_classes_and_ignored_ones(digits):
    train_x, train_y, valid_x, valid_y = digits
    found = complaints(loaders([train_x, train_y, valid_x, valid_y]), network(784, 7), F.cross_entropy)
    assert list(found) == ["labels: range"] and "0 to 9" in found["labels: range"][1] and "7 outputs" in found["labels: range"][1]
    ignored = train_y.clone()
    ignored[::9] = -100
    assert complaints(loaders([train_x, ignored, valid_x, valid_y]), network(784, 10), nn.CrossEntropyLoss()) == {}


def test_one_class_and_rare_classes(digits):
    train_x, train_y, valid_x, valid_y = digits
    fives = train_y == 5
    found = complaints(loaders([train_x[fives], train_y[fives], valid_x, valid_y]), network(784, 10))
    assert found["labels: balance"][0] == "fail" and "every label is 5" in found["labels: balance"][1]
    rare = ~fives | (torch.arange(700) < 30)
    assert statuses(loaders([train_x[rare], train_y[rare], valid_x, valid_y]), network(784, 10)) == {"labels: balance": "warn"}
    assert "class 5" in complaints(loaders([train_x, train_y, valid_x[valid_y != 5], valid_y[valid_y != 5]]), network(784, 10))["labels: balance"][1]


def test_loss_at_the_start_only_for_cross_entropy(digits, pairs):
    model = network(784, 50, 10)
    with torch.no_grad(): model[2].weight *= 100
    found = complaints(loaders(digits), model, F.cross_entropy)
    assert list(found) == ["model: loss at the start"] and "ln(10) = 2.3" in found["model: loss at the start"][1]
    loud = mlp()
    with torch.no_grad(): loud.weights[1] *= 30
    report = doctor(loaders(pairs), loud, mnist_loss)
    assert report.findings["model: loss at the start"].status == "skip"


def test_gradients_that_do_not_arrive(pairs):
    class Cut(nn.Module):
        def __init__(self, cut=True):
            super().__init__()
            self.first, self.second, self.spare, self.cut = nn.Linear(784, 30), nn.Linear(30, 1), nn.Linear(2, 2), cut

        def forward(self, xb):
            hidden = torch.relu(self.first(xb))
            return self.second(hidden.detach() if self.cut else hidden)

    torch.manual_seed(0)
    found = complaints(loaders(pairs), Cut(), mnist_loss)["model: gradients"]
    assert found[0] == "fail" and "first.weight" in found[1] and "detach" in found[1]
    found = complaints(loaders(pairs), Cut(cut=False), mnist_loss)
    assert list(found) == ["model: gradients"] and found["model: gradients"][0] == "warn" and "spare.weight" in found["model: gradients"][1]

    class NoGrad(nn.Linear):
        @torch.no_grad()
        def forward(self, xb): return super().forward(xb)
    assert complaints(loaders(pairs), NoGrad(784, 1), mnist_loss)["model: gradients"][0] == "fail"


def test_parameters_that_are_no_leaves_or_all_frozen(pairs):
    model = ByHand()
    model.weights = torch.randn(784, 1, requires_grad=True) * 0.1
    found = complaints(loaders(pairs), model, mnist_loss)
    assert found["model: parameters"][0] == "fail" and "requires_grad_()" in found["model: parameters"][1]
    assert complaints(loaders(pairs), nn.Linear(784, 1).requires_grad_(False), mnist_loss)["model: parameters"][0] == "fail"
    assert complaints(loaders(pairs), nn.Flatten(), mnist_loss)["model: parameters"][0] == "fail"


def test_softmax_or_sigmoid_done_twice(digits, pairs):
    assert complaints(loaders(digits), nn.Sequential(network(784, 50, 10), nn.Softmax(1)), F.cross_entropy)["model: outputs"][0] == "warn"
    assert complaints(loaders(pairs), nn.Sequential(network(784, 30, 1), nn.Sigmoid()), mnist_loss)["model: outputs"][0] == "warn"
    assert complaints(loaders(pairs), nn.Sequential(network(784, 30, 1), nn.Sigmoid()), nn.BCELoss()) == {}
    assert complaints(loaders(digits), nn.Sequential(network(784, 50, 10), nn.LogSoftmax(1)), nn.NLLLoss()) == {}
    assert complaints(loaders(digits), network(784, 50, 10), F.nll_loss)["model: outputs"][0] == "fail"
    assert complaints(loaders(digits), network(784, 50, 1), F.cross_entropy)["model: outputs"][0] == "fail"


def test_a_model_that_cannot_learn_a_batch(digits):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(10))

        def forward(self, xb): return self.bias.expand(len(xb), 10)
    assert complaints(loaders(digits), Constant(), F.cross_entropy)["model: overfit one batch"][0] == "fail"


def test_one_bad_start_is_no_alarm(pairs):
    """Logits so large that the sigmoid is flat, and wrong for one class: the loss hardly moves, but the set-up is right."""
    model = ByHand()
    with torch.no_grad():
        model.weights.abs_()
        model.weights += 2
    found = doctor(loaders(pairs), model, mnist_loss).findings["model: overfit one batch"]
    assert found.status == "ok" and "slow start" in found.told()


def test_speed_says_how_long_an_epoch_takes(digits):
    found = doctor(loaders(digits), network(784, 10), F.cross_entropy).findings["speed: epoch"]
    assert found.status == "ok" and "11 mini-batches" in found.value and "64 items" in found.value


# The loss function

def test_loss_is_inferred_from_the_targets(digits, pairs):
    def inferred(data, model): return doctor(loaders(data), model).findings["model: loss function"].value
    assert "cross_entropy, inferred" in inferred(digits, network(784, 10))
    assert "binary_cross_entropy_with_logits, inferred" in inferred(pairs, mlp())
    numbers = [part if part.ndim == 2 else part[:, None] * 1.5 for part in digits]
    assert "mse_loss, inferred" in inferred(numbers, network(784, 1))
    whole = [part if part.shape[1] > 1 else part[:, 0].long() for part in pairs]
    assert "binary" in inferred(whole, network(784, 1)) and "cross_entropy" in inferred(whole, network(784, 2))


def test_given_losses_that_go_wrong(digits):
    def vector(preds, targets): return F.cross_entropy(preds, targets, reduction="none")
    def broken(preds, targets): raise RuntimeError("no way")
    for loss_func, word in [(vector, "expected one number"), (broken, "no way"), (partial(F.cross_entropy, reduction="none"), "(64,)")]:
        found = complaints(loaders(digits), network(784, 10), loss_func)
        assert list(found) == ["model: loss function"] and word in found["model: loss function"][1]


# Bad input

def test_wrong_arguments_are_named(digits):
    with pytest.raises(TypeError, match="dls is a Batches: expected DataLoaders"):
        doctor(loaders(digits).train, network(784, 10))
    with pytest.raises(TypeError, match=r"doctor\(dls, model, loss_func\)"):
        doctor(model=network(784, 10))


def test_data_that_cannot_be_read_are_one_finding(digits):
    class Broken(Dataset):
        def __len__(self): return 100
        def __getitem__(self, index): raise OSError("image 7 is truncated")

    class Pictures(Dataset):
        def __len__(self): return 100

        def __getitem__(self, index):
            from PIL import Image
            return Image.new("L", (28, 28)), index % 10

    valid = loaders(digits).valid
    for train, word in [(DataLoader(Broken()), "image 7 is truncated"), (DataLoader(Pictures()), "ToTensor"), ([], "empty"),
                        (iter(valid), "walked only once"), ([(1, 2, 3)], "3 parts"), (Batches(digits[0], batch_size=9), "pair"),
                        (Batches(digits[0][:0], digits[1][:0]), "empty"), ([("abc", "def")], "ToTensor"),
                        ([(torch.zeros(3, 784), torch.zeros(2))], "as many targets")]:
        report = doctor(DataLoaders(train, valid), network(784, 10), F.cross_entropy)
        assert list(report.problems.check) == ["inputs: loading"], report
        assert word in report.findings["inputs: loading"].value + report.findings["inputs: loading"].told()


def test_without_validation_set(digits):
    dls = DataLoaders(loaders(digits).train, None)
    assert statuses(dls, network(784, 10), F.cross_entropy) == {"split: sizes": "warn"}


def test_a_model_that_fails_is_one_finding(digits):
    def broken(xb): raise RuntimeError("layer 3 does not fit")
    found = complaints(loaders(digits), broken, F.cross_entropy)
    assert list(found) == ["model: forward"] and "layer 3 does not fit" in found["model: forward"][1]
    assert list(complaints(loaders(digits), lambda xb: (xb, xb), F.cross_entropy)) == ["model: forward"]


def test_a_check_that_raises_is_a_row(digits, monkeypatch):
    def surprise(case): raise KeyError("surprise")
    monkeypatch.setitem(_TRAINING, "inputs: range", surprise)
    report = doctor(loaders(digits), network(784, 10), F.cross_entropy)
    assert report.findings["inputs: range"].status == "warn" and "surprise" in report.findings["inputs: range"].value
    assert len(report.findings) == len(_TRAINING) - 2 and list(report.problems.check) == ["inputs: range"]


# Everything is as before

def everything(model, data):
    """All that may not change, as plain values and tensors."""
    states = [torch.get_rng_state(), *(torch.from_numpy(part.copy()) for part in np.random.get_state()[1:2]), *data]
    if isinstance(model, nn.Module):
        states += [value.clone() for value in model.state_dict().values()]
        rest = [module.training for module in model.modules()]
    else:
        rest = sorted(vars(model))
    grads = [None if param.grad is None else param.grad.clone() for param in model.parameters()]
    params = [param.detach().clone() for param in model.parameters()]
    return [state.clone() for state in states], rest, random.getstate(), grads, params, [param.requires_grad for param in model.parameters()]


def same(before, after):
    if isinstance(before, torch.Tensor): return isinstance(after, torch.Tensor) and torch.equal(before, after)
    if isinstance(before, (list, tuple)): return len(before) == len(after) and all(map(same, before, after))
    return before == after


@pytest.mark.parametrize("training", [True, False])
def test_model_data_and_random_states_are_as_before(digits, training):
    data, model = [part.clone() for part in images_of(digits)], small_cnn(dropout=0.5).train(training)
    model[0].eval()
    F.cross_entropy(model(data[0][:8]), data[1][:8]).backward()
    hooked = []
    model[3].register_forward_hook(lambda *args: hooked.append(1))
    before = copy.deepcopy(everything(model, data))
    for shuffle in (True, False):
        doctor(loaders(data, shuffle=shuffle), model, nn.CrossEntropyLoss())
        assert same(before, everything(model, data)) and not hooked


def test_hand_built_models_and_functions_are_as_before(pairs):
    model = mlp()
    mnist_loss(model(pairs[0][:8]), pairs[1][:8]).backward()
    layer_inputs = model._layer_inputs
    before = copy.deepcopy(everything(model, pairs))
    doctor(loaders(pairs), model, mnist_loss)
    assert model._layer_inputs is layer_inputs
    doctor(loaders(pairs), lambda xb: model(xb), mnist_loss)
    assert same(before, everything(model, pairs))
    net = nn.Sequential(nn.Linear(784, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
    before = copy.deepcopy(everything(net, pairs))
    for function in (lambda xb: net(xb), partial(lambda other, xb: net(xb), 1), net.forward):
        doctor(loaders(pairs), function, mnist_loss)
        assert same(before, everything(net, pairs))


def test_inputs_survive_a_model_that_writes_into_them(digits):
    class Greedy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(784, 10)

        def forward(self, xb): return self.layer(xb.mul_(0.5))

    data = [part.clone() for part in digits]
    doctor(loaders(data, shuffle=False), Greedy(), F.cross_entropy)
    assert same(data, digits)


def test_generators_of_the_data_are_as_before(digits):
    class Noisy(Dataset):
        def __init__(self): self.rng, self.old, self.plain = np.random.default_rng(1), np.random.RandomState(2), random.Random(3)
        def __len__(self): return 100

        def __getitem__(self, index):
            noise = self.rng.random() + self.old.rand() + self.plain.random() + torch.rand(784)
            return digits[0][index] + 0.01 * noise.float(), digits[1][index]

    generator, dataset, model = torch.Generator().manual_seed(5), Noisy(), network(784, 10)
    train = DataLoader(dataset, batch_size=16, shuffle=True, generator=generator, num_workers=2, persistent_workers=True)
    def states():
        own = [dataset.rng.bit_generator.state, dataset.old.get_state()[1].tolist(), dataset.old.get_state()[2], dataset.plain.getstate()]
        return [generator.get_state(), torch.get_rng_state(), *own]

    before = states()
    doctor(DataLoaders(train, loaders(digits).valid), model, F.cross_entropy)
    assert same(before, states()) and train._iterator is None


def test_random_states_come_back_after_an_error_and_without_grad(digits):
    def interrupted(xb):
        torch.rand(1), random.random()
        raise KeyboardInterrupt

    before = torch.get_rng_state(), random.getstate()
    with pytest.raises(KeyboardInterrupt): doctor(loaders(digits), interrupted, F.cross_entropy)
    assert same(before, (torch.get_rng_state(), random.getstate()))
    model = network(784, 50, 10)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(): assert complaints(loaders(digits), model, F.cross_entropy) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(digits):
    model = network(784, 50, 10).cuda()
    before = torch.cuda.get_rng_state(), [param.clone() for param in model.parameters()]
    assert complaints(loaders(digits), model, F.cross_entropy) == {}
    assert complaints(loaders(digits), network(784, 7).cuda(), F.cross_entropy)["labels: range"][0] == "fail"
    assert same(before, (torch.cuda.get_rng_state(), list(model.parameters())))
    on_gpu = [part.cuda() for part in digits]
    assert complaints(loaders(on_gpu), model, F.cross_entropy) == {}

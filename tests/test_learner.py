"""Lesson 05: the Learner against the loop of lesson 03, its callbacks, schedules, interruptions, files, and what it says to bad input."""
import copy
import inspect
import io
import itertools
import json
import pickle
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lessonlib.data import Batches, DataLoaders
from lessonlib.learner import Callback, Learner, accuracy, error_rate, load_learner
from lessonlib.linear_sgd import BasicOptim, batch_accuracy, mnist_loss, train_epoch
from lessonlib.mlp import MLP

cross_entropy = nn.functional.cross_entropy
HEAVY = {"torchvision", "pandas", "matplotlib", "ipywidgets", "anywidget", "IPython", "PIL", "sklearn"}


def binary_data(n, seed=0):
    """Inputs (n, 5) and targets (n, 1): 1 where the first input is positive."""
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, :1] > 0).float()


def class_data(n, seed=0):
    """Inputs (n, 5) and class indices (n,): which of the first three inputs is largest."""
    x, _ = binary_data(n, seed)
    return x, x[:, :3].argmax(1)


def loaders(make=binary_data, train=60, valid=25, batch_size=16, shuffle=False, vocab=None):
    """Training set and validation set; neither length is a multiple of the batch size."""
    dls = DataLoaders(Batches(*make(train), batch_size=batch_size, shuffle=shuffle), Batches(*make(valid, seed=1), batch_size=batch_size))
    if vocab: dls.vocab = vocab
    return dls


def binary_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))


def class_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def quiet(dls=None, model=None, loss_func=mnist_loss, **options):
    """A Learner on the CPU that shows no table: a binary one where nothing is said."""
    return Learner(dls or loaders(), model or binary_model(), loss_func, device="cpu", show=False, **options)


def class_learner(**options):
    return quiet(loaders(class_data), class_model(), cross_entropy, metrics=accuracy, **options)


def copies(model):
    """All numbers of a model, to see whether they change."""
    tensors = model.state_dict().values() if isinstance(model, nn.Module) else model.parameters()
    return [tensor.detach().clone() for tensor in tensors]


def same(before, after):
    return len(before) == len(after) and all(torch.equal(one, two) for one, two in zip(before, after))


# metrics

def test_accuracy_counts_the_largest_logit_or_the_right_side_of_zero():
    preds = torch.tensor([[2.0, 1, 0], [0, 1, 2], [0, 5, 1], [1, 0, 0]])
    assert accuracy(preds, torch.tensor([0, 2, 0, 0])).item() == 0.75
    logits, targets = torch.tensor([[1.0], [-1], [3], [-2]]), torch.tensor([[1.0], [1], [1], [0]])
    assert accuracy(logits, targets).item() == batch_accuracy(logits, targets).item() == 0.75
    assert accuracy(logits[:, 0], targets[:, 0]).item() == 0.75


@given(n=st.integers(1, 40), classes=st.integers(2, 6), seed=st.integers(0, 30))
def test_error_rate_is_the_rest(n, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    preds, targets = torch.randn(n, classes, generator=generator), torch.randint(classes, (n,), generator=generator)
    right = sum(row.index(max(row)) == target for row, target in zip(preds.tolist(), targets.tolist())) / n
    assert accuracy(preds, targets).item() == pytest.approx(right)
    assert error_rate(preds, targets).item() == pytest.approx(1 - right, abs=1e-6)


@pytest.mark.parametrize("preds, targets", [((8, 3), (8, 1)), ((8, 3), (7,)), ((8, 1), (8,)), ((8,), (8, 1)), ((8, 3), (8, 3)), ((8, 2), (8, 2))])
def test_shapes_that_do_not_belong_together_are_named(preds, targets):
    for metric in (accuracy, error_rate):
        with pytest.raises(ValueError) as raised:
            metric(torch.zeros(preds), torch.zeros(targets))
        assert str(preds) in str(raised.value) and str(targets) in str(raised.value)


# the contract

def test_learner_takes_what_the_course_promises():
    parameters = inspect.signature(Learner).parameters
    assert list(parameters)[:6] == ["dls", "model", "loss_func", "opt_func", "metrics", "callbacks"]
    assert parameters["opt_func"].default is torch.optim.SGD
    assert parameters["metrics"].default is None and parameters["callbacks"].default == ()


def test_history_has_one_row_an_epoch():
    learn = quiet(metrics=[batch_accuracy, error_rate])
    columns = ["epoch", "train_loss", "valid_loss", "batch_accuracy", "error_rate", "seconds"]
    assert list(learn.history.columns) == columns and len(learn.history) == 0
    learn.fit(2, 0.1)
    learn.fit(1, 0.1)
    history = learn.history
    assert list(history.columns) == columns and history.epoch.tolist() == [0, 1, 2]
    assert history.notna().all(axis=None) and (history.seconds > 0).all()
    assert {str(kind) for kind in history.drop(columns="epoch").dtypes} == {"float64"}
    assert history.iloc[-1][["valid_loss", "batch_accuracy"]].to_dict() == pytest.approx(
        {name: value for name, value in learn.validate().items() if name != "error_rate"})


def test_history_is_a_copy():
    learn = quiet()
    learn.fit(1, 0.1)
    table = learn.history
    table.loc[0, "train_loss"] = 99.0
    assert learn.history.train_loss[0] != 99.0


class Share:
    """A metric that is an object."""
    def __call__(self, preds, targets): return (preds > 0).float().mean()


@pytest.mark.parametrize("metrics, names", [
    (None, []), (batch_accuracy, ["batch_accuracy"]), ([], []), ((accuracy, mnist_loss), ["accuracy", "mnist_loss"]),
    (partial(accuracy), ["accuracy"]), ([Share()], ["Share"]), ([lambda preds, targets: 0.5], ["<lambda>"])])
def test_a_metric_has_a_column_of_its_name(metrics, names):
    learn = quiet(metrics=metrics)
    learn.fit(1, 0.1)
    assert list(learn.history.columns) == ["epoch", "train_loss", "valid_loss", *names, "seconds"]


@pytest.mark.parametrize("build, opt_func", [(lambda: MLP([5, 8, 1]), BasicOptim), (binary_model, BasicOptim), (binary_model, torch.optim.SGD)])
def test_fit_is_the_loop_of_lesson_3(build, opt_func):
    """Step by step the same parameters, and the training loss is the mean of the items, each measured before its step."""
    torch.manual_seed(3)
    model = build()
    other, dls = copy.deepcopy(model), loaders()
    learn = quiet(dls, model, opt_func=opt_func)
    learn.fit(3, 0.5)
    opt = BasicOptim(other.parameters(), lr=0.5)
    losses = [train_epoch(other, dls.train, mnist_loss, opt) for _ in range(3)]
    for ours, by_hand in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(ours, by_hand, atol=1e-6, rtol=0)
    assert learn.history.train_loss.tolist() == pytest.approx(losses, abs=1e-6)


class Own(nn.Module):
    """A model of one's own: not a Sequential."""
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 1)

    def forward(self, xb): return self.layer(xb) + xb[:, 1:2]


@pytest.mark.parametrize("build", [lambda: MLP([5, 8, 1]), lambda: nn.Linear(5, 1), binary_model, Own])
@pytest.mark.parametrize("opt_func", [BasicOptim, partial(torch.optim.SGD, momentum=0.9), partial(torch.optim.AdamW, weight_decay=0.1)])
def test_any_model_and_any_optimiser(build, opt_func):
    torch.manual_seed(0)
    learn = quiet(model=build(), opt_func=opt_func, metrics=accuracy)
    before = learn.validate()["valid_loss"]
    learn.fit(3, 0.05)
    assert learn.validate()["valid_loss"] < before


@pytest.mark.parametrize("make", [
    lambda x, y: DataLoader(TensorDataset(x, y), batch_size=16), lambda x, y: DataLoader(list(zip(x, y)), batch_size=16),
    lambda x, y: [(x[:30], y[:30]), (x[30:], y[30:])], lambda x, y: [(x.numpy(), y.numpy())]])
def test_any_mini_batches(make):
    learn = quiet(DataLoaders(make(*binary_data(60)), make(*binary_data(25, seed=1))), metrics=accuracy)
    learn.fit(2, 0.5)
    assert len(learn.history) == 2 and learn.get_preds()[0].shape == (25, 1)


def test_frozen_parameters_stay():
    model = binary_model()
    for param in model[0].parameters(): param.requires_grad_(False)
    frozen, free = copies(model[0]), copies(model[2])
    quiet(model=model).fit(1, 0.5)
    assert same(frozen, copies(model[0])) and not same(free, copies(model[2]))


def test_the_same_seed_repeats_exactly():
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 1))
        learn = quiet(loaders(shuffle=True), model, metrics=accuracy)
        learn.fit(2, 0.1)
        learn.fit_one_cycle(2, 0.1)
        found.append((copies(model), learn.history.drop(columns="seconds")))
    assert same(found[0][0], found[1][0]) and found[0][1].equals(found[1][1])


def test_measuring_draws_no_random_numbers():
    """Otherwise looking at a model would change how its training goes on."""
    learn = quiet(loaders(shuffle=True), metrics=accuracy)
    state = torch.get_rng_state()
    learn.validate()
    learn.get_preds()
    learn.predict(torch.zeros(5))
    assert torch.equal(torch.get_rng_state(), state)


# validate, get_preds, predict

def share_of_ones_found(preds, targets):
    """Recall: not a mean over the items, so it cannot be put together from mini-batches."""
    return ((preds > 0) & (targets == 1)).sum() / (targets == 1).sum()


@given(batch_size=st.integers(1, 40), seed=st.integers(0, 20))
@settings(deadline=None)
def test_validate_is_computed_over_the_whole_set(batch_size, seed):
    dls = loaders(batch_size=batch_size)
    learn = quiet(dls, binary_model(seed), metrics=[accuracy, share_of_ones_found])
    x, y = dls.valid.tensors
    preds = learn.model(x)
    expected = {"valid_loss": mnist_loss(preds, y), "accuracy": accuracy(preds, y), "share_of_ones_found": share_of_ones_found(preds, y)}
    found = learn.validate()
    assert list(found) == list(expected) and all(isinstance(value, float) for value in found.values())
    assert found == pytest.approx({name: value.item() for name, value in expected.items()}, abs=1e-6)


def test_validate_leaves_no_trace():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1))
    learn, before = quiet(model=model, metrics=accuracy), copies(model)
    assert learn.validate() == learn.validate()
    assert same(before, copies(model)) and all(param.grad is None for param in model.parameters())
    assert len(learn.history) == 0 and torch.is_grad_enabled()


class Modes(nn.Module):
    """Writes down in which mode it was called."""
    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(5, 1), []

    def forward(self, xb):
        self.seen.append((self.training, torch.is_grad_enabled()))
        return self.layer(xb)


def test_training_and_measuring_each_have_their_mode():
    model = Modes()
    quiet(loaders(train=32, valid=32), model).fit(2, 0.1)
    assert model.seen == [(True, True), (True, True), (False, False), (False, False)] * 2


def test_get_preds_are_logits_in_order():
    dls = loaders(class_data, shuffle=True)
    learn = quiet(dls, class_model(), cross_entropy)
    learn.fit(1, 0.1)
    preds, targets = learn.get_preds()
    x, y = dls.valid.tensors
    assert preds.shape == (25, 3) and targets.shape == (25,) and targets.dtype == torch.int64
    torch.testing.assert_close(preds, learn.model(x).detach())
    assert torch.equal(targets, y) and not preds.requires_grad and preds.device.type == "cpu"
    other = Batches(*class_data(10, seed=7), batch_size=4)
    assert torch.equal(learn.get_preds(other)[1], other.tensors[1])


def test_predict_names_the_class():
    learn = quiet(loaders(class_data, vocab=["a", "b", "c"]), class_model(), cross_entropy)
    learn.fit(3, 0.5)
    x, _ = learn.dls.valid.tensors
    preds, _ = learn.get_preds()
    for item, row in zip(x[:10], preds):
        label, index, probs = learn.predict(item)
        assert probs.shape == (3,) and label == "abc"[int(index)] and int(index) == row.argmax()
        torch.testing.assert_close(probs, row.softmax(0))


@pytest.mark.parametrize("build", [binary_model, lambda: MLP([5, 8, 1])])
@pytest.mark.parametrize("vocab", [None, ["seven", "three"]])
def test_predict_with_one_logit_gives_two_probabilities(build, vocab):
    learn = quiet(loaders(vocab=vocab), build())
    learn.fit(3, 0.5)
    x, _ = learn.dls.valid.tensors
    preds, _ = learn.get_preds()
    for item, logit in zip(x[:10], preds[:, 0]):
        label, index, probs = learn.predict(item)
        assert probs.tolist() == pytest.approx([1 - logit.sigmoid().item(), logit.sigmoid().item()], abs=1e-6)
        assert int(index) == int(logit > 0) and label == (vocab[int(index)] if vocab else index)


def test_predict_with_a_loss_that_takes_probabilities():
    """`BCELoss` belongs to a model that ends in a sigmoid: its output is the probability already."""
    torch.manual_seed(0)
    learn = quiet(model=nn.Sequential(nn.Linear(5, 1), nn.Sigmoid()), loss_func=nn.BCELoss())
    learn.fit(20, 1.0)
    item = torch.tensor([-2.0, 0, 0, 0, 0])
    prob = learn.model(item[None])[0, 0].item()
    assert prob < 0.3 and learn.predict(item)[1] == 0 and learn.predict(item)[2][1].item() == pytest.approx(prob, abs=1e-6)


def test_predict_wants_one_item():
    learn = quiet()
    learn.fit(1, 0.1)
    with pytest.raises(ValueError, match=r"\(3, 5\)"):
        learn.predict(torch.zeros(3, 5))


# callbacks

def test_an_unknown_hook_fails_when_the_class_is_made():
    with pytest.raises(TypeError, match=r"Typo\.after_epohc.*after_epoch"):
        class Typo(Callback):
            def after_epohc(self, learn): pass

    with pytest.raises(TypeError, match="on_train_begin"):
        class Elsewhere(Callback):
            def on_train_begin(self, learn): pass


def test_helpers_attributes_and_inheritance_are_free():
    class Base(Callback):
        limit = 3
        def __init__(self): self.count = 0
        def _helper(self): self.count += 1
        def after_batch(self, learn): self._helper()

    class Derived(Base):
        def after_epoch(self, learn): self._helper()

    callback = Derived()
    quiet(callbacks=[callback]).fit(1, 0.1)
    assert callback.count == 4 + 1


class Notes(Callback):
    """Writes down the order of the hooks."""
    def __init__(self): self.seen = []
    def before_fit(self, learn): self.seen.append("before_fit")
    def before_epoch(self, learn): self.seen.append(f"before_epoch {learn.epoch}")
    def before_batch(self, learn): self.seen.append(f"before_batch {learn.batch}")
    def after_loss(self, learn): self.seen.append("after_loss")
    def after_backward(self, learn): self.seen.append("after_backward")
    def after_batch(self, learn): self.seen.append("after_batch")
    def before_validate(self, learn): self.seen.append("before_validate")
    def after_validate(self, learn): self.seen.append("after_validate")
    def after_epoch(self, learn): self.seen.append("after_epoch")
    def after_fit(self, learn): self.seen.append("after_fit")


def test_hooks_are_called_in_order():
    notes = Notes()
    quiet(loaders(train=32), callbacks=[notes]).fit(2, 0.1)
    batch = ["after_loss", "after_backward", "after_batch"]
    epoch = ["before_batch 0", *batch, "before_batch 1", *batch, "before_validate", "after_validate", "after_epoch"]
    assert notes.seen == ["before_fit", "before_epoch 0", *epoch, "before_epoch 1", *epoch, "after_fit"]


def test_callbacks_of_one_fit_are_gone_in_the_next():
    notes, learn = Notes(), quiet()
    learn.fit(1, 0.1, callbacks=[notes])
    seen = len(notes.seen)
    learn.fit(1, 0.1)
    assert seen > 0 and len(notes.seen) == seen


@pytest.mark.parametrize("hook", ["before_fit", "before_epoch", "before_batch", "after_loss", "after_backward", "after_batch",
                                  "before_validate", "after_validate", "after_epoch", "after_fit"])
def test_a_callback_that_raises_is_named_with_epoch_and_batch(hook):
    def fail(self, learn):
        if learn.epoch == 1 or "fit" in hook: raise KeyError("no such thing")

    broken = type("Broken", (Callback,), {hook: fail})()
    learn = quiet(callbacks=[broken])
    with pytest.raises(RuntimeError, match=rf"Broken\.{hook}.*KeyError.*epoch \d.*batch \d.*no such thing") as raised:
        learn.fit(3, 0.1)
    assert isinstance(raised.value.__cause__, KeyError)
    if "fit" not in hook: assert "epoch 1" in str(raised.value)
    learn.callbacks.clear()
    rows = len(learn.history)
    learn.fit(1, 0.1)
    assert len(learn.history) == rows + 1


@pytest.mark.parametrize("wrong", [Notes, "Notes", print])
def test_what_is_no_callback_object_is_an_error(wrong):
    with pytest.raises(TypeError, match="callback"):
        quiet(callbacks=[wrong])
    with pytest.raises(TypeError, match="callback"):
        quiet().fit(1, 0.1, callbacks=[wrong])


def test_a_callback_can_stop_and_change_batch_and_loss():
    class Zeros(Callback):
        def before_batch(self, learn): learn.xb = torch.zeros_like(learn.xb)
        def after_loss(self, learn): learn.loss = 2 * learn.loss
        def after_batch(self, learn): learn.stop = learn.epoch == 1

    model = nn.Linear(5, 1, bias=False)
    before = copies(model)
    learn = quiet(model=model, callbacks=[Zeros()])
    learn.fit(5, 0.1)
    assert same(before, copies(model)), "the gradient of zeros is zero"
    assert len(learn.history) == 2 and learn.history.train_loss.tolist() == pytest.approx([1.0, 1.0])  # twice 0.5


def test_skipped_steps_accumulate_gradients():
    """Two mini-batches of 10 with half the learning rate are one of 20."""
    class EverySecond(Callback):
        def after_backward(self, learn): learn.skip_step = learn.batch % 2 == 0

    small, large = quiet(loaders(batch_size=10), callbacks=[EverySecond()]), quiet(loaders(batch_size=20))
    small.fit(2, 0.25)
    large.fit(2, 0.5)
    for one, two in zip(small.model.parameters(), large.model.parameters()):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


# learning rates

class Rates(Callback):
    """Writes down each step's learning rates, and the momentum of the first group."""
    def __init__(self): self.rates, self.momenta = [], []

    def after_backward(self, learn):
        groups = getattr(learn.opt, "param_groups", None) or [vars(learn.opt)]
        self.rates.append([group["lr"] for group in groups])
        self.momenta.append(groups[0].get("momentum") or groups[0].get("betas", (None,))[0])


@pytest.mark.parametrize("opt_func, has_momentum", [(BasicOptim, False), (torch.optim.SGD, False),
                                                    (partial(torch.optim.SGD, momentum=0.9), True), (torch.optim.AdamW, True)])
def test_one_cycle_rises_and_falls(opt_func, has_momentum):
    rates = Rates()
    quiet(loaders(train=160), opt_func=opt_func, callbacks=[rates]).fit_one_cycle(5, 0.4)
    found = [rate for rate, in rates.rates]
    peak = found.index(max(found))
    assert len(found) == 50 and max(found) == pytest.approx(0.4, rel=0.02) and 0.15 * 50 <= peak <= 0.45 * 50
    assert found[0] <= 0.1 * 0.4 and 0 <= found[-1] <= 0.004
    assert found[:peak + 1] == sorted(found[:peak + 1]) and found[peak:] == sorted(found[peak:], reverse=True)
    if has_momentum:  # the other way round (Smith 2018)
        assert rates.momenta.index(min(rates.momenta)) == peak and rates.momenta[0] > rates.momenta[peak] < rates.momenta[-1]


def test_one_cycle_keeps_the_ratio_of_parameter_groups():
    def two_groups(params, lr):
        params = list(params)
        return torch.optim.SGD([{"params": params[:2], "lr": lr / 10}, {"params": params[2:], "lr": lr}])

    rates = Rates()
    quiet(opt_func=two_groups, callbacks=[rates]).fit_one_cycle(2, 0.5)
    assert all(body == pytest.approx(head / 10) for body, head in rates.rates)


@pytest.mark.parametrize("epochs, train", [(1, 10), (1, 20), (3, 10)])
def test_one_cycle_over_very_few_steps(epochs, train):
    rates = Rates()
    quiet(loaders(train=train), callbacks=[rates]).fit_one_cycle(epochs, 0.5)
    assert len(rates.rates) == epochs * -(-train // 16) and all(0 < rate <= 0.5 for rate, in rates.rates)


def test_one_cycle_learns_and_continues_the_history():
    learn = quiet(loaders(train=200), metrics=accuracy)
    learn.fit(1, 0.1)
    learn.fit_one_cycle(10, 3.0)
    assert learn.history.epoch.tolist() == list(range(11)) and learn.history.accuracy.iloc[-1] > 0.8


def test_lr_find_leaves_no_trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, 1))
    notes = Notes()
    learn = quiet(loaders(shuffle=True), model, metrics=accuracy, callbacks=[notes])
    learn.fit(1, 0.1)
    seen, rows = len(notes.seen), learn.history
    before, state, measured = copies(model), torch.get_rng_state(), learn.validate()
    learn.lr_find()
    assert same(before, copies(model)) and torch.equal(torch.get_rng_state(), state)
    assert learn.history.equals(rows) and len(notes.seen) == seen and learn.validate() == measured
    learn.fit(1, 0.1)
    assert len(learn.history) == 2


@pytest.mark.parametrize("build, opt_func", [(binary_model, torch.optim.SGD), (lambda: MLP([5, 8, 1]), BasicOptim),
                                             (binary_model, torch.optim.AdamW)])
def test_lr_find_suggests_a_rate_that_learns(build, opt_func):
    torch.manual_seed(1)
    learn = quiet(loaders(train=320), build(), opt_func=opt_func)
    found = learn.lr_find()
    assert 1e-6 < found.suggestion < 10
    assert f"{found.suggestion:.2g}" in found.reason and len(found.reason.split()) > 8
    assert len(found.rates) == len(found.losses) and found.rates == sorted(found.rates)
    assert found.rates[0] < found.suggestion < found.rates[-1]
    before = learn.validate()["valid_loss"]
    learn.fit(8, found.suggestion)
    assert learn.validate()["valid_loss"] < 0.95 * before


def test_lr_find_of_what_cannot_learn_suggests_nothing():
    learn = quiet(DataLoaders([(torch.zeros(16, 5), (torch.arange(16) % 2)[:, None].float())], [binary_data(8)]), nn.Linear(5, 1, bias=False))
    found = learn.lr_find()
    assert found.suggestion is None and "no suggestion" in found.reason.lower()


def test_lr_find_describes_its_picture():
    scene = quiet(loaders(train=320)).lr_find().scene()
    assert scene.text and json.dumps(scene.to_dict()) and scene.figure() is not None


@pytest.mark.parametrize("options", [{"low": 0}, {"low": 1, "high": 0.1}, {"steps": 1}, {"low": -1.0}])
def test_lr_find_refuses_ranges_that_are_none(options):
    with pytest.raises(ValueError, match="low"):
        quiet().lr_find(**options)


# interruption

class Interrupts(Callback):
    """Ctrl-C, or the stop button, in the second epoch."""
    def __init__(self, where): self.where = where
    def after_backward(self, learn): self._at(learn, "batch")
    def before_validate(self, learn): self._at(learn, "validation")
    def after_epoch(self, learn): self._at(learn, "end of epoch")

    def _at(self, learn, where):
        if (where, learn.epoch) == (self.where, 1) and (where != "batch" or learn.batch == 1): signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("method", ["fit", "fit_one_cycle"])
@pytest.mark.parametrize("where, rows", [("batch", 1), ("validation", 1), ("end of epoch", 2)])
def test_an_interrupted_learner_is_usable(capsys, where, rows, method):
    learn, notes = quiet(loaders(shuffle=True), metrics=accuracy), Notes()
    try: getattr(learn, method)(5, 0.1, callbacks=[notes, Interrupts(where)])
    except KeyboardInterrupt: pass  # the cells after it must not run on
    else: pytest.fail("the interruption was swallowed: the cells after this one would run on")
    assert len(learn.history) == rows and notes.seen[-1] == "after_fit"
    said = capsys.readouterr().out
    assert "nterrupted" in said and "epoch 1" in said
    assert all(param.grad is None for param in learn.model.parameters())
    assert learn.validate() and learn.get_preds()[0].shape == (25, 1) and learn.predict(torch.zeros(5))[1] in (0, 1)
    learn.fit(2, 0.1)
    assert learn.history.epoch.tolist() == list(range(rows + 2)) and learn.history.notna().all(axis=None)
    assert learn.plot_history() is not None


def test_an_interrupted_lr_find_puts_everything_back(capsys):
    class Endless:
        def __init__(self): self.given = 0
        def __len__(self): return 4
        def __iter__(self):
            for _ in range(4):
                self.given += 1
                if self.given == 7: signal.raise_signal(signal.SIGINT)
                yield binary_data(16)

    learn = quiet(DataLoaders(Endless(), [binary_data(8)]))
    before = copies(learn.model)
    with pytest.raises(KeyboardInterrupt):
        learn.lr_find()
    assert same(before, copies(learn.model)) and len(learn.history) == 0
    said = capsys.readouterr().out
    assert "as it was before lr_find" in said and "learned" not in said


# what is shown

class Terminal(io.StringIO):
    """A text stream that claims to be a terminal."""
    def isatty(self): return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_terminal_gets_a_plain_table(stream):
    learn = Learner(loaders(), binary_model(), mnist_loss, metrics=[accuracy, share_of_ones_found], device="cpu")
    with redirect_stdout(stream()) as shown:
        learn.fit(3, 0.1)
    lines = [line.rsplit("\r", 1)[-1].replace("\x1b[K", "") for line in shown.getvalue().split("\n") if line.strip()]
    header = [line.split() for line in lines].index(["epoch", "train_loss", "valid_loss", "accuracy", "share_of_ones_found", "seconds"])
    rows = [[float(cell) for cell in line.split()] for line in lines[header + 1:]]
    assert len(rows) == 3 and len({len(line.rstrip()) for line in lines[header:]}) == 1, "columns are aligned"
    for row, kept in zip(rows, learn.history.values.tolist()):
        assert row == pytest.approx(kept, abs=0.006)
    if stream is io.StringIO: assert "\x1b" not in shown.getvalue() and "\r" not in shown.getvalue()


def test_show_false_prints_nothing(capsys):
    quiet(metrics=accuracy).fit(1, 0.1)
    assert capsys.readouterr().out == ""


def test_plot_history_has_all_series(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    learn = quiet(metrics=[accuracy, error_rate])
    with pytest.raises(ValueError, match="fit"):
        learn.plot_history()
    learn.fit(3, 0.1)
    panels = learn.plot_history().axes
    lines = {line.get_label(): line.get_ydata() for panel in panels for line in panel.get_lines()}
    assert len(lines) == 4 and {"accuracy", "error_rate"} <= set(lines)
    assert all(panel.get_xlabel() and panel.get_ylabel() for panel in panels)
    assert list(lines["accuracy"]) == learn.history.accuracy.tolist()
    import matplotlib.pyplot as plt
    plt.close("all")


def test_a_fresh_interpreter_loads_nothing_heavy_and_names_the_device_once():
    code = f"""
import sys, torch
before = set(sys.modules)
import lessonlib.learner
print("heavy:", *sorted((set(sys.modules) - before) & {HEAVY!r}))
from torch import nn
from lessonlib.learner import Learner
from lessonlib.data import Batches, DataLoaders
x, y = torch.randn(20, 5), torch.ones(20, 1)
for _ in range(2):
    learn = Learner(DataLoaders(Batches(x, y), Batches(x, y)), nn.Linear(5, 1), nn.functional.mse_loss, device="cpu")
    learn.fit(1, 0.1)
    learn.fit(1, 0.1)
print("heavy:", *sorted((set(sys.modules) - before) & {HEAVY!r}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line for line in lines if line.startswith("heavy:")] == ["heavy:"] * 2
    assert len([line for line in lines if "cpu" in line]) == 1


def test_a_notebook_gets_one_output_updated_in_place():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    code = """
import time, torch
from lessonlib.data import Batches, DataLoaders
from lessonlib.learner import Learner, accuracy
def slow_loss(preds, targets):
    time.sleep(0.1)
    return torch.nn.functional.mse_loss(preds, targets)
x = torch.randn(64, 5)
batches = Batches(x, x[:, :1], batch_size=8)
Learner(DataLoaders(batches, batches), torch.nn.Linear(5, 1), slow_loss).fit(3, 0.1)
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(Path(__file__).parents[1])}}).execute()
    shown = [output for output in notebook.cells[0].outputs if output.output_type == "display_data"]
    assert len(shown) == 1 and [output for output in notebook.cells[0].outputs if output.output_type == "error"] == []
    html, text = shown[0].data["text/html"], shown[0].data["text/plain"]
    assert html.count("<tr>") == 4 and "valid_loss" in html and "img" in html
    assert text.split()[:4] == ["epoch", "train_loss", "valid_loss", "seconds"] and len(text.splitlines()) == 4


# precision and device

def test_precision_auto_measures_and_says_so(capsys):
    model = class_model()
    learn_before, state = copies(model), torch.get_rng_state()
    learn = quiet(loaders(class_data, shuffle=True), model, cross_entropy, precision="auto")
    said = capsys.readouterr().out
    assert "ms" in said and learn.precision.name in said
    assert same(learn_before, copies(model)) and torch.equal(torch.get_rng_state(), state)
    assert all(param.grad is None for param in model.parameters())
    learn.fit(1, 0.1)


def test_bf16_trains_and_predicts_in_float32():
    learn = quiet(loaders(class_data, train=300), class_model(), cross_entropy, metrics=accuracy, precision="bf16")
    learn.fit(10, 0.5)
    assert learn.history.accuracy.iloc[-1] > 0.7 and learn.get_preds()[0].dtype == torch.float32
    assert all(param.dtype == torch.float32 for param in learn.model.parameters())


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match="int3"):
        quiet(precision="int3")


def test_the_device_is_the_best_there_is():
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    for model in (binary_model(), MLP([5, 8, 1])):
        learn = Learner(loaders(shuffle=True), model, mnist_loss, metrics=accuracy, show=False)
        assert learn.device.type == best and {param.device.type for param in model.parameters()} == {best}
        learn.fit(1, 0.1)
        assert learn.get_preds()[0].device.type == "cpu" and learn.predict(torch.zeros(5))[2].device.type == "cpu"


# export and load_learner

def convolutional():
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.MaxPool2d(2),
                         nn.Sequential(nn.Dropout(0.2), nn.Conv2d(4, 6, 3), nn.GELU()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


def from_torchvision(name):
    return pytest.importorskip("torchvision").models.get_model(name, weights=None, num_classes=3)


def new_head():
    model = from_torchvision("resnet18")
    model.fc = nn.Linear(512, 3)
    return model


def image_data(channels, size):
    def make(n, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(n, channels, size, size, generator=generator), torch.randint(3, (n,), generator=generator)
    return make


ARCHITECTURES = {
    "MLP": (lambda: MLP([5, 8, 3]), class_data), "Sequential": (class_model, class_data), "one layer": (lambda: nn.Linear(5, 3), class_data),
    "convolutions": (convolutional, image_data(1, 28)), "resnet18": (partial(from_torchvision, "resnet18"), image_data(3, 32)),
    "regnet": (partial(from_torchvision, "regnet_x_400mf"), image_data(3, 32)),  # its builder computes with tensors
    "resnet18 with a new head, in a Sequential": (lambda: nn.Sequential(nn.BatchNorm2d(3, affine=False), new_head()), image_data(3, 32))}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_loaded_learner_predicts_exactly_the_same(name, tmp_path):
    build, data = ARCHITECTURES[name]
    torch.manual_seed(0)
    dls = loaders(data, train=24, valid=10, batch_size=8, vocab=["a", "b", "c"])
    learn = quiet(dls, build(), cross_entropy, metrics=accuracy)
    learn.fit(1, 0.05)
    state = torch.get_rng_state()
    learn.export(tmp_path / "model.safetensors")
    loaded = load_learner(tmp_path / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), state), "saving and loading draw no random numbers"
    assert type(loaded.model) is type(learn.model)
    assert torch.equal(loaded.get_preds(dls.valid)[0], learn.get_preds()[0])
    for item in dls.valid.tensors[0][:3]:
        (label, index, probs), (label_here, index_here, probs_here) = loaded.predict(item), learn.predict(item)
        assert (label, index) == (label_here, index_here) and torch.equal(probs, probs_here) and label in "abc"
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"], "no half-written file is left"


@pytest.mark.parametrize("arch", ["resnet18", "convnext_tiny", "efficientnet_b3"])
def test_a_network_with_its_normalisation_comes_back(arch, tmp_path):
    """What `vision_learner` makes. The means are kept to the last bit, though JSON holds decimal numbers."""
    from collections import OrderedDict

    from lessonlib.vision import Normalise
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(normalise=Normalise([0.485, 1 / 3, 0.1], [0.229, 0.2, 0.7]), net=from_torchvision(arch)))
    learn = quiet(loaders(image_data(3, 64), train=8, valid=8, batch_size=8, vocab=["a", "b", "c"]), model, cross_entropy)
    loaded = load_learner(learn.export(tmp_path / "model"))
    assert repr(loaded.model) == repr(model) and same(copies(model), copies(loaded.model))
    assert torch.equal(loaded.get_preds(learn.dls.valid)[0], learn.get_preds()[0])
    assert list(dict(loaded.model.named_children())) == ["normalise", "net"]


def test_a_loaded_learner_prepares_a_picture_as_in_training(tmp_path):
    from PIL import Image

    from lessonlib.vision import prepare_image
    Image.effect_mandelbrot((60, 40), (-2, -1, 1, 1), 20).convert("RGB").save(tmp_path / "picture.png")
    torch.manual_seed(0)
    learn = quiet(loaders(image_data(3, 32), vocab=["a", "b", "c"]), nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3)), cross_entropy)
    learn.dls.preprocessing = {"kind": "image", "size": 32, "resize": "pad"}
    learn.validate()
    loaded = load_learner(learn.export(tmp_path / "model"))
    expected = learn.predict(prepare_image(tmp_path / "picture.png", 32, "pad"))
    label, index, probs = loaded.predict(tmp_path / "picture.png")
    assert (label, index) == expected[:2] and torch.equal(probs, expected[2])
    rewrite(tmp_path / "model", lambda description: description.update(preprocessing={"kind": "image"}))
    with pytest.raises((TypeError, ValueError), match="size|resize"): load_learner(tmp_path / "model").predict(tmp_path / "picture.png")


def test_a_loaded_learner_can_go_on_learning(tmp_path):
    learn = class_learner()
    learn.fit(1, 0.1)
    learn.export(tmp_path / "model")
    loaded = load_learner(tmp_path / "model")
    loaded.dls, loaded.show = loaders(class_data), False
    loaded.fit(1, 0.1)
    learn.fit(1, 0.1)
    assert loaded.history.valid_loss.iloc[-1] == pytest.approx(learn.history.valid_loss.iloc[-1], abs=1e-6)


def test_a_learner_without_training_or_data_to_load(tmp_path):
    """Exported before the first epoch; and a loaded one without data says what it lacks."""
    learn = class_learner()
    learn.export(str(tmp_path / "model"))
    loaded = load_learner(str(tmp_path / "model"))
    assert torch.equal(loaded.get_preds(learn.dls.valid)[0], learn.get_preds()[0])
    for call in (loaded.validate, loaded.get_preds, loaded.lr_find, lambda: loaded.fit(1, 0.1)):
        with pytest.raises((TypeError, ValueError), match="dls"):
            call()


def test_the_file_is_safetensors_with_a_description(tmp_path):
    learn = class_learner()
    learn.fit(1, 0.1)
    path = tmp_path / "model.safetensors"
    learn.export(path)
    with safe_open(path, "pt") as file:
        description = json.loads(next(iter(file.metadata().values())))
        assert {name: tuple(file.get_tensor(name).shape) for name in file.keys()} == {
            name: tuple(tensor.shape) for name, tensor in learn.model.state_dict().items()}
    assert description["versions"]["torch"] == torch.__version__ and description["architecture"]
    assert not path.read_bytes().startswith((b"PK", b"\x80"))


def test_export_into_a_missing_folder_names_it(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        class_learner().export(tmp_path / "nowhere" / "model")


def test_export_replaces_an_older_file_at_once(tmp_path, monkeypatch):
    learn, path = class_learner(), tmp_path / "model"
    learn.export(path)
    old = path.read_bytes()
    learn.dls.vocab = [object()]  # cannot be written as JSON
    with pytest.raises(TypeError, match="vocab"):
        learn.export(path)
    assert path.read_bytes() == old and len(list(tmp_path.iterdir())) == 1


def test_a_model_of_ones_own_is_asked_for(tmp_path):
    learn = quiet(model=Own())
    learn.fit(1, 0.1)
    learn.export(tmp_path / "model")
    with pytest.raises(ValueError, match="Own.*model="):
        load_learner(tmp_path / "model")
    loaded = load_learner(tmp_path / "model", model=Own())
    assert torch.equal(loaded.get_preds(learn.dls.valid)[0], learn.get_preds()[0])


@pytest.fixture
def exported(tmp_path):
    """A file of a trained learner."""
    learn = class_learner()
    learn.fit(1, 0.1)
    learn.export(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("share", [0.0, 0.003, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_called_so(exported, share):
    content = exported.read_bytes()
    exported.write_bytes(content[:int(share * len(content))])
    with pytest.raises(ValueError, match=r"model\.safetensors.*(truncated|damaged)"):
        load_learner(exported)


@given(place=st.floats(0, 1), byte=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_damaged_byte_never_surprises(place, byte, tmp_path_factory):
    """Any one byte changed: the file loads (a parameter or a word is another) or is refused with its name."""
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    class_learner().export(path)
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] = byte
    path.write_bytes(content)
    try: load_learner(path)
    except ValueError as error: assert "model.safetensors" in str(error)


class Attack:
    """Unpickling it creates a file."""
    def __init__(self, path): self.path = path
    def __reduce__(self): return (Path.touch, (self.path,))


@pytest.mark.parametrize("save", [
    *(partial(lambda protocol, thing, path: path.write_bytes(pickle.dumps(thing, protocol)), protocol) for protocol in range(6)),
    lambda thing, path: torch.save(thing, path), lambda thing, path: torch.save(thing, path, _use_new_zipfile_serialization=False)])
def test_a_pickle_is_refused_and_does_not_run(save, tmp_path):
    path, trace = tmp_path / "model.pkl", tmp_path / "trace"
    save({"model": Attack(trace)}, path)
    for model in (None, class_model()):
        with pytest.raises(ValueError, match=r"model\.pkl"):
            load_learner(path, model=model)
    assert not trace.exists()


def test_a_torch_file_is_called_a_pickle(tmp_path):
    torch.save(class_model().state_dict(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match="pickle.*export"):
        load_learner(tmp_path / "model.pth")


def test_a_file_of_something_else_and_no_file(tmp_path):
    (tmp_path / "cat.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(1000))
    save_file({"x": torch.zeros(3)}, tmp_path / "weights.safetensors")
    for name in ("cat.jpg", "weights.safetensors"):
        with pytest.raises(ValueError, match=name):
            load_learner(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="missing"):
        load_learner(tmp_path / "missing")


@pytest.mark.parametrize("model, said", [
    (lambda: nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3)), r"0\.weight.*\(8, 5\).*\(9, 5\)"),
    (lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4)), r"2\.weight.*\(3, 8\).*\(4, 8\)"),
    (lambda: nn.Linear(5, 3), r"weight"), (lambda: MLP([5, 8, 3]), "parameter"), (convolutional, "match")])
def test_another_architecture_is_named(exported, model, said):
    model = model()
    before = copies(model)
    with pytest.raises(ValueError, match=said):
        load_learner(exported, model=model)
    assert same(before, copies(model)), "nothing is loaded when not all fits"


def rewrite(path, change):
    """Replace the description in a file; the tensors stay."""
    with safe_open(path, "pt") as file:
        (key, text), = file.metadata().items()
    description = json.loads(text)
    description = change(description) or description
    save_file(load_file(path), path, {key: description if isinstance(description, str) else json.dumps(description)})


def architecture(value):
    return lambda description: description.update(architecture=value)


CHANGES = {
    "a function of os": architecture({"kind": "layer", "name": "os.system", "arguments": {"command": "touch trace"}}),
    "not a listed layer": architecture({"kind": "layer", "name": "Module", "arguments": {}}),
    "a dunder": architecture({"kind": "layer", "name": "__init__", "arguments": {}}),
    "an argument too many": architecture({"kind": "layer", "name": "Linear",
                                          "arguments": {"in_features": 5, "out_features": 3, "bias": True, "device": "cuda"}}),
    "code as argument": architecture({"kind": "layer", "name": "Linear", "arguments": {"in_features": "exit()", "out_features": 3, "bias": True}}),
    "a layer called forward": architecture({"kind": "Sequential", "layers": [["forward", {"kind": "layer", "name": "ReLU", "arguments": {}}]]}),
    "half a layer": architecture({"kind": "Sequential", "layers": [["0"]]}),
    "layers that are none": architecture({"kind": "Sequential", "layers": 7}),
    "another function of torchvision": architecture({"kind": "torchvision", "name": "get_model", "num_classes": 3}),
    "no number of classes": architecture({"kind": "torchvision", "name": "resnet18"}),
    "too many classes": architecture({"kind": "torchvision", "name": "resnet18", "num_classes": -1}),
    "sizes that are none": architecture({"kind": "MLP", "sizes": "abc"}),
    "a class by its name": architecture({"kind": "other", "name": "subprocess.Popen"}),
    "wrong kinds of values": architecture({"kind": ["MLP"], "name": {}}),
    "empty": architecture({}), "a list": architecture([]), "null": architecture(None), "Python": architecture("MLP([5, 8, 3])"),
    "half a JSON": lambda description: "{", "deep JSON": lambda description: "[" * 100_000, "JSON null": lambda description: "null",
    "JSON list": lambda description: "[]", "another format": lambda description: description.update(format=99),
    "a loss that is a list": lambda description: description.update(loss=["x"]),
    "versions that are text": lambda description: description.update(versions="1.0"),
    "item_shape that is a number": lambda description: description.update(item_shape=3),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_description_is_refused(exported, change, monkeypatch):
    """What is not in the list of known parts is never looked up: a description is data."""
    rewrite(exported, change)
    monkeypatch.chdir(exported.parent)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_learner(exported)
    assert [path.name for path in exported.parent.iterdir()] == ["model.safetensors"]


JSON = st.recursive(st.none() | st.booleans() | st.integers(-2, 9) | st.sampled_from(["MLP", "Sequential", "layer", "Linear", "Flatten", "x"]),
                    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(["kind", "name", "sizes", "layers", "arguments"]),
                                                                              part, max_size=5), max_leaves=12)


@given(description=JSON)
@settings(max_examples=80, deadline=None)
def test_any_description_is_refused_or_rebuilt(description, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    class_learner().export(path)
    rewrite(path, architecture(description))
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_learner(path)


def test_loading_runs_nothing_from_the_file(exported):
    code = f"""
import sys
import lessonlib.learner, safetensors.torch
events = []
sys.addaudithook(lambda event, arguments: events.append(event))
lessonlib.learner.load_learner({str(exported)!r})
print(*sorted({{event for event in events if event.startswith(("pickle", "os.system", "subprocess", "os.exec", "socket"))}}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.strip() == "", result.stderr + result.stdout


@pytest.mark.parametrize("change, words", [
    (lambda description: description.update(format=2, versions={"lessonlib": "7.1.0"}),
     r"format 2, here is 1.*newer lessonlib \(7\.1\.0, here is .*--upgrade"),
    (lambda description: description.update(format=2, versions=None), r"newer lessonlib \(its version is not told"),
    (lambda description: description.update(format=0), r"format 0, here is 1: export it again"),
    (lambda description: description.update(versions={"lessonlib": "7.1.0"}, architecture={"kind": "Transformer"}),
     r"Transformer.*newer lessonlib.*--upgrade"),
    (lambda description: description.update(architecture={"kind": "Transformer"}), r"Transformer.*give one like it")])
def test_a_file_of_a_newer_version_says_what_to_do(exported, change, words):
    rewrite(exported, change)
    with pytest.raises(ValueError, match=words): load_learner(exported)


def test_another_version_is_told(exported):
    rewrite(exported, lambda description: description["versions"].update(torch="1.7.0"))
    with pytest.warns(UserWarning, match=r"1\.7\.0.*" + torch.__version__.split("+")[0].replace(".", r"\.")):
        load_learner(exported)


# bad input

@pytest.mark.parametrize("method", ["fit", "fit_one_cycle"])
@pytest.mark.parametrize("epochs", [0, -1, 1.5, "3", None])
def test_epochs_are_a_whole_number_above_zero(epochs, method):
    with pytest.raises(ValueError, match=f"epochs.*{epochs}"):
        getattr(quiet(), method)(epochs, 0.1)


@pytest.mark.parametrize("method", ["fit", "fit_one_cycle"])
@pytest.mark.parametrize("lr", [0, -0.1, float("nan"), float("inf"), "0.1", None])
def test_the_learning_rate_is_a_number_above_zero(lr, method):
    learn = quiet()
    before = copies(learn.model)
    with pytest.raises(ValueError, match=f"lr.*{lr}"):
        getattr(learn, method)(1, lr)
    assert same(before, copies(learn.model))


@pytest.mark.parametrize("part", ["train", "valid"])
@pytest.mark.parametrize("empty", [lambda: Batches(torch.zeros(0, 5), torch.zeros(0, 1)), list, lambda: iter([])])
def test_empty_data_are_named(part, empty):
    dls = loaders()
    setattr(dls, part, empty())
    learn = quiet(dls)
    with pytest.raises(ValueError, match="mini-batch"):
        learn.fit(1, 0.1)
    assert len(learn.history) == 0
    if part == "valid":
        with pytest.raises(ValueError, match="mini-batch"):
            learn.validate()


@pytest.mark.parametrize("dls", [None, [binary_data(8)], (Batches(*binary_data(8)), Batches(*binary_data(8)))])
def test_data_without_training_and_validation_set(dls):
    with pytest.raises(TypeError, match="DataLoaders"):
        Learner(dls, binary_model(), mnist_loss, show=False).fit(1, 0.1)


@pytest.mark.parametrize("batch", [torch.zeros(8, 5), (torch.zeros(8, 5),), (torch.zeros(8, 5),) * 3, "ab"])
def test_a_mini_batch_is_a_pair(batch):
    with pytest.raises((TypeError, ValueError), match=r"xb, yb|mini-batch"):
        quiet(DataLoaders([batch], [batch])).fit(1, 0.1)


@pytest.mark.parametrize("loss_func, outputs, y, said", [
    ("mnist_loss", 3, "classes", "class indices|cross-entropy"), ("mnist_loss", 1, "classes", "shape"),
    ("bce", 3, "classes", "class indices|cross-entropy"), ("bce", 1, "integer column", "float"),
    ("bce", 1, "classes", "shape"), ("bce", 1, "minus one and one", "1 and 0"),
    ("mnist_loss", 1, "minus one and one", "1 and 0"),
    ("ce", 3, "float indices", "long|int64"), ("ce", 3, "float column", "long|int64"),
    ("ce", 3, "integer column", r"\[:, 0\]"), ("ce", 3, "from one", "0 to 2"), ("ce", 1, "classes", "column"),
    ("ce", 3, "int32", "long|int64"), ("CrossEntropyLoss", 3, "float indices", "long|int64"),
    ("mse", 1, "float indices", r"\[:, None\]"), ("mse", 3, "float column", "shape")])
def test_loss_and_targets_that_do_not_fit(loss_func, outputs, y, said):
    """Named before the first step: the loss, the shapes, and what to try."""
    losses = {"mnist_loss": mnist_loss, "bce": nn.functional.binary_cross_entropy_with_logits, "ce": cross_entropy,
              "CrossEntropyLoss": nn.CrossEntropyLoss(), "mse": nn.functional.mse_loss}
    inputs, classes = class_data(20)
    targets = {"classes": classes, "float indices": classes.float(), "float column": classes[:, None].float(), "integer column": classes[:, None] % 2,
               "from one": classes + 1, "int32": classes.int(), "minus one and one": (classes[:, None] % 2).float() * 2 - 1}[y]
    batches = Batches(inputs, targets, batch_size=10)
    learn = quiet(DataLoaders(batches, batches), nn.Linear(5, outputs), losses[loss_func])
    before = copies(learn.model)
    with pytest.raises((ValueError, TypeError), match=said) as raised:
        learn.fit(1, 0.1)
    assert f"targets {(10, *targets.shape[1:])}" in str(raised.value) and same(before, copies(learn.model))


def test_losses_and_targets_that_do_fit():
    """No false alarm: class probabilities, label smoothing, weights, ignored targets, uint8 and boolean labels, images."""
    x, y = class_data(20)
    ignored = y.clone()
    ignored[3] = -100
    healthy = [(cross_entropy, nn.functional.one_hot(y, 3).float()), (partial(cross_entropy, label_smoothing=0.1), y),
               (nn.CrossEntropyLoss(weight=torch.ones(3)), y), (cross_entropy, ignored), (cross_entropy, y.byte()),
               (lambda preds, targets: nn.functional.nll_loss(preds.log_softmax(1), targets), y),
               (nn.functional.mse_loss, torch.randn(20, 3)), (nn.functional.binary_cross_entropy_with_logits, nn.functional.one_hot(y, 3).float()),
               (mnist_loss, nn.functional.one_hot(y, 3)), (mnist_loss, nn.functional.one_hot(y, 3).bool())]
    for loss_func, targets in healthy:
        batches = Batches(x, targets, batch_size=8)
        learn = quiet(DataLoaders(batches, batches), class_model(), loss_func)
        learn.fit(1, 0.1)
        assert len(learn.history) == 1


@pytest.mark.parametrize("metrics, error, said", [
    ([lambda preds, targets: (preds > 0).float()], ValueError, r"<lambda>.*\(\d+, 1\)"),
    ([lambda preds, targets: torch.zeros(1)], ValueError, r"<lambda>.*\(1,\)"), ([lambda preds, targets: "good"], ValueError, "<lambda>.*str"),
    ([lambda preds, targets: None], ValueError, "<lambda>.*None"), (["accuracy"], TypeError, "accuracy"), ("accuracy", TypeError, "'a'|accuracy"),
    ([accuracy, accuracy], ValueError, "accuracy"), ([0.5], TypeError, "0.5")])
def test_a_metric_gives_one_number(metrics, error, said):
    with pytest.raises(error, match=said):
        quiet(metrics=metrics).fit(1, 0.1)


def test_a_metric_is_called_once_an_epoch():
    """It may count, print, or know the validation set. Only at the start of a fit it may be tried on one mini-batch, to fail early."""
    sizes = []

    def spy(preds, targets):
        sizes.append(len(targets))
        return 0.0

    quiet(metrics=spy).fit(3, 0.1)
    assert sizes in ([25] * 3, [16] + [25] * 3)


@pytest.mark.parametrize("loss_func, said", [
    (lambda preds, targets: (preds - targets) ** 2, r"\(16, 1\).*mean"), (lambda preds, targets: accuracy(preds, targets), "gradient"),
    (lambda preds, targets: 0.5, "float")])
def test_a_loss_is_one_number_with_a_gradient(loss_func, said):
    with pytest.raises(ValueError, match=said):
        quiet(loss_func=loss_func).fit(1, 0.1)


@pytest.mark.parametrize("model, said", [(nn.Linear, r"Linear\("), (lambda xb: xb, "parameters"), (None, "NoneType"), ("resnet18", "str")])
def test_a_model_is_an_object_with_parameters(model, said):
    with pytest.raises(TypeError, match=said):
        Learner(loaders(), model, mnist_loss, show=False)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_names_epoch_and_batch(broken):
    x, y = binary_data(60)
    learn = quiet(DataLoaders(Batches(x, y, batch_size=16), Batches(x, y)), loss_func=nn.functional.mse_loss)
    learn.fit(1, 0.1)
    x[40] = broken
    with pytest.raises(FloatingPointError, match=r"epoch 1, batch 2\b"):
        learn.fit(1, 0.1)
    assert len(learn.history) == 1 and all(param.isfinite().all() for param in learn.model.parameters())
    x[40] = 0
    learn.fit(1, 0.1)
    assert len(learn.history) == 2


def test_a_missing_optimiser_argument_is_not_hidden():
    with pytest.raises(TypeError, match="nonsense"):
        quiet(opt_func=partial(torch.optim.SGD, nonsense=1)).fit(1, 0.1)


# on the digits

def test_the_published_linear_learner(threes_and_sevens):
    """Published: 0.9671 after 10 epochs, 3s first, never shuffled, learning rate 1."""
    torch.manual_seed(0)
    dls = DataLoaders(*(Batches(*part, batch_size=256) for part in threes_and_sevens))
    learn = quiet(dls, nn.Linear(784, 1), mnist_loss, opt_func=BasicOptim, metrics=batch_accuracy)
    learn.fit(10, 1.0)
    assert learn.history.batch_accuracy.iloc[-1] == pytest.approx(0.9671, abs=0.003)


def test_a_small_network_reads_digits(threes_and_sevens):
    torch.manual_seed(0)
    train, valid = threes_and_sevens
    dls = DataLoaders(Batches(*train, batch_size=256, shuffle=True), Batches(*valid, batch_size=256))
    learn = quiet(dls, nn.Sequential(nn.Linear(784, 30), nn.ReLU(), nn.Linear(30, 1)), mnist_loss, metrics=[accuracy, error_rate])
    found = learn.lr_find()
    assert 0.01 < found.suggestion < 10
    learn.fit_one_cycle(3, found.suggestion)
    last = learn.history.iloc[-1]
    assert last.accuracy > 0.96 and last.accuracy + last.error_rate == pytest.approx(1)
    assert list(itertools.islice(learn.history.epoch, 3)) == [0, 1, 2]

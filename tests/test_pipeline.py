"""Lesson 13: each slip does what its name says, the logs hold the numbers that one gets by hand, and what is said to bad input."""
import sys
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional

from lessonlib import pipeline
from lessonlib.data import Batches, DataLoaders, image_files
from lessonlib.learner import Learner, accuracy
from lessonlib.mlp import MLP
from lessonlib.pipeline import (
    RATES,
    REPAIRED,
    Crests,
    LayerLog,
    Slips,
    TensorBoardLog,
    agreement,
    compare_rates,
    crest_data,
    crest_experiment,
    item_table,
    load_several_ways,
    plot_layers,
    redrawn_crests,
    sgd_step,
    starting_weights,
    turned,
)

CLUBS = ["harbour_lions", "hilltop_falcons"]
binary_cross_entropy = functional.binary_cross_entropy_with_logits


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


def bytes_of(count, seed):
    """Pictures of twelve bytes: the first four are bright for the first class, the next four for the second."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 120, (count, 12), generator=generator)
    pixels[:count // 2, :4] += 130
    pixels[count // 2:, 4:8] += 130
    return pixels.byte(), torch.tensor([[1.0]] * (count // 2) + [[0.0]] * (count // 2))


@pytest.fixture(scope="module")
def tiny():
    return Crests(*bytes_of(128, 0), *bytes_of(40, 1), *bytes_of(20, 2))


# ---- one step, many models

def test_a_step_equals_autograd_for_each_model():
    torch.manual_seed(0)
    xb, yb, lr = torch.rand(16, 30), torch.randint(0, 2, (16, 1)).float(), torch.tensor([0.1, 0.5, 2.0])
    weights, bias = starting_weights(30, [1, 2, 3])
    losses = sgd_step(xb, yb, weights, bias, lr)
    for run, seed in enumerate([1, 2, 3]):
        torch.manual_seed(seed)
        layer = nn.Linear(30, 1)
        optimiser = torch.optim.SGD(layer.parameters(), lr=lr[run].item())
        loss = binary_cross_entropy(layer(xb), yb)
        loss.backward()
        optimiser.step()
        assert torch.allclose(layer.weight[0], weights[run], atol=1e-6) and torch.allclose(layer.bias[0], bias[run], atol=1e-6)
        assert torch.isclose(loss, losses[run], atol=1e-6)  # the loss from before the step


def test_starting_weights_leave_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again = starting_weights(6, [0, 1]), starting_weights(6, [1, 0])
    assert torch.rand(1) == expected and torch.equal(first[0].flip(0), again[0]) and not torch.equal(first[0][0], first[0][1])


def test_the_repaired_experiment_is_what_a_learner_does(tiny):
    """The same order of mini-batches, the same start: the accuracy and the weights of `Learner` with `nn.Linear`."""
    found = crest_experiment(tiny, REPAIRED, seeds=[4], epochs=3, rates=(0.5,), batch_size=32)
    generator = torch.Generator().manual_seed(0)

    class SameOrder(Batches):
        def __iter__(self):
            order = torch.randperm(128, generator=generator)
            for rows in order.split(32): yield self.tensors[0][rows], self.tensors[1][rows]

    torch.manual_seed(4)
    model = nn.Linear(12, 1)
    dls = DataLoaders(SameOrder(tiny.pixels / 255, tiny.targets, batch_size=32), Batches(tiny.valid_pixels / 255, tiny.valid_targets))
    learn = Learner(dls, model, binary_cross_entropy, metrics=accuracy, show=False, device="cpu")
    learn.fit(3, lr=0.5)
    assert torch.allclose(model.weight, found.weights, atol=1e-5) and torch.allclose(model.bias, found.bias, atol=1e-5)
    assert np.allclose(learn.history.accuracy, found.record[found.record.epoch > 0].accuracy)


# ---- each switch

def seen_batches(tiny, slips, epochs=2):
    """Every mini-batch of some epochs, inputs and targets, copied: each is overwritten by the next."""
    generator = torch.Generator().manual_seed(0)
    return [(xb.clone(), yb) for _ in range(epochs) for xb, yb in pipeline._batches(tiny, slips, 32, generator)]


def test_scaled_twice_divides_by_255_once_more(tiny):
    largest = {scaled: max(xb.max().item() for xb, _ in seen_batches(tiny, Slips(scaled_twice=scaled))) for scaled in (True, False)}
    assert largest[True] <= 1 / 255 < 0.9 < largest[False] <= 1 and np.isclose(largest[False] / largest[True], 255)


def test_sorted_batches_are_one_sided_and_the_same_each_epoch(tiny):
    kinds = {way: [len(yb.unique()) for _, yb in seen_batches(tiny, Slips(sorted_batches=way))] for way in (True, False)}
    assert kinds[True] == [1] * 8 and kinds[False] == [2] * 8
    sorted_ones, shuffled = (seen_batches(tiny, Slips(sorted_batches=way)) for way in (True, False))
    assert torch.equal(sorted_ones[0][0], sorted_ones[4][0]) and not torch.equal(shuffled[0][0], shuffled[4][0])


def test_new_starts_and_old_loss_in_the_comparison_of_rates(tiny):
    lost = {(new, old): compare_rates(tiny, Slips(True, False, new, old), seeds=[0, 1]) for new, old in product([True, False], repeat=2)}
    assert (lost[False, True] == lost[False, True][0]).all()  # one start, loss from before the step: the same for every rate
    assert all(len(lost[True, True][:, seed].unique()) == len(RATES) for seed in (0, 1))  # only the starts differ
    first, batch = starting_weights(12, [0, 1]), next(pipeline._batches(tiny, Slips(True, False), 64, torch.Generator().manual_seed(0)))
    assert torch.allclose(lost[False, True][0], pipeline._losses(batch[0] @ first[0].T + first[1], batch[1]))
    sgd_step(*batch, *first, torch.tensor([1.0, 1.0]))
    assert torch.allclose(lost[False, False][-1], pipeline._losses(batch[0] @ first[0].T + first[1], batch[1]))  # after a step with rate 1


def test_the_rate_with_the_smallest_printed_loss_is_taken(tiny):
    slips = Slips(False, False, False, False)
    best = torch.tensor(RATES)[compare_rates(tiny, slips, seeds=[0, 1, 2]).argmin(0)]
    assert np.allclose(crest_experiment(tiny, slips, seeds=[0, 1, 2], epochs=1).record.lr[:3], best)
    tied = crest_experiment(tiny, Slips(False, False, False, True), seeds=[0], epochs=1)
    assert tied.record.lr[0] == pytest.approx(RATES[0])  # of equal ones the first


def test_the_record(tiny):
    found = crest_experiment(tiny, REPAIRED, seeds=[0, 7], epochs=4, rates=(1.0,))
    assert list(found.record.columns) == ["seed", "lr", "epoch", "train_loss", "accuracy", "redrawn", "says_first"]
    assert len(found.record) == 2 * 5 and found.record.epoch.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    last = found.record[found.record.epoch == 4]
    assert last.accuracy.min() > 0.9 and last.redrawn.min() > 0.9  # two classes that a line can tell apart
    says = (tiny.valid_pixels / 255) @ found.weights.T + found.bias > 0
    assert np.allclose(last.says_first, says.float().mean(0)) and np.allclose(last.accuracy, (says == (tiny.valid_targets == 1)).float().mean(0))


def test_sorted_batches_end_with_the_last_word(tiny):
    last = crest_experiment(tiny, Slips(True, True, False, False), seeds=[0, 1], epochs=2, rates=(10.0,)).record.iloc[-2:]
    assert (last.says_first < 0.1).all()


@pytest.mark.parametrize(("arguments", "said"), [({"epochs": 0}, "epochs is 0"), ({"rates": (0.1, -1.0)}, "lr is -1.0")])
def test_experiment_refuses(tiny, arguments, said):
    with pytest.raises(ValueError, match=said): crest_experiment(tiny, **arguments)


# ---- the recorded experiments

def test_the_recorded_table_is_whole_and_says_what_the_lesson_says():
    from lessonlib.data import _data_folder

    recorded = pd.read_csv(_data_folder() / "recorded" / "crests.csv")
    switches = list(recorded.columns[:4])
    assert switches == ["scaled_twice", "sorted_batches", "new_starts", "old_loss"] and len(recorded) == 16 * 10 * 21
    last = recorded[recorded.epoch == 20].groupby(switches).accuracy.mean()
    assert len(last) == 16 and last[0, 0, 0, 0] > last[1, 1, 1, 1] + 0.1
    assert all(last[tuple(int(place != repaired) for place in range(4))] < last[0, 0, 0, 0] - 0.1 for repaired in range(4))


# ---- the data

def test_crest_data(tmp_path, monkeypatch):
    """Drawn small: eight crests of each club take the place of the thousand."""
    from lessonlib.sketches import write_crests

    write_crests(tmp_path / "crests", CLUBS, count=10)
    monkeypatch.setattr(pipeline, "get_data", lambda name, root, clubs: tmp_path / "crests")
    data = crest_data(CLUBS[::-1], redrawn=3, root=tmp_path)
    assert data.pixels.shape == (16, 78_400) and data.valid_pixels.shape == (4, 78_400) and data.redrawn_pixels.shape == (6, 78_400)
    assert data.pixels.dtype == torch.uint8 and data.redrawn_targets.flatten().tolist() == [1, 1, 1, 0, 0, 0]  # the lions come first
    steps = data.targets.flatten().diff()
    assert (steps <= 0).all() and 0 < data.targets.mean() < 1  # sorted: all lions, then all falcons
    with pytest.raises(ValueError, match="names of two clubs"): crest_data(CLUBS[:1])


def test_redrawn_crests_are_drawn_once_and_never_half(tmp_path, monkeypatch):
    from lessonlib import sketches

    folder = redrawn_crests(CLUBS, 2, tmp_path)
    files = image_files(folder)
    assert [file.name for file in files] == [f"{club}_{number:04}.png" for club in CLUBS for number in (1, 2)]
    before = [file.stat().st_mtime_ns for file in files]
    assert redrawn_crests(CLUBS[::-1], 2, tmp_path) == folder and [file.stat().st_mtime_ns for file in files] == before

    def stops(*arguments, **options): raise OSError("disk full")
    monkeypatch.setattr(sketches, "draw_crest_variant", stops)
    with pytest.raises(OSError, match="disk full"): redrawn_crests(CLUBS, 3, tmp_path)
    monkeypatch.undo()
    assert len(image_files(redrawn_crests(CLUBS, 3, tmp_path))) == 6  # what was half is drawn anew


@pytest.mark.parametrize("clubs, error, said", [
    (["harbour_lion"], ValueError, "harbour_lions"), (["../../evil"], ValueError, "evil"),
    ("harbour_lions", TypeError, "list of names"), ([], ValueError, "empty")])
def test_clubs_that_cannot_be_leave_nothing_behind(tmp_path, clubs, error, said):
    with pytest.raises(error, match=said): redrawn_crests(clubs, 1, tmp_path / "home")
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="count=0"): redrawn_crests(CLUBS, 0, tmp_path)


def test_clubs_may_be_named_twice_and_all_of_them(tmp_path):
    from lessonlib.sketches import CRESTS

    assert len(image_files(redrawn_crests([*CLUBS, *CLUBS], 1, tmp_path))) == 2
    assert len(image_files(redrawn_crests(list(CRESTS), 1, tmp_path))) == 20


@pytest.mark.parametrize("arguments", [{"steps": 0}, {"steps": 1000}, {"rates": ()}, {"seeds": []}], ids=str)
def test_rates_cannot_be_compared_with_nothing(tiny, arguments):
    with pytest.raises(ValueError, match="expected"): compare_rates(tiny, **arguments)


def test_starts_may_come_from_a_generator(tiny):
    assert compare_rates(tiny, seeds=(seed for seed in (0, 1))).shape == (len(RATES), 2)
    assert crest_experiment(tiny, seeds=(seed for seed in (0, 1)), epochs=1).record.seed.tolist() == [0, 1, 0, 1]


# ---- the looks before training

@pytest.fixture(scope="module")
def crest_file(tmp_path_factory):
    from lessonlib.sketches import draw_crest

    path = tmp_path_factory.mktemp("crest") / "lion.png"
    draw_crest("harbour_lions").save(path)
    return path


def test_load_several_ways(crest_file):
    ways = load_several_ways(crest_file, size=32)
    rgba, hidden, paper = ways["RGBA, four channels"], ways['convert("RGB")'], ways["on white paper"]
    assert rgba.shape == (4, 140, 140) and rgba[3, 0, 0] == 0 and (hidden[:, 0, 0] == rgba[:3, 0, 0]).all() and (paper[:, 0, 0] == 1).all()
    solid = rgba[3] == 1
    assert torch.allclose(paper[:, solid], rgba[:3, solid])
    assert all(ways[name].shape == (3, 32, 32) for name in list(ways)[3:]) and ways["normalised"].min() < 0
    assert not torch.equal(ways["small, nearest pixel"], ways["small, averaged"])
    with pytest.raises(FileNotFoundError): load_several_ways(crest_file.with_name("none.png"))


def test_turned():
    image = torch.zeros(2, 1, 9, 9)
    image[:, 0, 1, 4] = 1
    assert turned(image, 90, paper=0)[:, 0, 4, 1].tolist() == pytest.approx([1, 1], abs=1e-5) and torch.allclose(turned(image, 0), image, atol=1e-5)
    assert (turned(image, 45)[:, 0, 0, 0] > 0.99).all() and (turned(image, 45, paper=0)[:, 0, 0, 0] < 0.01).all()


def test_agreement():
    preds = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.5], [0.0, 1.0]])
    assert agreement(preds, preds * 3) == 1 and agreement(preds, preds.flip(1)) == 0 and agreement(preds, preds[[0, 1, 3, 2]]) == 0.5


@pytest.mark.parametrize("shapes", [((3, 2), (4, 2)), ((3, 1), (3, 1)), ((3,), (3,)), ((0, 2), (0, 2))])
def test_agreement_refuses(shapes):
    with pytest.raises(ValueError, match=r"expected the same shape \(n, classes\)"): agreement(*map(torch.zeros, shapes))


# ---- the log of the layers

def small_learner(callbacks, model=None, items=24):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 1))
    xb, yb = torch.randn(items, 5), torch.rand(items, 1).round()
    return Learner(DataLoaders(Batches(xb, yb, batch_size=8), Batches(xb, yb)), model, binary_cross_entropy, metrics=accuracy,
                   callbacks=callbacks, show=False, device="cpu"), xb, yb


def values(log): return log.table.set_index(["step", "layer", "quantity"])["value"]


def test_the_numbers_are_those_by_hand():
    log = LayerLog()
    learn, xb, yb = small_learner([log])
    model, first = learn.model, xb[:8]
    loss = binary_cross_entropy(model(first), yb[:8])
    grads, hidden = torch.autograd.grad(loss, list(model.parameters())), model[0](first).detach()
    learn.fit(2, lr=0.1)
    found, early = values(log), torch.cat([grads[0].flatten(), grads[1]])
    assert found[0, "", "train_loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert found[0, "0", "gradient_norm"] == pytest.approx(early.norm().item(), abs=1e-6)
    assert found[0, "0", "gradient_mean"] == pytest.approx(early.abs().mean().item(), abs=1e-6)
    assert found[0, "0", "activation_mean"] == pytest.approx(hidden.mean().item(), abs=1e-6)
    assert found[0, "1", "activation_std"] == pytest.approx(hidden.relu().std(correction=0).item(), abs=1e-6)
    assert found[0, "1", "dead_share"] == pytest.approx((hidden <= 0).all(0).float().mean().item())
    assert (0, "0", "dead_share") not in found.index and (0, "1", "gradient_norm") not in found.index


def test_steps_epochs_and_the_history():
    log = LayerLog()
    learn, *_ = small_learner([log])
    learn.fit(2, lr=0.1)
    losses = log.table[log.table.quantity == "train_loss"]
    assert losses.step.tolist() == [0, 1, 2, 3, 4, 5] and losses.epoch.tolist() == [0, 0, 0, 1, 1, 1]
    for name in ("valid_loss", "accuracy"): assert log.table[log.table.quantity == name].value.tolist() == learn.history[name].tolist()
    learn.fit(1, lr=0.1)  # goes on counting
    assert log.table.step.max() == 9 and log.table[log.table.quantity == "train_loss"].step.tolist() == list(range(9))


def test_every_and_layers():
    log = LayerLog(every=2, layers=["2"])
    learn, *_ = small_learner([log])
    learn.fit(1, lr=0.1)
    assert log.table[log.table.layer != ""].step.unique().tolist() == [0, 2] and set(log.table.layer) == {"", "2"}
    assert log.table[log.table.quantity == "train_loss"].step.tolist() == [0, 2]


def test_validation_leaves_no_rows_and_no_hook_stays():
    log = LayerLog()
    learn, xb, yb = small_learner([log])
    learn.fit(1, lr=0.1)
    rows = len(log.rows)
    learn.validate()
    assert len(log.rows) == rows and not any(layer._forward_hooks for layer in learn.model.modules())
    assert (log.table[log.table.quantity == "activation_mean"].groupby("layer").size() == 3).all()  # three training steps, none of validation


def test_training_is_not_touched():
    with_log, *_ = small_learner([LayerLog()])
    without, *_ = small_learner([])
    for learn in (with_log, without): learn.fit(2, lr=0.1)
    assert all(torch.equal(*pair) for pair in zip(with_log.model.parameters(), without.model.parameters()))


def test_hooks_go_after_an_error_too():
    log = LayerLog()
    learn, *_ = small_learner([log])
    with torch.no_grad(): learn.model[0].weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError): learn.fit(1, lr=0.1)
    assert not any(layer._forward_hooks for layer in learn.model.modules())


def test_a_layer_that_is_used_twice_and_one_that_is_frozen():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(5, 6), relu, nn.Linear(6, 6), relu, nn.Linear(6, 1))
    model[0].requires_grad_(False)
    log = LayerLog()
    learn, *_ = small_learner([log], model)
    learn.fit(1, lr=0.1)
    first = log.table[log.table.step == 0]
    assert (first[first.layer == "1"].quantity == "dead_share").sum() == 2  # two outputs, two rows
    assert "gradient_norm" not in set(first[first.layer == "0"].quantity) and "gradient_norm" in set(first[first.layer == "2"].quantity)


def test_dead_units_are_found():
    log = LayerLog()
    learn, *_ = small_learner([log])
    with torch.no_grad(): learn.model[0].bias.fill_(-50.0)
    learn.fit(1, lr=0.1)
    assert values(log)[0, "1", "dead_share"] == 1 and values(log)[0, "0", "gradient_norm"] == 0


def test_log_refuses():
    for every in (0, True, 1.5):
        with pytest.raises(ValueError, match="whole number of 1 or more"): LayerLog(every=every)
    with pytest.raises(RuntimeError, match="no layer is called 'body'.*0, 1, 2"): small_learner([LayerLog(layers=["body"])])[0].fit(1, lr=0.1)
    with pytest.raises(RuntimeError, match="LayerLog needs an nn.Module"): small_learner([LayerLog()], MLP([5, 3, 1]))[0].fit(1, lr=0.1)


def test_plot_layers():
    log = LayerLog()
    small_learner([log])[0].fit(2, lr=0.1)
    axes = plot_layers(log).axes
    assert [ax.get_title() for ax in axes] == ["loss", "gradient norm", "activation std", "dead share"]
    assert axes[1].get_yscale() == "log" and [line.get_label() for line in axes[1].lines] == ["0", "2"]
    assert np.allclose(axes[0].lines[0].get_ydata(), log.table[log.table.quantity == "train_loss"].value)
    with pytest.raises(ValueError, match="the log is empty"): plot_layers(LayerLog())
    with pytest.raises(ValueError, match="no 'dead' in the log: expected some of train_loss"): plot_layers(log, ["dead"])


# ---- TensorBoard

def read_back(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


def test_event_files_hold_what_the_table_holds(tmp_path):
    log = TensorBoardLog(tmp_path / "run")
    small_learner([log])[0].fit(2, lr=0.1)
    events, table = read_back(tmp_path / "run"), log.table
    tags = [f"{row.quantity}/{row.layer}" if row.layer else row.quantity for row in table.itertuples()]
    assert set(events.Tags()["scalars"]) == set(tags)
    for tag in set(tags):
        rows = table[[tag == other for other in tags]]
        found = events.Scalars(tag)
        assert [event.step for event in found] == rows.step.tolist() and np.allclose([event.value for event in found], rows.value)


def test_the_same_numbers_as_a_plain_log(tmp_path):
    plain, board = LayerLog(), TensorBoardLog(tmp_path)
    for log in (plain, board): small_learner([log])[0].fit(1, lr=0.1)
    pd.testing.assert_frame_equal(plain.table, board.table)


def test_an_interrupted_run_is_on_the_disk(tmp_path):
    log = TensorBoardLog(tmp_path)
    learn, *_ = small_learner([log])
    learn.fit(1, lr=0.1)
    with torch.no_grad(): learn.model[0].weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError): learn.fit(1, lr=0.1)
    losses = [event.value for event in read_back(tmp_path).Scalars("train_loss")]
    assert len(losses) == 4 and np.isnan(losses[-1]) and np.isfinite(losses[:-1]).all()  # the loss that ended it is there, too


def test_without_tensorboard(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r'pip install "lessonlib\[tensorboard\]"'): TensorBoardLog(tmp_path)
    assert not [*tmp_path.iterdir()]
    small_learner([LayerLog()])[0].fit(1, lr=0.1)  # the plain log needs none of it


# ---- from categories to files

@pytest.fixture
def answers():
    return pd.DataFrame({"path": ["1", "2", "3", "4"], "split": "valid", "label": list("BBAA"), "prediction": list("BAAA"),
                         "confidence": [0.9, 0.8, 0.6, 0.7], "loss": [0.1, 1.6, 0.5, 0.4]})


def test_item_table(answers):
    table = item_table(answers)
    assert table.to_dict("list") == {"label": ["B", "A"], "files": [2, 2], "wrong": [1, 0], "accuracy": [0.5, 1.0]}
    assert item_table(answers, "B").path.tolist() == ["2"] and item_table(answers, "A", "right").path.tolist() == ["3", "4"]
    assert item_table(answers, "B", "all").path.tolist() == ["2", "1"]  # the highest loss first
    assert list(item_table(answers, "B")) == ["path", "prediction", "confidence", "loss"] and item_table(answers, "A").empty
    assert item_table(answers, "B").index.tolist() == [1]  # rows keep their numbers, so that their pictures can be found


def test_item_table_without_files(answers):
    frame = answers.drop(columns="path").assign(index=range(4))
    assert item_table(frame, "B")["index"].tolist() == [1]


def test_item_table_refuses(answers):
    with pytest.raises(ValueError, match="expected one of A, B"): item_table(answers, "C")
    with pytest.raises(ValueError, match="'wrong', 'right' or 'all'"): item_table(answers, "B", "good")


def test_the_doctor_names_what_the_lesson_says(tiny):
    from lessonlib.doctor import doctor

    def named(pixels, targets):
        dls = DataLoaders(Batches(pixels, targets, batch_size=16), Batches(tiny.valid_pixels / 255, tiny.valid_targets))
        checks = doctor(dls, nn.Linear(12, 1), binary_cross_entropy).checks
        return set(checks[checks.status.isin(["warn", "fail"])].check)

    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    slipped, healthy = named(tiny.pixels / 255 / 255, tiny.targets), named(tiny.pixels[order] / 255, tiny.targets[order])
    assert {"inputs: range", "labels: order"} <= slipped and not {"inputs: range", "labels: order"} & healthy

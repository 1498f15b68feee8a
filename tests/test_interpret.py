"""Lesson 09: `Interpretation` against scikit-learn and numbers worked out by hand, probes, heat maps, simulations, and what they say to bad input."""
import math
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn import metrics
from torch import nn
from torch.nn import functional

from lessonlib import interpret
from lessonlib.data import Batches, DataLoaders
from lessonlib.explore import PALETTE, Explorer
from lessonlib.interpret import (
    Interpretation,
    bounded,
    draw_pet_on,
    grad_cam,
    occlusion_map,
    plot_heat,
    probe,
    results_by_slice,
    simulate_patrols,
)
from lessonlib.learner import Learner, load_learner
from lessonlib.linear_sgd import mnist_loss
from lessonlib.vision import image_dataloaders

COLUMNS = ["split", "label", "prediction", "confidence", "loss"]


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


def given(probs, targets, loss_func=functional.cross_entropy, train=None, **dls):
    """A learner that says what we want: its items are the logits."""
    xb, yb = torch.as_tensor(probs).log() if loss_func is functional.cross_entropy else torch.as_tensor(probs), torch.as_tensor(targets)
    model = nn.Sequential(nn.Identity(), nn.Linear(1, 1)) if xb.ndim == 1 else nn.Identity()
    loaders = DataLoaders(Batches(*(train or (xb, yb)), batch_size=3, shuffle=True), Batches(xb, yb, batch_size=3))
    for name, value in dls.items(): setattr(loaders, name, value)
    return Learner(loaders, model, loss_func, show=False)


PROBS = [[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8], [0.05, 0.95], [0.45, 0.55], [0.6, 0.4]]
TARGETS = [0, 0, 1, 1, 1, 1, 1]  # two cats, five dogs; the second and the last are wrong


@pytest.fixture
def seen():
    return Interpretation(given(PROBS, TARGETS, vocab=["cat", "dog"]))


@pytest.fixture(scope="module")
def picture_files(tmp_path_factory):
    """18 small pictures: red ones and blue ones."""
    folder, files = tmp_path_factory.mktemp("pictures"), []
    for place in range(18):
        name = ("blue", "red")[place % 2]
        pixels = np.zeros((20, 24, 3), np.uint8) + 5 * place
        pixels[..., 0 if name == "red" else 2] = 200
        files.append(folder / f"{name}_{place:02d}.png")
        Image.fromarray(pixels).save(files[-1])
    return files


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))


def of_pictures(files, **options):
    dls = image_dataloaders(files, lambda path: path.stem.split("_")[0], size=16, batch_size=4, cache="memory",
                            split=(range(11), range(11, 18)), **options)
    return Learner(dls, small_net(), functional.cross_entropy, torch.optim.Adam, show=False)


# ---------------------------------------------------------------- tables

def test_a_frame_has_what_was_said_of_each_item(seen):
    frame = seen.to_frame()
    assert list(frame) == ["index", *COLUMNS] and len(frame) == 7
    assert frame["label"].tolist() == ["cat"] * 2 + ["dog"] * 5
    assert frame["prediction"].tolist() == ["cat", "dog", "dog", "dog", "dog", "dog", "cat"]
    assert frame["confidence"].tolist() == pytest.approx([0.9, 0.6, 0.7, 0.8, 0.95, 0.55, 0.6])
    true_class = [0.9, 0.4, 0.7, 0.8, 0.95, 0.55, 0.4]
    assert frame["loss"].tolist() == pytest.approx([-math.log(prob) for prob in true_class], abs=1e-5)
    assert set(frame["split"]) == {"valid"} and frame["index"].tolist() == list(range(7))


def test_a_frame_is_the_callers_own(seen):
    frame = seen.to_frame()
    frame["label"] = "spoilt"
    assert set(seen.to_frame()["label"]) == {"cat", "dog"}


def test_confusion_matrix_has_labels_in_rows(seen):
    matrix = seen.confusion_matrix()
    assert matrix.index.name == "label" and matrix.columns.name == "prediction"
    assert matrix.to_numpy().tolist() == [[1, 1], [1, 4]]
    assert matrix.loc["cat", "dog"] == 1 and matrix.loc["dog"].sum() == 5
    assert seen.confusion_matrix(normalise=True).loc["dog"].tolist() == pytest.approx([0.2, 0.8])


def test_report_agrees_with_counting_and_with_scikit_learn(seen):
    report, answers = seen.report(), seen.answers.numpy()
    assert report.loc["cat", ["precision", "recall", "f1", "support"]].tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 2, 2])
    assert report.loc["dog", ["precision", "recall", "f1"]].tolist() == pytest.approx([4 / 5, 4 / 5, 4 / 5])
    assert report.loc["accuracy", "recall"] == pytest.approx(5 / 7)
    assert report.loc["balanced accuracy", "recall"] == pytest.approx(metrics.balanced_accuracy_score(TARGETS, answers))
    assert report["support"].tolist() == [2, 5, 7, 7]


@pytest.mark.filterwarnings("error")
def test_report_of_a_class_that_is_never_said_has_no_precision():
    report = Interpretation(given([[0.2, 0.8]] * 10, [0] + [1] * 9, vocab=["cat", "dog"])).report()
    assert math.isnan(report.loc["cat", "precision"]) and report.loc["cat", "recall"] == 0
    assert report.loc["accuracy", "recall"] == pytest.approx(0.9) and report.loc["balanced accuracy", "recall"] == 0.5


@pytest.mark.filterwarnings("error")
def test_a_class_without_items_counts_in_no_mean():
    found = Interpretation(given([[0.8, 0.1, 0.1]] * 3 + [[0.1, 0.8, 0.1]], [0, 0, 0, 1], vocab=["a", "b", "c"]))
    assert found.report().loc["balanced accuracy", "recall"] == 1 and math.isnan(found.report().loc["c", "recall"])
    assert found.confusion_matrix().shape == (3, 3) and found.confusion_matrix(normalise=True).loc["c"].isna().all()


def test_top_losses_least_sure_and_most_confused(seen):
    assert seen.top_losses(3)["index"].tolist() == [1, 6, 5]
    assert seen.least_sure(2)["index"].tolist() == [5, 1]
    assert len(seen.top_losses(100)) == 7 and list(seen.top_losses(1)) == list(seen.to_frame())
    assert list(seen.most_confused()) == ["label", "prediction", "count"]
    assert seen.most_confused().to_numpy().tolist() == [["cat", "dog", 1], ["dog", "cat", 1]]
    assert seen.most_confused(min_count=2).empty


def test_most_confused_begins_with_the_most_frequent_pair():
    probs = torch.eye(3)[[1, 2, 2, 0, 0, 0, 1]] * 0.97 + 0.01
    found = Interpretation(given(probs, [0, 1, 1, 2, 2, 2, 1]))
    assert found.most_confused().to_numpy().tolist() == [[2, 0, 3], [1, 2, 2], [0, 1, 1]]


def test_thresholds_and_costs(seen):
    row = seen.at_threshold("cat", 0.4)
    assert (row["found"], row["missed"], row["false_alarms"]) == (2, 0, 2)
    assert (row["recall"], row["precision"], row["accuracy"]) == pytest.approx((1, 0.5, 5 / 7))
    nothing = seen.at_threshold("cat", 1.0)
    assert nothing["found"] == 0 and math.isnan(nothing["precision"]) and seen.at_threshold("cat", 0.0)["false_alarms"] == 5
    costs = seen.costs("cat", miss=10, false_alarm=3)
    assert len(costs) == 101 and costs["threshold"].iloc[[0, 100]].tolist() == [0, 1]
    assert costs["cost"].iloc[[0, 50, 100]].tolist() == [15, 13, 20] and costs["missed"].is_monotonic_increasing


def test_calibration_sorts_items_by_confidence(seen):
    table = seen.calibration(bins=2)
    assert table["bin"].tolist() == [0.5] and table["count"].tolist() == [7]
    assert table[["confidence", "accuracy"]].iloc[0].tolist() == pytest.approx([np.mean([0.9, 0.6, 0.7, 0.8, 0.95, 0.55, 0.6]), 5 / 7])
    assert seen.calibration(bins=10)["count"].sum() == 7
    assert Interpretation(given([[1.0, 0.0]], [0], vocab=["a", "b"])).calibration(4)["bin"].tolist() == [0.75]  # 1.0 belongs to the last bin


# ---------------------------------------------------------------- kinds of learners

def test_losses_average_to_the_learners_own_loss(picture_files):
    learn = of_pictures(picture_files)
    assert Interpretation(learn).losses.mean().item() == pytest.approx(learn.validate()["valid_loss"], abs=1e-5)
    smooth = given(PROBS, TARGETS, nn.CrossEntropyLoss(label_smoothing=0.1))
    assert Interpretation(smooth).losses.mean().item() == pytest.approx(smooth.validate()["valid_loss"], abs=1e-5)


@pytest.mark.parametrize("shape", [(-1, 1), (-1,)])
def test_one_logit_an_item(shape):
    logits, targets = torch.tensor([2.0, -1.0, 0.5, -3.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    learn = given(logits.view(-1, 1), targets.view(-1, 1), mnist_loss)
    if shape == (-1,): learn.model, learn.dls.valid.tensors = nn.Flatten(0), (logits.view(-1, 1), targets)
    found = Interpretation(learn)
    assert found.confusion_matrix().to_numpy().tolist() == [[1, 1], [1, 1]] and found.vocab == [0, 1]
    assert found.probs[:, 1].tolist() == pytest.approx(logits.sigmoid().tolist())
    assert found.losses.tolist() == pytest.approx([1 - 0.8808, 1 - 0.2689, 0.6225, 0.0474], abs=1e-3)


def test_probabilities_that_are_ready_are_not_squeezed_again():
    found = Interpretation(given(torch.tensor([[0.9], [0.3]]), torch.tensor([[1.0], [0.0]]), functional.binary_cross_entropy))
    assert found.probs[:, 1].tolist() == pytest.approx([0.9, 0.3])


def test_pictures_have_paths_in_order(picture_files):
    learn = of_pictures(picture_files)
    frame = Interpretation(learn).to_frame()
    assert list(frame) == ["path", *COLUMNS] and frame["path"].tolist() == picture_files[11:]
    assert frame["label"].tolist() == [path.stem.split("_")[0] for path in picture_files[11:]]
    for row in frame.itertuples():
        label, _, probs = learn.predict(row.path)
        assert (label, probs.max().item()) == (row.prediction, pytest.approx(row.confidence, abs=1e-5))


@pytest.mark.parametrize("augment", [False, True])
def test_training_images_come_in_order_all_of_them_and_not_augmented(picture_files, augment):
    learn = of_pictures(picture_files, augment=augment)
    found = Interpretation(learn, "train")
    frame = found.to_frame()
    assert frame["path"].tolist() == picture_files[:11] and set(frame["split"]) == {"train"}  # 11, although a batch has 4
    assert frame["label"].tolist() == [path.stem.split("_")[0] for path in picture_files[:11]]
    assert frame["confidence"].tolist() == pytest.approx([learn.predict(path)[2].max().item() for path in picture_files[:11]], abs=1e-5)
    assert torch.equal(interpret._items(found.batches, [3])[0], learn.dls.prepare(picture_files[3]))
    assert learn.dls.train.shuffle  # the learner's own is as it was


def test_other_minibatches_such_as_a_test_set(picture_files):
    learn = of_pictures(picture_files)
    other = of_pictures(picture_files[::-1]).dls.valid
    frame = Interpretation(learn, other).to_frame()
    assert set(frame["split"]) == {"other"} and frame["path"].tolist() == picture_files[::-1][11:]
    pairs = [(torch.tensor(PROBS), torch.tensor(TARGETS))]
    assert len(Interpretation(given(PROBS, TARGETS), iter(pairs)).to_frame()) == 7  # can be walked only once


def test_a_shuffled_training_set_of_tensors_comes_in_order():
    frame = Interpretation(given(PROBS, TARGETS), "train").to_frame()
    assert frame["confidence"].tolist() == pytest.approx([0.9, 0.6, 0.7, 0.8, 0.95, 0.55, 0.6])


def test_names_of_classes():
    learn = given(PROBS, TARGETS)
    assert Interpretation(learn).vocab == [0, 1] and Interpretation(learn, vocab=["a", "b"]).to_frame()["label"].iloc[0] == "a"
    with pytest.raises(ValueError, match="3 names.*expected 2"): Interpretation(learn, vocab=["a", "b", "c"])


# ---------------------------------------------------------------- what it refuses

def test_refuses_what_is_no_classifier():
    with pytest.raises(TypeError, match="predicts numbers"): Interpretation(given([[1.0], [2.0]], [[1.0], [2.0]], functional.mse_loss))
    with pytest.raises(TypeError, match="several labels"):
        Interpretation(given([[1.0, 2.0]], [[1.0, 0.0]], functional.binary_cross_entropy_with_logits))
    with pytest.raises(TypeError, match="str: expected a Learner"): Interpretation("learner")


def test_refuses_a_learner_without_data(tmp_path):
    learn = Learner(DataLoaders([], []), nn.Linear(4, 2), functional.cross_entropy, show=False)
    with pytest.raises(ValueError, match="valid set is empty.*image_dataloaders"): Interpretation(learn)
    loaded = load_learner(learn.export(tmp_path / "model.safetensors"))
    with pytest.raises(ValueError, match="valid set is None.*learn.dls"): Interpretation(loaded)
    with pytest.raises(ValueError, match="'test'.*'valid', 'train'"): Interpretation(learn, "test")


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "3"])
@pytest.mark.parametrize("method", ["top_losses", "least_sure", "most_confused", "calibration", "plot_top_losses", "explore_confusion"])
def test_refuses_counts_below_one(seen, method, k):
    with pytest.raises(ValueError, match="expected a whole number of 1 or more"): getattr(seen, method)(k)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, "half", float("nan"), True])
def test_refuses_thresholds_outside_0_to_1(seen, threshold):
    with pytest.raises(ValueError, match="from 0 to 1"): seen.at_threshold("cat", threshold)


def test_refuses_unknown_labels_and_negative_costs(seen):
    with pytest.raises(ValueError, match="'bird'.*'cat', 'dog'"): seen.plot_roc("bird")
    with pytest.raises(ValueError, match="miss=-1"): seen.costs("cat", miss=-1)


def test_refuses_curves_where_there_is_one_class_only():
    alone = Interpretation(given(PROBS, [1] * 7, vocab=["cat", "dog"]))
    for method in (alone.plot_roc, alone.plot_precision_recall, alone.costs, alone.explore_threshold):
        with pytest.raises(ValueError, match="0 of 7 items are 'cat'"): method("cat")
    with pytest.raises(ValueError, match="7 of 7 items are 'dog'"): alone.plot_roc("dog")


def test_refuses_images_of_what_is_none(seen):
    with pytest.raises(ValueError, match=r"shape \(2,\).*image_shape"): seen.plot_top_losses(2)


# ---------------------------------------------------------------- pictures

def test_curves_show_scikit_learns_numbers(seen):
    truth, probs = np.array(TARGETS) == 0, np.array(PROBS)[:, 0]
    roc, recall = (getattr(seen, name)("cat").axes[0] for name in ("plot_roc", "plot_precision_recall"))
    assert f"area {metrics.roc_auc_score(truth, probs):.3f}" in [text.get_text() for text in roc.get_legend().get_texts()]
    assert f"average precision {metrics.average_precision_score(truth, probs):.3f}" in [text.get_text() for text in recall.get_legend().get_texts()]
    for ax in (roc, recall, seen.plot_calibration().axes[0], seen.plot_confusion_matrix().axes[0]):
        assert ax.get_xlabel() and ax.get_ylabel() and ax.get_title()


def test_confusion_plot_shows_counts_or_shares(seen):
    assert [text.get_text() for text in seen.plot_confusion_matrix().axes[0].texts] == ["1", "1", "1", "4"]
    assert [text.get_text() for text in seen.plot_confusion_matrix(normalise=True).axes[0].texts] == ["0.50", "0.50", "0.20", "0.80"]


def test_plots_of_images(picture_files):
    found = Interpretation(of_pictures(picture_files))
    figure, top = found.plot_top_losses(3), found.top_losses(3)
    titles = [ax.get_title() for ax in figure.axes]
    assert len(titles) == 3 and titles[0].startswith(f"{top['label'].iloc[0]}, says {top['prediction'].iloc[0]}")
    shown = figure.axes[0].images[0].get_array()
    assert np.allclose(shown, found.learn.dls.prepare(top["path"].iloc[0]).permute(1, 2, 0), atol=1e-6)
    assert len(found.plot_least_sure(2).axes) == 2
    flat = Interpretation(given(PROBS, TARGETS), image_shape=(1, 2))
    assert len(flat.plot_top_losses(2).axes) == 2


def test_choosing_a_cell_shows_its_images(picture_files):
    found = Interpretation(of_pictures(picture_files))
    explorer, matrix = found.explore_confusion(count=2), found.confusion_matrix()
    assert isinstance(explorer, Explorer)
    for label in found.vocab:
        for prediction in found.vocab:
            scene = explorer.state.set(label=label, prediction=prediction).scene
            count = matrix.loc[label, prediction]
            assert scene.text.startswith(f"{count} items are {label} and the model says {prediction}")
            assert len(scene.panels) == (2 if count else 1) and scene.text.count(".png") == min(count, 2)
            assert scene.panels[0].marks[0]["highlight"] == [[found.vocab.index(label) + 1, found.vocab.index(prediction) + 1, PALETTE[1]]]
    worst = found.to_frame().query("label == 'blue'").sort_values("loss").iloc[-1]
    assert worst["path"].name in explorer.state.set(label="blue", prediction=worst["prediction"]).scene.text


def test_a_click_on_a_cell_of_the_matrix_chooses_what_stands_there(picture_files):
    found = Interpretation(of_pictures(picture_files))
    explorer, matrix = found.explore_confusion(), found.confusion_matrix()
    table = explorer.state.scene.panels[0].marks[0]
    assert len(table["pick"]) == matrix.size
    for row, column, values in table["pick"]:
        assert table["cells"][row][column] == str(matrix.loc[values["label"], values["prediction"]])
        explorer.view.set_state({"picked": {"count": 10 * row + column, "values": values}})
        assert {name: control.value for name, control in explorer.controls.items()} == values
        marked, = explorer.state.scene.panels[0].marks[0]["highlight"]
        assert marked[:2] == [row, column] and explorer.view.scene["text"] == explorer.state.scene.text


def test_the_explorer_of_cells_without_images_names_the_items(seen):
    scene = seen.explore_confusion().state.set(label="dog", prediction="cat").scene
    assert len(scene.panels) == 1 and scene.text == "1 items are dog and the model says cat. Highest loss first: 6 (60%)"


def test_the_threshold_explorer_adds_up_the_costs(seen):
    state = seen.explore_threshold("cat", miss=10, false_alarm=3).state
    assert "Cost 13; least possible here: " in state.scene.text and "1 found, 1 missed, 1 false alarms" in state.scene.text
    assert "Cost 23;" in state.set(price=20).scene.text and "Cost 15;" in state.set(threshold=0.0).scene.text
    least = seen.costs("cat", miss=20, false_alarm=3)["cost"].min()
    assert state.scene.text.endswith(f"least possible here: {least:g}.")


# ---------------------------------------------------------------- slices, probes, heat maps

def test_slices_have_wilson_intervals():
    frame = pd.DataFrame({"label": ["a"] * 12, "prediction": ["a"] * 9 + ["b"] + ["a"] * 2, "place": ["x"] * 10 + ["y"] * 2})
    table = results_by_slice(frame, "place")
    assert table["slice"].tolist() == ["x", "y"] and table["count"].tolist() == [10, 2] and table["accuracy"].tolist() == [0.9, 1]
    assert table["low"].tolist() == pytest.approx([0.5958, 0.3424], abs=1e-3) and table["high"].tolist() == pytest.approx([0.9821, 1], abs=1e-3)
    assert results_by_slice(frame, list("pq") * 6)["count"].tolist() == [6, 6]
    with pytest.raises(ValueError, match="'breed': expected one of label"): results_by_slice(frame, "breed")
    with pytest.raises(ValueError, match="2 groups for 12 rows"): results_by_slice(frame, [1, 2])


def test_probe_says_how_predictions_move(picture_files):
    learn = of_pictures(picture_files)
    images = torch.rand(3, 3, 16, 16)
    table = probe(learn, images, {"as it is": lambda xb: xb, "mirrored": lambda xb: xb.flip(3)})
    assert list(table) == ["item", "change", "prediction", "blue", "red"] and table["item"].tolist() == [0, 1, 2] * 2
    with torch.no_grad(): expected = learn.model(torch.cat([images, images.flip(3)])).softmax(1)
    assert np.allclose(table[["blue", "red"]], expected, atol=1e-6)
    with pytest.raises(ValueError, match="'cut' made 1 of 3"): probe(learn, images, {"cut": lambda xb: xb[:1]})
    with pytest.raises(ValueError, match="changes is empty"): probe(learn, images, {})


class LooksAtACorner(nn.Module):
    """Speaks for class 1 as far as the upper left quarter is bright."""
    def __init__(self):
        super().__init__()
        self.keep = nn.Conv2d(3, 1, 1, bias=False)
        self.keep.weight.data.fill_(1.0)

    def forward(self, xb):
        height, width = xb.shape[2:]
        score = self.keep(xb)[:, 0, :height // 2, :width // 2].mean((1, 2))
        return torch.stack([1.5 - score, score - 1.5], 1)


@pytest.fixture
def corner():
    dls = DataLoaders([(torch.zeros(1, 3, 16, 16), torch.zeros(1).long())], [])
    dls.vocab = ["dark", "bright"]
    image = 0.2 * torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Learner(dls, LooksAtACorner(), functional.cross_entropy, show=False), image


def test_occlusion_finds_the_place_that_counts(corner):
    learn, image = corner
    image[:, :8, :8] = 1
    heat = occlusion_map(learn, image, window=4, stride=4)
    assert heat.shape == (16, 16) and heat[:8, :8].min() > 0.01 and heat[8:].abs().max() < 1e-6 and heat[:, 8:].abs().max() < 1e-6
    covered = image.clone()
    covered[:, :4, :4] = image.mean((1, 2), keepdim=True)
    whole, hidden = (learn.predict(picture)[2][1].item() for picture in (image, covered))
    assert heat[0, 0].item() == pytest.approx(whole - hidden, abs=1e-5)  # by how much the probability falls
    assert torch.allclose(occlusion_map(learn, image, "dark", 4, 4), -heat, atol=1e-6)  # two classes share 100 %


@pytest.mark.filterwarnings("error")
def test_grad_cam_is_captums_with_a_sensible_layer(picture_files):
    learn = of_pictures(picture_files)
    image, before = learn.dls.prepare(picture_files[0]), [param.clone() for param in learn.model.parameters()]
    for param in learn.model.parameters(): param.requires_grad_(False)  # a frozen body
    heat = grad_cam(learn, image, "red")
    assert heat.shape == (16, 16) and heat.min() >= 0 and interpret._late_layer(learn.model, image[None]) is learn.model[4]
    assert torch.equal(heat, grad_cam(learn, image, "red", layer="4")) and all(param.grad is None for param in learn.model.parameters())
    assert all(torch.equal(param, old) for param, old in zip(learn.model.parameters(), before))


def test_grad_cam_by_hand(picture_files):
    learn = of_pictures(picture_files)
    image = learn.dls.prepare(picture_files[1])
    maps = learn.model[:5](image[None]).detach().requires_grad_()
    learn.model[5:](maps)[0, 1].backward()
    expected = (maps.grad.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()
    expected = functional.interpolate(expected, (16, 16), mode="bilinear")[0, 0].detach()
    assert torch.allclose(grad_cam(learn, image, "red"), expected, atol=1e-6)


def test_heat_maps_refuse(corner, monkeypatch):
    learn, image = corner
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\).*prepare"): occlusion_map(learn, image[None])
    with pytest.raises(ValueError, match="'grey'.*'dark', 'bright'"): grad_cam(learn, image, "grey")
    with pytest.raises(ValueError, match="stride <= window"): occlusion_map(learn, image, window=4, stride=8)
    with pytest.raises(ValueError, match="stride <= window"): occlusion_map(learn, image, window=17)
    with pytest.raises(ValueError, match="window is 0"): occlusion_map(learn, image, window=0)
    learn.model = nn.Sequential(nn.Flatten(), nn.Linear(768, 2))
    with pytest.raises(ValueError, match="no layer.*occlusion_map"): grad_cam(learn, image)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match=r"lessonlib\[course\]"): occlusion_map(learn, image)


def test_plot_heat_lays_the_maps_over_the_image(corner):
    figure = plot_heat(corner[1], {"one": torch.zeros(16, 16), "two": torch.ones(16, 16)})
    assert [ax.get_title() for ax in figure.axes] == ["the image", "one", "two"] and [len(ax.images) for ax in figure.axes] == [1, 2, 2]


# ---------------------------------------------------------------- drawings, districts, ranges

def test_the_same_animal_before_another_background():
    one, two, same, empty = (np.asarray(draw_pet_on(ground, breed, 3), float) for ground, breed in
                             (("room", "pug"), ("garden", "pug"), ("room", "pug"), ("garden", None)))
    assert one.shape == two.shape == empty.shape and (one == same).all()
    alike = (np.abs(one - two).max(2) < 3).mean()
    assert 0.05 < alike < 0.9  # the animal is the same, the background is not
    assert empty[..., 1].mean() > empty[..., 0].mean() and np.asarray(draw_pet_on("plain", None, 3)).std(2).mean() < 20
    with pytest.raises(ValueError, match="'lake'.*room, garden, plain"): draw_pet_on("lake", "pug", 1)
    with pytest.raises(ValueError, match="unknown breed 'cow'"): draw_pet_on("room", "cow", 1)


def test_patrols_make_their_own_records():
    assert simulate_patrols(focus=0)["share_a"].eq(0.5).all()
    ends = [simulate_patrols(focus=2, seed=seed)["share_a"].iloc[-1] for seed in range(10)]
    assert sum(abs(share - 0.5) > 0.25 for share in ends) >= 7
    run = simulate_patrols(days=50)
    assert list(run) == ["day", "share_a", "records_a", "records_b"] and len(run) == 50
    assert run["share_a"].iloc[0] == pytest.approx(144 / 244) and run["records_a"].is_monotonic_increasing
    assert simulate_patrols(days=50).equals(run) and not simulate_patrols(days=50, seed=1).equals(run)
    assert simulate_patrols(rate=0)["records_a"].eq(12).all() and simulate_patrols(3.0, start=(5, 5))["share_a"].iloc[0] == 0.5


@pytest.mark.parametrize("bad", [{"rate": 1.5}, {"rate": -0.1}, {"focus": -1}, {"start": (0, 3)}])
def test_patrols_refuse(bad):
    with pytest.raises(ValueError, match="expected a rate from 0 to 1"): simulate_patrols(**bad)
    with pytest.raises(ValueError, match="days is 0"): simulate_patrols(days=0)


def test_bounded_numbers_stay_in_their_range():
    values = bounded(torch.tensor([-50.0, -1.0, 0.0, 1.0, 50.0]), -2, 4)
    assert values.tolist() == pytest.approx([-2, -2 + 6 * 0.26894, 1, -2 + 6 * 0.73106, 4], abs=1e-4)
    with pytest.raises(ValueError, match="low=5, high=5"): bounded(torch.zeros(1), 5, 5)

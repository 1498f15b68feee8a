"""Lesson 02: the published numbers, the definitions against PyTorch and central differences, bad input, every picture."""
import itertools
import os
import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lessonlib.fitting import add_noise, double_relu, gradient_descent, mae, mk_quad, mse, quad, rectified_linear, triple_relu

NOTEBOOK = Path(__file__).resolve().parents[1] / "nbs" / "lessons" / "02_fitting.ipynb"
START = [1.1, 1.1, 1.1]
small = st.floats(-3, 3, allow_nan=False)


def noisy_quadratic():
    """The 20 published points."""
    np.random.seed(42)
    x = torch.linspace(-2, 2, steps=20)[:, None]
    return x, add_noise(mk_quad(3, 2, 1)(x), 0.15, 1.5)


@pytest.fixture(scope="module")
def loss_func():
    x, targets = noisy_quadratic()
    return lambda params: mae(quad(*params, x), targets)


# Published facts


def test_slopes_at_one_number_and_at_three():
    number, numbers = torch.tensor(3.0, requires_grad=True), torch.tensor([3.0, 4.0, 10.0], requires_grad=True)
    (quad(1, 0, 0, number) + quad(1, 0, 0, numbers).sum()).backward()
    assert number.grad == 6
    assert numbers.grad.tolist() == [6, 8, 20]


def test_published_loss_and_gradient(loss_func):
    params = torch.tensor(START, requires_grad=True)
    loss = loss_func(params)
    loss.backward()
    assert round(loss.item(), 4) == 2.4219
    assert [round(slope, 4) for slope in params.grad.tolist()] == [-1.3529, -0.0316, -0.5]


def test_published_row_comes_from_never_zeroing(loss_func):
    table = gradient_descent(loss_func, START, lr=0.01, steps=11, zero_grad=False)
    assert table["loss"].round(2).tolist() == [2.42, 2.40, 2.36, 2.30, 2.21, 2.11, 1.98, 1.85, 1.72, 1.58, 1.46]
    assert table.iloc[-1, 2:].round(4).tolist() == [1.9634, 1.1381, 1.4100]


def test_without_zeroing_it_swings_with_zeroing_it_falls(loss_func):
    slip = gradient_descent(loss_func, START, lr=0.01, steps=201, zero_grad=False).set_index("step")["loss"]
    right = gradient_descent(loss_func, START, lr=0.01, steps=401).set_index("step")["loss"]
    assert (round(slip[30:200].min(), 2), round(slip[30:200].max(), 2)) == (1.05, 2.46)
    assert [round(right[step], 2) for step in (10, 50, 100, 200, 400)] == [2.21, 1.57, 1.21, 1.08, 1.03]


def roller_coaster(seed):
    """Loss where descent stalls, the loss of least squares, and the loss with time centred and scaled."""
    torch.manual_seed(seed)
    time = torch.arange(20.0)
    speed, start = torch.randn(20) * 3 + 0.75 * (time - 9.5) ** 2 + 1, torch.randn(3)
    columns = torch.stack([time**2, time, torch.ones(20)], dim=1)
    best = mse(columns @ torch.linalg.lstsq(columns, speed[:, None]).solution, speed[:, None]).item()
    scaled = (time - time.mean()) / time.std()
    stalled = gradient_descent(lambda params: mse(quad(*params, time), speed), start, lr=1e-5, steps=30)
    fixed = gradient_descent(lambda params: mse(quad(*params, scaled), speed), start, lr=0.1, steps=301)
    return stalled["loss"].iloc[-1], best, fixed["loss"].iloc[-1]


def test_roller_coaster_stalls_near_600_and_scaling_reaches_least_squares():
    runs = np.array([roller_coaster(seed) for seed in range(5)])  # (5, 3)
    stalled, best, fixed = runs.T
    assert 550 < stalled.mean() < 700
    assert stalled.min() > 500
    assert best.max() < 15
    assert np.allclose(fixed, best, atol=0.01)


# Definitions


def test_quad_and_its_partial_form():
    x = torch.tensor([-2.0, 0.0, 2.0])
    assert quad(3, 2, 1, 10) == mk_quad(3, 2, 1)(10) == 321
    assert mk_quad(3, 2, 1)(x).tolist() == quad(3, 2, 1, x.numpy()).tolist() == [9, 1, 17]


def test_noise_is_drawn_in_the_published_order_and_keeps_the_kind_of_number():
    x = torch.linspace(-2, 2, 20)[:, None]
    np.random.seed(7)
    factors, offsets = np.random.normal(0, 0.2, (20, 1)), np.random.normal(0, 0.5, (20, 1))
    for kind, expected in ((x, torch.float32), (x.double(), torch.float64), (torch.arange(20)[:, None], torch.float32)):
        np.random.seed(7)
        noisy = add_noise(kind, 0.2, 0.5)
        assert noisy.dtype == expected and noisy.shape == (20, 1)
        assert np.allclose(noisy, kind.numpy() * (1 + factors) + offsets, atol=1e-5)
    np.random.seed(7)
    assert np.allclose(add_noise(x.numpy(), 0.2, 0.5), x.numpy() * (1 + factors) + offsets)
    assert torch.equal(add_noise(x, 0, 0), x)
    assert np.shape(add_noise(3.0, 0.1, 0.1)) == ()


@given(st.lists(small, min_size=1, max_size=20), st.floats(0, 3))
def test_losses_agree_with_torch(values, shift):
    preds = torch.tensor(values, dtype=torch.float64)
    targets = preds.flip(0) + shift
    assert torch.isclose(mae(preds, targets), torch.nn.functional.l1_loss(preds, targets))
    assert torch.isclose(mse(preds, targets), torch.nn.functional.mse_loss(preds, targets))


@settings(max_examples=50, deadline=None)
@given(st.lists(small, min_size=3, max_size=3), st.sampled_from([mae, mse]))
def test_gradient_agrees_with_central_differences(start, loss):
    x = torch.linspace(-2, 2, 20, dtype=torch.float64)[:, None]
    targets = torch.linspace(-5, 40, 20, dtype=torch.float64)[:, None] ** 2
    def total(params): return loss(quad(*params, x), targets)

    params = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    assume((quad(*params, x) - targets).abs().min() > 1e-3)  # the MAE has no slope where a prediction is exact
    total(params).backward()
    for place in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[place] = 1e-5
        with torch.no_grad():
            difference = (total(params + step) - total(params - step)) / 2e-5
        assert torch.isclose(difference, params.grad[place], rtol=1e-6, atol=1e-4)


@given(small, small, st.lists(small, min_size=1, max_size=9))
def test_rectified_linear_is_a_relu(m, b, points):
    x = torch.tensor(points, dtype=torch.float64)
    assert torch.equal(rectified_linear(m, b, x), torch.relu(m * x + b))
    assert torch.equal(double_relu(m, b, b, m, x), torch.relu(m * x + b) + torch.relu(b * x + m))


@given(st.lists(small, min_size=6, max_size=6), st.lists(st.floats(0, 3), min_size=3, max_size=3), small, small, st.floats(0, 1))
def test_sums_of_relus_with_weights_of_0_or_more_are_convex(params, weights, left, right, share):
    """The curve never lies above its chords, so no such sum is a hump."""
    ends = torch.tensor([left, right], dtype=torch.float64)
    between = share * ends[0] + (1 - share) * ends[1]
    for choice in ((1, 1, 1), weights):
        heights = triple_relu(*params, ends, *choice)
        assert triple_relu(*params, between, *choice) <= share * heights[0] + (1 - share) * heights[1] + 1e-9


def test_signed_weights_make_a_hump():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    assert triple_relu(1, 1, 1, 0, 1, -1, x, 1, -2, 1).tolist() == [0, 0, 1, 0, 0]


# gradient_descent


def test_columns_and_conventions():
    """Steps count from 0; a loss is the one before its step, the parameters are those after it."""
    table = gradient_descent(lambda params: (params**2).sum(), [4.0, 2.0], lr=0.25, steps=2)
    assert table.columns.tolist() == ["step", "loss", "a", "b"]
    assert table.values.tolist() == [[0, 20, 2, 1], [1, 5, 1, 0.5]]
    assert isinstance(table, pd.DataFrame)


def test_names_of_the_parameters():
    def loss(params): return (params**2).sum()
    assert gradient_descent(loss, [1.0, 2.0], names=["slope", "height"]).columns.tolist() == ["step", "loss", "slope", "height"]
    assert gradient_descent(loss, torch.ones(27)).columns.tolist()[2:5] == ["p0", "p1", "p2"]
    assert gradient_descent(loss, torch.ones(2, 2)).columns.tolist() == ["step", "loss", "a", "b", "c", "d"]
    assert gradient_descent(loss, [1.0], steps=0).columns.tolist() == ["step", "loss", "a"]
    for names in (["slope"], ["slope", "slope"], ["slope", "loss"]):
        with pytest.raises(ValueError, match="names"): gradient_descent(loss, [1.0, 2.0], names=names)


@pytest.mark.parametrize("start", [[3.0, 4.0], (3, 4), np.array([3.0, 4.0]), torch.tensor([3.0, 4.0]), torch.tensor([3, 4]),
                                   torch.tensor([3.0, 4.0], requires_grad=True)], ids=repr)
def test_params_are_left_unchanged(start):
    before = torch.as_tensor(start).detach().clone()
    table = gradient_descent(lambda params: (params**2).sum(), start, lr=0.1, steps=3)
    assert torch.equal(torch.as_tensor(start).detach(), before)
    assert getattr(start, "grad", None) is None
    assert np.allclose(table.iloc[-1, 2:].astype(float), before.numpy() * 0.8**3)


@pytest.mark.parametrize("momentum, zero_grad", [(0.0, True), (1.0, False)])
def test_agrees_with_torch_optimiser(momentum, zero_grad, loss_func):
    """Never zeroing is momentum without friction."""
    params = torch.tensor(START, requires_grad=True)
    optimiser = torch.optim.SGD([params], lr=0.01, momentum=momentum)
    for _ in range(100):
        optimiser.zero_grad()
        loss_func(params).backward()
        optimiser.step()
    table = gradient_descent(loss_func, START, lr=0.01, steps=100, zero_grad=zero_grad)
    assert np.allclose(table.iloc[-1, 2:].astype(float), params.detach(), atol=1e-4)


# Bad input: every error names the value and the fix


@pytest.mark.parametrize("lr", [0, -0.01, float("nan")])
def test_learning_rate_must_be_above_0(lr):
    with pytest.raises(ValueError, match=rf"lr is {lr}: expected a learning rate above 0, such as 0\.01"):
        gradient_descent(lambda params: params.sum(), [1.0], lr=lr)


def test_loss_that_is_no_number_stops_and_says_where():
    with pytest.raises(FloatingPointError, match=r"the loss is inf at step \d+: try a learning rate below 1\b"):
        gradient_descent(lambda params: (params**4).sum(), [10.0], lr=1, steps=100)
    with pytest.raises(FloatingPointError, match=r"nan at step 0: .*look for NaN in the data"):
        gradient_descent(lambda params: (params * float("nan")).sum(), [1.0])


@pytest.mark.parametrize("loss, error, message", [
    (lambda params: params**2, ValueError, r"\(2,\): expected one number, try \.mean\(\)"),
    (lambda params: (params**2).sum().item(), TypeError, r"without \.item\(\)"),
    (lambda params: (params.detach() ** 2).sum(), TypeError, "expected a tensor computed from the parameters"),
])
def test_loss_func_must_return_one_number_from_the_parameters(loss, error, message):
    with pytest.raises(error, match=message): gradient_descent(loss, [1.0, 2.0])


def test_steps_must_not_be_negative():
    with pytest.raises(ValueError, match="steps is -1: expected 0 or more"):
        gradient_descent(lambda params: params.sum(), [1.0], steps=-1)


@pytest.mark.parametrize("loss", [mae, mse])
@pytest.mark.parametrize("preds, targets, fix", [((64,), (64, 1), r"try targets\[:, 0\]"), ((64, 1), (64,), r"try targets\[:, None\]"),
                                                 ((64,), (), "one target for each prediction"), ((3, 4), (4,), "same shape")])
def test_shapes_that_would_broadcast_by_accident(loss, preds, targets, fix):
    with pytest.raises(ValueError, match=rf"preds {re.escape(str(preds))} and targets {re.escape(str(targets))}: .*{fix}"):
        loss(torch.zeros(preds), torch.zeros(targets))


@pytest.mark.parametrize("mult, add, name", [(-0.1, 1, "mult"), (0.1, -1, "add"), (float("nan"), 1, "mult")])
def test_noise_must_not_be_negative(mult, add, name):
    with pytest.raises(ValueError, match=f"{name} is .*expected a standard deviation of 0 or more"):
        add_noise(torch.zeros(3), mult, add)


# The pictures of the lesson


@pytest.fixture(scope="module")
def lesson():
    """The names of the notebook after its code cells have run in this process, up to the published table."""
    os.environ.setdefault("MPLBACKEND", "agg")
    names = {"__name__": "lesson"}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.source.startswith("## Published and here"): return names
        if cell.cell_type == "code": exec(compile(cell.source, f"<cell {cell.id}>", "exec"), names)
    raise AssertionError("no section '## Published and here'")


FIVE, THREE = (-5.0, 0.0, 1.1, 5.0), (-3.0, 0.0, 1.0, 3.0)
GRIDS = {
    "draw_fit": {"a": FIVE, "b": FIVE, "c": FIVE},
    "draw_race": {"step": (1, 50, 399, 400)},
    "draw_zeroing": {"zero_grad": (True, False), "steps": (10, 20, 30, 40, 400)},
    "draw_outlier": {"seventh": (0, 5, 8, 60)},
    "draw_relu": {"m": THREE, "b": THREE},
    "draw_double": {"m1": THREE, "b1": THREE, "m2": THREE, "b2": THREE},
    "draw_triple": dict.fromkeys(("m1", "b1", "m2", "b2", "m3", "b3"), (-3.0, 0.0, 3.0)),
    "draw_weighted": dict.fromkeys(("w1", "w2", "w3"), (-4.0, 0.0, 1.0, 4.0)),
    "draw_descent": {"step": (1, 100, 499, 500)},
    "draw_chain": {"relus": (1, 2, 8, 60)},
}


def test_every_explorer_of_the_lesson_is_tried(lesson):
    assert {name for name in lesson if name.startswith("draw_")} == set(GRIDS)


@pytest.mark.parametrize("name", GRIDS)
def test_explorer_draws_over_its_whole_range_and_says_it_in_words(name, lesson):
    for values in itertools.islice(itertools.product(*GRIDS[name].values()), 0, None, 1 if len(GRIDS[name]) < 6 else 7):
        scene = lesson[name](**dict(zip(GRIDS[name], values)))
        assert scene.to_dict()["panels"]
        assert re.search(r"\d", scene.text) and "nan" not in scene.text


def test_first_explorer_says_the_loss_with_four_decimals(lesson):
    state = lesson["fit_explorer"].state
    assert "loss (MAE) = 2.4219" in state.scene.text
    assert "loss (MAE) = 1.4767" in state.set(a=3, b=2, c=1).scene.text
    with pytest.raises(ValueError): state.set(a=6)

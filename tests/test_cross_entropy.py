"""Lesson 06: softmax and cross-entropy against torch, at the extremes, by central differences, and what they refuse."""
import itertools
import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lessonlib.cross_entropy import cross_entropy, log_softmax, nll_loss, softmax, softmax_scene
from lessonlib.explore import Scene
from lessonlib.linear_sgd import sigmoid

PAIRS = [(softmax, torch.softmax), (log_softmax, torch.log_softmax)]
unhurried = settings(deadline=None)  # torch's first call of a kind takes long, and the machine may be busy
both = pytest.mark.parametrize("ours, theirs", PAIRS, ids=["softmax", "log_softmax"])


@st.composite
def problems(draw, largest=20.0):
    """Logits (n, classes) in float64 and class indices (n,)."""
    rows, classes = draw(st.integers(1, 8)), draw(st.integers(1, 12))
    numbers = draw(st.lists(st.floats(-largest, largest), min_size=rows * classes, max_size=rows * classes))
    targets = draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    return torch.tensor(numbers, dtype=torch.float64).view(rows, classes), torch.tensor(targets)


def random_problem(rows=64, classes=10, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(rows, classes, generator=generator, dtype=dtype), torch.randint(0, classes, (rows,), generator=generator)


# softmax and log_softmax

@both
@unhurried
@given(problem=problems())
def test_equal_to_torch(ours, theirs, problem):
    x, _ = problem
    torch.testing.assert_close(ours(x), theirs(x, -1), atol=1e-9, rtol=0)
    torch.testing.assert_close(ours(x.float()), theirs(x.float(), -1), atol=1e-5, rtol=1e-6)


@both
@pytest.mark.parametrize("shape", [(5,), (1, 1), (4, 3), (2, 3, 4)])
def test_works_over_the_last_axis_of_any_shape(ours, theirs, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert ours(x).shape == shape and ours(x).dtype == x.dtype
    torch.testing.assert_close(ours(x), theirs(x, -1), atol=1e-6, rtol=0)


@unhurried
@given(problem=problems(), shift=st.floats(-1e3, 1e3))
def test_softmax_is_positive_sums_to_one_keeps_the_order_and_ignores_a_shift(problem, shift):
    x, _ = problem
    probs = softmax(x)
    assert (probs > 0).all()
    torch.testing.assert_close(probs.sum(1), torch.ones(len(x), dtype=x.dtype))
    torch.testing.assert_close(softmax(x + shift), probs, atol=1e-9, rtol=0)
    ranked = probs.gather(1, x.argsort(1))
    assert (ranked.diff(dim=1) >= -1e-12).all()


@both
def test_extreme_logits_stay_finite_and_so_does_their_gradient(ours, theirs):
    rows = [[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, -1e4], [0.0, 0.0, 0.0]]
    x, reference = (torch.tensor(rows, requires_grad=True) for _ in range(2))
    torch.testing.assert_close(ours(x), theirs(reference, -1))
    weigh = torch.tensor([1.0, 2.0, 3.0])  # the plain sum of a softmax is 1, whatever the logits are
    (ours(x) * weigh).sum().backward()
    (theirs(reference, -1) * weigh).sum().backward()
    assert x.grad.isfinite().all()
    torch.testing.assert_close(x.grad, reference.grad)


@both
def test_the_input_is_left_as_it_was(ours, theirs):
    x, _ = random_problem()
    copy = x.clone()
    ours(x)
    assert torch.equal(x, copy)


def test_softmax_of_two_is_the_sigmoid_of_the_difference():
    x, _ = random_problem(classes=2)
    torch.testing.assert_close(softmax(x)[:, 1], sigmoid(x[:, 1] - x[:, 0]), atol=1e-6, rtol=0)


# nll_loss and cross_entropy

@pytest.mark.parametrize("reduction", ["mean", "none"])
@unhurried
@given(problem=problems())
def test_losses_equal_torch(reduction, problem):
    x, targets = problem
    torch.testing.assert_close(cross_entropy(x, targets, reduction=reduction), F.cross_entropy(x, targets, reduction=reduction), atol=1e-9, rtol=0)
    log_probs = torch.log_softmax(x, 1)
    ours, theirs = (loss_func(log_probs, targets, reduction=reduction) for loss_func in (nll_loss, F.nll_loss))
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_cross_entropy_equals_torch_to_a_millionth_in_float32(seed):
    x, targets = random_problem(500, seed=seed)
    assert abs(cross_entropy(x, targets) - F.cross_entropy(x, targets)) < 1e-6


def test_reduction():
    x, targets = random_problem()
    each = cross_entropy(x, targets, reduction="none")
    assert each.shape == (64,) and (each >= 0).all() and cross_entropy(x, targets).shape == ()
    torch.testing.assert_close(each.mean(), cross_entropy(x, targets))
    torch.testing.assert_close(cross_entropy(x, targets, reduction="mean"), cross_entropy(x, targets))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_any_whole_numbers_are_class_indices(dtype):
    x, targets = random_problem()
    assert cross_entropy(x, targets.to(dtype)) == cross_entropy(x, targets)


def test_many_classes_and_small_whole_numbers():
    x, _ = random_problem(classes=1000)
    targets = torch.arange(64, dtype=torch.uint8)
    torch.testing.assert_close(cross_entropy(x, targets), F.cross_entropy(x, targets.long()), atol=1e-5, rtol=0)


def test_cross_entropy_of_extreme_logits():
    x = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    assert cross_entropy(x, torch.tensor([0, 1])).item() == 0
    wrong = cross_entropy(x, torch.tensor([1, 0]))
    assert wrong.item() == 20_000
    wrong.backward()
    torch.testing.assert_close(x.grad, torch.tensor([[0.5, -0.5], [-0.5, 0.5]]))


@pytest.mark.parametrize("classes", [2, 10, 37, 1000])
def test_no_idea_costs_the_log_of_the_number_of_classes(classes):
    assert cross_entropy(torch.full((3, classes), 7.0), torch.tensor([0, 1, classes - 1])).item() == pytest.approx(math.log(classes), abs=1e-5)


@unhurried
@given(problem=problems(largest=8.0))
def test_the_gradient_is_prediction_minus_target(problem):
    x, targets = problem
    x.requires_grad_()
    cross_entropy(x, targets, reduction="none").sum().backward()
    torch.testing.assert_close(x.grad, torch.softmax(x.detach(), 1) - F.one_hot(targets, x.shape[1]), atol=1e-10, rtol=0)


def test_the_gradient_agrees_with_central_differences():
    x, targets = random_problem(3, 4, dtype=torch.float64)
    x.requires_grad_()
    gradient, = torch.autograd.grad(cross_entropy(x, targets), x)
    for place in itertools.product(range(3), range(4)):
        nudge = torch.zeros(3, 4, dtype=torch.float64)
        nudge[place] = 1e-6
        up, down = (cross_entropy(x.detach() + sign * nudge, targets) for sign in (1, -1))
        assert ((up - down) / 2e-6).item() == pytest.approx(gradient[place].item(), abs=1e-8)


# what they refuse

both_losses = pytest.mark.parametrize("loss_func, name", [(nll_loss, "log_probs"), (cross_entropy, "x")], ids=["nll_loss", "cross_entropy"])


@both_losses
@pytest.mark.parametrize("targets, message", [
    (torch.tensor([0.0, 2.0]), "targets are torch.float32, the first is 0.0: expected class indices, whole numbers from 0 to 2; try targets.long()"),
    (torch.tensor([True, False]), "targets are torch.bool, the first is True"),
    (torch.tensor([1j, 0j]), "targets are torch.complex64"),
    ([0, 2], "targets is of type list: expected a tensor, try torch.tensor(targets)"),
])
def test_targets_of_a_wrong_type(loss_func, name, targets, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        loss_func(torch.zeros(2, 3), targets)


@both_losses
@pytest.mark.parametrize("targets, fix", [
    (torch.zeros(2, 1, dtype=torch.int64), "(2, 1): expected targets (2,); try targets[:, 0]"),
    (torch.zeros(2, 1), "(2, 1): expected targets (2,); try targets[:, 0].long()"),
    (torch.eye(2, 3), "(2, 3): expected targets (2,); class indices from one-hot targets: targets.argmax(1)"),
    (torch.zeros(5, dtype=torch.int64), "(5,): expected targets (2,); give one class index for each row"),
    (torch.tensor(1), "(): expected targets (2,); give one class index for each row"),
])
def test_targets_of_a_wrong_shape(loss_func, name, targets, fix):
    with pytest.raises(ValueError, match=re.escape(f"{name} (2, 3) and targets {fix}")):
        loss_func(torch.zeros(2, 3), targets)


@both_losses
@pytest.mark.parametrize("targets, message", [
    ([1, 3], "targets[1] is 3: expected a class index from 0 to 2, one for each column of {name}; number them from 0, or give the model 4 outputs"),
    ([-1, 3], "targets[0] is -1: expected a class index from 0 to 2, one for each column of {name}; number the classes from 0"),
    ([0, -100], "targets[1] is -100"),
])
def test_targets_out_of_range(loss_func, name, targets, message):
    with pytest.raises(ValueError, match=re.escape(message.format(name=name))):
        loss_func(torch.zeros(2, 3), torch.tensor(targets))


@both_losses
@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 3), (2, 0)])
def test_scores_of_a_wrong_shape(loss_func, name, shape):
    message = f"{name} {shape}: expected (n, classes), at least one of each; one row becomes a batch with {name}[None]"
    with pytest.raises(ValueError, match=re.escape(message)):
        loss_func(torch.zeros(shape), torch.zeros(shape[0], dtype=torch.int64))


@both_losses
def test_scores_that_are_no_tensor(loss_func, name):
    with pytest.raises(TypeError, match=f"{name} is of type list: expected a tensor"):
        loss_func([[0.0, 1.0]], torch.tensor([0]))


@both_losses
@pytest.mark.parametrize("reduction", ["sum", "average", "", None])
def test_an_unknown_reduction(loss_func, name, reduction):
    with pytest.raises(ValueError, match=re.escape(f"reduction is {reduction!r}: expected 'mean' or 'none'")):
        loss_func(torch.zeros(2, 3), torch.tensor([0, 1]), reduction=reduction)


def test_nan_logits_give_a_nan_loss_for_the_learner_to_name():
    x, targets = random_problem(4, 3)
    x[2, 1] = float("nan")
    each = cross_entropy(x, targets, reduction="none")
    assert each.isnan().tolist() == [False, False, True, False]


# training

def test_a_linear_model_learns_three_classes():
    torch.manual_seed(0)
    centres = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0]])
    targets = torch.arange(300) % 3
    x = centres[targets] + torch.randn(300, 2)
    model = torch.nn.Linear(2, 3)
    opt = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(50):
        opt.zero_grad()
        loss = cross_entropy(model(x), targets)
        loss.backward()
        opt.step()
    assert loss < 0.2 and (model(x).argmax(1) == targets).float().mean() > 0.95


# what the sliders draw

GRID = itertools.product((-5, 0, 2.5, 5), (-5, 1, 5), (-5, 0, 5), (0.25, 1, 4))


def test_the_scene_tells_probabilities_and_losses_for_every_setting():
    for *logits, temperature in GRID:
        scene = softmax_scene(*logits, temperature)
        assert isinstance(scene, Scene) and len(scene.panels) == 3 and scene.to_dict()
        probs = torch.softmax(torch.tensor(logits, dtype=torch.float64) / temperature, 0)
        told = [float(number) for number in re.findall(r"\d: (\d\.\d{3})", scene.text)]
        assert told == pytest.approx(probs.tolist(), abs=6e-4)
        losses = [float(number) for number in re.findall(r"(-?\d+\.\d\d) if it is", scene.text)]
        assert losses == pytest.approx((-probs.log()).tolist(), abs=6e-3) and "-0.00" not in scene.text


def test_the_scene_draws_each_digit_in_its_colour():
    logits, probs, losses = softmax_scene(2.0, -1.0, 0.0).panels
    for panel, heights in ((logits, [2, -1, 0]), (probs, torch.softmax(torch.tensor([2.0, -1, 0]), 0).tolist())):
        assert [mark["kind"] for mark in panel.marks] == ["bars"] * 3 and panel.categories == ["3", "7", "8"]
        assert [mark["y"][place] for place, mark in enumerate(panel.marks)] == pytest.approx(heights, abs=1e-6)
        assert all(mark["y"][other] == 0 for place, mark in enumerate(panel.marks) for other in range(3) if other != place)
    assert len({mark["color"] for mark in losses.marks}) == 3

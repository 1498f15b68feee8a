"""Lesson 03: the pieces of a linear classifier, against torch, against central differences, and trained."""
import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lessonlib.data import Batches
from lessonlib.linear_sgd import BasicOptim, batch_accuracy, init_params, linear, mnist_loss, sigmoid, train_epoch, validate_epoch


def random_logits(n, seed=0, dtype=torch.float32):
    """Logits (n, 1) of both signs, and targets (n, 1) of 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    preds = 3 * torch.randn(n, 1, generator=generator, dtype=dtype)
    return preds, torch.randint(0, 2, (n, 1), generator=generator).to(dtype)


def small_problem(seed=0):
    """Inputs (60, 5), targets (60, 1) and the parameters of a linear model."""
    torch.manual_seed(seed)
    xb = torch.randn(60, 5)
    return xb, (xb[:, :1] > 0).float(), [init_params((5, 1)), init_params(1)]


def by_hand(params):
    """The linear model with these parameters as a function of the mini-batch."""
    return lambda xb: linear(xb, *params)


# init_params

@pytest.mark.parametrize("size", [1, (784, 1), (3, 4, 5)])
def test_init_params_is_a_leaf_of_the_size_asked_for(size):
    params = init_params(size)
    assert params.shape == torch.Size([size] if isinstance(size, int) else size)
    assert params.is_leaf and params.requires_grad and params.dtype == torch.float32


def test_init_params_scales_with_std():
    torch.manual_seed(0)
    for std in (0.03, 1.0, 4.0):
        params = init_params(20_000, std=std)
        assert params.std().item() == pytest.approx(std, rel=0.03) and abs(params.mean().item()) < 0.03 * std
    assert not init_params(3, std=0.0).any()


@pytest.mark.parametrize("std", [-1.0, float("nan")])
def test_init_params_rejects_a_spread_that_is_none(std):
    with pytest.raises(ValueError, match=f"std is {std}"):
        init_params(3, std=std)


# linear and sigmoid

def test_linear_is_what_torch_calls_linear():
    torch.manual_seed(0)
    xb, weights, bias = torch.randn(7, 784, dtype=torch.float64), torch.randn(784, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    assert linear(xb, weights, bias).shape == (7, 3)
    torch.testing.assert_close(linear(xb, weights, bias), nn.functional.linear(xb, weights.T, bias))


def test_linear_names_both_shapes_and_the_fix():
    with pytest.raises(ValueError, match=r"xb \(6, 28, 28\) @ weights \(784, 1\).*xb\.view\(len\(xb\), -1\)"):
        linear(torch.zeros(6, 28, 28), init_params((784, 1)), init_params(1))


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=30))
def test_sigmoid_equals_torch_and_has_a_finite_gradient_everywhere(values):
    x = torch.tensor(values, dtype=torch.float32, requires_grad=True)
    torch.testing.assert_close(sigmoid(x), torch.sigmoid(x), atol=1e-6, rtol=0)
    ours, = torch.autograd.grad(sigmoid(x).sum(), x)
    theirs, = torch.autograd.grad(torch.sigmoid(x).sum(), x)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


# loss and metric

@given(st.integers(1, 300), st.integers(0, 1000))
def test_mnist_loss_equals_the_torch_composition(n, seed):
    preds, targets = random_logits(n, seed)
    expected = torch.where(targets == 1, 1 - preds.sigmoid(), preds.sigmoid()).mean()
    loss = mnist_loss(preds, targets)
    assert loss.shape == () and 0 <= loss <= 1
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)


def test_mnist_loss_of_known_logits():
    assert mnist_loss(torch.tensor([0.0, 0.0]), torch.tensor([1, 0])).item() == pytest.approx(0.5)
    assert mnist_loss(torch.tensor([100.0, -100.0]), torch.tensor([1, 0])).item() == pytest.approx(0, abs=1e-6)
    assert mnist_loss(torch.tensor([-100.0, 100.0]), torch.tensor([1, 0])).item() == pytest.approx(1)


def test_gradient_of_mnist_loss_by_central_differences():
    preds, targets = random_logits(20, dtype=torch.float64)
    preds.requires_grad_()
    gradient, = torch.autograd.grad(mnist_loss(preds, targets), preds)
    small = 1e-6
    for place in range(20):
        nudge = torch.zeros_like(preds)
        nudge[place] = small
        with torch.no_grad():
            slope = (mnist_loss(preds + nudge, targets) - mnist_loss(preds - nudge, targets)) / (2 * small)
        assert gradient[place].item() == pytest.approx(slope.item(), abs=1e-9)


def test_batch_accuracy_counts_logits_on_the_right_side():
    preds = torch.tensor([[2.0], [-1.0], [0.5], [-0.5], [0.0]])
    targets = torch.tensor([[1.0], [0.0], [0.0], [1.0], [0.0]])
    accuracy = batch_accuracy(preds, targets)
    assert accuracy.shape == () and accuracy.item() == pytest.approx(3 / 5)
    assert batch_accuracy(preds, targets.bool()) == accuracy and batch_accuracy(preds, targets.long()) == accuracy


@pytest.mark.parametrize("measure", [mnist_loss, batch_accuracy])
@pytest.mark.parametrize("preds, targets, message", [
    ((64,), (64, 1), r"preds \(64,\) and targets \(64, 1\): try targets\[:, 0\]"),
    ((64, 1), (64,), r"preds \(64, 1\) and targets \(64,\): try targets\[:, None\]"),
    ((64, 1), (1, 1), r"preds \(64, 1\) and targets \(1, 1\)"),
    ((64, 1), (64, 10), r"preds \(64, 1\) and targets \(64, 10\)"),
])
def test_shapes_that_would_broadcast_raise(measure, preds, targets, message):
    with pytest.raises(ValueError, match=message):
        measure(torch.zeros(preds), torch.zeros(targets))


# BasicOptim

def test_basic_optim_equals_torch_sgd_over_several_steps():
    torch.manual_seed(0)
    xb, yb = torch.randn(40, 6), torch.randint(0, 2, (40, 1))
    ours = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))
    theirs = copy.deepcopy(ours)
    optimisers = BasicOptim(ours.parameters(), lr=0.7), torch.optim.SGD(theirs.parameters(), lr=0.7)
    for _ in range(10):
        for model, opt in zip((ours, theirs), optimisers):
            opt.zero_grad()
            mnist_loss(model(xb), yb).backward()
            opt.step()
    start = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))
    for mine, other, untrained in zip(ours.parameters(), theirs.parameters(), start.parameters()):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)
        assert not torch.allclose(mine, untrained)


def test_basic_optim_steps_in_place_and_forgets_gradients():
    number, unused = torch.tensor([3.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    opt = BasicOptim([number, unused], lr=0.1)
    (number**2).sum().backward()
    opt.step()
    assert number.item() == pytest.approx(2.4) and unused.item() == 1 and number.is_leaf and number.requires_grad
    opt.zero_grad()
    assert number.grad is None


@pytest.mark.parametrize("lr", [0, 0.0, -0.1, float("nan")])
def test_basic_optim_rejects_a_learning_rate_that_is_not_above_0(lr):
    with pytest.raises(ValueError, match=f"lr is {lr}"):
        BasicOptim([init_params(1)], lr=lr)


def test_basic_optim_rejects_params_that_are_no_list_of_tensors():
    with pytest.raises(TypeError, match=r"\[weights, bias\]"):
        BasicOptim(init_params((5, 1)), lr=1.0)
    with pytest.raises(ValueError, match="params is empty"):
        BasicOptim([], lr=1.0)


# train_epoch

def test_train_epoch_is_the_plain_loop():
    xb, yb, params = small_problem()
    plain = [param.detach().clone().requires_grad_() for param in params]
    losses = []
    for start in range(0, 60, 16):
        rows = slice(start, start + 16)
        loss = mnist_loss(linear(xb[rows], *plain), yb[rows])
        for param, gradient in zip(plain, torch.autograd.grad(loss, plain)):
            param.data -= 0.5 * gradient
        losses += [loss.item()] * len(xb[rows])
    mean = train_epoch(by_hand(params), Batches(xb, yb, batch_size=16), mnist_loss, BasicOptim(params, lr=0.5))
    assert isinstance(mean, float) and mean == pytest.approx(sum(losses) / 60, abs=1e-6)
    for param, other in zip(params, plain):
        torch.testing.assert_close(param, other, atol=1e-6, rtol=0)


def test_train_epoch_ignores_gradients_left_by_others():
    xb, yb, params = small_problem()
    clean = [param.detach().clone().requires_grad_() for param in params]
    (100 * linear(xb, *params).sum()).backward()
    for some in (params, clean):
        train_epoch(by_hand(some), [(xb, yb)], mnist_loss, BasicOptim(some, lr=1.0))
    torch.testing.assert_close(params[0], clean[0])


def test_modules_torch_loaders_and_torch_optimisers_work_too():
    xb, yb, _ = small_problem()
    model = nn.Linear(5, 1)
    loader = DataLoader(TensorDataset(xb, yb), batch_size=16, shuffle=True)
    opt = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    for _ in range(10):
        train_epoch(model, loader, mnist_loss, opt)
    assert validate_epoch(model, loader, batch_accuracy) > 0.9


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_its_step(broken):
    xb, yb, params = small_problem()
    good = [param.detach().clone().requires_grad_() for param in params]
    train_epoch(by_hand(good), Batches(xb[:40], yb[:40], batch_size=20), mnist_loss, BasicOptim(good, lr=1.0))
    weigh = torch.ones(60, 1)
    weigh[50] = broken

    def loss_func(preds, pair):
        return (torch.where(pair[:, :1] == 1, 1 - sigmoid(preds), sigmoid(preds)) * pair[:, 1:]).mean()

    with pytest.raises(FloatingPointError, match=f"the loss is {broken} at step 3 "):
        train_epoch(by_hand(params), Batches(xb, torch.cat([yb, weigh], 1), batch_size=20), loss_func, BasicOptim(params, lr=1.0))
    for param, other in zip(params, good):  # the steps before it were taken, that one was not
        torch.testing.assert_close(param, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("spent", [[], iter([])])
def test_no_batches_is_an_error(spent):
    _, _, params = small_problem()
    with pytest.raises(ValueError, match="no batches"):
        train_epoch(by_hand(params), spent, mnist_loss, BasicOptim(params, lr=1.0))
    with pytest.raises(ValueError, match="no batches"):
        validate_epoch(by_hand(params), spent, batch_accuracy)


# validate_epoch

@given(batch_size=st.integers(1, 80), seed=st.integers(0, 50), metric=st.sampled_from([batch_accuracy, mnist_loss]))
def test_validate_epoch_is_the_metric_of_the_whole_set(batch_size, seed, metric):
    xb, yb, params = small_problem(seed)
    found = validate_epoch(by_hand(params), Batches(xb, yb, batch_size=batch_size), metric)
    assert isinstance(found, float) and found == pytest.approx(metric(linear(xb, *params), yb).item(), abs=1e-6)


def test_validate_epoch_leaves_no_trace():
    xb, yb, params = small_problem()
    validate_epoch(by_hand(params), [(xb, yb)], mnist_loss)
    assert all(param.grad is None for param in params) and torch.is_grad_enabled()


# all of it

@pytest.mark.parametrize("start, epochs", [("by hand", 8), ("nn.Linear", 1)])
def test_training_on_digits_beats_the_baseline(threes_and_sevens, start, epochs):
    train, valid = threes_and_sevens
    torch.manual_seed(1)
    if start == "by hand":
        params = [init_params((784, 1)), init_params(1)]
        model = by_hand(params)
    else:
        model = nn.Linear(784, 1)
        params = model.parameters()
    opt = BasicOptim(params, lr=1.0)
    batches = Batches(*train, batch_size=256, shuffle=True)
    losses = [train_epoch(model, batches, mnist_loss, opt) for _ in range(epochs)]
    assert validate_epoch(model, Batches(*valid, batch_size=256), batch_accuracy) >= 0.95
    assert losses == sorted(losses, reverse=True)


def test_fixed_order_reproduces_the_published_run(threes_and_sevens):
    """nn.Linear, 3s first, never shuffled: published 0.9671 after 10 epochs and 0.979 after 20; nothing learned in the first."""
    train, valid = threes_and_sevens
    torch.manual_seed(0)
    model, accuracies = nn.Linear(784, 1), []
    opt = BasicOptim(model.parameters(), lr=1.0)
    for _ in range(20):
        train_epoch(model, Batches(*train, batch_size=256), mnist_loss, opt)
        accuracies.append(validate_epoch(model, Batches(*valid, batch_size=256), batch_accuracy))
    assert accuracies[0] < 0.55
    assert accuracies[9] == pytest.approx(0.9671, abs=0.003) and accuracies[19] == pytest.approx(0.979, abs=0.002)

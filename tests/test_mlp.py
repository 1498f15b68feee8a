"""The hand-built MLP: its forward and backward passes against autograd, central differences and nn.Sequential."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lessonlib.data import Batches
from lessonlib.explore import ExplorerState
from lessonlib.linear_sgd import BasicOptim, batch_accuracy, linear, mnist_loss, train_epoch, validate_epoch
from lessonlib.mlp import MLP, depth_scene, hidden_unit_scene, linear_backward, mnist_loss_backward, random_activations, relu_backward

shapes = st.lists(st.integers(1, 6), min_size=2, max_size=5)


def double_mlp(sizes, seed=0):
    """An MLP in float64, whose biases are not 0, so that no unit sits on the corner of its ReLU."""
    torch.manual_seed(seed)
    model = MLP(sizes)
    for param in model.parameters():
        param.data = param.data.double()
    for bias in model.biases:
        bias.data = torch.randn(bias.shape, dtype=torch.float64)
    return model


def as_sequential(model):
    layers = []
    for weights, bias in zip(model.weights, model.biases):
        layer = nn.Linear(*weights.shape, dtype=weights.dtype)
        with torch.no_grad():
            layer.weight.copy_(weights.T)
            layer.bias.copy_(bias)
        layers += [nn.ReLU(), layer] if layers else [layer]
    return nn.Sequential(*layers)


def two_clouds(count=400, seed=0):
    torch.manual_seed(seed)
    targets = (torch.arange(count) % 2).float()[:, None]
    return torch.randn(count, 5) + 2 * targets, targets


@settings(deadline=None, max_examples=40)
@given(shapes, st.integers(1, 9), st.integers(0, 10_000))
def test_backward_is_autograd(sizes, batch, seed):
    model = double_mlp(sizes, seed)
    xb = torch.randn(batch, sizes[0], dtype=torch.float64, requires_grad=True)
    grad = torch.randn(batch, sizes[-1], dtype=torch.float64)
    expected = torch.autograd.grad(model(xb), [xb, *model.parameters()], grad)
    grad_xb = model.backward(grad)
    for found, wanted in zip([grad_xb, *(param.grad for param in model.parameters())], expected):
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(shapes, st.integers(1, 9), st.integers(0, 10_000))
def test_equals_sequential_with_copied_parameters(sizes, batch, seed):
    model = double_mlp(sizes, seed)
    twin, xb = as_sequential(model), torch.randn(batch, sizes[0], dtype=torch.float64)
    torch.testing.assert_close(model(xb), twin(xb), rtol=1e-10, atol=1e-12)
    twin(xb).sum().backward()
    model(xb)
    model.backward(torch.ones(batch, sizes[-1], dtype=torch.float64))
    for layer, weights, bias in zip(twin[::2], model.weights, model.biases):
        torch.testing.assert_close(weights.grad, layer.weight.grad.T, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(bias.grad, layer.bias.grad, rtol=1e-10, atol=1e-12)


def test_backward_is_central_differences():
    model = double_mlp([4, 5, 3, 1])
    xb, yb, small = torch.randn(7, 4, dtype=torch.float64), (torch.arange(7) % 2).double()[:, None], 1e-6
    model.backward(mnist_loss_backward(model(xb).detach(), yb))
    for param in model.parameters():
        for place in torch.cartesian_prod(*map(torch.arange, param.shape)).reshape(-1, param.ndim).tolist():
            losses = []
            with torch.no_grad():
                for change in (small, -2 * small, small):
                    param[tuple(place)] += change
                    losses.append(mnist_loss(model(xb), yb).item())
            assert (losses[0] - losses[1]) / (2 * small) == pytest.approx(param.grad[tuple(place)].item(), abs=1e-8)


def test_torch_gradcheck_agrees():
    weights, bias = torch.randn(3, 2, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    xb, grad = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (xb, weights, bias)]
    assert torch.autograd.gradcheck(linear, inputs)
    expected = torch.autograd.grad(linear(*inputs), inputs, grad)
    for found, wanted in zip(linear_backward(grad, xb.detach(), weights.detach()), expected):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=20), st.integers(0, 100))
def test_loss_backward_is_autograd(scores, seed):
    torch.manual_seed(seed)
    preds = torch.tensor(scores, dtype=torch.float64)[:, None].requires_grad_()
    targets = torch.randint(0, 2, preds.shape).double()
    expected, = torch.autograd.grad(mnist_loss(preds, targets), preds)
    torch.testing.assert_close(mnist_loss_backward(preds.detach(), targets), expected, rtol=1e-8, atol=1e-12)


def test_relu_backward_is_autograd_also_at_the_corner():
    x = torch.tensor([-3.0, -0.0, 0.0, 1e-30, 2.0], requires_grad=True)
    grad = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    output = torch.relu(x)
    output.backward(grad)
    assert torch.equal(relu_backward(grad, output.detach()), x.grad)


def test_zero_biases_and_black_images_agree_with_autograd():
    """Every unit then sits exactly on its corner, where the convention decides."""
    torch.manual_seed(0)
    model, xb = MLP([3, 4, 2, 1]), torch.zeros(2, 3)
    expected = torch.autograd.grad(model(xb).sum(), model.parameters())
    model.backward(torch.ones(2, 1))
    assert all(torch.equal(param.grad, wanted) for param, wanted in zip(model.parameters(), expected))


def test_backward_adds_to_grad():
    model, xb, grad = double_mlp([3, 4, 2]), torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    model(xb)
    model.backward(grad)
    once = [param.grad.clone() for param in model.parameters()]
    model(xb)
    model.backward(grad)
    assert all(torch.allclose(param.grad, 2 * first) for param, first in zip(model.parameters(), once))
    (model(xb) * grad).sum().backward()  # autograd adds to the same place
    assert all(torch.allclose(param.grad, 3 * first) for param, first in zip(model.parameters(), once))
    BasicOptim(model.parameters(), lr=1.0).zero_grad()
    assert all(param.grad is None for param in model.parameters())


def test_grad_belongs_to_the_caller_and_leaves_no_graph():
    model, grad = double_mlp([3, 4, 2]), torch.ones(5, 2, dtype=torch.float64)
    model(torch.randn(5, 3, dtype=torch.float64))
    grad_xb = model.backward(grad)
    assert torch.equal(grad, torch.ones(5, 2, dtype=torch.float64)) and not grad_xb.requires_grad
    assert not any(param.grad.requires_grad for param in model.parameters())


def test_parameters_are_leaves_in_order_with_the_documented_start():
    torch.manual_seed(0)
    model = MLP([784, 300, 10])
    assert [tuple(param.shape) for param in model.parameters()] == [(784, 300), (300,), (300, 10), (10,)]
    assert all(param.is_leaf and param.requires_grad for param in model.parameters())
    for weights, bias in zip(model.weights, model.biases):
        assert weights.std().item() == pytest.approx((2 / len(weights)) ** 0.5, rel=0.05) and not bias.any()
    assert sum(param.numel() for param in MLP([784, 30, 1]).parameters()) == 23_581


def test_last_layer_has_no_relu_and_one_layer_is_linear():
    model = double_mlp([3, 2])
    xb = torch.randn(100, 3, dtype=torch.float64)
    assert torch.equal(model(xb), linear(xb, *model.parameters())) and (model(xb) < 0).any()


def test_trains_with_autograd_and_lesson_03():
    xb, yb = two_clouds()
    torch.manual_seed(1)
    model, batches = MLP([5, 8, 1]), Batches(xb, yb, batch_size=64, shuffle=True)
    opt = BasicOptim(model.parameters(), lr=1.0)
    losses = [train_epoch(model, batches, mnist_loss, opt) for _ in range(15)]
    assert losses[-1] < 0.5 * losses[0] and validate_epoch(model, batches, batch_accuracy) > 0.95


@pytest.mark.parametrize("optimiser", [BasicOptim, torch.optim.SGD])
def test_trains_alike_with_its_own_backward(optimiser):
    xb, yb = two_clouds()
    models = []
    for by_hand in (True, False):
        torch.manual_seed(1)
        model = MLP([5, 8, 4, 1])
        opt = optimiser(model.parameters(), lr=1.0)
        for _ in range(5):
            for inputs, targets in Batches(xb, yb, batch_size=64):
                opt.zero_grad()
                if by_hand:
                    with torch.no_grad():
                        preds = model(inputs)
                    model.backward(mnist_loss_backward(preds, targets))
                else:
                    mnist_loss(model(inputs), targets).backward()
                opt.step()
        models.append(model)
    for first, second in zip(*(model.parameters() for model in models)):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes", [[], [784], [784, 0, 1], [3, -2], [3, 2.5], ["3", "1"], 784, None])
def test_bad_sizes(sizes):
    with pytest.raises(ValueError, match="two or more whole numbers above 0") as error:
        MLP(sizes)
    assert repr(sizes) in str(error.value)


def test_sizes_may_be_any_whole_numbers():
    import numpy as np
    assert MLP(np.array([3, 2])).sizes == [3, 2] and MLP((torch.tensor(3), 2)).sizes == [3, 2]


@pytest.mark.parametrize("shape", [(4, 5), (4, 28, 28), (784,), ()])
def test_input_of_the_wrong_shape(shape):
    with pytest.raises(ValueError) as error:
        MLP([784, 30, 1])(torch.zeros(shape))
    assert str(shape) in str(error.value) and "784" in str(error.value)


def test_a_failed_forward_does_not_pass_for_one():
    model = MLP([3, 1])
    with pytest.raises(ValueError):
        model(torch.zeros(4, 5))
    with pytest.raises(RuntimeError, match="backward before forward"):
        model.backward(torch.ones(4, 1))


def test_backward_needs_a_forward_of_its_own():
    model = MLP([3, 1])
    with pytest.raises(RuntimeError, match="call model"):
        model.backward(torch.ones(4, 1))
    model(torch.zeros(4, 3))
    model.backward(torch.ones(4, 1))
    with pytest.raises(RuntimeError, match="once for each backward"):
        model.backward(torch.ones(4, 1))


@pytest.mark.parametrize("shape", [(4,), (4, 2), (1, 1), (5, 1)])
def test_grad_of_the_wrong_shape(shape):
    model = MLP([3, 1])
    model(torch.zeros(4, 3))
    with pytest.raises(ValueError) as error:
        model.backward(torch.ones(shape))
    assert str(shape) in str(error.value) and "(4, 1)" in str(error.value)
    assert all(param.grad is None for param in model.parameters())


def test_loss_backward_refuses_shapes_that_broadcast():
    with pytest.raises(ValueError, match=r"preds \(64, 1\) and targets \(64,\)"):
        mnist_loss_backward(torch.zeros(64, 1), torch.zeros(64))


def test_nan_is_not_hidden_by_the_relu():
    assert MLP([2, 3, 1])(torch.tensor([[float("nan"), 1.0]])).isnan().all()


@given(st.floats(0.1, 3), st.integers(0, 100))
def test_activations_grow_with_the_power_of_the_scale(scale, seed):
    """The ReLU is homogeneous: doubling every weight multiplies layer k by 2 to the k."""
    xb = torch.rand(8, 20)
    for layer, (small, large) in enumerate(zip(random_activations(xb, scale, width=10, layers=5, seed=seed),
                                               random_activations(xb, 2 * scale, width=10, layers=5, seed=seed)), start=1):
        torch.testing.assert_close(large, small * 2**layer, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("scale", "relu"), [(1.0, False), (2**0.5, True)])
def test_the_right_scale_keeps_the_mean_square(scale, relu):
    torch.manual_seed(0)
    xb = torch.rand(200, 500)
    for activations in random_activations(xb, scale, relu, layers=4, width=1000):
        assert activations.square().mean().item() == pytest.approx(xb.square().mean().item(), rel=0.15)


def test_random_activations_leave_the_random_state_alone():
    xb, before = torch.rand(3, 4), torch.get_rng_state()
    random_activations(xb, 1.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_depth_explorer_over_its_grid():
    xb = torch.rand(40, 784)
    state = ExplorerState(lambda scale, relu: depth_scene(xb, scale, relu), scale=(0.1, 3.0, 0.05, 1.0), relu=True)
    texts = {}
    for relu in (True, False):
        for step in range(59):
            scale = round(0.1 + 0.05 * step, 2)
            texts[relu, scale] = state.set(scale=scale, relu=relu).scene.text
            assert "nan" not in texts[relu, scale] and len(state.scene.to_dict()["panels"]) == 2
    assert "about right" in texts[True, 1.4] and "about right" in texts[False, 1.0]
    assert "too small" in texts[True, 0.7] and "too large" in texts[True, 2.5]


def test_unit_explorer_over_its_grid():
    torch.manual_seed(0)
    model, yb = MLP([16, 6, 1]), (torch.arange(50) % 2).float()[:, None]
    start = model.weights[0].detach().clone()
    with torch.no_grad():
        model.biases[0][2] = -1e6  # a dead unit must not break the histogram
    state = ExplorerState(lambda unit: hidden_unit_scene(model, start, torch.rand(50, 16), yb, unit), unit=(0, 5, 1, 0))
    for unit in range(6):
        scene = state.set(unit=unit).scene
        vote = model.weights[1][unit, 0].item()
        assert len(scene.to_dict()["panels"]) == 3 and f"speaks for a {'3' if vote > 0 else '7'}" in scene.text
    assert "on for 0% of the 3s and 0% of the 7s" in state.set(unit=2).scene.text

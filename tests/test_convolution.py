"""Lesson 07: convolution, pooling, batch-norm and residual blocks against torch and torchvision; shapes that do not fit are refused."""
import base64
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from lessonlib.convolution import (
    BatchNorm2d,
    ResidualBlock,
    SmallResNet,
    avg_pool2d,
    conv2d,
    kernel_scene,
    max_pool2d,
    output_size,
    receptive_field,
    small_cnn,
    window_scene,
)
from lessonlib.explore import ExplorerState, Scene

few = settings(max_examples=60, deadline=None)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# output_size

@few
@given(size=st.integers(1, 20), kernel_size=st.integers(1, 6), stride=st.integers(1, 4), padding=st.integers(0, 3))
def test_output_size_counts_the_places_where_a_window_fits(size, kernel_size, stride, padding):
    starts = [start for start in range(0, size + 2 * padding, stride) if start + kernel_size <= size + 2 * padding]
    if starts:
        assert output_size(size, kernel_size, stride, padding) == len(starts)
    else:
        with pytest.raises(ValueError, match="does not fit"):
            output_size(size, kernel_size, stride, padding)


def test_output_size_of_known_layers():
    assert [output_size(224, 7, 2, 3), output_size(112, 3, 2, 1), output_size(28, 3), output_size(28, 5, 2)] == [112, 56, 26, 12]
    assert output_size(3, 3) == 1 and output_size(1, 3, padding=1) == 1
    assert all(output_size(28, kernel, 1, (kernel - 1) // 2) == 27 for kernel in (2, 4, 6)), "an even kernel cannot keep the size"


@pytest.mark.parametrize("arguments, message", [
    ((2, 3), "kernel of 3 does not fit into 2"), ((0, 1), "size is 0"), ((5, 0), "kernel_size is 0"), ((5, 3, 0), "stride is 0"),
    ((5, 3, 1, -1), "padding is -1"), ((5, 9, 1, 1), r"5 \+ 2 \* 1 = 7"),
])
def test_output_size_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        output_size(*arguments)


@pytest.mark.parametrize("value", [2.5, "3", None, (3, 3)])
def test_output_size_takes_whole_numbers_only(value):
    with pytest.raises(TypeError, match="kernel_size is .*whole number"):
        output_size(28, value)


# conv2d

@st.composite
def convolutions(draw):
    """x, weight, bias, stride and padding that belong together, in float64; kernels of any size, also even and not square."""
    batch, inputs, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    stride, padding = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    high, wide = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    kernel = draw(st.integers(1, min(5, high + 2 * padding))), draw(st.integers(1, min(5, wide + 2 * padding)))
    seed, with_bias = draw(st.integers(0, 10**6)), draw(st.booleans())
    shapes = [(batch, inputs, high, wide), (outputs, inputs, *kernel), (outputs,)]
    x, weight, bias = [random(*shape, seed=seed + place, dtype=torch.float64) for place, shape in enumerate(shapes)]
    return x, weight, bias if with_bias else None, stride, padding


@few
@given(problem=convolutions())
def test_conv2d_equals_torch(problem):
    ours, theirs = conv2d(*problem), F.conv2d(*problem)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@few
@given(problem=convolutions())
def test_conv2d_gradients_equal_those_of_torch(problem):
    *tensors, stride, padding = problem
    tensors = [tensor.requires_grad_() for tensor in tensors if tensor is not None]
    bias = [None] * (2 - len(tensors[1:]))
    ours, theirs = (torch.autograd.grad(function(*tensors, *bias, stride, padding).sin().sum(), tensors) for function in (conv2d, F.conv2d))
    for mine, reference in zip(ours, theirs):
        torch.testing.assert_close(mine, reference, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("stride, padding", [(1, 0), (1, 1), (2, 1), (2, 3), (3, 0)])
def test_conv2d_equals_torch_in_float32(stride, padding):
    x, weight, bias = random(4, 3, 14, 11), random(8, 3, 3, 3, seed=1) / 5, random(8, seed=2)
    torch.testing.assert_close(conv2d(x, weight, bias, stride, padding), F.conv2d(x, weight, bias, stride, padding), atol=1e-6, rtol=1e-6)


def test_conv2d_is_a_sum_over_a_window_that_is_not_turned():
    x, weight = random(1, 2, 5, 6), random(1, 2, 3, 2, seed=1)
    expected = (x[0, :, 1:4, 3:5] * weight[0]).sum()
    torch.testing.assert_close(conv2d(x, weight)[0, 0, 1, 3], expected)


def test_conv2d_shifts_with_the_image():
    x, weight = random(1, 1, 12, 12), random(2, 1, 3, 3, seed=1)
    torch.testing.assert_close(conv2d(x.roll(1, 3), weight)[..., 1:], conv2d(x, weight)[..., :-1])


def test_conv2d_leaves_its_inputs_alone():
    x, weight, bias = random(2, 1, 6, 6), random(3, 1, 3, 3), random(3)
    before = [tensor.clone() for tensor in (x, weight, bias)]
    conv2d(x, weight, bias, 1, 1)
    assert all(torch.equal(*pair) for pair in zip(before, (x, weight, bias)))


@pytest.mark.parametrize("x, weight, bias, message", [
    ((28, 28), (1, 1, 3, 3), None, r"x is \(28, 28\).*x\[None, None\]"),
    ((1, 28, 28), (1, 1, 3, 3), None, r"x is \(1, 28, 28\)"),
    ((1, 1, 28, 28), (3, 3), None, r"weight \(3, 3\).*kernel\[None, None\]"),
    ((1, 3, 28, 28), (8, 1, 3, 3), None, "x has 3 channels and each kernel has 1"),
    ((1, 1, 28, 28), (8, 1, 3, 3), (1,), r"bias \(1,\): expected \(8,\)"),
    ((1, 1, 2, 28), (8, 1, 3, 3), None, "kernel of 3 does not fit into 2"),
])
def test_conv2d_refuses_shapes_that_do_not_belong_together(x, weight, bias, message):
    with pytest.raises(ValueError, match=message):
        conv2d(torch.zeros(x), torch.zeros(weight), None if bias is None else torch.zeros(bias))


@pytest.mark.parametrize("stride, padding, message", [(0, 0, "stride is 0"), (-1, 0, "stride is -1"), (1, -1, "padding is -1")])
def test_conv2d_refuses_a_stride_or_padding_that_makes_no_sense(stride, padding, message):
    with pytest.raises(ValueError, match=message):
        conv2d(torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 3, 3), stride=stride, padding=padding)


def test_conv2d_names_what_is_no_tensor():
    with pytest.raises(ValueError, match="x is list"):
        conv2d([[1.0]], torch.zeros(1, 1, 1, 1))


# pooling

@pytest.mark.parametrize("kernel_size, stride", [(2, None), (3, None), (3, 2), (2, 1), (1, 1), (2, 3)])
def test_pooling_equals_torch(kernel_size, stride):
    x = random(3, 4, 9, 7)
    torch.testing.assert_close(max_pool2d(x, kernel_size, stride), F.max_pool2d(x, kernel_size, stride), atol=0, rtol=0)
    torch.testing.assert_close(avg_pool2d(x, kernel_size, stride), F.avg_pool2d(x, kernel_size, stride), atol=1e-6, rtol=0)


def test_padding_never_wins_in_max_pooling():
    x = -random(2, 3, 8, 8).abs() - 1  # all below 0, so zeros would win
    assert torch.equal(max_pool2d(x, 3, 2, 1), F.max_pool2d(x, 3, 2, 1))


def test_pooling_refuses():
    x = torch.zeros(1, 1, 4, 4)
    with pytest.raises(ValueError, match="at most half a window, 1"):
        max_pool2d(x, 2, 2, 2)
    for pool in (max_pool2d, avg_pool2d):
        with pytest.raises(ValueError, match="kernel of 5 does not fit"):
            pool(x, 5)
        with pytest.raises(ValueError, match="expected .batch, channels"):
            pool(x[0], 2)
        with pytest.raises(ValueError, match="stride is 0"):
            pool(x, 2, 0)


# BatchNorm2d

def norms(channels, **options):
    """Ours and torch's with the same weights, not those of the start."""
    ours, theirs = BatchNorm2d(channels, **options), nn.BatchNorm2d(channels, **options)
    with torch.no_grad():
        theirs.weight.copy_(random(channels, seed=5))
        theirs.bias.copy_(random(channels, seed=6))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("options", [{}, {"eps": 1e-3}, {"momentum": 0.3}])
def test_batch_norm_equals_torch_in_both_modes_with_its_running_statistics(options):
    ours, theirs = norms(3, **options)
    for step in range(5):
        xb = 3 * random(4, 3, 5, 6, seed=step) + torch.tensor([5.0, -2, 0])[:, None, None]
        torch.testing.assert_close(ours(xb), theirs(xb), atol=1e-6, rtol=1e-6)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, atol=1e-6, rtol=1e-6)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    torch.testing.assert_close(ours.eval()(xb), theirs.eval()(xb), atol=2e-6, rtol=1e-6)
    assert all(torch.equal(before[name], value) for name, value in ours.state_dict().items()), "evaluation changes nothing"


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_gradients_equal_those_of_torch(training):
    ours, theirs = (norm.double().train(training) for norm in norms(3))
    found = []
    for norm in (ours, theirs):
        xb = random(4, 3, 5, 5, dtype=torch.float64).requires_grad_()
        found.append(torch.autograd.grad(norm(xb).sin().sum(), [xb, norm.weight, norm.bias]))
    for mine, reference in zip(*found):
        torch.testing.assert_close(mine, reference, atol=1e-10, rtol=1e-10)
    assert not ours.running_mean.requires_grad


def test_batch_norm_normalises_each_channel_over_images_and_places():
    out = BatchNorm2d(2)(10 * random(8, 2, 6, 6) + 7)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var((0, 2, 3), correction=0), torch.ones(2), atol=1e-4, rtol=0)


def test_a_channel_without_variance_stays_finite():
    assert torch.equal(BatchNorm2d(1)(torch.full((2, 1, 3, 3), 4.0)), torch.zeros(2, 1, 3, 3))


def test_batch_norm_refuses():
    norm = BatchNorm2d(4)
    for shape in [(2, 3, 5, 5), (2, 4), (4, 5, 5)]:
        with pytest.raises(ValueError, match=r"expected \(batch, 4, height, width\)"):
            norm(torch.zeros(shape))
    with pytest.raises(ValueError, match="one number a channel has no variance"):
        norm(torch.zeros(1, 4, 1, 1))
    assert norm.num_batches_tracked == 0 and norm.eval()(torch.zeros(1, 4, 1, 1)).shape == (1, 4, 1, 1)
    with pytest.raises(ValueError, match="channels is 0"):
        BatchNorm2d(0)


# ResidualBlock

def their_block(inputs, outputs, stride):
    from torchvision.models.resnet import BasicBlock
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return BasicBlock(inputs, outputs, stride, downsample)


@pytest.mark.parametrize("norm_layer", [nn.BatchNorm2d, BatchNorm2d])
@pytest.mark.parametrize("inputs, outputs, stride", [(8, 8, 1), (8, 16, 2), (8, 16, 1), (8, 8, 2)])
def test_residual_block_equals_torchvisions_with_copied_weights(inputs, outputs, stride, norm_layer):
    torch.manual_seed(0)
    theirs, ours = their_block(inputs, outputs, stride).double(), ResidualBlock(inputs, outputs, stride, norm_layer).double()
    for seed in range(3):
        theirs(2 * random(4, inputs, 8, 8, seed=seed, dtype=torch.float64) + 1)  # running averages that are not those of the start
    ours.load_state_dict(theirs.state_dict())
    x = random(4, inputs, 9, 7, seed=9, dtype=torch.float64)
    for training in (False, True):
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x), atol=1e-10, rtol=1e-10)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, atol=1e-10, rtol=1e-10)
    gradients = [torch.autograd.grad(block(x).sin().sum(), block.parameters()) for block in (ours, theirs)]
    for mine, reference in zip(*gradients):
        torch.testing.assert_close(mine, reference, atol=1e-9, rtol=1e-9)


def test_a_block_whose_branch_gives_nothing_passes_its_input_through():
    block = ResidualBlock(4, 4).eval()
    nn.init.zeros_(block.bn2.weight)
    x = random(2, 4, 5, 5).abs()
    assert torch.equal(block(x), x)
    assert block.downsample is None and ResidualBlock(4, 8).downsample is not None and ResidualBlock(4, 4, 2).downsample is not None


def test_residual_block_takes_another_norm_and_refuses_bad_numbers():
    block = ResidualBlock(8, 8, norm_layer=lambda channels: nn.GroupNorm(2, channels))
    assert block(random(1, 8, 4, 4)).shape == (1, 8, 4, 4)
    for arguments, message in [((0, 8), "in_channels is 0"), ((8, -1), "out_channels is -1"), ((8, 8, 0), "stride is 0")]:
        with pytest.raises(ValueError, match=message):
            ResidualBlock(*arguments)
    with pytest.raises(RuntimeError, match="channels"):
        ResidualBlock(4, 4)(torch.zeros(1, 3, 8, 8))


# whole networks

def parameters(model):
    return sum(param.numel() for param in model.parameters())


def test_small_cnn_shapes_and_parameters():
    assert parameters(small_cnn()) == 72 + 16 + 1152 + 32 + 4608 + 64 + 512 * 10 + 10 == 11_074
    assert small_cnn()(torch.rand(3, 1, 28, 28)).shape == (3, 10)
    assert small_cnn(2, 3, (4, 5), size=17)(torch.rand(2, 3, 17, 17)).shape == (2, 2)
    for arguments in [{"classes": 0}, {"channels": (8, 0)}, {"in_channels": 0}, {"size": 0}]:
        with pytest.raises(ValueError, match="expected 1 or more"):
            small_cnn(**arguments)


def test_small_resnet_shapes_and_parameters():
    assert parameters(SmallResNet()) == 73_082
    assert SmallResNet()(torch.rand(3, 1, 28, 28)).shape == (3, 10)
    assert SmallResNet(4, 3, (2, 4, 6, 8))(torch.rand(2, 3, 33, 50)).shape == (2, 4)
    assert all(isinstance(block, ResidualBlock) for block in SmallResNet().blocks) and len(SmallResNet().blocks) == 2
    for arguments, message in [({"channels": (8,)}, "expected the stem's and one for each block"), ({"classes": 0}, "classes is 0"),
                               ({"in_channels": 0}, "in_channels is 0")]:
        with pytest.raises(ValueError, match=message):
            SmallResNet(**arguments)


@pytest.mark.parametrize("make_model", [small_cnn, SmallResNet])
def test_every_parameter_gets_a_gradient_and_a_few_images_can_be_learned_by_heart(make_model):
    torch.manual_seed(0)
    model, x, y = make_model(4), torch.rand(16, 1, 28, 28), torch.arange(16) % 4
    opt = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(30):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        assert step or all(param.grad is not None and param.grad.abs().sum() > 0 for param in model.parameters())
        opt.step()
        opt.zero_grad()
    assert loss < 0.1


def test_small_cnn_goes_through_export_and_load(tmp_path):
    from lessonlib.cross_entropy import cross_entropy
    from lessonlib.data import Batches, DataLoaders
    from lessonlib.learner import Learner, load_learner
    x, y = torch.rand(16, 1, 28, 28), torch.arange(16) % 4
    learn = Learner(DataLoaders(Batches(x, y), Batches(x, y)), small_cnn(4), cross_entropy, show=False)
    learn.fit(1, lr=0.01)
    learn.export(tmp_path / "cnn")
    torch.testing.assert_close(load_learner(tmp_path / "cnn").model(x), learn.model(x))


# receptive field

@pytest.mark.parametrize("layers", [[], [(3, 1)], [(3, 1), (3, 1)], [(3, 2), (3, 2), (3, 2)], [(7, 2), (3, 2), (3, 1)], [(1, 2), (5, 1)]])
def test_receptive_field_equals_the_part_of_the_image_that_has_a_gradient(layers):
    image = torch.zeros(1, 1, 61, 1, dtype=torch.float64, requires_grad=True)
    out = image
    for kernel_size, stride in layers:
        out = F.conv2d(out, torch.ones(1, 1, kernel_size, 1, dtype=torch.float64), stride=(stride, 1))
    grad, = torch.autograd.grad(out[0, 0, out.shape[2] // 2, 0], image)
    rows = grad.flatten().nonzero().flatten()  # with gaps, where a stride is longer than the kernel before it
    assert receptive_field(layers) == rows.max() - rows.min() + 1


def test_receptive_field_refuses():
    with pytest.raises(ValueError, match="kernel_size is 0"):
        receptive_field([(0, 1)])
    with pytest.raises(ValueError, match="stride is 0"):
        receptive_field([(3, 0)])


# what the explorers draw

def test_kernel_scene_says_what_the_convolution_gives_at_each_place():
    image, kernel = torch.rand(9, 8, generator=torch.Generator().manual_seed(0)), random(3, 3)
    expected = conv2d(image[None, None], kernel[None, None])[0, 0]
    before = image.clone()
    for row, column in [(0, 0), (6, 5), (3, 2)]:
        scene = kernel_scene(image, kernel, row, column)
        assert isinstance(scene, Scene) and scene.text.endswith(f"add up to {expected[row, column].item():.2f}.")
        assert [mark["kind"] for panel in scene.panels for mark in panel.marks] == ["image", "table", "image"]
        cells = [float(cell) for line in scene.panels[1].marks[0]["cells"] for cell in line]
        assert sum(cells) == pytest.approx(expected[row, column].item(), abs=0.05)
    assert torch.equal(image, before)


def test_kernel_scene_fills_the_feature_map_up_to_the_place():
    image = torch.rand(9, 8, generator=torch.Generator().manual_seed(0)) + 0.5
    uri = kernel_scene(image, torch.ones(3, 3), 3, 2).panels[2].marks[0]["png"]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    filled = (pixels != pixels[-1, -1]).any(2)  # the last place is still empty
    assert filled.shape == (7, 6) and filled.flatten().tolist() == [True] * (3 * 6 + 3) + [False] * (42 - 21)


@pytest.mark.parametrize("kernel_size, stride, padding", [(3, 1, 0), (3, 2, 0), (3, 2, 1), (5, 3, 2), (1, 3, 0)])
def test_window_scene_counts_the_windows_of_each_pixel(kernel_size, stride, padding):
    scene = window_scene(kernel_size, stride, padding)
    room, places = 8 + 2 * padding, output_size(8, kernel_size, stride, padding)
    seen = torch.zeros(room, room, dtype=torch.int64)
    for row in range(places):
        for column in range(places):
            seen[row * stride:row * stride + kernel_size, column * stride:column * stride + kernel_size] += 1
    left, right = (panel.marks[0] for panel in scene.panels)
    assert [[int(cell) for cell in line] for line in left["cells"]] == seen.tolist()
    assert right["cells"][-1][-1] == str(places**2) and f"= {places}." in scene.text
    inside = seen[padding:padding + 8, padding:padding + 8]
    assert scene.text.endswith(f"never seen: {(inside == 0).sum().item()}.")


def test_the_explorers_take_every_end_of_their_sliders():
    state = ExplorerState(window_scene, kernel_size=(1, 5, 1, 3), stride=(1, 3, 1, 2), padding=(0, 2, 1, 0))
    for kernel_size in (1, 5):
        for stride in (1, 3):
            for padding in (0, 2):
                assert "= " in state.set(kernel_size=kernel_size, stride=stride, padding=padding).scene.text

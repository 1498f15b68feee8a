"""Lesson 01: distances, pixel similarity, the drawing functions, and the published facts."""
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lessonlib.data import get_data, image_files, load_images
from lessonlib.pixels import PixelSimilarity, l1_distance, pixel_table, rmse, show_image, show_images

DISTANCES = {"l1_distance": l1_distance, "rmse": rmse}
TORCH_SAYS = {"l1_distance": F.l1_loss, "rmse": lambda a, b: F.mse_loss(a, b).sqrt()}


@pytest.fixture(params=DISTANCES)
def name(request):
    return request.param


@pytest.fixture(autouse=True)
def close_figures():
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    yield
    plt.close("all")


def images(*leading):
    "Strategy: float64 tensors (*leading, 4, 3) with values that float arithmetic can handle."
    values = st.floats(-1e3, 1e3, allow_subnormal=False, width=32)
    return arrays(np.float64, (*leading, 4, 3), elements=values).map(torch.tensor)


# --- distances ---

@pytest.mark.parametrize("name", DISTANCES)
@settings(max_examples=50, deadline=None)
@given(a=images(), b=images())
def test_distance_is_symmetric_zero_only_for_equal_and_as_torch_has_it(name, a, b):
    distance = DISTANCES[name]
    assert distance(a, b) == distance(b, a) >= 0
    assert distance(a, a) == 0
    assert (distance(a, b) == 0) == bool((a == b).all())
    torch.testing.assert_close(distance(a, b), TORCH_SAYS[name](a, b))


@pytest.mark.parametrize("name", DISTANCES)
@settings(max_examples=50, deadline=None)
@given(a=images(), b=images(), c=images())
def test_triangle_inequality_and_scale(name, a, b, c):
    distance = DISTANCES[name]
    assert distance(a, c) <= distance(a, b) + distance(b, c) + 1e-9
    torch.testing.assert_close(distance(3 * a, 3 * b), 3 * distance(a, b))


@settings(max_examples=50, deadline=None)
@given(a=images(), b=images())
def test_rmse_is_never_below_l1(a, b):
    assert rmse(a, b) >= l1_distance(a, b) * (1 - 1e-12)


@pytest.mark.parametrize("name", DISTANCES)
@settings(max_examples=30, deadline=None)
@given(many=images(5), few=images(2))
def test_broadcasting_equals_a_loop(name, many, few):
    distance = DISTANCES[name]
    table = distance(many[:, None], few)  # (5, 1, 4, 3) and (2, 4, 3) -> (5, 2)
    assert table.shape == (5, 2)
    loop = torch.stack([torch.stack([distance(image, mean) for mean in few]) for image in many])
    torch.testing.assert_close(table, loop)


def test_distances_by_hand():
    a, b = torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[0.0, 1.0], [2.0, 7.0]])
    assert l1_distance(a, b) == 1  # 4 / 4
    assert rmse(a, b) == 2  # sqrt(16 / 4)


def test_one_large_error_and_many_small_ones():
    original, large, small = torch.zeros(28, 28), torch.zeros(28, 28), torch.full((28, 28), 1 / 49)
    large[:4, :4] = 1
    torch.testing.assert_close(l1_distance(large, original), l1_distance(small, original))
    torch.testing.assert_close(rmse(large, original), 7 * rmse(small, original))


@pytest.mark.parametrize("make", [lambda pixels: torch.tensor(pixels, dtype=torch.uint8),
                                  lambda pixels: np.array(pixels, dtype=np.uint8), lambda pixels: pixels])
def test_bytes_do_not_wrap_round_and_arrays_and_lists_are_welcome(name, make):
    distance = DISTANCES[name](make([[3]]), make([[7]]))
    assert isinstance(distance, torch.Tensor) and distance == 4


def test_distances_leave_their_arguments_alone_and_pass_gradients(name):
    a, b = torch.rand(3, 3), torch.rand(3, 3, requires_grad=True)
    before = a.clone()
    DISTANCES[name](a, b).backward()
    assert torch.equal(a, before) and b.grad.shape == (3, 3)


@pytest.mark.parametrize("a_shape, b_shape", [((28, 28), (28, 20)), ((5, 28, 28), (3, 28, 28))])
def test_shapes_that_do_not_fit_are_named(name, a_shape, b_shape):
    with pytest.raises(ValueError) as error:
        DISTANCES[name](torch.zeros(a_shape), torch.zeros(b_shape))
    assert str(a_shape) in str(error.value) and str(b_shape) in str(error.value)


def test_a_flattened_image_is_refused(name):
    with pytest.raises(ValueError, match=re.escape("b (784,)")):
        DISTANCES[name](torch.zeros(28, 28), torch.zeros(784))


# --- PixelSimilarity ---

@pytest.fixture
def corners():
    "Six 4 × 4 images, bright in the upper left (label 7) or the lower right (label -1), and their labels."
    generator = torch.Generator().manual_seed(0)
    pictures = 0.1 * torch.rand(6, 4, 4, generator=generator)
    pictures[:3, :2, :2] += 0.8
    pictures[3:, 2:, 2:] += 0.8
    return pictures, torch.tensor([7, 7, 7, -1, -1, -1])


def test_fit_returns_the_classifier_and_predict_its_labels(corners):
    pictures, labels = corners
    classifier = PixelSimilarity()
    assert classifier.fit(pictures, labels) is classifier
    assert torch.equal(classifier.predict(pictures), labels)
    assert classifier.predict(pictures).dtype == labels.dtype
    assert classifier.distances(pictures).shape == (6, 2)


def test_means_and_distances_are_in_the_order_of_the_labels(corners):
    pictures, labels = corners
    classifier = PixelSimilarity().fit(pictures, labels)
    assert classifier.labels.tolist() == [-1, 7]
    torch.testing.assert_close(classifier.means, torch.stack([pictures[3:].mean(0), pictures[:3].mean(0)]))
    torch.testing.assert_close(classifier.distances(pictures)[:, 1], l1_distance(pictures, pictures[:3].mean(0)))


def test_order_of_the_training_images_does_not_matter(corners):
    pictures, labels = corners
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    one, other = PixelSimilarity().fit(pictures, labels), PixelSimilarity().fit(pictures[order], labels[order])
    torch.testing.assert_close(one.means, other.means)


def test_bytes_and_floats_give_the_same(corners):
    pictures, labels = corners
    as_bytes = (pictures * 255).round().to(torch.uint8)
    one, other = PixelSimilarity().fit(as_bytes, labels), PixelSimilarity().fit(as_bytes / 255, labels.tolist())
    torch.testing.assert_close(one.distances(as_bytes), other.distances(as_bytes / 255))
    assert one.means.max() <= 1


def test_arrays_and_ten_classes_and_no_images():
    pictures = np.eye(10, dtype=np.float32).reshape(10, 2, 5)  # (10, 10) -> (10, 2, 5)
    classifier = PixelSimilarity().fit(pictures, list(range(10)))
    assert classifier.predict(pictures).tolist() == list(range(10))
    assert classifier.predict(np.zeros((0, 2, 5), dtype=np.float32)).shape == (0,)


def test_another_distance_is_used(corners):
    pictures, labels = corners
    classifier = PixelSimilarity(distance=rmse).fit(pictures, labels)
    torch.testing.assert_close(classifier.distances(pictures)[:, 0], rmse(pictures, classifier.means[0]))


def test_use_before_fit_says_so(corners):
    for method in ("distances", "predict"):
        with pytest.raises(RuntimeError, match="fit"):
            getattr(PixelSimilarity(), method)(corners[0])


def test_wrong_sizes_and_lengths_are_named(corners):
    pictures, labels = corners
    classifier = PixelSimilarity().fit(pictures, labels)
    with pytest.raises(ValueError, match=r"\(6, 4, 3\).*\(4, 4\)"):
        classifier.predict(pictures[:, :, :3])
    with pytest.raises(ValueError, match=r"\(4, 4\).*image\[None\]"):
        classifier.predict(pictures[0])
    with pytest.raises(ValueError, match=r"\(6, 4, 4\).*\(5,\)"):
        PixelSimilarity().fit(pictures, labels[:5])
    with pytest.raises(ValueError, match="at least one"):
        PixelSimilarity().fit(pictures[:0], labels[:0])


def test_labels_that_are_not_integers_are_refused(corners):
    for labels in (["3"] * 6, [3.5] * 6):
        with pytest.raises(ValueError, match="integers"):
            PixelSimilarity().fit(corners[0], labels)


def test_a_failed_fit_leaves_the_classifier_as_it_was(corners):
    pictures, labels = corners
    classifier = PixelSimilarity().fit(pictures, labels)
    with pytest.raises(ValueError):
        classifier.fit(pictures, labels[:5])
    assert torch.equal(classifier.predict(pictures), labels)


# --- drawing ---

def drawn(ax):
    return np.asarray(ax.images[0].get_array())


@pytest.mark.parametrize("shape, shown", [((5, 7), (5, 7)), ((1, 5, 7), (5, 7)), ((5, 7, 1), (5, 7)),
                                          ((3, 5, 7), (5, 7, 3)), ((5, 7, 3), (5, 7, 3)), ((4, 5, 7), (5, 7, 4))])
@pytest.mark.parametrize("make", [np.asarray, torch.tensor])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_show_image_takes_every_usual_shape(shape, shown, make, dtype):
    image = make((np.arange(np.prod(shape)).reshape(shape) % 2).astype(dtype))
    ax = show_image(image, title="an image")
    assert drawn(ax).shape == shown and ax.get_title() == "an image"


def test_channels_first_and_last_draw_the_same():
    image = torch.rand(3, 6, 5)
    np.testing.assert_allclose(drawn(show_image(image)), drawn(show_image(image.permute(1, 2, 0).numpy())))


def test_small_colour_images_follow_their_library():
    image = torch.rand(3, 4, 3)  # both ends look like channels
    np.testing.assert_allclose(drawn(show_image(image)), image.permute(1, 2, 0).numpy())
    np.testing.assert_allclose(drawn(show_image(image.numpy())), image.numpy())


def test_show_image_uses_fixed_levels_for_bytes_and_stretches_other_numbers():
    assert drawn(show_image(torch.tensor([[0, 51]], dtype=torch.uint8))).tolist() == [[0, 0.2]]
    assert drawn(show_image(torch.tensor([[0.25, 0.5]]))).tolist() == [[0.25, 0.5]]
    assert drawn(show_image(torch.tensor([[-1.0, 0.0, 3.0]]))).tolist() == [[0, 0.25, 1]]
    assert drawn(show_image(torch.tensor([[5.0, 5.0]]))).tolist() == [[0, 0]]
    assert drawn(show_image(torch.tensor([[True, False]]))).tolist() == [[1, 0]]


def test_show_image_draws_on_given_axes_and_takes_weights_with_gradients():
    import matplotlib.pyplot as plt
    ax = plt.subplots()[1]
    assert show_image(torch.rand(4, 4, dtype=torch.bfloat16).requires_grad_(), ax=ax) is ax


@pytest.mark.parametrize("shape", [(5,), (2, 5, 7), (2, 3, 5, 7), (0, 5)])
def test_what_is_not_one_image_is_named(shape):
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        show_image(torch.zeros(shape))


def test_show_images_makes_a_grid_with_titles():
    figure = show_images(torch.rand(5, 4, 4), titles=[3, "seven", 1.5, None, "e"], ncols=2)
    assert [ax.get_title() for ax in figure.axes] == ["3", "seven", "1.5", "", "e", ""]
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 1, 1, 1, 0]


def test_titles_do_not_overlap():
    figure = show_images(torch.rand(6, 4, 4), titles=[f"a rather long title {n}\nwith two lines" for n in range(6)])
    figure.canvas.draw()
    boxes = [ax.title.get_window_extent() for ax in figure.axes]
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])


def test_show_images_takes_images_of_different_kinds():
    assert len(show_images([torch.rand(3, 4, 6), np.zeros((5, 5), np.uint8)]).axes) == 2


def test_show_images_names_the_numbers_that_differ():
    with pytest.raises(ValueError, match="3 images and 2 titles"):
        show_images(torch.rand(3, 4, 4), titles=["a", "b"])
    with pytest.raises(ValueError, match="0 images"):
        show_images([])


def test_pixel_table_has_values_shading_and_tooltips():
    page = pixel_table(torch.tensor([[0, 255], [29, 128]], dtype=torch.uint8)).to_html()
    assert 'title="row 0, column 1: 255" style="background:#ffffff;color:#000"' in page
    assert 'title="row 1, column 0: 29" style="background:#1d1d1d;color:#fff">29<' in page
    assert page.count("<td") == 4 and page.count("<th>") == 5
    assert page == pixel_table(np.array([[0, 255], [29, 128]], dtype=np.uint8))._repr_html_()


def test_pixel_table_of_floats_and_as_text():
    table = pixel_table([[0.0, 0.114], [1.0, 0.5]])
    assert str(table) == "0.00 0.11\n1.00 0.50"
    assert "row 0, column 1: 0.11" in table.to_html()


def test_pixel_table_refuses_colour_and_large_images():
    with pytest.raises(ValueError, match=r"\(3, 4, 4\).*one channel"):
        pixel_table(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="slice"):
        pixel_table(torch.zeros(224, 224))


# --- published facts ---

@pytest.fixture(scope="module")
def sample():
    path = get_data("mnist_sample")
    return {name: load_images(image_files(path/name)) for name in ("train/3", "train/7", "valid/3", "valid/7")}


@pytest.fixture(scope="module")
def training(sample):
    threes, sevens = sample["train/3"], sample["train/7"]
    return torch.cat([threes, sevens]), torch.tensor([3] * len(threes) + [7] * len(sevens))


def test_published_counts(sample):
    assert {name: len(pile) for name, pile in sample.items()} == {
        "train/3": 6131, "train/7": 6265, "valid/3": 1010, "valid/7": 1028}


def test_published_example_and_distances(sample):
    example = load_images([get_data("mnist_sample")/"train"/"3"/"10000.png"])[0]
    assert example[4:7, 4:10].tolist() == [[0] * 6, [0, 0, 0, 0, 0, 29], [0, 0, 0, 48, 166, 224]]
    digit, mean_3, mean_7 = example / 255, *((sample[name] / 255).mean(0) for name in ("train/3", "train/7"))
    found = [distance(digit, mean) for mean in (mean_3, mean_7) for distance in (l1_distance, rmse)]
    assert [round(value.item(), 4) for value in found] == [0.1114, 0.2021, 0.1586, 0.3021]


def test_published_accuracies(sample, training):
    classifier = PixelSimilarity().fit(*training)
    accuracies = [(classifier.predict(sample[f"valid/{label}"]) == label).double().mean().item() for label in (3, 7)]
    assert [round(value, 4) for value in (*accuracies, sum(accuracies) / 2)] == [0.9168, 0.9854, 0.9511]

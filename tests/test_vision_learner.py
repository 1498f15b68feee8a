"""Lesson 08: `vision_learner`: where weights come from, freezing, learning rates, test-time augmentation, files, and what it says to bad input."""
import copy
import email.message
import inspect
import io
import json
import math
import pickle
import socket
import sys
import threading
import types
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models

from lessonlib import vision
from lessonlib.data import Batches, DataLoaders, _data_folder
from lessonlib.learner import Callback, LRFinder, accuracy, error_rate, load_learner
from lessonlib.vision import Augment, Normalise, VisionLearner, prepare_image, vision_learner

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BUNDLED = _data_folder() / "weights" / "resnet18_tiny_imagenet.safetensors"


def bars(count, size=32, classes=2, seed=0):
    """Images of lying bars (target 0) and standing bars (other targets)."""
    generator, targets = torch.Generator().manual_seed(seed), torch.arange(count) % classes
    rows = torch.rand(count, 3, size, 1, generator=generator).round().expand(-1, -1, -1, size)
    return torch.where(targets[:, None, None, None] == 0, rows, rows.mT), targets


def image_data(train=12, valid=6, size=32, classes=2, batch_size=4, shuffle=False):
    """What `image_dataloaders` returns, made of tensors: no files to decode."""
    dls = DataLoaders(Batches(*bars(train, size, classes), batch_size=batch_size, shuffle=shuffle),
                      Batches(*bars(valid, size, classes, seed=1), batch_size=batch_size))
    dls.vocab, dls.size = ["lies", "stands", "third", "fourth"][:classes], size
    dls.preprocessing = {"kind": "image", "size": size, "resize": "crop"}
    dls.prepare = lambda item: prepare_image(item, size, "crop")
    return dls


def learner(dls=None, seed=0, **options):
    torch.manual_seed(seed)
    return vision_learner(dls or image_data(), **{"show": False, **options})


@pytest.fixture(scope="module")
def donor():
    """A ResNet-18 for 200 classes whose numbers are at random."""
    torch.manual_seed(7)
    return models.resnet18(num_classes=200)


@pytest.fixture(scope="module")
def weights(donor, tmp_path_factory):
    """A file with the donor's numbers."""
    path = tmp_path_factory.mktemp("weights") / "donor.safetensors"
    save_file(donor.state_dict(), path)
    return path


@pytest.fixture
def no_network(monkeypatch):
    """Every attempt to find a host fails, as it does in a classroom without a network."""
    def unknown(*args, **kwargs): raise socket.gaierror(-2, "Name or service not known")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """A private cache for torch; returns the folder where it looks for weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def body_state(learn):
    """A copy of everything in the network but its head."""
    head = learn.head.removeprefix("net.")
    return {name: tensor.clone() for name, tensor in learn.model.net.state_dict().items() if not name.startswith(f"{head}.")}


def same(first, second): return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# Normalise

def test_normalise_works_channel_by_channel():
    layer = Normalise([0.5, 0.4, 0.3], [0.1, 0.2, 0.5])
    xb = torch.rand(2, 3, 4, 5)
    for channel, (mean, std) in enumerate([(0.5, 0.1), (0.4, 0.2), (0.3, 0.5)]):
        assert torch.allclose(layer(xb)[:, channel], (xb[:, channel] - mean) / std, atol=1e-5)
    assert set(layer.state_dict()) == {"mean", "std"} and not list(layer.parameters())
    assert "0.4" in repr(layer)


def test_normalise_can_be_made_again_from_its_own_tensors():
    layer = Normalise(*IMAGENET)
    for again in (Normalise(layer.mean, layer.std), Normalise(layer.mean.tolist(), layer.std.flatten().tolist())):
        assert torch.equal(again.mean, layer.mean) and torch.equal(again.std, layer.std)


@pytest.mark.parametrize("mean, std", [([0.5], [0.0]), ([0.5], [-1.0]), ([0.5, 0.5], [0.2]), ([0.5], [math.nan])])
def test_normalise_refuses(mean, std):
    with pytest.raises(ValueError, match="above 0"): Normalise(mean, std)


# What vision_learner builds

def test_signature_is_the_contract():
    given = inspect.signature(vision_learner).parameters
    assert [(name, given[name].default) for name in ("arch", "weights", "metrics")] == [("arch", "resnet18"), ("weights", "auto"), ("metrics", None)]
    assert next(iter(given)) == "dls"


def test_the_model_normalises_and_has_one_output_for_each_class(weights):
    learn = learner(image_data(classes=3), weights=weights)
    assert list(dict(learn.model.named_children())) == ["normalise", "net"] and type(learn.model) is nn.Sequential
    assert learn.model.net.fc.out_features == 3 and isinstance(learn, VisionLearner)
    assert torch.allclose(learn.model.normalise.mean.flatten(), torch.tensor(IMAGENET[0]))
    assert torch.allclose(learn.model.normalise.std.flatten(), torch.tensor(IMAGENET[1]))
    xb = torch.rand(2, 3, 32, 32)
    by_hand = (xb - torch.tensor(IMAGENET[0]).view(3, 1, 1)) / torch.tensor(IMAGENET[1]).view(3, 1, 1)
    assert torch.allclose(learn.model.eval()(xb), learn.model.net(by_hand), atol=1e-5)


def test_defaults_are_accuracy_adamw_and_cross_entropy():
    learn = learner(weights=None)
    assert list(learn.metrics) == ["accuracy"] and type(learn.make_opt(0.1)) is torch.optim.AdamW
    assert learn.loss_func is nn.functional.cross_entropy
    assert list(learner(weights=None, metrics=[error_rate]).metrics) == ["error_rate"]
    assert not learner(weights=None, metrics=[]).metrics


def test_one_line_says_which_weights(weights, capsys):
    learner(weights=None, show=True)
    learner(weights=weights, show=True)
    printed = capsys.readouterr().out
    assert printed.splitlines() == ["resnet18, weights: none, it starts from scratch", "resnet18, weights: the file donor.safetensors"]


def test_the_same_seed_gives_the_same_head(weights):
    first, second, other = learner(weights=weights), learner(weights=weights), learner(weights=weights, seed=1)
    assert torch.equal(first.model.net.fc.weight, second.model.net.fc.weight)
    assert not torch.equal(first.model.net.fc.weight, other.model.net.fc.weight)


# The bundled weights

def test_bundled_weights_fit_a_resnet18_for_200_classes_strictly():
    net = models.resnet18(num_classes=200)
    net.load_state_dict(load_file(BUNDLED), strict=True)
    assert all(torch.isfinite(tensor.float()).all() for tensor in net.state_dict().values())


def test_bundled_is_the_default_for_resnet18(no_network):
    learn = learner()
    stored = load_file(BUNDLED)
    assert torch.equal(learn.model.net.layer4[1].conv2.weight, stored["layer4.1.conv2.weight"].float())
    assert torch.equal(learn.model.net.bn1.running_var, stored["bn1.running_var"].float())
    assert learn.model.net.fc.out_features == 2 and learn.frozen and learn.pretrained
    assert same(body_state(learn), body_state(learner(weights="bundled")))


def test_the_mean_and_std_beside_the_bundled_weights_are_used(donor, tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in donor.state_dict().items()}
    save_file(half, tmp_path / "weights" / BUNDLED.name, {"mean": "[0.1, 0.2, 0.3]", "std": "[0.4, 0.5, 0.6]"})
    monkeypatch.setattr(vision, "_data_folder", lambda: tmp_path)
    learn = learner()
    assert torch.allclose(learn.model.normalise.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert torch.allclose(learn.model.normalise.std.flatten(), torch.tensor([0.4, 0.5, 0.6]))
    assert learn.model.net.conv1.weight.dtype == torch.float32
    assert torch.equal(learn.model.net.conv1.weight, donor.conv1.weight.half().float())


def test_bundled_is_for_resnet18_only():
    with pytest.raises(ValueError, match="resnet18, not resnet34.*imagenet"): learner(arch="resnet34", weights="bundled")


@pytest.mark.parametrize("arch", ["resnet34", "convnext_tiny"])
def test_auto_means_imagenet_for_the_rest(arch, torch_home, no_network):
    with pytest.raises(ConnectionError, match=arch): learner(arch=arch)


# ImageNet's weights

def test_imagenet_weights_are_taken_from_torchs_own_cache(torch_home, no_network, capsys):
    net = models.resnet18()
    torch.save(net.state_dict(), torch_home / "resnet18-f37072fd.pth")
    learn = learner(weights="imagenet", show=True)
    assert torch.equal(learn.model.net.layer3[0].conv1.weight, net.layer3[0].conv1.weight) and learn.frozen
    assert "ResNet18_Weights.IMAGENET1K_V1" in capsys.readouterr().out


def test_without_a_network_it_says_what_to_put_where(torch_home, no_network):
    with pytest.raises(ConnectionError) as caught: learner(weights="imagenet")
    for part in (str(torch_home / "resnet18-f37072fd.pth"), "https://download.pytorch.org/models/resnet18-f37072fd.pth",
                 "vision_learner(dls, 'resnet18', 'bundled')"):
        assert part in str(caught.value)


def test_a_damaged_file_in_the_cache_is_named(torch_home, no_network):
    (torch_home / "resnet18-f37072fd.pth").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ValueError, match="resnet18-f37072fd.pth.*damaged.*delete"): learner(weights="imagenet")


def test_a_download_with_another_hash_is_refused(torch_home, monkeypatch):
    class Answer(io.BytesIO):
        def info(self): return email.message.Message()
    monkeypatch.setattr(torch.hub, "urlopen", lambda request: Answer(b"something else"))
    with pytest.raises(ValueError, match="hash"): learner(weights="imagenet")
    assert not list(torch_home.glob("*.pth"))


def test_no_code_is_run_from_the_cache(torch_home, no_network):
    torch.save(Bomb(), torch_home / "resnet18-f37072fd.pth")
    with pytest.raises(ValueError, match="damaged"): learner(weights="imagenet")
    assert not Bomb.exploded


def test_older_names_of_densenets_are_understood(torch_home, no_network):
    net = models.densenet121()
    old = {name.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.").replace("conv1.", "conv.1.").replace("conv2.", "conv.2.")
           if "denselayer" in name else name: tensor for name, tensor in net.state_dict().items() if "num_batches" not in name}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, torch_home / "densenet121-a639ec97.pth")
    learn = learner(arch="densenet121")
    assert torch.equal(learn.model.net.features.denseblock4.denselayer16.conv2.weight, net.features.denseblock4.denselayer16.conv2.weight)


# Files

class Bomb:
    """Unpickling it runs code."""
    exploded = False
    def __reduce__(self): return (setattr, (Bomb, "exploded", True))


def test_a_pth_file_of_tensors_is_read(donor, tmp_path):
    torch.save(donor.state_dict(), tmp_path / "plain.pth")
    torch.save({"state_dict": donor.state_dict(), "epoch": 3}, tmp_path / "wrapped.pth")
    for name in ("plain.pth", "wrapped.pth"):
        learn = learner(weights=str(tmp_path / name))
        assert torch.equal(learn.model.net.layer1[0].bn1.weight, donor.layer1[0].bn1.weight)


@pytest.mark.parametrize("write", [torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb))])
def test_a_file_with_code_is_refused_and_not_run(write, tmp_path):
    write(Bomb(), tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match="bomb.pth"): learner(weights=tmp_path / "bomb.pth")
    assert not Bomb.exploded


@pytest.mark.parametrize("content", [b"", b"not tensors at all", None])
def test_a_damaged_safetensors_file_is_refused(content, weights, tmp_path):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(weights.read_bytes()[:50_000] if content is None else content)
    with pytest.raises(ValueError, match="damaged.safetensors"): learner(weights=path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.safetensors"): learner(weights=tmp_path / "missing.safetensors")


@pytest.mark.parametrize("source", ["image-net", "", 3, True])
def test_an_unknown_source_is_refused(source):
    with pytest.raises(ValueError, match="'bundled', 'imagenet'"): learner(weights=source)


def test_weights_of_another_architecture_are_listed(weights):
    with pytest.raises(ValueError) as caught: learner(arch="resnet34", weights=weights)
    assert "missing: layer1.2.conv1.weight, " in str(caught.value) and "more" in str(caught.value)
    with pytest.raises(ValueError) as caught: learner(arch="resnet50", weights=weights)
    assert "layer1.0.conv1.weight (64, 64, 3, 3) instead of (64, 64, 1, 1)" in str(caught.value)


def test_unexpected_weights_are_listed_and_nothing_is_loaded(donor):
    net = models.resnet18(num_classes=2)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match="unexpected: extra.weight; choose"):
        vision._fill_body(net, "fc", {**donor.state_dict(), "extra.weight": torch.zeros(1)}, "a test")
    assert same(before, net.state_dict())


def test_the_weights_of_an_own_learner_can_be_built_on(weights, tmp_path):
    first = learner(weights=weights)
    first.model.normalise.mean.fill_(0.25)
    path = first.export(tmp_path / "first.safetensors")
    second = learner(image_data(classes=3), weights=path)
    assert same(body_state(first), body_state(second)) and second.model.net.fc.out_features == 3
    assert torch.equal(second.model.normalise.mean, first.model.normalise.mean)


# Architectures

@pytest.mark.parametrize("arch, head", [("resnet34", "fc"), ("convnext_tiny", "classifier.2"), ("mobilenet_v3_small", "classifier.3"),
                                        ("squeezenet1_1", "classifier.1"), ("shufflenet_v2_x0_5", "fc")])
def test_classifiers_of_torchvision(arch, head):
    learn = learner(image_data(classes=3, size=48), arch=arch, weights=None)
    assert learn.head == f"net.{head}" and learn.get_preds()[0].shape == (6, 3)
    parts = vision._parts(learn.model, learn.head)
    assert all(parts.values()) and sum(map(len, parts.values())) == len(list(learn.model.parameters()))


@pytest.mark.parametrize("arch, first_late", [("resnet18", "layer3.0.conv1.weight"), ("resnet34", "layer3.0.conv1.weight"),
                                              ("resnet50", "layer3.0.conv1.weight"), ("convnext_tiny", "features.5.0.layer_scale"),
                                              ("vgg16_bn", "features.24.weight"), ("vit_b_16", "encoder.layers.encoder_layer_6.ln_1.weight")])
def test_the_body_is_cut_between_stages(arch, first_late):
    with torch.device("meta"): net = models.get_model(arch, num_classes=37)
    head = vision._find_head(net, 37)
    names = [name for name, _ in net.named_parameters() if not name.startswith(f"{head}.")]
    assert names[vision._border(names)] == first_late


def test_the_head_is_the_last_layer_even_when_others_are_as_wide():
    assert vision._find_head(models.squeezenet1_1(num_classes=64), 64) == "classifier.1"
    with pytest.raises(ValueError, match="7 outputs"): vision._find_head(nn.Sequential(nn.Linear(3, 5)), 7)


def test_torchvisions_function_may_be_given():
    assert type(learner(arch=models.resnet18, weights=None).model.net) is models.ResNet


@pytest.mark.parametrize("arch, hint", [("resnet81", "resnet18"), ("convnext-tiny", "convnext_tiny"), ("", "resnet18"), (None, "resnet"),
                                        ("fcn_resnet50", "resnet50"), ("googlenet", "resnet34"), ("inception_v3", "several outputs")])
def test_an_unknown_or_unfit_architecture_is_refused(arch, hint):
    with pytest.raises(ValueError, match=hint): learner(arch=arch, weights=None)


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match="squeezenet1_1 cannot take images of 8 x 8.*size=224"):
        learner(image_data(size=8), arch="squeezenet1_1", weights=None)


def test_data_that_cannot_be_classified_are_refused():
    with pytest.raises(ValueError, match="two classes"): learner(image_data(classes=1))
    dls = DataLoaders(Batches(*bars(6)), Batches(*bars(6)))
    with pytest.raises(TypeError, match="image_dataloaders"): learner(dls)


@pytest.fixture
def fake_timm(monkeypatch):
    """A module that answers as timm does."""
    class Net(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.stem, self.block, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, num_classes)
            self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}

        def forward(self, xb): return self.head(self.block(self.stem(xb)).mean((2, 3)))

    def create_model(name, pretrained, num_classes):
        timm.asked = pretrained
        if pretrained and timm.offline: raise ConnectionError("no route")
        return Net(num_classes)

    timm = types.ModuleType("timm")
    timm.is_model, timm.list_models = (lambda name: name == "tiny_timm"), (lambda: ["tiny_timm"])
    timm.create_model, timm.offline = create_model, False
    monkeypatch.setitem(sys.modules, "timm", timm)
    return timm


def test_timms_networks_are_known_where_it_is_installed(fake_timm, weights):
    learn = learner(arch="tiny_timm")
    assert fake_timm.asked and learn.frozen and learn.head == "net.head"
    assert torch.allclose(learn.model.normalise.std, torch.tensor(0.25))
    assert not learner(arch="tiny_timm", weights=None).pretrained and not fake_timm.asked
    with pytest.raises(ValueError, match="missing: stem.weight"): learner(arch="tiny_timm", weights=weights)
    with pytest.raises(ValueError, match="tiny_timm"): learner(arch="tiny_tim", weights=None)
    fake_timm.offline = True
    with pytest.raises(ConnectionError, match="no route.*bundled"): learner(arch="tiny_timm")


def test_without_timm_its_names_are_unknown(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="timm is not installed"): learner(arch="resnet18.a1_in1k")


# Freezing

def test_a_pretrained_learner_starts_frozen_and_trains_its_head_only(weights):
    learn = learner(weights=weights)
    trained = [name for name, param in learn.model.named_parameters() if param.requires_grad]
    assert learn.frozen and trained == ["net.fc.weight", "net.fc.bias"]
    body, head = body_state(learn), learn.model.net.fc.weight.detach().clone()
    learn.fit(2, 0.01)
    assert same(body, body_state(learn)), "batch-norm's averages and counts belong to the body"
    assert not torch.equal(head, learn.model.net.fc.weight)


def test_an_unfrozen_body_moves_and_so_do_its_averages(weights):
    learn = learner(weights=weights)
    body = body_state(learn)
    learn.unfreeze()
    learn.fit(1, 1e-3)
    for name in ("conv1.weight", "bn1.weight", "bn1.running_mean", "layer4.1.bn2.num_batches_tracked"):
        assert not torch.equal(body[name], body_state(learn)[name]), name
    learn.freeze()
    body = body_state(learn)
    learn.fit(1, 1e-3)
    assert same(body, body_state(learn)) and not learn.model.training


def test_the_body_is_in_evaluation_mode_while_frozen(weights):
    class Modes(Callback):
        def __init__(self): self.seen = []
        def after_loss(self, learn): self.seen.append((learn.model.net.layer2.training, learn.model.net.fc.training))
    modes, learn = Modes(), learner(weights=weights)
    learn.fit(1, 0.01, modes)
    learn.unfreeze()
    learn.fit(1, 1e-3, modes)
    assert modes.seen == [(False, True)] * 3 + [(True, True)] * 3


def test_without_pretrained_weights_nothing_is_ever_frozen(capsys):
    learn = learner(weights=None)
    learn.freeze()
    assert "no pretrained weights" in capsys.readouterr().out
    assert not learn.frozen and all(param.requires_grad for param in learn.model.parameters())
    body = body_state(learn)
    learn.fit(1, 1e-3)
    assert not torch.equal(body["conv1.weight"], body_state(learn)["conv1.weight"])


def test_fine_tune_trains_everything_for_so_many_epochs(weights):
    learn = learner(weights=weights)
    body = body_state(learn)
    learn.fine_tune(3, 1e-3)
    assert len(learn.history) == 3 and list(learn.history.epoch) == [0, 1, 2] and not learn.frozen
    assert not torch.equal(body["conv1.weight"], body_state(learn)["conv1.weight"])
    assert list(learn.history) == ["epoch", "train_loss", "valid_loss", "accuracy", "seconds"]


def test_lr_find_leaves_frozen_and_unfrozen_learners_as_they_were(weights):
    learn = learner(weights=weights)
    for prepare in (learn.freeze, learn.unfreeze):
        prepare()
        before = {name: tensor.clone() for name, tensor in learn.model.state_dict().items()}
        assert isinstance(learn.lr_find(steps=12), LRFinder)
        assert same(before, learn.model.state_dict()) and not learn.rows


def test_lr_find_keeps_the_shares_of_body_and_head(weights):
    seen = []

    class Recorded(torch.optim.AdamW):
        def step(self, closure=None):
            seen.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    learn = learner(weights=weights)
    learn.opt_func = Recorded
    learn.unfreeze()
    learn.lr_find(low=1e-4, high=1e-1, steps=11)
    assert len(seen) > 4 and seen[0][-1] == pytest.approx(1e-4) and all(rates[0] < rates[-1] for rates in seen)
    assert all(rate / rates[-1] == pytest.approx(first / seen[0][-1]) for rates in seen for rate, first in zip(rates, seen[0]))


# Learning rates

def rates(opt): return {group["name"]: group["lr"] for group in opt.param_groups}


@pytest.mark.parametrize("lr, low, high", [(1e-2, 1e-3, 1e-2), (slice(1e-2), 1e-3, 1e-2), (slice(None, 1e-2), 1e-3, 1e-2),
                                           (slice(1e-6, 1e-2), 1e-6, 1e-2), (slice(0.5, 0.5), 0.5, 0.5)])
def test_three_parts_have_learning_rates_in_equal_ratios(weights, lr, low, high):
    learn = learner(weights=weights)
    learn.unfreeze()
    found = rates(learn.make_opt(lr))
    assert list(found) == ["early body", "late body", "head"]
    assert np.allclose(list(found.values()), [low, math.sqrt(low * high), high], rtol=1e-9)
    learn.freeze()
    assert rates(learn.make_opt(lr)) == {"head": high}


def test_every_parameter_is_in_one_group_and_only_weight_tables_decay():
    learn = learner(weights=None, arch="convnext_tiny")
    groups = learn.make_opt(0.1).param_groups
    grouped = [param for group in groups for param in group["params"]]
    assert len(grouped) == len({id(param) for param in grouped}) == len(list(learn.model.parameters()))
    decay = {id(param): group["weight_decay"] for group in groups for param in group["params"]}
    usual = torch.optim.AdamW([nn.Parameter(torch.zeros(1))]).defaults["weight_decay"]
    for name, param in learn.model.named_parameters():
        spared = name.endswith("bias") or "layer_scale" in name or param.ndim == 1
        assert decay[id(param)] == (0 if spared else usual), name


def test_a_part_that_the_user_froze_stays_out(weights):
    learn = learner(weights=weights)
    learn.unfreeze()
    for param in vision._parts(learn.model, learn.head)["early body"]: param.requires_grad_(False)
    assert list(rates(learn.make_opt(0.1))) == ["late body", "head"]


@pytest.mark.parametrize("opt_func", [torch.optim.SGD, partial(torch.optim.SGD, momentum=0.9), torch.optim.Adam])
def test_one_cycle_scales_each_groups_own_peak(opt_func):
    class Rates(Callback):
        def __init__(self): self.seen = []
        def before_step(self, learn): self.seen.append([group["lr"] for group in learn.opt.param_groups])
    seen, learn = Rates(), learner(weights=None, opt_func=opt_func)
    learn.fit_one_cycle(2, slice(1e-6, 1e-4), seen)
    seen = np.array(seen.seen)
    assert np.allclose(seen / seen[:, -1:], seen[0] / seen[0, -1]) and np.allclose(seen[0, 0] / seen[0, -1], 0.01)
    assert 0.8e-4 < seen[:, -1].max() <= 1e-4 and seen[-1, -1] < 1e-8


@pytest.mark.parametrize("lr", [0, -1, "0.1", None, math.nan, slice(None, None), slice(1e-3, None), slice(0, 1e-3), slice(1e-3, 1e-5),
                                slice(1e-5, 1e-3, 3), slice("a", "b"), slice(None, "b")])
def test_bad_learning_rates_are_refused(lr):
    learn = learner(weights=None)
    with pytest.raises(ValueError, match="lr is"): learn.fit(1, lr)
    assert not learn.rows


@pytest.mark.parametrize("epochs", [0, -1, 1.5, "3"])
def test_bad_numbers_of_epochs_are_refused(epochs, weights):
    with pytest.raises(ValueError, match="epochs is"): learner(weights=weights).fine_tune(epochs, 1e-3)


# Test-time augmentation

def test_tta_averages_probabilities(weights):
    learn = learner(image_data(batch_size=6), weights=weights)
    plain, targets = learn.get_preds()
    averaged, again = learn.get_preds(tta=2)
    augment, generator = Augment(32, scale=(0.7, 1), light=0), torch.Generator().manual_seed(42)
    (xb, yb), = learn.dls.valid
    with torch.no_grad(): looks = [learn.model(images).softmax(1) for images in (xb, augment(xb, generator), augment(xb, generator))]
    assert torch.allclose(averaged.exp(), sum(looks) / 3, atol=1e-6) and torch.equal(again, targets) and torch.equal(targets, yb)
    assert not torch.allclose(averaged.exp(), plain.softmax(1))
    assert torch.allclose(nn.functional.cross_entropy(averaged, yb), nn.functional.nll_loss(averaged, yb))


def test_tta_repeats_and_leaves_the_random_state_alone(weights):
    learn = learner(weights=weights)
    torch.manual_seed(5)
    first, state = learn.get_preds(tta=2)[0], torch.get_rng_state()
    assert torch.equal(first, learn.get_preds(tta=2)[0]) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, learn.get_preds(tta=2, seed=1)[0])


def test_tta_with_a_change_that_changes_nothing(weights):
    learn = learner(weights=weights)
    still = lambda xb, generator: xb  # noqa: E731
    plain = learn.get_preds()[0]
    assert torch.allclose(learn.get_preds(tta=3, augment=still)[0], plain.log_softmax(1), atol=1e-5)
    other = Batches(*bars(7, seed=3), batch_size=4)
    assert learn.get_preds(other, tta=1)[0].shape == (7, 2)


def test_tta_stays_finite_when_the_model_is_certain(weights):
    learn = learner(weights=weights)
    with torch.no_grad(): learn.model.net.fc.weight.mul_(1e4)
    averaged = learn.get_preds(tta=1)[0]
    assert torch.isfinite(averaged).all()


# Precision

def test_a_short_training_measures_nothing_and_stays_in_float32(weights, monkeypatch):
    def measured(*args, **kwargs): raise AssertionError("measured")
    monkeypatch.setattr(vision, "measured_precision", measured)
    learn = learner(weights=weights)
    learn.fine_tune(2, 1e-3)
    assert learn.training_precision is None and learn.precision.name == "float32"


def test_a_long_training_measures_once_and_predicts_in_float32(monkeypatch, capsys):
    calls = []
    def measured(learn, gain):
        print("Precision bf16")
        calls.append(len(next(iter(learn.dls.train))[0]))
        return "bf16"
    monkeypatch.setattr(vision, "measured_precision", measured)
    seen = set()
    class Precision(Callback):
        def after_loss(self, learn): seen.add(learn.precision.name)
        def before_validate(self, learn): seen.add(f"valid {learn.precision.name}")
    learn = learner(image_data(train=40, batch_size=1), weights=None, callbacks=Precision(), arch="squeezenet1_1")
    for _ in range(2): learn.fit(1, 1e-6)
    assert calls == [1] and seen == {"bf16", "valid float32"} and learn.precision.name == "float32"
    assert capsys.readouterr().out == ""
    with torch.no_grad(): assert torch.equal(learn.get_preds(learn.dls.valid)[0][:1], learn.model(next(iter(learn.dls.valid))[0]))


def test_measuring_for_real_leaves_the_learner_as_it_was():
    learn = learner(weights=None)
    before, state = copy.deepcopy(learn.model.state_dict()), torch.get_rng_state()
    assert vision._training_precision(learn).name in ("float32", "bf16", "fp16")
    assert same(before, learn.model.state_dict()) and torch.equal(state, torch.get_rng_state())


def test_a_precision_may_be_chosen():
    assert learner(weights=None, precision="bf16").training_precision.name == "bf16"
    with pytest.raises(ValueError, match="precision is 'half'"): learner(weights=None, precision="half")


# Predicting and saving

@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """One picture on the disk, 40 x 60."""
    path = tmp_path_factory.mktemp("picture") / "one.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def address(picture):
    """The picture's address on a server of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(picture.parent)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/{picture.name}"
    server.shutdown()
    server.server_close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


def test_predict_takes_what_people_have(weights, picture, address, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    learn = learner(weights=weights)
    image = Image.open(picture)
    label, index, probs = learn.predict(picture)
    assert label == learn.dls.vocab[index] and probs.shape == (2,) and torch.isclose(probs.sum(), torch.tensor(1.0))
    for item in (str(picture), image, np.array(image), address, torch.from_numpy(np.array(image)).permute(2, 0, 1)):
        again = learn.predict(item)
        assert again[:2] == (label, index) and torch.equal(again[2], probs), type(item)


@pytest.mark.parametrize("arch", ["resnet18", "convnext_tiny"])
def test_a_saved_learner_predicts_the_same(arch, weights, picture, tmp_path):
    learn = learner(arch=arch, weights=weights if arch == "resnet18" else None)
    learn.fit(1, 1e-3)
    loaded = load_learner(learn.export(tmp_path / "saved.safetensors"))
    assert torch.equal(loaded.predict(picture)[2], learn.predict(picture)[2]) and loaded.predict(picture)[0] == learn.predict(picture)[0]
    assert torch.equal(loaded.get_preds(learn.dls.valid)[0], learn.get_preds()[0])
    assert repr(loaded.model) == repr(learn.model) and type(loaded.model.normalise) is Normalise


def test_a_few_epochs_from_the_bundled_weights_are_enough_for_bars():
    learn = learner(image_data(train=32, valid=16, batch_size=8, shuffle=True))
    learn.fine_tune(2, 2e-3)
    assert learn.history.accuracy.iloc[-1] > 0.9 and accuracy(*learn.get_preds(tta=2)) > 0.9
    assert json.dumps(learn.validate())

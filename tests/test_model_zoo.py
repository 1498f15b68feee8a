"""Lesson 11: what is published, what is measured here, what a stop leaves behind, and what the chart and its sliders say."""
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from threading import Thread

import pandas as pd
import pytest
import torch
from torch import nn

from lessonlib import model_zoo as zoo
from lessonlib.data import Batches, DataLoaders, _data_folder
from lessonlib.learner import Learner, _NoData
from lessonlib.model_zoo import (
    Measurements,
    ModelChoice,
    ModelExplorer,
    Setting,
    add_model,
    measure_models,
    model_table,
    models_picture,
    multiply_adds,
    pareto_front,
    peak_memory,
    plot_models,
    this_machine,
    time_runs,
    typical,
)

COLUMNS = "name family weights top1 top5 params gflops file_mb image_size recipe".split()


@pytest.fixture(scope="module")
def table():
    return model_table()


@pytest.fixture(scope="module")
def recorded():
    return pd.read_csv(_data_folder() / "recorded" / "model_zoo.csv")


@pytest.fixture
def tiny_models(monkeypatch):
    """Every model is a small one, so that a test of the queue takes no time; the names of those that were built."""
    built = []

    def build(name):
        built.append(name)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

    monkeypatch.setattr(zoo, "_build", build)
    return built


def quick(names, **options):
    """A measurement of small pictures, which takes next to nothing."""
    return measure_models(names, **{"batch_size": 2, "repeats": 1, "image_size": 32} | options)


# ---- what is published

def test_the_table_has_these_columns_and_no_other(table):
    assert [*table.columns] == COLUMNS and len(table) >= 80
    assert table.name.is_unique and table.notna().all().all() and not table.name.str.contains("/").any()
    assert table[["top1", "top5"]].stack().between(0.5, 1).all() and (table.top5 > table.top1).all()


def test_every_name_is_one_that_torchvision_knows_with_these_weights(table):
    import torchvision.models

    for row in table.itertuples():
        assert torchvision.models.get_model_weights(row.name)[row.weights].meta["num_params"] == row.params


def test_published_numbers_are_those_of_torchvision(table):
    row = table.set_index("name").loc["resnet18"]
    assert (row.top1, row.top5, row.params, row.gflops, row.file_mb, row.image_size) == (0.69758, 0.89078, 11_689_512, 1.814, 44.661, 224)
    assert table.set_index("name").image_size["inception_v3"] == 299


def test_the_table_builds_no_model_and_opens_no_connection(monkeypatch):
    def refuse(*args, **kwargs): raise AssertionError("not for a table")

    for layer in (nn.Conv2d, nn.Linear, nn.LayerNorm): monkeypatch.setattr(layer, "__init__", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    model_table(every=True)


def test_every_set_of_weights_has_a_row(table):
    every = model_table(every=True)
    assert len(every) > len(table) + 20 and not every.duplicated(["name", "weights"]).any()
    assert [*every[every.name == "resnet50"].weights] == ["IMAGENET1K_V1", "IMAGENET1K_V2"] and every.top1.notna().all()


@pytest.mark.parametrize("name, family", [("wide_resnet50_2", "resnet"), ("resnext50_32x4d", "resnext"), ("timm/resnet50.a1_in1k", "resnet"),
                                          ("mobilenet_v3_small", "mobilenet"), ("timm/tf_efficientnet_b0.in1k", "efficientnet"), ("123", "123")])
def test_family(name, family):
    assert zoo._family(name) == family


# ---- timm

def test_timm_joins_when_it_is_asked_for(table, home):
    both = model_table(timm=True)
    timm_rows = both[both.name.str.startswith("timm/")]
    assert len(timm_rows) > 300 and both.name.is_unique and [*both.columns] == COLUMNS
    assert timm_rows.top1.isna().all() and timm_rows.image_size.gt(0).all()  # it publishes no accuracies in its package
    pd.testing.assert_frame_equal(both[: len(table)].astype(table.dtypes), table)
    measured = quick("timm/resnet10t.c3_in1k", image_size=64)
    assert measured.params.isna().all() and measured.seconds.item() > 0 and measured.family.item() == "resnet"


def test_timms_published_results_fill_the_cells(tmp_path, table):
    file = tmp_path / "results.csv"
    file.write_text("model,img_size,top1,top1_err,top5,top5_err,param_count,crop_pct,interpolation\n"
                    'resnet50.a1_in1k,288,81.2,18.8,95.1,4.9,"1,025.56",1.0,bicubic\nunknown.one,224,1,99,2,98,1,1,bicubic\n', encoding="utf-8")
    row = model_table(timm=file).set_index("name").loc["timm/resnet50.a1_in1k"]
    assert (row.top1, row.top5, row.image_size) == (0.812, 0.951, 288) and row.params == pytest.approx(1025.56e6)
    assert "timm/unknown.one" not in set(model_table(timm=file).name)
    file.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no column 'img_size': expected the results-imagenet.csv"): model_table(timm=file)


def test_without_timm_the_error_says_what_to_install(monkeypatch, table):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert len(model_table()) == len(table)
    for call in (lambda: model_table(timm=True), lambda: measure_models("timm/resnet18.a1_in1k")):
        with pytest.raises(ImportError, match=re.escape('pip install "lessonlib[timm]"')): call()


# ---- names

@pytest.mark.parametrize("name, near", [("resnet19", "resnet18"), ("efficentnet_b0", "efficientnet_b0"),
                                        ("timm/resnet50.a1_in2k", "timm/resnet50.a1_in1k")])
def test_unknown_name_gets_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"unknown model '{name}': did you mean '{near}'"): measure_models([name])


def test_names_are_a_name_a_list_or_rows(table, home, tiny_models):
    assert [*quick("resnet18").name] == ["resnet18"]
    assert [*quick(["vgg11", "alexnet", "vgg11"]).name] == ["vgg11", "alexnet"]  # in the order asked for
    assert [*quick(table[table.family == "swin"]).family.unique()] == ["swin"]
    assert [*quick([]).columns] == [*quick("resnet18").columns]
    with pytest.raises(ValueError, match="expected one with 'name'"): quick(table.drop(columns="name"))
    with pytest.raises(ValueError, match="unknown model 5"): quick([5])


# ---- the clock

def test_typical_is_the_median_without_the_warm_up():
    assert typical([9.0, 1.0, 2.0, 40.0], 1) == 2.0 and typical([4.0], 0) == 4.0
    for seconds, warm_up in (([1.0], 1), ([], 0), ([1.0], -1)):
        with pytest.raises(ValueError, match="at least one has to be left"): typical(seconds, warm_up)


def test_runs_are_counted_and_stop_early():
    calls = []
    assert len(time_runs(lambda: calls.append(1), repeats=4, warm_up=3)) == len(calls) == 7
    assert len(time_runs(lambda: None, repeats=50, warm_up=1, most=0)) == 4  # three repeats at least
    assert len(time_runs(lambda: None, repeats=2, warm_up=1, most=0)) == 3
    ticks = iter(range(100))
    assert time_runs(lambda: None, repeats=3, warm_up=0, clock=lambda: next(ticks) ** 2) == [1, 5, 9]


def test_a_gpu_is_waited_for_before_each_reading(monkeypatch):
    steps = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: steps.append(f"wait for {device}"))
    time_runs(lambda: steps.append("run"), 1, 0, torch.device("cuda:1"), clock=lambda: steps.append("clock") or 0)
    assert steps == ["wait for cuda:1", "clock", "run", "wait for cuda:1", "clock"]


def test_the_second_gpu_is_measured_under_its_own_name(home, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5e9, 9e9))
    settings = []
    monkeypatch.setattr(zoo, "_build", lambda name: None)
    monkeypatch.setattr(zoo, "_measured", lambda model, size, setting, most: settings.append(setting) or {"seconds": 1.0})
    row = quick("resnet18", device="cuda:1").iloc[0]
    assert (row.device, row.machine, settings[0].device) == ("cuda:1", "GPU 1", "cuda:1")
    assert zoo._free_mb(torch.device("cuda:1")) == 5000


@pytest.mark.parametrize("device, problem", [("gpu", "is no device that torch knows"), ("cuda:7", "is not in this machine")])
def test_a_device_that_is_not_here(device, problem, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for call in (this_machine, lambda device: quick("resnet18", device=device)):
        with pytest.raises(ValueError, match=f"device='{device}' {problem}: expected device=\"cpu\""): call(device)


# ---- counting

def test_multiply_adds_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(8, 10))
    assert multiply_adds(model, 16) == 16 * 16 * 8 * 27 + 16 * 16 * 8 * 9 + 80
    assert model.training and model[0].weight.device.type == "cpu"


@pytest.mark.parametrize("name", ["alexnet", "mobilenet_v3_small", "densenet121", "vit_b_32", "shufflenet_v2_x1_0"])
def test_multiply_adds_are_the_published_ones(name, table):
    from torchvision.models import get_model

    with torch.device("meta"): model = get_model(name, weights=None)
    row = table.set_index("name").loc[name]
    assert round(multiply_adds(model, row.image_size) / 1e9, 3) == pytest.approx(row.gflops, abs=0.0011)


def test_peak_memory_by_hand():
    """Three layers of 1000 x 1000: a prediction holds the map that is read and the one that is written; training holds them all."""
    model = nn.Sequential(*[nn.Linear(1000, 1000, bias=False) for _ in range(3)])
    xb = torch.rand(5000, 1000)
    there, one_map = 3 * 4.0 + 20.0, 20.0  # MB: parameters and input; a feature map
    with torch.inference_mode(): predicting = peak_memory(lambda: model(xb), model, xb)
    assert predicting == pytest.approx(there + 2 * one_map, rel=0.01)
    assert peak_memory(lambda: model(xb).sum().backward(), model, xb) > there + 3 * one_map - 0.1


def test_more_pictures_and_larger_models_need_more_memory(home):
    names = ["mobilenet_v3_small", "resnet18"]
    small, large = (quick(names, batch_size=size, image_size=64, cache=False).set_index("name").memory_mb for size in (2, 16))
    assert (large > small).all() and small["resnet18"] > small["mobilenet_v3_small"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak that Linux notes for a process")
def test_peak_memory_agrees_with_what_the_system_says():
    code = """
from pathlib import Path
import torch
from torch import nn
from lessonlib.model_zoo import peak_memory
torch.set_num_threads(1)
model, xb = nn.Sequential(*[nn.ReLU() for _ in range(4)]), torch.rand(1, 1000)
def peak(): return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
with torch.inference_mode(): peak_memory(lambda: model(xb), model, xb)
before = peak()
xb = torch.rand(50_000, 1000)
with torch.inference_mode(): print(peak_memory(lambda: model(xb), model, xb), peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    noted, system = map(float, done.stdout.split())
    assert noted == pytest.approx(600, rel=0.01) and system == pytest.approx(noted, rel=0.15)  # input, the map that is read, and the one written
    assert "profiler" not in done.stderr


# ---- measuring

def test_a_row_says_what_where_and_when(home):
    row = quick(["shufflenet_v2_x0_5"], training=True).iloc[0]
    assert row.seconds_low <= row.seconds <= row.seconds_high and row.images_per_second == pytest.approx(1 / row.seconds)
    assert row.batch_size == 2 and row.batch_images_per_second > 0 and row.training_images_per_second > 0
    assert row.training_memory_mb > row.memory_mb > 4 * row.params / 1e6
    assert {name: row[name] for name in this_machine()} == this_machine() and re.fullmatch(r"\d{4}-\d\d-\d\d", row.date)


def test_training_memory_has_parameters_gradients_and_momentum():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2000, 2000, bias=False))
    row = zoo._measured(model, 20, Setting(batch_size=2, repeats=1, training=True), channels=5)
    assert row["training_memory_mb"] == pytest.approx(3 * 16, abs=1)


def test_published_accuracy_belongs_to_its_size(home, tiny_models):
    assert quick("resnet18").loc[0, ["top1", "top5", "gflops"]].isna().all()
    assert quick("resnet18", image_size=224).top1.item() == 0.69758 == quick("resnet18", image_size=None).top1.item()


def test_models_with_several_answers_can_be_trained():
    assert measure_models("googlenet", batch_size=2, repeats=1, training=True, cache=False, image_size=64).training_images_per_second.item() > 0


def test_what_was_measured_is_not_measured_again(home, tiny_models):
    first = quick(["alexnet", "resnet18"])
    pd.testing.assert_frame_equal(first, quick(["alexnet", "resnet18"]))
    assert tiny_models == ["resnet18", "alexnet"]  # the smallest first, each once
    quick("resnet18", batch_size=3)
    quick("resnet18", repeats=2)
    quick("resnet18", training=True)
    quick("resnet18", image_size=40)
    assert tiny_models[2:] == ["resnet18"] * 4  # each of these is another measurement
    quick("resnet18", cache=False)
    assert len(tiny_models) == 7 and len([*(home / "model_zoo").glob("*.json")]) == 1


def test_another_torch_or_number_of_threads_is_measured_anew(home, tiny_models, monkeypatch):
    quick("resnet18")
    for change in ({"torch": "1.0"}, {"threads": 99}, {"machine": "another"}):
        machine = this_machine() | change
        with monkeypatch.context() as context:
            context.setattr(zoo, "this_machine", lambda device=None, machine=machine: machine)
            quick("resnet18")
    assert len(tiny_models) == 4 and len([*(home / "model_zoo").glob("*.json")]) == 4


def test_a_damaged_file_is_put_aside(home, tiny_models, capsys):
    quick("resnet18")
    file = next((home / "model_zoo").glob("*.json"))
    file.write_text("{half", encoding="utf-8")
    assert len(quick("resnet18")) == 1 and len(tiny_models) == 2
    assert "could not be read" in capsys.readouterr().out and file.with_suffix(".damaged").read_text(encoding="utf-8") == "{half"
    assert len(json.loads(file.read_text(encoding="utf-8"))["rows"]) == 1


@pytest.mark.parametrize("content", ['{"rows": []}', '{"rows": {"a": 1}}', "[]", "{}"])
def test_a_file_of_another_form_is_damaged_too(tmp_path, content, capsys):
    notes = Measurements({"machine": "x"}, tmp_path)
    notes.path.write_text(content, encoding="utf-8")
    assert notes.rows() == {} and notes.path.with_suffix(".damaged").is_file() and "has no 'rows' by name" in capsys.readouterr().out


def test_a_file_that_was_repaired_meanwhile_is_not_renamed(tmp_path, monkeypatch, capsys):
    notes, other = (Measurements({"machine": "x"}, tmp_path) for _ in range(2))
    notes.path.write_text("{half", encoding="utf-8")
    locked = zoo._locked

    def slowly(path):
        monkeypatch.setattr(zoo, "_locked", locked)
        other.keep("a", {"seconds": 1})  # puts the damaged file aside, while the first one waits
        return locked(path)

    monkeypatch.setattr(zoo, "_locked", slowly)
    assert notes.rows() == {"a": {"seconds": 1}} and notes.path.is_file() and capsys.readouterr().out.count("renamed") == 1


def test_where_nothing_can_be_written_the_rows_stay_in_memory(tmp_path, tiny_models, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    found = quick(["alexnet", "resnet18"], cache=tmp_path / "file" / "folder")
    said = capsys.readouterr().out
    assert [*found.name] == ["alexnet", "resnet18"] and said.count("cannot be written") == 1 and "or cache=False" in said
    notes = Measurements({"machine": "x"}, tmp_path / "file")
    notes.keep("a", {"seconds": 1})
    assert notes.rows() == {"a": {"seconds": 1}}


def test_several_writers_lose_nothing(tmp_path):
    writers = [Thread(target=Measurements({"machine": "x"}, tmp_path).keep, args=(str(number), {"seconds": number})) for number in range(8)]
    for writer in writers: writer.start()
    for writer in writers: writer.join()
    assert len(Measurements({"machine": "x"}, tmp_path).rows()) == 8 and not [*tmp_path.glob("*.tmp")]


def test_a_model_that_cannot_is_reported_and_the_others_go_on(home, capsys):
    found = quick(["vit_b_32", "shufflenet_v2_x0_5"])
    assert [*found.name] == ["shufflenet_v2_x0_5"] and "Wrong image height" in found.attrs["left_out"]["vit_b_32"]
    assert "left out, " in capsys.readouterr().out


def test_a_model_that_does_not_fit_into_memory_is_not_begun(home, tiny_models, monkeypatch):
    monkeypatch.setattr(zoo, "_free_mb", lambda device: 300)
    found = quick(["vgg11", "resnet18"])
    assert tiny_models == ["resnet18"] and "needs about 1063 MB of memory, and 300 are free" in found.attrs["left_out"]["vgg11"]


@pytest.mark.parametrize("training", [False, True])
def test_a_batch_that_does_not_fit_is_not_begun(home, tiny_models, monkeypatch, training):
    "Nearly all that the tiny model needs are feature maps: with ten times as many images ten times as much."
    monkeypatch.setattr(zoo, "_free_mb", lambda device: 100)
    options = {"image_size": 256, "cache": False, "training": training}
    fits = quick("shufflenet_v2_x0_5", batch_size=10, **options).memory_mb.item()
    left_out = quick("shufflenet_v2_x0_5", batch_size=100, **options).attrs["left_out"]
    [needed] = re.findall(r"a batch of 100 needs about (\d+) MB, 100 are free: try a smaller batch_size", left_out["shufflenet_v2_x0_5"])
    assert fits < 100 and int(needed) == pytest.approx(10 * fits, rel=0.1)


def test_a_problem_without_words_is_reported(home, monkeypatch):
    def fail(name): raise RuntimeError

    monkeypatch.setattr(zoo, "_build", fail)
    assert quick("resnet18").attrs["left_out"] == {"resnet18": "RuntimeError"}


def test_a_measurement_that_its_budget_cut_short_is_done_again(home, tiny_models, monkeypatch):
    cut = {"repeats": 3, "most": 4.0}
    measured, given = zoo._measured, [cut, {"repeats": 5, "most": 30}, cut | {"most": 30}]
    monkeypatch.setattr(zoo, "_measured", lambda *args, **options: measured(*args, **options) | given.pop(0))
    assert quick("resnet18", repeats=5).repeats.item() == 3
    assert quick("resnet18", repeats=5).repeats.item() == quick("resnet18", repeats=5).repeats.item() == 5
    assert len(tiny_models) == 2
    assert [quick("resnet18", repeats=4).repeats.item() for _ in range(2)] == [3, 3] and len(tiny_models) == 3  # took the most there is


def test_a_row_says_how_many_repeats_were_done(home, tiny_models):
    row = quick("resnet18", repeats=4, clock="process_time").iloc[0]
    assert (row.repeats, row.clock) == (4, "process_time")
    setting = Setting(batch_size=1, repeats=9)
    assert zoo._measured(zoo._build("x"), 32, setting, most=0)["repeats"] == 3


def test_the_budget_is_kept_and_says_what_is_left_out(home, monkeypatch, capsys):
    def slow(name):
        time.sleep(0.2)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))

    monkeypatch.setattr(zoo, "_build", slow)
    begin = time.perf_counter()
    found = quick(["mnasnet0_5", "mnasnet0_75", "vgg19", "resnet152"], budget=1.5)
    assert time.perf_counter() - begin < 8 and "mnasnet0_5" in set(found.name)
    assert set(found.attrs["left_out"]) >= {"vgg19", "resnet152"}  # they would take some hundred times as long
    assert re.search(r"left out, would take about \d+ s: .*vgg19", capsys.readouterr().out)
    nothing = quick("alexnet", budget=0)
    assert len(nothing) == 0 and nothing.attrs["left_out"] == {"alexnet": "the budget of 0 s is spent"}


@pytest.mark.parametrize("options, problem", [({"batch_size": 0}, "batch_size=0: expected at least 1"), ({"repeats": 0}, "repeats=0"),
                                              ({"batch_size": 1, "training": True}, "expected at least 2"), ({"budget": -1}, "budget=-1"),
                                              ({"budget": math.nan}, "budget=nan"), ({"image_size": 0}, "image_size=0"),
                                              ({"clock": "sun"}, "clock='sun'")])
def test_numbers_that_cannot_be(options, problem, home):
    with pytest.raises(ValueError, match=problem): quick("resnet18", **options)


@pytest.mark.parametrize("options", [{"batch_size": 2.5}, {"repeats": True}, {"image_size": "224"}])
def test_kinds_that_cannot_be(options, home):
    with pytest.raises(TypeError, match="expected"): quick("resnet18", **options)


# ---- stopping

CHILD = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may have been told to ignore it
from lessonlib.model_zoo import measure_models
names = ["shufflenet_v2_x0_5", "mobilenet_v3_small", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vgg19"]
found = measure_models(names, batch_size=2, repeats=1, image_size=64)
print("\\nRESULT", len(found), len(found.attrs["left_out"]), [*found.attrs["left_out"].values()][-1:])
"""


def stopped(home, how):
    """Start a measurement in a process of its own, stop it when the second row is on the disk; what it printed, and the rows."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", CHILD], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while time.monotonic() < until and child.poll() is None:
        files = [*(home / "model_zoo").glob("*.json")]
        if files and len(json.loads(files[0].read_text(encoding="utf-8"))["rows"]) >= 2: break
        time.sleep(0.01)
    child.send_signal(how)
    out, err = child.communicate(timeout=60)
    file = next((home / "model_zoo").glob("*.json"))
    return child.returncode, out + err, json.loads(file.read_text(encoding="utf-8"))["rows"]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX systems")
def test_ctrl_c_gives_back_what_was_measured(home):
    code, said, rows = stopped(home, signal.SIGINT)
    found = re.search(r"RESULT (\d+) (\d+) \['interrupted'\]", said)
    assert code == 0 and found, said
    assert 2 <= len(rows) <= int(found[1]) <= len(rows) + 1  # the signal may come between measuring a model and writing it down
    assert int(found[1]) + int(found[2]) == 8 and "left out, interrupted:" in said


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX systems")
def test_a_killed_process_leaves_whole_rows_and_the_next_goes_on(home, tiny_models, monkeypatch):
    code, _, rows = stopped(home, signal.SIGKILL)
    assert code == -signal.SIGKILL and 2 <= len(rows) < 8
    machine = json.loads(next((home / "model_zoo").glob("*.json")).read_text(encoding="utf-8"))["machine"]
    monkeypatch.setattr(zoo, "this_machine", lambda device=None: machine)
    names = ["shufflenet_v2_x0_5", "mobilenet_v3_small", "alexnet"]
    assert len(quick(names, image_size=64)) == 3 and tiny_models == ["alexnet"]


def test_an_interruption_between_two_models(home, monkeypatch, tiny_models):
    build = zoo._build

    def interrupted(name):
        if name == "resnet34": raise KeyboardInterrupt
        return build(name)

    monkeypatch.setattr(zoo, "_build", interrupted)
    found = quick(["resnet50", "resnet34", "resnet18"])
    assert [*found.name] == ["resnet18"] and found.attrs["left_out"] == {"resnet34": "interrupted", "resnet50": "interrupted"}
    monkeypatch.setattr(zoo, "_build", build)
    assert len(quick(["resnet50", "resnet34", "resnet18"])) == 3 and tiny_models.count("resnet18") == 1


# ---- your own model

@pytest.fixture(scope="module")
def measured():
    return pd.DataFrame([{"name": "A", "family": "a", "weights": "W", "top1": 0.66, "top5": 0.9, "params": 1e6, "gflops": 0.1, "image_size": 224,
                          "seconds": 0.005, "batch_size": 2, "memory_mb": 10.0, **this_machine("cpu"), "date": "2026-01-01"}])


def test_a_module_joins_and_stays_as_it_is(measured):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    both = add_model(measured.assign(training_memory_mb=20.0), model, "mine", 0.97, image_size=28, channels=1)
    row = both.iloc[-1]
    assert (row["name"], row.family, row.top1, row.image_size) == ("mine", "yours", 0.97, 28) and row.training_memory_mb > 0
    assert row.params == sum(param.numel() for param in model.parameters()) and row.gflops == round((26 * 26 * 4 * 9 + 4 * 26 * 26 * 10) / 1e9, 3)
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert len(measured) == 1 and [*both.columns[:-1]] == [*measured.columns]


def test_a_learner_knows_its_size(measured):
    batches = Batches(torch.rand(8, 3, 20, 20), torch.zeros(8, dtype=torch.long), batch_size=4)
    learn = Learner(DataLoaders(batches, batches), nn.Sequential(nn.Flatten(), nn.Linear(1200, 2)), nn.functional.cross_entropy)
    both = add_model(measured, learn, "mine")
    assert both.image_size.iloc[-1] == 20 and math.isnan(both.top1.iloc[-1]) and both.batch_size.iloc[-1] == 2
    flat = Batches(torch.rand(8, 1200), torch.zeros(8, dtype=torch.long), batch_size=4)
    with pytest.raises(ValueError, match="expected square images"):
        add_model(measured, Learner(DataLoaders(flat, flat), nn.Linear(1200, 2), nn.functional.cross_entropy), "mine")


def test_a_loaded_learner_without_data_knows_the_size_from_its_file(measured):
    def loaded(preprocessing): return Learner(_NoData(None, preprocessing), nn.Sequential(nn.Flatten(), nn.Linear(1200, 2)), None)

    assert add_model(measured, loaded({"kind": "image", "size": 20, "resize": "crop"}), "mine").image_size.iloc[-1] == 20
    with pytest.raises(ValueError, match="image_size is missing: the learner was loaded without data"): add_model(measured, loaded(None), "mine")
    assert add_model(measured, loaded(None), "mine", image_size=20).image_size.iloc[-1] == 20


def test_an_own_model_is_measured_as_the_table_was(measured, capsys):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    both = add_model(measured.assign(clock="process_time", repeats=7), model, "mine", image_size=8)
    assert (both.clock.iloc[-1], both.repeats.iloc[-1]) == ("process_time", 7) and not capsys.readouterr().out
    assert [*add_model(measured, model, "mine", image_size=8).columns] == [*measured.columns]
    assert "does not say with which clock and how many repeats it was measured; here perf_counter, 5 repeats" in capsys.readouterr().out
    assert len(add_model(measured[:0], model, "mine", image_size=8)) == 1 and not capsys.readouterr().out


def test_a_table_of_a_gpu_that_is_not_here(measured, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    elsewhere, model = measured.assign(device="cuda"), nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    with pytest.raises(ValueError, match="to measure your model on the processor, add device=\"cpu\". device='cuda' is not in this machine"):
        add_model(elsewhere, model, "mine", image_size=8)
    with pytest.raises(ValueError, match="^device='gpu' is no device"): add_model(elsewhere, model, "mine", image_size=8, device="gpu")
    assert add_model(elsewhere, model, "mine", image_size=8, device="cpu").device.iloc[-1] == "cpu"


def test_own_models_with_wrong_input(measured, table):
    model = nn.Flatten()
    with pytest.raises(ValueError, match="already"): add_model(measured, model, "A", image_size=8)
    with pytest.raises(ValueError, match="top1=97: expected an accuracy from 0 to 1, such as 0.97"): add_model(measured, model, "B", 97, image_size=8)
    with pytest.raises(ValueError, match="image_size is missing"): add_model(measured, model, "B")
    with pytest.raises(ValueError, match="no column 'seconds'"): add_model(table, model, "B", image_size=8)


def test_another_machine_is_said(measured, capsys):
    add_model(measured.assign(machine="another one"), nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), "mine", image_size=8)
    assert "measured with machine another one" in capsys.readouterr().out


# ---- the front

def test_the_front_is_what_no_other_beats():
    rng = random.Random(0)
    for _ in range(50):
        seconds, top1 = ([rng.randint(1, 6) for _ in range(8)] for _ in range(2))
        rows = pd.DataFrame({"name": [*"abcdefgh"], "seconds": seconds, "top1": top1})
        def beaten(row, rows=rows):
            return ((rows.seconds <= row.seconds) & (rows.top1 >= row.top1) & ((rows.seconds < row.seconds) | (rows.top1 > row.top1))).any()
        expected = {(row.seconds, row.top1) for row in rows.itertuples() if not beaten(row)}
        front = pareto_front(rows)
        assert {*zip(front.seconds, front.top1)} == expected and len(front) == len(expected) and front.seconds.is_monotonic_increasing


def test_the_front_leaves_unknown_numbers_out():
    rows = pd.DataFrame({"name": [*"abc"], "seconds": [1.0, math.nan, 3.0], "top1": [0.5, 0.9, math.nan]})
    assert [*pareto_front(rows).name] == ["a"] and len(pareto_front(rows[:0])) == 0


def test_equal_rows_and_a_repeated_index():
    rows = pd.DataFrame({"name": [*"abcd"], "seconds": [1.0, 1.0, 2.0, 3.0], "top1": [0.5, 0.5, 0.4, 0.9]}, index=[0, 1, 0, 0])
    assert [*pareto_front(rows).name] == ["a", "d"]


# ---- the chart

def traces(figure, **wanted):
    return [trace for trace in figure.data if all(getattr(trace, name) == value for name, value in wanted.items())]


def test_a_table_is_drawn_by_operations_and_a_measurement_by_seconds(table, recorded):
    for rows, column in ((table, "gflops"), (recorded, "seconds")):
        figure = plot_models(rows)
        drawn = sorted(float(x) for trace in traces(figure, mode="markers") if trace.legendgroup for x in trace.x)
        assert drawn == pytest.approx(sorted(rows[column])) and figure.layout.xaxis.type == "log"
        assert len(set(rows.family)) == len({trace.legendgroup for trace in traces(figure, mode="markers") if trace.legendgroup})
        [line] = traces(figure, name="Pareto front")
        assert [*line.x] == pytest.approx([*pareto_front(rows, column)[column]])


def test_details_sizes_colours_and_trends(table):
    figure = plot_models(table)
    [dots], trend = traces(figure, name="regnet"), traces(figure, name="regnet, trend")
    assert len(trend) == 1 and trend[0].y[1] > trend[0].y[0] and not traces(figure, name="alexnet, trend")
    assert {"circle", "diamond"} == {*dots.marker.symbol} and dots.marker.color == trend[0].line.color
    assert any("<b>regnet_y_8gf</b><br>top-1 82.8%<br>39,381,472 parameters<br>8.47 GFLOPs<br>224 px" == text for text in dots.text)
    assert len({trace.marker.color for trace in traces(figure, mode="markers") if trace.legendgroup}) == table.family.nunique()


def test_the_second_chart_has_no_front(recorded):
    figure = plot_models(recorded, y="params")
    assert figure.layout.yaxis.type == "log" and not traces(figure, name="Pareto front")
    assert "parameters" in models_picture(recorded, y="params").axes[0].get_ylabel()


def test_both_drawings_show_the_same(recorded):
    axes = models_picture(recorded, marks={"first": "resnet18"}).axes[0]
    dots = sorted(x for line in axes.lines if line.get_linestyle() == "None" and line.get_markersize() < 12 for x in line.get_xdata())
    assert dots == pytest.approx(sorted(recorded.seconds))
    [step] = [line for line in axes.lines if line.get_label() == "Pareto front"]
    assert [*step.get_xdata()] == pytest.approx([*pareto_front(recorded).seconds])
    assert [line.get_xdata()[0] for line in axes.lines if line.get_label() == "first"] == [recorded.set_index("name").seconds["resnet18"]]


def test_names_stand_at_their_own_points_and_not_across_the_axis(recorded):
    every = pd.concat([recorded, recorded.assign(top1=recorded.top1 - 0.1, seconds=recorded.seconds * 1.5)], ignore_index=True)
    axes = models_picture(every, marks={"first": "resnet18"}).axes[0]
    written = {text.get_text(): (text.xy, text.get_ha()) for text in axes.texts}
    front = pareto_front(recorded).set_index("name")
    assert len(written) > 8 and all(place == pytest.approx((front.seconds[name], front.top1[name])) for name, (place, _) in written.items())
    sides = [side for _, side in written.values()]
    assert sides.count("left") == 1 and written[front.index[0]][1] == "left"
    [ring] = [line for line in axes.lines if line.get_label() == "first"]
    assert [*ring.get_ydata()] == [recorded.set_index("name").top1["resnet18"]]


def test_charts_with_wrong_input(table, monkeypatch):
    with pytest.raises(ValueError, match="no column 'seconds'"): plot_models(table, x="seconds")
    with pytest.raises(ValueError, match="nothing to draw"): plot_models(table.assign(top1=math.nan))
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ImportError, match=re.escape('pip install "lessonlib[course]"')): plot_models(table)
    models_picture(table)  # needs no plotly


# ---- what the sliders ask

ROWS = pd.DataFrame({"name": [*"ABCDE"], "family": [*"xxyyy"], "seconds": [0.005, 0.012, 0.014, 0.040, 0.060], "top1": [0.66, 0.70, 0.69, 0.81, 0.79],
                     "image_size": 224, "params": 1e6})


def test_the_fastest_that_is_good_enough_and_the_best_that_is_fast_enough():
    choice = ModelChoice(ROWS)
    assert (choice.fastest["name"], choice.best["name"]) == ("A", "D")
    choice.set(least=0.69, most=0.014)
    assert (choice.fastest["name"], choice.best["name"]) == ("B", "B")
    choice.set(["y"])
    assert (choice.fastest["name"], choice.best["name"]) == ("C", "C") and [*choice.shown.name] == ["C", "D", "E"]
    choice.set(least=0.9, most=0.001)
    assert choice.fastest is None and choice.best is None and choice.text.count("none of these") == 2


def test_of_equals_the_better_and_the_faster():
    rows = ROWS.assign(seconds=0.01)
    assert ModelChoice(rows).fastest["name"] == "D"
    assert ModelChoice(ROWS.assign(top1=0.7)).best["name"] == "A"


def test_the_text_says_it_all():
    text = ModelChoice(ROWS).set(["x", "y"], 0.7, 0.05).text
    assert text == ("5 models of all families; on the Pareto front: A, B, D. The fastest with at least 70%: B (70.0%, 12 ms). "
                    "The best within 50 ms: D (81.0%, 40 ms).")
    assert "The cheapest with at least 0%: A (66.0%, 0.005 GFLOPs)" in ModelChoice(ROWS.rename(columns={"seconds": "gflops"})).text


OWN = pd.DataFrame({"name": ["mine"], "family": ["yours"], "seconds": [0.001], "top1": [0.99], "image_size": 64, "params": 1e6})


def test_your_own_model_is_shown_and_is_never_the_answer():
    choice = ModelChoice(pd.concat([ROWS, OWN]))
    assert "mine" in set(choice.shown.name) and (choice.fastest["name"], choice.best["name"]) == ("A", "D")
    assert choice.text.startswith("6 models of all families; on the Pareto front: A, B, D.")
    assert choice.set(["yours"]).fastest is None and "on the Pareto front: none." in choice.text
    explorer = ModelExplorer(pd.concat([ROWS, OWN]))
    assert [*explorer._marks().values()] == ["B", "D"]
    [line] = traces(explorer.figure, name="Pareto front")
    assert [*line.x] == [0.005, 0.012, 0.040]


def test_a_name_with_several_sets_of_weights_counts_once_with_the_best():
    every = model_table(every=True)
    choice, best = ModelChoice(every), every.groupby("name").top1.max()
    assert choice.table.name.is_unique and (choice.table.set_index("name").top1 == best).all() and len(choice.table) < len(every)
    explorer = ModelExplorer(every)
    explorer.controls["family"].value = "resnet"
    assert all(len(ring.x) == 1 and isinstance(ring.x[0], float) for ring in explorer.figure.data[-2:])
    assert "models of resnet" in explorer._static()._repr_mimebundle_()[0]["text/plain"]


@pytest.mark.parametrize("wrong, problem", [({"families": ["z"]}, "unknown family 'z': did you mean"), ({"families": []}, "at least one family"),
                                            ({"least": 70}, "such as 0.7"), ({"most": 0}, "above 0")])
def test_a_wrong_wish_changes_nothing(wrong, problem):
    choice = ModelChoice(ROWS).set(["x"], 0.5, 0.02)
    with pytest.raises(ValueError, match=problem): choice.set(**{"families": ["y"], "least": 0.1, "most": 9.0} | wrong)
    assert (choice.families, choice.least, choice.most) == (["x"], 0.5, 0.02)


# ---- the widget

def test_the_widget_follows_its_controls():
    explorer = ModelExplorer(ROWS, at_least=70, at_most="20 ms")
    assert explorer.view.scene["text"] == explorer.choice.text and "B (70.0%, 12 ms)" in explorer.choice.text
    explorer.controls["family"].value = "y"
    dots = {trace.name: trace.visible for trace in explorer.figure.data if trace.legendgroup and trace.mode == "markers"}
    assert dots == {"x": False, "y": True} and explorer.choice.families == ["y"]
    explorer.controls["and_family"].value = "x"
    assert explorer.choice.families == ["x", "y"]
    explorer.controls["at_least_percent"].value = 80
    fastest, best = explorer.figure.data[-2:]
    assert (*fastest.x, *best.x) == (0.040, 0.012) and fastest.name == "fastest with at least 80%"
    explorer.controls["at_most"].value = "7 ms"
    assert explorer.choice.best["name"] == "A" and not explorer.view.problem
    explorer.controls["at_most"].value = "any"
    assert explorer.choice.most == math.inf


def test_the_answer_that_does_not_exist_has_no_ring():
    explorer = ModelExplorer(ROWS)
    explorer.controls["family"].value = "x"
    explorer.controls["at_least_percent"].value = 80
    assert explorer.choice.fastest is None
    visible = [trace.name for trace in explorer.figure.data[-2:] if trace.visible]
    assert visible == ["best within any cost"] and "none of these" in explorer.view.scene["text"]


def test_the_still_picture_shows_the_choice():
    explorer = ModelExplorer(ROWS)
    explorer.controls["family"].value = "x"
    content, size = explorer._static()._repr_mimebundle_()
    assert content["image/png"][:4] == b"\x89PNG" and len(content["image/png"]) < 150_000 and size["image/png"]["width"] == 960
    assert "2 models of x" in content["text/plain"] and "family = x" in content["text/plain"]
    with pytest.raises(ValueError, match="at_most='8 ms': expected one of"): ModelExplorer(ROWS, at_most="8 ms")


def test_the_second_chart_has_rings_at_its_own_heights():
    explorer = ModelExplorer(ROWS.assign(params=[1e6, 2e6, 3e6, 4e6, 5e6]), y="params")
    assert [*explorer.figure.data[-1].y] == [4e6]


# ---- what was recorded

def test_the_recording_fits_the_table(recorded, table):
    assert len(recorded) >= 30 and recorded.name.is_unique and set(recorded.family) == set(table.family)
    both = recorded.merge(table, on="name", suffixes=("", "_published"))
    assert len(both) == len(recorded) and (both.params == both.params_published).all() and (both.image_size == both.image_size_published).all()
    assert recorded[["machine", "threads", "torch", "date", "device"]].drop_duplicates(["machine", "threads", "torch"]).shape[0] == 1
    assert (recorded.memory_mb > 4 * recorded.params / 1e6).all() and (recorded.seconds_low <= recorded.seconds).all()

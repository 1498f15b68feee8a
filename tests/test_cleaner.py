"""The cleaning plan: nothing decided is lost, nothing deleted is gone, nothing outside the folder is touched."""
import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import unicodedata
import warnings
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lessonlib.cleaner import CleaningPlan, Decision, _free_name

STATE = ".lessonlib"
LOG = f"{STATE}/cleaning.jsonl"


def make(folder, *names):
    """A data set of small files, each with bytes of its own."""
    for name in names or ("cat/0.png", "cat/1.png", "cat/2.png", "dog/0.png", "dog/1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"bytes of {name} in the beginning".encode())
    return folder


def tree(folder, trash=True):
    """The data set's files: name -> checksum. What the plan writes for itself does not count, its trash does."""
    names = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    found = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in names}
    own = {name for name in found if name.startswith(STATE) and not (trash and name.startswith(f"{STATE}/trash/"))}
    return {name: digest for name, digest in found.items() if name not in own}


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "data")


@pytest.fixture
def plan(folder):
    return CleaningPlan(folder)


def python(code, *arguments, check=True, **options):
    result = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, **options)
    assert result.returncode == 0 or not check, result.stderr
    return result


def quietly(folder, **options):
    """A plan, whatever it warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CleaningPlan(folder, **options)


# ---- Decisions

def test_decisions_move_nothing_and_are_previewed(folder, plan):
    before = tree(folder)
    plan.delete(folder / "cat/0.png")
    plan.relabel("cat/1.png", "dog")
    plan.keep("cat/2.png")
    assert plan.decisions == {"cat/0.png": Decision("delete"), "cat/1.png": Decision("relabel", "dog"), "cat/2.png": Decision("keep")}
    assert plan.preview().to_dict("records") == [
        {"path": "cat/0.png", "action": "delete", "label": "cat", "new_label": "", "target": f"{STATE}/trash/1/cat/0.png"},
        {"path": "cat/1.png", "action": "relabel", "label": "cat", "new_label": "dog", "target": "dog/1-2.png"}]
    assert tree(folder) == before


def test_the_last_decision_counts(plan):
    plan.delete("cat/0.png")
    plan.relabel("cat/0.png", "dog")
    assert plan.decisions == {"cat/0.png": Decision("relabel", "dog")}
    plan.relabel("cat/0.png", "cat")
    assert plan.decisions == {"cat/0.png": Decision("keep")} and plan.preview().empty


def test_undo_and_redo(plan):
    assert plan.undo() is None and plan.redo() is None
    plan.delete("cat/0.png")
    plan.keep("cat/0.png")
    plan.keep("cat/0.png")  # nothing new: no second step for undo
    plan.delete("dog/0.png")
    assert [plan.undo(), plan.undo()] == ["dog/0.png", "cat/0.png"] and plan.decisions == {"cat/0.png": Decision("delete")}
    assert plan.redo() == "cat/0.png" and plan.decisions == {"cat/0.png": Decision("keep")}
    plan.delete("cat/1.png")
    assert plan.redo() is None, "a new decision ends what can be redone"
    assert [plan.undo(), plan.undo(), plan.undo(), plan.undo()] == ["cat/1.png", "cat/0.png", "cat/0.png", None] and plan.decisions == {}


def test_a_killed_kernel_loses_nothing(folder):
    code = """
import os, signal, sys
from lessonlib.cleaner import CleaningPlan
plan = CleaningPlan(sys.argv[1])
plan.delete("cat/0.png"); plan.keep("cat/1.png"); plan.relabel("cat/2.png", "dog"); plan.undo()
os.kill(os.getpid(), signal.SIGKILL)"""
    assert python(code, folder, check=False).returncode == -signal.SIGKILL
    plan = CleaningPlan(folder)
    assert plan.decisions == {"cat/0.png": Decision("delete"), "cat/1.png": Decision("keep")}
    assert plan.redo() == "cat/2.png" and plan.undo() == "cat/2.png" and plan.undo() == "cat/1.png"


def test_a_log_broken_off_anywhere_is_a_shorter_log(folder):
    plan = CleaningPlan(folder)
    for name in ("cat/0.png", "cat/1.png", "cat/2.png"): plan.delete(name)
    del plan
    whole = (folder / LOG).read_bytes()
    for size in (*range(0, len(whole), 29), len(whole) - 1, len(whole)):
        (folder / LOG).write_bytes(whole[:size])
        plan = CleaningPlan(folder)
        assert len(plan.decisions) == whole[:size].count(b"\n")
        plan.keep("dog/0.png")
        assert len(plan.decisions) == whole[:size].count(b"\n") + 1
        del plan


def test_relative_paths_begin_here_or_in_the_folder(folder, plan, monkeypatch):
    monkeypatch.chdir(folder.parent)
    plan.keep("data/cat/0.png")
    plan.keep("cat/1.png")
    monkeypatch.chdir(folder / "cat")
    plan.keep("2.png")
    plan.keep(folder / "cat" / ".." / "dog" / "0.png")
    assert list(plan.decisions) == ["cat/0.png", "cat/1.png", "cat/2.png", "dog/0.png"]


@pytest.mark.parametrize("path", ["../outside.png", "cat/../../outside.png", "{outside}", "/etc/hostname", "cat", ".", "", "link.png", LOG,
                                  "links/outside.png", "dangling.png", "loop/0.png"])
def test_paths_that_are_refused(folder, plan, path):
    outside = make(folder.parent, "outside.png") / "outside.png"
    (folder / "link.png").symlink_to(outside)
    (folder / "links").symlink_to(folder.parent)
    (folder / "dangling.png").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    for decide in (plan.keep, plan.delete, lambda path: plan.relabel(path, "dog")):
        with pytest.raises(FileNotFoundError if "loop" in path else ValueError, match="expected|loop"): decide(path.format(outside=outside))
    assert plan.decisions == {} and plan.classes == ["cat", "dog"] and outside.exists()


def test_a_missing_file_is_named(plan):
    with pytest.raises(FileNotFoundError, match="cat/9.png"): plan.delete("cat/9.png")
    with pytest.raises(TypeError): plan.delete(None)


@pytest.mark.parametrize("label", ["", " dog", "dog ", "a/b", "a\\b", "..", ".", ".hidden", "a\nb", "a\0b", "a\x7f", "x" * 201, "\u2028a"])
def test_labels_that_are_refused(plan, label):
    with pytest.raises(ValueError, match="label"): plan.relabel("cat/0.png", label, new=True)
    assert plan.decisions == {}


def test_unknown_labels_need_new(folder, plan):
    with pytest.raises(ValueError, match="did you mean 'dog'.*new=True"): plan.relabel("cat/0.png", "dgo")
    with pytest.raises(TypeError, match="try str"): plan.relabel("cat/0.png", 3)
    plan.relabel("cat/0.png", "rabbit", new=True)
    plan.relabel("cat/1.png", "rabbit")  # known by now
    assert plan.classes == ["cat", "dog", "rabbit"] and not (folder / "rabbit").exists()


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the folder"): CleaningPlan(tmp_path / "nothing")


# ---- Apply and restore

def decide_everything(plan):
    plan.delete("cat/0.png")
    plan.relabel("cat/1.png", "dog")  # dog has a 1.png
    plan.relabel("cat/2.png", "rabbit", new=True)
    plan.delete("dog/0.png")
    plan.keep("dog/1.png")


def test_apply_and_restore_byte_for_byte(folder, plan):
    before, moved = tree(folder), folder / "dog/1-2.png"
    decide_everything(plan)
    preview = plan.preview()
    assert plan.apply().equals(preview)
    assert set(tree(folder, trash=False)) == {"dog/1.png", "dog/1-2.png", "rabbit/2.png"}
    assert sorted(tree(folder).values()) == sorted(before.values()) and tree(folder)["dog/1-2.png"] == before["cat/1.png"]
    assert plan.decisions == {"dog/1.png": Decision("keep")} and plan.preview().empty and plan.undo() == "dog/1.png" and plan.undo() is None
    assert {path.name for path in (folder / STATE / "trash").rglob("*.png")} == {"0.png"}, "trashed files keep name and suffix"
    assert plan.restore(moved).to_dict("records") == [{"path": "dog/1-2.png", "target": "cat/1.png"}]
    plan.restore()
    assert tree(folder) == before and plan.applied().empty and plan.decisions == {}
    assert sorted(path.name for path in folder.iterdir()) == [STATE, "cat", "dog"], "a folder that apply made goes away again"
    assert plan.restore().empty


def test_trash_of_the_same_name_twice(folder, plan):
    for content in (b"first", b"second"):
        (folder / "cat/0.png").write_bytes(content)
        plan.delete("cat/0.png")
        plan.apply()
    assert plan.restore("cat/0.png").target.tolist() == ["cat/0.png"] and (folder / "cat/0.png").read_bytes() == b"second"
    assert plan.restore("cat/0.png").target.tolist() == ["cat/0-2.png"] and (folder / "cat/0-2.png").read_bytes() == b"first"


def test_a_file_moved_twice_goes_back_step_by_step_or_at_once(folder, plan):
    before = tree(folder)
    for _ in range(2):
        plan.relabel("cat/0.png", "rabbit", new=True)
        plan.apply()
        plan.delete("rabbit/0.png")
        plan.apply()
        assert plan.restore("cat/0.png").target.tolist() == ["rabbit/0.png", "cat/0.png"] and tree(folder) == before
    plan.relabel("cat/0.png", "dog")
    plan.apply()
    plan.delete("dog/0-2.png")
    plan.apply()
    assert plan.restore("dog/0-2.png").target.tolist() == ["dog/0-2.png"] and plan.applied().path.tolist() == ["cat/0.png"]
    plan.restore()
    assert tree(folder) == before
    with pytest.raises(ValueError, match="applied"): plan.restore("cat/0.png")


def test_files_that_changed_places(folder, plan):
    """A name that one file has left is taken by another one: undone in the opposite order, all come home."""
    before = tree(folder)
    plan.delete("cat/0.png")
    plan.apply()
    plan.relabel("dog/0.png", "cat")
    plan.apply()
    plan.relabel("cat/0.png", "dog")
    plan.apply()
    plan.relabel("dog/0.png", "cat")
    plan.apply()
    assert tree(folder)["cat/0.png"] == before["dog/0.png"]
    plan.restore()
    assert tree(folder) == before


def test_a_place_taken_meanwhile(folder, plan):
    before = tree(folder)
    plan.relabel("cat/0.png", "rabbit", new=True)
    plan.apply()
    plan.delete("rabbit/0.png")
    plan.apply()
    make(folder, "rabbit/0.png")
    taken = tree(folder)["rabbit/0.png"]
    assert plan.restore("rabbit/0.png").target.tolist() == ["rabbit/0-2.png"]
    make(folder, "cat/0.PNG")
    plan.restore()
    assert tree(folder) == {**{name: digest for name, digest in before.items() if name != "cat/0.png"}, "rabbit/0.png": taken,
                            "cat/0.PNG": tree(folder)["cat/0.PNG"], "cat/0-2.png": before["cat/0.png"]}


def test_names_equal_on_some_disks_are_equal_here(folder):
    composed, apart = unicodedata.normalize("NFC", "dog/é.png"), unicodedata.normalize("NFD", "dog/é.png")
    make(folder, composed, "dog/Big.PNG", "cat/big.png", "cat/big-2.png")
    assert _free_name(folder, apart, {}) != apart
    plan = CleaningPlan(folder)
    for name in ("cat/big.png", "cat/big-2.png"): plan.relabel(name, "dog")
    assert plan.preview().target.tolist() == ["dog/big-2.png", "dog/big-3.png"] or plan.preview().target.nunique() == 2
    before = tree(folder)
    plan.apply()
    assert len({unicodedata.normalize("NFC", name).casefold() for name in tree(folder)}) == len(before)
    plan.restore()
    assert tree(folder) == before


NAMES = ["cat/ünï.png", "cat/猫 🐈.jpg", "cat/e\u0301.png", "cat/line\u2028break.png", "cat/new\nline.png", "cat/.hidden.png", "cat/no suffix",
         "cat/a'b\"c%20{}.png", "cat/-rf", "cat/deep/er/0.png", "top.png"]


def test_names_of_all_kinds(folder):
    make(folder, *NAMES)
    before = tree(folder)
    plan = CleaningPlan(folder)
    for number, name in enumerate(NAMES):
        if number % 2: plan.delete(name)
        else: plan.relabel(name, "dog")
    del plan
    plan = CleaningPlan(folder)
    assert list(plan.decisions) == NAMES and len(plan.apply()) == len(NAMES)
    assert sorted(tree(folder).values()) == sorted(before.values()) and "dog/top.png" in tree(folder)
    plan.restore()
    assert tree(folder) == before


@pytest.mark.skipif(sys.platform != "linux", reason="only there names need not be Unicode")
def test_a_name_that_is_not_unicode_is_refused(folder, plan):
    with open(os.fsencode(folder) + b"/cat/\xff.png", "wb"): pass
    with pytest.raises(ValueError, match="rename"): plan.delete(os.fsdecode(os.fsencode(folder) + b"/cat/\xff.png"))


def test_a_label_written_with_an_accent_apart(folder):
    make(folder, "caf\u00e9/0.png")
    plan = CleaningPlan(folder)
    plan.relabel("cat/0.png", "cafe\u0301")
    assert plan.decisions["cat/0.png"].label == "caf\u00e9"


def test_splits_stay_splits(tmp_path):
    folder = make(tmp_path, "train/3/a.png", "train/7/b.png", "valid/3/c.png", "train/d.png")
    plan = CleaningPlan(folder)
    assert plan.classes == ["3", "7"]
    plan.relabel("train/3/a.png", "7")
    plan.relabel("valid/3/c.png", "7")
    plan.relabel("train/d.png", "3")
    assert plan.preview()[["label", "target"]].values.tolist() == [["3", "train/7/a.png"], ["", "train/3/d.png"], ["3", "valid/7/c.png"]]


def test_a_class_may_be_called_train(tmp_path):
    plan = CleaningPlan(make(tmp_path, "train/old/a.png", "bus/b.png"))
    plan.relabel("bus/b.png", "train")
    assert plan.classes == ["bus", "train"] and plan.preview().target.tolist() == ["train/b.png"]


# ---- Nothing outside, nothing by surprise

def test_a_class_folder_that_becomes_a_link(folder, plan):
    outside = make(folder.parent / "outside", "0.png")
    plan.relabel("cat/0.png", "dog")
    before = tree(folder)
    shutil.rmtree(folder / "dog")
    (folder / "dog").symlink_to(outside)
    with pytest.raises(OSError, match="1 of 1 files were not moved.*link"): plan.apply()
    assert list(tree(outside)) == ["0.png"] and tree(folder)["cat/0.png"] == before["cat/0.png"]
    assert list(plan.decisions) == ["cat/0.png"], "what was not done is still decided"


@pytest.mark.parametrize("name", [STATE, LOG, f"{STATE}/cleaning.lock", f"{STATE}/cleaning.open"])
def test_own_files_that_are_links(folder, name):
    secret = make(folder.parent, "secret/file") / "secret/file"
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(secret.parent if name == STATE else secret)
    with pytest.raises(ValueError, match="link"): CleaningPlan(folder)
    assert list(tree(secret.parent)) == ["file"] and secret.read_bytes() == b"bytes of secret/file in the beginning"


@pytest.mark.parametrize("source, target", [("cat/0.png", "../stolen.png"), ("../secret", "cat/9.png"), ("cat/0.png", "{parent}/stolen.png"),
                                            ("{parent}/secret", "cat/9.png"), ("cat/0.png", "links/stolen.png")])
def test_a_forged_log_cannot_reach_outside(folder, source, target):
    make(folder.parent, "secret")
    (folder / "links").symlink_to(folder.parent)
    source, target = source.format(parent=folder.parent), target.format(parent=folder.parent)
    event = {"kind": "move", "moves": [[source, target, 1]], "empty": ["../empty"], "by": "x/y"}
    (folder.parent / "empty").mkdir()
    (folder / STATE).mkdir()
    (folder / LOG).write_text(json.dumps(event) + "\n")
    before = tree(folder)
    with pytest.warns(UserWarning, match="leaves the folder"): CleaningPlan(folder)
    assert tree(folder) == before and sorted(os.listdir(folder.parent)) == ["data", "empty", "secret"]


def test_a_log_that_makes_no_sense_is_named(folder):
    (folder / STATE).mkdir()
    (folder / LOG).write_text('{"kind": "decide", "by": 3}\n')
    with pytest.raises(ValueError, match="cleaning.jsonl.*rename"): CleaningPlan(folder)


def test_files_that_vanish_or_change(folder, plan):
    for name in ("cat/0.png", "cat/1.png", "cat/2.png", "dog/0.png"): plan.delete(name)
    (folder / "cat/0.png").unlink()
    (folder / "cat/1.png").write_bytes(b"another picture")
    os.utime(folder / "cat/2.png", (0, 0))  # as after copying the data set
    assert plan.preview().path.tolist() == ["cat/2.png", "dog/0.png"]
    with pytest.warns(UserWarning, match="2 decisions were not.*cat/0.png: it is gone; cat/1.png: it has changed"): plan.apply()
    assert tree(folder, trash=False).keys() == {"cat/1.png", "dog/1.png"}
    assert (folder / "cat/1.png").read_bytes() == b"another picture" and len(plan.applied()) == 2
    plan.delete("cat/1.png")
    assert plan.preview().path.tolist() == ["cat/1.png"], "decided on again, now with the new picture"


def test_a_file_that_vanishes_during_apply(folder):
    def vanish(name):
        if name == "written move": (folder / "cat/0.png").unlink()

    plan = CleaningPlan(folder, on_step=vanish)
    plan.delete("cat/0.png")
    plan.delete("cat/1.png")
    with pytest.raises(OSError, match="1 of 2 files were not moved.*cat/0.png"): plan.apply()
    assert plan.applied().path.tolist() == ["cat/1.png"]


@pytest.mark.parametrize("moment", ["written move", "link"])
def test_a_name_taken_during_apply_is_not_overwritten(folder, moment):
    def take(name):
        if name == moment: (folder / "dog/9.png").write_bytes(b"mine")

    make(folder, "cat/9.png")
    before = tree(folder)
    plan = CleaningPlan(folder, on_step=take)
    plan.relabel("cat/9.png", "dog")
    with pytest.raises(OSError, match="not moved"): plan.apply()
    assert (folder / "dog/9.png").read_bytes() == b"mine" and tree(folder)["cat/9.png"] == before["cat/9.png"]
    plan.apply()
    assert tree(folder)["dog/9-2.png"] == before["cat/9.png"]


def test_an_emptied_trash_is_said(folder, plan):
    plan.delete("cat/0.png")
    plan.delete("cat/1.png")
    plan.apply()
    (folder / STATE / "trash/1/cat/0.png").unlink()
    with pytest.raises(OSError, match="1 of 2 .*cat/0.png: it is gone"): plan.restore()
    assert (folder / "cat/1.png").exists()


def test_the_plans_own_folder_is_thrown_away(folder, plan):
    plan.delete("cat/0.png")
    shutil.rmtree(folder / STATE)
    (folder / STATE).mkdir()
    plan.delete("cat/1.png")
    assert list(plan.decisions) == ["cat/1.png"] and list(quietly(folder).decisions) == ["cat/1.png"]


def test_a_disk_without_hard_links(folder, plan, monkeypatch):
    def refuse(*_): raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    before = tree(folder)
    decide_everything(plan)
    plan.apply()
    assert "dog/1-2.png" in tree(folder)
    plan.restore()
    assert tree(folder) == before


# ---- Full disk, read-only disk

def test_full_disk_when_deciding(folder, plan):
    """A real one: the system refuses to let the log grow, in the middle of a line."""
    plan.delete("cat/0.png")
    whole = (folder / LOG).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, hard))
    try:
        with pytest.raises(OSError, match="make room"): plan.delete("cat/1.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (folder / LOG).read_bytes() == whole and list(plan.decisions) == ["cat/0.png"]
    plan.delete("cat/1.png")
    assert list(quietly(folder).decisions) == ["cat/0.png", "cat/1.png"]


def full_from(count):
    """A step that fails from its count-th call on, as a full disk does."""
    steps = iter(range(count))

    def step(name):
        if next(steps, None) is None: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return step


@pytest.mark.parametrize("count", range(16))
def test_full_disk_when_applying(folder, count):
    decide_everything(CleaningPlan(folder))
    before = tree(folder)
    plan = CleaningPlan(folder, on_step=full_from(count))
    try: plan.apply()
    except OSError as problem: assert "o space left" in str(problem)
    else: raise AssertionError("the disk was full")
    assert set(tree(folder).values()) == set(before.values())
    del plan
    plan = quietly(folder)
    plan.apply()
    assert tree(folder, trash=False).keys() == {"dog/1.png", "dog/1-2.png", "rabbit/2.png"}
    assert sorted(tree(folder).values()) == sorted(before.values())
    plan.restore()
    assert tree(folder) == before


@pytest.mark.skipif(os.name != "posix", reason="uses the rights of files")
def test_read_only_folder():
    code = """
import os, sys
import filelock
from lessonlib.cleaner import CleaningPlan
if os.getuid() == 0: os.setuid(65534)
try: CleaningPlan(sys.argv[1])
except PermissionError as problem: assert "copy the data set" in str(problem), problem
else: raise AssertionError"""
    with tempfile.TemporaryDirectory() as name:
        folder = make(Path(name))
        folder.chmod(0o555)
        python(code, folder)
        folder.chmod(0o755)
        assert not (folder / STATE).exists()


# ---- Killed at any point

KILLED = """
import os, signal, sys
from lessonlib.cleaner import CleaningPlan
left = iter(range(int(sys.argv[3])))
def step(name):
    if next(left, None) is None: os.kill(os.getpid(), signal.SIGKILL)
getattr(CleaningPlan(sys.argv[1], on_step=step), sys.argv[2])()
"""


def check_whole(folder, before):
    """Every file is there exactly once, and all can be undone."""
    after = tree(folder)
    assert sorted(after.values()) == sorted(before.values())
    for inode in (path for path in folder.rglob("*.png") if path.is_file()): assert inode.stat().st_nlink == 1


def small_data(folder):
    """Two moves are enough for every kind of step; one is a collision."""
    plan = CleaningPlan(folder)
    plan.delete("cat/0.png")
    plan.relabel("cat/1.png", "dog")
    return plan


@pytest.mark.parametrize("action", ["apply", "restore"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 6, 8])
def test_killed_in_apply_and_restore(folder, action, count):
    before = tree(folder)
    plan = small_data(folder)
    if action == "restore": plan.apply()
    del plan
    assert python(KILLED, folder, action, count, check=False).returncode == -signal.SIGKILL
    plan = quietly(folder)
    check_whole(folder, before)
    assert len(plan.applied()) == (2 if (action == "apply") == (count > 0) else 0), "once noted it is finished, else not begun"
    plan.restore()
    assert tree(folder) == before


class Crash(BaseException):
    """Stands for the end of the process at this point."""


def crash_at(count):
    steps = iter(range(count))

    def step(name):
        if next(steps, None) is None: raise Crash
    return step


def crashed(folder, action, count):
    """Whether it crashed before it was done."""
    try: getattr(quietly(folder, on_step=crash_at(count)), action)()
    except Crash: return True
    return False


def test_stopped_at_every_step_of_a_longer_story(folder):
    """Two applied batches, restored and applied again, with a crash at each step, twice in a row."""
    decide_everything(CleaningPlan(folder))
    before, count = tree(folder), 0
    while crashed(folder, "apply", count):
        crashed(folder, "preview", count % 5)  # a second crash, while finishing
        plan = quietly(folder)
        check_whole(folder, before)
        assert len(plan.applied()) in (0, 4)
        plan.restore()
        assert tree(folder) == before and not (folder / "rabbit").exists()
        decide_everything(plan)
        del plan
        count += 1
    plan = quietly(folder)
    plan.delete("dog/1-2.png")
    plan.apply()
    final, first = tree(folder), count
    assert first > 12
    del plan
    for count in range(30):
        if not crashed(folder, "restore", count): break
        plan = quietly(folder)
        check_whole(folder, before)
        plan.restore()
        assert tree(folder) == before
        decide_everything(plan)
        plan.apply()
        plan.delete("dog/1-2.png")
        plan.apply()
        assert tree(folder) == final
        del plan
    assert 12 < count < 30


def test_what_was_put_there_after_the_crash_is_not_mixed_up(folder):
    before = tree(folder)
    plan = quietly(folder, on_step=crash_at(4 + 2 + 3))  # the first file has moved
    plan.delete("cat/0.png")
    plan.delete("cat/1.png")
    with pytest.raises(Crash): plan.apply()
    del plan
    (folder / "cat/0.png").write_bytes(b"a new picture")
    plan = quietly(folder)
    assert plan.applied().path.tolist() == ["cat/0.png", "cat/1.png"] and (folder / "cat/0.png").read_bytes() == b"a new picture"
    assert plan.restore().target.tolist() == ["cat/0-2.png", "cat/1.png"] and tree(folder)["cat/0-2.png"] == before["cat/0.png"]


# ---- Two plans on one folder

def test_the_second_is_warned_and_neither_loses_anything(folder, plan):
    with pytest.warns(UserWarning, match="another plan is open"): other = CleaningPlan(folder)
    plan.delete("cat/0.png")
    other.delete("cat/1.png")
    plan.keep("cat/2.png")
    other.keep("cat/0.png")
    assert plan.decisions == other.decisions and plan.decisions["cat/0.png"] == Decision("keep")
    assert plan.undo() == "cat/2.png" and plan.undo() == "cat/0.png" and plan.undo() is None, "each undoes its own"
    assert other.decisions == {"cat/0.png": Decision("keep"), "cat/1.png": Decision("delete")}
    del plan
    assert other.undo() == "cat/0.png" and other.undo() == "cat/1.png"


def test_closed_means_alone(folder, recwarn):
    for _ in range(2):
        plan = CleaningPlan(folder)
        plan.keep("cat/0.png")
        del plan
    assert not recwarn.list


def test_the_first_goes_and_a_third_comes(folder, plan):
    other = quietly(folder)
    del plan
    other.keep("cat/0.png")  # from now on it is the one that is open
    with pytest.warns(UserWarning, match="another plan"): CleaningPlan(folder)


def test_the_cell_is_run_again(folder, plan):
    """The same notebook: the new plan can undo what the old one decided."""
    plan.delete("cat/0.png")
    again = quietly(folder)
    assert again.undo() == "cat/0.png" and again.redo() == "cat/0.png"


def test_two_processes_at_the_same_time(folder):
    code = """
import sys, warnings
warnings.simplefilter("ignore")
from lessonlib.cleaner import CleaningPlan
plan = CleaningPlan(sys.argv[1])
for number in range(int(sys.argv[2]), 60, 2):
    plan.delete(f"cat/{number}.png")
    if number % 10 == int(sys.argv[2]): plan.undo(); plan.redo()
    if number == 30: plan.apply()
"""
    before = tree(make(folder, *(f"cat/{number}.png" for number in range(60))))
    workers = [subprocess.Popen([sys.executable, "-c", code, str(folder), str(half)]) for half in (0, 1)]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    plan = CleaningPlan(folder)
    assert {*plan.decisions, *plan.applied().path} == {f"cat/{number}.png" for number in range(60)}
    plan.apply()
    assert set(tree(folder, trash=False)) == {"dog/0.png", "dog/1.png"}
    plan.restore()
    assert tree(folder) == before


def test_another_process_is_noticed_and_its_undo_is_its_own(folder):
    code = """
import sys
from lessonlib.cleaner import CleaningPlan
plan = CleaningPlan(sys.argv[1]); plan.delete("cat/0.png"); print("open", flush=True); input()"""
    worker = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdout.readline() == "open\n"
    with pytest.warns(UserWarning, match="another plan is open"): plan = CleaningPlan(folder)
    assert list(plan.decisions) == ["cat/0.png"] and plan.undo() is None
    worker.communicate("\n")
    assert worker.returncode == 0


# ---- A table

TABLE = "\ufeffname,path,label,note\r\na,images/a.png,cat,\"one, two\"\r\n\r\nb,images/b.png,dog,é\r\nc,../away.png,dog,\r\n"


@pytest.fixture
def by_table(tmp_path):
    folder = make(tmp_path / "data", "images/a.png", "images/b.png", "images/c.png")
    (folder / "labels.csv").write_bytes(TABLE.encode())
    return folder


def test_a_table_is_written_anew_and_nothing_else_changes(by_table):
    before = tree(by_table)
    plan = CleaningPlan(by_table, table="labels.csv")
    assert plan.classes == ["cat", "dog"]
    plan.relabel(by_table / "images/a.png", "dog")
    plan.delete("images/b.png")
    assert plan.preview()[["path", "label", "new_label", "target"]].values.tolist() == [
        ["images/a.png", "cat", "dog", "labels_cleaned.csv"], ["images/b.png", "dog", "", "labels_cleaned.csv"]]
    plan.apply()
    assert (by_table / "labels_cleaned.csv").read_text(encoding="utf-8") == (
        'name,path,label,note\na,images/a.png,dog,"one, two"\n\nc,../away.png,dog,\n')
    assert {name: digest for name, digest in tree(by_table).items() if name != "labels_cleaned.csv"} == before
    assert plan.apply().target.tolist() == ["labels_cleaned-2.csv"] * 2, "the decisions stay: they are about the old table"
    assert plan.restore().empty and CleaningPlan(by_table).decisions == {}
    del plan
    assert CleaningPlan(by_table, table=by_table / "labels.csv").undo() == "images/b.png"


def test_what_the_table_does_not_have(by_table):
    plan = CleaningPlan(by_table, table="labels.csv")
    with pytest.raises(ValueError, match="not in the table"): plan.delete("images/c.png")
    with pytest.raises(ValueError, match="new=True"): plan.relabel("images/a.png", "rabbit")
    plan.relabel("images/a.png", "rabbit", new=True)
    assert plan.classes == ["cat", "dog", "rabbit"] and plan.decisions == {"images/a.png": Decision("relabel", "rabbit")}
    (by_table / "wrong.csv").write_text("file,label\n")
    with pytest.raises(ValueError, match="file.*expected path and label"): CleaningPlan(by_table, table="wrong.csv")
    with pytest.raises(ValueError, match="outside"): CleaningPlan(by_table, table="../labels.csv")
    with pytest.raises(FileNotFoundError): CleaningPlan(by_table, table="none.csv")
    (by_table / "empty.csv").write_text("")
    with pytest.raises(ValueError, match="expected path and label"): CleaningPlan(by_table, table="empty.csv")


def test_nothing_decided_writes_no_table(by_table):
    assert CleaningPlan(by_table, table="labels.csv").apply().empty and not (by_table / "labels_cleaned.csv").exists()


@pytest.mark.parametrize("count", range(5))
def test_a_table_killed_while_written(by_table, count):
    plan = quietly(by_table, table="labels.csv")
    plan.delete("images/b.png")
    del plan
    plan = quietly(by_table, table="labels.csv", on_step=crash_at(count))
    try: plan.apply()
    except Crash: pass
    del plan
    found = [path.read_text(encoding="utf-8") for path in by_table.glob("labels_cleaned*")]
    assert len(found) <= 1 and all(text.endswith("c,../away.png,dog,\n") for text in found)
    assert len(quietly(by_table, table="labels.csv").apply()) == 1


# ---- Size, imports

def test_ten_thousand_decisions(tmp_path):
    """As many as nobody makes: the log of one decision repeated, then used as ever."""
    folder, number = make(tmp_path, "cat/0.png", "dog/x.png"), 10_000
    plan = CleaningPlan(folder)
    plan.delete("cat/0.png")
    del plan
    event = json.loads((folder / LOG).read_text())
    for index in range(1, 500): (folder / f"cat/{index}.png").hardlink_to(folder / "cat/0.png")
    with open(folder / LOG, "w") as log:
        for index in range(number):
            event |= {"path": f"cat/{index % 500}.png", "action": ("keep", "delete")[index // 500 % 2]}
            log.write(json.dumps(event) + "\n")
    plan = CleaningPlan(folder)
    assert len(plan.preview()) == 500 and plan.undo() == "cat/499.png"
    plan.keep("dog/x.png")
    assert len(plan.apply()) == 499 and len(plan.decisions) == 2
    assert len(plan.restore()) == 499 and plan.decisions.keys() == {"cat/499.png", "dog/x.png"}


def test_ordinary_use_needs_no_torch(folder):
    code = """
import sys
import lessonlib.cleaner
assert not {"torch", "pandas", "PIL", "ipywidgets", "matplotlib"} & set(sys.modules)
plan = lessonlib.cleaner.CleaningPlan(sys.argv[1])
plan.delete("cat/0.png"); plan.undo(); plan.redo(); plan.decisions
assert "pandas" not in sys.modules
plan.apply(); plan.restore()
assert "torch" not in sys.modules"""
    python(code, folder)


# ---- Any sequence of decisions, applies, crashes and restores

class AnySequence(RuleBasedStateMachine):
    """The model: a list of decisions, each about one content at one path. Contents are all different."""
    names = ["cat/a", "cat/b", "dog/a", "dog/B", "dog/b-2"]

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp())
        self.before = tree(make(self.folder, *self.names))
        self.events, self.done, self.undone, self.exact = [], [], [], True  # an event: [path, decision, content, hidden]
        self.plan = CleaningPlan(self.folder)

    def teardown(self):
        self.plan = None
        shutil.rmtree(self.folder)

    def expected(self):
        """path -> (decision, content)"""
        return {path: (decision, content) for path, decision, content, hidden in self.events if not hidden}

    def due(self):
        """What apply would move: a decision about what is no longer there does not count."""
        now = tree(self.folder)
        return {path for path, (decision, content) in self.expected().items() if decision.action != "keep" and now.get(path) == content}

    @rule(data=st.data(), action=st.sampled_from(["keep", "delete", "cat", "dog", "fox"]))
    def decide(self, data, action):
        now = tree(self.folder, trash=False)
        if not now: return
        path = data.draw(st.sampled_from(sorted(now)))
        if action in ("keep", "delete"): getattr(self.plan, action)(path)
        else: self.plan.relabel(path, action, new=True)
        decision = Decision(action) if action in ("keep", "delete") else Decision("relabel", action)
        if path.split("/")[0] == action: decision = Decision("keep")
        if self.expected().get(path) == (decision, now[path]): return
        self.events.append([path, decision, now[path], False])
        self.done.append(self.events[-1])
        self.undone.clear()

    @rule(redo=st.booleans())
    def undo_or_redo(self, redo):
        source, sink = (self.undone, self.done) if redo else (self.done, self.undone)
        event = source.pop() if source else None
        assert (self.plan.redo() if redo else self.plan.undo()) == (event and event[0])
        if event:
            event[3] = not redo
            sink.append(event)

    def forget(self, paths):
        for events in (self.events, self.done, self.undone): events[:] = [event for event in events if event[0] not in paths]

    @rule()
    def apply(self):
        before, preview = tree(self.folder), self.plan.preview()
        assert set(preview.path) == self.due()
        assert not set(preview.target) & set(before) and preview.target.is_unique
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert self.plan.apply().equals(preview)
        moves = dict(zip(preview.path, preview.target))
        assert tree(self.folder) == {moves.get(name, name): content for name, content in before.items()}
        self.forget(moves)

    @rule(data=st.data())
    @precondition(lambda self: len(self.plan.applied()))
    def restore_one(self, data):
        before, path = tree(self.folder), data.draw(st.sampled_from(self.plan.applied().path.tolist()))
        rows = self.plan.restore(path)
        for source, target in rows.itertuples(index=False): before[target] = before.pop(source)
        assert tree(self.folder) == before
        self.exact = False  # it may have got a free name, and others in turn

    @rule()
    def restore_all(self):
        self.plan.restore()
        assert self.plan.applied().empty and sorted(tree(self.folder, trash=False).values()) == sorted(self.before.values())
        if self.exact: assert tree(self.folder) == self.before
        self.exact = tree(self.folder) == self.before

    @rule(count=st.integers(0, 25), action=st.sampled_from(["apply", "restore"]))
    def crash(self, count, action):
        self.plan, due = None, self.due()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            crashed(self.folder, action, count)
        self.plan = quietly(self.folder)
        gone = set(self.expected()) - set(self.plan.decisions)
        assert gone in (set(), due if action == "apply" else set()), "a batch is carried out as a whole or not begun"
        self.forget(gone)

    @rule()
    def reopen(self):
        self.plan = None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.plan = CleaningPlan(self.folder)

    @invariant()
    def nothing_is_lost(self):
        if not hasattr(self, "plan"): return
        assert sorted(tree(self.folder).values()) == sorted(self.before.values())
        assert self.plan.decisions == {path: decision for path, (decision, _) in self.expected().items()}


TestAnySequence = AnySequence.TestCase
TestAnySequence.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)

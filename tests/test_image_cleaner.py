"""The image cleaner without a browser: flags, the state and the widget's messages, and the promise on the practice set with an answer key."""
import csv
import io
import json
import re
import shutil
import subprocess
import sys
import tracemalloc
import warnings
import zlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from lessonlib import cleaner as module
from lessonlib.cleaner import CleanerState, CleaningPlan, ImageCleaner, find_flags, image_features, out_of_fold
from lessonlib.data import get_data, image_files


def picture(seed, size=(160, 120)):
    "A colourful picture with edges; another one for each seed."
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.NEAREST)


@pytest.fixture
def pets(tmp_path):
    "Two splits, two classes, six pictures each."
    for split in ("train", "valid"):
        for label in ("cat", "dog"):
            folder = tmp_path / "pets" / split / label
            folder.mkdir(parents=True)
            for number in range(6): picture(zlib.crc32(f"{split}{label}{number}".encode())).save(folder / f"{label}_{number}.png")
    return tmp_path / "pets"


@pytest.fixture
def table(pets):
    "Predictions for all of them; cat_1 and cat_2 of the training set look wrong."
    files = image_files(pets)
    labels = [path.parent.name for path in files]
    frame = pd.DataFrame({"path": list(map(str, files)), "label": labels, "split": [path.parent.parent.name for path in files], "prediction": labels,
                          "confidence": 0.9, "loss": 0.1})
    frame.loc[1, ["prediction", "confidence", "loss"]] = "dog", 0.8, 1.6
    frame.loc[2, ["prediction", "confidence", "loss"]] = "dog", 0.7, 3.0
    return frame


@pytest.fixture
def flags(table):
    rows = [(table.path[3], "dark", 0.1, 0.3, "Dark.", ""), (table.path[1], "wrong label", 0.2, 0.25, "Wrong.", ""),
            (table.path[5], "near duplicate", 0.02, 0.2, "Nearly the same.", table.path[0]), (table.path[4], "dark", 0.28, 0.3, "Dark.", ""),
            (table.path[6], "dark", 0.5, 0.3, "Dark.", "")]
    return pd.DataFrame(rows, columns=["path", "flag", "score", "threshold", "why", "other"])


@pytest.fixture
def state(pets, table, flags):
    return CleanerState(CleaningPlan(pets), table, flags, page_size=10)


def name(frame, row): return "/".join(frame.path[row].split("/")[-3:])


# --- flags ------------------------------------------------------------------------------------------------------------
class TestFlags:
    def test_each_flaw_has_its_flag_and_nothing_else_has_any(self, tmp_path):
        for number in range(8): picture(number).save(tmp_path / f"good_{number}.png")
        picture(3).save(tmp_path / "good_9.png")
        shutil.copy(tmp_path / "good_2.png", tmp_path / "good_10.png")
        picture(4).resize((128, 96)).save(tmp_path / "small.jpg", quality=70)
        picture(20).point(lambda value: value // 12).save(tmp_path / "night.png")
        picture(21).point(lambda value: 252 + value // 100).save(tmp_path / "snow.png")
        picture(22).filter(ImageFilter.GaussianBlur(12)).save(tmp_path / "fog.png")
        picture(23, (400, 60)).save(tmp_path / "ribbon.png")
        picture(24, (1600, 1200)).save(tmp_path / "huge.png")
        (tmp_path / "half.png").write_bytes((tmp_path / "good_1.png").read_bytes()[:300])
        (tmp_path / "notes.jpg").write_text("not an image")
        (tmp_path / "empty.png").touch()
        found = find_flags(image_files(tmp_path), progress=False)
        have = {(path.split("/")[-1], flag) for path, flag in zip(found.path, found.flag, strict=True)}
        want = {("good_9.png", "exact duplicate"), ("good_10.png", "exact duplicate"), ("small.jpg", "near duplicate"), ("night.png", "dark"),
                ("snow.png", "bright"), ("fog.png", "blurred"), ("ribbon.png", "odd shape"), ("huge.png", "odd size"), ("half.png", "unreadable"),
                ("notes.jpg", "unreadable"), ("empty.png", "unreadable")}
        assert want <= have
        assert not {flaw for flaw in have - want if flaw[0].startswith("good")}
        assert list(found.columns) == ["path", "flag", "score", "threshold", "why", "other"]
        assert (found.score < found.threshold).all() and not found.duplicated(["path", "flag"]).any()
        assert dict(zip(found.path, found.other, strict=True))[str(tmp_path / "good_10.png")] == str(tmp_path / "good_2.png")

    def test_paths_come_back_as_given_and_relative_ones_begin_in_the_folder(self, pets):
        shutil.copy(pets / "train/cat/cat_0.png", pets / "valid/dog/dog_9.png")
        files = ["train/cat/cat_0.png", "valid/dog/dog_9.png"]
        found = find_flags(files, ["cat", "dog"], splits=["train", "valid"], folder=pets, progress=False)
        assert list(found.path) == ["valid/dog/dog_9.png"] and found.other[0] == "train/cat/cat_0.png"
        assert "different splits" in found.why[0] and "labels differ" in found.why[0]
        assert "splits" not in find_flags(files, folder=pets, progress=False).why[0]

    def test_every_score_is_there_on_demand(self, pets):
        files = image_files(pets)
        every = find_flags(files, every=True, progress=False)
        assert (every.flag == "dark").sum() == len(files) and len(find_flags(files, progress=False)) < len(every)
        assert every.score.between(0, 1).all()

    def test_wrong_labels_by_confident_learning(self, pets):
        files = image_files(pets)
        labels = [path.parent.name for path in files]
        probs = np.array([[0.9, 0.1] if label == "cat" else [0.1, 0.9] for label in labels])
        probs[3] = 0.02, 0.98
        found = find_flags(files, labels, probs=probs, progress=False)
        wrong = found[found.flag == "wrong label"]
        assert list(wrong.path) == [str(files[3])] and wrong.score.iloc[0] == pytest.approx(0.02)
        assert "gives cat 2 %, and dog 98 %" in wrong.why.iloc[0]

    def test_plain_pictures_are_no_duplicates(self, tmp_path):
        for colour in ("red", "blue", "white"): Image.new("RGB", (100, 100), colour).save(tmp_path / f"{colour}.png")
        assert "near duplicate" not in set(find_flags(image_files(tmp_path), progress=False).flag)

    @pytest.mark.parametrize("arguments, message", [
        ({"files": []}, "no files"), ({"files": ["a", "a"]}, "'a' twice"), ({"files": ["a", "b"], "labels": ["x"]}, "1 labels for 2 files"),
        ({"files": ["a"], "probs": np.ones((1, 1))}, "probs without labels"), ({"files": ["a"], "splits": ["x", "y"]}, "2 splits for 1 files")])
    def test_mistakes_are_named(self, arguments, message):
        with pytest.raises(ValueError, match=message): find_flags(**arguments)

    def test_wrong_shape_of_probs_is_named(self, pets):
        files = image_files(pets)[:4]
        with pytest.raises(ValueError, match=r"probs \(4, 3\).*of 2 classes"):
            find_flags(files, ["a", "a", "b", "b"], probs=np.ones((4, 3)) / 3, progress=False)


class TestNearest:
    @given(st.integers(0, 40), st.integers(0, 2**32 - 1))
    @settings(max_examples=30)
    def test_agrees_with_a_loop_over_all_pairs(self, count, seed):
        rng = np.random.default_rng(seed)
        base = rng.integers(0, 2**63, (4, 9), dtype=np.uint64)[rng.integers(0, 4, count)]
        noise = (np.uint64(1) << rng.integers(0, 63, (count, 9, 3)).astype(np.uint64)) * rng.integers(0, 2, (count, 9, 3)).astype(np.uint64)
        hashes = base ^ np.bitwise_xor.reduce(noise, axis=2) if count else base
        twin, bits = module._nearest(hashes[:, 0], hashes[:, 1:])
        for row in range(count):
            near = [(int(np.bitwise_count(hashes[row, 1:] ^ hashes[other, 1:]).sum()), other) for other in range(row)
                    if np.bitwise_count(hashes[row, 0] ^ hashes[other, 0]) <= module._QUICK]
            near = [pair for pair in near if pair[0] <= module._BITS]
            assert (bits[row], twin[row]) == (min(near) if near else (module._BITS + 1, -1))

    def test_many_hashes_stay_quick_and_small(self):
        "Blocks, not one array of all pairs, which would take 8 bytes for each pair."
        hashes = np.random.default_rng(0).integers(0, 2**63, (8_000, 9), dtype=np.uint64)
        hashes[7_999] = hashes[7]
        tracemalloc.start()
        twin, _ = module._nearest(hashes[:, 0], hashes[:, 1:])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert twin[7_999] == 7 and (twin >= 0).sum() == 1 and peak < 60e6


class TestOutOfFold:
    def test_a_turned_label_is_found_since_its_own_is_not_seen(self):
        rng = np.random.default_rng(0)
        features = np.concatenate([rng.normal(-2, 1, (40, 8)), rng.normal(2, 1, (40, 8))])
        labels = ["b"] * 40 + ["a"] * 40
        labels[0] = "a"
        probs = out_of_fold(features, labels)
        assert probs.shape == (80, 2) and np.allclose(probs.sum(1), 1)
        assert probs[0, 0] < 0.1 and probs[1, 1] > 0.9  # columns follow the sorted labels
        assert np.array_equal(probs, out_of_fold(features, labels)) and not np.array_equal(probs, out_of_fold(features, labels, seed=1))

    def test_a_class_smaller_than_the_folds_is_no_error(self):
        features = np.random.default_rng(0).normal(size=(23, 3))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            probs = out_of_fold(features, [0] * 12 + [1] * 10 + [2])
        assert np.allclose(probs.sum(1), 1) and probs[22, 2] == 0

    @pytest.mark.parametrize("features, labels, folds, message", [
        (np.ones((4, 2)), [0, 1], 2, "4, 2.*2 labels"), (np.ones(4), [0, 1, 0, 1], 2, "expected"),
        (np.full((4, 2), np.nan), [0, 1, 0, 1], 2, "finite"),
        (np.ones((4, 2)), [0, 0, 0, 0], 2, "all 0"), (np.ones((4, 2)), [0, 1, 0, 1], 5, "folds=5"), (np.ones((4, 2)), [0, 1, 0, 1], 1, "folds=1"),
        (np.ones((4, 2)), [0, 1, 2, 3], 2, "fewer than folds=2")])
    def test_mistakes_are_named(self, features, labels, folds, message):
        with pytest.raises(ValueError, match=message): out_of_fold(features, labels, folds)


# --- the state --------------------------------------------------------------------------------------------------------
class TestShown:
    def test_default_order_is_by_suspicion_then_by_the_trust_in_the_label(self, state, table):
        assert [state.rows.path[row] for row in range(5)] == [name(table, row) for row in (5, 3, 1, 4, 2)]
        assert state.rows.suspicion.is_monotonic_decreasing and state.caption == "1-10 of 24" and state.pages == 3

    def test_label_score_is_that_of_the_flags_else_the_probability_of_the_label(self, state, table):
        scores = dict(zip(state.rows.path, state.rows["label score"], strict=True))
        assert scores[name(table, 1)] == 0.2 and scores[name(table, 2)] == pytest.approx(np.exp(-3))

    @pytest.mark.parametrize("by, first", [("loss", 2), ("confidence", 2), ("label score", 2), ("name", 0)])
    def test_orders(self, state, table, by, first):
        assert state.sort(by).rows.path[0] == name(table, first)

    def test_similarity_puts_copies_beside_their_originals(self, state, table):
        assert list(state.sort("similarity").rows.path[:2]) == [name(table, 0), name(table, 5)]
        assert list(state.filter(flag="near duplicate").rows.path) == [name(table, 0), name(table, 5)]
        assert list(state.sort().rows.path) == [name(table, 5)]

    def test_filters_by_class_split_flag_and_decision(self, state, table):
        assert set(state.filter(label="dog", split="valid").rows.label) == {"dog"} and state.caption == "1-6 of 6"
        assert set(state.rows.split) == {"valid"}
        assert len(state.filter(flag="dark").rows) == 2 and len(state.filter(flag="any").rows) == 4
        state.decide(name(table, 3), "keep")
        assert list(state.filter(decision="keep").rows.path) == [name(table, 3)] and len(state.filter(decision="undecided").rows) == 23
        assert state.filter(label="cat", split="valid", flag="dark").caption == "no images" and state.path is None and state.pages == 1

    @pytest.mark.parametrize("call, message", [
        (lambda state: state.filter(label="bird"), "label='bird'.*cat"), (lambda state: state.filter(flag="green"), "flag='green'"),
        (lambda state: state.sort("size"), "by='size'"), (lambda state: setattr(state, "page", 9), "page 9.*1 to 3"),
        (lambda state: setattr(state, "page", 0), "page 0"), (lambda state: state.set_threshold("green", 0.1), "'green'"),
        (lambda state: state.set_threshold("dark", 7), "0 to 1"), (lambda state: state.move("back"), "way='back'"),
        (lambda state: state.why("nobody.png"), "not in the table"),
        (lambda state: state.decide("train/cat/cat_0.png", "bird"), "not one of the classes")])
    def test_mistakes_are_named_and_change_nothing(self, state, call, message):
        before = list(state.rows.path), state.page, dict(state.decisions)
        with pytest.raises(ValueError, match=message): call(state)
        assert (list(state.rows.path), state.page, dict(state.decisions)) == before

    def test_threshold_shows_more_or_fewer(self, state):
        assert len(state.set_threshold("dark", 0.6).filter(flag="dark").rows) == 3
        assert len(state.set_threshold("dark", 0.2).filter(flag="dark").rows) == 1 and state.thresholds["dark"] == 0.2
        assert state.set_threshold("dark", 0).summary()["flagged"] == 2

    def test_caption_of_thousands(self, pets, table):
        many = pd.concat([table.assign(path=table.path.str.replace("cat_", f"cat_{number}_")) for number in range(60)]).drop_duplicates("path")
        state = CleanerState(CleaningPlan(pets), many, page_size=40)
        state.page = 2
        assert re.fullmatch(r"41-80 of \d{3}|41-80 of 1,\d{3}", state.caption)
        state.page = state.pages
        assert state.caption.endswith(f"of {len(many):,}") and len(state.shown) == len(many) - 40 * (state.pages - 1)

    def test_the_folder_alone_is_enough(self, pets):
        state = CleanerState(CleaningPlan(pets))
        assert state.summary()["images"] == 24 and state.choices("split") == ["train", "valid"] and state.choices("label") == ["cat", "dog"]
        assert state.why(state.path) == []

    @pytest.mark.parametrize("change, message", [
        (lambda table: table.drop(columns="path"), "expected path"), (lambda table: pd.concat([table, table.iloc[:1]]), "twice"),
        (lambda table: table.assign(path="/etc/passwd"), "outside")])
    def test_bad_tables_are_named(self, pets, table, change, message):
        with pytest.raises(ValueError, match=message): CleanerState(CleaningPlan(pets), change(table))

    def test_bad_flags_and_page_sizes_are_named(self, pets, table, flags):
        with pytest.raises(ValueError, match="'score'"): CleanerState(CleaningPlan(pets), table, flags.drop(columns="score"))
        with pytest.raises(ValueError, match="page_size=0"): CleanerState(CleaningPlan(pets), table, page_size=0)

    def test_missing_values_in_the_table_are_no_labels(self, pets, table):
        table.loc[0, ["label", "prediction"]] = np.nan
        state = CleanerState(CleaningPlan(pets), table)
        assert state.choices("label") == ["cat", "dog"] and state.why(name(table, 0)) == []

    def test_relative_paths_mean_the_same_from_anywhere(self, pets, table, monkeypatch):
        short = table.assign(path=[name(table, row) for row in range(len(table))])
        for place in (pets.parent, pets, pets / "train", pets.parent.parent):
            monkeypatch.chdir(place)
            assert sorted(CleanerState(CleaningPlan(pets), short).rows.path) == sorted(short.path)
        monkeypatch.chdir(pets.parent)
        assert sorted(CleanerState(CleaningPlan("pets"), short.assign(path="pets/" + short.path)).rows.path) == sorted(short.path)


class TestKeys:
    def test_arrows_walk_the_grid_and_turn_pages(self, state):
        state.columns = 4
        for key, place in [("ArrowRight", 1), ("ArrowDown", 5), ("ArrowLeft", 4), ("ArrowUp", 0), ("ArrowLeft", 0), ("ArrowUp", 0)]:
            assert state.key(key) and (state.page, state.selected) == (1, place)
        state.selected = 9
        state.key("ArrowRight")
        assert (state.page, state.selected) == (2, 0)
        state.key("ArrowUp")
        assert (state.page, state.selected) == (1, 6)
        for _ in range(5): state.key("PageDown")
        assert (state.page, state.selected) == (3, 3)  # the last image
        assert state.key("ArrowRight") and (state.page, state.selected) == (3, 3)

    def test_letters_decide_and_undo(self, state):
        first = state.path
        for key, said in [("d", "delete"), ("k", "keep"), ("2", "label becomes dog"), ("1", "keep")]:  # class 1 is its own: nothing to change
            assert state.key(key) and state.decision(first) == said
        assert state.key("u") and state.decision(first) == "label becomes dog" and state.status.startswith("undo")
        assert state.key("r") and state.decision(first) == "keep"
        assert not state.key("x") and not state.key("9") and not state.key("0")

    def test_p_takes_the_models_label(self, state, table):
        state.selected = state.rows.path.tolist().index(name(table, 1))
        state.key("p")
        assert state.decision(name(table, 1)) == "label becomes dog"

    def test_undo_selects_the_image_it_was_about(self, state):
        first = state.path
        for key in ("d", "ArrowRight", "ArrowRight", "u"): state.key(key)
        assert state.path == first and state.decision(first) == "" and "nothing decided" in state.status
        state.key("u")
        assert state.status == "nothing to undo"

    @given(st.lists(st.sampled_from(["d", "k", "u", "r", "p", "1", "2", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "PageUp", "PageDown",
                                     "cat", "dog", "dark", "all", "loss", "suspicion"]), max_size=25))
    @settings(max_examples=25)
    def test_nothing_shown_ever_changes_what_is_decided(self, tmp_path_factory, keys):
        folder = tmp_path_factory.mktemp("set")
        for label in ("cat", "dog"):
            (folder / label).mkdir()
            for number in range(5): (folder / label / f"{number}.png").write_bytes(b"x")
        names = [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(5)]
        table = pd.DataFrame({"path": names, "prediction": ["cat", "dog"] * 5, "confidence": 0.5, "loss": range(10)})
        flags = pd.DataFrame([(names[3], "dark", 0.1, 0.3, "Dark.", "")], columns=["path", "flag", "score", "threshold", "why", "other"])
        state = CleanerState(CleaningPlan(folder), table, flags, page_size=4)
        for key in keys:
            before = dict(state.decisions)
            if key in ("cat", "dog"): state.filter(label=key)
            elif key == "dark": state.filter(flag=key)
            elif key == "all": state.filter()
            elif key in ("loss", "suspicion"): state.sort(key)
            else: state.key(key)
            if key not in ("d", "k", "u", "r", "p", "1", "2"): assert state.decisions == before
            assert state.decisions == state.plan.decisions and state.summary()["decided"] == len(state.decisions)
            assert not state.shown or 0 <= state.selected < len(state.shown) and 1 <= state.page <= state.pages


class TestWhy:
    def test_flags_first_then_the_model(self, state, table):
        assert state.why(table.path[1]) == ["Wrong.", "The model says dog (80 % sure), the label is cat."]
        assert state.why(name(table, 0)) == ["The model agrees with the label cat (90 % sure).", f"Likely the original of {name(table, 5)}."]

    def test_summary_counts(self, state, table):
        for row, what in [(0, "delete"), (1, "dog"), (2, "keep")]: state.decide(table.path[row], what)
        assert state.summary() == {"images": 24, "flagged": 4, "decided": 3, "delete": 1, "relabel": 1, "keep": 1, "restorable": 0}


class TestApply:
    def test_decisions_in_two_classes_are_carried_out_and_restored(self, state, table, pets):
        before = {path.relative_to(pets).as_posix(): path.read_bytes() for path in pets.rglob("*.png")}
        state.filter(label="cat").decide(table.path[0], "delete")
        state.filter(label="dog").decide(table.path[8], "cat")
        state.apply()
        assert state.filter().summary()["images"] == 23 and name(table, 0) not in set(state.rows.path)
        moved = state.rows[state.rows.path == name(table, 8).replace("/dog/", "/cat/")]
        assert list(moved.label) == ["cat"] and state.decisions == {}
        assert "near duplicate" not in ", ".join(state.rows.flag)  # its original is in the trash
        state.restore()
        assert {path.relative_to(pets).as_posix(): path.read_bytes() for path in pets.rglob("*.png") if ".lessonlib" not in path.parts} == before
        assert state.summary()["images"] == 24 and "near duplicate" in ", ".join(state.rows.flag)

    def test_a_new_label_ends_the_suspicion_of_the_old_one(self, state, table):
        state.decide(table.path[1], "dog")
        state.apply()
        assert "wrong label" not in ", ".join(state.rows.flag) and state.rows.path.iloc[-1].endswith("dog/cat_1.png")

    def test_a_killed_kernel_continues_with_the_same_table(self, state, table, flags, pets):
        state.decide(table.path[0], "delete")
        state.decide(table.path[1], "dog")
        state.apply()
        state.decide(table.path[2], "keep")
        with pytest.warns(UserWarning, match="another plan"): again = CleanerState(CleaningPlan(pets), table, flags)
        assert again.summary() == state.summary() and set(again.rows.path) == set(state.rows.path)
        again.restore(name(table, 0))
        assert again.summary()["images"] == 24

    def test_twice_relabelled_and_one_of_them_restored(self, state, table):
        state.decide(table.path[0], "dog")
        state.apply()
        path = next(path for path in state.rows.path if path.endswith("dog/cat_0.png"))
        state.decide(path, "cat")
        state.apply()
        assert name(table, 0) in set(state.rows.path)
        state.restore()
        assert name(table, 0) in set(state.rows.path) and state.summary()["restorable"] == 0

    def test_labels_in_a_table_give_a_new_table_and_move_nothing(self, pets, table):
        table["label"] = ["x", "y"] * 12
        cleaner = ImageCleaner(table, flags=pd.DataFrame(columns=module._FLAG_COLUMNS))
        before = sorted(path for path in pets.rglob("*.png"))
        cleaner.state.decide(table.path[0], "y")
        cleaner.state.decide(table.path[1], "delete")
        cleaner.state.apply()
        with open(pets / "labels_cleaned.csv", newline="") as file: rows = {row["path"]: row["label"] for row in csv.DictReader(file)}
        assert rows[name(table, 0)] == "y" and name(table, 1) not in rows and len(rows) == 23
        assert sorted(pets.rglob("*.png")) == before and "labels_cleaned.csv" in cleaner.state.status


# --- the widget, headless ---------------------------------------------------------------------------------------------
@pytest.fixture
def cleaner(table, flags):
    return ImageCleaner(table, flags=flags, page_size=10)


class TestWidget:
    def test_the_screen_is_plain_data_and_says_everything(self, cleaner, table):
        screen = json.loads(json.dumps(cleaner.view.screen))
        assert screen["caption"] == "1-10 of 24" and len(screen["cards"]) == 10
        card = next(card for card in screen["cards"] if card["path"] == name(table, 1))
        assert card["label"] == "cat" and card["model"] == "model: dog 80 %" and card["loss"] == "loss 1.60"
        assert card["scores"] == ["wrong label 0.200 < 0.250"] and card["differs"]
        assert [menu["name"] for menu in screen["controls"]] == ["label", "split", "flag", "decision", "sort"]
        assert screen["summary"] == "24 images, 4 flagged. Decided: 0 (0 delete, 0 relabel, 0 keep)."

    def test_messages_do_what_the_browser_asks(self, cleaner, table):
        for message in [{"do": "key", "key": "d", "columns": 4}, {"do": "select", "place": 2, "then": "k"}, {"do": "select", "place": 3},
                        {"do": "label", "label": "dog"}, {"do": "menu", "name": "flag", "value": "dark"},
                        {"do": "threshold", "flag": "dark", "value": 0.6}]: cleaner._asked(message)
        screen = cleaner.view.screen
        assert "Decided: 3 (1 delete, 1 relabel, 1 keep)" in screen["summary"] and screen["threshold"] == {"flag": "dark", "value": 0.6}
        assert len(screen["cards"]) == 3 and cleaner.state.columns == 4
        cleaner._asked({"do": "menu", "name": "flag", "value": ""})
        cleaner._asked({"do": "page", "page": 2})
        cleaner._asked({"do": "undo"})
        assert cleaner.view.screen["page"] == 2 and "Decided: 2" in cleaner.view.screen["summary"]

    def test_apply_asks_first_and_restore_is_beside_it(self, cleaner, table, pets):
        cleaner._asked({"do": "key", "key": "d"})
        cleaner._asked({"do": "preview apply"})
        ask = cleaner.view.screen["ask"]
        assert ask["rows"] == [[name(table, 5), "delete", "cat", "", "the trash"]] and (pets / name(table, 5)).exists()
        cleaner._asked({"do": "not yet"})
        assert cleaner.view.screen["ask"] is None and (pets / name(table, 5)).exists()
        cleaner._asked({"do": "apply"})
        assert not (pets / name(table, 5)).exists() and cleaner.view.screen["restorable"] == 1
        cleaner._asked({"do": "preview restore"})
        assert cleaner.view.screen["ask"]["rows"][0][0] == name(table, 5)
        cleaner._asked({"do": "restore", "path": name(table, 5)})
        assert (pets / name(table, 5)).exists() and cleaner.view.screen["status"] == "1 files are back"

    @pytest.mark.parametrize("message", [{"do": "label", "label": "bird"}, {"do": "page", "page": 99}, {"do": "dance"},
                                         {"do": "menu", "name": "label", "value": "bird"}, {"do": "restore", "path": "nobody.png"}])
    def test_what_goes_wrong_is_said(self, cleaner, message):
        cleaner._asked(message)
        assert cleaner.view.screen["status"].startswith("Not done: ") and cleaner.state.decisions == {}

    def test_a_file_that_has_gone_is_said_and_shown_as_missing(self, cleaner, pets):
        (pets / cleaner.state.path).unlink()
        cleaner._asked({"do": "key", "key": "d"})
        assert "no such file" in cleaner.view.screen["status"]

    def test_pictures_are_sent_only_of_images_in_the_table(self, cleaner, table, monkeypatch):
        sent = []
        monkeypatch.setattr(cleaner.view, "send", lambda message, buffers: sent.append((message, buffers)))
        wanted = [{"what": "a", "path": name(table, 0), "large": False}, {"what": "b", "path": "../secret.png", "large": True}]
        cleaner._asked({"do": "pictures", "wanted": wanted})
        (message, buffers), = sent
        assert message == {"pictures": [["a", True], ["b", False]]} and buffers[0][:2] == b"\xff\xd8" and buffers[1] == b""

    def test_static_picture_and_words(self, cleaner):
        found = module._static_picture(cleaner.state)
        assert found["image/jpeg"][:2] == b"\xff\xd8" and len(found["image/jpeg"]) < 300_000
        assert found["text/plain"].startswith("Images 1-10 of 24.") and "near duplicate" in found["text/plain"]

    def test_folder_alone_finds_its_flags(self, pets):
        shutil.copy(pets / "train/cat/cat_0.png", pets / "valid/cat/cat_9.png")
        cleaner = ImageCleaner(pets)
        assert cleaner.state.rows.flag[0] == "exact duplicate" and "different splits" in cleaner.state.why(cleaner.state.path)[0]
        assert repr(cleaner).startswith("Images 1-25 of 25. 25 images, ")

    def test_a_table_of_labels_in_the_folder(self, pets):
        (pets / "my.csv").write_text("path,label\ntrain/cat/cat_0.png,wild\nvalid/dog/dog_0.png,tame\n")
        cleaner = ImageCleaner(pets, "my.csv")
        assert sorted(cleaner.state.rows.label) == ["tame", "wild"] and cleaner.plan.classes == ["tame", "wild"]

    def test_the_table_of_labels_is_found_again_and_another_one_is_kept(self, pets, table):
        table["label"] = ["x", "y"] * 12
        none = pd.DataFrame(columns=module._FLAG_COLUMNS)
        ImageCleaner(table, flags=none).state.key("d")
        assert ImageCleaner(table, flags=none).state.summary()["delete"] == 1 and len(list(pets.glob("*.csv"))) == 1
        ImageCleaner(table.assign(label=["z", "y"] * 12), flags=none)
        assert sorted(path.name for path in pets.glob("*.csv")) == ["labels-2.csv", "labels.csv"]


class TestThumbnails:
    def test_are_kept_and_made_anew_when_the_image_changes(self, pets):
        first = module._thumbnail(pets, "train/cat/cat_0.png")
        kept, = (pets / ".lessonlib/thumbnails").iterdir()
        assert kept.read_bytes() == first == module._thumbnail(pets, "train/cat/cat_0.png")
        kept.write_bytes(b"from the disk")
        assert module._thumbnail(pets, "train/cat/cat_0.png") == b"from the disk"
        picture(99).save(pets / "train/cat/cat_0.png")
        assert module._thumbnail(pets, "train/cat/cat_0.png")[:2] == b"\xff\xd8"

    def test_large_transparent_and_turned_images(self, pets):
        Image.new("RGBA", (3000, 1000), (0, 0, 0, 0)).save(pets / "clear.png")
        small = Image.open(io.BytesIO(module._thumbnail(pets, "clear.png", 200)))
        assert small.size == (200, 67) and small.getpixel((5, 5)) > (250, 250, 250)

    def test_what_cannot_be_read_or_is_gone_has_none(self, pets):
        (pets / "bad.png").write_bytes(b"no")
        assert module._thumbnail(pets, "bad.png") is None and module._thumbnail(pets, "gone.png") is None

    def test_a_disk_that_cannot_be_written_is_no_reason_to_stop(self, pets, monkeypatch):
        monkeypatch.setattr("pathlib.Path.write_bytes", lambda self, content: (_ for _ in ()).throw(OSError("read-only")))
        assert module._thumbnail(pets, "train/cat/cat_0.png")[:2] == b"\xff\xd8"


# --- from a learner ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def learn(tmp_path_factory):
    from lessonlib.vision import image_dataloaders, vision_learner

    folder = tmp_path_factory.mktemp("set") / "images"
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(10): picture(number + 10 * (label == "dog"), (48, 40)).save(folder / label / f"{number}.png")
    (folder / "cat" / "broken.png").write_bytes(b"no")
    dls = image_dataloaders(image_files(folder), [path.parent.name for path in image_files(folder)], size=32, batch_size=4)
    return vision_learner(dls, weights=None, show=False)


class TestLearner:
    def test_features_are_what_the_last_layer_gets(self, learn):
        import torch

        files = [*learn.dls.train_files, *learn.dls.valid_files]
        features = image_features(learn, files)
        head = learn.model.get_submodule(learn.head)
        want = learn.model.eval()(learn.dls.prepare(files[3])[None])
        assert features.shape == (20, head.in_features) and not learn.model.training
        assert torch.allclose(head(torch.from_numpy(features[3:4])), want, atol=1e-4)
        assert not head._forward_pre_hooks  # nothing is left behind

    def test_learner_without_files_is_refused(self, learn):
        with pytest.raises(ValueError, match="no files"): image_features(learn, [])
        with pytest.raises(TypeError, match="prepares no files"): image_features(type("Other", (), {"dls": object()})(), ["a.png"])

    def test_cleaner_of_a_learner_has_predictions_flags_and_the_left_out(self, learn):
        cleaner = ImageCleaner(learn)
        rows = cleaner.state.rows
        assert len(rows) == 21 and set(rows.split) == {"train", "valid", ""} and rows.confidence.between(0.4, 1).sum() == 20
        preds, targets = learn.get_preds()
        loss = -preds.log_softmax(1)[range(len(targets)), targets]
        want = dict(zip([path.name + path.parent.name for path in learn.dls.valid_files], loss.tolist(), strict=True))
        valid = rows[rows.split == "valid"]
        have = {path.split("/")[-1] + path.split("/")[-2]: loss for path, loss in zip(valid.path, valid.loss, strict=True)}
        assert have == pytest.approx(want, abs=1e-4)
        assert "unreadable" in rows.flag[rows.path == "cat/broken.png"].iloc[0]
        assert "wrong label" in cleaner.state.thresholds and cleaner.plan.classes == ["cat", "dog"]


# --- the promise ------------------------------------------------------------------------------------------------------
def test_practice_set_half_of_the_first_sixty_are_flawed_and_all_copies_and_unreadable_files_are_found(tmp_path):
    folder = shutil.copytree(get_data("pet_sketches_dirty"), tmp_path / "dirty")
    with open(folder / "answer_key.csv", newline="") as file: key = {row["name"]: row for row in csv.DictReader(file)}
    files = [path.relative_to(folder / "images").as_posix() for path in image_files(folder / "images")]
    table = pd.DataFrame({"path": files, "label": [file.rsplit("_", 1)[0] for file in files]})
    found = find_flags(files, table.label, folder=folder / "images", progress=False)
    state = CleanerState(CleaningPlan(folder / "images"), table, found)
    assert sum(path in key for path in state.rows.path[:60]) >= 30
    have = {flag: set(found.path[found.flag == flag]) for flag in set(found.flag)}
    pairs = {frozenset(pair) for pair in zip(found.path, found.other, strict=True)}
    for file, row in key.items():
        if row["flaw"] in ("near duplicate", "exact duplicate"): assert frozenset((file, row["detail"])) in pairs
        if row["flaw"] in ("dark", "blurred"): assert file in have[row["flaw"]]
    assert have["unreadable"] == {file for file, row in key.items() if row["flaw"] == "truncated"}
    assert sum(file in key for file in set(found.path)) >= 0.9 * found.path.nunique()


def test_import_is_light():
    "Neither torch nor anything that draws or learns is imported before it is needed."
    heavy = "torch sklearn cleanlab cleanvision PIL pandas ipywidgets anywidget matplotlib imagehash"
    code = f"import sys, lessonlib.cleaner; print(*[name for name in {heavy.split()} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""

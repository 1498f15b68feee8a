"""Progress: nothing acknowledged is lost, nothing lost is called saved, and what is due comes from the events alone."""
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import warnings
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessonlib import cli
from lessonlib import progress as module
from lessonlib.progress import (
    Progress,
    append_record,
    calibration,
    class_report,
    due,
    plot_progress,
    progress,
    read_records,
    store,
)
from lessonlib.quiz import Questionnaire

pytestmark = pytest.mark.filterwarnings("ignore:Not saved", "ignore:Your progress file")


@pytest.fixture
def book(tmp_path):
    return Progress(tmp_path / "progress.db")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(Progress, "patience", 0.2)


def answered(book, item="01-a", state="right", **details):
    """One answer; the lesson's number is in the item."""
    score = details.pop("score", 0 if state == "wrong" else 1)
    return book.record("answer", details.pop("lesson", "01_pixels"), item, topic=details.pop("topic", "pixels"), state=state, score=score, **details)


# --- what is kept -----------------------------------------------------------------------------------------------------
@given(response=st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                             lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=5),
       item=st.text(max_size=20))
@settings(max_examples=40)
def test_what_is_recorded_comes_back(tmp_path_factory, response, item):
    book = Progress(tmp_path_factory.getbasetemp() / "any.db")
    ident = book.record("answer", "01_pixels", item, response=response, state="right", score=1)
    event = book.events()[-1]
    plain = item.encode("utf-8", "replace").decode().replace("\0", " ")
    assert (event["id"], event["item"]) == (ident, plain) and event["response"] == response
    assert uuid.UUID(ident) and datetime.fromisoformat(event["time"]).utcoffset() == timedelta(0)
    assert Progress(book.file).events()[-1] == event, "another process sees the same"


def test_responses_that_json_cannot_hold_are_kept_in_words(book):
    np = pytest.importorskip("numpy")
    for response in (np.arange(3), np.float32(0.5), {2, 1}, {1: "a"}, (64, 1), min, "half a character \ud800"):
        assert book.record("answer", "", "01-a", response=response)
    kept = [event["response"] for event in book.events()]
    assert kept[:5] == [[0, 1, 2], 0.5, [1, 2], {"1": "a"}, [64, 1]] and "min" in kept[5] and kept[6] == "half a character \ud800"


@pytest.mark.parametrize("wrong", [{"kind": "anwser"}, {"sure": "very"}, {"score": 1.5}])
def test_events_that_mean_nothing_are_refused(book, wrong):
    with pytest.raises(ValueError, match="expected"):
        book.record(**{"kind": "answer", "lesson": "", "item": "", **wrong})
    assert book.events() == []


def test_events_are_chosen_and_in_order(book):
    for number in range(5): answered(book, f"01-{number % 2}", lesson=f"0{number % 2}_x", response=number)
    book.record("hint", "01_x", "01-1", hints=1)
    assert [event["response"] for event in book.events("answer")] == [0, 1, 2, 3, 4]
    assert [event["response"] for event in book.events("answer", "01_x")] == [1, 3]
    assert [event["kind"] for event in book.events(item="01-1")] == ["answer", "answer", "hint"]


def test_states_are_those_of_the_last_answer(book):
    answered(book, "01-a", "right")
    answered(book, "01-b", "wrong")
    book.record("hint", "01_pixels", "01-b", hints=1)
    answered(book, "01-b", "right after hints")
    answered(book, "01-a", "wrong")
    book.record("answer", "01_pixels", "01-c")  # could not be marked
    book.record("guess", "01_pixels", "How many?", state="right", score=1)
    assert book.states() == {"01-a": "wrong", "01-b": "right after hints"}
    assert book.states("02_fitting") == {}


def test_store_follows_the_environment(home, monkeypatch):
    first = store()
    assert store() is first and first.file == home / "progress/progress.db"
    monkeypatch.setenv("LESSONLIB_PROGRESS", str(home / "elsewhere.db"))
    assert store() is not first and store().file == home / "elsewhere.db"
    monkeypatch.setenv("LESSONLIB_PROGRESS", f"sqlite:///{home / 'url.db'}")
    assert answered(store()) and (home / "url.db").is_file() and len(store().events()) == 1


def test_reading_nothing_makes_no_file(home):
    assert store().events() == [] and store().states() == {} and not home.exists()


def test_a_folder_deleted_in_between_is_made_again(book, tmp_path):
    book = Progress(tmp_path / "deep" / "progress.db")
    assert answered(book)
    shutil.rmtree(tmp_path / "deep")
    assert book.events() == [] and answered(book, "01-b") and book.states() == {"01-b": "right"}
    book.file.write_bytes(b"")  # emptied by something else
    assert answered(book, "01-c") and book.states() == {"01-c": "right"} and book.warning == ""


def test_old_guesses_are_taken_over_once(home):
    file = home / "progress/guesses.jsonl"
    lines = [{"time": 1.7e9 + number, "prompt": "How many?", "response": str(number), "verdict": "So."} for number in range(3)]
    for line in lines: append_record(file, line)
    with open(file, "ab") as stream: stream.write(b'5\n{"prompt": "no time"}\n{"time": 1, "pro')
    before = file.read_bytes()
    assert [event["response"] for event in store().events("guess", item="How many?")] == ["0", "1", "2"]
    assert not file.exists() and (home / "progress/guesses-taken-over.jsonl").read_bytes() == before
    file.write_bytes(before)  # killed between the database and the new name
    assert len(store().events()) == 3 and not file.exists() and len(list(file.parent.glob("guesses-taken-over*"))) == 2


def test_import_is_quick(home):
    heavy = {"torch", "pandas", "sqlalchemy", "ipywidgets", "matplotlib", "yaml", "pydantic", "fsrs", "IPython", "filelock"}
    code = f"import sys; from lessonlib.progress import store; store().events(); print(*sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


# --- a database that cannot be used -----------------------------------------------------------------------------------
def test_locked_is_waited_for_then_said_and_saved_later(book, impatient):
    answered(book)
    with sqlite3.connect(book.file) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.warns(UserWarning, match="in use by another program"):
            assert answered(book, "01-b") == ""
        assert "Not saved" in book.warning and "0.2 seconds" in book.warning
        assert book.states() == {"01-b": "right"}, "what was answered counts in this notebook"
        other.rollback()
    assert answered(book, "01-c") and book.warning == "" and book.unsaved == []
    assert set(Progress(book.file).states()) == {"01-a", "01-b", "01-c"}, "the one that waited was saved with the next"
    other.close()


def test_locked_for_a_moment_is_not_noticed(book):
    answered(book)
    other = sqlite3.connect(book.file, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    threading.Timer(0.3, other.rollback).start()
    assert answered(book, "01-b") and book.warning == ""
    other.close()


def test_read_only_is_said_and_teaching_goes_on(book, monkeypatch):
    answered(book)
    before = book.file.read_bytes()
    frozen = Progress(f"sqlite:///file:{book.file}?mode=ro&uri=true")
    with pytest.warns(UserWarning, match="read-only"):
        assert answered(frozen, "01-b", "wrong") == ""
    assert frozen.states() == {"01-a": "right", "01-b": "wrong"} and "Not saved" in frozen.warning
    assert book.file.read_bytes() == before and set(Progress(book.file).states()) == {"01-a"}
    other = Progress(book.file.with_name("other.db"))
    assert answered(other)
    with pytest.raises(OSError, match="read-only"):
        frozen.merge(_exported(other, "one.json"))


def _exported(book, name):
    book.export(book.file.with_name(name))
    return book.file.with_name(name)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    book = Progress(tmp_path / "file" / "progress.db")
    assert answered(book) == "" and "cannot be used" in book.warning and book.states() == {"01-a": "right"}


def test_without_sqlalchemy_the_lesson_goes_on(book, monkeypatch):
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    monkeypatch.setitem(sys.modules, "sqlalchemy.pool", None)
    assert answered(book) == "" and "pip install" in book.warning and book.states() == {"01-a": "right"}


@pytest.mark.parametrize("url, said", [("mysql://localhost/x", "mysql"), ("nonsense://", "nonsense"),
                                       ("postgresql://anna:secret@localhost:1/x", "localhost")])
def test_servers_that_cannot_be_reached(url, said, impatient):
    if said == "localhost": pytest.importorskip("psycopg")
    book = Progress(url)
    assert answered(book) == "" and said in book.warning and "secret" not in book.warning and book.states() == {"01-a": "right"}


@pytest.mark.parametrize("damage", ["text", "zeros", "tail"])
def test_damaged_is_set_aside_and_never_overwritten(book, damage):
    rows = [module._new_event("answer", "01_pixels", f"01-{number}", state="right", response="x" * 200) for number in range(200)]
    module._insert_rows(book.file, rows)
    assert answered(book)
    content = bytearray(book.file.read_bytes())
    if damage == "text": content[:100] = b"This is not a database. " * 4 + b"Here"
    if damage == "zeros": content[len(content) // 2:-4096] = bytes(len(content) - 4096 - len(content) // 2)
    if damage == "tail": del content[len(content) // 2:]
    book.file.write_bytes(content)
    fresh = Progress(book.file)
    with pytest.warns(UserWarning, match="damaged"):
        assert answered(fresh, "02-a")
    aside, = book.file.parent.glob("progress-damaged-*.db")
    assert aside.read_bytes() == content and aside.name in fresh.warning
    assert "02-a" in fresh.states() and Progress(book.file).warning == ""
    assert damage == "text" or len(fresh.states()) > 10, "what could be read was carried over"
    assert book.record("answer", "01_pixels", "02-b", state="right") and "02-b" in fresh.states(), "the older notebook goes on in the new file"


def test_two_notebooks_find_the_damage_at_once(tmp_path):
    file = tmp_path / "progress.db"
    file.write_text("not a database, though it has the name of one" * 50)
    books = [Progress(file) for _ in range(4)]
    threads = [threading.Thread(target=lambda book=book, n=n: answered(book, f"01-{n}")) for n, book in enumerate(books)]
    with warnings.catch_warnings(action="ignore"):
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    assert len(list(tmp_path.glob("progress-damaged-*.db"))) == 1 and len(Progress(file).states()) == 4


def test_an_old_journal_is_not_played_into_the_new_database(tmp_path):
    file = tmp_path / "progress.db"
    file.write_text("not a database" * 50)
    Path(f"{file}-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(504))
    assert answered(Progress(file)) and len(Progress(file).events()) == 1
    assert not Path(f"{file}-journal").exists()


def test_from_a_newer_version_is_left_alone(book):
    answered(book)
    with sqlite3.connect(book.file) as connection:
        connection.execute("UPDATE events SET version = 99")
    connection.close()
    before, newer = book.file.read_bytes(), Progress(book.file)
    with pytest.warns(UserWarning, match="update this one"):
        assert answered(newer, "01-b") == ""
    assert book.file.read_bytes() == before and newer.states() == {"01-b": "right"} and list(book.file.parent.iterdir()) == [book.file]


def test_an_export_is_whole_or_not_made(book, impatient, tmp_path):
    answered(book)
    with sqlite3.connect(book.file) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OSError, match="in use by another program"):
            book.export(tmp_path / "half.csv")
        other.rollback()
    other.close()
    assert not (tmp_path / "half.csv").exists() and book.export(tmp_path / "whole.csv") is None


@pytest.mark.skipif(os.name == "nt", reason="permissions of a folder mean something else on Windows")
def test_a_folder_without_write_permission(book):
    """As a plain user; root, whom permissions do not stop, becomes one in a child process."""
    answered(book)
    os.chmod(book.file, 0o444)
    for folder in [book.file.parent, *book.file.parents]:
        mode = folder.stat().st_mode & 0o777
        if folder == book.file.parent or mode & 0o555 != 0o555:
            with suppress(PermissionError): os.chmod(folder, 0o555 if folder == book.file.parent else mode | 0o555)
    pid = os.fork()
    if not pid:
        with suppress(BaseException):
            if os.geteuid() == 0: os.setuid(65534)
            said = answered(book, "01-b")
            os._exit(0 if said == "" and "read-only" in book.warning and set(book.states()) == {"01-a", "01-b"} else 3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.chmod(book.file.parent, 0o755)
    assert set(Progress(book.file).states()) == {"01-a"}


# --- out and back -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["progress.csv", "progress.json"])
def test_export_and_import_without_loss_or_duplicates(book, tmp_path, name):
    answered(book, response='a "quoted"\r\nline, and\na comma; =1+1', sure="certain", detail={"seed": 1})
    book.record("hint", "01_pixels", "01-ü", hints=2)
    answered(book, "01-b", "wrong", response={"text": "\u2028", "ticked": [1]})
    other = Progress(tmp_path / "other.db")
    file = _exported(book, name)
    assert other.merge(file) == 3 and other.merge(file) == 0 and other.events() == book.events()
    answered(book, "01-new")
    assert other.merge(_exported(book, name)) == 1 and book.merge(_exported(other, "back.csv")) == 0
    assert not list(tmp_path.glob(".*.part"))


def test_a_spreadsheets_copy_comes_back(book, tmp_path):
    answered(book, response=[1, 2])
    file = _exported(book, "progress.csv")
    text = file.read_text(encoding="utf-8").replace(",", ";").replace("[1; 2]", "[1, 2]")
    file.write_text("\ufeff" + text, encoding="utf-8")
    other = Progress(tmp_path / "other.db")
    assert other.merge(file) == 1 and other.events() == book.events()


@pytest.mark.parametrize("name, content, said", [
    ("a.csv", "name,age\nanna,20\n", "not a file of exported progress"),
    ("a.json", "[]", "not a file of exported progress"),
    ("a.json", '{"events": [{"id": "x"}]}', "event 1"),
    ("a.json", '{"events": [5]}', "a.json"),
    ("a.txt", "", "csv or .json"),
    ("a.csv", "id,time,kind,lesson,item\nnot-an-id,2026-01-01,answer,a,b\n", "event 1: "),
    ("a.csv", f"id,time,kind,lesson,item\n{uuid.uuid4()},yesterday,answer,a,b\n", "event 1: .*yesterday"),
    ("a.csv", f"id,time,kind,lesson,item,version\n{uuid.uuid4()},2026-01-01,answer,a,b,9\n", "newer lessonlib"),
])
def test_files_that_are_no_exports_change_nothing(book, tmp_path, name, content, said):
    answered(book)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        book.merge(tmp_path / name)
    assert len(book.events()) == 1
    with pytest.raises(ValueError, match="csv or .json"):
        book.export(tmp_path / "progress.xlsx")


# --- killed at any moment ---------------------------------------------------------------------------------------------
ENDLESS = """
import sys
from lessonlib.progress import Progress
book = Progress(sys.argv[1])
while True: print(book.record("answer", "", "a"), flush=True)
"""
NURSERY = r"""
import json, os, random, select, signal, sys, time
from pathlib import Path
from lessonlib.progress import Progress

folder, rounds, seed, pause = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), 0.02
rng, acknowledged, counts = random.Random(seed), {}, []
Progress(folder / "warm.db").record("answer", "", "warm")  # what is imported here, no child has to import

def answer_on(file, pipe):
    book = Progress(file)
    while True:
        begun = time.monotonic()
        os.write(pipe, (book.record("answer", "01_pixels", "01-a", response="x" * 300, state="right") + "\n").encode())
        time.sleep((time.monotonic() - begun) / 2)  # else one of two would hold the database all the time

def start(file):
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        try: answer_on(file, theirs)
        finally: os._exit(1)
    os.close(theirs)
    return pid, ours

for number in range(rounds):
    file = folder / f"progress{number // 20}.db"  # every twentieth round begins a new database: killed while it is made
    children = [start(file) for _ in range(1 + (number % 4 == 0))]  # sometimes two notebooks
    said, wanted = {pipe: b"" for _, pipe in children}, rng.choice([0, 1, 1, 2])  # wait for so many answers, then a moment more
    while b"".join(said.values()).count(b"\n") < wanted:
        for pipe in select.select(list(said), [], [])[0]: said[pipe] += os.read(pipe, 4096) or sys.exit("a child ended by itself")
    time.sleep(rng.random() * (pause if wanted else 2 * pause))
    for pid, _ in children: os.kill(pid, signal.SIGKILL)
    for pid, pipe in children:
        os.waitpid(pid, 0)
        with os.fdopen(pipe) as stream: lines = (said[pipe].decode() + stream.read()).split("\n")[:-1]
        acknowledged.setdefault(str(file), []).extend(lines)
        counts.append(len(lines))
print(json.dumps([acknowledged, counts]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="200 rounds need os.fork; without it only the three rounds below are run")
def test_killed_200_times_no_acknowledged_answer_is_lost(tmp_path):
    """Children answer as fast as they can and say each id after `record` returned; each is killed at a random moment."""
    result = subprocess.run([sys.executable, "-c", NURSERY, str(tmp_path), "200", "7"], capture_output=True, text=True, check=True)
    acknowledged, counts = json.loads(result.stdout)
    assert len(counts) >= 200 and sum(counts) >= 150
    for file, idents in acknowledged.items():
        book = Progress(file)
        kept = [event["id"] for event in book.events()]
        assert "" not in idents, result.stderr[-2000:]
        assert set(idents) <= set(kept) and len(kept) == len(set(kept))
        assert book.warning == "" and answered(book)
    assert not list(tmp_path.glob("*damaged*")) and "Warning" not in result.stderr


def test_killed_as_a_fresh_process(tmp_path):
    """The same without fork: a few rounds, for each must import everything."""
    acknowledged, file = [], tmp_path / "progress.db"
    for number in range(3):
        child = subprocess.Popen([sys.executable, "-c", ENDLESS, str(file)], stdout=subprocess.PIPE, text=True)
        acknowledged.append(child.stdout.readline().strip())
        time.sleep(0.01 * number)
        child.kill()
        acknowledged += child.communicate()[0].split("\n")[:-1]
    assert set(acknowledged) <= {event["id"] for event in Progress(file).events()} and "" not in acknowledged


def test_two_notebooks_at_once(tmp_path):
    """Two that write at the same time wait for each other and lose nothing."""
    books = [Progress(tmp_path / "progress.db") for _ in range(2)]
    threads = [threading.Thread(target=lambda book=book: [answered(book) for _ in range(25)]) for book in books]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert len(books[0].events()) == 50 and [book.warning for book in books] == ["", ""]


# --- progress, calibration, review --------------------------------------------------------------------------------------
def test_progress_counts_every_question_of_a_lesson(home):
    everything = progress()
    assert list(everything) == ["lesson", "topic", "questions", "attempted", "right", "right_after_hints", "mastery"]
    assert (everything[["attempted", "mastery"]] == 0).all(axis=None) and len(everything["lesson"].unique()) >= 3
    for item, state in [("90-a", "right"), ("90-b", "right after hints"), ("90-c", "wrong"), ("90-c", "right"), ("90-a", "wrong")]:
        answered(store(), item, state, lesson="my_lesson", topic="mine")
    row, = progress("my_lesson").to_dict("records")
    assert row == {"lesson": "my_lesson", "topic": "mine", "questions": 3, "attempted": 3, "right": 1, "right_after_hints": 1, "mastery": 0.5}
    assert len(progress()) == len(everything) + 1 and progress("no_such").empty


def test_progress_knows_the_questions_of_the_course(home):
    item, asked = next(iter(module._catalogue().items()))
    answered(store(), item, lesson=asked["lesson"], topic="an older name of the topic")
    rows = progress(asked["lesson"])
    assert rows["attempted"].sum() == 1 and rows.loc[rows["attempted"] == 1, "topic"].item() == asked["topic"]


def test_calibration_counts_first_answers_only(home):
    for item, sure, scores in [("a", "certain", [0, 1]), ("b", "certain", [1]), ("c", "guess", [0.5]), ("d", None, [1])]:
        for score in scores: answered(store(), item, "right" if score else "wrong", score=score, sure=sure)
    store().record("guess", "", "How many?", sure="fairly")  # not judged yet
    store().record("guess", "", "How many?", sure="fairly", score=1, state="right")
    rows = calibration(store().events()).set_index("sure")
    assert list(rows.index) == ["guess", "fairly", "certain"] and list(rows["answers"]) == [1, 1, 2] and list(rows["right"]) == [0.5, 1, 0.5]


def test_pictures_of_nothing_and_of_something(home):
    for _ in range(2):
        figure = plot_progress()
        assert [axis.get_title() for axis in figure.axes] == ["Mastery by lesson", "Topics that need work most", "Calibration"]
        assert all(axis.get_xlabel() for axis in figure.axes)
        answered(store(), "90-a", "right", lesson="my_lesson", topic="x" * 60, sure="certain")
    assert [bar.get_height() for bar in figure.axes[2].patches] == [0, 0, 100]
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["x" * 28 + "…"]


def at(book, item, state, days, sure=None):
    """An answer so many days ago."""
    row = module._new_event("answer", "01_pixels", item, "pixels", state=state, score=float(state != "wrong"), sure=sure)
    row["time"] = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    module._insert_rows(book.file, [row])


def test_what_is_due_and_when(home):
    store().file.parent.mkdir(parents=True)
    at(store(), "again", "wrong", 1.5)
    at(store(), "hard", "right after hints", 1.5)
    at(store(), "good", "right", 1.5, "guess")
    at(store(), "easy", "right", 1.5, "certain")
    assert set(due()["item"]) == {"again", "hard"}
    plan = due(everything=True)
    assert list(plan) == ["item", "lesson", "topic", "state", "due"] and list(plan["item"])[-1] == "easy" and plan["due"].is_monotonic_increasing
    assert len(due(datetime.now(UTC) + timedelta(days=365))) == 4 and len(due(datetime.now() + timedelta(days=365))) == 4
    at(store(), "again", "right", 0)
    assert set(due()["item"]) == {"hard"}, "answered today, due later"
    assert due(everything=True)["due"].equals(due(everything=True)["due"]), "the same answers, the same plan"


def test_due_follows_the_fsrs_library(home):
    from fsrs import Card, Rating, Scheduler

    store().file.parent.mkdir(parents=True)
    for state, days in [("right", 20), ("right", 15), ("wrong", 5), ("right", 4)]: at(store(), "a", state, days)
    times = [datetime.fromisoformat(event["time"]) for event in store().events()]
    card, scheduler = Card(due=times[0]), Scheduler(learning_steps=(), relearning_steps=(), enable_fuzzing=False)
    for rating, when in zip([Rating.Good, Rating.Good, Rating.Again, Rating.Good], times, strict=True):
        card, _ = scheduler.review_card(card, rating, review_datetime=when)
    assert due(everything=True)["due"].item() == card.due


def test_guesses_hints_and_what_was_not_marked_are_not_reviewed(home):
    store().record("guess", "", "How many?", score=0, state="wrong")
    store().record("hint", "01_pixels", "01-a", hints=1)
    store().record("answer", "01_pixels", "01-b", response="def f(): ...")
    assert due(everything=True).empty and list(due()) == ["item", "lesson", "topic", "state", "due"]


# --- a class ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def classroom(tmp_path):
    """Exports of four students, one broken file, and a roster of five."""
    folder = tmp_path / "class"
    folder.mkdir()
    said = {"anna": [("wrong", "7 <b>"), ("right", "8")], "bert": [("wrong", "7 <b>")], "carl": [("wrong", "9")], "Dora": []}
    for name, answers in said.items():
        book = Progress(tmp_path / f"{name}.db")
        for state, response in answers:
            score = float(state == "right")
            book.record("answer", "my_lesson", "90-a", topic="<script>", response=response, state=state, score=score, sure="certain")
        book.export(folder / f"{name}.{'csv' if name < 'b' else 'json'}")
    (folder / "broken.csv").write_text("id,kind\n1,answer\n")
    (folder / "notes.txt").write_text("not an export")
    (folder / "roster.txt").write_text("name\nAnna\nBert\nCarl\nDora\n<i>Emil</i>\n")
    return folder


def test_class_report(classroom):
    table = class_report(classroom)
    row, = table.to_dict("records")
    assert row["students"] == 3 and row["right_first"] == 0 and row["right_now"] == pytest.approx(1 / 3)
    assert row["commonest_wrong"] == "7 <b>" and row["times"] == 2 and row["certain_but_wrong"] == 3
    page = (classroom / "class-report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in page and "<script>" not in page and "7 &lt;b&gt;" in page and "&lt;i&gt;Emil" in page
    assert "<li>Dora</li>" in page and "<li>Anna</li>" not in page and "broken.csv, event 1: " in page
    assert "not for marks" in page and not re.search(r"(src|href)\s*=", page), "one file, nothing from elsewhere"


def test_a_copied_file_is_seen(classroom):
    shutil.copy(classroom / "anna.csv", classroom / "Emil.csv")
    class_report(classroom, classroom / "page.html")
    assert "Emil and anna (2 events)" in (classroom / "page.html").read_text(encoding="utf-8")


def test_a_class_of_nobody(tmp_path):
    assert class_report(tmp_path).empty and (tmp_path / "class-report.html").is_file()
    with pytest.raises(FileNotFoundError, match="no folder"):
        class_report(tmp_path / "nowhere")


def test_choices_are_named_in_the_report():
    choices = [{"text": "a row"}, {"text": "a column"}]
    assert module._response_words(1, choices) == module._response_words("a column", choices) == "a column"
    assert module._response_words([0, 1], choices) == "a row + a column" and module._response_words(9, choices) == "9"
    assert module._response_words([64, 1], None) == "[64, 1]" and len(module._response_words("x" * 500, None)) == 80


# --- the command ----------------------------------------------------------------------------------------------------------
def test_command_progress_and_back(home, tmp_path, capsys, monkeypatch):
    answered(store(), "90-a", "right", lesson="my_lesson")
    assert cli.main(["progress"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"my_lesson +1 +1 +1 +0 +100%", said) and "01_pixels" in said and str(home) in said
    assert cli.main(["progress", "my_lesson", "--export", str(tmp_path / "me.csv")]) == 0
    monkeypatch.setenv("LESSONLIB_HOME", str(tmp_path / "other"))
    assert cli.main(["progress", "--import", str(tmp_path / "me.csv"), str(tmp_path / "me.csv")]) == 0
    said = capsys.readouterr().out
    assert "1 new events" in said and "0 new events" in said and store().states() == {"90-a": "right"}
    assert cli.main(["progress", "--import", str(tmp_path / "nowhere.csv")]) == 2 and "nowhere.csv" in capsys.readouterr().err


def test_command_class_report(classroom, capsys):
    assert cli.main(["class-report", str(classroom)]) == 0
    said = capsys.readouterr().out
    assert "90-a" in said and "no basis for marks" in said
    assert cli.main(["class-report", str(classroom / "none")]) == 2


def test_command_review_lists_what_is_due(home, capsys):
    assert cli.main(["review"]) == 0 and "come back another day" in capsys.readouterr().out
    store().file.parent.mkdir(parents=True)
    at(store(), "01-a", "wrong", 3)
    assert cli.main(["review", "--list"]) == 0
    assert re.search(r"1 questions? (are|is) due", said := capsys.readouterr().out) and "01-a" in said


def test_review_in_the_terminal_asks_until_it_is_right(home, tmp_path, capsys):
    (tmp_path / "mine.yml").write_text("""
lesson: mine
title: Mine
planned: [Here]
questions:
- {id: 90-a, kind: one, topic: t, difficulty: 1, section: Here, prompt: Which?, hints: [Look.], explanation: So it is.,
   choices: [{text: this, right: true}, {text: that, feedback: Not that.}]}
""")
    sheet = Questionnaire.load(tmp_path / "mine.yml")
    choices = ["this", "that"]

    def typed():
        shown = [choices[index] for index in sheet.order("90-a")]
        yield from ["5", str(shown.index("that") + 1), "3", "?", str(shown.index("this") + 1), "1"]

    lines = typed()  # begins at the first question read, when the order of this try is known
    assert cli._ask(sheet, "90-a", lambda _: next(lines)) and store().states() == {"90-a": "right after hints"}
    said = capsys.readouterr().out
    assert "expected numbers from 1 to 2" in said and "Not that." in said and "Look." in said and "So it is." in said
    assert [event["sure"] for event in store().events("answer")] == ["certain", "guess"]
    assert cli._ask(sheet, "90-a", lambda _: "q") is False and cli._ask(sheet, "90-a", lambda _: "") is True


# --- PostgreSQL: a class on one server ----------------------------------------------------------------------------------
def postgres_folder():
    """Where initdb and pg_ctl are, or None. Under CI=true, as root, Debian's package is installed where it is missing."""
    def found():
        newest = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: int(re.sub(r"\D", "", file.parts[-3]) or 0))[-1:]
        return next((Path(file).parent for file in [*newest, shutil.which("initdb")] if file), None)

    if found() is None and os.environ.get("CI") == "true" and shutil.which("apt-get") and os.geteuid() == 0:
        quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "stdout": subprocess.DEVNULL, "timeout": 600}
        subprocess.run(["apt-get", "update", "-q"], **quiet)
        subprocess.run(["apt-get", "install", "-q", "-y", "--no-install-recommends", "postgresql"], **quiet)
    return found()


@pytest.fixture(scope="module")
def server():
    """A PostgreSQL server of its own, on a socket in a temporary folder: a function that calls pg_ctl, and the URL."""
    binaries = postgres_folder() if os.name == "posix" else None
    try:
        import psycopg  # noqa: F401
    except ImportError:
        binaries = None
    if binaries is None:
        reason = "no PostgreSQL server to start: apt-get install postgresql, and pip install 'lessonlib[postgres]'"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="lessonlib-pg-", dir="/tmp"))  # a socket's path must be short
    as_user = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]

    def call(*arguments):
        subprocess.run([*as_user, *map(str, arguments)], cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, timeout=120)

    def control(action):
        call(binaries / "pg_ctl", "-D", folder / "data", "-w", "-m" if action == "stop" else "-l", "fast" if action == "stop" else folder / "log",
             *(["-o", f"-F -k {folder} -c listen_addresses=''"] if action == "start" else []), action)

    try:
        call(binaries / "initdb", "-D", folder / "data", "-A", "trust", "-U", "postgres", "--no-sync")
        control("start")
        yield control, f"postgresql+psycopg://postgres@/postgres?host={folder}"
        control("stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def shared(server, monkeypatch):
    """The URL of an empty database."""
    import psycopg

    control, url = server
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS events")
    monkeypatch.setenv("LESSONLIB_STUDENT", "anna")
    return url


def test_postgresql_keeps_what_sqlite_keeps(shared, book, tmp_path, monkeypatch):
    monkeypatch.setenv("LESSONLIB_PROGRESS", shared.replace("+psycopg", ""))
    answered(store(), "01-a", "wrong", response={"text": "\0 \u2028"}, sure="certain")
    store().record("hint", "01_pixels", "01-a", hints=1)
    answered(store(), "01-a", "right after hints", hints=1)
    assert store().states() == {"01-a": "right after hints"} and store().warning == ""
    assert [event["kind"] for event in store().events()] == ["answer", "hint", "answer"]
    assert store().events()[0]["response"] == {"text": "\0 \u2028"}
    assert progress("01_pixels")["attempted"].sum() == 1 and len(due(everything=True)) == 1
    store().export(tmp_path / "anna.json")
    assert book.merge(tmp_path / "anna.json") == 3 and store().merge(tmp_path / "anna.json") == 0 and book.events() == store().events()


def test_postgresql_students_see_their_own(shared, tmp_path, monkeypatch):
    for name, state in [("anna", "right"), ("bert", "wrong")]:
        monkeypatch.setenv("LESSONLIB_STUDENT", name)
        assert answered(Progress(shared), state=state)
    assert Progress(shared).states() == {"01-a": "wrong"}
    table = class_report(shared, tmp_path / "page.html")
    assert table["students"].item() == 2 and table["right_first"].item() == 0.5


def test_postgresql_two_students_make_the_table_at_once(shared):
    books = [Progress(shared) for _ in range(6)]
    threads = [threading.Thread(target=lambda book=book: [answered(book) for _ in range(3)]) for book in books]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert len(books[0].events()) == 18 and {book.warning for book in books} == {""}


def test_postgresql_students_who_may_only_add_and_read(shared):
    import psycopg

    assert answered(Progress(shared))  # the teacher makes the table
    with psycopg.connect(shared.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS pupil")
        connection.execute("CREATE ROLE pupil LOGIN")
        connection.execute("GRANT SELECT, INSERT ON events TO pupil")
    pupil = Progress(shared.replace("postgres@", "pupil@"))
    assert answered(pupil, "01-b") and set(pupil.states()) == {"01-a", "01-b"}


def test_postgresql_goes_away_and_comes_back(server, shared, impatient, tmp_path):
    book = Progress(shared)
    assert answered(book)
    server[0]("stop")
    try:
        assert answered(book, "01-b", "wrong") == "" and "Not saved" in book.warning and book.states() == {"01-b": "wrong"}
        with pytest.raises(OSError, match="Not saved"):
            book.export(tmp_path / "half.csv")
        assert list(tmp_path.iterdir()) == []
    finally:
        server[0]("start")
    assert answered(book, "01-c") and book.warning == "" and set(Progress(shared).states()) == {"01-a", "01-b", "01-c"}


def test_postgresql_from_a_newer_version_is_left_alone(shared):
    import psycopg

    answered(Progress(shared))
    with psycopg.connect(shared.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("UPDATE events SET version = 99")
        assert answered(Progress(shared), "01-b") == ""
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (1,)


def test_postgresql_client_killed_while_it_answers(shared):
    child = subprocess.Popen([sys.executable, "-c", ENDLESS, shared], stdout=subprocess.PIPE, text=True)
    acknowledged = [child.stdout.readline().strip() for _ in range(5)]
    child.kill()
    acknowledged += child.communicate()[0].split("\n")[:-1]
    assert set(acknowledged) <= {event["id"] for event in Progress(shared).events()} and "" not in acknowledged


# --- lines in a file ------------------------------------------------------------------------------------------------------
def test_killed_while_writing_loses_at_most_the_last_line(tmp_path):
    """Kill a process that writes as fast as it can; every line that was acknowledged is there."""
    file = tmp_path / "guesses.jsonl"
    code = ("import itertools, sys; from lessonlib.progress import append_record\n"
            "for number in itertools.count():\n    append_record(sys.argv[1], {'n': number}); print(number, flush=True)")
    process = subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True)
    while not file.is_file() or file.stat().st_size < 2000:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
    acknowledged = [int(line) for line in process.communicate()[0].split()]
    append_record(file, {"n": -1})
    numbers = [record["n"] for record in read_records(file)]
    assert numbers[-1] == -1 and set(acknowledged) <= set(numbers)


@pytest.mark.parametrize("text", ["a\u2028b\u0085c", "half a character \ud800", "line\r\nend"])
def test_records_hold_any_text(tmp_path, text):
    for _ in range(2): append_record(tmp_path / "decisions.jsonl", {"text": text})
    assert read_records(tmp_path / "decisions.jsonl") == [{"text": text}] * 2

"""Guesses: judged, kept, never in the way."""
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessonlib.quiz import (
    Guess,
    append_record,
    format_value,
    guess,
    guess_widget,
    parse_number,
    parse_shape,
    read_records,
    static_guess,
    store,
)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12))
def test_numbers_are_read_as_written(value):
    assert parse_number(repr(value)) == value
    assert parse_number(f" {value!r} ") == value


@pytest.mark.parametrize("text, value", [("0,5", 0.5), ("12,345", 12345), ("1 000 000", 1e6), ("12.5 %", 0.125), ("-3", -3), ("1,5e-3", 1.5e-3)])
def test_numbers_as_people_write_them(text, value):
    assert parse_number(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "about ten", "1.2.3", "nan", "inf", "--1"])
def test_what_is_not_a_number_is_named(text):
    with pytest.raises(ValueError, match="try 0.5"):
        parse_number(text)


@pytest.mark.parametrize("response, words", [(100, "Exactly"), (95, "Close"), (50, "50% below"), (151, "51% above"), (1e6, "far above")])
def test_numbers_are_judged_by_distance(response, words):
    assert words in Guess("", 100).judge(response)


def test_zero_and_negative_actual_values():
    assert Guess("", 0).judge("0").startswith("Exactly")
    assert "above" in Guess("", 0).judge("3") and "below" in Guess("", -2).judge("-3")


def test_texts_and_functions_and_tensors():
    torch = pytest.importorskip("torch")
    assert Guess("", "overfits", choices=["overfits", "underfits"]).judge("Overfits").startswith("Yes")
    assert Guess("", lambda: torch.tensor(0.5)).judge("0.5").startswith("Exactly")


def test_actual_must_be_among_the_choices():
    with pytest.raises(ValueError, match="not among the choices"):
        guess("Which?", "c", choices=["a", "b"])


@given(st.lists(st.integers(0, 10**6), max_size=5))
def test_shapes_are_read_as_written(sizes):
    shape = tuple(sizes)
    assert parse_shape(str(shape)) == parse_shape(sizes) == parse_shape(f"torch.Size({sizes})") == shape
    assert not sizes or parse_shape(" x ".join(map(str, sizes))) == shape


@pytest.mark.parametrize("text", ["", "abc", "-1", "(2.5, 1)", "(64, one)", "1e3", "²"])
def test_what_is_not_a_shape_is_named(text):
    with pytest.raises(ValueError, match="is not a shape"):
        parse_shape(text)


@pytest.mark.parametrize("response, words", [("64 x 1", "Yes"), ("(1, 64)", "another order"), ("64", "rank 1, not 2"), ((64, 2), "(64, 2).")])
def test_shapes_are_judged(response, words):
    assert words in Guess("", [64, 1]).judge(response)


def test_answer_is_on_disk_before_the_verdict(home):
    question = Guess("How many?", 6, lesson="01_pixels")
    verdict = question.answer("7", "certain")
    event, = store().events("guess", lesson="01_pixels", item="How many?")
    assert event["response"] == "7" and event["detail"] == {"actual": 6, "verdict": verdict}
    assert (event["score"], event["state"], event["sure"]) == (0, "wrong", "certain")
    assert question.earlier() == "7" and Guess("Another?", 1).earlier() == ""


def test_an_answer_of_which_the_truth_is_not_known_yet_is_kept_and_judged_later(home):
    known = {}
    question = Guess("Which accuracy?", lambda: known["accuracy"])
    assert "Run the next cells" in question.answer("90 %", "fairly") and question.settle() == ""
    known["accuracy"] = 0.95
    assert question.settle() == "Close: you said 0.9. It is 0.95." and question.settle() == "", "judged once"
    assert [(event["score"], event["sure"]) for event in store().events("guess", item="Which accuracy?")] == [(None, "fairly"), (1, "fairly")]


def press(box, response, sure=0):
    """Enter a response in the widget and press one of its three buttons; what it says then."""
    box.children[1].value = response
    box.children[2].children[sure].click()
    return box.children[3].value


def test_widget_only_calls_the_state(home):
    box = guess_widget(Guess("How many?", 6))
    assert [button.description for button in box.children[2].children] == ["only a guess", "fairly sure", "certain"]
    assert "First say" in press(box, "") and store().events() == []
    box.children[1].value = "6"
    assert "How sure" in box.children[3].value and "6" not in box.children[3].value, "the answer comes after a button"
    assert "Exactly" in press(box, "6", 2) and 'role="status"' in box.children[3].value
    assert store().events()[-1]["sure"] == "certain"
    assert "&lt;b&gt;" in press(box, "<b>six</b>"), "what a student types is shown, not interpreted"
    assert "Last time you said 6" in guess_widget(Guess("How many?", 6)).children[3].value


def test_widget_with_choices_starts_with_none_chosen(home):
    box = guess_widget(Guess("Which?", "b", choices=["a", "b"]))
    assert box.children[1].value is None
    assert "Yes" in press(box, "b", 1) and store().events()[-1]["sure"] == "fairly"


@pytest.mark.filterwarnings("ignore:Not saved")
def test_a_database_that_cannot_be_opened_is_said_in_words_and_the_guess_goes_on(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LESSONLIB_HOME", str(tmp_path / "file"))
    said = press(guess_widget(Guess("How many?", 6)), "6")
    assert "Exactly" in said and "Not saved" in said


def test_what_happened_stands_beside_what_was_said_after_the_next_cell(home):
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.testing.globalipapp import start_ipython

    shell = start_ipython() or InteractiveShell.instance()
    shell.run_cell("from lessonlib.quiz import Guess, guess_widget\nbox = guess_widget(Guess('How many?', lambda: total))")
    shell.run_cell("entry, buttons = box.children[1:3]")
    shell.run_cell("entry.value = '5'; buttons.children[0].click()")
    assert "Run the next cells" in shell.user_ns["box"].children[3].value
    shell.run_cell("total = 6")
    assert "You said 5, 17% below. It is 6." in shell.user_ns["box"].children[3].value


def test_the_lesson_is_known_from_the_notebooks_name(monkeypatch):
    from lessonlib import quiz

    for path, stem in {"nbs/lessons/01_pixels.ipynb": "01_pixels", "C:\\course\\02_fitting.ipynb": "02_fitting", "Untitled.ipynb": ""}.items():
        monkeypatch.setenv("JPY_SESSION_NAME", path)
        assert quiz._lesson_here() == stem


def test_static_picture_folds_the_answer():
    shown = static_guess(Guess("Is 1 < 2?", "yes", choices=["yes", "no"], why="Because."))
    assert "1 &lt; 2" in shown and "<summary>Answer</summary>yes Because." in shown
    assert "Run the next cells" in static_guess(Guess("How many?", lambda: undefined))  # noqa: F821


def test_without_a_notebook_it_prints_and_goes_on(capsys):
    assert guess("How many?", 3) is None
    assert "How many?" in capsys.readouterr().out


def test_killed_while_writing_loses_at_most_the_last_line(tmp_path):
    """Kill a process that writes as fast as it can; every line that was acknowledged is there."""
    file = tmp_path / "guesses.jsonl"
    code = ("import itertools, sys; from lessonlib.quiz import append_record\n"
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


def test_values_are_shown_as_people_write_them():
    assert [format_value(value) for value in (3, 3.0, 0.951049, 6131, "three")] == ["3", "3", "0.951", "6131", "three"]


@pytest.mark.parametrize("text", ["a\u2028b\u0085c", "half a character \ud800", "line\r\nend"])
def test_records_hold_any_text(tmp_path, text):
    for _ in range(2): append_record(tmp_path / "decisions.jsonl", {"text": text})
    assert read_records(tmp_path / "decisions.jsonl") == [{"text": text}] * 2

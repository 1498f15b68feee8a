"""Guesses: judged, kept, never in the way."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessonlib.quiz import Guess, append_record, format_value, guess, guess_widget, parse_number, read_records, static_guess


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


def test_answer_is_on_disk_before_the_verdict(home):
    question = Guess("How many?", 6)
    verdict = question.answer("7")
    line = (home / "progress/guesses.jsonl").read_text(encoding="utf-8")
    assert json.loads(line)["response"] == "7" and json.loads(line)["verdict"] == verdict
    assert question.earlier() == "7" and Guess("Another?", 1).earlier() == ""


def test_widget_only_calls_the_state(home):
    box = guess_widget(Guess("How many?", 6))
    box.children[1].value = "6"
    assert "Exactly" in box.children[2].value and 'role="status"' in box.children[2].value
    box.children[1].value = "<b>six</b>"
    assert "&lt;b&gt;" in box.children[2].value, "what a student types is shown, not interpreted"
    assert "Last time you said 6" in guess_widget(Guess("How many?", 6)).children[2].value


def test_widget_with_choices_starts_with_none_chosen(home):
    box = guess_widget(Guess("Which?", "b", choices=["a", "b"]))
    assert box.children[1].value is None
    box.children[1].value = "b"
    assert "Yes" in box.children[2].value


def test_a_full_disk_is_said_in_words(home, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("os.fsync", full)
    box = guess_widget(Guess("How many?", 6))
    box.children[1].value = "6"
    assert "No space left" in box.children[2].value


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

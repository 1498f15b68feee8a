"""Questions: how a file is read, how a response is marked, how code is run apart, what the lint finds, and that the course's own files are clean."""
import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessonlib import cli, questions
from lessonlib.progress import store
from lessonlib.questions import (
    Choice,
    CodeWorker,
    Feedback,
    Mistake,
    Pair,
    Question,
    draw_values,
    fill_values,
    format_value,
    function_source,
    judge_code,
    lint,
    mark,
    parse_number,
    parse_shape,
    questionnaire_template,
    read_response,
    right_answer,
    shown_order,
    stripped,
)
from lessonlib.quiz import Questionnaire

ROOT = Path(__file__).resolve().parents[1]
COURSE = sorted((ROOT / "data" / "questionnaires").glob("*.yml"))
TEMPLATE = questionnaire_template()


@pytest.fixture
def mine(tmp_path, home):
    """The template's file, and an empty progress."""
    (file := tmp_path / "mine.yml").write_text(TEMPLATE, encoding="utf-8")
    return file


def line_of(file, text):
    """The number of the first line with this text."""
    return next(number for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1) if text in line)


def changed(file, old, new, count=1):
    """The file with one text replaced; which must be there."""
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, count), encoding="utf-8")
    return file


# ---- what people write

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


@given(st.lists(st.integers(0, 10**6), max_size=5))
def test_shapes_are_read_as_written(sizes):
    shape = tuple(sizes)
    assert parse_shape(str(shape)) == parse_shape(sizes) == parse_shape(f"torch.Size({sizes})") == shape
    assert not sizes or parse_shape(" x ".join(map(str, sizes))) == shape


@pytest.mark.parametrize("text", ["", "abc", "-1", "(2.5, 1)", "(64, one)", "1e3", "²"])
def test_what_is_not_a_shape_is_named(text):
    with pytest.raises(ValueError, match="is not a shape"):
        parse_shape(text)


def test_values_are_shown_as_people_write_them():
    assert [format_value(value) for value in (3, 3.0, 0.951049, 6131, "three")] == ["3", "3", "0.951", "6131", "three"]


# ---- reading a file

def test_the_template_has_every_kind_and_nothing_wrong(mine):
    book = Questionnaire.load(mine)
    assert [question.kind for question in book.questions] == ["one", "several", "number", "text", "order", "match", "shape", "code", "free"]
    assert lint(mine) == [] and "not checked" in questions.lint_notes(mine)[0]


@pytest.mark.parametrize("old, new, at, words", [
    ("kind: match", "kind: mach", "kind: mach", ["my-pairs", "field kind", "unknown kind 'mach'", "'match'"]),
    ("topic: counting", "topik: counting", "topik", ["my-count", "unknown field", "'topic'"]),
    ("  accept: [overfitting]\n", "", "id: my-word", ["my-word", "needs `accept`"]),
    ("difficulty: 1 ", "difficulty: 7 ", "difficulty: 7", ["my-loss", "7 is not 1, 2 or 3"]),
    ("difficulty: 1 ", "difficulty: easy ", "difficulty: easy", ["my-loss", "field difficulty", "'easy' does not fit"]),
    ("- {text: the loss, right: true}", "- {text: the loss}", "choices:", ["my-loss", "0 choices have `right: true`"]),
    ("{text: the accuracy, feed", "{txt: the accuracy, feed", "{txt", ["my-loss", "choices 2", "'text'"]),
    ("{text: the learning rate,", "{text: the accuracy,", '{text: the accuracy, feedback: "You', ["choices 3", "stands there twice"]),
    ("id: my-parameters", "id: 'my-loss'", "id: 'my-loss'", ["id of an earlier question"]),
    ("tolerance: 0.001", "tolerance: 100", "tolerance: 100", ["my-count", "expected a fraction"]),
    ("unit: numbers", "items: numbers", "items: numbers", ["my-count", "field items"]),
    ("items: [predict, loss, gradient, step]", "items: [predict, loss, gradient, loss]", "items: [predict", ["items 4", "stands there twice"]),
    ("{first: step, then", "{first: stepp, then", "stepp", ["mistakes 1", "as in `items`"]),
    ("{value: underfitting,", "{code: underfitting,", "{code: underf", ["mistakes 1", "needs value"]),
    ("lesson: my_lesson", "lesson: my_lesson\nlessons: 3", "lessons: 3", ["unknown field", "'lesson'"]),
    ("  prompt: What does training make smaller?\n", "", "id: my-loss", ["my-loss", "field prompt", "is missing"]),
])
def test_errors_name_file_line_question_and_field(mine, old, new, at, words):
    changed(mine, old, new)
    with pytest.raises(ValueError) as found:
        Questionnaire.load(mine)
    first = str(found.value).splitlines()[0]
    assert first.startswith(f"{mine}:{line_of(mine, at)}: ") and all(word in str(found.value) for word in words), str(found.value)
    assert lint(mine) == str(found.value).splitlines()


@pytest.mark.parametrize("content, line, word", [
    ("lesson: x\nquestions:\n- id: [a\n", 4, "expected"),
    ("lesson: x\n\tquestions: 1\n", 2, "tab"),
    ("lesson: 'x\n", 2, "quoted"),
    ("lesson: a\nlesson: b\n", 2, "'lesson' stands here twice"),
    ("lesson: &a [*a]\nquestions: []\n", 1, "contains itself"),
    ("? [a, b]\n: c\n", 1, "must be a word"),
])
def test_broken_yaml_names_its_line(tmp_path, content, line, word):
    (file := tmp_path / "broken.yml").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"broken\.yml:{line}: broken YAML: .*{re.escape(word)}"):
        Questionnaire.load(file)


@pytest.mark.parametrize("content", ["", "42", "[1, 2]", "questions:", "questions: []", "questions: {a: 1}", "questions: [1]", "questions:\n- {}\n",
                                     "questions:\n- {id: [1], kind: one, prompt: x}\n",
                                     "questions:\n- {kind: [one]}\n", "lesson: [1]\nquestions: []"])
def test_files_of_another_shape_are_refused_and_not_crashed_on(tmp_path, content):
    (file := tmp_path / "odd.yml").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="odd.yml"):
        Questionnaire.load(file)


def test_other_encodings_and_missing_files(tmp_path):
    (tmp_path / "latin.yml").write_bytes("title: Zürich".encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        Questionnaire.load(tmp_path / "latin.yml")
    with pytest.raises(FileNotFoundError, match="quiz new"):
        Questionnaire.load(tmp_path / "nowhere.yml")
    with pytest.raises(FileNotFoundError, match="99_nothing"):
        Questionnaire.load("99_nothing")


def test_words_of_yaml_stay_words(mine):
    changed(mine, "accept: [overfitting]", "accept: [no, 0.50, 1:30, null]")
    assert Questionnaire.load(mine).question("my-word").accept == ["no", "0.50", "1:30", "null"]


# ---- marking

def question(kind, **fields):
    fields.setdefault("explanation", "because")
    return Question(id="x", kind=kind, prompt="?", **fields)


ONE = question("one", choices=[Choice(text="a", right=True), Choice(text="b", feedback="not b"), Choice(text="c")])
SEVERAL = question("several", choices=[Choice(text=name, right=name in "ab", feedback=f"about {name}") for name in "abcd"])
NUMBER = question("number", answer="7850", unit="parameters", mistakes=[Mistake(value="7840", feedback="the biases")])
SHAPE = question("shape", answer=["64", "1"], mistakes=[Mistake(value="(64,)", feedback="one axis is left")])
TEXT = question("text", accept=["overfitting", "the mini-batch"], mistakes=[Mistake(value="underfitting", feedback="the other way round")])
ORDER = question("order", items=["init", "predict", "loss", "gradient", "step"],
                 mistakes=[Mistake(first="step", then="gradient", feedback="needs it")])
MATCH = question("match", pairs=[Pair(left=str(n), right=str(n * n), feedback=f"{n} squared") for n in (2, 3, 4)])
FREE = question("free", answer="both", checklist=["first", "second"])


@pytest.mark.parametrize("asked, response, score, words", [
    (ONE, 0, 1, ""), (ONE, "b", 0, "not b"), (ONE, 2, 0, "not it"),
    (SEVERAL, [0, 1], 1, ""), (SEVERAL, ["b", "a"], 1, ""), (SEVERAL, [0], 0.5, "1 right one is still missing"),
    (SEVERAL, [0, 1, 2], 0.5, "about c"),
    (SEVERAL, [0, 1, 2, 3], 0, "about d"), (SEVERAL, [2], 0, "about c"), (SEVERAL, [0, 2], 0, "about c"),
    (NUMBER, 7850, 1, ""), (NUMBER, "7,850 parameters", 1, ""), (NUMBER, "7850 Parameter", 1, ""),
    (NUMBER, "7.85e3", 1, ""), (NUMBER, "7.85 × 10^3", 1, ""),
    (NUMBER, 7840, 0, "the biases"), (NUMBER, -7850, 0, "sign"), (NUMBER, 785000, 0, "percent"), (NUMBER, 12, 0, "not it"),
    (NUMBER, "15700/2", 1, ""),
    (SHAPE, (64, 1), 1, ""), (SHAPE, "(64, 1)", 1, ""), (SHAPE, "64x1", 1, ""), (SHAPE, "torch.Size([64, 1])", 1, ""),
    (SHAPE, "64", 0, "one axis is left"),
    (SHAPE, "1, 64", 0, "another order"), (SHAPE, "(64, 2)", 0, "at least one size"), (SHAPE, "()", 0, "no axis"),
    (SHAPE, (64, -1), 0, "size"),
    (TEXT, "Overfitting.", 1, ""), (TEXT, "over-fitting", 1, ""), (TEXT, "overfiting", 1, "spelt"),
    (TEXT, "minibatches", 1, ""), (TEXT, "mini batch", 1, ""),
    (TEXT, "underfitting", 0, "other way"), (TEXT, "underfiting", 0, "other way"),
    (TEXT, "not overfitting", 0, "not the word"), (TEXT, "fitting", 0, "not the word"),
    (ORDER, ["init", "predict", "loss", "gradient", "step"], 1, ""), (ORDER, [0, 1, 2, 4, 3], 0.8, "needs it"),
    (ORDER, [1, 0, 2, 3, 4], 0.8, "“predict” comes too early"),
    (ORDER, [4, 3, 2, 1, 0], 0, "needs it"), (ORDER, [0, 2, 1, 3, 4], 0.8, "The first 1 is right"),
    (MATCH, {"2": "4", "3": "9", "4": "16"}, 1, ""), (MATCH, {0: 0, 1: 2, 2: 1}, 0, "3 squared"),
    (MATCH, {"2": "4", "3": "9", "4": "9"}, 1 / 3, "4 squared"),
    (FREE, {"text": "x", "ticked": [0, 1]}, 1, "both"), (FREE, [1], 0.5, "first"), (FREE, [], 0, "second"),
])
def test_marks_and_what_is_told(asked, response, score, words):
    feedback = mark(asked, response)
    assert feedback.score == pytest.approx(score) and words in feedback.message and feedback.message
    assert feedback.right == (score == 1) == (feedback.state == "right") == (feedback.explanation == "because")
    plain = read_response(asked, response)
    assert read_response(asked, json.loads(json.dumps(plain))) == plain, "what was stored can be read again"


@pytest.mark.parametrize("asked, response, words", [
    (ONE, 3, "out of range"), (ONE, -1, "out of range"), (ONE, "z", "not among"), (ONE, True, "expected"),
    (ONE, None, "expected"), (ONE, 0.0, "expected"),
    (ONE, [0], "expected"), (SEVERAL, 0, "expected"), (SEVERAL, [], "at least one"), (SEVERAL, [9], "out of range"),
    (SEVERAL, "a", "expected"),
    (NUMBER, "about ten", "not a number"), (NUMBER, "", "not a number"), (NUMBER, None, "expected"),
    (NUMBER, [1], "expected"), (NUMBER, float("nan"), "expected"),
    (NUMBER, True, "expected"), (NUMBER, "1/0", "zero"), (SHAPE, "many", "expected a shape"),
    (SHAPE, (1.5, 2), "expected a shape"), (SHAPE, None, "expected a shape"),
    (SHAPE, "", "expected a shape"), (SHAPE, {}, "expected a shape"), (TEXT, 3, "a word"), (TEXT, "  ", "a word"),
    (ORDER, [0, 1], "each must be"),
    (ORDER, [0, 0, 1, 2, 3], "each must be"), (ORDER, "init", "expected a list"),
    (MATCH, {"2": "4"}, "no partner yet for 3, 4"), (MATCH, [0], "expected a dict"),
    (MATCH, {"2": "5", "3": "9", "4": "16"}, "not among"), (FREE, "text", "expected"), (FREE, [7], "out of range"),
    (FREE, {"text": 3}, "expected"),
])
def test_what_cannot_be_an_answer_is_refused(asked, response, words):
    with pytest.raises(ValueError, match=words):
        mark(asked, response)


def test_several_choices_do_not_pay_for_guessing():
    """Over all ways to tick, the mean score stays below that of half knowing; ticking everything gives nothing."""
    ways = [[index for index in range(4) if number >> index & 1] for number in range(1, 16)]
    assert sum(mark(SEVERAL, way).score for way in ways) / len(ways) < 0.25


@given(st.floats(1e-6, 1e6), st.floats(0.0001, 0.2))
def test_tolerance_is_a_fraction_of_the_answer(answer, tolerance):
    asked = question("number", answer=repr(answer), tolerance=tolerance)
    assert mark(asked, answer * (1 + tolerance * 0.99)).right and not mark(asked, answer * (1 + tolerance * 1.01)).right
    assert mark(question("number", answer="0", tolerance=tolerance), tolerance * 0.99).right


@given(st.text(max_size=40))
def test_any_text_is_an_answer_or_refused(text):
    for asked in (NUMBER, SHAPE, TEXT):
        try:
            assert isinstance(mark(asked, text), Feedback)
        except ValueError:
            pass


@pytest.mark.parametrize("accepted, given_text, right", [
    ("supervised", "unsupervised", False), ("dependent variable", "independent variable", False),
    ("linear", "nonlinear", False), ("bias", "the bias", True),
    ("bias", "basis", False), ("is zeroed", "is not zeroed", False), ("gradient", "gradiant", True), ("784", "785", False),
    ("resnet18", "resnet34", False),
    ("learning rate", "learning-rate", True), ("learning rate", "lerning rate", True),
    ("validation set", "training set", False), ("row", "rows", True),
    ("C++", "c++", True), ("0.5", "05", False), ("epoch", "epoc", True), ("increase", "decrease", False),
])
def test_misspellings_are_forgiven_and_other_words_are_not(accepted, given_text, right):
    assert mark(question("text", accept=[accepted]), given_text).right == right


def test_a_known_mistake_is_never_taken_for_a_misspelling():
    asked = question("text", accept=["parameter"], mistakes=[Mistake(value="perimeter", feedback="around a field")])
    assert mark(asked, "perimeter").message == mark(asked, "permeter").message == "around a field" and mark(asked, "paramter").right


# ---- fresh values

def test_generated_values_follow_the_seed_and_are_shown():
    asked = question("number", generate="rows = rng.randrange(10, 99)\ncolumns = np.arange(3).sum()", answer="rows * columns",
                     mistakes=[Mistake(value="rows + columns", feedback="you added {{ rows }}")])
    values = draw_values(asked, 5)
    assert values == draw_values(asked, 5) and len({draw_values(asked, seed)["rows"] for seed in range(30)}) > 10
    assert fill_values("{{ rows }} by {{columns}} is {{ rows / 7 }}", values) == f"{values['rows']} by 3 is {values['rows'] / 7:.4g}"
    assert mark(asked, values["rows"] * 3, values).right
    assert mark(asked, values["rows"] + 3, values).message == f"you added {values['rows']}"
    with pytest.raises(ValueError, match="NameError"):
        fill_values("{{ nothing }}", values)


def test_own_tensors_are_asked_about_where_they_are_there_and_fit(mine):
    import numpy as np

    asked = Questionnaire.load(mine).question("my-shape")
    own = {"xb": np.zeros((5, 7)), "weights": np.zeros((7, 2))}
    assert right_answer(asked, draw_values(asked, 1, own)) == (5, 2)
    for names in (None, {}, {"xb": own["xb"]}, {"xb": 3, "weights": own["weights"]}, {"xb": own["xb"], "weights": own["xb"]}):
        assert right_answer(asked, draw_values(asked, 1, names))[1] == 1
    book = Questionnaire.load(mine, names=own)
    assert "(5, 7)" in book.prompt("my-shape") and book.answer("my-shape", "5 × 2").right


def test_the_order_shown_is_shuffled_and_never_the_answer():
    orders = {tuple(shown_order(ORDER, seed)) for seed in range(200)}
    assert len(orders) > 60 and (0, 1, 2, 3, 4) not in orders
    assert len({tuple(shown_order(ONE, seed)) for seed in range(50)}) == 6 and shown_order(ONE, 3) == shown_order(ONE, 3)


def test_names_that_a_try_needs_itself_are_refused():
    with pytest.raises(ValueError, match="generate sets seed, which the try itself uses"):
        draw_values(question("number", generate="seed = 3", answer="seed"), 1)


def test_what_a_student_writes_is_never_evaluated():
    assert "{ { 1 / 0 }}" in mark(TEXT, "{{ 1 / 0 }}").message


# ---- code

STEP = question("code", function="step", cases="[(1.0, 2.0, 0.1)]", hidden="[(rng.random(), rng.random(), 0.5) for _ in range(5)]",
                solution="def step(weights, gradient, lr):\n    return weights - lr * gradient",
                mistakes=[Mistake(code="def step(weights, gradient, lr):\n    return weights + lr * gradient", feedback="You walked uphill.")])
HEAD = "def step(weights, gradient, lr):\n    "


@pytest.mark.parametrize("source, words", [
    (HEAD + "return weights + gradient * lr", "You walked uphill.\n\n`step(1.0, 2.0, 0.1)`: it should return 0.8, yours returns 1.2."),
    (HEAD + "return weights", "should return 0.8, yours returns 1.0"),
    (HEAD + "return (weights - gradient * lr) if gradient > 1 else 0", "`step(0."),  # right on the visible case only
    (HEAD + "weights - gradient * lr", "is a `return` missing"),
    (HEAD + "...", "is a `return` missing"),
    (HEAD + "return [weights - lr * gradient]", "yours returns [0.8]"),
    (HEAD + "return float('nan')", "yours returns nan"),
    (HEAD + "return weights - learning_rate * gradient", "Line 2 (`return weights - learning_rate * gradient`): NameError"),
    (HEAD + "return step(weights, gradient, lr)", "calls itself without end"),
    (HEAD + "while True: print('x' * 1000)", "more than a million characters"),
    (HEAD + "try:\n        print('x' * 10**7)\n    except Exception: pass", "more than a million characters"),
    (HEAD + "return [0] * 10**10", "more memory"),
    (HEAD + "return input()", "take what you need as an argument"),
    (HEAD + "exit()", "use `return`"),
    (HEAD + "raise KeyboardInterrupt", "KeyboardInterrupt"),
    ("def step(weights):\n    return weights", "takes 1 positional argument but 3 were given"),
    ("def step(weights, gradient, lr):\n    return weights -", "line 2 (invalid syntax): `return weights -`"),
    ("def step(:", "line 1"),
    ("x = 1\nraise ValueError('at the start')", "Line 2 (`raise ValueError('at the start')`): ValueError: at the start"),
    ("import no_such_module", "ModuleNotFoundError"),
    ("def stepp(weights): pass", "It defines stepp"),
    ("print(3)", "Begin with `def step(...):`"),
    ("step = 3", "`step` is 3, not a function"),
    ("x = '\0'", "null bytes"),
    ("class Odd(Exception):\n    def __str__(self): 1 / 0\ndef step(*given): raise Odd", "Odd"),
    ("\ud800", "UnicodeEncodeError"),
])
def test_what_is_wrong_with_code_is_told(source, words):
    feedback = judge_code(STEP, source, {"seed": 3})
    assert words in feedback.message and (feedback.right, feedback.score, feedback.checker_failed, feedback.state) == (False, 0.0, False, "wrong")


@pytest.mark.parametrize("source", [HEAD + "print(weights)\n    return weights - gradient * lr",
                                    "step = lambda weights, gradient, lr: weights - lr * gradient",
                                    "import numpy as np\ndef step(w, g, lr): return np.array(w - lr * g)",
                                    HEAD + "return weights - lr * gradient + 1e-9"])
def test_other_ways_to_the_same_values_are_right(source):
    feedback = judge_code(STEP, source, {"seed": 3})
    assert feedback.right and "6 cases" in feedback.message, feedback.message


@pytest.mark.parametrize("source, words", [(HEAD + "while True: pass", "still running after 0.5 seconds"),
    (HEAD + "import time; time.sleep(60)", "still running"),
                                           (HEAD + "import os; os._exit(3)", "exit code 3"),
                                           ("import os; os.kill(os.getpid(), 9)", "ran out of memory, or was killed")])
def test_code_that_takes_the_worker_with_it(source, words):
    """The notebook lives on, the student is told, and the next answer is marked by a new worker."""
    before = questions._the_worker._process
    feedback = judge_code(STEP, source, {}, seconds=0.5)
    assert words in feedback.message and not feedback.checker_failed and questions._the_worker._process is not before
    assert judge_code(STEP, STEP.solution, {}).right


def test_the_worker_is_warm_and_its_own_process():
    assert judge_code(STEP, STEP.solution, {}).right
    first = questions._the_worker._process.pid
    assert "should" in judge_code(STEP, "import os\ndef step(*_): return os.getpid()", {}).message
    assert questions._the_worker._process.pid == first
    assert not judge_code(STEP, HEAD + "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); return 0", {}).right
    assert questions._the_worker._process is None, "a worker with the student's threads in it is not used again"


def test_a_checker_that_cannot_run_is_no_wrong_answer(mine, monkeypatch):
    book = Questionnaire.load(changed(mine, "return weights - lr * gradient\n", "return weights - lr * gradients\n"))
    feedback = book.answer("my-function", HEAD + "return 1")
    assert feedback.checker_failed and "NameError" in feedback.message and feedback.state == "" and not feedback.right
    with monkeypatch.context() as without:
        without.setattr(questions, "_the_worker", CodeWorker())
        without.setattr(questions.sys, "executable", str(mine.parent / "no-python"))
        assert judge_code(STEP, STEP.solution, {}).checker_failed
    assert store().events(item="my-function") == [] and book.state("my-function") == "not attempted"


def test_a_worker_that_never_answers_is_no_wrong_answer(monkeypatch, tmp_path):
    (python := tmp_path / "python").write_text("#!/bin/sh\nsleep 60\n")
    python.chmod(0o755)
    monkeypatch.setattr(questions.sys, "executable", str(python))
    monkeypatch.setattr(questions, "_the_worker", worker := CodeWorker(start_seconds=0.2))
    start = time.monotonic()
    assert judge_code(STEP, STEP.solution, {}).checker_failed and time.monotonic() - start < 30 and worker._process is None


def test_arguments_and_chance_are_the_same_for_every_program():
    asked = question("code", function="shift", cases="[([1, 2],), ([3],)]",
                     solution="def shift(numbers):\n    numbers.append(random.random())\n    return numbers", setup="import random",
                     mistakes=[Mistake(code="def shift(numbers):\n    return numbers", feedback="nothing was added")])
    assert judge_code(asked, "import random\ndef shift(numbers):\n    return [*numbers, random.random(), random.random()][:-1]", {}).right
    assert "nothing was added" in judge_code(asked, "def shift(numbers): return list(numbers)", {}).message


def test_tensors_are_compared_by_shape_and_value():
    asked = question("code", function="double", setup="import torch", cases="[(torch.arange(3.),)]", hidden="[(torch.ones(20, 2),)]",
                     solution="def double(x):\n    return x * 2",
                     mistakes=[Mistake(code="def double(x):\n    return x.sum() * 2", feedback="You summed.")])
    told = {body: judge_code(asked, f"def double(x):\n    return {body}", {}) for body in
            ("x + x", "2 * x.numpy()", "(2 * x)[:, None]", "x.sum() + x.sum()", "x * 2 + (x.numel() == 40)", "x.tolist()",
             "(x * 2).requires_grad_()", "x.double() * 2")}
    assert [feedback.right for feedback in told.values()] == [True, True, False, False, False, False, True, True]
    assert "shape (3,), yours returns shape (3, 1)" in told["(2 * x)[:, None]"].message
    assert told["x.sum() + x.sum()"].message.startswith("You summed.")
    assert "at [0, 0] it should have 2.0, yours has 3.0 (40 of 40" in told["x * 2 + (x.numel() == 40)"].message


def test_counts_are_exact():
    asked = question("code", function="count", cases="[(100000,)]", solution="def count(n): return n")
    assert not judge_code(asked, "def count(n): return n + 1", {}).right and judge_code(asked, "def count(n): return float(n)", {}).right


def test_what_one_answer_sets_does_not_reach_the_next():
    asked = question("code", function="give", setup="import torch", cases="[()]",
                     solution="def give():\n    x = torch.ones(2, requires_grad=True)\n    x.sum().backward()\n    return x.grad")
    spoilt = "import sys\nsys.setrecursionlimit(50000)\n" \
        "torch.set_default_dtype(torch.float64)\ntorch.set_grad_enabled(False)\ndef give(): return False"
    assert not judge_code(asked, spoilt, {}).right and judge_code(asked, asked.solution, {}).right


def test_a_solution_that_never_ends_is_the_checkers_fault(monkeypatch):
    monkeypatch.setattr(CodeWorker, "solution_seconds", 0.3)
    endless = question("code", function="f", cases="[()]", solution="def f():\n    while True: pass")
    feedback = judge_code(endless, "def f(): pass", {}, seconds=0.1)
    assert feedback.checker_failed and "does not answer" in feedback.message


def test_visible_cases_are_shown_with_what_they_give(mine):
    book = Questionnaire.load(mine)
    assert book.examples("my-function") == ["step(1.0, 2.0, 0.1) → 0.8"] and book.examples("my-loss") == []


def test_hidden_cases_differ_from_answer_to_answer():
    told = {judge_code(STEP, HEAD + "return 0.8 if gradient == 2.0 else -1.0", {"seed": 1, "answers": count}).message for count in range(3)}
    assert len(told) == 3


RATE = 2


def helper(value): return value * RATE


def my_step(weights, gradient, lr): return weights - helper(lr) * gradient / RATE


def test_a_function_takes_with_it_what_it_uses(mine):
    source = function_source(my_step, "step")
    assert "RATE = 2" in source and source.index("def helper") < source.index("def my_step") and "step = my_step" in source
    assert Questionnaire.load(mine).answer("my-function", my_step).right
    for odd in (lambda x: x, len, print, "  ", 3, int):
        with pytest.raises(ValueError): Questionnaire.load(mine).answer("my-function", odd)
    space = {}
    exec("def step(weights): return 1", space)
    with pytest.raises(ValueError, match="source of step is not known"): function_source(space["step"], "step")


# ---- lint

@pytest.mark.parametrize("old, new, at, words", [
    (', feedback: "That is a metric, and you would want it larger."', "", "{text: the accuracy",
     "feedback is missing: tell who ticks 'the accuracy'"),
    (', feedback: "Yes: it is a parameter."', "", "{text: the bias", "why it is right"),
    (", feedback: Think of the accuracy.", "", "{left: metric", "feedback is missing"),
    ("  explanation: Weights and bias are the parameters; the rest you choose.\n", "", "id: my-parameters", "explanation: is missing"),
    ("  hints: [The model learns its training set by heart.]\n", "", "id: my-word", "hints: is missing"),
    ("value: rows * 28,", "value: 784 * rows,", "784 * rows", "is right too"),
    ("{value: underfitting,", "{value: over-fitting,", "over-fitting", "is an accepted answer too"),
    ("{value: underfitting, feedback: Then the training loss would be high as well.}",
     "{value: underfitting, feedback: A}\n  - {value: under-fitting, feedback: B}", "under-fitting", "earlier mistake"),
    ("- {value: rows * 28, feedback: That is one row of each image.}", "- {value: rows * 28, feedback: A}\n  - {value: 28 * rows, feedback: B}",
     "28 * rows", "earlier mistake"),
    ("rng.choice([16, 32, 64])     #", "rng.choice([16, 0, 64])     #", "rows * 28, feed", "is right too"),
    ("answer: rows * 784", "answer: 784 / (rows - 64)", "rows - 64", "ZeroDivisionError"),
    ("{{ rows }} images", "{{ row }} images", "{{ row }}", "NameError"),
    ("{first: step, then: gradient,", "{first: gradient, then: step,", "first: gradient", "this is no mistake"),
    ("prompt: Which of these does training change?", "prompt: What does training make smaller?\n  difficulty: 2", "x", ""),
    ("return weights - lr * gradient\n", "return weights - gradient_\n", "solution: |", "does not pass its own cases"),
    ("return weights + lr * gradient\n", "return weights - lr * gradient\n", "- code: |", "is not recognised"),
    ("        ...\n", "        return weights - lr * gradient\n", "start: |", "passes as it is"),
    ("value: \"(784, 784)\"", "value: \"(rows, 1)\"", "(rows, 1)", "is right too"),
    ("checklist: [it is not used for training, it stands for new data]\n", "", "id: my-words", "checklist: is missing"),
])
def test_lint_finds_what_is_wrong_and_where(mine, old, new, at, words):
    found = lint(changed(mine, old, new))
    if words:
        assert any(f"{mine}:{line_of(mine, at)}: " in problem and words in problem for problem in found) and len(found) == 1, found
    else:
        assert found == [], "the same prompt for another kind is another question"


def test_lint_compares_answers_with_what_python_computes(mine):
    changed(mine, "  generate: rows = rng.choice([16, 32, 64])     # optional: fresh values at every try; rng, np and math are there\n", "")
    changed(mine, "{{ rows }} images", "64 images")
    changed(mine, "rows * 28, feedback", "64 * 28, feedback")
    assert "field computed: is missing: write Python that gives 50176" in lint(changed(mine, "answer: rows * 784", "answer: 50176"))[0]
    assert lint(changed(mine, "answer: 50176", "answer: 50176\n  computed: 64 * 28 * 28")) == []
    assert "gives 5017, but the answer is 50176" in lint(changed(mine, "64 * 28 * 28", "5017"))[0]
    assert lint(changed(mine, "computed: 5017", "computed: torch.zeros(64, 28, 28).numel()")) == []
    assert "NameError" in lint(changed(mine, "torch.zeros(64, 28, 28).numel()", "nothing"))[0]


@pytest.fixture
def course(tmp_path):
    """A clone with lessons 02 and 03 and a questionnaire for 03."""
    (tmp_path / "settings.ini").write_text("[DEFAULT]\n")
    for stem, headings in {
            "02_fitting": "# Fitting\n## The `gradient`",
            "03_linear_sgd": "# Linear\n## The loss\n```\n# no heading\n```\n## Going deeper: order\n### Shuffled"}.items():
        (notebook := tmp_path / "nbs/lessons" / f"{stem}.ipynb").parent.mkdir(parents=True, exist_ok=True)
        cells = [{"cell_type": "markdown", "source": headings, "metadata": {}},
                 {"cell_type": "code", "source": "1", "outputs": [1], "metadata": {}, "execution_count": 3}]
        notebook.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    (file := tmp_path / "data/questionnaires/03_linear_sgd.yml").parent.mkdir(parents=True)
    text = """lesson: 03_linear_sgd
title: Linear
questions:
- id: 03-loss
  kind: one
  topic: loss
  difficulty: 1
  section: The loss
  prompt: What falls?
  hints: [Think.]
  explanation: It is made to.
  choices:
  - {text: the loss, right: true}
  - {text: the bias, feedback: It may rise.}
"""
    second = text.split("questions:\n")[1].replace("03-loss", "03-order").replace("What falls", "What is shuffled")
    second = second.replace("section: The loss", "section: Shuffled")
    file.write_text(text + second, encoding="utf-8")
    return file


@pytest.mark.parametrize("section, words", [
    ("The loss", ""), ("**the Loss**", ""), ("03_linear_sgd: The loss", ""), ("02_fitting: The gradient", ""), ("Shuffled", ""),
    ("The losses", "did you mean 'the loss'"), ("no heading", "no heading 'no heading'"), ("02_fitting: The loss", "no heading"),
    ("04_mlp: Layers", "comes after 03_linear_sgd"), ("01_pixels: Images", "there is no lesson 01_pixels"),
])
def test_sections_exist_and_come_before(course, section, words, monkeypatch):
    monkeypatch.setattr(cli.lessonlib, "__file__", str(course.parent / "site-packages/lessonlib/__init__.py"))
    found = lint(changed(course, "section: The loss", f'section: "{section}"'))
    assert bool(found) == bool(words) and (not words or words in found[0] and f"{course}:8: 03-loss: field section" in found[0]), found


def test_going_deeper_is_asked_last(course, home, monkeypatch):
    monkeypatch.setattr(questions, "_lesson_notebook", lambda stem, near=None: course.parents[2] / "nbs/lessons" / f"{stem}.ipynb")
    changed(course, "section: The loss", "section: Shuffled")
    changed(course, "section: Shuffled\n  prompt: What is shuffled", "section: The loss\n  prompt: What is shuffled")
    book = Questionnaire.load(course)
    assert [(asked.id, asked.deeper) for asked in book.questions] == [("03-order", False), ("03-loss", True)]


def test_planned_headings_count_until_the_notebook_is_there(course, monkeypatch):
    monkeypatch.setattr(cli.lessonlib, "__file__", str(course.parent / "site-packages/lessonlib/__init__.py"))
    later = course.with_name("14_your_turn.yml")
    text = course.read_text(encoding="utf-8").replace("03_linear_sgd", "14_your_turn").replace("03-", "14-")
    later.write_text(text, encoding="utf-8")
    assert "no list `planned`" in lint(later)[0]
    later.write_text(text.replace("title:", "planned: [The loss, Shuffled]\ntitle:"), encoding="utf-8")
    assert lint(later) == []
    later.write_text(text.replace("title:", "planned: [The loss]\ntitle:"), encoding="utf-8")
    assert len(lint(later)) == 1 and "no heading 'Shuffled'" in lint(later)[0]


@pytest.mark.parametrize("old, new, words", [
    ("id: 03-loss", "id: 04-loss", "expected 03-words-with-hyphens"), ("id: 03-loss", "id: 03-Loss", "expected 03-words"),
    ("  difficulty: 1\n", "", "difficulty: is missing"),
    ("lesson: 03_linear_sgd", "lesson: 02_fitting", "is not the file's name"), ("title: Linear\n", "", "title: is missing"),
    ("prompt: What is shuffled?", "prompt: What  falls?", "the same prompt as 03-loss"),
])
def test_the_courses_own_files_are_held_to_more(course, old, new, words, monkeypatch):
    monkeypatch.setattr(cli.lessonlib, "__file__", str(course.parent / "site-packages/lessonlib/__init__.py"))
    assert lint(course) == []
    assert words in "\n".join(lint(changed(course, old, new)))


def test_ids_are_unique_in_the_course(course, monkeypatch):
    monkeypatch.setattr(cli.lessonlib, "__file__", str(course.parent / "site-packages/lessonlib/__init__.py"))
    course.with_name("02_fitting.yml").write_text("questions:\n- id: 03-order\n", encoding="utf-8")
    assert [problem.split(": ", 1)[1] for problem in lint(course)] == ["03-order: field id: 03-order is also in 02_fitting.yml"]


# ---- the commands

def test_stripped_lessons_have_headings_and_code_only(course, tmp_path, monkeypatch):
    monkeypatch.chdir(course.parents[2])
    written = stripped(tmp_path / "bare")
    cells = json.loads(written[1].read_text(encoding="utf-8"))["cells"]
    assert cells[0]["source"].split("\n\n") == ["# Linear", "## The loss", "## Going deeper: order", "### Shuffled"]
    assert cells[1]["outputs"] == [] and cells[1]["execution_count"] is None and cells[1]["source"] == "1"
    with pytest.raises(FileExistsError, match="no work is lost"): stripped(tmp_path / "bare")
    with pytest.raises(FileExistsError): stripped(course.parents[2] / "nbs/lessons")


def test_the_commands_for_teachers(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["quiz", "new"]) == 0 and Path("my_questions.yml").read_text(encoding="utf-8") == TEMPLATE
    assert cli.main(["quiz", "new"]) == 2 and "is there already" in capsys.readouterr().err
    assert cli.main(["quiz", "lint", "my_questions.yml"]) == 0 and "sections were not checked" in capsys.readouterr().out
    changed(Path("my_questions.yml"), "kind: match", "kind: mach")
    assert cli.main(["quiz", "lint", "my_questions.yml"]) == 1 and ": my-pairs: field kind" in capsys.readouterr().out
    assert cli.main(["quiz", "lint", "nowhere.yml"]) == 2 and cli.main(["quiz", "new", "x.txt"]) == 2


# ---- the course's questionnaires

@pytest.mark.parametrize("file", COURSE, ids=lambda file: file.stem)
def test_course_questionnaire_is_clean(file):
    """Answers are those that Python computes, solutions pass, mistakes are recognised, sections exist."""
    assert lint(file) == []


@pytest.mark.parametrize("file", COURSE, ids=lambda file: file.stem)
def test_course_questionnaire_is_complete(file):
    questions, number = Questionnaire.load(file).questions, int(file.stem[:2])
    assert len(questions) >= (18 if 1 <= number <= 10 else 10)
    if 1 <= number <= 8:
        assert sum(asked.kind == "code" for asked in questions) >= 3
        assert sum(asked.generated for asked in questions) >= 2


def test_every_lesson_has_its_questionnaire():
    assert {path.stem for path in (ROOT / "nbs/lessons").glob("*.ipynb")} <= {file.stem for file in COURSE}

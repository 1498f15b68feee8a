"""Guesses: judged, kept, never in the way. Questionnaires without a page: states, hints, tries."""
import pytest

from lessonlib import questions
from lessonlib.progress import store
from lessonlib.questions import questionnaire_template
from lessonlib.quiz import Guess, Questionnaire, check, guess, guess_widget, static_guess


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


# ---- states, hints, tries

def my_step(weights, gradient, lr): return weights - lr * gradient


@pytest.fixture
def mine(tmp_path, home):
    """The template's file, and an empty progress."""
    (file := tmp_path / "mine.yml").write_text(questionnaire_template(), encoding="utf-8")
    return file


def test_states_hints_and_what_is_kept(mine):
    book = Questionnaire.load(mine)
    assert book.state("my-loss") == "not attempted"
    wrong = book.answer("my-loss", "the accuracy", sure="certain")
    assert not wrong.right and "metric" in wrong.message and wrong.explanation == "" and book.state("my-loss") == "wrong"
    assert book.answer("my-loss", 0, sure="guess").state == "right" == book.state("my-loss")
    assert book.hint("my-steps").startswith("A gradient") and book.hint("my-steps") is None
    assert book.answer("my-steps", ["predict", "loss", "gradient", "step"]).state == "right after hints"
    event = store().events(kind="answer", item="my-loss")[0]
    assert (event["response"], event["sure"], event["state"], event["score"], event["topic"]) == ("the accuracy", "certain", "wrong", 0.0, "loss")
    again = Questionnaire.load(mine)
    assert [again.state(name) for name in ("my-loss", "my-steps", "my-word")] == ["right", "right after hints", "not attempted"]


def test_a_refused_response_and_an_unknown_question_record_nothing(mine):
    book = Questionnaire.load(mine)
    for call in (lambda: book.answer("my-loss", 99), lambda: book.answer("my-count", "many"), lambda: book.answer("my-loss", 0, sure="very")):
        with pytest.raises(ValueError): call()
    with pytest.raises(ValueError, match="did you mean 'my-loss'"): book.answer("my-los", 0)
    assert store().events() == []


def test_an_open_try_is_taken_up_and_a_closed_one_begins_afresh(mine):
    book = Questionnaire.load(mine)
    book.answer("my-count", 1)
    book.hint("my-count")
    prompt, order, seed = book.prompt("my-count"), book.order("my-steps"), book.values("my-count")["seed"]
    again = Questionnaire.load(mine)
    assert again.prompt("my-count") == prompt and again.values("my-count")["seed"] == seed
    assert again.answer("my-count", again.values("my-count")["rows"] * 784).state == "right after hints", "the hint was taken before the restart"
    assert Questionnaire.load(mine).values("my-count")["seed"] != seed
    book.fresh("my-steps")
    assert book.values("my-count")["seed"] == seed and sorted(book.order("my-steps")) == sorted(order)
    assert len({book.fresh("my-count") or book.values("my-count")["rows"] for _ in range(40)}) == 3


def test_giving_up_shows_the_answer_and_counts_as_wrong(mine):
    book = Questionnaire.load(mine)
    for asked in book.questions:
        given_up = book.give_up(asked.id)
        assert not given_up.right and given_up.message.startswith("The answer: ") and given_up.explanation and book.state(asked.id) == "wrong"
    assert book.answer("my-loss", 0).state == "right after hints"
    assert "return weights - lr" in book.give_up("my-function").message


def test_check_finds_the_question_by_its_number(mine, tmp_path, monkeypatch):
    (folder := tmp_path / "data/questionnaires").mkdir(parents=True)
    (folder / "03_linear_sgd.yml").write_text(questionnaire_template().replace("my-function", "03-sgd-step"), encoding="utf-8")
    monkeypatch.setattr(questions.resources, "files", lambda package: tmp_path / "data")
    assert check("03-sgd-step", my_step, sure="fairly").right and store().events()[-1]["sure"] == "fairly"
    for wrong, words in (("03-sgd-stp", "did you mean '03-sgd-step'"), ("my-loss", "no questionnaire 'my'")):
        with pytest.raises((ValueError, FileNotFoundError), match=words): check(wrong, my_step)
    with pytest.raises(FileNotFoundError): check("77-x", my_step)

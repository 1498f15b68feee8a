"""The questionnaire's state and page, without a browser: what is asked, kept, shown, and refused."""
import html.parser
import json
import sys

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lessonlib import questions, quiz
from lessonlib.progress import Progress, store
from lessonlib.quiz import Questionnaire, QuestionnaireState, QuestionnaireView, questionnaire, review

# One question of every kind; tests/browser/test_quiz_browser.py asks the same ones.
EVERY_KIND = r"""
lesson: steps
title: A small questionnaire
questions:
- id: 90-bias
  kind: one
  topic: the bias
  difficulty: 1
  section: Bias
  prompt: What does the **bias** in `xb @ weights + bias` do?
  hints: [Think of an image that is all black., Without it the line goes through the origin.]
  explanation: Without a bias, an input of zeros always gives 0.
  choices:
  - {text: It moves the output up or down., right: true}
  - {text: It makes training random., feedback: The bias is a number that is learned. Nothing about it is random.}
  - {text: It scales each input, feedback: That is what the `weights` do.}
- id: 90-several
  kind: several
  topic: parameters
  difficulty: 2
  section: Parameters
  prompt: Which of these are parameters?
  hints: [Parameters are learned.]
  explanation: Weights and bias are learned from data; the learning rate is chosen.
  choices:
  - {text: weights, right: true, feedback: They are learned.}
  - {text: bias, right: true, feedback: It is learned.}
  - {text: learning rate, feedback: We choose it; it is not learned.}
- id: 90-number
  kind: number
  topic: counting parameters
  difficulty: 2
  section: Parameters
  prompt: "How many parameters has a layer of {{ size }} inputs and 10 outputs?"
  hints: [Each output has a bias.]
  explanation: Weights and one bias for each output.
  generate: size = rng.choice([784, 100, 64])
  answer: size * 10 + 10
  unit: parameters
  mistakes:
  - {value: size * 10, feedback: That leaves out the ten biases.}
- id: 90-text
  kind: text
  topic: names
  difficulty: 1
  section: Bias
  prompt: What is the number called that is added after the product?
  hints: [It starts with b.]
  explanation: It is the bias.
  accept: [bias, the bias]
  mistakes:
  - {value: weight, feedback: Weights are multiplied.}
- id: 90-order
  kind: order
  topic: the steps
  difficulty: 1
  section: Steps
  prompt: Put the steps of training in order.
  hints: [The gradient needs a loss.]
  explanation: Predict, loss, gradient, step.
  items: [predict, loss, gradient, step]
- id: 90-match
  kind: match
  topic: words and shapes
  difficulty: 1
  section: Shapes
  prompt: What has which shape?
  hints: [A batch has 64 rows.]
  explanation: Rows are images.
  pairs:
  - {left: xb, right: "(64, 784)", feedback: A batch of 64 images.}
  - {left: weights, right: "(784, 1)", feedback: One weight for each pixel.}
- id: 90-shape
  kind: shape
  topic: matrix product
  difficulty: 2
  section: Shapes
  prompt: |
    `xb` has shape (64, 784), `weights` (784, 1). What is the shape of this?

    ```python
    xb @ weights  # one number for each image
    ```
  hints: [The inner sizes go away.]
  explanation: (64, 784) @ (784, 1) is (64, 1).
  answer: [64, 1]
  computed: (np.zeros((64, 784)) @ np.zeros((784, 1))).shape
  mistakes:
  - {value: [784, 1], feedback: The inner size goes away; the outer ones stay.}
- id: 90-code
  kind: code
  topic: the step
  difficulty: 2
  section: Steps
  prompt: Write the step of gradient descent.
  hints: [Downhill.]
  explanation: The gradient points uphill, so the step subtracts.
  function: step
  start: |
    def step(weights, gradient, lr):
        ...
  cases: "[(1.0, 2.0, 0.1)]"
  hidden: "[(rng.random(), rng.random(), 0.5) for _ in range(3)]"
  solution: |
    def step(weights, gradient, lr):
        return weights - lr * gradient
  mistakes:
  - {code: "def step(weights, gradient, lr):\n    return weights + lr * gradient", feedback: "You walked uphill: the step subtracts."}
- id: 90-free
  kind: free
  topic: in your own words
  difficulty: 3
  section: Steps
  prompt: Why do we need a validation set?
  hints: [Think of learning by heart.]
  explanation: Only data that was not trained on shows whether the model generalises.
  answer: To see how well the model does on data it was not trained on.
  checklist: [not trained on, shows whether it generalises]
"""
IDS = [line.split()[-1] for line in EVERY_KIND.splitlines() if line.startswith("- id:")]
RIGHT = {"90-text": "bias", "90-order": ["predict", "loss", "gradient", "step"], "90-match": {"xb": "(64, 784)", "weights": "(784, 1)"},
         "90-shape": "(64, 1)", "90-bias": 0, "90-several": [0, 1], "90-free": {"text": "To see.", "ticked": [0, 1]}}


@pytest.fixture
def file(home, tmp_path, monkeypatch):
    """The questions in a file, and an empty store."""
    monkeypatch.delenv("LESSONLIB_PROGRESS", raising=False)
    path = tmp_path / "steps.yml"
    path.write_text(EVERY_KIND, encoding="utf-8")
    return path


@pytest.fixture
def state(file):
    return QuestionnaireState(Questionnaire.load(file))


def send(view, **message):
    """What the browser would send."""
    view._received(view.widget, message, [])
    return view.widget.page


def answer(state, question_id, response, sure="fairly"):
    state.go(question_id)
    state.set_sure(sure)
    return state.answer(response)


# --- the state --------------------------------------------------------------------------------------------------------
def test_begins_at_the_first_question_with_nothing_attempted(state):
    page = state.to_dict()
    assert state.current == "90-bias" and page["progress"] == "0 of 9 right"
    assert {one["status"] for one in page["list"]} == {"not attempted"}
    assert [one["number"] for one in page["list"]] == list(range(1, 10))


def test_how_sure_is_asked_before_an_answer(state):
    with pytest.raises(ValueError, match="How sure are you"):
        state.answer(0)
    assert store().events(kind="answer") == []
    state.set_sure("certain")
    assert state.answer(0).right and store().events(kind="answer")[0]["sure"] == "certain"
    with pytest.raises(ValueError, match="sure='very'"):
        state.set_sure("very")


def test_wrong_then_hint_then_right(state):
    assert not answer(state, "90-bias", 1).right
    said = state.to_dict()["question"]["feedback"]
    assert said["words"] == "Not yet." and "Nothing about it is random" in said["message"] and said["explanation"] == ""
    assert "all black" in state.hint() and state.to_dict()["question"]["hints_left"] == 1
    assert answer(state, "90-bias", 0).right
    page = state.to_dict()
    said = page["question"]["feedback"]
    assert said["words"] == "Right, after hints." and "input of zeros" in said["explanation"]
    assert page["progress"] == "1 of 9 right" and page["list"][0]["status"] == "right after hints" and page["question"]["closed"]


@pytest.mark.parametrize("question_id", list(RIGHT))
def test_each_kind_is_answered(state, question_id):
    assert answer(state, question_id, RIGHT[question_id]).right
    assert json.loads(json.dumps(state.to_dict()))["question"]["feedback"]["mark"] == "right"


def test_part_of_several_is_said_in_words(state):
    answer(state, "90-several", [0])
    assert state.to_dict()["question"]["feedback"]["words"] == "Partly right (50%)."


def test_an_answer_is_on_disk_before_the_feedback(state, monkeypatch):
    seen = []
    monkeypatch.setattr(quiz, "_verdict", lambda *given: seen.append(store().events(kind="answer")) or {})
    answer(state, "90-bias", 1)
    assert [event["item"] for event in seen[0]] == ["90-bias"]


def test_give_up_shows_the_answer_and_counts_as_wrong(state):
    state.go("90-bias")
    state.give_up()
    question = state.to_dict()["question"]
    assert question["status"] == "wrong" and question["closed"] and "moves the output" in question["feedback"]["message"]
    with pytest.raises(ValueError, match="Ask me again"):
        state.answer(0)
    state.again()
    question = state.to_dict()["question"]
    assert not question["closed"] and question["feedback"] is None and question["key"].endswith("/1")


def test_next_and_previous_stop_at_the_ends(state):
    state.next(-1)
    assert state.current == IDS[0]
    for _ in range(20): state.next()
    assert state.current == IDS[-1]


def test_the_page_tells_no_answers(state):
    for question_id in IDS:
        state.go(question_id)
        question = state.to_dict()["question"]
        text = json.dumps(question)
        assert "learned. Nothing" not in text and "uphill" not in text and "without_was" not in text and '"right": true' not in text
        assert question["feedback"] is None and question["hints"] == [] and "model" not in question


def test_choices_are_shuffled_and_stay_for_the_try(state):
    first = state.to_dict()["question"]["choices"]
    answer(state, "90-bias", 1)
    assert state.to_dict()["question"]["choices"] == first and sorted(one["index"] for one in first) == [0, 1, 2]
    orders = set()
    for _ in range(20):
        state.again()
        orders.add(tuple(one["index"] for one in state.to_dict()["question"]["choices"]))
    assert len(orders) > 1


def test_continues_where_the_student_left(state, file):
    answer(state, "90-bias", 0)
    answer(state, "90-several", [2], sure="guess")
    state.hint()
    prompt = (state.go("90-number"), state.to_dict()["question"]["prompt"])[1]
    answer(state, "90-number", 12)
    again = QuestionnaireState(Questionnaire.load(file))
    assert again.current == "90-number" and again.to_dict()["question"]["prompt"] == prompt, "the same values as before"
    again.go("90-several")
    question = again.to_dict()["question"]
    assert question["draft"] == [2] and question["sure"] == "guess" and question["status"] == "wrong"
    assert question["hints"] == ["Parameters are learned."]
    again.go("90-bias")
    question = again.to_dict()["question"]
    assert question["closed"] and question["draft"] == 0 and question["feedback"]["words"] == "You had this right."


def test_goes_on_after_what_was_right(state, file):
    answer(state, "90-bias", 0)
    assert QuestionnaireState(Questionnaire.load(file)).current == "90-several"


def test_code_is_run_and_its_mistake_recognised(state):
    assert "uphill" in answer(state, "90-code", "def step(weights, gradient, lr):\n    return weights + lr * gradient").message
    assert answer(state, "90-code", "def step(w, g, lr):\n    return w - lr * g").right


def test_what_could_not_be_checked_is_not_wrong(state, monkeypatch):
    failed = quiz.Feedback(False, 0.0, "The checker did not start.", checker_failed=True)
    monkeypatch.setattr(Questionnaire, "answer", lambda *given, **named: failed)
    answer(state, "90-code", "def step(): ...")
    question = state.to_dict()["question"]
    assert question["status"] == "not attempted" and "Nothing was recorded" in question["feedback"]["words"]


# --- messages from the browser ----------------------------------------------------------------------------------------
def test_a_questionnaire_by_messages(file):
    view = questionnaire(file)
    page = send(view, do="answer", question="90-bias", response=1, sure="fairly")
    assert page["question"]["feedback"]["mark"] == "wrong" and page["notice"] == ""
    assert send(view, do="hint", question="90-bias")["question"]["hints"] == ["Think of an image that is all black."]
    assert send(view, do="next", question="90-bias")["question"]["id"] == "90-several"
    assert send(view, do="draft", question="90-several", response=[0])["question"]["draft"] == [0]
    assert send(view, do="go", question="90-free")["question"]["kind"] == "free"
    assert "How sure" in send(view, do="reveal", question="90-free", response={"text": "So."}, sure=None)["notice"]
    page = send(view, do="reveal", question="90-free", response={"text": "So.", "ticked": []}, sure="guess")
    assert page["question"]["checklist"] == ["not trained on", "shows whether it generalises"] and page["question"]["draft"]["text"] == "So."
    page = send(view, do="answer", question="90-free", response={"text": "So.", "ticked": [0, 1]}, sure="guess")
    assert page["question"]["status"] == "right" and page["progress"] == "1 of 9 right"
    serial = page["serial"]
    assert send(view, do="go", question="90-free")["serial"] > serial, "the browser draws again even when nothing differs"


def test_the_same_wrong_answer_twice_is_answered_twice(file):
    view, seen = questionnaire(file), []
    view.widget.observe(seen.append, "page")
    for _ in range(2): send(view, do="answer", question="90-text", response="", sure="guess")
    assert len(seen) == 2
    send(view, do="go", question="90-text")
    for _ in range(2): send(view, do="answer", question="90-text", response="weight", sure="guess")
    assert len(seen) == 5 and len(store().events(kind="answer")) == 2


@pytest.mark.parametrize("message, words", [
    ({"do": "answer", "question": "90-none", "response": 1}, "'90-none' is not asked here"),
    ({"do": "answer", "question": 3, "response": 1}, "question 3 is not asked here"),
    ({"do": "fly", "question": "90-bias"}, "was not understood"),
    ({"do": ["answer"], "question": "90-bias"}, "was not understood"),
    ({"do": "answer", "question": "90-bias", "response": 17, "sure": "guess"}, "17"),
    ({"do": "answer", "question": "90-bias", "response": {"a": 1}, "sure": "guess"}, ""),
    ({"do": "answer", "question": "90-bias", "response": 1, "sure": ["x"]}, "expected one of"),
    ({"do": "answer", "question": "90-text", "response": "bias", "sure": "guess"}, "not open"),
    ({"do": "reveal", "question": "90-bias", "response": 1}, "free question"),
    ("answer", "was not understood"), (None, "was not understood"), ([], "was not understood"),
])
def test_a_message_without_sense_gets_a_sentence(file, message, words):
    view = questionnaire(file)
    view._received(view.widget, message, [])
    notice = view.widget.page["notice"]
    assert words in notice and notice and "Traceback" not in notice
    assert store().events(kind="answer") == [] and view.state.states["90-bias"] == "not attempted"


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                           lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=5)
no_code = [found for found in IDS if found != "90-code"]  # random code would be run in the worker


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.fixed_dictionaries({"do": st.sampled_from([*quiz._ACTIONS, "x"]), "question": st.sampled_from(no_code) | json_values},
                                      optional={"response": json_values, "sure": st.sampled_from(["guess", None]) | json_values})
                | json_values, max_size=4))
@example([{"do": "go", "question": "90-match"}, {"do": "answer", "question": "90-match", "response": {"xb": [1]}, "sure": "guess"}])
def test_no_message_breaks_the_page(state, messages):
    for message in messages: quiz._obey(state, message)
    json.dumps(state.to_dict())


def test_visible_cases_are_shown_when_a_code_question_is_opened_and_the_worker_is_warm_then(file):
    view = questionnaire(file)
    assert "examples" not in send(view, do="ready")["question"]
    assert send(view, do="go", question="90-code")["question"]["examples"] == ["step(1.0, 2.0, 0.1) → 0.8"]
    assert questions._the_worker._process.poll() is None


def test_code_in_a_kernel_is_checked_beside_the_event_loop(file):
    """The handler returns at once; the page says that it is checking; then the answer comes."""
    import asyncio

    view = questionnaire(file)
    send(view, do="go", question="90-code")
    source = "def step(w, g, lr):\n    return w - lr * g"

    async def ask():
        page = send(view, do="answer", question="90-code", response=source, sure="fairly")
        assert page["checking"] == "90-code" and page["question"]["feedback"] is None
        page = send(view, do="answer", question="90-code", response=source, sure="fairly")
        assert "still being checked" in page["notice"]
        assert send(view, do="go", question="90-text")["question"]["id"] == "90-text", "other questions stay usable"
        while view.widget.page["checking"]: await asyncio.sleep(0.02)

    asyncio.run(ask())
    assert view.widget.page["list"][IDS.index("90-code")]["status"] == "right" and len(store().events(kind="answer")) == 1


# --- pages and summaries ----------------------------------------------------------------------------------------------
@given(st.text(alphabet="ab`*<>&\"'- \n1.#[](){}|\\\0", max_size=40))
@example("```\n<script>\n```")
@example("`<b>` **`x`** <img src=x onerror=alert(1)>")
@example("*a **b* c** *d **e** f*")
def test_markdown_gives_only_harmless_and_balanced_tags(text):
    open_tags, allowed = [], {"p", "ul", "ol", "li", "code", "pre", "strong", "em"}

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            assert tag in allowed and attributes == []
            open_tags.append(tag)

        def handle_endtag(self, tag): assert open_tags.pop() == tag

    Reader().feed(questions._markdown(text))
    assert open_tags == []


@pytest.mark.parametrize("text, found", [
    ("Is `a < b`?", "<p>Is <code>a &lt; b</code>?</p>"),
    ("**bold `x`** and 2**3 + 3**2", "<p><strong>bold <code>x</code></strong> and 2**3 + 3**2</p>"),
    ("a *very **good** idea*, 2 * 3 * 4, x*y*z", "<p>a <em>very <strong>good</strong> idea</em>, 2 * 3 * 4, x*y*z</p>"),
    ("one\ntwo\n\nthree", "<p>one two</p><p>three</p>"),
    ("so:\n- a\n- b\n  more", "<p>so:</p><ul><li>a</li><li>b more</li></ul>"),
    ("1. a\n2. b", "<ol><li>a</li><li>b</li></ol>"),
    ("```python\nx = 1\n\n# y\n```\nend", "<pre><code>x = 1\n\n# y</code></pre><p>end</p>"),
])
def test_markdown(text, found):
    assert questions._markdown(text) == found


def test_summary_shows_prompts_folded_and_no_status_until_a_browser_opened_it(state, file):
    answer(state, "90-bias", 0)
    view = questionnaire(file)
    static = view._summary()
    assert static["text/html"].count("<details>") == static["text/html"].count("not attempted") == 9
    assert static["text/plain"].startswith("Questionnaire: A small questionnaire\n0 of 9 right.")
    assert "has a layer of … inputs" in static["text/plain"]
    assert "moves the output" not in static["text/html"], "a summary holds no answers"
    send(view, do="ready")
    assert "1 of 9 right" in view._summary()["text/plain"] and "the bias (right)" in repr(view)


def test_review_asks_what_is_due_anew(state, file, monkeypatch):
    import pandas

    assert review().widget.page["empty"] == "Nothing is due today." and review().widget.page["question"] is None
    answer(state, "90-text", "bias")
    monkeypatch.setattr(quiz, "due", lambda: pandas.DataFrame({"item": ["90-text", "gone-1"], "lesson": [str(file), "gone"]}))
    view = review()
    page = view.widget.page
    assert [one["status"] for one in page["list"]] == ["due"] and not page["question"]["closed"] and page["question"]["feedback"] is None
    assert page["question"]["draft"] is None and page["question"]["sure"] is None, "asked anew, not shown as it was answered"
    page = send(view, do="answer", question="90-text", response="bias", sure="certain")
    assert page["progress"] == "1 of 1 right" and page["list"][0]["status"] == "right"


def test_show_and_a_terminal(file, capsys):
    view = Questionnaire.load(file).show()
    assert isinstance(view, QuestionnaireView)
    view._ipython_display_()
    assert "1. the bias (not attempted): What does the **bias**" in capsys.readouterr().out


def test_a_database_that_fails_is_said_on_the_page(state, monkeypatch):
    monkeypatch.setattr(Progress, "warning", property(lambda book: "Your answers could not be saved."))
    assert state.to_dict()["warning"] == "Your answers could not be saved."


def test_widgets_are_imported_only_when_shown(file):
    import subprocess

    code = f"import sys; from lessonlib.quiz import questionnaire; view = questionnaire({str(file)!r}); view.state.next(); " \
           "assert not {'anywidget', 'ipywidgets', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

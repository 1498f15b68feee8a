"""The glossary: what a search finds, what the page shows, and what the lint says about terms that a lesson uses too early."""
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from lessonlib import questions
from lessonlib.questions import glossary, lint_glossary

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def complaints():
    """What the lint says about the course."""
    return lint_glossary(ROOT)


def entry(term, lesson, section, **more):
    """One entry of a glossary's file; JSON is YAML."""
    return {"term": term, "lesson": lesson, "section": section, "text": "What it means.", **more}


@pytest.fixture
def course(tmp_path):
    """A function that makes a clone from lessons (stem -> its Markdown cells) and the entries of a glossary, and gives its complaints."""
    def made(lessons, entries):
        (tmp_path / "settings.ini").touch()
        for folder in ("nbs/lessons", "data/questionnaires"): (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for stem, texts in lessons.items():
            cells = [{"cell_type": "markdown", "source": [text]} for text in texts] + [{"cell_type": "code", "source": ["gradient = loss"]}]
            (tmp_path / "nbs/lessons" / f"{stem}.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
        text = entries if isinstance(entries, str) else "".join(f"- {json.dumps(one)}\n" for one in entries)
        (tmp_path / "data/glossary.yml").write_text(text, encoding="utf-8")
        return lint_glossary(tmp_path)

    return made


# ---- the course's own glossary

def test_every_section_is_there_and_no_word_stands_twice(complaints):
    assert [one for one in complaints if " uses it before " not in one] == []


def test_no_lesson_uses_a_term_before_it_is_introduced(complaints):
    assert [one for one in complaints if " uses it before " in one] == []


def test_the_entries_are_short_and_whole():
    terms = glossary().terms
    assert len(terms) >= 90 and len({term.lesson for term in terms}) >= 12
    for term in terms:
        assert term.text[-1] in ".?)" and 20 < len(term.text) < 260, term.term
        assert len(re.findall(r"[.?](?= |$)", term.text)) <= 3, term.term


# ---- what the lint finds

LESSONS = {"00_start": ["# Start\n\nA gradient, in an overview."],
           "01_first": ["# First\n\nYou will be able to use a gradient.", "## One\n\nNothing yet.",
                        "## Two\n\nHere the **gradient** is explained.\n\n## Going deeper: more\n\nA `loss`, a loss."],
           "02_second": ["# Second", "## Three\n\nHere is the loss."]}
GRADIENT, LOSS = entry("gradient", "01_first", "Two", also=["slope"]), entry("loss", "02_second", "Three", also=["losses"])


def test_a_clean_course_gets_no_complaint(course):
    assert course(LESSONS, [GRADIENT, LOSS]) == []


def test_a_section_that_is_not_there(course):
    assert course(LESSONS, [entry("gradient", "01_first", "Tow")]) == ["glossary.yml:1: gradient: 01_first has no heading 'Tow': did you mean 'two'?"]
    assert course(LESSONS, [GRADIENT, entry("loss", "04_none", "Two")]) == ["glossary.yml:2: loss: there is no lesson '04_none'"]


def test_a_planned_section_counts_while_the_lesson_is_written(course, tmp_path):
    course(LESSONS, [])
    (tmp_path / "data/questionnaires/03_later.yml").write_text("lesson: 03_later\nplanned: [The Pareto front]\n", encoding="utf-8")
    assert course(LESSONS, [entry("Pareto front", "03_later", "The Pareto front")]) == []
    assert "has no heading" in course(LESSONS, [entry("Pareto front", "03_later", "Another")])[0]


@pytest.mark.parametrize("other", [entry("Gradient", "02_second", "Three"), entry("loss", "02_second", "Three", also=["SLOPE"])])
def test_a_word_that_stands_twice(course, other):
    found = course(LESSONS, [GRADIENT, other])
    assert any("is also a word of" in one and one.startswith("glossary.yml:2:") for one in found)


@pytest.mark.parametrize(("lesson", "text"), [
    ("01_first", "## Early\n\nThe losses fall."),  # an earlier lesson, in the plural
    ("01_first", "## Early\n\nThe **Loss** falls."),
    ("01_first", "## Early\n\n- a list\n- with\n  a loss in it"),
    ("01_first", "## Early\n\n| what | the loss |"),
    ("01_first", "The loss, in what stands above the first section."),  # of an earlier lesson
    ("01_first", "## Early\n\nIn [the loss](x.ipynb) you see it."),
    ("01_first", "## Early\n\nAs lesson 1 said, the loss falls."),  # points back
    ("02_second", "## Early\n\nThe loss falls."),  # an earlier section of the same lesson
    ("02_second", "## Early\n\nSee lesson 3.\nThe loss falls."),  # the pointer stands in another sentence
])
def test_a_term_that_is_used_too_early(course, lesson, text):
    lessons = {**LESSONS, lesson: [LESSONS[lesson][0], text, *LESSONS[lesson][1:]]}
    found = course(lessons, [LOSS])
    assert len(found) == 1 and f": loss: {lesson}, " in found[0] and "uses it before 02_second, 'Three'" in found[0]


@pytest.mark.parametrize("text", [
    "## Early\n\nThe loss comes in lesson 2.",
    "## Early\n\nThe loss (lessons 2 and 7) falls.",
    "## Early\n\nWe need the loss in the next lesson.",
    "## Early\n\nHere is `loss`, and\n\n```python\nloss = 1\n\n# the loss\n```",
    "## Early\n\nA blossom and a lossy glossary.",
    "## Early\n\nIt is at a total loss.",  # a longer term
    "## Early\n\nThe loss comes further down. Take the loss.",
    "## Going deeper: early\n\nThe loss.\n\n### Even further\n\nThe loss.",
])
def test_what_is_excused(course, text):
    lessons = {**LESSONS, "01_first": [*LESSONS["01_first"], text]}
    assert course(lessons, [LOSS, entry("total loss", "01_first", "Early" if "## Early" in text else "Two")]) == []


def test_excused_by_the_entry(course):
    lessons = {**LESSONS, "01_first": [*LESSONS["01_first"], "## Early\n\nThe loss falls."]}
    assert len(course(lessons, [LOSS])) == 1
    assert course(lessons, [{**LOSS, "strict": "false"}]) == []
    assert course(lessons, [{**LOSS, "met": ["01_first"]}]) == []
    assert len(course(lessons, [{**LOSS, "met": ["02_second"]}])) == 1


def test_a_later_lesson_may_use_it_under_any_heading(course):
    assert course({**LESSONS, "03_third": ["# Third", "## One\n\nA gradient, under a heading that lesson 01 has too."]}, [GRADIENT]) == []


def test_words_with_capitals_are_looked_for_as_they_are_written(course):
    lessons = {**LESSONS, "01_first": [*LESSONS["01_first"], "## Early\n\nAn f1, an mae and a relu."]}
    assert course(lessons, [entry("F1", "02_second", "Three", also=["MAE", "ReLU"])]) == []
    lessons["01_first"][-1] = "## Early\n\nTwo ReLUs."
    assert len(course(lessons, [entry("F1", "02_second", "Three", also=["MAE", "ReLU"])])) == 1


@pytest.mark.parametrize(("text", "said"), [
    ("- term: a\n  text: [b\n", "glossary.yml:"),
    ("term: a\n", "expected a list of terms"),
    ("- just text\n", "glossary.yml:1: entry 1: field term: is missing"),
    ("- {term: a, lesson: 01_first, section: Two, text: b, alos: [c]}", "a: unknown field: did you mean 'also'?"),
    ("- {term: a, lesson: 01_first, section: Two, text: ''}", "a: field text: is missing"),
    ("- {term: a, lesson: 01_first, section: Two, text: b, also: c}", "a: field also: expected a list"),
    ("- {term: [a], lesson: 01_first, section: Two, text: b}", "field term: expected a text"),
    ("- {term: a, lesson: 01_first, section: Two, text: b, strict: no}", "a: 'no' is neither true nor false"),
])
def test_a_broken_file_gets_a_message_with_its_line(course, text, said):
    assert any(said in one for one in course(LESSONS, text))


def test_a_clone_without_a_glossary(tmp_path):
    with pytest.raises(FileNotFoundError, match="glossary"):
        lint_glossary(tmp_path)


# ---- looking a term up

def test_the_word_itself_comes_first():
    assert glossary("gradient").terms[0].term == "gradient"
    assert glossary("  MAE ").terms[0].term == "mean absolute error"  # by another word for it
    assert {"learning rate", "learning-rate finder"} <= {term.term for term in glossary("learning rate")}
    assert len(glossary("rate learning")) >= 2  # in any order


def test_a_table_and_plain_text():
    table = glossary("softmax").table
    assert list(table.columns) == ["term", "lesson", "section", "text"] and table["lesson"][0] == "06_cross_entropy"
    assert repr(glossary("softmax")).startswith("softmax: It turns logits")
    assert len(glossary("xyzzy").table) == 0


def test_nothing_found_names_what_is_near():
    assert repr(glossary("sofmax")) == "Nothing for 'sofmax'. Did you mean 'softmax'?"
    assert repr(glossary("§§§")) == "Nothing for '§§§'."


@pytest.mark.parametrize("search", [None, 3, ["gradient"]])
def test_a_search_that_is_no_text(search):
    with pytest.raises(TypeError, match="expected a word"):
        glossary(search)


NASTY = questions._Term(
    term="<b>x</b>", lesson="<i>", section="<u>", text="<script>alert('&')</script> `<code>`", also=["<img src=x onerror=alert(1)>"])


def test_everything_is_escaped():
    for search in ("", "<b>", "<nothing>"):
        page = questions._static_glossary(questions._Glossary([NASTY], search))
        assert not re.search(r"<(b|i|u|script|img|nothing)\b", page) and "&lt;" in page


def test_the_box_searches_while_one_types():
    book = questions._Glossary(glossary().all)
    box, found = questions._glossary_box(book).children
    box.value = "softmax"
    assert "log-softmax" in found.value and f"{len(glossary('softmax'))} of {len(glossary())} terms" in found.value
    box.value = "<script>"
    assert "<script" not in found.value and "Nothing for" in found.value


def test_without_a_kernel_it_is_printed(capsys):
    glossary("softmax")._ipython_display_()
    assert capsys.readouterr().out.startswith("softmax: ")


def test_in_a_notebook_a_box_and_a_page_that_stays(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    glossary("softmax")._ipython_display_()
    assert "application/vnd.jupyter.widget-view+json" in shown[0] and "text/html" not in shown[0]  # which alone would be dropped
    assert "<details" in shown[1]["text/html"] and "softmax" in shown[1]["text/plain"]

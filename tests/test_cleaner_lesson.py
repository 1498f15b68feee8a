"""The two judges of lesson 10, and the lesson as a lesson: what it teaches."""
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest

from lessonlib.cleaner import CleaningPlan, hunt_score, paired_difference

# ---- A change, judged on the same images


def test_difference_and_interval_of_twelve_more():
    before, after = np.repeat([0, 1], [40, 160]), np.repeat([0, 1], [28, 172])
    judged = paired_difference(before, after)
    assert judged.difference == pytest.approx(12 / 200) and judged.verdict == "better"
    spread = 1.96 * np.sqrt(0.06 * 0.94 / 200)  # of a mean of 200 numbers that are 0 or 1
    assert judged.low == pytest.approx(0.06 - spread, abs=0.008) and judged.high == pytest.approx(0.06 + spread, abs=0.008)


def test_the_other_way_round():
    before, after = np.repeat([0, 1], [40, 160]), np.repeat([0, 1], [28, 172])
    forth, back = paired_difference(before, after), paired_difference(after, before)
    assert back.verdict == "worse" and back.difference == -forth.difference
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low))


def test_no_change_is_no_clear_change():
    same = np.repeat([0, 1], [40, 160])
    assert paired_difference(same, same) == (0, 0, 0, "no clear change")
    assert paired_difference(same, np.roll(same, 20)).verdict == "no clear change", "as many right, but other ones"


def test_pairing_counts():
    """The same two accuracies: where the images are the same ones the difference is clear, where they are not it is not."""
    rng = np.random.default_rng(0)
    before, after = np.repeat([0, 1], [40, 160]), np.repeat([0, 1], [28, 172])
    assert paired_difference(before, after).low > 0 > paired_difference(rng.permutation(before), rng.permutation(after)).low


def test_seeds_are_averaged_and_not_counted_as_images():
    rng = np.random.default_rng(1)
    before, after = rng.random((5, 100)) < 0.8, rng.random((5, 100)) < 0.8
    many = paired_difference(before, after)
    for other in (paired_difference(before.mean(0), after.mean(0)), paired_difference(np.tile(before, (4, 1)), np.tile(after, (4, 1)))):
        assert other[:3] == pytest.approx(many[:3]) and other.verdict == many.verdict


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Random changes with a known mean, many times: a 90 % interval misses about one in ten."""
    rng, missed = np.random.default_rng(2), 0
    for seed in range(200):
        before = rng.random(80) < 0.7
        after = np.where(rng.random(80) < 0.2, rng.random(80) < 0.7, before)
        judged = paired_difference(before, after, confidence=0.9, repeats=200, seed=seed)
        missed += not judged.low <= 0 <= judged.high
    assert 4 <= missed <= 45


def test_wider_confidence_wider_interval_and_repeatable():
    before, after = np.repeat([0, 1], [40, 160]), np.repeat([0, 1], [28, 172])
    narrow, wide = (paired_difference(before, after, confidence=confidence) for confidence in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert wide == paired_difference(before, after, confidence=0.99) != paired_difference(before, after, confidence=0.99, seed=1)


def test_tensors_and_lists_are_fine():
    torch = pytest.importorskip("torch")
    assert paired_difference(torch.tensor([0, 1, 1]), [1.0, 1.0, 1.0]).difference == pytest.approx(1 / 3)


@pytest.mark.parametrize("before, after, options, words", [
    ([1, 0], [1, 0, 1], {}, r"\(2,\).*\(3,\).*same images"), ([], [], {}, "same images"), (1, 1, {}, "same images"),
    ([1, np.nan], [1, 0], {}, "not finite"), ([1], [0], {"confidence": 95}, "between 0 and 1")])
def test_what_cannot_be_judged(before, after, options, words):
    with pytest.raises(ValueError, match=words): paired_difference(before, after, **options)


# ---- A hunt, scored against the answer key

@pytest.fixture
def plan(tmp_path):
    for name in ("cat/a.png", "cat/b.png", "cat/c.png", "dog/d.png", "dog/e.png", "dog/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return CleaningPlan(tmp_path)


KEY = {"a.png": "dark", "b.png": "wrong label", "d.png": "near duplicate", "e.png": "blurred"}


def test_finds_are_deleted_or_relabelled_and_kept_ones_do_not_count(plan):
    plan.delete("cat/a.png")
    plan.relabel("cat/b.png", "dog")
    plan.delete("cat/c.png")  # it is a good one
    plan.keep("dog/d.png")
    assert hunt_score(plan, KEY) == (2 / 3, 2 / 4, 2, 3, 4)
    plan.undo()
    plan.undo()
    assert hunt_score(plan, KEY).precision == 1


def test_applied_ones_count_as_before_and_restored_ones_do_not(plan):
    plan.delete("cat/a.png")
    plan.relabel("cat/b.png", "dog")
    before = hunt_score(plan, KEY)
    plan.apply()
    assert hunt_score(plan, KEY) == before
    plan.delete("dog/b-2.png")  # moved once and renamed, since there was a b.png; now deleted: still one file
    assert hunt_score(plan, KEY) == before
    plan.restore("cat/a.png")
    assert hunt_score(plan, KEY).found == 1


def test_nothing_decided_and_nothing_to_find(plan):
    score = hunt_score(plan, KEY)
    assert np.isnan(score.precision) and score.recall == 0
    plan.delete("cat/c.png")
    assert hunt_score(plan, {}).precision == 0 and np.isnan(hunt_score(plan, {}).recall)


# ---- The lesson

LESSON = Path(__file__).parents[1] / "nbs" / "lessons" / "10_cleaner.ipynb"
CELLS = nbformat.read(LESSON, as_version=4).cells
TEXT = "\n\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
TOPICS = {  # heading: words that must stand under it
    "A dirty data set, and a checked one": ["by hand", "frozen"],
    "Train before you clean": ["train first", "Verify files"],
    "Top losses": ["loss"],
    "Out-of-fold predictions": ["folds", "never seen its label", "Confident learning"],
    "Duplicates across the split": ["training* set"],
    "The cleaner": ["`d`", "A hard picture is no flaw"],
    "Preview, apply, restore": ["trash", "`restore()`"],
    "Did it help? Judge on the untouched validation set": ["paired differences", "bootstrap", "within noise", "no clear change"],
    "What label noise does": ["at random"],
    "Why deleting hard pictures can fool you": ["reason to look"],
    "A detective case": ["binomial", "2 of 109", "6 of 108", "0 of 107"],
    "The hunt": ["Precision", "recall", "human and model together"],
}


@pytest.mark.parametrize("heading", TOPICS)
def test_topic_is_taught_under_its_heading(heading):
    match = re.search(rf"^(##+) {re.escape(heading)}.*?\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert match, f"no heading {heading!r}"
    assert [word for word in TOPICS[heading] if word not in match[2]] == []


def test_what_explorers_and_solutions_use_is_not_rebound_by_later_sections():
    """Explorers are moved, and solutions run, after the last cell: the going-deeper cells must not give their names other values."""
    import ast

    from lessonlib.cli import solution_cells

    def names(source, kind): return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name) and isinstance(node.ctx, kind)}

    def own(source):  # what a definition brings along: its name, its arguments and its variables
        nodes = list(ast.walk(ast.parse(source)))
        defined = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        return defined | {node.arg for node in nodes if isinstance(node, ast.arg)} | names(source, ast.Store)

    deeper = next(number for number, cell in enumerate(CELLS) if cell.source.startswith("## Going deeper"))
    code = [[cell.source for cell in part if cell.cell_type == "code"] for part in (CELLS[:deeper], CELLS[deeper:])]
    core = set().union(*map(own, code[0]))
    later = set().union(*(names(source, ast.Store) for source in code[1] if "#| export" not in source))
    solutions = [cell if isinstance(cell, str) else cell.source for cell in solution_cells(nbformat.read(LESSON, as_version=4))]
    functions = [source for source in code[0] if "def " in source]
    used = set().union(*(names(source, ast.Load) - own(source) for source in [*solutions, *functions]))
    assert used & core & later == set()

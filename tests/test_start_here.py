"""Lesson 00: its structure, its topics, its links, and the small functions that a student sees in it."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

LESSONS = Path(__file__).parents[1] / "nbs" / "lessons"
NOTEBOOK = nbformat.read(LESSONS / "00_start_here.ipynb", as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
PROSE = "\n\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n```python\n(.*?)```\n.*?</details>", re.DOTALL)


def sections():
    """Heading -> the text up to the next heading of any level (code fences hold none)."""
    parts = re.split(r"^(#{1,3} .*)$", PROSE, flags=re.MULTILINE)
    return {heading.lstrip("# "): text for heading, text in zip(parts[1::2], parts[2::2])}


def run_cell(first_words, names=None):
    """Execute the one code cell that contains these words and return its names."""
    found = [cell.source for cell in CODE if first_words in cell.source]
    assert len(found) == 1, f"{len(found)} cells contain {first_words!r}"
    names = dict(names or {})
    exec(found[0], names)
    return names


def test_first_screen():
    title, first_code = NOTEBOOK.cells[:2]
    lines = title.source.splitlines()
    assert lines[0] == "# Start here" and lines[2].startswith("> ")
    assert first_code.cell_type == "code" and 'get_data("pet_sketches")' in first_code.source
    assert len(title.source) < 500, "the first code cell must be visible without scrolling"


def test_exports_nothing():
    assert not any(line.startswith("#|") for cell in CODE for line in cell.source.splitlines())


def test_whole_game_comes_first():
    headings = list(sections())
    assert headings[1:9] == ["The whole game, in two minutes", "1. Say what is what", "2. Turn the pictures into numbers",
                             "3. Take a model that has seen pictures before", "4. Train it", "5. Use it on a picture",
                             "6. See where it is wrong", "Inside the game: a model small enough to see"]


def test_game_uses_the_pretrained_network_and_says_what_the_other_lessons_use():
    source = "\n".join(cell.source for cell in CODE)
    assert "vision_learner(pets" in source and "learn.fine_tune(" in source
    assert "lessons 1 to 6" in sections()["Inside the game: a model small enough to see"]


# One line for each topic: the heading it stands under, and words that must be there.
TOPICS = {
    "needs": ("What deep learning needs, and what it does not need",
              ["much mathematics", "much data", "machine", "degree"]),
    "areas": ("Where deep learning leads",
              ["Medicine", "Speech and language", "Biology", "Games", "Recommending", "Robots"]),
    "first trainable machine": (
        "The first machine that could be trained", ["Rosenblatt", "Mark I Perceptron", "McCulloch", "Pitts"]),
    "first misunderstanding": ("The first misunderstanding", ["Minsky", "Papert", "single layer", "several layers"]),
    "second misunderstanding": ("The second misunderstanding", ["more layers", "too big and too slow"]),
    "parallel distributed processing": (
        "Parallel distributed processing, and what it requires",
        ["processing units", "state of activation", "output function", "pattern of connections", "propagation rule",
         "activation rule", "learning rule", "environment", "1986"]),
    "hand-written rules": ("Why hand-written rules struggle", ["photograph", "we do not know how we do it"]),
    "Samuel": ("Samuel's idea: let the machine move the sliders", ["weights", "performance", "results", "1962"]),
    "words": (
        "The same in today's words",
        ["**parameters**", "**architecture**", "**predictions**", "**loss**", "**labels**", "**model**"]),
    "inference": ("Inference", ["training is over"]),
    "hard to explain": ("Why predictions are hard to explain", []),
    "kernel and cell": ("Notebooks, cells and the kernel", ["**kernel**", "**cells**", "**notebook**"]),
    "order of running": ("The trap: the kernel does not care where a cell stands", []),
    "help": ("Help for any function", ["`name?`", "`name??`", "`help(name)`"]),
    "GPU": ("What a GPU is good at", ["same small calculation", "at the same time"]),
    "widgets": ("Guesses, sliders (widgets) and questionnaires", ["**guess**", "**widget**", "**questionnaire**"]),
    "what it cannot do": ("What it cannot do", []),
}


@pytest.mark.parametrize("topic", TOPICS)
def test_topic_is_taught_under_its_heading(topic):
    heading, words = TOPICS[topic]
    text = sections()[heading]
    assert [word for word in words if word not in text] == []


def test_history_has_sources():
    sources = sections()["Sources"]
    assert all(name in sources for name in ["Samuel", "Minsky", "Rumelhart", "Rosenblatt", "McCulloch", "Howard"])


def test_eight_requirements():
    text = sections()["Parallel distributed processing, and what it requires"]
    rows = re.findall(r"^\| (\d)\. ", text, flags=re.MULTILINE)
    assert rows == list("12345678")


def test_links_lead_to_files():
    links = re.findall(r"\]\(([^)]+)\)", PROSE)
    assert links and [link for link in links if not (LESSONS / link).is_file()] == []


def test_map_lists_fifteen_lessons_in_order():
    rows = re.findall(r"^\| \[?(\d\d) ", sections()["The course map"], flags=re.MULTILINE)
    assert rows == [f"{number:02d}" for number in range(15)]


def test_three_exercises_with_solutions():
    exercises = sections()["Exercises"]
    assert re.findall(r"^\*\*(\d)\. ", exercises, flags=re.MULTILINE) == ["1", "2", "3"]
    solutions = SOLUTION.findall(exercises)
    assert len(solutions) == 3
    for solution in solutions:
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(solution)))


def test_guesses_and_sliders():
    source = "\n".join(cell.source for cell in CODE)
    assert source.count("guess(") >= 4 and source.count("Explorer(") >= 3 and source.count("published_here(") == 1


def test_cells_are_short():
    for cell in CODE:
        lines = [line for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")]
        assert len(lines) <= (20 if "def draw_" in cell.source else 8), cell.source


def test_stored_outputs_name_no_local_path_and_no_error():
    outputs = [output for cell in CODE for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    words = str([output.get("text", "") for output in outputs])
    assert not re.search(r"/home/|/root/|/tmp/|/Users/|:\\+Users", words)


def test_toy_kernel():
    run = run_cell("def run(order)")["run"]
    assert [run(order) for order in ("ABC", "ABBC", "ACB", "AABC")] == [21, 41, 11, 21]
    with pytest.raises(NameError, match="price"):
        run("BAC")


def test_moved_digits():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    images = torch.rand(3, 28, 28)
    source = next(cell.source for cell in CODE if "def moved(" in cell.source)
    names = {"F": torch.nn.functional, "valid_inputs": images.view(3, 784)}
    exec(source.split("\n\n")[1], names)
    shifted = names["moved"](4).view(3, 28, 28)
    assert torch.equal(shifted[:, 4:], images[:, :-4]) and (shifted[:, :4] == 0).all()
    assert torch.equal(names["moved"](0), images.view(3, 784))


def test_hand_written_rule():
    torch = pytest.importorskip("torch")
    images = torch.zeros(2, 28, 28)
    images[0, 20:26] = 1  # much ink low down: a 3
    names = {"torch": torch, "train_inputs": images.view(2, 784), "train_targets": torch.tensor([[1.0], [0.0]])}
    cell = run_cell("def rule_accuracy(", names)
    rule = cell["rule_accuracy"]
    ink = cell["low_ink"](images.view(2, 784))
    assert ink.tolist() == [1, 0]
    assert rule(0.5, ink, torch.tensor([True, False])) == 1 and rule(0.5, ink, torch.tensor([False, True])) == 0

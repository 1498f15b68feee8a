"""The cleaning plan under fire: two plans on one folder in any order, and processes killed at 200 random places, lose nothing.

What one plan does undisturbed is in test_cleaner.py. Here a process is killed (SIGKILL) after a random number of lines of the plan's own
code, or after a random time, and what is then found in the folder is compared with a run of the same story that was not killed.
"""
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lessonlib.cleaner import CleaningPlan, Decision

STATE = ".lessonlib"
NAMES = [f"{label}/{name}" for label in ("cat", "dog") for name in ("0.png", "1.png", "2.png", "A.png", "a.jpg")]  # relabelling collides
KINDS = ["keep", "delete", "cat", "dog", "fox"]
ROUNDS = 200


# A killed process loses nothing that it had written, on a disk or not; in memory `fsync` does not have to wait for a busy disk.
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") and os.access("/dev/shm", os.W_OK) else None


@pytest.fixture
def place():
    folder = Path(tempfile.mkdtemp(dir=MEMORY))
    yield folder
    shutil.rmtree(folder)


def make(folder):
    """A data set of small files, each with bytes of its own."""
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"bytes of {name}\n".encode() * 50)
    return folder


def tree(folder, trash=True):
    """Every file of the data set, the trash included: name -> checksum. The plan's own files do not count."""
    names = [path for path in folder.rglob("*") if path.is_file()]
    found = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in names}
    return {name: digest for name, digest in found.items() if not name.startswith(f"{STATE}/" if not trash else f"{STATE}/cleaning")}


def check_whole(folder, before):
    """Each file exists exactly once, in one place and under one name, with the bytes that it had."""
    assert sorted(tree(folder).values()) == sorted(before.values())
    assert all(path.stat().st_nlink == 1 for path in folder.rglob("*") if path.is_file())


def quietly(function, *arguments, **options):
    """Call, whatever it warns of: of another plan, of moves that it finished, of decisions that were not carried out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **options)


def decide(plan, path, kind):
    if kind in ("keep", "delete"): getattr(plan, kind)(path)
    else: plan.relabel(path, kind, new=True)


# ---- Any sequence of calls and crashes, with two plans on one folder

class Crash(BaseException):
    """What stops a plan in the middle; no `except Exception` or `except OSError` may swallow it."""


class View:
    """What one plan can undo and redo, as the documentation says it: its own decisions, and at its opening those of all that are closed."""
    def __init__(self, history, mine=True):
        self.done, self.undone = {}, {}
        for event in history: self.read(event, mine)

    def read(self, event, mine):
        kind, number, path = event
        if kind == "decide" and mine:
            self.done[number] = path
            self.undone.clear()
        elif kind == "undo" and number in self.done: self.undone[number] = self.done.pop(number)
        elif kind == "redo" and number in self.undone: self.done[number] = self.undone.pop(number)
        elif kind == "moved":
            for numbers in (self.done, self.undone):
                for other in [other for other, name in numbers.items() if name == path]: del numbers[other]


class TwoPlans(RuleBasedStateMachine):
    """The model: a list of decisions, each about one content at one path, and what each of two plans can undo."""

    @initialize()
    def begin(self):
        self.folder = make(Path(tempfile.mkdtemp(dir=MEMORY)))
        self.before, self.decided, self.hidden, self.history = tree(self.folder), [], set(), []  # decided: (path, decision, content)
        self.left, self.plans, self.views = None, [None, None], [None, None]
        for who in (0, 1): self.open(who)

    def teardown(self):
        self.plans = None
        shutil.rmtree(self.folder)

    def step(self, name):
        """Called by the plans before each step. The crash comes when `left` steps are over."""
        if self.left is None: return
        if self.left == 0:
            self.left, self.stopped = None, name
            raise Crash
        self.left -= 1

    def open(self, who):
        self.plans[who] = None
        self.plans[who] = quietly(CleaningPlan, self.folder, on_step=self.step)
        self.views[who] = View(self.history)

    def note(self, who, *event):
        self.history.append(event)
        for other, view in enumerate(self.views): view.read(event, other == who)

    def expected(self):
        """path -> (decision, content): the last one for each path that is not undone."""
        return {path: (decision, content) for number, (path, decision, content) in enumerate(self.decided) if number not in self.hidden}

    def call(self, who, crash, method, *arguments, **options):
        """Call a method of a plan; `crash`: after how many steps it dies, None for never. The result, and the step where it died."""
        self.left, self.stopped = crash, None
        try: return quietly(getattr(self.plans[who], method), *arguments, **options), None
        except Crash: pass
        finally: self.left = None
        self.plans[who] = None  # dead; the other one lives and has not noticed anything
        return None, self.stopped

    @rule(data=st.data(), who=st.sampled_from([0, 1]), kind=st.sampled_from(KINDS), crash=st.sampled_from([None, None, None, 0, 1]))
    def decide(self, data, who, kind, crash):
        now = tree(self.folder, trash=False)
        if not now: return
        path = data.draw(st.sampled_from(sorted(now)))
        decision = Decision(kind) if kind in ("keep", "delete") else Decision("relabel", kind)
        arguments = (path,) if kind in ("keep", "delete") else (path, kind)
        options = {} if kind in ("keep", "delete") else {"new": True}
        if path.split("/")[0] == kind: decision = Decision("keep")
        same = self.expected().get(path) == (decision, now[path])
        _, died = self.call(who, crash, decision.action if kind in ("keep", "delete") else "relabel", *arguments, **options)
        if not same and died != "write decide":
            self.decided.append((path, decision, now[path]))
            self.note(who, "decide", len(self.decided) - 1, path)
        if died: self.open(who)

    @rule(who=st.sampled_from([0, 1]), kind=st.sampled_from(["undo", "redo"]), crash=st.sampled_from([None, None, None, 0, 1]))
    def undo_or_redo(self, who, kind, crash):
        view = self.views[who]
        number, path = next(reversed((view.done if kind == "undo" else view.undone).items()), (None, None))
        result, died = self.call(who, crash, kind)
        assert died or result == path
        if path and died != f"write {kind}":
            (self.hidden.add if kind == "undo" else self.hidden.discard)(number)
            self.note(who, kind, number, path)
        if died: self.open(who)

    @rule(who=st.sampled_from([0, 1]), crash=st.one_of(st.none(), st.integers(0, 25)))
    def apply(self, who, crash):
        before, preview = tree(self.folder), quietly(self.plans[who].preview)
        assert preview.equals(quietly(self.plans[1 - who].preview)), "both plans are about to do the same"
        due = {path for path, (decision, content) in self.expected().items() if decision.action != "keep" and before.get(path) == content}
        assert set(preview.path) == due and not set(preview.target) & set(before) and preview.target.is_unique
        _, died = self.call(who, crash, "apply")
        if died and crash % 2: quietly(self.plans[1 - who].applied)  # it was open all the time, and now has to finish what was begun
        if died: self.open(who)
        moves = {} if died == "write move" else dict(zip(preview.path, preview.target, strict=True))
        assert tree(self.folder) == {moves.get(name, name): content for name, content in before.items()}
        for path in moves:
            self.hidden |= {number for number, (name, _, _) in enumerate(self.decided) if name == path}
            self.note(who, "moved", None, path)

    @rule(data=st.data(), who=st.sampled_from([0, 1]), everything=st.booleans(), crash=st.one_of(st.none(), st.integers(0, 25)))
    @precondition(lambda self: len(self.plans[0].applied()))
    def restore(self, data, who, everything, crash):
        names = [] if everything else [data.draw(st.sampled_from(self.plans[who].applied().path.tolist()))]
        _, died = self.call(who, crash, "restore", *names)
        if died: self.open(who)
        elif everything: assert self.plans[who].applied().empty and not [name for name in tree(self.folder) if name.startswith(STATE)]

    @rule(who=st.sampled_from([0, 1]))
    def reopen(self, who):
        self.open(who)

    @invariant()
    def nothing_is_lost(self):
        if not getattr(self, "plans", None): return
        decisions = [quietly(lambda plan=plan: plan.decisions) for plan in self.plans]
        assert decisions[0] == decisions[1] == {path: decision for path, (decision, _) in self.expected().items()}
        assert self.plans[0].applied().equals(self.plans[1].applied())
        check_whole(self.folder, self.before)


TestTwoPlans = TwoPlans.TestCase
TestTwoPlans.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)


# ---- Killed by the operating system

# One process imports the cleaner once. For each line of its input it forks a child, which opens a plan and makes some calls. When the plan is
# open, and when a call has returned, the child writes how many lines of the plan's code it may still run, [any, those next to a change of
# the disk]; when either is used up, it kills itself. Or it is killed after `seconds`.
WORKER = """
import json, os, signal, sys, time, warnings
import filelock, pandas, tqdm.auto
from lessonlib import cleaner, progress

warnings.simplefilter("ignore")
WATCHED, CRITICAL = {cleaner.__file__, progress.__file__}, {"_link", "_move", "_carry_out", "move", "append", "append_record"}

def killing(left):
    def trace(frame, event, argument):
        if frame.f_code.co_filename not in WATCHED: return None
        left[0] -= event == "line"
        left[1] -= event == "line" and frame.f_code.co_name in CRITICAL
        if min(left) < 0: os.kill(os.getpid(), signal.SIGKILL)
        return trace
    return trace

def play(folder, calls, out, left):
    log = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if left: sys.settrace(killing(left))
    plan = cleaner.CleaningPlan(folder)
    for method, *arguments in [["open"], *calls]:
        if method != "open": getattr(plan, method)(*arguments, **({"new": True} if method == "relabel" else {}))
        os.write(log, json.dumps(left).encode() + b"\\n")

for line in sys.stdin:
    job = json.loads(line)
    seconds = job.pop("seconds")
    child = os.fork()
    if not child:
        try: play(**job)
        except BaseException as problem: os.write(2, repr(problem).encode())
        else: os._exit(0)
        os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)  # until it is waited for, its number cannot be another process's
    print(os.waitpid(child, 0)[1], flush=True)
"""
MANY = 10**6


class Worker:
    """A process that plays stories in children of its own, one after the other. Between `begin` and `end` of one, another worker may play."""
    def __init__(self):
        self.process = subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self, folder, calls, out, left=None, seconds=None):
        """Start a story."""
        self.process.stdin.write(json.dumps({"folder": str(folder), "calls": calls, "out": str(out), "left": left, "seconds": seconds}) + "\n")
        self.process.stdin.flush()

    def end(self, out):
        """Wait for the end of the story: whether it was killed, and the lines left at the opening and after each call that had returned."""
        status = int(self.process.stdout.readline())
        assert status in (0, signal.SIGKILL), f"the child failed: {status}"
        return status == signal.SIGKILL, [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []

    def play(self, folder, calls, out, left=None):
        self.begin(folder, calls, out, left)
        return self.end(out)


@pytest.fixture(scope="module")
def workers():
    if not hasattr(os, "fork"): pytest.skip("this system cannot fork")
    workers = [Worker(), Worker()]
    yield workers
    for worker in workers: worker.process.communicate()


def found(folder):
    """All that a plan is to keep: what is decided, what can be restored, and every file."""
    plan = quietly(CleaningPlan, folder)
    return plan.decisions, plan.applied().values.tolist(), tree(folder)


def random_call(plan, folder, chance):
    """The next call of a story: something that is possible now."""
    now, moved = sorted(tree(folder, trash=False)), plan.applied().path.tolist()
    kind = chance.choices(["decide", "undo", "redo", "apply", "restore", "restore one"], [12, 2, 1, 2, 1, 1])[0]
    if kind == "restore one": return ["restore", chance.choice(moved)] if moved else ["undo"]
    if kind != "decide": return [kind]
    path, choice = chance.choice(now), chance.choice(KINDS)
    return [choice, path] if choice in ("keep", "delete") else ["relabel", path, choice]


def story(folder, chance):
    """Calls, in the end some decisions and an apply or a restore; and what is found before the first and after each, when nobody is killed."""
    plan, calls, states = quietly(CleaningPlan, make(folder)), [], [found(folder)]
    last = [["apply"], ["restore"]][:chance.randint(1, 2)]
    for number in range(10 + len(last)):
        calls.append(last[number - 10] if number >= 10 else random_call(plan, folder, chance))
        method, *arguments = calls[-1]
        quietly(getattr(plan, method), *arguments, **({"new": True} if method == "relabel" else {}))
        states.append(found(folder))
        assert states[-1][:2] == (plan.decisions, plan.applied().values.tolist()), "whoever opens the folder sees the same"
    return calls, states


def check_after_kill(folder, calls, states, returned):
    """After a kill: the folder is as it was before or as it is after the call that was under way, and no call that had returned is undone."""
    before, done = states[0][2], max(len(returned) - 1, 0)  # the first line says that the plan is open
    decisions, applied, files = found(folder)
    check_whole(folder, before)
    if (decisions, applied, files) not in states[done:done + 2]:
        # Only undoing several batches may be half done, never half a move. Decisions are not touched by it.
        assert calls[done][0] == "restore" and decisions == states[done][0]
        moved = {tuple(move) for move in states[done][1]}
        assert applied and {tuple(move) for move in applied} < moved
    plan = quietly(CleaningPlan, folder)
    quietly(plan.restore)
    check_whole(folder, before)
    assert tree(folder) == before
    quietly(plan.apply)  # and it can go on
    quietly(plan.restore)
    assert tree(folder) == before


@pytest.mark.parametrize("seed", range(10))
def test_killed_at_any_line(seed, place, workers):
    """200 rounds in all: ten stories, each killed at 20 places: in a call drawn by chance, after a number of lines drawn by chance."""
    chance, worker = random.Random(seed), workers[0]
    calls, states = story(place / "story", chance)
    killed, left = worker.play(make(place / "whole"), calls, place / "whole.txt", [MANY, MANY])
    assert not killed and len(left) == len(calls) + 1
    assert found(place / "whole") == states[-1], "not killed, the story in the child ends as it does here"
    for number in range(ROUNDS // 10):
        kind = number % 5 > 0  # four in five next to a change of the disk
        ends = [MANY - after[kind] for after in left]  # lines run when a call had returned
        folder, lines = make(place / f"{number}"), chance.randrange(ends[0], ends[-1])
        if number % 5 == 1: lines = chance.randrange(*max(zip(ends, ends[1:], strict=False), key=lambda call: call[1] - call[0]))  # the longest call
        killed, told = worker.play(folder, calls, place / f"{number}.txt", [MANY, lines] if kind else [lines, MANY])
        assert killed and len(told) == sum(end <= lines for end in ends)
        if number % 3 == 0:  # killed once more, while it opens the folder and finishes what was begun
            worker.play(folder, [], place / f"{number}-again.txt", [chance.randrange(20, 300), MANY])
        check_after_kill(folder, calls, states, told)
        shutil.rmtree(folder)


@pytest.mark.parametrize("seed", range(4))
def test_two_processes_and_one_is_killed(seed, place, workers):
    """Both decide and apply at the same time. One dies, by lines or by the clock; the other goes on, and what either had decided stays."""
    chance = random.Random(seed)
    calls = [[["delete", name] if number % 2 else ["relabel", name, "fox"] for number, name in enumerate(NAMES) if name.startswith(label)]
             for label in ("cat", "dog")]
    for own in calls: own.insert(chance.randrange(2, 5), ["apply"])
    for number in range(5):
        folder, outs = make(place / f"{number}"), [place / f"{number}-{who}.txt" for who in (0, 1)]
        before = tree(folder)
        end = {"left": [MANY, chance.randrange(200)]} if number % 2 else {"seconds": chance.uniform(0, 0.1)}
        workers[0].begin(folder, calls[0], outs[0], **end)
        workers[1].begin(folder, calls[1], outs[1])
        left = [worker.end(out)[1] for worker, out in zip(workers, outs, strict=True)]
        assert len(left[1]) == len(calls[1]) + 1, "the survivor did all that it wanted"
        decisions, applied, _ = found(folder)
        said = {call[1] for own, lines in zip(calls, left, strict=True) for call in own[:max(len(lines) - 1, 0)] if len(call) > 1}
        assert said <= {*decisions, *(source for source, _ in applied)}
        check_whole(folder, before)
        quietly(quietly(CleaningPlan, folder).restore)
        assert tree(folder) == before

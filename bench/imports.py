"""What an import costs: each lessonlib module beyond `import torch`, in fresh interpreters, modules taking turns.

The budget is for `lessonlib.learner`. What is heavy (torchvision, pandas, matplotlib, widgets) should be imported where it is used, not before.

    python bench/imports.py                       # all modules; fastai's Learner and torchvision beside them where they are installed
    python bench/imports.py learner doctor --rounds 15
"""
import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from timing import interleave, percentiles, spread, verdict

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ["torchvision", "pandas", "matplotlib", "ipywidgets", "anywidget", "IPython", "PIL", "safetensors", "sklearn"]
CODE = """
import json, sys, time
begin = time.perf_counter()
import torch
middle = time.perf_counter()
before = set(sys.modules)
import {module}
end = time.perf_counter()
print(json.dumps([middle - begin, end - middle, sorted((set(sys.modules) - before) & set({heavy!r}))]))
"""


def cost(module):
    "Seconds for `import torch`, seconds more for the module, and the heavy packages that it brought along."
    code = CODE.format(module=module, heavy=HEAVY)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    if result.returncode: raise SystemExit(f"import {module} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def measure(modules, rounds):
    "For each module the list of its costs, one a round; the rounds are interleaved and the first, which fills the disk cache, is not counted."
    found = {module: [] for module in modules}

    def contender(module):
        return lambda: lambda: found[module].append(cost(module))

    interleave({module: contender(module) for module in modules}, rounds)
    return {module: costs[-rounds:] for module, costs in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help="such as learner; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="fresh interpreters for each module (5)")
    options = parser.parse_args()
    names = options.modules or sorted(path.stem for path in (ROOT / "lessonlib").glob("[!_]*.py"))
    others = [] if options.modules else [name for name in ("torchvision", "fastai.learner") if importlib.util.find_spec(name.partition(".")[0])]
    found = measure([f"lessonlib.{name}" for name in names] + others, options.rounds)
    torch_seconds = percentiles([first for costs in found.values() for first, _, _ in costs])
    print(f"import torch: {spread(torch_seconds, '{:.2f}')} s, median (p10-p90). Beyond it, in {options.rounds} fresh interpreters each:")
    medians = {}
    for module, costs in found.items():
        seconds = percentiles([more for _, more, _ in costs])
        heavy = sorted({name for _, _, names in costs for name in names})
        medians[module] = seconds[0]
        print(f"  {module:24}{spread(seconds, '{:.3f}'):>22} s   {'brings ' + ', '.join(heavy) if heavy else 'nothing heavy'}")
    if "lessonlib.learner" in medians: print(f"  lessonlib.learner, seconds: {verdict(medians['lessonlib.learner'], 0.3)}")


if __name__ == "__main__":
    main()

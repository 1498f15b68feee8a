"""How long from a key press to a changed picture, in a real browser? Our Explorer against `interact` with matplotlib.

Both draw the same line of 200 points; presses alternate between them. Budget: median at most 30 ms, and 3 times faster.
"""
import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "browser"))
from jupyter_browser import Lab, find_browser, open_browser, start_server, write_notebook  # noqa: E402

EXPLORER = """
import numpy as np
from lessonlib.explore import Explorer, Panel, Scene
x = np.linspace(0, 10, 200)
def draw(a): return Scene(Panel("A wave", "x", "y", ylim=(-1.2, 1.2)).line(x, np.sin(a * x)), text=f"a = {a:.1f}")
Explorer(draw, a=(0, 10, 0.1, 1))
"""
INTERACT = """
import matplotlib.pyplot as plt
from ipywidgets import interact
@interact(a=(0.0, 10.0, 0.1))
def draw(a=1.0):
    plt.figure(figsize=(5.6, 3.2))
    plt.plot(x, np.sin(a * x)); plt.ylim(-1.2, 1.2); plt.title("A wave"); plt.xlabel("x"); plt.ylabel("y")
    plt.show()
"""
WAYS = {"Explorer": ".lessonlib-explorer", "interact + matplotlib": ".widget-interact"}

# The clock starts at the key's own event and stops when the page holds a different picture (an image: decoded).
WATCH = """(selector) => {
  const place = document.querySelector(selector);
  const parts = () => [...place.querySelectorAll("svg svg path, img")];
  const look = () => parts().map((node) => node.getAttribute("d") || node.src).join();
  const before = look();
  let start;
  document.addEventListener("keydown", () => { start = performance.now(); }, {capture: true, once: true});
  window.changed = new Promise((done) => {
    const observer = new MutationObserver(async () => {
      const now = look();
      if (now === "" || now === before) return;
      observer.disconnect();
      for (const image of place.querySelectorAll("img")) await image.decode();
      done(performance.now() - start);
    });
    observer.observe(place, {subtree: true, childList: true, attributes: true});
  });
}"""


def press(page, selector):
    """Milliseconds from one press of the right arrow key to a changed picture."""
    page.locator(f"{selector} .noUi-handle").focus()
    page.evaluate(WATCH, selector)
    page.keyboard.press("ArrowRight")
    took = page.evaluate("() => window.changed")
    page.wait_for_timeout(120)  # let the kernel and the page come to rest
    return took


def measure(presses, warm_up=5):
    """Milliseconds of each press, for each way."""
    times = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        write_notebook(Path(folder) / "sliders.ipynb", EXPLORER, INTERACT)
        with start_server(folder) as server, open_browser(find_browser()) as page:
            with Lab(page, server).notebook("sliders.ipynb"):
                for selector in WAYS.values(): page.locator(f"{selector} :is(svg, img)").first.wait_for()
                for turn in range(warm_up + presses):
                    for name, selector in WAYS.items():
                        took = press(page, selector)
                        if turn >= warm_up: times[name].append(took)
    return times


def report(times):
    for name, found in times.items():
        tenths = statistics.quantiles(found, n=10)
        spread = f"p10 {tenths[0]:.0f}, p90 {tenths[-1]:.0f}, {len(found)} presses"
        print(f"{name:<24}{statistics.median(found):6.0f} ms  ({spread})")
    ours, theirs = (statistics.median(found) for found in times.values())
    verdict = "within" if ours <= 30 and theirs >= 3 * ours else "OVER"
    print(f"{theirs / ours:.1f} times faster; {verdict} the budget (30 ms, 3 times)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presses", type=int, default=30)
    report(measure(parser.parse_args().presses))

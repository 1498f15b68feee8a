"""A real JupyterLab on 127.0.0.1 and a real Chromium, for the browser tests and for bench/sliders.py."""
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SCREENSHOTS = REPOSITORY / "_build" / "screenshots"
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                  "--disable-background-networking", "--disable-component-update", "--disable-sync"]


# --- the browser ------------------------------------------------------------------------------------------------------
def find_browser():
    """Path of a Chromium: Playwright's own, else one on the PATH, else Debian's package; None when there is none."""
    return _playwright_browser() or _system_browser() or (_install_browser() and _system_browser())


def _playwright_browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if path and Path(path).exists() else None


def _system_browser():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next((path for path in map(shutil.which, names) if path), None)


def _install_browser():
    """Install Debian's chromium where that is allowed (as root, with apt); True when it worked."""
    if not (shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0): return False
    def apt(*arguments):
        silent = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        return subprocess.run(["apt-get", *arguments], env=silent, capture_output=True).returncode == 0
    install = ["install", "-y", "--no-install-recommends", "chromium"]
    return apt(*install) or (apt("update") and apt(*install))


@contextmanager
def open_browser(executable, **context):
    """A fresh browser page that fails loudly; closes when done."""
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS)
        try:
            page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}} | context)
            page.set_default_timeout(30_000)
            yield page
        finally:
            browser.close()


# --- the server -------------------------------------------------------------------------------------------------------
def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _write_settings(home, theme):
    """JupyterLab's user settings: no network for news, the theme asked for."""
    folder = home / "lab" / "@jupyterlab" / "apputils-extension"
    folder.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (folder / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    (folder / "themes.jupyterlab-settings").write_text(json.dumps({"theme": theme}))


def _environment(home):
    """The caller's environment with every Jupyter folder moved into `home`; Jupyter chooses the plotting back end."""
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
               "IPYTHONDIR": "ipython", "JUPYTERLAB_SETTINGS_DIR": "lab", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    environment |= {name: str(home / folder) for name, folder in folders.items()}
    environment.setdefault("LESSONLIB_HOME", str(home / "lessonlib"))
    # Two threads that share busy cores wait for each other: on small tensors up to ten times slower than one.
    environment.setdefault("OMP_NUM_THREADS", "1")
    return environment


def _wait_for(url, process, log, seconds=60):
    for _ in range(seconds * 10):
        if process.poll() is not None: break
        try: return urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, OSError): time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


@contextmanager
def start_server(folder, theme="JupyterLab Light"):
    """JupyterLab serving `folder`; gives its address with the token as a pair."""
    with tempfile.TemporaryDirectory(prefix="lessonlib-lab-", ignore_cleanup_errors=True) as home:
        home, port, token = Path(home), _free_port(), secrets.token_hex(16)
        _write_settings(home, theme)
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
                   f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
                   f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True"]
        log = home / "server.log"
        with log.open("w") as output:
            process = subprocess.Popen(command, cwd=folder, env=_environment(home), stdout=output, stderr=output)
        try:
            _wait_for(f"http://127.0.0.1:{port}/api?token={token}", process, log)
            yield f"http://127.0.0.1:{port}", token
        finally:
            process.terminate()
            try: process.wait(20)
            except subprocess.TimeoutExpired: process.kill()


# --- a notebook in the browser ----------------------------------------------------------------------------------------
_OPEN = """async ([path, kernel]) => {
  const app = window.jupyterapp;
  await app.restored;
  const panel = await app.commands.execute("docmanager:open", {path, factory: "Notebook"});
  window.lessonPanel = panel;
  await panel.context.ready;
  await panel.revealed;
  if (!kernel) return null;
  const session = panel.sessionContext;
  await session.ready;
  if (!session.session) await session.changeKernel({name: "python3"});
  await session.session.kernel.info;
  return session.session.kernel.name;
}"""
_ALL_CELLS_ATTACHED = """() => {
  const notebook = window.lessonPanel.content;
  return notebook.node.querySelectorAll(".jp-Cell").length >= notebook.model.cells.length;
}"""
_RUN = """async () => {
  const panel = window.lessonPanel;
  window.jupyterapp.shell.activateById(panel.id);
  await window.jupyterapp.commands.execute("notebook:run-all-cells");
}"""
_OUTPUTS = """() => window.lessonPanel.content.model.toJSON().cells.flatMap((cell, index) =>
  (cell.outputs || []).map((output) => ({cell: index, ...output})))"""
_CLOSE = """async () => {
  const panel = window.lessonPanel;
  if (panel.sessionContext.session) await panel.sessionContext.shutdown();
  panel.dispose();
}"""
PICTURE = ":is(.lessonlib-row > svg, .js-plotly-plot .main-svg)"  # what an explorer draws; the model zoo's is plotly's
_LIVE = ".jp-OutputArea-child:has(.lessonlib-explorer :is(.lessonlib-row > svg, .js-plotly-plot))"  # plotly may be drawing anew


def write_notebook(path, *cells):
    """A small notebook with these code cells, for the Python kernel."""
    import nbformat
    spec = {"display_name": "python3", "language": "python", "name": "python3"}
    cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec}), path)
    return path


class Lab:
    """Opens, runs and closes notebooks in one browser page; at most one notebook is open at a time."""
    live = _LIVE  # the outputs that hold a live explorer

    def __init__(self, page, server):
        self.page, (self.address, self.token) = page, server
        page.goto(f"{self.address}/lab?token={self.token}&reset")
        page.wait_for_function("() => window.jupyterapp && document.querySelector('#jp-main-dock-panel')")
        page.evaluate("async () => { await window.jupyterapp.restored; }")
        # The file browser takes room that the lesson can use.
        page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area').catch(() => null)")

    def _do(self, script, argument=None, seconds=120):
        """Run an async function in the page; unlike Playwright's evaluate, give up after some seconds."""
        late = f"new Error('no answer from JupyterLab in {seconds} s')"
        timer = f"new Promise((_, fail) => setTimeout(() => fail({late}), {seconds * 1000}))"
        return self.page.evaluate(f"(argument) => Promise.race([({script})(argument), {timer}])", argument)

    def open(self, path, kernel=True):
        """Open a notebook and wait until its kernel answers (else a run is silently dropped); or open it with none."""
        self._do(_OPEN, [str(path), kernel], seconds=60)
        if not kernel: self.page.locator(".jp-Dialog").get_by_role("button", name="No Kernel").click()
        self.page.wait_for_function(_ALL_CELLS_ATTACHED)  # JupyterLab attaches cells bit by bit

    def run_all(self):
        self._do(_RUN, seconds=300)

    def outputs(self):
        """Every output in the notebook, with the number of its cell."""
        return self.page.evaluate(_OUTPUTS)

    def errors(self):
        return [f"cell {output['cell']}: {output['ename']}: {output['evalue']}"
                for output in self.outputs() if output["output_type"] == "error"]

    def save(self):
        self._do("() => window.lessonPanel.context.save()")

    def close(self):
        """Shut the kernel down and close the notebook without saving it."""
        self._do(_CLOSE, seconds=30)

    @contextmanager
    def notebook(self, path, kernel=True):
        """A notebook, opened and run for the length of a `with` block; without `kernel` it is only opened."""
        self.open(path, kernel)
        try:
            if kernel: self.run_all()
            yield self
        finally:
            self.close()

    def unfold(self):
        """Open the sections that are folded ("Going deeper")."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('notebook:expand-all-headings')")

    def top(self):
        """Scroll to the first cell and take the cursor out of the way."""
        self.page.evaluate("""() => {
            const notebook = window.lessonPanel.content;
            notebook.activeCellIndex = 0;
            notebook.scrollToItem(0);
        }""")
        self.page.wait_for_timeout(300)

    def tall_screenshot(self, name, limit=14_000):
        """The whole notebook in one picture, as far as `limit` pixels."""
        size = self.page.viewport_size
        outer = self.page.locator(".jp-NotebookPanel:visible .jp-WindowedPanel-outer").first
        height = outer.evaluate("(outer) => outer.scrollHeight")
        self.page.set_viewport_size({"width": size["width"], "height": min(limit, height + 200)})
        self.page.wait_for_timeout(500)
        self.screenshot(name)
        self.page.set_viewport_size(size)

    def screenshot(self, name, locator=None):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        (locator or self.page).screenshot(path=SCREENSHOTS / f"{name}.png")

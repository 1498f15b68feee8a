"""One JupyterLab and one browser for all browser tests; they close before other tests meet Playwright's event loop."""
import os
import shutil

import pytest
from jupyter_browser import REPOSITORY, Lab, find_browser, open_browser, start_server


@pytest.fixture(scope="session")
def browser_path():
    """A Chromium to drive. Without one the browser tests are skipped, but under CI=true they fail."""
    path = find_browser()
    if path: return path
    reason = "no Chromium found: apt-get install chromium (Debian), or python -m playwright install chromium"
    pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the notebooks, so that a test cannot change the checkout."""
    folder = tmp_path_factory.mktemp("course")
    shutil.copytree(REPOSITORY / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    return folder


@pytest.fixture(scope="module")
def lab(browser_path, folder):
    with start_server(folder) as server, open_browser(browser_path) as page:
        yield Lab(page, server)

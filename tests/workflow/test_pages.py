"""What people see, in a real browser: the report at desk and phone width, the study in the MLflow UI."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on the PATH")
QUIET = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
PHONE = 390
MEASURE = """<iframe src="{page}" width="{width}" height="800" frameborder="0"></iframe><p id="width"></p>
<script>onload = () => width.textContent = "width " + frames[0].document.documentElement.scrollWidth</script>"""


def rendered(url: str, profile: Path) -> str:
    """Return the page's document after its scripts have run."""
    settings = [*QUIET.split(), "--disable-component-update", "--disable-sync", "--allow-file-access-from-files"]
    settings += [f"--user-data-dir={profile}", "--virtual-time-budget=20000", "--window-size=1900,1100", "--dump-dom"]
    finished = subprocess.run([CHROMIUM, *settings, url], capture_output=True, text=True, timeout=120, check=True)
    return finished.stdout


@pytest.mark.parametrize("width", [PHONE, 1280])
def test_report_fits_its_window(tiny, tmp_path, width):
    page = tmp_path / "measure.html"
    page.write_text(MEASURE.format(page=(tiny / "reports/tiny/index.html").as_uri(), width=width))
    measured = re.search(r"width (\d+)<", rendered(page.as_uri(), tmp_path / "profile"))
    assert int(measured[1]) <= width  # nothing sticks out: no scrolling sideways


def test_report_asks_nothing_of_the_network(tiny):
    html = (tiny / "reports/tiny/index.html").read_text()
    for loading in ('src="http', "src='http", "@import", 'rel="stylesheet" href="http'):
        assert loading not in html


def test_plain_mlflow_ui_shows_the_study(tiny, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "mlflow"), "ui", "--port", str(port)]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(command, cwd=tiny, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/health")
        html = rendered(f"http://127.0.0.1:{port}/#/experiments/1/runs", tmp_path / "profile")
    finally:
        os.killpg(server.pid, 9)
        server.wait()
    for name in ("report", "trilm/2L", "quantlm/2L-4bit"):
        assert name in html


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            assert time.monotonic() < deadline, f"{url} did not come up"
            time.sleep(0.5)

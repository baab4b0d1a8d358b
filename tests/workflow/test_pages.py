"""What people see, in a real browser: the report at desk and phone width, the study in the MLflow UI."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from loopback import free_port, wait_for

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on the PATH")
QUIET = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
PHONE = 390
MEASURE = """<iframe src="{page}" width="{width}" height="800" frameborder="0"></iframe><p id="width"></p>
<script>onload = () => width.textContent = "width " + frames[0].document.documentElement.scrollWidth</script>"""


def rendered_with(text: str, url: str, profile: Path) -> str:
    """Return the page's document once it holds a text: on a busy machine scripts may come late."""
    for _ in range(5):
        html = rendered(url, profile)
        if text in html:
            return html
    raise AssertionError(f"{url} shows no {text}")


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
    port = free_port()
    command = [str(Path(sys.executable).parent / "mlflow"), "ui", "--port", str(port)]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(command, cwd=tiny, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", 90)
        html = rendered(f"http://127.0.0.1:{port}/#/experiments/1/runs", tmp_path / "profile")
    finally:
        os.killpg(server.pid, 9)
        server.wait()
    for name in ("report", "trilm/2L", "quantlm/2L-4bit"):
        assert name in html


def test_link_of_the_ui_shows_curves_models_their_parents_and_scores(tiny, tmp_path):
    port = free_port()
    command = [str(Path(sys.executable).parent / "openspectra"), "track", "ui", "tiny", "--port", str(port)]
    ui = subprocess.Popen(command, cwd=tiny, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        curves, table = (ui.stdout.readline().split()[-1] for _ in range(2))
        wait_for(f"http://127.0.0.1:{port}/health", 90)
        html = rendered_with("js-line", curves, tmp_path / "profile")  # a curve is drawn
        assert "tokens_seen" in html
        html = rendered_with("trilm/2L<", table, tmp_path / "profile")
        for column in ("test_loss", "bits_per_byte", "mean_accuracy", "family", "quantlm/2L-4bit"):
            assert column in html
        assert "tokens/train" not in html  # the table is of models alone
        model = re.search(r'href="(#/experiments/1/runs/\w+)[^"]*"[^>]*>(?:<[^>]*>)*trilm/2L<', html)
        html = rendered_with("Led to", f"http://127.0.0.1:{port}/{model[1]}", tmp_path / "profile")
        for name in ("tokens/train", "tokenizer", "trilm/2L/held_out", "report", "openspectra-tiny-trilm-2L"):
            assert f">{name}<" in html
        for metric in ("held_out/continuation/acc", "test_loss"):
            assert metric in html
    finally:
        ui.terminate()
        ui.wait()

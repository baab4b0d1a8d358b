"""The demo as a newcomer runs it, and what must hold of its numbers.

How long it takes is printed, not asserted: wall time on shared machines says little. README has the measured figure.
"""

import csv
import time

import pytest
from conftest import copy_project, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    project = copy_project(tmp_path_factory.mktemp("demo") / "project")
    started = time.monotonic()
    finished = run("snakemake", "--cores", "2", cwd=project)
    assert finished.returncode == 0, finished.stdout[-5000:]
    print(f"demo: {time.monotonic() - started:.0f} s")
    return project


def test_demo_evaluates_and_reports_18_models(demo):
    with (demo / "reports/demo/models.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    assert not [row for row in rows if row["missing"]]


def test_8_and_6_bits_cost_less_than_a_hundredth_of_a_nat(demo):
    with (demo / "reports/demo/gaps.csv").open() as file:
        gaps = {row["model_id"]: float(row["test_loss_difference"]) for row in csv.DictReader(file)}
    near = {model: gap for model, gap in gaps.items() if model.endswith(("-8bit", "-6bit"))}
    assert len(near) == 6
    assert max(map(abs, near.values())) <= 0.01, near

"""A plan recomputes by hand, and its schedule is one that could be run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openspectra.cli import app
from openspectra.planning import Cost, makespan, plan_study, site_of
from openspectra.resources import Needs
from openspectra.site import Site
from openspectra.speeds import Speeds, assumed_speeds
from openspectra.study import load_study
from openspectra.work import Job, jobs_of, run_folder_bytes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def paper():
    return load_study(ROOT / "studies/paper.yaml")


def test_a_training_costs_6_n_d(paper):
    """docs/plan.md shows this computation for 99M."""
    plan = plan_study(paper, Site(), assumed_speeds(Site()))
    by_hand = 6 * 99_762_688 * 143_052 * 1024 * 2048 / (0.40 * 989e12) / 3600  # GPU hours
    validation = 2 * 99_762_688 * 100 * 1024 * 2048 / (0.40 * 989e12) / 3600
    (cost,) = (cost for cost in plan.costs if cost.job.name == "floatlm/99M")
    assert cost.gpu_hours == pytest.approx(by_hand + validation + 1.3 * 30 / 3600, rel=1e-6)
    assert by_hand == pytest.approx(126, abs=0.5)
    trainings = [cost for cost in plan.costs if cost.job.rule == "pretrain_model"]
    assert plan.hours(trainings) == pytest.approx(28_300, rel=0.005)
    assert run_folder_bytes(paper.pretrained["floatlm/3.9B"]) / 1e9 == pytest.approx(423, rel=0.01)


def test_every_artifact_of_a_study_has_its_job(paper):
    jobs = {job.name: job for job in jobs_of(paper)}
    places = {place for place, stage in paper.artifacts.items() if stage != "evaluate"}
    assert places == {name for name, job in jobs.items() if job.rule != "evaluate_model"} - {"report", "tracking"}
    assert {job.model_id for job in jobs.values() if job.rule == "evaluate_model"} == set(paper.models)
    seen = set()
    for name, job in jobs.items():  # causes before effects, and every cause a job
        assert set(job.after) <= seen, name
        seen.add(name)


def test_sources_of_the_same_files_are_read_as_often_as_there_are_sources(monkeypatch):
    """By hand: 300B tokens of 4 bytes are 48 % of what is read, 2.5 TB; each of 7 x 20 jobs parses a twentieth of it."""
    monkeypatch.chdir(ROOT)
    study = load_study(Path("studies/paper-text.yaml"))
    jobs = [job for job in jobs_of(study) if job.rule == "read_source"]
    assert len(jobs) == 140
    assert all(job.text_bytes + job.passed_bytes == pytest.approx(125e9) for job in jobs)
    assert sum(job.text_bytes for job in jobs) == pytest.approx(2.5e12)
    assert sum(job.disk_bytes for job in jobs) == pytest.approx(2.5e12 / 3)  # written before a sample is drawn
    (crawl,) = (job for job in jobs if job.name == "sources/parts/common_crawl/0")
    assert crawl.text_bytes == pytest.approx(125e9 * 156 / 300)
    plan = plan_study(study, Site(), assumed_speeds(Site()))
    seconds = {cost.job.name: cost.seconds for cost in plan.costs}
    assert seconds[crawl.name] == pytest.approx(65e9 / 41e6 + 60e9 / 165e6, rel=0.01)
    parts = [job for job in jobs_of(study) if job.rule == "build_part"]
    assert sum(job.text_bytes for job in parts) == pytest.approx(2.5e12)
    assert sum(job.disk_bytes for job in parts) == pytest.approx(1.2e12 / 3)
    assert sum(cost.job.disk_bytes for cost in plan.costs) == pytest.approx(4.86e12, rel=0.01)
    fineweb = [job for job in jobs_of(load_study(Path("studies/paper-fineweb.yaml"))) if job.rule == "read_source"]
    assert len(fineweb) == 20 and all(job.passed_bytes == 0 for job in fineweb)
    assert sum(job.text_bytes for job in fineweb) == pytest.approx(1.2e12 / 0.86)


def test_ready_token_files_count_as_large_as_they_are(paper, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENSPECTRA_DATA", str(tmp_path))

    def sizes():
        return [job.token_bytes for job in jobs_of(paper) if job.rule == "tokenize_part"]

    assert sizes() == [pytest.approx(600e9 / 7)] * 7  # nothing is known of any
    (tmp_path / "slimpajama_300b").mkdir()
    for name, size in (("common_crawl", 312e9), ("c4", 160e9)):
        with (tmp_path / f"slimpajama_300b/{name}.bin").open("wb") as file:
            file.truncate(int(size))  # a hole: it takes no room
    assert sizes() == [pytest.approx(size) for size in (25.6e9, 25.6e9, 160e9, 312e9, 25.6e9, 25.6e9, 25.6e9)]


def test_jobs_wait_for_what_they_read_and_for_their_devices():
    def cost(name, seconds, after=(), threads=1):
        return Cost(Job(name, "pretrain_model", tuple(after)), Needs(threads, 1, 1), seconds)

    chain = [cost("a", 10), cost("b", 5, "a"), cost("c", 5, "a"), cost("d", 1, "bc")]
    assert makespan(chain, 1, False) == 21 and makespan(chain, 2, False) == 16 == makespan(chain, 9, False)
    wide = [cost("a", 10, threads=2), cost("b", 10), cost("c", 10)]
    assert makespan(wide, 2, False) == 20 and makespan(wide, 1, False) == 30  # threads are cut down to the cores


def test_small_studies_are_planned_for_this_machine_and_the_paper_for_the_shipped_site(paper, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert site_of(load_study(Path("studies/demo.yaml")), None) is None
    assert site_of(paper, None) == Site()
    (tmp_path / "mine.yaml").write_text("gpus: 4\n")
    assert site_of(paper, tmp_path / "mine.yaml").gpus == 4


def test_plan_shows_trainings_stages_money_and_assumptions(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    shown = CliRunner().invoke(app, ["plan", "paper", "--gpus", "64", "--price", "2"])
    assert shown.exit_code == 0, shown.output
    for part in ("99,762,688", "1.8e+20", "2 x 8, fsdp2", "quantize", "GPU hours", "on 64 GPUs", "What this stands on"):
        assert part in shown.output
    page = tmp_path / "cost.html"
    assert CliRunner().invoke(app, ["plan", "paper", "--page", str(page)]).output == ""
    assert "<html>" in page.read_text() and "99,762,688" in page.read_text() and "kWh" in page.read_text()
    refused = CliRunner().invoke(app, ["plan", "paper", "--gpus", "8"])
    assert "takes 16 GPUs at once; got 8" in str(refused.exception)


def test_measured_speeds_are_used_and_damaged_ones_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    study = ROOT / "studies/tiny.yaml"
    folder = tmp_path / "results/tiny"
    folder.mkdir(parents=True)
    speeds = Speeds(start=1, rate=1e9, rates={"trilm/2L": 5e8}, measured="on a day on 2 cores")
    (folder / "calibration.json").write_text(speeds.model_dump_json())
    shown = CliRunner().invoke(app, ["plan", str(study)])
    assert "Measured on a day on 2 cores" in shown.output and "trilm/2L 5e+08" in shown.output
    (folder / "calibration.json").write_text("{")
    assert "measure anew with --calibrate" in str(CliRunner().invoke(app, ["plan", str(study)]).exception)


def test_calibration_measures_start_and_rates(monkeypatch, tmp_path):
    """A second is enough for it to do every kind of thing it does."""
    monkeypatch.chdir(ROOT)
    code = (
        "import sys, json, time; from pathlib import Path; from openspectra import calibration; calibration.SECONDS = 1.0; "
        "print(json.dumps(calibration.measure(calibration.load_study(Path('studies/tiny.yaml')), 'cpu', time.time())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["rates"]) == {"floatlm/2L", "trilm/2L"}
    assert (
        all(1e7 < rate < 1e13 for rate in found["rates"].values()) and found["start"] > 0.1 and found["stretch"] > 0.5
    )

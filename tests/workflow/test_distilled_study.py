"""A distilled training in the workflow: its teacher is an input and a parent, so one made anew makes the student stale."""

import json

import pytest
from conftest import run, snakemake
from test_tiny_study import edit_study, planned

from openspectra.artifacts import open_artifact

STUDENT, TEACHER = "trilm/2L+distilled", "floatlm/2L"


@pytest.mark.slow
def test_a_student_follows_its_teacher_and_is_exported_as_any_model(tiny_copy):
    results, form = tiny_copy / "results/tiny", "packed-1.6bit"
    edit_study(tiny_copy, "  trilm:\n", "  trilm:\n    distillation: {hidden_states: true}\n")
    edit_study(tiny_copy, "num_resamples: 200", f'exports: {{"{STUDENT}": [{form}]}}\nnum_resamples: 200')
    export, trained = (f"results/tiny/{place}/manifest.json" for place in (f"exports/{STUDENT}/{form}", STUDENT))
    made = snakemake(tiny_copy, export)
    assert made.returncode == 0, made.stdout[-3000:]
    assert f"{STUDENT}: " in made.stdout and f"taught by {TEACHER}" in made.stdout
    student, teacher, twin = (open_artifact(results / place) for place in (STUDENT, TEACHER, "trilm/2L"))
    assert student.manifest.parents["teacher"].sha256 == teacher.sha256
    columns = [list(each.rows("train.csv")[0]) for each in (twin, student)]
    assert columns[1] == [*columns[0], "distillation_loss"]
    metrics = student.manifest.metrics
    assert metrics["num_parameters"] == twin.manifest.metrics["num_parameters"]
    assert json.loads((tiny_copy / export).read_text())["metrics"]["round_trip_exact"]
    assert run("openspectra", "verify", f"results/tiny/{STUDENT}", cwd=tiny_copy).returncode == 0
    why = run("openspectra", "why", f"results/tiny/{STUDENT}", cwd=tiny_copy).stdout
    assert f"  teacher: results/tiny/{TEACHER}" in why
    assert planned(snakemake(tiny_copy, "-n", trained).stdout) == {}

    edit_study(tiny_copy, "peak_lr: {2L: 4e-3}", "peak_lr: {2L: 5e-3}")
    assert planned(snakemake(tiny_copy, "-n", trained).stdout)["pretrain_model"] == 2
    anew = snakemake(tiny_copy, f"results/tiny/{TEACHER}/manifest.json")
    assert anew.returncode == 0, anew.stdout[-3000:]
    stale = run("openspectra", "verify", f"results/tiny/{STUDENT}", cwd=tiny_copy)
    assert stale.returncode == 1 and "made from another teacher than" in stale.stdout

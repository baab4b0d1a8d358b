"""The dry run on a cluster reads: a page, the resources of each kind of job, all inside the site's limits."""

import re
import resource

import pytest
from conftest import copy_project, run

TABLE = re.compile(r"^(\w+) +(\d+) +([\d,]+)(?: to ([\d,]+))? +", re.MULTILINE)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_project(tmp_path_factory.mktemp("plain") / "project")


def dry_run(project, *arguments: str):
    return run("snakemake", "--profile", "slurm", "-n", *arguments, cwd=project)


def test_the_paper_is_a_page(project):
    shown = dry_run(project)
    assert shown.returncode == 0, shown.stdout[-3000:]
    assert len(shown.stdout.splitlines()) < 100
    total = int(re.search(r"^total +(\d+)$", shown.stdout, re.MULTILINE)[1])
    assert 300 < total <= 1500
    assert "slurm/site.yaml: 8 GPUs of 80 GB" in shown.stdout
    kinds = {row[1]: row for row in TABLE.finditer(shown.stdout.partition("Resources of a job")[2])}
    assert {"pretrain_model", "quantize_model", "evaluate_model", "tokenize_part", "render_report"} <= set(kinds)
    assert kinds["pretrain_model"].group(3, 4) == ("1", "16")
    assert "trilm/3.9B: 3,992,116,224 parameters" in shown.stdout and "2 x 8, fsdp2, micro batch 8" in shown.stdout


def cpu_seconds(*command: str, cwd) -> float:
    """Return the seconds of computing of a command that succeeds, which other work on the machine hardly changes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = run(*command, cwd=cwd)
    assert finished.returncode == 0, finished.stdout[-3000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_paper_is_planned_in_twice_the_time_that_snakemake_takes_to_start(project, tmp_path):
    (tmp_path / "Snakefile").write_text("rule all:\n    shell:\n        'true'\n")
    start = cpu_seconds("snakemake", "-n", cwd=tmp_path)
    paper = cpu_seconds("snakemake", "-n", "--config", "study=paper", cwd=project)
    print(f"{paper:.2f} s of computing, {start:.2f} of them to start Snakemake")
    assert paper < 2 * start


def test_a_study_is_named_before_or_after_targets(project):
    """`--config` takes all words up to the next option, so a target must not follow it at once."""
    for words in (
        ("--config", "study=tiny"),
        ("tokens", "--config", "study=tiny"),
        ("--config", "study=tiny", "--", "tokens"),
    ):
        shown = dry_run(project, *words)
        assert shown.returncode == 0, shown.stdout[-3000:]
        assert "stdlib" in shown.stdout or "read_source" in shown.stdout
        assert "slurm/site.yaml" in shown.stdout  # the study alone is another one
    refused = dry_run(project, "--config", "study=tiny", "tokens")
    assert refused.returncode != 0
    assert "Unparsable value: 'tokens'" in refused.stdout


def test_one_number_set_by_hand_loses_no_other(project):
    shown = dry_run(project, "--set-resources", "pretrain_model:devices=2", "pretrain_model:nodes=1")
    assert shown.returncode == 0, shown.stdout[-3000:]
    kinds = {row[1]: row for row in TABLE.finditer(shown.stdout.partition("Resources of a job")[2])}
    assert kinds["pretrain_model"].group(3, 4) == ("2", None)
    assert kinds["quantize_model"].group(3, 4) == ("1", None)
    assert "trilm/3.9B" in shown.stdout and "1 x 2, fsdp2, micro batch 4" in shown.stdout


def test_what_cannot_fit_ends_before_anything_is_planned(project):
    (project / "small.yaml").write_text("gpus: 1\nnodes: 1\n")
    shown = dry_run(project, "--config", "site=small.yaml")
    assert shown.returncode != 0
    assert "small.yaml: trilm/3.9B: needs 80 GB on each GPU at least" in shown.stdout
    assert "Job stats" not in shown.stdout

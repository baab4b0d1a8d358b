"""The same command after a kill, a repair, a change or an order: it goes on, and ends where an undisturbed run ends."""

import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import LAYOUT, copy_project, run, snakemake
from test_tiny_study import damage, edit_study, hashes, planned

from openspectra.artifacts import open_artifact
from openspectra.study import load_study
from openspectra.upkeep import quick_check

EVALUATION = "results/tiny/evaluation/{}/2L/held_out"
TRILM = "results/tiny/trilm/2L"
OF_TRILM = {"pretrain_model": 1, "evaluate_model": 1, "render_report": 1, "track_artifacts": 1}
KILLS = {"fresh": 8, "changed": 6, "repaired": 6}


def keep_time(path: Path, change) -> None:
    """Change a file as a disk does: size and times stay."""
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def start(project: Path, *arguments: str) -> subprocess.Popen:
    """Start the workflow in a session of its own, its output in a file, so that it can be killed alone."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    (project / "output.txt").unlink(missing_ok=True)  # what an earlier workflow left may still write into that file
    with (project / "output.txt").open("w") as output:
        return subprocess.Popen(
            ["snakemake", "--config", "study=tiny", *LAYOUT, "--cores", "2", *arguments],
            cwd=project,
            env=os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stages_below(pid: int) -> list[int]:
    """Return the processes of stages that a workflow has started."""
    found = []
    with suppress(OSError):  # it has just ended
        if b"/openspectra\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
            found.append(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):  # any thread may start a job
            found += [each for child in children.read_text().split() for each in stages_below(int(child))]
    return found


def wait_for_training(process: subprocess.Popen, project: Path) -> int:
    """Wait until the TriLM of a workflow has saved a state on its way; return the process that trains it."""
    begun, deadline = time.time(), time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(FileNotFoundError):  # states come and go, and so does the owner
            for state in (project / TRILM).glob("checkpoints/*/step-00000020.pt"):
                if state.stat().st_mtime > begun and not state.with_name("step-00000040.pt").exists():
                    return json.loads((project / TRILM / "owner.json").read_text())["pid"]
        time.sleep(0.01)
    raise AssertionError((project / "output.txt").read_text())


def log_of_training(project: Path) -> str:
    return (project / "logs/tiny/pretrain_model/trilm/2L.log").read_text()


def test_an_interrupted_retrain_is_continued_by_the_same_command(tiny_copy):
    edit_study(tiny_copy, "peak_lr: {2L: 8e-3}", "peak_lr: {2L: 7e-3}")
    process = start(tiny_copy)
    os.kill(wait_for_training(process, tiny_copy), signal.SIGTERM)
    assert process.wait() == 1
    assert planned(snakemake(tiny_copy, "-n").stdout) == OF_TRILM
    finished = snakemake(tiny_copy, "pretrain")
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert "continues from step" in log_of_training(tiny_copy)
    assert open_artifact(tiny_copy / TRILM).manifest.config["peak_lr"] == 7e-3


def test_forced_training_trains_and_goes_on_when_it_is_interrupted(tiny_copy):
    before = (tiny_copy / TRILM / "manifest.json").read_bytes()
    process = start(tiny_copy, "--forcerun", f"{TRILM}/manifest.json", "--", "pretrain")
    os.kill(wait_for_training(process, tiny_copy), signal.SIGTERM)
    assert process.wait() == 1
    assert "trains anew, as ordered" in log_of_training(tiny_copy)
    finished = snakemake(tiny_copy, "pretrain")
    assert finished.returncode == 0, finished.stdout[-3000:]
    log = log_of_training(tiny_copy)
    assert "continues from step" in log and "continues from step 40" not in log
    assert (tiny_copy / TRILM / "manifest.json").read_bytes() == before
    floatlm = (tiny_copy / "logs/tiny/pretrain_model/floatlm/2L.log").read_text()
    assert "as ordered" not in floatlm  # not forced


def test_a_requeued_job_of_a_forced_training_goes_on(tiny_copy):
    """The order is carried out once: the environment of a job that the cluster starts again still holds it."""
    results = tiny_copy / "results/tiny"
    command = [
        "openspectra",
        "pretrain",
        "--config",
        str(results / "configs/trilm/2L.json"),
        "--out",
        str(tiny_copy / TRILM),
    ]
    for option, name in (("train", "tokens/train"), ("valid", "tokens/valid"), ("tokenizer", "tokenizer")):
        command += [f"--{option}", str(results / name)]
    outputs = [run(*command, cwd=tiny_copy, OPENSPECTRA_TRAIN_ANEW="0123 trilm/2L").stdout for _ in range(2)]
    assert "trains anew, as ordered" in outputs[0] and "continues from" not in outputs[0]
    assert "as ordered" not in outputs[1] and "continues from step 40 of 40" in outputs[1]
    assert "`--forcerun pretrain_model` or --fresh trains anew" in outputs[1]


def test_whatever_is_missing_is_planned_with_what_follows(tiny_copy):
    one_of_each_stage = {stage: place for place, stage in load_study(tiny_copy / "studies/tiny.yaml").artifacts.items()}
    for place in one_of_each_stage.values():
        manifest = tiny_copy / "results/tiny" / place / "manifest.json"
        manifest.rename(manifest.with_name("aside"))
        plan = snakemake(tiny_copy, "-n").stdout
        assert f"Missing output files: results/tiny/{place}/manifest.json" in plan, place
        assert planned(plan)["render_report"] == 1, place
        manifest.with_name("aside").rename(manifest)
    assert "Nothing to be done" in snakemake(tiny_copy, "-n").stdout


def test_quick_check_finds_altered_files_and_the_workflow_plans_its_artifact(tiny_copy):
    stages = {
        tiny_copy / "results/tiny" / place / "manifest.json": stage
        for place, stage in load_study(tiny_copy / "studies/tiny.yaml").artifacts.items()
    }
    assert quick_check(stages) == ({}, [])
    for manifest in stages:
        for record in open_artifact(manifest).manifest.files[:3]:
            path = manifest.parent / record.path
            content = path.read_bytes()
            if content:
                keep_time(path, lambda path: damage(path, "flip"))
                problems, _ = quick_check(stages)
                assert list(problems) == [manifest], path
                assert f"{path}: its sha256 differs" in problems[manifest][0]
                keep_time(path, lambda path, content=content: path.write_bytes(content))
    scores = tiny_copy / EVALUATION.format("trilm") / "scores.csv"
    keep_time(scores, lambda path: damage(path, "flip"))
    plan = snakemake(tiny_copy, "-n")
    assert planned(plan.stdout) == {"evaluate_model": 1, "render_report": 1, "track_artifacts": 1}
    assert "scores.csv: its sha256 differs" in plan.stdout
    assert "Nothing to be done" in snakemake(tiny_copy, "-n", "pretrain").stdout  # it does not ask for evaluations


def test_files_too_large_for_the_quick_check_are_named_and_repaired(tiny_copy, monkeypatch):
    weights = tiny_copy / TRILM / "model.safetensors"
    keep_time(weights, lambda path: damage(path, "flip"))
    stages = {tiny_copy / TRILM / "manifest.json": "pretrain"}
    monkeypatch.setattr("openspectra.upkeep.READ_BYTES", 2**20)
    assert quick_check(stages) == ({}, [weights.stat().st_size])
    repaired = run("openspectra", "repair", "tiny", cwd=tiny_copy)
    assert repaired.returncode == 0, repaired.stdout
    assert "model.safetensors: its sha256 differs" in repaired.stdout
    assert "snakemake --cores all --config study=tiny" in repaired.stdout
    told = run("openspectra", "verify", "results/tiny", cwd=tiny_copy)
    assert told.returncode == 1
    assert f"{TRILM}/manifest.json: missing, the study has it" in told.stdout
    assert planned(snakemake(tiny_copy, "-n").stdout) == OF_TRILM


def test_artifact_in_the_place_of_another_is_refused_and_made_again(tiny_copy):
    place = tiny_copy / EVALUATION.format("floatlm")
    shutil.rmtree(place)
    shutil.copytree(tiny_copy / EVALUATION.format("trilm"), place)
    finding = "evaluation/floatlm/2L/held_out/manifest.json: belongs into evaluation/trilm/2L/*"
    report = ("report", "--study", "studies/tiny.yaml", "--out", "new", EVALUATION.format("floatlm"))
    for command in (("verify", "results/tiny"), report):
        refused = run("openspectra", *command, cwd=tiny_copy)
        assert refused.returncode == 1
        assert finding in refused.stdout
    plan = snakemake(tiny_copy, "-n").stdout
    assert finding in plan
    assert planned(plan) == {"evaluate_model": 1, "render_report": 1, "track_artifacts": 1}


def test_results_on_another_disk_behind_links_are_the_same_results(tiny_copy, tmp_path):
    results = tiny_copy / "results/tiny"
    for number, name in enumerate(("corpus", "tokens", "trilm/2L", "evaluation/trilm")):
        shutil.move(results / name, tmp_path / f"disk{number}")
        (results / name).symlink_to(tmp_path / f"disk{number}")
    assert "Nothing to be done" in snakemake(tiny_copy, "-n").stdout
    verified = run("openspectra", "verify", "results/tiny", cwd=tiny_copy)
    assert verified.returncode == 0, verified.stdout
    assert "22 artifacts" in verified.stdout
    told = run("openspectra", "why", EVALUATION.format("trilm"), cwd=tiny_copy).stdout
    assert "sources  [sources" in told and "missing" not in told
    (results / "trilm/4L").symlink_to(tmp_path / "unmounted")
    (results / "tokens/loop").symlink_to(results)
    told = run("openspectra", "verify", "results/tiny", cwd=tiny_copy)
    assert told.returncode == 1
    assert f"results/tiny/trilm/4L: not checked, a link to {tmp_path / 'unmounted'}, which is missing" in told.stdout
    assert "results/tiny/tokens/loop: not checked, a link to a folder that holds it" in told.stdout


def test_killed_workflow_goes_on_and_a_living_one_is_left_alone(tiny_copy):
    edit_study(tiny_copy, "peak_lr: {2L: 8e-3}", "peak_lr: {2L: 7e-3}")
    first = start(tiny_copy, "pretrain")
    trainer = wait_for_training(first, tiny_copy)
    os.kill(trainer, signal.SIGSTOP)  # it lives, for as long as this takes
    second = snakemake(tiny_copy, "pretrain")
    assert second.returncode == 1 and "LockException" in second.stdout
    first.kill()
    first.wait()
    third, output = start(tiny_copy, "pretrain"), tiny_copy / "output.txt"
    while f'"pid": {trainer}' not in output.read_text():
        assert third.poll() is None, output.read_text()
        time.sleep(0.1)
    os.kill(trainer, signal.SIGCONT)
    assert third.wait() == 0, output.read_text()
    assert f"process {first.pid} on {platform.node()}, which ran this study before, was killed" in output.read_text()
    assert "is writing here, left by a workflow before; waiting until it ends" in output.read_text()
    assert open_artifact(tiny_copy / TRILM).manifest.config["peak_lr"] == 7e-3
    assert "Nothing to be done" in snakemake(tiny_copy, "pretrain").stdout


@pytest.mark.parametrize(
    ("workflow", "job"), [("17 on elsewhere", None), ("", None), (f"17 on {platform.node()}", "elsewhere")]
)
def test_what_another_machine_may_still_write_stays_locked(tiny_copy, workflow, job):
    locks = tiny_copy / ".snakemake/locks"
    locks.mkdir(exist_ok=True)
    (locks / "0.output.lock").write_text(f"{TRILM}/manifest.json\n")
    (tiny_copy / ".snakemake/tiny.owner").write_text(workflow)
    (tiny_copy / TRILM / "manifest.json").unlink()
    if job:
        (tiny_copy / TRILM / "owner.json").write_text(json.dumps({"host": job, "pid": 18, "job": "7"}))
    refused = snakemake(tiny_copy, "pretrain")
    assert refused.returncode == 1 and "LockException" in refused.stdout
    who = (
        f'{TRILM}: {{"host": "elsewhere", "pid": 18, "job": "7"}}' if job else workflow or "a process that left no name"
    )
    assert f"may still write here: {who}" in refused.stdout
    assert "if all have ended: `snakemake --unlock`, then the same command" in refused.stdout
    assert (locks / "0.output.lock").exists()


@pytest.mark.slow
def test_a_tracking_server_that_is_down_keeps_nothing_else_from_being_made(tiny, tmp_path):
    """As docs/tracking.md says: all else is finished, one line tells it, the exit code is 1; the same command goes on.

    And two clones agree bit for bit.
    """
    project = copy_project(tmp_path / "project")
    command = ("snakemake", "--config", "study=tiny", *LAYOUT, "--cores", "2")
    finished = run(*command, cwd=project, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert finished.returncode == 1
    assert hashes(project) == hashes(tiny)
    assert re.findall(r"^Error in rule (\w+)", finished.stdout, re.MULTILINE) == ["track_artifacts"]
    told = [line for line in finished.stdout.splitlines() if line.startswith("openspectra: ")]
    assert len(told) == 1 and "http://127.0.0.1:9" in told[0], told
    again = snakemake(project)
    assert again.returncode == 0, again.stdout[-3000:]
    assert planned(again.stdout) == {"track_artifacts": 1}


def disturbed(project: Path, kills: int, rng: random.Random, longest: float) -> str:
    """Kill workflow or job at random moments, the same command each time; then let it end. Return what was killed."""
    killed = ""
    while len(killed) < kills:
        process = start(project)
        time.sleep(rng.uniform(1, longest))
        stages = stages_below(process.pid)
        name = "j" if stages and rng.random() < 0.5 else "s"
        victim = rng.choice(stages) if name == "j" else process.pid
        if process.poll() is None:
            with suppress(ProcessLookupError):  # Snakemake itself may hang on a TERM, in its own handler
                os.kill(victim, rng.choice([signal.SIGKILL, signal.SIGTERM]) if name == "j" else signal.SIGKILL)
                killed += name
        elif process.returncode == 0:
            break  # all is done before so many moments have come
        process.wait()
        output = (project / "output.txt").read_text()
        assert "LockException" not in output and "IncompleteFiles" not in output, output[-3000:]
    finished = snakemake(project)
    assert finished.returncode == 0, finished.stdout[-5000:]
    return killed


@pytest.mark.slow
@pytest.mark.parametrize("state", list(KILLS))
def test_kills_at_random_moments_of_a_workflow_change_nothing(tiny, tmp_path, state):
    rng, project = random.Random(state), tmp_path / "project"
    if state == "fresh":
        copy_project(project)
    else:
        shutil.copytree(tiny, project, symlinks=True)
    undisturbed = tiny
    if state == "changed":
        undisturbed = Path(shutil.copytree(tiny, tmp_path / "undisturbed", symlinks=True))
        for folder in (project, undisturbed):
            edit_study(folder, "peak_lr: {2L: 8e-3}", "peak_lr: {2L: 7e-3}")
        assert snakemake(undisturbed).returncode == 0
    elif state == "repaired":
        for path in (f"{TRILM}/model.safetensors", EVALUATION.format("floatlm") + "/scores.csv"):
            keep_time(project / path, lambda path: damage(path, "flip"))
        (project / "results/tiny/quantlm/2L-4bit/manifest.json").unlink()
    killed = disturbed(project, KILLS[state], rng, longest=15)
    assert hashes(project) == hashes(undisturbed), killed
    print(f"{state}: killed {killed} (s: the workflow, j: a job)")

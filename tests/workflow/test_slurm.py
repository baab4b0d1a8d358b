"""The workflow on a real Slurm: the same bits as on this machine, whatever happens to its jobs.

`OPENSPECTRA_LAB=all` runs every trouble and layout, which takes long; without it the few that stand for the others.
"""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import copy_project, run
from slurm_lab import PROGRAMS, SlurmLab, wait_until
from test_tiny_study import edit_study, hashes

PROFILE = Path(__file__).with_name("lab")
TRILM = "results/tiny/trilm/2L"
RULE = "rule_pretrain_model_wildcards_trilm_2L"
STUDY = ("--config", "study=tiny", f"site={PROFILE}/site.yaml", "--set-resources")
TWO_NODES = ("pretrain_model:nodes=2", "pretrain_model:micro_batch=2")
STEPS = 160

pytestmark = pytest.mark.slow
every_one = pytest.mark.skipif(os.environ.get("OPENSPECTRA_LAB") != "all", reason="runs with OPENSPECTRA_LAB=all")


@pytest.fixture(scope="module")
def lab() -> Iterator[SlurmLab]:
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing or os.geteuid():
        pytest.skip(f"needs root, and Debian's slurmctld slurmd slurm-client munge; missing: {missing or 'root'}")
    lab = SlurmLab()
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()


def workflow(lab: SlurmLab, project: Path, *arguments: str, data: str = "") -> subprocess.Popen:
    """Start `snakemake --profile slurm` on the lab, its output in `output.txt`; it dies with this process.

    `data` is the folder of the files that the study names.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{lab.environment['PATH']}"
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENSPECTRA_DATA": data}
    command = ["snakemake", "--profile", "slurm", "--profile", str(PROFILE), *arguments]
    with (project / "output.txt").open("w") as output:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "env", "--default-signal=INT", *command],  # also below `nohup` and `&`
            cwd=project,
            env=os.environ | lab.environment | {"PATH": path} | offline,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def output(project: Path) -> str:
    logs = sorted(project.glob(".snakemake/slurm_logs/**/*.log"), key=lambda path: path.stat().st_mtime)
    return "\n".join(path.read_text()[-4000:] for path in [*logs[-3:], project / "output.txt"])


def finish(process: subprocess.Popen, project: Path, seconds: float = 1500) -> int:
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(output(project)) from None


def test_tiny_study_on_two_nodes_of_slurm_is_that_of_this_machine(lab, tiny, tmp_path):
    local, cluster = Path(shutil.copytree(tiny, tmp_path / "local", symlinks=True)), copy_project(tmp_path / "cluster")
    process = workflow(lab, cluster, *STUDY, *TWO_NODES)
    for family in ("floatlm", "trilm"):
        shutil.rmtree(local / "results/tiny" / family)
    command = ("snakemake", "--cores", "2", "--config", "study=tiny", "--set-resources", *TWO_NODES)
    finished = run(*command, cwd=local)
    assert finished.returncode == 0, finished.stdout[-5000:]
    assert finish(process, cluster) == 0, output(cluster)
    assert "Provided remote nodes" in (cluster / "output.txt").read_text()
    assert hashes(cluster) == hashes(local)
    places = json.loads((cluster / TRILM / "run.json").read_text())["places"]
    assert [place["node"] for place in places] == ["node1", "node2"]


@every_one
@pytest.mark.skipif(not os.environ.get("OPENSPECTRA_DATA"), reason="OPENSPECTRA_DATA does not name the benchmarks")
def test_paper_mini_in_four_layouts_reaches_its_report(lab, tmp_path):
    """54 models from one command; about an hour on two cores, and the same command goes on where it was stopped."""
    project, data = copy_project(tmp_path / "project"), os.environ["OPENSPECTRA_DATA"]
    study = ("--config", "study=paper-mini", f"site={PROFILE}/layouts.yaml")
    process = workflow(lab, project, "--jobs", "3", *study, data=data)
    assert finish(process, project, 7200) == 0, output(project)
    results = project / "results/paper-mini"
    layouts = {(places[-1]["node"], len(places)) for places in (facts["places"] for facts in run_facts(results))}
    assert layouts == {("node1", 1), ("node1", 2), ("node2", 2), ("node2", 4)}
    with (project / "reports/paper-mini/conformance.csv").open(newline="") as file:
        assert {row["verdict"] for row in csv.DictReader(file)} == {"not comparable"}
    with (project / "reports/paper-mini/models.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 54


def run_facts(results: Path) -> list[dict]:
    paths = [path for family in ("floatlm", "trilm") for path in sorted(results.glob(f"{family}/*/run.json"))]
    return [json.loads(path.read_text()) for path in paths]


# A training in the lab, and what may happen to it


@pytest.fixture(scope="module")
def long_training(tiny, tmp_path_factory) -> Callable[[int], Path]:
    """Return what copies a project whose TriLM has so many steps to train, and a state every 20."""

    def copy(steps: int) -> Path:
        project = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("lab") / "project", symlinks=True))
        edit_study(project, "total_tokens: 20_480", f"total_tokens: {steps * 512}")
        edit_study(project, "checkpoints_per_run: 2", f"checkpoints_per_run: {steps // 20}")
        shutil.rmtree(project / TRILM)
        return project

    return copy


@pytest.fixture(scope="module")
def undisturbed(long_training) -> Callable[[int, tuple], bytes]:
    """Return what trains on this machine alone and returns the manifest, once for each number of steps and layout."""
    known = {}

    def manifest(steps: int, layout: tuple[str, ...]) -> bytes:
        if (steps, layout) not in known:
            project = long_training(steps)
            command = ("snakemake", "--cores", "4", f"{TRILM}/manifest.json", "--config", "study=tiny")
            finished = run(*command, "--set-resources", *layout, cwd=project)
            assert finished.returncode == 0, finished.stdout[-5000:]
            known[steps, layout] = (project / TRILM / "manifest.json").read_bytes()
        return known[steps, layout]

    return manifest


@dataclass
class Trial:
    """A training in the lab, under way: it has saved its first state."""

    lab: SlurmLab
    project: Path
    controller: subprocess.Popen
    job: str

    def ask(self, *command: str) -> str:
        return self.lab.ask(*command)

    def restarts(self) -> int:
        return int(self.ask("scontrol", "show", "job", self.job).partition("Restarts=")[2].split()[0])

    def step(self) -> int:
        return max((int(path.stem[5:]) for path in self.project.glob(f"{TRILM}/checkpoints/*/step-*.pt")), default=0)

    def ranks(self) -> list[int]:
        owner = json.loads((self.project / TRILM / "owner.json").read_text())
        return [owner["pid"]]


def told_of_its_time_limit(trial: Trial) -> None:
    trial.ask("scancel", "--signal=USR1", trial.job)
    wait_until(lambda: trial.restarts() == 1, 120)


def requeued_by_hand(trial: Trial) -> None:
    trial.ask("scontrol", "requeue", trial.job)
    wait_until(lambda: trial.restarts() == 1, 120)


def preempted(trial: Trial) -> None:
    trial.ask("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    wait_until(lambda: trial.restarts() == 1, 120)


def node_lost(trial: Trial) -> None:
    trial.lab.kill_node("node2")
    try:
        wait_until(lambda: trial.restarts() == 1, 240)
        time.sleep(70)  # or Slurm would end what comes back, by the orders for what was there before
    finally:
        trial.lab.start_node("node2")


def rank_killed(trial: Trial) -> None:
    os.kill(trial.ranks()[0], signal.SIGKILL)


def cancelled(trial: Trial) -> None:
    trial.ask("scancel", trial.job)


def controller_killed(trial: Trial) -> None:
    trial.controller.kill()
    # a job that was killed on another node said no word; Slurm knows that it is no more
    owner = trial.project / "results/tiny/floatlm/2L/owner.json"
    owner.write_text(json.dumps({"host": "elsewhere", "pid": 18, "job": "999999"}))


def controller_killed_job_requeued(trial: Trial) -> None:
    trial.controller.kill()
    told_of_its_time_limit(trial)


def controller_interrupted(trial: Trial) -> None:
    trial.controller.send_signal(signal.SIGINT)


# trouble: exit code of the workflow that met it, jobs used until the model is there
TROUBLES = {
    told_of_its_time_limit: (0, 1),
    controller_killed: (-signal.SIGKILL, 2),
    cancelled: (1, 2),
    requeued_by_hand: (0, 1),
    preempted: (0, 1),
    node_lost: (0, 1),
    rank_killed: (0, 2),
    controller_killed_job_requeued: (-signal.SIGKILL, 2),
    controller_interrupted: (1, 2),
}
ALWAYS = (told_of_its_time_limit, controller_killed)


@pytest.mark.parametrize(
    "trouble", [pytest.param(each, marks=() if each in ALWAYS else every_one, id=each.__name__) for each in TROUBLES]
)
def test_the_same_command_recovers_bit_identical(lab, long_training, undisturbed, trouble):
    project, (code, jobs) = long_training(STEPS), TROUBLES[trouble]
    expected = undisturbed(STEPS, TWO_NODES)
    before, started = set(jobs_seen(lab)), time.monotonic()
    command = (f"{TRILM}/manifest.json", *STUDY, *TWO_NODES)
    controller = workflow(lab, project, *command)
    trial = Trial(lab, project, controller, wait_for_training(project, controller))
    reached = trial.step()
    trouble(trial)
    assert finish(controller, project) == code, output(project)
    if code:
        assert not (project / TRILM / "manifest.json").exists()
        assert finish(workflow(lab, project, *command), project) == 0, output(project)
    assert (project / TRILM / "manifest.json").read_bytes() == expected
    assert len(set(jobs_seen(lab)) - before) == jobs
    log = (project / "logs/tiny/pretrain_model/trilm/2L.log").read_text()
    starts = [
        int(line.split("continues from step ")[1].split()[0]) for line in log.splitlines() if "continues from" in line
    ]
    assert starts and min(starts) >= reached
    assert "is writing here" not in output(project)
    print(f"{trouble.__name__}: {time.monotonic() - started:.0f} s, went on from steps {starts}")


def jobs_seen(lab: SlurmLab) -> list[str]:
    lines = lab.ask("squeue", "-h", "--states=all", "-o", "%k %i").splitlines()
    return [line.split()[1] for line in lines if line.startswith(f"{RULE} ")]


def wait_for_training(project: Path, controller: subprocess.Popen) -> str:
    """Wait until the training has saved a state, and return its job."""
    deadline = time.monotonic() + 300
    while True:
        assert controller.poll() is None and time.monotonic() < deadline, output(project)
        with suppress(FileNotFoundError):
            if list(project.glob(f"{TRILM}/checkpoints/*/step-*.pt")):
                return json.loads((project / TRILM / "owner.json").read_text())["job"]
        time.sleep(0.05)


@every_one
def test_a_job_that_runs_out_of_memory_is_tried_again_with_more(lab, long_training, undisturbed):
    project = long_training(STEPS)
    memory = "pretrain_model:mem_mb=500 if attempt == 1 else 3000"
    command = (f"{TRILM}/manifest.json", *STUDY, *TWO_NODES, memory)
    before = set(jobs_seen(lab))
    assert finish(workflow(lab, project, *command), project) == 0, output(project)
    assert len(set(jobs_seen(lab)) - before) == 2
    assert (project / TRILM / "manifest.json").read_bytes() == undisturbed(STEPS, TWO_NODES)


@every_one
def test_four_time_limits_on_two_nodes_with_two_ranks_each(lab, long_training, undisturbed):
    """Jobs of two minutes until the fourth has met its limit; then there is time for the rest."""
    steps, layout = 3000, ("pretrain_model:nodes=2", "pretrain_model:devices=2", "pretrain_model:micro_batch=1")
    project = long_training(steps)
    more = ("pretrain_model:runtime=2", "pretrain_model:slurm_extra='--open-mode=append --signal=USR1@45'")
    command = (f"{TRILM}/manifest.json", *STUDY, *layout, *more)
    before = set(jobs_seen(lab))
    controller = workflow(lab, project, *command)
    trial = Trial(lab, project, controller, wait_for_training(project, controller))
    wait_until(lambda: trial.restarts() == 4, 1200)
    trial.ask("scontrol", "update", f"JobId={trial.job}", "TimeLimit=60")
    assert finish(controller, project, 3600) == 0, output(project)
    assert set(jobs_seen(lab)) - before == {trial.job}
    (log,) = project.glob(f".snakemake/slurm_logs/**/{trial.job}.log")  # goes on over restarts
    starts = [int(step) for step in re.findall(r"continues from step (\d+)", log.read_text())]
    print(f"went on from steps {starts}")
    assert len(starts) == trial.restarts() == 4 and starts == sorted(set(starts))
    assert (project / TRILM / "manifest.json").read_bytes() == undisturbed(steps, layout)


@every_one
def test_config_that_is_refused_in_its_job_is_not_tried_again(lab, long_training):
    project = long_training(40)
    config, before = project / "results/tiny/configs/trilm/2L.json", set(jobs_seen(lab))
    lab.ask("scontrol", "update", "nodename=node1,node2", "state=drain", "reason=test")
    try:
        controller = workflow(lab, project, f"{TRILM}/manifest.json", *STUDY, *TWO_NODES)
        wait_until(lambda: set(jobs_seen(lab)) - before, 120)
        # while the job waits, or the workflow would have written it again
        config.write_text(config.read_text().replace('"seed": 1', '"seed": 1, "sead": 1'))
    finally:
        lab.ask("scontrol", "update", "nodename=node1,node2", "state=resume")
    assert finish(controller, project) == 1, output(project)
    assert "sead" in output(project)
    assert f"{RULE} refused its configuration, and is not tried again" in output(project)
    assert len(set(jobs_seen(lab)) - before) == 1


@every_one
def test_job_that_waits_for_ever_is_named(lab, long_training):
    project = long_training(STEPS)
    command = (f"{TRILM}/manifest.json", *STUDY, *TWO_NODES)
    process = workflow(lab, project, *command, "pretrain_model:runtime=9000")
    line = f"({RULE}) waits for ever, PartitionTimeLimit: its `runtime` exceeds the partition's longest time"
    wait_until(lambda: line in (project / "output.txt").read_text(), 120)
    process.send_signal(signal.SIGINT)
    assert finish(process, project) == 1


@every_one
@pytest.mark.parametrize("gpus", [True, False])
@pytest.mark.parametrize(("nodes", "devices"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_every_layout_has_its_ranks_each_with_a_device_of_its_own(lab, long_training, nodes, devices, gpus):
    project = long_training(20)
    layout = [f"pretrain_model:nodes={nodes}", f"pretrain_model:devices={devices}"]
    layout += [f"pretrain_model:gres='gpu:{devices}'"] * gpus
    command = (f"{TRILM}/manifest.json", *STUDY, *layout)
    assert finish(workflow(lab, project, *command), project) == 0, output(project)
    facts = json.loads((project / TRILM / "run.json").read_text())
    places = [(place["node"], place["local_rank"]) for place in facts["places"]]
    assert places == [(f"node{node + 1}", rank) for node in range(nodes) for rank in range(devices)]
    assert facts["ranks"] == nodes * devices
    for place in facts["places"]:
        seen = (place["gpus"] or "").split(",")
        assert seen == ([str(number) for number in range(devices)] if gpus else [""]), place


def test_ranks_that_were_not_asked_for_are_refused(lab, tiny, tmp_path):
    """Two tasks of srun for a training of one rank: neither a second training nor one of fewer ranks."""
    results, out = tiny / "results/tiny", tmp_path / "model"
    command = [
        sys.executable,
        "-m",
        "openspectra.cli",
        "pretrain",
        f"--config={results}/configs/trilm/2L.json",
        f"--out={out}",
    ]
    for option, name in (("train", "tokens/train"), ("valid", "tokens/valid"), ("tokenizer", "tokenizer")):
        command.append(f"--{option}={results}/{name}")
    refused = run("srun", "-N2", "-n2", *command, cwd=tmp_path, **lab.environment)
    assert refused.returncode == 2, refused.stdout
    assert "--nodes, --devices: 1 x 1 = 1 ranks asked for, srun started 2, 1 on this machine" in refused.stdout
    assert not out.exists()

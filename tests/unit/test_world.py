"""Where a rank takes its place from, and what becomes of an interrupted job."""

import json
import os
import subprocess
import sys

import pytest
from loopback import free_port

from openspectra import slurm
from openspectra.errors import ConfigError
from openspectra.training.interruption import read_record, remove_record, write_record
from openspectra.training.world import SECONDS_TO_WAIT_FOR_A_RANK, World, _put_back

BY_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "SLURM_LOCALID")
BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture(autouse=True)
def no_place(monkeypatch):
    for name in (*BY_SRUN, *BY_TORCHRUN, "SLURM_JOB_ID", slurm.OWN_JOB):
        monkeypatch.delenv(name, raising=False)


def place(monkeypatch, names, *numbers: int) -> None:
    for name, number in zip(names, numbers, strict=True):
        monkeypatch.setenv(name, str(number))


@pytest.mark.parametrize(("names", "numbers"), [(BY_SRUN, (3, 4, 2, 1)), (BY_TORCHRUN, (3, 4, 1, 2))])
def test_rank_takes_its_place_from_who_started_it(monkeypatch, names, numbers):
    place(monkeypatch, names, *numbers)
    world = World.from_environment(2, 2, strategy="fsdp2")
    assert (world.rank, world.size, world.local_rank, world.local_size, world.strategy) == (3, 4, 1, 2, "fsdp2")


@pytest.mark.parametrize(
    ("nodes", "devices", "names", "numbers"),
    [
        (1, 1, BY_SRUN, (0, 2, 2, 0)),  # would be two trainings
        (2, 2, BY_SRUN, (0, 2, 2, 0)),  # would be fewer ranks
        (2, 1, BY_SRUN, (0, 1, 1, 0)),
        (1, 4, BY_TORCHRUN, (0, 8, 0, 8)),
        (3, 1, BY_TORCHRUN, (0, 3, 0, 2)),
    ],
)
def test_world_that_was_not_asked_for_is_refused(monkeypatch, nodes, devices, names, numbers):
    place(monkeypatch, names, *numbers)
    asked = f"--nodes, --devices: {nodes} x {devices} = {nodes * devices} ranks asked for"
    with pytest.raises(ConfigError, match=asked):
        World.from_environment(nodes, devices)


def test_ranks_are_started_here_where_nobody_did(monkeypatch):
    assert World.from_environment(1, 1) == World()
    assert World.from_environment(1, 2) is None and World.from_environment(2, 1) is None
    place(monkeypatch, BY_SRUN, 0, 1, 1, 0)  # a shell that srun started, with one task
    assert World.from_environment(1, 1) == World()
    assert World.from_environment(1, 2) is None


def test_a_rules_own_job_starts_its_one_rank_by_srun_too(monkeypatch):
    """Otherwise nobody would put the job back into the queue."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert World.from_environment(1, 1) == World()  # a job that somebody else wrote
    monkeypatch.setenv(slurm.OWN_JOB, "1")
    assert World.from_environment(1, 1) is None
    place(monkeypatch, BY_SRUN, 0, 1, 1, 0)
    assert World.from_environment(1, 1) == World()


def test_record_of_an_interruption_names_job_run_and_step(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert read_record(tmp_path) is None
    write_record(tmp_path, "0123", 40)
    record = read_record(tmp_path)
    assert (record["job"], record["run"], record["step"]) == ("7", "0123", 40)
    remove_record(tmp_path)
    assert read_record(tmp_path) is None


def test_job_that_gets_no_further_is_not_requeued_for_ever(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")  # Slurm is not asked
    record = {"job": "7", "run": "0123", "step": 40, "time": 1.0}
    assert _put_back(tmp_path, record, json.loads(json.dumps(record)) | {"time": 2.0}) == 1
    assert "interrupted twice at step 40" in capsys.readouterr().err


SHOW_TIMEOUT = """
import sys, torch
from openspectra.training.world import World

World(rank=int(sys.argv[1]), size=2, local_rank=int(sys.argv[1]), local_size=2).start()
group = torch.distributed.group.WORLD
print(group._get_backend(torch.device("cpu")).options._timeout.total_seconds())
torch.distributed.barrier()
"""


def test_ranks_wait_for_one_that_writes_a_large_state():
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "CUDA_VISIBLE_DEVICES": ""}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SHOW_TIMEOUT, str(rank)], env=os.environ | meeting, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    shown = [rank.communicate(timeout=120)[0].split() for rank in ranks]
    assert shown == [[str(float(SECONDS_TO_WAIT_FOR_A_RANK))]] * 2
    assert SECONDS_TO_WAIT_FOR_A_RANK >= 29.5e9 / 10e6  # a ddp state of 2.4B at 10 MB/s

"""Several devices: how the ranks of one run are started, and what they have to agree on.

One launcher starts every rank with its place spelled out; outside it Lightning would train on one device without a
word. A rank that fails ends the others, and the run has one exit code. In a Slurm job `srun` starts the ranks, on all
nodes of the job; elsewhere they are all started on this machine.
"""

import os
import platform
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from openspectra import slurm
from openspectra.errors import ConfigError
from openspectra.training.interruption import SIGNALS, read_record

Strategy = Literal["ddp", "fsdp2"]
Recompute = Literal["none", "blocks"]
LARGEST_MICRO_BATCH = 8
"""Most sequences per pass where nobody asks for a number."""
BY_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""A rank's place as this launcher and torchrun tell it: its number, how many there are, the same on its machine."""
SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_UNTIL_REQUEUED = 900
"""Longest wait for Slurm to end a job that it starts again: by default it takes a node as dead after 300 s."""
INTERRUPTED = 75
SECONDS_TO_WAIT_FOR_A_RANK = 2 * 3600
"""Longest wait in a collective. NCCL's default of 600 s would end a healthy run: the other ranks wait there while rank 0
writes and hashes a state (ddp at 2.4B: 29.5 GB, 49 min at 10 MB/s), and while it waits for a writer left over."""


@dataclass(frozen=True)
class World:
    """The ranks of a run: this one's number, how many there are, and how they share the work."""

    rank: int = 0
    size: int = 1
    strategy: Strategy = "ddp"
    micro_batch: int = 0
    """Sequences per forward and backward pass of a rank; 0: as `micro_batch_of` chooses."""
    recompute: Recompute = "none"
    """What the backward pass computes again, so that its activations need not be kept."""
    local_rank: int = 0
    """Number of this rank on its machine: it takes the GPU of this number."""
    local_size: int = 1
    """Ranks on each machine."""

    @classmethod
    def from_environment(cls, nodes: int, devices: int, **settings: Any) -> "World | None":
        """Return this process's place among `devices` ranks on each of `nodes`; None where nobody has started them yet.

        Raises `ConfigError` where this launcher, torchrun or srun started another number of them than was asked for.
        """
        place = _place()
        if place is None:
            return None if nodes * devices > 1 or slurm.own_job() else cls(**settings)
        rank, size, local_rank, local_size, who = place
        if size == 1 < devices and nodes == 1:  # a shell in a step of one task: the ranks are started here
            return None
        if size != nodes * devices or size % local_size:
            raise ConfigError(
                [
                    f"--nodes, --devices: {nodes} x {devices} = {nodes * devices} ranks asked for, {who} started {size}, "
                    f"{local_size} on this machine; start as many, or none: they are started here."
                ]
            )
        return cls(rank, size, local_rank=local_rank, local_size=local_size, **settings)

    def micro_batch_of(self, batch: int) -> int:
        """Return the sequences per pass where a step has `batch`: as given, else the largest number that divides.

        Raises `ConfigError` where ranks times micro batch do not divide the batch.
        """
        share, rest = divmod(batch, self.size)
        micro = self.micro_batch or max(n for n in range(1, LARGEST_MICRO_BATCH + 1) if share % n == 0)
        if rest or share % micro:
            raise ConfigError(
                [
                    f"--devices: {self.size} ranks with micro batches of {micro} do not divide a batch of {batch} "
                    "sequences; change --micro-batch or the number of devices."
                ]
            )
        return micro

    @property
    def is_sharded(self) -> bool:
        """Whether a rank holds only its part of the weights."""
        return self.size > 1 and self.strategy == "fsdp2"

    def start(self) -> None:
        """Take this rank's GPU, where there are any, and join the other ranks.

        Raises `ConfigError` where there are fewer GPUs than ranks.
        """
        import torch

        if torch.cuda.is_available():
            if torch.cuda.device_count() < self.local_size:
                raise ConfigError(
                    [f"--devices: {self.local_size} asked for, {torch.cuda.device_count()} GPUs here; give fewer."]
                )
            # a resumed run has to end bit-identical. Strictly: where it only warns, torch keeps attention's fast backward
            # pass, whose order of sums varies
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False
            torch.cuda.set_device(self.local_rank)  # before the first collective: `cuda` means this one from here on
        if self.size > 1:
            place = (self.rank, self.size, self.local_rank, self.local_size)
            os.environ.update(
                zip(BY_LAUNCHER, map(str, place), strict=True), GROUP_RANK=str(self.rank // self.local_size)
            )
            backend = "nccl" if torch.cuda.is_available() else "gloo"
            torch.distributed.init_process_group(backend, timeout=timedelta(seconds=SECONDS_TO_WAIT_FOR_A_RANK))

    def places(self) -> list[dict[str, Any]]:
        """Return of each rank where it runs: machine, number there, and the GPUs that it sees. Called on every rank."""
        node = os.environ.get("SLURMD_NODENAME") or platform.node()
        mine = {"node": node, "local_rank": self.local_rank, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
        return self.gather(mine)

    def gather(self, value: Any) -> list[Any]:
        """Return the value of each rank. Called on every rank."""
        if self.size == 1:
            return [value]
        import torch

        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            import torch

            torch.distributed.barrier()

    def trainer_arguments(self) -> dict:
        """Return how Lightning's `Trainer` is to run this rank."""
        from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
        from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

        # without the environment Lightning would look for a cluster of its own, and requeue its job itself
        environment = TorchElasticEnvironment() if self.size > 1 else LightningEnvironment()
        arguments = {"devices": self.local_size, "num_nodes": self.size // self.local_size, "plugins": [environment]}
        if self.is_sharded:
            return arguments | {"strategy": ModelParallelStrategy(self.size, tensor_parallel_size=1)}
        if self.size > 1:
            return arguments | {"strategy": DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)}
        return arguments

    def mean(self, value):
        """Return the mean of a tensor over all ranks."""
        if self.size > 1:
            import torch

            torch.distributed.all_reduce(value)
            value = value / self.size
        return value

    def any(self, *flags: bool) -> list[bool]:
        """Return of each flag whether it is set on any rank: a signal reaches one rank before another."""
        if self.size == 1:
            return list(flags)
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        return [share > 0 for share in self.mean(torch.tensor(flags, dtype=torch.float32, device=device)).tolist()]


def _place() -> tuple[int, int, int, int, str] | None:
    """Return rank, ranks, the same on this machine, and who started them; None where this process is no rank."""
    environment = os.environ
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= environment.keys():
        size = environment["WORLD_SIZE"]
        numbers = [environment["RANK"], size, environment["LOCAL_RANK"], environment.get("LOCAL_WORLD_SIZE", size)]
        return *map(int, numbers), "the launcher or torchrun"
    if place := slurm.place_in_step():
        return *place, "srun"
    return None


def launch(nodes: int, devices: int, threads: int, out: Path) -> int:
    """Run this very command once per rank, pass signals on to every rank, and return the exit code of the run.

    A Slurm job of its own, whose training was interrupted, puts itself back into the queue.
    """
    by_srun = slurm.job() is not None and (nodes > 1 or slurm.own_job())
    before = read_record(out)
    command = [sys.executable, "-m", "openspectra.cli", *sys.argv[1:]]
    processes: list[subprocess.Popen] = []

    def pass_on(number: int, frame) -> None:
        for process in processes:
            process.send_signal(signal.SIGUSR1 if by_srun else number)  # srun itself ends at the others

    for number in SIGNALS:
        signal.signal(number, pass_on)
    if by_srun:
        here, commands = slurm.first_node(), [[*slurm.srun(nodes, devices, max(1, threads // devices)), *command]]
        places = [{}]
    else:
        here, size = "127.0.0.1", nodes * devices
        commands = [command] * size
        places = [dict(zip(BY_LAUNCHER, map(str, (rank, size, rank, size)), strict=True)) for rank in range(size)]
    meeting = {"MASTER_ADDR": os.environ.get("MASTER_ADDR", here), "MASTER_PORT": str(_free_port())}
    for each, place in zip(commands, places, strict=True):
        # a session of its own: Ctrl-C reaches the launcher alone, which passes it on once
        processes.append(subprocess.Popen(each, env=os.environ | meeting | place, start_new_session=True))
    code = _wait(processes)
    after = read_record(out)
    if slurm.own_job() and after and after != before and after["job"] == slurm.job():
        return _put_back(out, before, after)
    if code == 0 and not (out / "manifest.json").exists():  # an srun that Slurm ends may return 0
        code = 1
    if code not in (0, ConfigError.exit_code) and nodes > 1 and slurm.own_job() and not slurm.all_nodes_answer(nodes):
        _say(f"{out}: a node of the job does not answer; Slurm requeues it")
        _wait_for_slurm()
    return code


def _put_back(out: Path, before: dict[str, Any] | None, record: dict[str, Any]) -> int:
    """Put this Slurm job, whose training saved its state, back into the queue, where it is Slurm's to run it again.

    The record of the interruption decides, never the exit code of srun, which is that of any of its ranks.
    """
    if before and (before["job"], before["step"]) == (record["job"], record["step"]):
        _say(
            f"{out}: interrupted twice at step {record['step']}; the time limit is too short for one step, "
            "or the signal comes too early: give more `runtime`."
        )
        return 1
    if slurm.requeue():
        _say(f"{out}: interrupted at step {record['step']}, back in the queue")
        _wait_for_slurm()
    return INTERRUPTED


def _wait_for_slurm() -> None:
    """Wait until Slurm ends this job, to start it again; a job that ended by itself would be taken as failed."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(INTERRUPTED))
    time.sleep(SECONDS_UNTIL_REQUEUED)


def _say(line: str) -> None:
    print(f"openspectra: {line}", file=sys.stderr, flush=True)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def _wait(ranks: list[subprocess.Popen]) -> int:
    """Return 0 or 75 where all ranks agree on it; kill the others as soon as one has failed."""
    while any(rank.poll() is None for rank in ranks):
        if any(rank.returncode not in (None, 0, INTERRUPTED) for rank in ranks):
            for rank in ranks:
                rank.kill()
        time.sleep(SECONDS_BETWEEN_LOOKS)
    codes = {rank.returncode for rank in ranks}
    if len(codes) == 1 and codes <= {0, INTERRUPTED}:
        return codes.pop()
    failed = {rank.returncode for rank in ranks} - {0, INTERRUPTED, -signal.SIGKILL}
    return failed.pop() if len(failed) == 1 and min(failed) > 0 else 1

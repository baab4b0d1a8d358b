"""Several devices: how the ranks of one run are started, and what they have to agree on.

One launcher starts every rank with its place spelled out; outside it Lightning would train on one device without a
word. A rank that fails ends the others, and the run has one exit code.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal

from openspectra.errors import ConfigError
from openspectra.training.interruption import SIGNALS

Strategy = Literal["ddp", "fsdp2"]
Recompute = Literal["none", "blocks"]
LARGEST_MICRO_BATCH = 8
"""Most sequences per pass where nobody asks for a number."""
RANK_VARIABLE, SIZE_VARIABLE = "LOCAL_RANK", "WORLD_SIZE"
SECONDS_BETWEEN_LOOKS = 0.1
INTERRUPTED = 75


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

    @classmethod
    def from_environment(cls, devices: int, **settings: Any) -> "World | None":
        """Return this process's place; None where several ranks are wanted and nobody has started them yet."""
        if {RANK_VARIABLE, SIZE_VARIABLE} <= os.environ.keys():
            return cls(int(os.environ[RANK_VARIABLE]), int(os.environ[SIZE_VARIABLE]), **settings)
        return cls(**settings) if devices == 1 else None

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
            if torch.cuda.device_count() < self.size:
                raise ConfigError(
                    [f"--devices: {self.size} asked for, {torch.cuda.device_count()} GPUs here; give fewer."]
                )
            # a resumed run has to end bit-identical. Strictly: where it only warns, torch keeps attention's fast backward
            # pass, whose order of sums varies
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False
            torch.cuda.set_device(self.rank)  # before the first collective: `cuda` means this one from here on
        if self.size > 1:
            torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            import torch

            torch.distributed.barrier()

    def trainer_arguments(self) -> dict:
        """Return how Lightning's `Trainer` is to run this rank."""
        from lightning.pytorch.plugins.environments import LightningEnvironment
        from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

        # without the environment Lightning would look for a cluster of its own
        arguments = {"devices": self.size, "plugins": [LightningEnvironment()]}
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

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank: a signal reaches one rank before another."""
        if self.size == 1:
            return flag
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        return self.mean(torch.tensor(float(flag), device=device)).item() > 0


def launch(devices: int, threads: int) -> int:
    """Run this very command once per device, pass signals on to every rank, and return the exit code of the run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), SIZE_VARIABLE: str(devices)}
    shared["OMP_NUM_THREADS"] = shared["MKL_NUM_THREADS"] = str(max(1, threads // devices))
    ranks: list[subprocess.Popen] = []

    def pass_on(number: int, frame) -> None:
        for rank in ranks:
            rank.send_signal(number)

    for number in SIGNALS:
        signal.signal(number, pass_on)
    for rank in range(devices):
        # a session of its own: Ctrl-C reaches the launcher alone, which passes it on once
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-m", "openspectra.cli", *sys.argv[1:]],
                env=shared | {RANK_VARIABLE: str(rank), "RANK": str(rank)},
                start_new_session=True,
            )
        )
    return _wait(ranks)


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

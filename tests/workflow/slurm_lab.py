"""A real Slurm on this machine for as long as a test run: several nodes, with fake GPUs, nothing outside one folder.

From Debian's packages slurmctld, slurmd, slurm-client and munge. It shows how jobs are queued, started, signalled, killed,
requeued and preempted; not real GPUs, cgroups, a shared disk between machines, or accounting.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
NODES, CPUS, MEMORY, GPUS = 2, 16, 40_000, 2
CONF = """
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# a requeued job waits this long and a second before it starts again; 120 s by default
AuthInfo=socket={folder}/munge/sock,cred_expire=5
PlugStackConfig={folder}/plugstack.conf
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# without cgroups a job's memory is looked at every second, and a job above it is killed
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
MpiDefault=none
MailProg=/bin/true
MinJobAge=300
KillWait=20
OverTimeLimit=0
ReturnToService=2
SlurmdTimeout=15
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=1000,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=node[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port={first}-{last} CPUs={cpus} RealMemory={memory} \
Gres=gpu:{gpus} State=UNKNOWN
PartitionName=normal Nodes=ALL Default=YES MaxTime=120 PriorityTier=1 State=UP
PartitionName=high Nodes=ALL MaxTime=120 PriorityTier=10 PreemptMode=OFF State=UP
"""


class SlurmLab:
    """The running lab. `environment` is what a command needs to find it."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="lab."))  # short: sockets lie in it
        self.folder.chmod(0o755)
        self.daemons: dict[str, subprocess.Popen] = {}
        for name in ("munge", "state", "bin", "log", "dev", *(f"spool-node{n + 1}" for n in range(NODES))):
            (self.folder / name).mkdir()
        (self.folder / "munge").chmod(0o711)
        (self.folder / "munge/key").write_bytes(os.urandom(128))
        (self.folder / "munge/key").chmod(0o600)
        (self.folder / "plugstack.conf").touch()
        for number in range(GPUS):
            subprocess.run(["mknod", self.folder / f"dev/gpu{number}", "c", "1", "3"], check=True)
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/dev/gpu[0-{GPUS - 1}]\n")
        ports, host = free_ports(NODES + 1), socket.gethostname().partition(".")[0]
        facts = {"folder": self.folder, "host": host, "user": "root", "nodes": NODES, "cpus": CPUS, "memory": MEMORY}
        facts |= {"gpus": GPUS, "port": ports[0], "first": ports[1], "last": ports[-1]}
        (self.folder / "slurm.conf").write_text(CONF.format(**facts))
        for program in PROGRAMS[3:]:  # a job's commands lose all variables SLURM_*, this one too
            wrapper = self.folder / "bin" / program
            wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {shutil.which(program)} "$@"\n')
            wrapper.chmod(0o755)
        path = f"{self.folder}/bin{os.pathsep}{os.environ['PATH']}"
        # node1, node2 are no real host names: ranks meet here
        self.environment = {"PATH": path, "SLURM_CONF": f"{self.folder}/slurm.conf", "MASTER_ADDR": "127.0.0.1"}

    def start(self) -> None:
        munge = [f"--{name}={self.folder}/munge/{name}" for name in ("socket", "pid-file", "seed-file", "log-file")]
        munge[0] = f"--socket={self.folder}/munge/sock"
        self.start_daemon("munged", "munged", "-F", f"--key-file={self.folder}/munge/key", *munge)
        wait_until(lambda: (self.folder / "munge/sock").exists(), 10)
        self.start_daemon("slurmctld", "slurmctld", "-D", "-i")
        wait_until(lambda: "is UP" in self.ask("scontrol", "ping"), 20)
        for number in range(NODES):
            self.start_node(f"node{number + 1}")
        wait_until(lambda: self.ask("sinfo", "-h", "-N", "-p", "normal", "-o", "%t").split() == ["idle"] * NODES, 30)

    def start_daemon(self, name: str, *command: str) -> None:
        with (self.folder / "log" / name).open("a") as log:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],  # a killed test run leaves no daemon
                env=os.environ | self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_node(self, name: str) -> None:
        self.start_daemon(name, "slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """Kill the node's daemon and all that runs on it, as a power cut does."""
        self.daemons[name].kill()
        self.daemons[name].wait()
        for pid in processes():
            if f"SLURMD_NODENAME={name}" in environment_of(pid) and self.owns(pid) or self.is_step_daemon(pid, name):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def owns(self, pid: int) -> bool:
        return any(str(self.folder) in entry for entry in environment_of(pid))

    def is_step_daemon(self, pid: int, name: str) -> bool:
        with suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
            held = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
            return command.startswith("slurmstepd") and any(f"{self.folder}/spool-{name}" in path for path in held)
        return False

    def stop(self) -> None:
        self.ask("scancel", "--me")
        with suppress(AssertionError):
            wait_until(lambda: not self.ask("squeue", "-h"), 30)
        for daemon in reversed(self.daemons.values()):
            daemon.kill()
            daemon.wait()
        for pid in processes():  # step daemons outlive the daemons of their nodes
            if self.owns(pid) and Path(f"/proc/{pid}/comm").read_text().strip() == "slurmstepd":
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, *command: str) -> str:
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def job_numbers(self, *options: str) -> list[str]:
        return sorted(set(re.findall(r"\d+", self.ask("squeue", "-h", "-o", "%i", *options))), key=int)


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def environment_of(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return []


def free_ports(number: int) -> list[int]:
    """Return so many consecutive ports that nobody uses."""
    for base in range(16_800, 30_000, number):
        with suppress(OSError):
            for port in range(base, base + number):
                with socket.socket() as tried:
                    tried.bind(("127.0.0.1", port))
            return list(range(base, base + number))
    raise AssertionError("no ports are free")


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)

"""A Slurm cluster of one node for the tests: daemons of its own, without systemd, cgroups or a database."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
ReturnToService=2
KillWait=30
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES PriorityTier=1 State=UP
PartitionName=urgent Nodes={host} PriorityTier=9 State=UP
"""
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "setpriv")
DEADLINE_S = 300


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    absent = [command for command in COMMANDS if shutil.which(command) is None]
    if absent:
        return f"a Slurm cluster needs {', '.join(absent)} (Debian: slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "Slurm's daemons are started by root"


def wait_until(reached: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not reached():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


@contextmanager
def cluster() -> Iterator[None]:
    """A running cluster, which Slurm's commands find. Every job and daemon has ended afterwards."""
    # Not pytest's tmp_path: munged wants every folder above its socket to be open to all.
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
        folder.chmod(0o755)
        for part in ("state", "spool"):
            (folder / part).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        conf = folder / "slurm.conf"
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("SLURM_CONF", str(conf))
        conf.write_text(CONF.format(host=socket.gethostname().split(".")[0], folder=folder, ports=_free_ports(2)))
        (folder / "gres.conf").write_text("".join(f"Name=gpu File=/dev/{device}\n" for device in ("null", "zero")))
        munge = [f"--{part}={folder}/munge.{part.split('-')[0]}" for part in ("key-file", "pid-file", "seed-file")]
        for command in (
            ["munged", "--foreground", f"--socket={folder}/munge.socket", *munge],
            ["slurmctld", "-D", "-c"],
            ["slurmd", "-D"],
        ):
            stack.enter_context(_daemon(command, folder))
        try:
            wait_until(lambda: ask("sinfo", "-h", "-p", "main", "-o", "%T") == "idle", "the node is idle")
            yield
        except AssertionError:
            for log in folder.glob("*.log"):
                print(f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-20:], sep="\n")
            raise
        finally:
            ask("scancel", "--me", "--signal=KILL", "--full")
            ask("scancel", "--me")
            wait_until(lambda: not ask("squeue", "-h"), "all jobs have ended")


def _free_ports(n: int) -> list[int]:
    with ExitStack() as sockets:
        opened = [sockets.enter_context(socket.socket()) for _ in range(n)]
        for each in opened:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in opened]


@contextmanager
def _daemon(command: list[str], folder: Path) -> Iterator[None]:
    """A daemon in the foreground, which ends with this process even where this process is killed."""
    with open(folder / f"{command[0]}.log", "wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=DEADLINE_S)


def ask(*command: str) -> str:
    """What a command of Slurm prints, in the environment of a test."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

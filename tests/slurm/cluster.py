"""A Slurm of one node on this machine, from Debian's packages, in its own folder.

It runs as root without systemd or munge: `slurmctld` and `slurmd` use free ports of the loopback.
It ends with the `with` block.
"""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time

import pytest

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol")

CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/none
CredType=cred/none
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0
KillWait=60
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing():
    """Return the programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def cluster(folder):
    """Start Slurm; `SLURM_CONF` gives every Slurm command its configuration."""
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    config = folder / "slurm.conf"
    config.write_text(
        CONFIG.format(
            host=host,
            ports=free_ports(2),
            user=getpass.getuser(),
            folder=folder,
            cores=os.cpu_count(),
        )
    )
    commands = (["slurmctld", "-D", "-f", str(config)], ["slurmd", "-D", "-f", str(config)])
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("SLURM_CONF", str(config))
        for command in commands:
            log = stack.enter_context((folder / f"{command[0]}.out").open("wb"))
            daemon = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
            stack.callback(daemon.terminate)  # its context then waits for it
        wait_for_node(folder)
        yield


def wait_for_node(folder, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        said = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True)
        if said.stdout.strip() in ("idle", "mixed", "allocated"):
            return
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
            raise RuntimeError(f"Slurm did not come up: {said.stdout} {said.stderr}\n{logs}")
        time.sleep(0.5)

"""A scheduler on this machine: SLURM's controller and one node, that can be killed and started again."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.killed import until

#: Programs that Debian has in slurmctld, slurmd and slurm-client.
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "sinfo")

#: Where jobs look for it, from which Snakemake takes all that the environment says of SLURM.
_CONF = Path("/etc/slurm/slurm.conf")

_CONFIGURATION = """ClusterName=tested
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
MinJobAge=300
SlurmUser=root
SlurmdUser=root
SlurmdTimeout=15
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why SLURM cannot be started here, or nothing."""
    if lacking := [name for name in PROGRAMS if not shutil.which(name)]:
        return f"SLURM is not installed: {', '.join(lacking)} are missing"
    if _CONF.exists():
        return f"this machine has a SLURM of its own ({_CONF})"
    return "" if os.geteuid() == 0 else "SLURM's daemons are started by nobody but root"


class Slurm:
    """Controller and node, on a machine that has none configured, which is left as it was."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: dict[str, subprocess.Popen] = {}
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 9 // 10 // 2**20
        told = {"host": socket.gethostname().partition(".")[0], "folder": folder, "memory": memory}
        told |= {"cpus": os.cpu_count(), "ports": [_free_port() for _ in range(2)]}
        self._configuration = _CONFIGURATION.format(**told)

    def __enter__(self) -> "Slurm":
        _CONF.parent.mkdir(exist_ok=True)
        _CONF.write_text(self._configuration)
        try:
            self._start("slurmctld")
            self.start_node()
            until(lambda: self.node() == "idle", 60.0)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_node()
        self._kill("slurmctld")
        _CONF.unlink()

    def node(self) -> str:
        """What the controller says of the node."""
        told = subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True)
        return told.stdout.strip()

    def start_node(self) -> None:
        self._start("slurmd")

    def kill_node(self) -> None:
        """As when the power fails: the daemon and all that runs on the node."""
        self._kill("slurmd")
        for process in self._of_jobs():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    @staticmethod
    def _of_jobs() -> list[int]:
        """Processes that watch over jobs, of which all here are of this scheduler, and all below them."""
        below: dict[int, list[int]] = {}
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has just ended
                process, parent = int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()[1]
                below.setdefault(int(parent), []).append(process)
                if (entry / "cmdline").read_bytes().startswith(b"slurmstepd"):
                    found.append(process)
        for process in found:
            found += (each for each in below.get(process, ()) if each not in found)
        return found

    def _start(self, daemon: str) -> None:
        with (self.folder / f"{daemon}.out").open("a") as log:
            self._daemons[daemon] = subprocess.Popen([daemon, "-D"], stdout=log, stderr=log)
        time.sleep(1.0)

    def _kill(self, daemon: str) -> None:
        if daemon in self._daemons:
            self._daemons[daemon].kill()
            self._daemons.pop(daemon).wait()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]

"""A Slurm cluster of two nodes on this machine: its own daemons and files, as whoever asks."""

import contextlib
import getpass
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from typing import NamedTuple

import psutil

from tests.end_to_end.processes import free_port

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("127.0.0.1", "127.0.0.2")  # Names that resolve, as jax needs to find the peers.
_CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SlurmdTimeout=10
ReturnToService=2
MailProg=/bin/true
PartitionName=main Nodes=ALL Default=YES
"""
_NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=8192"
    " State=UNKNOWN\n"
)


ENDED = ("CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "TIMEOUT")


class Element(NamedTuple):
    """A job of an array, as Slurm has it."""

    job: str
    state: str
    node: str
    restarts: int
    exit_code: str


def missing():
    """The programs that are not installed here."""
    return [name for name in DAEMONS if shutil.which(name) is None]


def wait_for(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"Waited {seconds} s in vain."
        time.sleep(0.1)


class Cluster:
    """Two nodes of one core each, and what may befall them."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons = {}
        host = socket.gethostname()
        config = _CONFIG.format(
            host=host, user=getpass.getuser(), folder=folder, port=free_port()
        ) + "".join(_NODE.format(name=name, host=host, port=free_port()) for name in NODES)
        (folder / "slurm.conf").write_text(config)
        (folder / "state").mkdir()
        (folder / "munge.key").touch(mode=0o600)
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))

    def start(self):
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid"}
        files |= {"seed-file": "munge.seed", "log-file": "munge.log"}
        flags = (f"--{flag}={self.folder / name}" for flag, name in files.items())
        # Its socket lies in a folder of the user's alone, which it has to be forced to.
        self._start("munged", "--foreground", "--force", *flags)
        wait_for((self.folder / "munge.socket").exists)
        self._start("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)

    def start_node(self, node):
        """Returns when it takes jobs."""
        # What runs on the node inherits its name.
        self._start("slurmd", "-D", "-N", node, name=node, SLURMD_NODENAME=node)
        wait_for(
            lambda: self.run("sinfo", "--noheader", f"--nodes={node}", "--format=%T") == "idle"
        )

    def _start(self, command, *flags, name=None, **environment):
        with (self.folder / f"{name or command}.out").open("ab") as out:
            self._daemons[name or command] = subprocess.Popen(
                [command, *flags], env=self.environment | environment, stdout=out, stderr=out
            )

    def run(self, *command):
        """What a client prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return done.stdout.strip()

    def elements(self, array):
        """Those of an array, in order; none of those that were never begun."""
        found = {}
        for line in self.run("scontrol", "--oneliner", "show", "job", str(array)).splitlines():
            of = dict(re.findall(r"(\w+)=(\S+)", line))
            if of["ArrayTaskId"].isdecimal():
                found[int(of["ArrayTaskId"])] = Element(
                    of["JobId"],
                    of["JobState"],
                    of.get("NodeList", ""),
                    int(of["Restarts"]),
                    of["ExitCode"],
                )
        return [found[index] for index in sorted(found)]

    def kill_node(self, node):
        """As if its power went: kill -9 of its daemon and of all that runs on it.

        Frozen before, so that none of them tells of another's death.
        """
        while processes := self._running_on(node):
            for end in (psutil.Process.suspend, psutil.Process.kill):
                for process in processes:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        end(process)
        self._daemons[node].wait()

    def _running_on(self, node):
        its = {"SLURM_CONF": self.environment["SLURM_CONF"], "SLURMD_NODENAME": node}
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if its.items() <= process.environ().items():
                    found.add(process)
                    # Slurm's own, above a job's, may have overwritten its environment.
                    if process.parent() and process.parent().name() == "slurmstepd":
                        found.add(process.parent())
        return found

    def stop(self):
        for node in {*NODES} & self._daemons.keys():
            self.kill_node(node)
        for name in {"slurmctld", "munged"} & self._daemons.keys():
            self._daemons[name].terminate()
            self._daemons[name].wait()

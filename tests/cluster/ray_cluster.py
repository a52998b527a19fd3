"""A Ray cluster of real processes on this machine; its nodes can be killed."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.end_to_end.processes import free_port

SECONDS = 90


class RayCluster:
    """Nodes by number, 0 the head, which has no cores for runs."""

    def __init__(self, token: str):
        self.folder = tempfile.mkdtemp(prefix="ray-")  # Its sockets need a short name.
        self.address = f"127.0.0.1:{free_port()}"
        self.environment = os.environ | {
            "RAY_AUTH_TOKEN": token,
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.nodes: list[subprocess.Popen] = []
        port = self.address.rpartition(":")[2]
        self._start(
            "--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false",
            f"--temp-dir={self.folder}",
        )  # fmt: skip

    def add(self, cores=1, gpus=0, resources=None, labels=None, **environment):
        """Returns the number of a new node."""
        return self._start(
            f"--address={self.address}", f"--num-cpus={cores}", f"--num-gpus={gpus}",
            f"--resources={json.dumps(resources or {})}",
            f"--labels={','.join(f'{key}={value}' for key, value in (labels or {}).items())}",
            **environment,
        )  # fmt: skip

    def _start(self, *flags, **environment):
        log = Path(self.folder, f"node-{len(self.nodes)}.log")
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *flags]
        command += ["--dashboard-agent-listen-port=0", "--object-store-memory=100000000"]
        with log.open("w") as file:
            node = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=self.environment | environment
            )
        self.nodes.append(node)
        end = time.monotonic() + SECONDS
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        return len(self.nodes) - 1

    def processes(self, node):
        """All of a node's, its runs' among them."""
        return psutil.Process(self.nodes[node].pid).children(recursive=True)

    def kill(self, node, *, alone):
        """kill -9 of the node's raylet, `alone` or with all its processes."""
        mine = self.processes(node)
        for process in mine:
            if process.name() == "raylet" or not alone:
                process.kill()

    def close(self):
        for number in reversed(range(len(self.nodes))):
            if self.nodes[number].poll() is None:
                everyone = self.processes(number)
                self.nodes[number].kill()
                for process in everyone:
                    process.kill()
            self.nodes[number].wait()
        shutil.rmtree(self.folder, ignore_errors=True)

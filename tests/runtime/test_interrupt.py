import os
import signal
import subprocess
import sys

import pytest

from resnet_flax.runtime import interrupt

PROGRAM = """
import os, signal, threading, time
from resnet_flax.runtime import interrupt

def send():
    for _ in range(2):
        time.sleep(interrupt.SAME_REQUEST_SECONDS + 0.5)
        os.kill(os.getpid(), signal.SIGINT)

def late(descriptor, size, read=os.read):
    # The thread that reads signals is slower than the main one, which sees them first.
    number = read(descriptor, size)
    time.sleep(0.2)
    return number

interrupt.os.read = late
threading.Thread(target=send).start()
try:
    with interrupt.StopRequest():
        time.sleep(600)
except KeyboardInterrupt:
    print("variables are still there")
    time.sleep(interrupt.SAME_REQUEST_SECONDS)
"""


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_a_signal_waits_until_a_process_is_started(number):
    came = []
    previous = signal.signal(number, lambda number, _: came.append(number))
    try:
        with interrupt.held():
            os.kill(os.getpid(), number)
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            assert came == []
        assert came == [number]
        child.send_signal(signal.SIGTERM)  # It did not inherit that signals wait.
        assert child.wait(60) == -signal.SIGTERM
    finally:
        signal.signal(number, previous)


def test_a_second_signal_ends_a_notebooks_cell_and_not_its_process():
    for in_notebook, status, said in ((True, 0, "variables are still there\n"), (False, 130, "")):
        environment = dict(os.environ) | {"JAX_PLATFORMS": "cpu"}
        environment.pop("JPY_PARENT_PID", None)
        environment |= {"JPY_PARENT_PID": "1"} if in_notebook else {}
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (status, said), done.stderr
    assert status == 128 + signal.SIGINT

import os
import signal
import subprocess
import sys

PROGRAM = """
import os, signal, threading, time
from resnet_flax.runtime import interrupt

def send():
    for _ in range(2):
        time.sleep(interrupt.SAME_REQUEST_SECONDS + 0.5)
        os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=send).start()
try:
    with interrupt.StopRequest():
        time.sleep(600)
except KeyboardInterrupt:
    print("variables are still there")
    time.sleep(interrupt.SAME_REQUEST_SECONDS)
"""


def test_a_second_signal_ends_a_notebooks_cell_and_not_its_process():
    for in_notebook, status, said in ((True, 0, "variables are still there\n"), (False, 130, "")):
        environment = dict(os.environ) | {"JAX_PLATFORMS": "cpu"}
        environment.pop("JPY_PARENT_PID", None)
        environment |= {"JPY_PARENT_PID": "1"} if in_notebook else {}
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (status, said), done.stderr
    assert status == 128 + signal.SIGINT

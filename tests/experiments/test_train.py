import os
import shlex
import subprocess
import sys

# A set in memory needs none of these, and each takes a while to import.
HEAVY = ("cv2", "grain", "simplejpeg", "ray", "plotly", "pandas", "matplotlib", "sklearn")


def test_a_run_on_a_set_in_memory_imports_nothing_heavy(tmp_path):
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({HEAVY}))\n"
        "import runpy; runpy.run_module('experiments.train', run_name='__main__')"
    )
    flags = ["--config=configs/digits.py:resnet8", "--config.model.widths=(4,4,4)"]
    steps = [f"--config.{name}=12" for name in ("steps", "eval_every", "checkpoint_every")]
    folders = [f"--workdir={tmp_path / 'run'}", f"--config.data.data_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags, *steps, *folders],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # No folder records where the data is.
    look = shlex.split(done.stdout.splitlines()[-1].partition(": ")[2])
    assert look[-2:] == [f"--workdir={tmp_path / 'run'}", f"--data_dir={tmp_path}"]

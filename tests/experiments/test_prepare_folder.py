"""`make prepare FOLDER=... NAME=...`, and the command that it proposes."""

import os
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

from experiments import prepare_folder
from resnet_flax.config import RunConfig, parse
from resnet_flax.data import own_images
from resnet_flax.runtime.parallel import Devices
from resnet_flax.training import build


def fill(folder, sizes, count):
    """Two classes of noise."""
    random = np.random.RandomState(0)
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (*sizes[number % len(sizes)], 3)
        Image.fromarray(random.randint(0, 256, size).astype(np.uint8)).save(path)
    return folder


def run(command, data_dir):
    environment = os.environ | {"TFDS_DATA_DIR": str(data_dir), "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def prepare(data_dir, folder, *more):
    module = [sys.executable, "-m", "experiments.prepare_folder"]
    return run([*module, f"--folder={folder}", "--name=mine", *more], data_dir)


def test_a_wrong_folder_is_one_line_and_status_2(tmp_path):
    done = prepare(tmp_path, tmp_path / "none")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("prepare_folder: Expected a folder")


KINDS = {
    "memory": ([(8, 8)], 40),
    "photographs": ([(256, 300), (300, 256)], 6),
    "small photographs": ([(70, 99), (99, 70)], 6),
    "few": ([(9, 9)], 4),
    "long": ([(9, 90)], 4),
}


@pytest.mark.filterwarnings("ignore:the load_module")  # ml_collections calls it.
@pytest.mark.parametrize("kind", KINDS)
def test_the_command_that_is_proposed_fits_the_set(tmp_path, monkeypatch, kind):
    folder = fill(tmp_path / "my photos", *KINDS[kind])
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))  # As `make` sets it, for a moment.
    prepared = own_images.prepare(folder, "mine", "", 0.2, 0, lambda items, *_: items)
    proposed = prepare_folder._train_flags("mine", prepared)
    monkeypatch.delenv("TFDS_DATA_DIR")
    config, workdir = proposed[:-1], proposed[-1]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["", *config])
    values(["", *config])
    one_device = Devices("pmap", jax.devices()[:1])
    # Raises if it cannot be trained.
    parts = build.build(parse(values.config.to_dict(), RunConfig), one_device)
    assert workdir == "--workdir=runs/mine"
    assert (parts.train.size, parts.test.size) == tuple(prepared.counts.values())
    in_memory = kind in ("memory", "few")
    assert (parts.config.data.crop == "none") == in_memory == prepared.in_memory
    assert parts.config.data.image_size == {"small photographs": 64, "long": 32}.get(kind, 224)


def test_a_command_tells_on_stdout_what_it_did_and_what_to_type_next(tmp_path):
    folder = fill(tmp_path / "photos", [(8, 8)], 40)
    (folder / "a" / "notes.txt").touch()
    done = prepare(tmp_path / "sets", folder, "--test_share=0.5", "--seed=3")
    assert (done.returncode, done.stderr) == (0, "")
    told, chosen, counts, *_, command = done.stdout.splitlines()
    assert told.endswith("1 (a/notes.txt)") and "50%" in chosen and "seed 3" in chosen
    assert counts.startswith("mine: 20 train, 20 test images of 2 classes")
    assert f"--config.data.data_dir={tmp_path / 'sets'}" in shlex.split(command)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "small photographs"])
def test_the_command_that_is_proposed_trains_as_typed(tmp_path, kind):
    done = prepare(tmp_path / "sets", fill(tmp_path / "my photos", *KINDS[kind]))
    *command, _ = shlex.split(done.stdout.splitlines()[-1])
    shorter = ["--config.steps=2", f"--workdir={tmp_path / 'run'}"]
    trained = run([sys.executable, *command[1:], *shorter], tmp_path)
    assert trained.returncode == 0, trained.stderr

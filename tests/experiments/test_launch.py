"""The job files of a sweep as `launch` writes them; tests/cluster gives them to schedulers."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from absl import flags
from ml_collections import config_flags

from configs import degradation, machines
from experiments import launch as launcher
from experiments.schedulers import jobs, notes
from experiments.sweeping import grid
from experiments.sweeping.machine import MachineConfig, run_seconds
from resnet_flax.config import parse
from resnet_flax.errors import UserError

GIVEN = [
    "--config=configs/degradation.py:digits",
    "--config.depths", "(8, 20)",
    "--noconfig.run.data.flip",
    "--config.run.optim.lr=5e-2",
    """--config.run.data.data_dir=it's "here" $(HOME) `id` $$ \\ *""",
    "--vary=model.widths=(4,8,8),(8,8,8)",
]  # fmt: skip
WORKDIR = """my %j sweep's $(id) "#;& {{ 1 }}"""
RUNS = [
    f"{kind}-{depth}-widths{widths}-s{seed}"
    for seed in (0, 1)
    for depth in (8, 20)
    for widths in ("4_8_8", "8_8_8")
    for kind in ("plain", "residual")
]
TARGETS = {
    "slurm": ["--option=--partition=main"],
    "tpu-vm": ["--accelerator=v5litepod-16", "--zone=us-central1-a", "--spot"],
    "gke": ["--accelerator=nvidia-h100-80gb", "--image=images/resnet:1", "--queue=research"],
    "skypilot": ["--accelerator=H100", "--spot"],
}
# In the place of a program that needs a cluster: notes its arguments, and answers from $ANSWERS.
PROGRAM = f"""#!{sys.executable}
import json, os, pathlib, sys
with open(os.environ["NOTES"], "a") as notes:
    print(json.dumps(sys.argv), file=notes)
for words, answers in json.loads(os.environ["ANSWERS"]).items():
    if words in " ".join(sys.argv):
        asked = pathlib.Path(os.environ["NOTES"]).read_text().count(words)
        answer = answers[min(asked, len(answers)) - 1]
        sys.exit(answer) if isinstance(answer, int) else print(answer)
"""


def launch(target, workdir, *more, given=GIVEN, **environment):
    command = [sys.executable, "-m", "experiments.launch", f"--target={target}", *given, *more]
    return subprocess.run(
        [*command, f"--workdir={workdir}"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Target -> the files of a sweep, by name."""
    written = {}
    for target, more in TARGETS.items():
        done = launch(target, tmp_path_factory.mktemp(target) / WORKDIR, *more)
        assert done.returncode == 0, done.stderr
        paths = map(Path, done.stdout.splitlines()[:-1])
        written[target] = {path.name: path for path in paths}
    return written


def run_with(script, folder, answers=None, **environment):
    """(exit status, what a job's script gives to programs that need a cluster).

    `answers`: to what has these words, one after another, the last for good; a number is an exit
    status.
    """
    for name in ("srun", "scontrol", "gcloud", "sleep"):
        (folder / name).write_text(PROGRAM)
        (folder / name).chmod(0o755)
    notes = folder / "notes"
    notes.unlink(missing_ok=True)
    environment |= {"NOTES": str(notes), "ANSWERS": json.dumps(answers or {})}
    environment |= {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", script], env=os.environ | environment)
    calls = [json.loads(line) for line in notes.read_text().splitlines()]
    return done.returncode, [[Path(name).name, *arguments] for name, *arguments in calls]


def commands(target, files, folder):
    """What a job's shell makes of each `experiments.sweep`: its arguments."""
    if target == "slurm":
        for element in range(len(RUNS)):
            _, (srun,) = run_with(files["sweep.sbatch"], folder, SLURM_ARRAY_TASK_ID=str(element))
            yield srun
    elif target == "tpu-vm":
        answers = {"state.state": ["ACTIVE"], "cat resnet_flax/status": ["0"]}
        _, calls = run_with(files["sweep.sh"], folder, answers)
        (remote,) = (call[-1] for call in calls if "experiments.sweep" in call[-1])
        yield shlex.split(remote.partition("; echo $?")[0])
    else:
        for path in files.values():
            job = yaml.safe_load(path.read_text())
            if target == "skypilot":
                yield shlex.split(job["run"])
            else:
                pods = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
                yield [in_kubernetes(word) for word in pods["containers"][0]["command"]]


def in_kubernetes(word):
    """What it makes of a word of a command: variables, and $$ as $."""
    variables = {"$$": "$", "$(HOME)": "/root"}
    return re.sub(r"\$(\$|\(\w+\))", lambda match: variables[match[0]], word)


def config_of(arguments):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["", *arguments])
    values(["", *arguments], known_only=True)
    return values.config.to_dict()


@pytest.mark.filterwarnings("ignore:the load_module")  # ml_collections calls it.
@pytest.mark.parametrize("target", TARGETS)
def test_the_jobs_together_are_the_grid_with_its_overrides_as_they_were_given(
    target, files, tmp_path
):
    runs = []
    for command in commands(target, files[target], tmp_path):
        arguments = command[command.index("experiments.sweep") + 1 :]
        assert config_of(arguments) == config_of(GIVEN)
        (workdir,) = (word for word in arguments if word.startswith("--workdir="))
        assert workdir.endswith(f"/{WORKDIR}")
        runs += [word.removeprefix("--only=") for word in arguments if word.startswith("--only=")]
    assert runs == ([] if target == "tpu-vm" else RUNS)  # A slice takes the whole sweep.


def test_slurm_is_told_where_logs_go_by_names_that_it_does_not_expand(files, tmp_path):
    script = files["slurm"]["sweep.sbatch"]
    folder = str(script.parent).replace("%j", "%%j")
    assert "%%j" in folder
    (output,) = re.findall("^#SBATCH --output=(.*)$", script.read_text(), re.MULTILINE)
    assert shlex.split(output) == [f"{folder}/slurm-%a.log"]
    _, (srun,) = run_with(script, tmp_path, SLURM_ARRAY_TASK_ID="0")
    assert f"--output={folder}/{RUNS[0]}.log" in srun


@pytest.mark.parametrize(
    "of_workers, status",
    [
        (["0\n0"], 0),
        (["75\n75", "0\n75", "0\n0"], 0),
        (["75\n1"], 1),
        (["137\n75"], 137),
    ],
)
def test_a_slice_trains_again_on_75_alone_and_is_deleted_in_the_end(
    files, tmp_path, of_workers, status
):
    answers = {"state.state": ["ACTIVE"], "cat resnet_flax/status": of_workers}
    ended, calls = run_with(files["tpu-vm"]["sweep.sh"], tmp_path, answers)
    trained = [call for call in calls if "experiments.sweep" in call[-1]]
    assert (ended, len(trained)) == (status, len(of_workers))
    assert "delete" in calls[-1]


def test_a_slice_that_was_taken_away_is_asked_for_again(files, tmp_path):
    states = ["WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDED", "ACTIVE"]
    answers = {"state.state": states, "cat resnet_flax/status": ["75", "0"]}
    assert run_slice(files, tmp_path, answers) == (0, ["create", "delete", "create", "delete"])


def test_a_slice_that_is_taken_away_while_it_is_set_up_is_asked_for_again(files, tmp_path):
    answers = {
        "state.state": ["ACTIVE", "SUSPENDING", "ACTIVE"],
        "scp": [1, ""],
        "cat resnet_flax/status": ["0"],
    }
    assert run_slice(files, tmp_path, answers) == (0, ["create", "delete", "create", "delete"])


def test_a_slice_that_cannot_be_set_up_is_deleted(files, tmp_path):
    answers = {"state.state": ["ACTIVE"], "scp": [1]}
    assert run_slice(files, tmp_path, answers) == (1, ["create", "delete"])


def test_a_slice_is_waited_for_while_the_connection_is_lost(files, tmp_path):
    answers = {"state.state": ["WAITING_FOR_RESOURCES", 1, "ACTIVE"], "cat resnet_flax": ["0"]}
    assert run_slice(files, tmp_path, answers) == (0, ["create", "delete"])


def run_slice(files, folder, answers):
    """(exit status, what is done with slices)."""
    ended, calls = run_with(files["tpu-vm"]["sweep.sh"], folder, answers)
    done = [call[4] for call in calls if "queued-resources" in call and "describe" not in call]
    return ended, done


@pytest.mark.parametrize(
    "target, more, message",
    [
        ("tpu-vm", [], "Expected --accelerator for --target=tpu-vm, which takes --accelerator"),
        ("slurm", ["--zone=a"], "Expected no --zone for --target=slurm, which takes --accelerator"),
        ("slurm", ["--devices_per_run=3"], "divisible by the number of devices, 3, got 128"),
        ("slurm", ["--devices_per_run=4", "--nodes_per_run=3"], "multiple of --nodes_per_run"),
        ("slurm", ["--config.depths=(21,)"], "Expected a depth of"),
        ("slurm", ["--output=/proc/none"], "Choose another folder with --output."),
    ],
)
def test_what_cannot_be_launched_is_one_line_and_status_2_and_nothing_is_written(
    tmp_path, target, more, message
):
    done = launch(target, tmp_path / "sweep", *more)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def sweep_in(workdir):
    return jobs.Sweep(GIVEN[:1], RUNS, workdir, Path("/checkout"), Path("/files"))


@pytest.mark.parametrize(
    "workdir, accelerator, topology, message",
    [
        ("/sweep", "nvidia-h100-80gb", "2x4", "Expected --topology, .* got 2x4 with nvidia"),
        ("/sweep", "tpu-v6e-slice", None, "Expected --topology, .* got None with tpu-v6e-slice"),
        ("/sweep", "tpu-v6e-slice", "4x4", "Expected --devices_per_run=16 for --topology=4x4"),
        ("/2026", "tpu-v6e-slice", "2x4", "begins with a letter.* got 2026-plain-8-w"),
    ],
)
def test_a_jobset_that_no_cluster_would_take_is_refused(workdir, accelerator, topology, message):
    resources = jobs.Resources(accelerator, devices=8, nodes=2, spot=False)
    with pytest.raises(UserError, match=message):
        jobs.gke(sweep_in(workdir), resources, image="i", topology=topology, queue=None)


@pytest.mark.parametrize(
    "topology, nodes, at_most", [("4x4", 1, 4), ("4x4", 2, 4), ("2x4", 1, 8), ("2x4", 2, 4)]
)
def test_a_node_gets_no_more_chips_than_it_has(topology, nodes, at_most):
    chips = {"4x4": 16, "2x4": 8}[topology]
    resources = jobs.Resources("tpu-v5-lite-podslice", devices=chips, nodes=nodes, spot=False)
    given = {"image": "i", "topology": topology, "queue": None}
    if chips // nodes > at_most:
        with pytest.raises(UserError, match=rf"got {chips // nodes}; give --nodes_per_run=4\."):
            jobs.gke(sweep_in("/sweep"), resources, **given)
        resources = resources._replace(nodes=4)
    assert jobs.gke(sweep_in("/sweep"), resources, **given)


def test_skypilots_hosts_of_a_tpu_slice_find_each_other():
    def command(accelerator):
        resources = jobs.Resources(accelerator, devices=1, nodes=1, spot=False)
        return jobs.skypilot(sweep_in("/sweep"), resources)[f"{RUNS[0]}.yaml"]

    assert "--num_processes" not in command("tpu-v5litepod-16")
    assert "--num_processes=1" in command("H100")


def test_names_of_jobs_are_short_enough_for_a_host_and_all_differ():
    resources = jobs.Resources("nvidia-h100-80gb", devices=8, nodes=2, spot=False)
    for workdir in ("/sweep", f"/{'w' * 60}"):
        files = jobs.gke(sweep_in(workdir), resources, image="i", topology=None, queue=None)
        names = [yaml.safe_load(text)["metadata"]["name"] for text in files.values()]
        assert len(set(names)) == len(RUNS)
        assert all(re.fullmatch(r"[a-z][a-z0-9-]{0,43}[a-z0-9]", name) for name in names)


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028", "\udcff"])
@pytest.mark.parametrize("target", TARGETS)
def test_text_that_would_not_stay_on_its_line_is_refused(target, end):
    make = launcher.TARGETS[target].files
    text = dict.fromkeys(
        ["zone", "runtime_version", "image", "topology", "queue", "service_account"], ""
    )
    given = {"accelerator": "a100", "workdir": "/w", "flag": "--config=c", "here": "/h"}
    given |= dict.fromkeys(text, "x") | {"topology": None, "option": "--x"}

    def write(given):
        sweep = jobs.Sweep(
            [given.pop("flag")], RUNS[:1], given.pop("workdir"), Path(given.pop("here")), Path("/o")
        )
        resources = jobs.Resources(given.pop("accelerator"), devices=1, nodes=1, spot=False)
        more = given | {"option": [given["option"]], "at_once": None}
        names = {*launcher.TARGETS[target].needs, *launcher.TARGETS[target].takes}
        names -= {*launcher.OF_RESOURCES, *launcher.OF_PLAN}
        return make(sweep, resources, **{name: more[name] for name in names})

    assert write(dict(given))
    taken = {"accelerator", "workdir", "flag", "here", *launcher.TARGETS[target].needs}
    taken |= {name for name in launcher.TARGETS[target].takes if isinstance(given.get(name), str)}
    for name in taken:
        with pytest.raises(UserError, match="Expected text of one line"):
            write(given | {name: f"{given[name]}{end}touch /x"})


@pytest.mark.parametrize(
    "path, option, message",
    [("/a\\b", "--time=60", "without a backslash"), ("/a", "touch /x", "Expected --option=--NAME")],
)
def test_what_sbatch_would_take_otherwise_is_refused(path, option, message):
    resources = jobs.Resources("", devices=1, nodes=1, spot=False)
    sweep = sweep_in("/sweep")._replace(output=Path(path))
    with pytest.raises(UserError, match=message):
        jobs.slurm(sweep, resources, python="python", at_once=None, option=[option])


def test_no_two_runs_have_one_job_name():
    resources = jobs.Resources("nvidia-h100-80gb", devices=1, nodes=1, spot=False)
    runs = ["plain-8-s0", "Plain-8-s0", "PLAIN-8-s0", "wide_1-8-s0", "wide__1-8-s0"]
    names = set()
    for workdir in ("/digits", "/Digits"):
        sweep = sweep_in(workdir)._replace(runs=runs)
        files = jobs.gke(sweep, resources, image="i", topology=None, queue=None)
        names |= {yaml.safe_load(text)["metadata"]["name"] for text in files.values()}
    assert "digits-plain-8-s0" in names
    assert len(names) == 2 * len(runs)


def test_an_array_that_slurm_may_refuse_is_announced():
    runs = grid.expand(parse(degradation.get_config("digits").to_dict(), grid.SweepConfig))
    many = (runs * 1002)[:1002]
    assert notes.of("slurm", "/sweep", many[1:], 2, "mine.py") == []
    (note,) = notes.of("slurm", "/sweep", many, 2, "mine.py")
    assert "more than 1001 runs, unless its MaxArraySize is larger. This array has 1002." in note


@pytest.mark.parametrize("target, workdir", [("slurm", "/sweep"), ("gke", "gs://b/sweep")])
def test_devices_that_share_a_batch_too_often_are_told(target, workdir):
    def said(count, **fields):
        config = degradation.get_config("digits")
        config.run.update_from_flattened_dict(fields)
        runs = grid.expand(parse(config.to_dict(), grid.SweepConfig))
        return notes.of(target, workdir, runs, count, "configs/degradation.py")

    (note,) = said(8)
    assert "With 8 devices a run, batch normalisation sees 16 images, fewer than the 64" in note
    assert said(2) == said(8, **{"model.bn_scope": "global"}) == []
    assert said(8, **{"model.norm": "none"}) == said(1, **{"data.batch_size": 32}) == []


@pytest.mark.parametrize(
    "slice_, devices",
    [
        ("v5litepod-16", 16), ("v6e-8", 8), ("v4-8", 4), ("v5p-8", 4), ("v3-8", 8),
        ("tpu-v5p-16", 8), ("H100", None), ("h100-80gb", None), ("tpu-v5-lite-podslice", None),
    ],
)  # fmt: skip
def test_a_slice_has_as_many_devices_as_its_type_says(slice_, devices):
    assert jobs.devices_of_slice(slice_) == devices


@pytest.mark.parametrize("target", ["tpu-vm", "skypilot"])
def test_a_run_has_all_devices_of_a_slice(target, tmp_path):
    where = ["--zone=us-central1-a"] if target == "tpu-vm" else []
    few = launch(target, tmp_path / "few", "--accelerator=v5litepod-16", *where)
    assert "With 16 devices a run, batch normalisation sees 8 images" in few.stderr
    none = launch(target, tmp_path / "none", "--accelerator=v5litepod-256", *where)
    assert none.returncode == 2
    assert "divisible by the number of devices, 256, got 128" in none.stderr


def test_a_run_on_a_rented_device_does_not_take_the_cpu(files):
    scripts = {target: next(iter(named.values())).read_text() for target, named in files.items()}
    of_gke = yaml.safe_load(scripts["gke"])["spec"]["replicatedJobs"][0]["template"]["spec"]
    pods = of_gke["template"]["spec"]
    assert pods["containers"][0]["env"] == [{"name": "JAX_PLATFORMS", "value": "cuda"}]
    (mount,), (volume,) = pods["containers"][0]["volumeMounts"], pods["volumes"]
    assert (mount["name"], mount["mountPath"]) == (volume["name"], "/dev/shm")
    assert yaml.safe_load(scripts["skypilot"])["envs"] == {"JAX_PLATFORMS": "cuda"}
    assert "export JAX_PLATFORMS=tpu; " in scripts["tpu-vm"]
    assert "JAX_PLATFORMS" not in scripts["slurm"]  # These have no accelerator.
    resources = jobs.Resources("gpu", devices=1, nodes=1, spot=False)
    of_gpus = jobs.slurm(sweep_in("/s"), resources, python="python", at_once=None, option=[])
    (line,) = (line for line in of_gpus["sweep.sbatch"].splitlines() if line.startswith("case"))
    for given, then in (("", "cuda"), ("cpu", "cuda"), ("cuda,cpu", "cuda,cpu"), ("rocm", "rocm")):
        shell = ["bash", "-uc", f'{line}; echo "$JAX_PLATFORMS"']
        environment = {"PATH": os.environ["PATH"]} | ({"JAX_PLATFORMS": given} if given else {})
        done = subprocess.run(shell, env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == then, done.stderr


def test_what_the_machines_of_a_cloud_lack_is_named():
    def said(config_file="configs/degradation.py", **fields):
        config = degradation.get_config("digits")
        config.run.update_from_flattened_dict(fields)
        runs = grid.expand(parse(config.to_dict(), grid.SweepConfig))
        return notes.of("gke", "gs://b/sweep", runs, 1, config_file)

    assert said() == said(init_from="gs://b/other") == []
    for fields, what in [
        ({"data.name": "cifar10"}, r"data set cifar10 \(in TFDS's default folder; config\.run"),
        ({"data.name": "cifar10", "data.data_dir": "/disk"}, r"data set cifar10 \(in /disk\)"),
        ({"init_from": "runs/base"}, "the run runs/base of init_from"),
        ({"config_file": "/elsewhere/mine.py"}, "the config's file /elsewhere/mine.py"),
        ({"config_file": "mine.py"}, "the config's file mine.py"),  # The image lacks it.
    ]:
        (note,) = said(**fields)
        assert re.search(rf"get this checkout without runs/\. They also need .*{what}", note)


def test_where_the_client_is_missing_nothing_is_written(tmp_path):
    done = launch("gke", tmp_path / "sweep", *TARGETS["gke"], "--submit", PATH="/nowhere")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("launch: Expected kubectl for --submit")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("accelerator, nodes", [("", 1), ("gpu", 1), ("a100", 2)])
def test_shellcheck_finds_nothing_in_a_batch_script(accelerator, nodes, tmp_path):
    resources = jobs.Resources(accelerator, devices=8, nodes=nodes, spot=False)
    files = jobs.slurm(
        sweep_in("/my sweep"), resources, python="/my python", at_once=2, option=["--time=60"]
    )
    assert findings(files["sweep.sbatch"]) == ""


def test_shellcheck_finds_nothing_in_a_tpu_script(files):
    assert findings(files["tpu-vm"]["sweep.sh"].read_text()) == ""


def findings(script):
    # SC2016: what is in single quotes is for another shell.
    shellcheck = [Path(sys.executable).with_name("shellcheck"), "--exclude=SC2016", "-"]
    done = subprocess.run(shellcheck, input=script, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "accelerator, nodes, tasks, cpus",
    [("", 1, 1, 4), ("", 2, 1, 2), ("gpu", 1, 1, 16), ("gpu", 2, 2, 4)],
)
def test_each_task_gets_the_cores_that_feed_its_devices(accelerator, nodes, tasks, cpus):
    resources = jobs.Resources(accelerator, devices=4, nodes=nodes, spot=False)
    files = jobs.slurm(sweep_in("/sweep"), resources, python="p", at_once=None, option=[])
    asked = dict(re.findall(r"^#SBATCH --(\S+-per-task|ntasks\S+)=(\d+)$", *files.values(), re.M))
    assert asked == {"ntasks-per-node": f"{tasks}", "cpus-per-task": f"{cpus}"}


@pytest.mark.parametrize("accelerator, cpus, memory", [("", 2, 8), ("a100", 8, 32)])
def test_a_job_asks_for_memory_and_time(accelerator, cpus, memory):
    resources = jobs.Resources(accelerator, devices=4, nodes=2, spot=False, minutes=90)
    assert resources.cpus == cpus
    files = jobs.slurm(sweep_in("/sweep"), resources, python="p", at_once=None, option=["--time=7"])
    asked = re.findall(r"^#SBATCH --(mem|time)=(\S+)$", files["sweep.sbatch"], re.MULTILINE)
    # Of two, Slurm takes the later one: the user's.
    assert asked == [("mem", f"{memory}G"), ("time", "90"), ("time", "7")]
    files = jobs.slurm(
        sweep_in("/sweep"), resources._replace(minutes=None), python="p", at_once=None, option=[]
    )
    assert "--time" not in files["sweep.sbatch"]


def test_a_pod_asks_for_memory_and_acts_as_an_account():
    resources = jobs.Resources("nvidia-h100-80gb", devices=8, nodes=2, spot=False)
    files = jobs.gke(
        sweep_in("gs://b/sweep"), resources, image="i", topology=None, queue=None,
        service_account="sweeps",
    )  # fmt: skip
    job = yaml.safe_load(next(iter(files.values())))
    pods = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pods["serviceAccountName"] == "sweeps"
    assert pods["containers"][0]["resources"]["requests"] == {"cpu": "16", "memory": "64Gi"}


def minutes(config, accelerator="", machine=None, devices=1):
    runs = grid.expand(parse(degradation.get_config(config).to_dict(), grid.SweepConfig))
    flags = {"accelerator": accelerator, "machine": machine, "devices_per_run": devices}
    return launcher.time_limit(runs, SimpleNamespace(**flags))


def test_the_time_limit_is_that_of_the_plan_with_time_to_spare():
    assert minutes("digits") == launcher.SHORTEST
    assert minutes("cifar10") == launcher.LONGEST
    h100 = machines.get_config("h100_8")
    assert minutes("cifar10", "a100") is None
    with pytest.raises(UserError, match="speed of 8 x H100 on cifar10 is not known"):
        minutes("cifar10", "a100", h100)
    h100.speed.cifar10.images_per_second = 10_000.0
    runs = grid.expand(parse(degradation.get_config("cifar10").to_dict(), grid.SweepConfig))
    machine = parse(h100.to_dict(), MachineConfig, "machine")
    longest = max(run_seconds(runs, machine, 1)) / 60
    spare = launcher.SPARE * longest
    assert launcher.SHORTEST < spare <= minutes("cifar10", "a100", h100) < spare + 1


@pytest.mark.parametrize("options, says", [([], True), (["--option=--time=04:00:00"], False)])
def test_a_missing_time_limit_is_said_unless_it_was_given(tmp_path, options, says):
    flags = ["--target=slurm", "--accelerator=gpu", f"--workdir={tmp_path}/runs", *options]
    flags += ["--config=configs/degradation.py:digits", f"--output={tmp_path}/jobs"]
    argv = [sys.executable, "-m", "experiments.launch", *flags]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("no time limit of its own" in done.stderr) == says

"""The entry points as a user runs them: each command in a process of its own."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl import flags
from ml_collections import config_flags

from configs import degradation
from experiments import cli, soak
from experiments.sweeping import grid
from resnet_flax.errors import UserError
from resnet_flax.storage.run_folder import RunFolder

FULL = Path("/dev/full")
TINY = [
    "--config.steps=24",
    "--config.eval_every=24",
    "--config.model.widths=(4, 8, 8)",
    "--config.data.train_split=train[:64]",
    "--config.data.batch_size=16",
    "--config.data.test_split=test[:37]",
]


CIFAR10 = ("--config=configs/degradation.py:cifar10",)


def command(module, *flags, devices=1, **environment):
    return (
        [sys.executable, "-m", f"experiments.{module}", *flags],
        os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)} | environment,
    )


def run(*args, **kwargs):
    argv, environment = command(*args, **kwargs)
    return subprocess.run(argv, env=environment, capture_output=True, text=True)


def defined(monkeypatch, *argv):
    """The flags of `train`, of its own. `argv`: what will be parsed."""
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["", *argv])
    flags.DEFINE_string("workdir", "/new run", "", flag_values=values)
    return values


def parsed(monkeypatch, *argv):
    """As `cli.run` has the flags of a command, before it looks at them."""
    values = defined(monkeypatch, *argv)
    values(["", *argv])
    return values


@pytest.mark.filterwarnings("ignore:the load_module")  # ml_collections calls it.
@pytest.mark.parametrize(
    "given, message",
    [
        (["--config=configs/digits.py:alexnet"], "Expected plainN or resnetN"),
        (["--config=configs/digits.py", "--config.optim.lr=fast"], "could not convert string"),
        (["--config=configs/digits.py", "--config.optim.rl=1"], "accepted: adam_beta2, .*lr"),
        (["--config=configs/digits.py", "--config.optm.lr=1"], "accepted: .*optim"),
        (
            ["--config=configs/degradation.py:digits", "--config.optim.lr=1"],
            r"accepted: .*seeds\. For all runs of a sweep: --config\.run\.optim\.lr=1$",
        ),
        (
            ["--config=configs/questions.py:blocks", "--config.kinds.pre-activation.steps=1"],
            r"""In brackets: "--config\.kinds\['pre-activation'\]\.steps=1"$""",
        ),
        (
            [*CIFAR10, "--config.from_depth.110.optim.warmup_steps=1"],
            r"""in brackets: "--config\.from_depth\['110'\]\.optim\.warmup_steps=1", got --""",
        ),
        ([*CIFAR10, "--config.from_depth.110.optim.lr=1"], "accepted: warmup_steps"),
        ([*CIFAR10, "--config.from_depth['110'].optim.lr=1"], "accepted: warmup_steps"),
        (
            [*CIFAR10, "--config.from_depth['56'].optim.warmup_steps=1"],
            "Unknown config field .*; accepted: 110",
        ),
        ([*CIFAR10, "--config.depths.one=8"], "accepted: none, it has no fields"),
        ([*CIFAR10, "--config.depths[0]=8"], "0 is not a valid index for .*depths"),
        ([*CIFAR10, "--config.from_depth['110'].optim.warmup_steps=110", "--confg=1"], "'confg'"),
        (["--config=configs/none.py"], "got configs/none.py, which is missing. Example: "),
        (
            ["--config=configs/degradation.py:digits", "--config.kinds={'residual': 'pad'}"],
            "Expected --config.kinds.NAME=VALUE: a whole config.kinds",
        ),
        (["--confg=configs/digits.py"], "Unknown command line flag 'confg'"),
        ([], "Expected --config=FILE"),
        (["--config", "configs/digits.py", "--config.optim.rl=1"], "accepted: adam_beta2, .*lr"),
        (["--config=README.md"], "README.md|syntax"),
        (["--config=configs/digits.py", "--workdir="], "got an empty name"),
        (["--config=configs/digits.py", "more"], "Unexpected arguments: more"),
    ],
)
def test_a_flag_that_cannot_be_read_is_one_line_and_status_2(monkeypatch, capsys, given, message):
    argv = ["train.py", "--workdir=run", *given]
    defined(monkeypatch, *argv[1:])
    with pytest.raises(SystemExit) as end:
        cli._parse_flags(argv, "run")
    assert end.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert re.search(message, line), line


def test_dashes_become_underscores_in_our_flags_alone(monkeypatch):
    flags.DEFINE_integer("num_processes", 1, "", flag_values=defined(monkeypatch))
    assert [
        cli._with_underscores(given)
        for given in ("--num-processes=1", "--noconfig.data.flip", "--cpus-per-task=3", "-a-b")
    ] == ["--num_processes=1", "--noconfig.data.flip", "--cpus-per-task=3", "-a-b"]
    in_brackets = "--num-processes.kinds['pre-activation'].a-b=c-d"
    assert cli._with_underscores(in_brackets) == in_brackets.replace("num-", "num_")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--config=configs/digits.py:plain21"], "Expected a depth of .*got 21"),
        ([], "Expected --config=FILE.* Example: .*experiments.train --config=configs/digits.py:"),
        (["--config=tests/given.py"], "a function get_config, got one without it"),
        pytest.param(
            ["--config=configs/digits.py", "--config.model.shortcut=foo"],
            "config.model.shortcut",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--config=configs/imagenet.py"],
            "'imagenet2012' is not prepared",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2_and_nothing_is_written(tmp_path, flags, message):
    workdir = tmp_path / "run"
    done = run("train", f"--workdir={workdir}", *flags, TFDS_DATA_DIR=str(tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("train: ")
    assert re.search(message, line), line
    assert not workdir.exists()


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"JAX_NUM_CPU_DEVICES": "x"}, "Expected JAX_NUM_CPU_DEVICES to be 1 or more"),
        ({"JAX_PLATFORMS": "cuda"}, "train: Found no device with JAX_PLATFORMS='cuda'"),
    ],
)
def test_devices_that_there_are_not_are_one_line_and_status_2(tmp_path, environment, message):
    train = ["train", "--config=configs/digits.py", f"--workdir={tmp_path}/run"]
    done = run(*train, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(message)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not FULL.exists(), reason="this system has no disk that is always full")
def test_a_run_that_nobody_listens_to_ends_as_any_other(tmp_path):
    argv, environment = command(
        "train", "--config=configs/digits.py:resnet8", f"--workdir={tmp_path}/run", *TINY
    )
    unheard = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    unheard.wait()
    with FULL.open("w") as full:
        done = subprocess.run(argv, env=environment, stdout=unheard.stdin, stderr=full)
    unheard.stdin.close()
    assert done.returncode == 0
    assert RunFolder(tmp_path / "run").status().state == "finished"


def test_what_is_not_to_wait_is_printed_at_once():
    code = "from resnet_flax.runtime import output; output.keep_going(); print(1)"
    code += "; import os; os._exit(0)"
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout == b"1\n"


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_one_line_and_status_2(tmp_path):
    flags = ["--config=configs/digits.py", "--config.data.batch_size=100"]
    done = run("train", f"--workdir={tmp_path}/run", *flags, devices=3)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "divisible by the number of devices, 3, got 100; the nearest: 99 and 102" in done.stderr


@pytest.mark.slow  # The gate has each part of it in other tests.
def test_a_run_of_four_devices_goes_on_on_one_and_is_evaluated_alike_on_three(tmp_path):
    workdir = f"--workdir={tmp_path}/run"
    train = ["train", "--config=configs/digits.py:resnet8", workdir, *TINY]
    train += ["--config.checkpoint_every=12", "--config.steps=240", "--config.eval_every=240"]
    argv, environment = command(*train, devices=4)
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "step 12/240" in line:
            process.send_signal(signal.SIGINT)
            break
    process.communicate()
    assert process.returncode == 75
    assert RunFolder(tmp_path / "run").status().state == "preempted"

    done = run(*train, devices=1)
    assert done.returncode == 0, done.stderr
    assert "resuming from step" in done.stdout
    folder = RunFolder(tmp_path / "run")
    assert [entry["device_count"] for entry in folder.environments()] == [4, 1]
    scored = next(r for r in folder.metrics() if r.get("split") == "test")
    done = run("evaluate", workdir, "--all-steps", devices=3)
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["228", "240"]
    assert f"error {scored['error']:.2%}  loss {scored['loss']:.4f}  images 37" in lines[1]


def test_an_evaluation_that_scored_no_checkpoint_is_a_failure(tmp_path):
    run_folder = shutil.copytree(
        "experiments/results/cifar10_short/residual-20-s0", tmp_path / "run"
    )
    for sums in run_folder.glob("checkpoints/*/SHA256SUMS"):
        sums.unlink()
    done = run("evaluate", f"--workdir={run_folder}", "--all_steps")
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert "is damaged (SHA256SUMS is missing)" in line


def test_processes_that_cannot_meet_are_told_in_one_line_and_status_2(tmp_path):
    train = ["train", "--config=configs/digits.py", f"--workdir={tmp_path}/run"]
    done = run(*train, "--coordinator=h:1", "--num_processes=2", "--process_id=2")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "Cannot join" in line
    assert not (tmp_path / "run").exists()


def test_kill_9_in_the_middle_of_a_sweep_loses_nothing(tmp_path):
    def sweep(workdir, *more):
        flags = ["--config=configs/degradation.py:digits", f"--workdir={tmp_path}/{workdir}"]
        flags += [flag.replace("--config.", "--config.run.") for flag in TINY]
        flags += ["--config.depths=(8,)", "--config.seeds=(0,)"]
        flags += [f"--config.run.{name}=240" for name in ("steps", "eval_every")]
        return ["sweep", *flags, "--config.run.checkpoint_every=12", *more]

    assert run(*sweep("whole", "--only=plain-8-s0")).returncode == 0
    argv, environment = command(*sweep("killed"))
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL)
    checkpoints = tmp_path / "killed" / "plain-8-s0" / "checkpoints"
    while not [*checkpoints.glob("[1-9]*")] and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    whole, killed = (RunFolder(tmp_path / w / "plain-8-s0") for w in ("whole", "killed"))
    assert killed.status().state == "running"
    done = run(*sweep("killed"))
    assert done.returncode == 0, done.stderr
    assert "degradation.svg" in done.stdout
    assert killed.status().attempt == 2
    assert soak.mismatches(whole.path, killed.path) == []


def test_help_shows_an_example_and_the_commands_own_flags_alone():
    done = run("report", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n.venv/bin/python -m experiments.report --workdir=runs/digits\n" in done.stdout
    assert re.findall(r"^  --(?:\[no\])?(\w+)", done.stdout, re.MULTILINE) == ["workdir"]


@pytest.mark.parametrize(
    "given, field, values",
    [
        ("optim.lr=0.1,0.01", "optim.lr", (0.1, 0.01)),
        ("optim.lr=0.1", "optim.lr", (0.1,)),
        ("model.widths=(8,16,32),(16,32,64)", "model.widths", ((8, 16, 32), (16, 32, 64))),
        ("optim.boundaries=()", "optim.boundaries", ((),)),
        ("model.norm=batch, none", "model.norm", ("batch", "none")),
        ("model.norm='batch','none'", "model.norm", ("batch", "none")),
        ("data.flip=True,False", "data.flip", (True, False)),
        ("optim.lr={0.1,0.01}", "optim.lr", ("{0.1", "0.01}")),
        ("data.name=cifar10:3.0.2,digits", "data.name", ("cifar10:3.0.2", "digits")),
    ],
)
def test_values_to_vary_are_read_as_they_are_typed(given, field, values):
    assert cli._varied(given) == (field, values)


@pytest.mark.parametrize("given", ["", "optim.lr", "optim.lr=", "=0.1"])
def test_vary_without_a_field_or_values_is_refused(given):
    with pytest.raises(UserError, match="Expected --vary=FIELD=VALUE,VALUE,..., got --vary="):
        cli._varied(given)


def test_a_field_is_varied_once():
    """Bash makes two flags of --vary=optim.lr={0.1,0.01}."""
    given = SimpleNamespace(config=degradation.get_config(), vary=["optim.lr=0.1", "optim.lr=0.01"])
    with pytest.raises(UserError, match="got two for optim.lr. Give --vary=optim.lr=VALUE,VALUE."):
        cli.sweep_config(given)


@pytest.mark.filterwarnings("ignore:the load_module")  # ml_collections calls it.
def test_several_values_for_a_field_of_the_runs_are_told_of_vary(monkeypatch, capsys):
    argv = ["sweep.py", "--config=configs/degradation.py:digits"]
    argv += ["--config.run.optim.lr=(0.1,0.01)"]
    defined(monkeypatch, *argv[1:])
    with pytest.raises(SystemExit):
        cli._parse_flags(argv, "sweep")
    assert capsys.readouterr().err.endswith("To vary it: --vary=optim.lr=0.1,0.01\n")


@pytest.mark.filterwarnings("ignore:the load_module")  # ml_collections calls it.
def test_of_a_tuple_that_is_given_twice_the_last_counts(monkeypatch):
    given = "--config=configs/degradation.py:digits", "--config.seeds", "(0, 1)"
    config = parsed(
        monkeypatch, *given, "--config.run.model.widths=(4, 4, 4)", "--config.seeds=(7,)",
        "--config.run.model.widths=()",
    ).config  # fmt: skip
    assert (config.seeds, config.run.model.widths) == ((7,), ())


@pytest.mark.filterwarnings("ignore:the load_module")
@pytest.mark.parametrize(
    "wants, taker, given",
    [
        ("run", "sweep", ["--config=configs/degradation.py:digits", "--config.run.steps=12"]),
        ("sweep", "train", ["--config=configs/digits.py:plain8", "--config.optim.boundaries=(6,)"]),
    ],
)
def test_a_config_of_another_command_is_refused_with_that_command(monkeypatch, wants, taker, given):
    parsed(monkeypatch, *given)
    with pytest.raises(flags.Error, match=f"Expected a {wants}'s --config") as error:
        cli._check_config(wants)
    words = shlex.split(str(error.value).partition("takes it: ")[2])
    assert words[1:] == ["-m", f"experiments.{taker}", *given, "--workdir=/new run"]


@pytest.mark.parametrize(
    "running, typed",
    [
        (Path(".venv/bin/python").absolute(), ".venv/bin/python"),
        ("/elsewhere/.venv/bin/python", "python"),
        ("", "python"),
    ],
)
def test_a_command_that_is_proposed_works_as_typed_here(monkeypatch, running, typed):
    monkeypatch.setattr(sys, "executable", str(running))
    proposed = cli.command("train", ["--workdir=new run"])
    assert proposed == f"{typed} -m experiments.train '--workdir=new run'"


def test_a_folder_of_another_command_is_refused_with_that_command(tmp_path):
    sweep = Path("experiments/results/digits_no_bn").absolute()
    run, alone = sweep / "plain-8-s0", tmp_path / "alone"
    shutil.copytree(run, alone)
    for accepts, folder, instead in [
        (cli.run_folder, sweep, f"evaluate --workdir={run}"),
        (cli.sweep_folder, run, f"report --workdir={run}"),
        (cli.sweep_folder, alone, f"report --workdir={alone}"),
    ]:
        with pytest.raises(UserError, match=f"python -m experiments.{instead}$"):
            accepts(SimpleNamespace(workdir=folder))
    for accepts, folder in [
        (cli.run_folder, run),
        (cli.run_folder, tmp_path / "new"),
        (cli.sweep_folder, sweep),
        (cli.sweep_folder, tmp_path / "new"),
    ]:
        assert accepts(SimpleNamespace(workdir=folder)) == folder


@pytest.mark.parametrize(
    "command, said",
    [
        (
            "sweep --config=configs/degradation.py:digits --dry_run --devices_per_run=2",
            "Expected --dry_run without --devices_per_run",
        ),
        (
            "sweep --config=configs/degradation.py:digits --dry_run --engine=ray --process_id=0",
            "Expected --dry_run without --engine, --process_id",
        ),
        (
            "sweep --config=configs/degradation.py:digits --dry_run"
            " --config.run.model.shortcut=projection",
            "model.shortcut itself. Give --config.kinds.plain=VALUE.",
        ),
        (
            "sweep --config=configs/degradation.py:digits --dry_run --config.run.seed=1",
            "--config.run.seed has no effect: the sweep sets seed itself. Give --config.seeds.",
        ),
        (
            "launch --target=slurm --config=configs/degradation.py:digits"
            " --config.run.model.depth=8",
            "Give --config.depths.",
        ),
        (
            "sweep --config=configs/degradation.py:cifar10 --dry_run"
            " --config.run.optim.warmup_steps=0",
            "these, too: \"--config.from_depth['110'].optim.warmup_steps=VALUE\".",
        ),
        (
            "sweep --config=configs/degradation.py:digits --dry_run --vary=optim.lr=0.1,1"
            " --config.run.optim[\\'lr\\']=0.2",
            "Give --vary=optim.lr=VALUE,VALUE.",
        ),
        (
            "sweep --config=configs/degradation.py:digits --dry_run --vary=optim.lr=0.1,1"
            " --config.run.optim.lr=1",
            "Give --vary=optim.lr=VALUE,VALUE.",
        ),
        ("evaluate --view=multi_scale --sides=224,4097", "at most 4096, got 224,4097"),
        (
            "benchmark --suite=steps --net='CIFAR depth 20'",
            "Expected --net with --suite=accelerator, got --suite=steps",
        ),
        ("evaluate --sides=40", "Expected --sides with --view=multi_scale, got --view=center"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(tmp_path, command, said):
    name, *given = shlex.split(command)
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *given, f"--workdir={tmp_path}"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr


@pytest.mark.filterwarnings("ignore:the load_module")  # ml_collections calls it.
@pytest.mark.parametrize(
    "given",
    [
        "--config.depths=(20,56)",
        "--config.from_depth['110'].optim.warmup_steps=0",
        '--config.from_depth["110"]["optim"].warmup_steps=0',
    ],
)
def test_a_field_that_deep_networks_have_by_rule_may_be_given_for_the_others(monkeypatch, given):
    config = "--config=configs/degradation.py:cifar10"
    argv = [config, "--config.run.optim.warmup_steps=0", given]
    values = defined(monkeypatch, *argv)
    flags.DEFINE_multi_string("vary", [], "", flag_values=values)
    values(["", *argv])
    found = grid.runs_of(cli.sweep_config(values))
    assert {run.config.optim.warmup_steps for run in found} == {0}


RULES = """
from configs import degradation

def get_config():
    config = degradation.get_config("digits")
    config.depths, config.from_depth = (8, 20), {rules}
    return config
"""


@pytest.mark.parametrize(
    "rules, said",
    [
        ('{"20": {"optim.lr": 1.0}}', "\"--config.from_depth['20']['optim.lr']=VALUE\"."),
        ('{"8": {"optim": {"lr": 1.0}}, "20": {"optim.lr": 1.0}}', "of at least 8 layers"),
        ('{"4": {"optim.lr": 1.0}, "8": {"optim.lr": 1.0}}', "of at least 8 layers"),
        ('{"8.0": {"optim": {"momentum": 0.5}, "optim.lr": 1.0}}', "['8.0']['optim.lr']=VALUE"),
        ('{"56": {"optim.lr": 1.0}}', None),
        ('{"20": {"optim.nesterov": True}}', None),
        ('{"20": 400}', "from_depth"),
        ("None", "from_depth"),
    ],
)
@pytest.mark.filterwarnings("ignore:the load_module")  # ml_collections calls it.
def test_a_rule_by_depth_that_overrides_a_flag_is_named(monkeypatch, tmp_path, rules, said):
    (tmp_path / "own.py").write_text(RULES.replace("{rules}", rules))
    argv = [f"--config={tmp_path}/own.py", "--config.run.optim.lr=0.2"]
    values = defined(monkeypatch, *argv)
    flags.DEFINE_multi_string("vary", [], "", flag_values=values)
    values(["", *argv])
    if said is None:
        assert {run.config.optim.lr for run in grid.runs_of(cli.sweep_config(values))} == {0.2}
    else:
        with pytest.raises(UserError, match=re.escape(said)):
            cli.sweep_config(values)


def test_vary_with_a_runs_config_is_refused_with_a_command_that_takes_the_rest(tmp_path):
    flags = ["--config=configs/digits.py:plain8", "--vary=optim.lr=0.1,0.01"]
    done = run("sweep", *flags, f"--workdir={tmp_path}/new")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "To vary a field, give a sweep's" in done.stderr
    words = shlex.split(done.stderr.partition("takes it: ")[2])
    assert words[2:] == ["experiments.train", flags[0], f"--workdir={tmp_path}/new"]


@pytest.mark.parametrize("file", ["table.csv", "report.html"])
def test_a_file_that_cannot_be_written_is_one_line_that_names_it(tmp_path, file):
    folder = tmp_path / "digits"
    shutil.copytree("experiments/results/digits_no_bn", folder)
    (folder / file).unlink(missing_ok=True)
    (folder / file / "in the way").mkdir(parents=True)
    done = run("report", f"--workdir={folder}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith(f"report: Cannot use {folder / file}: ")

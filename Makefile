# Two commands do everything on a fresh machine with Python 3.11+ and make:
#   make sweep   the depth sweep on the embedded data set: table and figures
#   make test    the checks and tests
# You can set WORKDIR, CONFIG, DATASET and PORT: make sweep CONFIG=configs/degradation.py:cifar10

PYTHON ?= python3
CONFIG ?= configs/degradation.py:digits
PORT ?= 6006
# runs/digits for configs/degradation.py:digits, runs/causes-digits for configs/causes.py:digits.
WORKDIR ?= runs/$(patsubst degradation-%,%,$(subst :,-,$(subst .py,,$(notdir $(CONFIG)))))
BIN := .venv/bin
PREPARE := .venv-prepare
TORCH := .venv-torch
TENSORBOARD := .venv-tensorboard
SCHEDULERS := .venv-schedulers
COMPILE := .venv-compile
MINUTES ?= 9
# The device that jax needs a plug-in for: a GPU, a TPU or none.
PLUGIN ?= $(if $(wildcard /dev/nvidia[0-9]*),cuda13,$(if $(wildcard /dev/accel[0-9]* /dev/vfio/[0-9]*),tpu))
SUITES ?= steps profile depth memory start epoch seeds convolution

# With WHEELS=FOLDER, pip takes all packages from that folder. It then needs no network. `make wheels` fills the folder.
ifdef WHEELS
ifeq ($(filter wheels,$(MAKECMDGOALS)),)
export PIP_NO_INDEX := 1
export PIP_FIND_LINKS := $(abspath $(WHEELS))
endif
endif

.PHONY: sweep test slow cluster-test soak benchmark accelerator wheels tensorboard torch compilers prepare cifar10 readme notebooks lock

sweep: .venv/installed
	$(BIN)/python -m experiments.sweep --config="$(CONFIG)" --workdir="$(WORKDIR)"

test: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not slow and not cluster" --numprocesses=3 --dist=loadfile --no-loadscope-reorder

# With the programs that users get. `make test` has them compiled quickly instead; tests/conftest.py says how.
slow: .venv/installed-dev
	XLA_FLAGS= $(BIN)/pytest -m slow

# Tests with real schedulers on this machine. For Slurm: apt-get install slurm-wlm munge. Tests of absent ones are skipped.
cluster-test: .venv/installed-dev $(SCHEDULERS)/installed
	$(BIN)/pytest -m cluster

# Kills runs at 40 moments and compares their results with those of undisturbed runs.
soak: .venv/installed
	$(BIN)/python -m experiments.soak --workdir=runs/soak

# Takes less than three quarters of an hour on 2 cores. SUITES=accelerator is for a GPU or TPU. SUITES="input stream" needs photographs; "input" also installs TensorFlow.
AGAINST := steps accelerator input
benchmark: .venv/installed $(if $(filter $(AGAINST),$(SUITES)),$(TORCH)/installed) \
  $(if $(filter input,$(SUITES)),$(PREPARE)/installed) $(if $(filter engine,$(SUITES)),.venv/installed-dev) \
  $(if $(filter accelerator,$(SUITES)),.venv/installed-accelerator$(PLUGIN))
	for suite in $(SUITES); do $(BIN)/python -m experiments.benchmark --suite=$$suite \
	  $$(case " $(AGAINST) " in *" $$suite "*) echo --against=torch;; esac) \
	  --torch_python=$(TORCH)/bin/python --tensorflow_python=$(PREPARE)/bin/python --workdir=runs/benchmarks || exit 1; done

# The first minutes on a GPU or TPU: checks it, measures it, then trains CIFAR-10 until MINUTES are over.
# All results are in WORKDIR. The same command goes on from there.
accelerator: CONFIG = configs/degradation.py:cifar10
accelerator: .venv/installed-accelerator$(PLUGIN)
	$(BIN)/python -m experiments.accelerator --config="$(CONFIG)" --workdir="$(WORKDIR)" --minutes=$(MINUTES) \
	  --torch_python=$(TORCH)/bin/python

# Fills WHEELS=FOLDER with the packages that `make accelerator WHEELS=FOLDER` installs elsewhere: 350 MB, with PLUGIN=cuda13 2.7 GB.
wheels: $(if $(WHEELS),.venv/installed)
	@test -n "$(WHEELS)" || { echo "Expected WHEELS=FOLDER, and PLUGIN=cuda13 or PLUGIN=tpu"; exit 2; }
	$(BIN)/python -m pip download --quiet --dest "$(WHEELS)" -c requirements.lock \
	  -r requirements.txt $(if $(PLUGIN),"jax[$(PLUGIN)]") "setuptools>=77.0.3,<100" wheel

# Shows the last sweep, or the folder WORKDIR. The sweep may still be running.
tensorboard: $(TENSORBOARD)/installed
	@folder="$(if $(filter file,$(origin WORKDIR)),$$(find runs -mindepth 3 -name metrics.jsonl -exec ls -t {} + 2>/dev/null | head -n 1 | sed 's,/[^/]*/metrics.jsonl$$,,'),$(WORKDIR))"; \
	  test -d "$$folder" || { echo "Expected a sweep below runs/, or WORKDIR=FOLDER, got $${folder:-none}"; exit 2; }; \
	  $(TENSORBOARD)/bin/tensorboard --logdir="$$folder" --port=$(PORT)

# Installs PyTorch. `make test` then compares networks and weights with it.
torch: $(TORCH)/installed

# Installs XLA's compilers for TPUs and GPUs, 6 GB. `experiments.compile` uses them: it needs no such device.
compilers: $(COMPILE)/installed

# FOLDER=photos NAME=mine makes a set of your own images. DATASET=cifar100 prepares one of TFDS's sets: that needs TensorFlow,
# which gets an environment of its own. TFDS_DATA_DIR=FOLDER names the folder of the sets.
prepare: $(if $(and $(DATASET),$(FOLDER)),,$(if $(FOLDER),.venv/installed)$(if $(DATASET),$(PREPARE)/installed))
	@test -n "$$DATASET$$FOLDER" && test -z "$(and $(DATASET),$(FOLDER))" || \
	  { echo "Expected DATASET=NAME, such as cifar100, or FOLDER=photos NAME=mine"; exit 2; }
	$(if $(DATASET),$(PREPARE)/bin/python experiments/prepare.py "$$DATASET",\
	  @$(BIN)/python -m experiments.prepare_folder --folder="$$FOLDER" --name="$$NAME")

# Status 2: it is not prepared, and says so. Any other error is shown as it is, and ends make.
define OPEN_CIFAR10
import sys
from resnet_flax.data.sources import open_split
from resnet_flax.errors import UserError
try:
    [open_split("cifar10", split) for split in ("train", "test")]
except UserError as error:
    print(error)
    sys.exit(2)
endef
export OPEN_CIFAR10

# Prepares CIFAR-10 and runs the paper's experiment. CONFIG=configs/degradation.py:cifar10_short runs a short one.
cifar10: CONFIG = configs/degradation.py:cifar10
cifar10: .venv/installed-accelerator$(PLUGIN)
	@$(BIN)/python -c "$$OPEN_CIFAR10" || { test $$? = 2 && $(MAKE) prepare DATASET=cifar10; }
	$(MAKE) sweep CONFIG="$(CONFIG)" WORKDIR="$(WORKDIR)"

# Fills the tables of the READMEs from the committed records.
readme: .venv/installed
	$(BIN)/python -m experiments.readme

# Runs the notebooks and stores what they show. One of them needs CIFAR-10.
notebooks: .venv/installed-dev
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

# Pins all packages for every supported Python. Commit the result.
lock: .venv/installed-dev
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy requires-python \
	  --upgrade --no-header --no-annotate --extra dev pyproject.toml -o requirements.lock

# An environment whose creation was cut off has no pip. It is made again.
.venv/made $(COMPILE)/made $(PREPARE)/made $(TORCH)/made $(TENSORBOARD)/made $(SCHEDULERS)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Expected Python 3.11 or newer, got $$($(PYTHON) -V); name one: make PYTHON=python3.12"; exit 2; }
	@$(if $(filter $(PREPARE)/made,$@),$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 14))',:) || \
	  { echo "Expected Python 3.11 to 3.13, which TensorFlow takes, got $$($(PYTHON) -V); name one: make PYTHON=python3.13"; exit 2; }
	$(@D)/bin/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(@D)
	touch $@

.venv/installed: requirements.txt requirements.lock | .venv/made
	@echo "Installing the libraries into .venv: 1.5 GB. That takes minutes."
	$(BIN)/python -m pip install --editable . -c requirements.lock
	touch $@

# A name for each plug-in: a first call may have seen no device.
.venv/installed-accelerator$(PLUGIN): requirements.lock .venv/installed
	$(if $(PLUGIN),$(BIN)/python -m pip install "jax[$(PLUGIN)]" -c requirements.lock)
	touch $@

.venv/installed-dev: pyproject.toml .venv/installed
	@echo "Installing the tools of the tests into .venv: 0.7 GB more."
	$(BIN)/python -m pip install --editable ".[dev]" -c requirements.lock
	touch $@

$(COMPILE)/installed: pyproject.toml requirements.txt requirements.lock | $(COMPILE)/made
	@echo "Installing the compilers into $(@D): 6 GB."
	$(@D)/bin/python -m pip install --editable ".[compile]" -c requirements.lock
	touch $@

# Each target installs a dependency group of pyproject.toml. Python's own pip may be too old for that.
$(PREPARE)/installed $(TORCH)/installed $(TENSORBOARD)/installed $(SCHEDULERS)/installed: \
  .venv-%/installed: pyproject.toml | .venv-%/made
	$(@D)/bin/python -m pip install --quiet "pip>=25.1"
	$(@D)/bin/python -m pip install --group $*
	touch $@

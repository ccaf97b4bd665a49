# Everything here runs from a fresh clone: Python 3.11 or later with venv, make, and a package index.
#
#   make quickstart            SFT, then GRPO, on a 0.64 M-parameter model; prints the table, writes the picture
#   make quickstart-control    the same with shuffled rewards, which must not learn
#   make test                  what CI runs: lint, types, and both dependency lines without the slow tests
#   make test-all              with the slow tests
#   make fuzz SECONDS=60       every fuzz target for so long, with new seeds; prints executions and findings
#   make clean                 removes every environment and result made here

PYTHON ?= python3
# Errors only: warnings name every index folder that lacks a package.
PIP_INSTALL = -m pip install -qq --disable-pip-version-check --progress-bar off
PYTEST = -m pytest -q --durations=10
TESTS ?= tests
SECONDS ?= 60
# In parts of about ten minutes, so that two cores end at about the same time.
PLUGIN_TESTS = tests/llamafactory_plugin
CORE_TESTS = tests/trl_grpo_ext
OTHER_TESTS = $(filter-out $(PLUGIN_TESTS) $(CORE_TESTS) tests/__pycache__, \
	$(patsubst %/,%,$(wildcard tests/*/)) $(wildcard tests/test_*.py))
# No file of these names TRL or transformers, but for ON_BOTH_LINES: `make test` runs them on line A only.
LINE_A_IS_ENOUGH = $(if $(filter or,$(FAST)),,tests/fuzz tests/serving tests/training_free)
ON_BOTH_LINES = $(if $(LINE_A_IS_ENOUGH),tests/training_free/test_backend_transformers.py)
# What touches private names of transformers and TRL: run on transformers 4.57.6 as well.
CONTRACT_TESTS = tests/contract $(wildcard tests/*/test_contract*.py) \
	tests/llamafactory_plugin/test_silent_wrongs.py \
	tests/trl_grpo_ext/test_trl_compat.py tests/trl_grpo_ext/test_trl_training.py
# The gpu tests skip themselves, with a reason, where there is no CUDA device.
FAST = not slow

VENV_A = .venv-line-a
VENV_B = .venv-line-b
VENV_QUICKSTART = .venv-quickstart
# Only what differs from line A: put first on PYTHONPATH it saves a third environment of 6 GB.
TRANSFORMERS_4 = .venv-transformers-4.57
# For the tests that train with it, and not for all others to import.
DEEPSPEED = .venv-deepspeed
QUICKSTART_OUTPUT = quickstart

# Two threads on two busy cores are slower than one, and nothing here may look for a model in a hub.
export OMP_NUM_THREADS = 1
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

SOURCES = $(shell find trl_grpo_ext llamafactory_plugin -name '*.py' -o -name '*.pth' -o -name '*.start')

.PHONY: help quickstart quickstart-control test test-all fuzz lint types \
	test-line-a test-line-a-plugin test-line-a-core test-line-a-other \
	test-line-b test-line-b-core test-line-b-other test-contract installed \
	venv-a venv-b venv-transformers-4 venv-deepspeed venv-quickstart clean

help:
	@sed -n 's/^#   //p' Makefile

venv-a: $(VENV_A)/.installed
venv-b: $(VENV_B)/.installed
venv-transformers-4: $(TRANSFORMERS_4)/.installed
venv-deepspeed: $(DEEPSPEED)/.installed
venv-quickstart: $(VENV_QUICKSTART)/.installed

# Makes the folder of the target an environment unless it is one.
define ENSURE_VENV
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
endef

$(VENV_A)/.installed: pyproject.toml
	$(ENSURE_VENV)
	$(@D)/bin/python $(PIP_INSTALL) -e '.[llamafactory,dev]'
	@touch $@

$(VENV_B)/.installed: pyproject.toml
	$(ENSURE_VENV)
	$(@D)/bin/python $(PIP_INSTALL) torch==2.13.0 'trl>=1.16,<1.17' -e '.[dev]'
	@touch $@

$(VENV_QUICKSTART)/.installed: pyproject.toml $(SOURCES)
	$(ENSURE_VENV)
	@echo 'Installing LLaMA-Factory and torch (6 GB) into $(@D): minutes in which pip prints nothing.'
	$(@D)/bin/python $(PIP_INSTALL) '.[llamafactory,report]' 'matplotlib>=3.7'
	@touch $@

$(TRANSFORMERS_4)/.installed: Makefile $(VENV_A)/.installed
	rm -rf $(@D)
	$(VENV_A)/bin/python $(PIP_INSTALL) --no-deps --target $(@D) transformers==4.57.6 'huggingface_hub>=0.34,<1'
	@touch $@

# Without its dependencies that line A has: torch would come a second time.
$(DEEPSPEED)/.installed: Makefile $(VENV_A)/.installed
	rm -rf $(@D)
	$(VENV_A)/bin/python $(PIP_INSTALL) --no-deps --target $(@D) deepspeed==0.19.8 hjson msgpack py-cpuinfo
	@touch $@

quickstart: venv-quickstart
	$(VENV_QUICKSTART)/bin/python examples/quickstart/run.py --output $(QUICKSTART_OUTPUT)

quickstart-control: venv-quickstart
	$(VENV_QUICKSTART)/bin/python examples/quickstart/run.py --output $(QUICKSTART_OUTPUT) --control

lint: venv-a
	$(VENV_A)/bin/python -m ruff check .
	$(VENV_A)/bin/python -m ruff format --check .

types: venv-a
	$(VENV_A)/bin/python -m mypy

# EXPECTED_* make tests/conftest.py refuse an environment that is not the one named: with a wrong one, tests would
# skip themselves and the run would look green.
define LINE_A
EXPECTED_LINE=a $(VENV_A)/bin/python $(PYTEST) -m '$(FAST)'
endef

# Tests that train with DeepSpeed find it there, and skip themselves without this.
WITH_DEEPSPEED = DEEPSPEED_FOLDER="$(CURDIR)/$(DEEPSPEED)"

test-line-a: venv-a venv-deepspeed
	$(WITH_DEEPSPEED) $(LINE_A) $(TESTS)

test-line-a-plugin: venv-a
	$(LINE_A) $(PLUGIN_TESTS)

test-line-a-core: venv-a
	$(LINE_A) $(CORE_TESTS)

test-line-a-other: venv-a venv-deepspeed
	$(WITH_DEEPSPEED) $(LINE_A) $(OTHER_TESTS)

test-contract: venv-transformers-4
	EXPECTED_LINE=a EXPECTED_TRANSFORMERS=4.57.6 PYTHONPATH="$(CURDIR)/$(TRANSFORMERS_4)" \
		$(VENV_A)/bin/python $(PYTEST) -m '$(FAST)' $(CONTRACT_TESTS)

define LINE_B
EXPECTED_LINE=b $(VENV_B)/bin/python $(PYTEST) -m '$(FAST)'
endef

test-line-b: venv-b
	$(LINE_B) $(TESTS)

# Without the tests of the plugin and of LLaMA Board: a folder that is named may not be skipped by its conftest.
test-line-b-core: venv-b
	$(LINE_B) $(CORE_TESTS)

test-line-b-other: venv-b
	$(LINE_B) $(filter-out tests/board $(LINE_A_IS_ENOUGH),$(OTHER_TESTS)) $(ON_BOTH_LINES)

# Two environments at a time: an installation waits for the network and the disk half of its time.
installed:
	@$(MAKE) --no-print-directory --keep-going --jobs=2 --output-sync=target venv-a venv-b venv-deepspeed

# Two at a time, each printed when it is done: the cheapest checks first, then the longest part first.
test: installed
	@$(MAKE) --no-print-directory --keep-going --jobs=2 --output-sync=target FAST='$(FAST)' \
		lint types test-line-a-other test-line-a-plugin test-line-b-other test-line-b-core test-line-a-core test-contract

test-all: FAST = slow or not slow
test-all: test

fuzz: venv-a
	$(VENV_A)/bin/python -m tests.fuzz --seconds $(SECONDS)

clean:
	rm -rf $(VENV_A) $(VENV_B) $(VENV_QUICKSTART) $(TRANSFORMERS_4) $(DEEPSPEED) $(QUICKSTART_OUTPUT) \
		build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

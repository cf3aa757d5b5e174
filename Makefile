# Each target makes what it needs; the two that matter are `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The Terraform CLI: a stand-in that needs no registry, where one lies beside this checkout, or the real one.
TERRAFORM ?= $(or $(wildcard $(abspath ../shared/terraform-offline/tf)),terraform)
export TERRAFORM
INFRA := infra/terraform
CHECKOV := checkov==3.3.30

.PHONY: run emulator test test-store check infra checkov bench requirements clean

run: $(VENV)/.run
	@$(BIN)/pollux serve $(ARGS)

# The cloud shape: state in the Firestore emulator, keys from the local file, a simulated Gemini; one gateway, or
# several: make emulator ARGS="--instances 2".
emulator: $(VENV)/.dev
	@$(BIN)/python -m tools.cloud_shape $(ARGS)

# Two workers, a file each at a time: half of the time is spent waiting for what is real.
WORKERS ?= 2
test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

# What needs the Firestore emulator, and the other stores beside it.
test-store: $(VENV)/.dev
	$(BIN)/python -m pytest tests/contract tests/test_store*.py tests/test_clock.py

check: $(VENV)/.dev checkov
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Terraform alone: `make test` runs the same, and more.
infra:
	$(TERRAFORM) -chdir=$(INFRA) fmt -check -recursive
	$(TERRAFORM) -chdir=$(INFRA) init -backend=false -input=false
	$(TERRAFORM) -chdir=$(INFRA) validate
	$(TERRAFORM) -chdir=$(INFRA) test

# Not among the project's dependencies: it brings a hundred of its own. It asks nobody about anything.
checkov: $(VENV)/.dev
	BC_SKIP_MAPPING=TRUE $(BIN)/uv tool run --quiet --from $(CHECKOV) checkov \
	  --directory $(INFRA) --skip-path $(INFRA)/tests --framework terraform --compact --quiet

bench: $(VENV)/.dev
	$(BIN)/python -m bench

requirements: $(VENV)/.dev
	$(BIN)/uv pip compile --quiet --universal --no-header --no-annotate --upgrade --extra cloud pyproject.toml -o function/requirements.txt

clean:
	rm -rf $(VENV) build function/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Pollux needs Python 3.11 or newer; set PYTHON=/path/to/python3"; exit 2; }
	@echo "Installing into $(VENV) (once) …"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(BIN)/python pyproject.toml
	@echo "Installing Pollux into $(VENV) (once) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# Dependency groups want a newer pip than Python brings.
$(VENV)/.dev: $(VENV)/.run pyproject.toml
	@echo "Installing what the cloud and the tests need into $(VENV) (once; a minute or more) …"
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet --editable '.[cloud]' --group dev
	@touch $@

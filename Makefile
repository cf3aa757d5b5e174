# Each target installs what it needs. The most important ones: `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The Terraform CLI: the stand-in beside this checkout, which needs no registry, if there is one; else the real one.
TERRAFORM ?= $(or $(wildcard $(abspath ../shared/terraform-offline/tf)),terraform)
export TERRAFORM
INFRA := infra/terraform
CHECKOV := checkov==3.3.30

# Debian and Ubuntu package venv separately.
VENV_MISSING = echo "Pollux needs Python's venv module with pip, which this Python does not have. On Debian and Ubuntu: apt install \
$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])') (or python3-venv)"

PIP = $(BIN)/python -m pip --quiet --no-input --disable-pip-version-check
PIP_FAILED = echo "pip could not install everything; its reason is above. Run the same make command again to continue"

.PHONY: run emulator test test-long test-store fetch check infra checkov bench requirements clean

run: $(VENV)/.run
	@$(BIN)/pollux serve $(ARGS)

# The cloud set-up on this machine: state in the Firestore emulator, keys from the local file, a simulated Gemini. One gateway,
# or several: make emulator ARGS="--instances 2".
emulator: fetch
	@$(BIN)/python -m tools.cloud_shape $(ARGS)

# Two workers, one test file each at a time: half of the time is spent waiting for processes and emulators.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile
test: fetch
	$(PYTEST)

# With all random histories of the pool instead of a tenth of them. CI runs this.
test-long: fetch
	$(PYTEST) --long

# Fetches the Firestore emulator, if the machine has none. Without it, tests that need it are skipped.
fetch: $(VENV)/.dev
	@$(BIN)/python -m tools.emulator --fetch || true

# The tests of all stores, with the Firestore emulator.
test-store: fetch
	$(BIN)/python -m pytest tests/backends/store

check: $(VENV)/.dev checkov
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Terraform's own checks; `make test` includes them.
infra:
	$(TERRAFORM) -chdir=$(INFRA) fmt -check -recursive
	$(TERRAFORM) -chdir=$(INFRA) init -backend=false -input=false
	$(TERRAFORM) -chdir=$(INFRA) validate
	$(TERRAFORM) -chdir=$(INFRA) test

# Not a dependency of the project, because it has a hundred of its own. BC_SKIP_MAPPING: it makes no network calls.
checkov: $(VENV)/.dev
	BC_SKIP_MAPPING=TRUE $(BIN)/uv tool run --quiet --from $(CHECKOV) checkov \
	  --directory $(INFRA) --skip-path $(INFRA)/tests --framework terraform --compact --quiet

bench: $(VENV)/.dev
	$(BIN)/python -m bench

requirements: $(VENV)/.dev
	$(BIN)/uv pip compile --quiet --universal --no-header --no-annotate --upgrade --extra cloud pyproject.toml -o function/requirements.txt

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# An environment whose Python runs is never deleted. One that uv made has no pip, and gets it.
PYTHON_RUNS = $(BIN)/python -c '' >/dev/null 2>&1
PIP_RUNS = $(BIN)/python -m pip --version >/dev/null 2>&1

$(VENV)/.run: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Pollux needs Python 3.11 or newer; set PYTHON=/path/to/python3"; exit 2; }
	@$(PYTHON_RUNS) || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { $(VENV_MISSING); exit 2; }
	@echo "Installing Pollux into $(VENV) (once, some seconds) …"
	@$(PYTHON_RUNS) || { [ ! -e $(VENV) ] || echo "$(VENV) has no Python that runs: making it anew"; \
	  rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); } || { rm -rf $(VENV); echo "$(PYTHON) -m venv $(VENV) failed"; exit 2; }
	@$(PIP_RUNS) || { echo "$(VENV) has no pip (uv makes environments without it): adding pip, the rest stays"; \
	  $(BIN)/python -m ensurepip >/dev/null && $(PIP_RUNS); } || { echo "pip could not be added to $(VENV). Add it yourself, or \
	delete $(VENV) (make clean), and run the same make command again"; exit 2; }
	@$(PIP) install --editable . || { $(PIP_FAILED); exit 2; }
	@touch $@

# Dependency groups need a newer pip than the one that comes with Python.
$(VENV)/.dev: $(VENV)/.run pyproject.toml
	@echo "Installing what the cloud and the tests need into $(VENV) (once, 200 MB to download, a minute or more) …"
	@$(PIP) install --upgrade pip || { $(PIP_FAILED); exit 2; }
	@$(PIP) install --editable '.[cloud]' --group dev || { $(PIP_FAILED); exit 2; }
	@touch $@

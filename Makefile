# Each target makes what it needs; the two that matter are `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The Terraform CLI: a stand-in that needs no registry, where one lies beside this checkout, or the real one.
TERRAFORM ?= $(or $(wildcard $(abspath ../shared/terraform-offline/tf)),terraform)
export TERRAFORM
INFRA := infra/terraform
CHECKOV := checkov==3.3.30

# Names the package that Debian and Ubuntu leave out.
VENV_MISSING = echo "Pollux needs Python's venv module with pip, which this Python lacks. On Debian and Ubuntu: apt install \
$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])') (or python3-venv)"

PIP = $(BIN)/python -m pip --quiet --no-input --disable-pip-version-check
PIP_FAILED = echo "pip could not install all that is needed; its reason is above. The same make command goes on from here"

.PHONY: run emulator test test-long test-store fetch check infra checkov bench requirements clean

run: $(VENV)/.run
	@$(BIN)/pollux serve $(ARGS)

# The cloud shape: state in the Firestore emulator, keys from the local file, a simulated Gemini; one gateway, or
# several: make emulator ARGS="--instances 2".
emulator: fetch
	@$(BIN)/python -m tools.cloud_shape $(ARGS)

# Two workers, a file each at a time: half of the time is spent waiting for what is real.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile
test: fetch
	$(PYTEST)

# The same with all random histories of the pool, ten times as many; CI runs this.
test-long: fetch
	$(PYTEST) --long

# The Firestore emulator, where the machine has none. Tests that need it are skipped without it.
fetch: $(VENV)/.dev
	@$(BIN)/python -m tools.emulator --fetch || true

# What needs the Firestore emulator, and the other stores beside it.
test-store: fetch
	$(BIN)/python -m pytest tests/backends/store

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

# A venv without a pip that runs is one whose making was broken off: it is made anew.
PIP_RUNS = $(BIN)/python -m pip --version >/dev/null 2>&1

$(VENV)/.run: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Pollux needs Python 3.11 or newer; set PYTHON=/path/to/python3"; exit 2; }
	@$(PIP_RUNS) || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { $(VENV_MISSING); exit 2; }
	@echo "Installing Pollux into $(VENV) (once, some seconds) …"
	@$(PIP_RUNS) || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); } || { rm -rf $(VENV); echo "$(PYTHON) -m venv $(VENV) failed"; exit 2; }
	@$(PIP) install --editable . || { $(PIP_FAILED); exit 2; }
	@touch $@

# Dependency groups want a newer pip than Python brings.
$(VENV)/.dev: $(VENV)/.run pyproject.toml
	@echo "Installing what the cloud and the tests need into $(VENV) (once, 200 MB to fetch, a minute or more) …"
	@$(PIP) install --upgrade pip || { $(PIP_FAILED); exit 2; }
	@$(PIP) install --editable '.[cloud]' --group dev || { $(PIP_FAILED); exit 2; }
	@touch $@

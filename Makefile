# `make help` lists the targets: those with two # behind them. Set-up steps run again only when their inputs change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TFTOOLKIT := $(BIN)/tftoolkit
# Python keeps compiled modules, so that only the first process compiles them; they are not installed compiled.
unexport PYTHONDONTWRITEBYTECODE
WORKERS ?= 2
# In the order of tests/conftest.py: xdist's own has files of few tests last, which are those that take longest.
PYTEST = $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder
SOURCES := $(shell find custom_ops -name '*.cc' -o -name '*.cu' -o -name '*.h')

.PHONY: help demo test test-slow test-all lint format types docs lists site notebooks bench bazel sanitize release clean compile_commands.json

help:  ## this list
	@awk -F ':.*## ' '/^[^#\t].*:.*## / { printf "  make %-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "What they need is installed into .venv first. PYTHON=python3.12 names another Python, WORKERS=4 other than 2 processes for tests."

demo: $(VENV)/.demo_ops  ## train on handwritten digits, export, prove; leaves runs/digits/report.html
	@echo "[3/3] training, exporting and proving; this takes about a minute and leaves runs/digits/report.html"
	$(TFTOOLKIT) train digits

test: $(VENV)/.dev $(VENV)/.ops  ## the fast tests: minutes
	$(PYTEST)

test-slow: $(VENV)/.dev $(VENV)/.ops  ## those that `make test` leaves out
	$(PYTEST) --slow

test-all: $(VENV)/.dev $(VENV)/.ops  ## all tests, full crosses, TensorFlow's host under AddressSanitizer: hours
	$(PYTEST) --all
	$(BIN)/python tools/sanitize/host.py

lint: $(VENV)/.dev  ## ruff, contracts of imports, clang-format where it is installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@! command -v clang-format >/dev/null || clang-format --dry-run --Werror $(SOURCES)

format: $(VENV)/.dev  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev  ## mypy
	$(BIN)/mypy

docs: $(VENV)/.dev  ## draw the picture of the packages from their imports
	$(BIN)/python tools/architecture/run.py

# Tests hold the code to the lists, so that nothing public is lost unseen.
lists: docs  ## write the lists of public names and of the wheel's files, and the picture, anew; look at the diff
	$(BIN)/python tests/tftoolkit/test_public_names.py >public_names.tmp && mv public_names.tmp tests/tftoolkit/public_names.txt
	$(BIN)/python tools/release/run.py --write-list

# Warnings are errors: dead links, names without a page.
site: $(VENV)/.dev  ## the pages as a site with search, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open build/site/index.html"

notebooks: $(VENV)/.dev $(VENV)/.ops  ## run docs/notebooks and write what they show into them
	$(BIN)/python tools/notebooks/run.py

bench: $(VENV)/.dev $(VENV)/.ops  ## all benchmarks: an idle machine and hours
	for script in $(filter-out %/results.py %/other_process.py %_torch.py %_work.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

# BAZEL_FLAGS='--per_file_copt=.*@-O0' for a quick one.
bazel: $(VENV)/.dev  ## build and test with Bazel (Debian: bazel-bootstrap)
	bazel build $(BAZEL_FLAGS) //... && bazel test $(BAZEL_FLAGS) //...; status=$$?; bazel shutdown; exit $$status

sanitize: $(VENV)/.dev  ## the native code under AddressSanitizer, UBSan and ThreadSanitizer
	$(BIN)/python tools/sanitize/run.py

# RELEASE_FLAGS=--allow-missing where a Python of those is not here.
release: $(VENV)/.demo  ## wheel and sdist in dist/, checked, and tried on Python 3.11, 3.12 and 3.13: GBs of downloads
	$(BIN)/python tools/install.py release
	$(BIN)/python tools/release/run.py $(RELEASE_FLAGS)

compile_commands.json: $(VENV)/.dev  ## for editors
	$(TFTOOLKIT) ops build --compile_commands=$@

clean:  ## remove .venv, build, dist and runs
	rm -rf $(VENV) build dist runs *.egg-info compile_commands.json

# What the demo uses. Everything else is added by .dev.
$(VENV)/.demo: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; $(PYTHON) is `$(PYTHON) --version`. Name another: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "Python's venv module is missing. On Debian: apt install python3-venv"; exit 1; }
	@echo "[1/3] installing TensorFlow and what the demo needs into $(VENV): half a minute, and what the network needs for 1 GB"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python tools/install.py export onnx
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "Installing what tests and checks need into $(VENV)"
	$(BIN)/python tools/install.py dev
	@touch $@

# Compiled into the user's cache now, with progress, rather than when the first program wants it: what the demo uses,
# and for tests everything.
$(VENV)/.demo_ops: $(VENV)/.demo $(SOURCES)
	@echo "[2/3] compiling the op host and an op: about a quarter of a minute"
	$(TFTOOLKIT) ops build rms_norm >/dev/null
	@touch $@

$(VENV)/.ops: $(VENV)/.demo $(SOURCES)
	@echo "Compiling the op host and the ops: about a minute and a half on two cores"
	$(TFTOOLKIT) ops build >/dev/null
	@touch $@

# make demo   sets everything up in .venv and trains, exports and reports on handwritten digits
# make test   runs the tests (make test-slow: those that it leaves out; make test-all: all, and full crosses)
# Set-up steps run again only when their inputs change.

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

.PHONY: demo test test-slow test-all lint format types docs site bench bazel sanitize wheel clean compile_commands.json

demo: $(VENV)/.demo_ops
	@echo "[3/3] training, exporting and proving; this takes about a minute and leaves runs/digits/report.html"
	$(TFTOOLKIT) train digits

test: $(VENV)/.dev $(VENV)/.ops
	$(PYTEST)

test-slow: $(VENV)/.dev $(VENV)/.ops
	$(PYTEST) --slow

test-all: $(VENV)/.dev $(VENV)/.ops
	$(PYTEST) --all

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@! command -v clang-format >/dev/null || clang-format --dry-run --Werror $(SOURCES)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev
	$(BIN)/mypy

# The picture of the packages, from their imports.
docs: $(VENV)/.dev
	$(BIN)/python tools/architecture/run.py

# The pages as a site with search, in build/site. Warnings are errors: dead links, names without a page.
site: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open build/site/index.html"

bench: $(VENV)/.dev $(VENV)/.ops
	for script in $(filter-out %/results.py %/other_process.py %_torch.py %_work.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

# Needs Debian's bazel-bootstrap. BAZEL_FLAGS='--per_file_copt=.*@-O0' for a quick one.
bazel: $(VENV)/.dev
	bazel build $(BAZEL_FLAGS) //... && bazel test $(BAZEL_FLAGS) //...; status=$$?; bazel shutdown; exit $$status

# The native code under AddressSanitizer, UBSan and ThreadSanitizer.
sanitize: $(VENV)/.dev
	$(BIN)/python tools/sanitize/run.py

wheel: $(VENV)/.dev
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

compile_commands.json: $(VENV)/.dev
	$(TFTOOLKIT) ops build --compile_commands=$@

clean:
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
	@echo "Compiling the op host and the ops: about half a minute"
	$(TFTOOLKIT) ops build >/dev/null
	@touch $@

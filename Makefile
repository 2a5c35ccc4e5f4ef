# make demo   sets everything up in .venv and trains, exports and reports on handwritten digits
# make test   runs the tests (make test-slow: those that it leaves out; make test-all: all, and full crosses)
# Set-up steps run again only when their inputs change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TFTOOLKIT := $(BIN)/tftoolkit
PYTEST := $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile
SOURCES := $(shell find custom_ops -name '*.cc' -o -name '*.cu' -o -name '*.h')

.PHONY: demo test test-slow test-all lint format types docs bench bazel sanitize wheel clean compile_commands.json

demo: $(VENV)/.ops
	$(TFTOOLKIT) train digits

test: $(VENV)/.ops
	$(PYTEST)

test-slow: $(VENV)/.ops
	$(PYTEST) --slow

test-all: $(VENV)/.ops
	$(PYTEST) --all

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@! command -v clang-format >/dev/null || clang-format --dry-run --Werror $(SOURCES)

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed
	$(BIN)/mypy

# The picture of the packages, from their imports.
docs: $(VENV)/.installed
	$(BIN)/python tools/architecture/run.py

bench: $(VENV)/.ops
	for script in $(filter-out %/results.py %_torch.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

# Needs Debian's bazel-bootstrap.
bazel: $(VENV)/.installed
	bazel build //... && bazel test //...; status=$$?; bazel shutdown; exit $$status

# The native code under AddressSanitizer, UBSan and ThreadSanitizer.
sanitize: $(VENV)/.installed
	$(BIN)/python tools/sanitize/run.py

wheel: $(VENV)/.installed
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

compile_commands.json: $(VENV)/.installed
	$(TFTOOLKIT) ops build --compile_commands=$@

clean:
	rm -rf $(VENV) build dist runs *.egg-info compile_commands.json

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; $(PYTHON) is `$(PYTHON) --version`. Name another: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "Python's venv module is missing. On Debian: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# Compiled into the user's cache now, with a progress line, rather than when the first program wants it.
$(VENV)/.ops: $(VENV)/.installed $(SOURCES)
	$(TFTOOLKIT) ops build >/dev/null
	@touch $@

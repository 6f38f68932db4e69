# Needs GNU make and Python 3.11 or newer. Everything else goes into .venv, which the targets make themselves.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory
# The tests start hundreds of interpreters, which need not compile the same modules each.
unexport PYTHONDONTWRITEBYTECODE

# The interpreter that .venv is made from: make PYTHON=/path/to/python3.12 test
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 python
RECENT := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(CANDIDATES); do "$$p" -c '$(RECENT)' 2>/dev/null && echo "$$p" && break; done)

# How long `make soak` and `make fuzz` run.
SECONDS ?= 60

VENV := .venv/pyvenv.cfg
RUNTIME := .venv/.installed-runtime
DEV := .venv/.installed-dev
FUZZ := .venv/.installed-fuzz
LEAST := .venv-least/.installed

PY := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)/python
INSTALL := $(PY) -m pip --disable-pip-version-check install --quiet --editable

# --verifytypes takes the first python of PATH, whatever else it is told; and it need not look for a newer self.
PYRIGHT := PATH="$$PWD/.venv/bin:$$PATH" PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PY) -m pyright

# quietly NAME,COMMAND: one line if it succeeds, all of its output if it fails.
quietly = @out=$$($(2) 2>&1) && printf '  %-28sok\n' '$(1)' || { printf '  %-28sFAILED\n%s\n' '$(1)' "$$out"; exit 1; }

.PHONY: help
help: ## say what can be made
	@echo 'make TARGET, where TARGET is one of'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name what; do \
	  printf '  %-12s %s\n' "$$name" "$$what"; done

.PHONY: venv
venv: $(DEV) ## make .venv with the library and all development tools

.PHONY: demo
demo: $(RUNTIME) ## a Linux pod, a Windows pod and a recorded script, on the in-memory host
	@$(PY) -m uvm pod --backend fake uvm/cli/samples/lcow-pod.toml
	@$(PY) -m uvm pod --backend fake uvm/cli/samples/wcow-pod.toml
	@$(PY) -m uvm replay tests/data/traces.json --script lcow_scsi_basic

.PHONY: demo-qemu
demo-qemu: $(RUNTIME) ## a real VM with disks, layers, a share and a container; gets QEMU and the rest by apt-get
	@$(PY) -m tests.qemu --run examples/qemu_demo.py

.PHONY: test
test: $(DEV) ## lint, types, the whole test suite and the recorded conformance data
	@$(MAKE) --jobs=2 lint types
	@$(PY) -m pytest -q -n 2 --dist worksteal
	@$(PY) -m tests.conformance tests/data/documents.json tests/data/traces.json

.PHONY: coverage
coverage: $(DEV) ## the test suite, with the branches of the library that it runs; fails below the floor
	@$(PY) -m pytest -q -n 2 --dist worksteal --cov

.PHONY: test-least
test-least: $(LEAST) ## the test suite with the least versions of all dependencies, in .venv-least
	@HYPOTHESIS_PROFILE=few .venv-least/bin/python -m pytest -q -n 2 --dist worksteal

.PHONY: test-windows
test-windows: $(DEV) ## the test suite on Windows CPython under Wine; gets Wine and mingw by apt-get
	@$(PY) -m tests.windows

.PHONY: test-qemu
test-qemu: $(DEV) ## the tests of real VMs, with QEMU on Linux; gets it, a kernel and the rest by apt-get
	@$(PY) -m tests.qemu

.PHONY: test-hyperv
test-hyperv: $(RUNTIME) ## what takes a Windows host with Hyper-V, and a report to send; docs/try-hyperv.md
	@$(PY) -m tests.hyperv

.PHONY: lint
lint: $(DEV) ## style, format and import directions
	$(call quietly,ruff check,$(PY) -m ruff check .)
	$(call quietly,ruff format,$(PY) -m ruff format --check .)
	$(call quietly,import-linter,.venv/bin/lint-imports)

.PHONY: types
types: mypy pyright ## mypy --strict, of the examples as well, and pyright on the completeness of the public types

.PHONY: mypy
mypy: $(DEV)
	$(call quietly,mypy --strict,$(PY) -m mypy --strict)
	$(call quietly,mypy of the examples,$(PY) -m tests.examples)

.PHONY: pyright
pyright: $(DEV)
	$(call quietly,pyright --verifytypes,$(PYRIGHT) --verifytypes uvm --ignoreexternal)

.PHONY: bench
bench: $(DEV) ## the table of measured figures
	@$(PY) -m tests.bench

.PHONY: bench-qemu
bench-qemu: $(DEV) ## measure real VMs for docs/performance.md, in about seven minutes; needs an idle machine
	@$(PY) -m tests.qemu --run -m tests.bench.report qemu

.PHONY: figures
figures: $(DEV) ## measure the tables of docs/performance.md, in about an hour; needs valgrind and an idle machine
	@$(PY) -m tests.bench.report

.PHONY: soak
soak: $(DEV) ## random operations with faults, for SECONDS=60; prints what leaked
	@$(PY) -m tests.soak --seconds $(SECONDS)

.PHONY: fuzz
fuzz: $(FUZZ) ## bytes that could break what reads a guest, for SECONDS=60; needs atheris
	@$(PY) -m tests.fuzz --seconds $(SECONDS)

.PHONY: docs
docs: $(DEV) ## the documentation, into docs/_build/html; a warning is an error
	@$(PY) -m sphinx --quiet --fail-on-warning --keep-going --nitpicky --builder html docs docs/_build/html
	@echo 'docs/_build/html/index.html'

.PHONY: wheels
wheels: $(DEV) ## the sdist and the wheel, built and tried in an empty environment
	@$(PY) -m tests.wheels

.PHONY: clean
clean: ## remove all that make has made, .venv included
	@rm -rf .venv .venv-least build dist docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .wine .qemu
	@find uvm tests docs -type d -name __pycache__ -prune -exec rm -rf {} +

# make-venv DIRECTORY
define make-venv
	@test -n "$(PYTHON)" || { echo 'uvm needs Python 3.11 or newer, and none of these is: $(CANDIDATES).'; \
	  echo 'Name one: make PYTHON=/path/to/python3.12 ...'; exit 1; } >&2
	@"$(PYTHON)" -c '$(RECENT)' || { echo 'uvm needs Python 3.11 or newer; PYTHON="$(PYTHON)" does not run as one.'; \
	  exit 1; } >&2
	@echo "making $(1) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv --clear $(1)
endef

$(VENV):
	$(call make-venv,.venv)

$(RUNTIME): pyproject.toml $(VENV)
	@echo 'installing uvm'
	@$(INSTALL) '.[cli]'
	@touch $@

$(DEV): pyproject.toml $(VENV)
	@echo 'installing uvm and the development tools'
	@$(INSTALL) '.[dev]'
	@touch $(RUNTIME) $@

$(FUZZ): $(DEV)
	@$(INSTALL) '.[dev,fuzz]'
	@touch $@

$(LEAST): pyproject.toml tests/least.py
	$(call make-venv,.venv-least)
	@.venv-least/bin/python -m tests.least > .venv-least/requirements.txt
	@.venv-least/bin/python -m pip --disable-pip-version-check install --quiet -r .venv-least/requirements.txt
	@touch $@

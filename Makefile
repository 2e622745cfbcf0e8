# make demo    everything from a bare machine to a bundle in build/mhlt_xavier/
# make systems every recipe of every system, and what each was measured to be worth: seconds each where the cache is warm
# make test    the tests, without network
PYTHON ?= python3
# CPU wheels keep the environment at 2 GB; a plain `torch` may pull in gigabytes of CUDA.
# Another torch: make venv TORCH="torch==2.12.1"; another index: make venv PIP_INDEX="--index-url ..."
TORCH ?= torch==2.13.0
PIP_INDEX ?=
RECIPE ?= recipes/mhlt_xavier.yaml

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# make systems INTO=docs/systems.md puts the table there
SYSTEMS := $(sort $(wildcard recipes/*.yaml))
INTO ?=

.PHONY: demo systems venv test test-slow lint clean

demo: venv
	$(BIN)/edgekit build $(RECIPE)
	$(BIN)/edgekit inspect build/$(basename $(notdir $(RECIPE)))

# A recipe that cannot be built here, or misses a gate, is told and fails at the end; the table is of all that have a report.
systems: venv
	$(BIN)/edgekit build $(SYSTEMS); failed=$$?; \
	$(BIN)/edgekit systems $$(ls $(SYSTEMS:recipes/%.yaml=build/%/report.json) 2>/dev/null) $(if $(INTO),--into $(INTO)); exit $$failed

venv: $(READY)

# The native engine is a package of its own: edgekit works without it, but for the targets that run it.
# Its operators for torch and OpenVINO are compiled against those of this environment.
NATIVE_SOURCES := $(shell find native -type f -not -path 'native/build/*')

$(READY): pyproject.toml $(NATIVE_SOURCES)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=python3.12 ..."; exit 5; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_INDEX) "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e '.[openvino,tflite,tensorrt,train,dev]'
	$(BIN)/python -m pip install --quiet ./native $(foreach package,torch openvino,-C cmake.define.EK_$(shell echo $(package) | tr a-z A-Z)_ROOT=$$($(BIN)/python -c "from importlib.util import find_spec as f; print(f('$(package)').submodule_search_locations[0])"))
	touch $@

test: venv
	$(BIN)/python -m pytest -m "not slow"

test-slow: venv
	$(BIN)/python -m pytest

lint: venv
	$(BIN)/ruff check edgekit tests

clean:
	rm -rf build .edgekit .pytest_cache .ruff_cache

# make demo   the whole line: train, stream real patients through Kafka, score, check, report
# make test   every notebook and every test, against a real broker
# make lab    JupyterLab on the notebooks
# make page   for authors: export, write README.md from nbs/index.ipynb, clean the notebooks
# make sample DATA=training_setA.zip   draw the shipped sample again from the full set

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
SHELL := /bin/bash
.SHELLFLAGS := -eo pipefail -c
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)
export LD_LIBRARY_PATH := $(CURDIR)/$(VENV)/lib$(if $(LD_LIBRARY_PATH),:$(LD_LIBRARY_PATH))
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONPATH PYTHONHOME

.PHONY: demo test lab page sample env
.DELETE_ON_ERROR:

demo: $(VENV)/.ready
	@sepsis demo

# Three tests at a time: most wait for processes. Threads that spin while they wait would take a core from the others.
test: $(VENV)/.ready
	@OMP_WAIT_POLICY=passive pytest -q -n 3 --dist worksteal

lab: $(VENV)/.ready
	@jupyter lab nbs

env: $(VENV)/.ready

page: $(VENV)/.ready
	@nbdev-export && python .ci/readme.py && nbdev-clean

sample: $(VENV)/.ready
	@python -c "from sepsis_nb.data import build_sample; print(build_sample('$(DATA)'))"

# uv installs in seconds, pip in over a minute. pip stays for machines where only pip knows the package index.
UV := uv --system-certs
PINNED := --only-binary :all: --no-binary sepsis-nb --no-build-isolation -c constraints.txt -e '.[dev]'

# LightGBM's wheel expects the system's OpenMP runtime; where there is none, scikit-learn's copy serves.
$(VENV)/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found: install one, or name it with 'make PYTHON=/path/to/python3.11'"; exit 1; }
	@echo "Making the environment in $(VENV) with $$($(PYTHON) --version) (1.5 GB on disk, under a minute with a fast network) ..."
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is incomplete; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@python -m pip install -q -c constraints.txt uv setuptools wheel
	@$(UV) pip install --compile-bytecode $(PINNED) || { echo "uv could not install the packages; trying pip, which may know your package index ..."; python -m pip install $(PINNED); }
	@python -m pip check
	@python -c "import lightgbm" 2>/dev/null || ln -sf $(CURDIR)/$(VENV)/lib/python3*/site-packages/scikit_learn.libs/libgomp*.so* $(VENV)/lib/libgomp.so.1
	@python -c "import lightgbm" || { echo "LightGBM cannot be loaded; on Debian and Ubuntu: apt-get install libgomp1"; exit 1; }
	@echo "Compiling the feature fold once ..."
	@python -c "from sepsis_nb.features import warm_up; warm_up()"
	@touch $@

# make demo   the whole line: train, stream real patients through Kafka, score, check, report
# make test   every notebook and every test, against a real broker
# make lab    JupyterLab on the notebooks
# make page   for authors: export, write README.md from nbs/index.ipynb, clean the notebooks
# make reports DATA=training_setA.zip  the published reports anew, on an idle machine, in two hours
# make sample DATA=training_setA.zip   draw the shipped sample again from the full set
# make sample-eicu DATA=folder         pack the shipped sample of the eICU demo again from YAIB's three tables

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

.PHONY: demo test lab page reports sample sample-eicu env
.DELETE_ON_ERROR:

demo: $(VENV)/.ready
	@sepsis demo

# Three tests at a time: most wait for processes. Threads that spin while they wait would take a core from the others.
test: $(VENV)/.ready
	@OMP_WAIT_POLICY=passive pytest -q -n 3

lab: $(VENV)/.ready
	@umask 077; PYTHONPATH=.ci jupyter lab --ContentsManager.pre_save_hook=clean.pre_save \
	  --LabApp.default_url=/lab/tree/nbs/index.ipynb --LabApp.news_url=None \
	  --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate

env: $(VENV)/.ready

page: $(VENV)/.ready
	@nbdev-export && python .ci/readme.py && python .ci/clean.py nbs

# Runs of one's own go to reports/local, which git ignores; only this writes the published ones.
PROVE := papermill --cwd nbs/prove --no-progress-bar
reports: $(VENV)/.ready
	@test -f "$(DATA)" || { echo "Name set A of the Challenge 2019: make reports DATA=training_setA.zip"; exit 1; }
	@SEPSIS_PATHS_REPORTS=reports sepsis train -p data "$(abspath $(DATA))" -p external sample-eicu \
	  -p metrics_json reports/02_train.json
	@sepsis train -p data "$(abspath $(DATA))" -p external sample-eicu -p features portable -p models LightGBM \
	  -p metrics_json reports/34_portable.json
	@SEPSIS_PATHS_REPORTS=reports sepsis site sample-eicu --models sepsis-portable,sepsis --retrain \
	  --home "$(abspath $(DATA))" -p metrics_json reports/33_site.json
	@$(PROVE) nbs/prove/21_benchmarks.ipynb reports/30_benchmarks.ipynb -p quick False -p rounds 3 -p rows 30000
	@$(PROVE) nbs/prove/32_chaos.ipynb reports/31_chaos.ipynb -p data "$(abspath $(DATA))" -p rows 150000 -p rate 500 \
	  -p kills 20 -p stops 3 -p broker_kills 5 -p rebalances 5 -p zombies 3 -p senders 2 -p deletions 2 -p hosts 2 \
	  -p groups 1 -p growths 2 -p pause_s 3 -p soak_s 600 -p soak_rate 200 -p soak_longest_s 60 -p bound_s 45
	@$(PROVE) nbs/prove/40_scale.ipynb reports/32_scale.ipynb -p quick False
	@mv reports/site.html reports/33_site.html
	@jupyter nbconvert --to sepsis reports/3?_*.ipynb && rm reports/*.ipynb

sample: $(VENV)/.ready
	@python -c "from sepsis_nb.data import build_sample; print(build_sample('$(DATA)'))"

sample-eicu: $(VENV)/.ready
	@python -c "from sepsis_nb.data import build_eicu; build_eicu('$(DATA)')"

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
	@git rev-parse --git-dir >/dev/null 2>&1 && git config filter.notebook.clean "$(BIN)/python .ci/clean.py" || true
	@touch $@

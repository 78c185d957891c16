# `make demo` and `make test` do all the set-up themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test campaign lint clean

demo: $(READY)
	$(BIN)/exitkit demo

test: $(READY)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Faults by seed: kills, damage, races, full disks, broken plugins, odd inputs. MINUTES and SEED say how long and which.
MINUTES ?= 10
SEED ?= 0
campaign: $(READY)
	$(BIN)/python tests/campaign.py --minutes $(MINUTES) --seed $(SEED) --rows 1000000

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch comes first and by itself: without a version the newest build with all of CUDA would be fetched.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	rm -rf *.egg-info  # of an earlier install, whose entry points may name modules that have moved
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info exitkit-demo

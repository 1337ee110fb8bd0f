# make demo: the main job, offline.   make test: the tests.   Both install first where that is needed.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test realdata lint audit bench docs clean

install: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(STAMP)

demo: install
	$(BIN)/python tools/demo.py

test: install
	$(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4

realdata: install
	$(BIN)/python -m pytest -q -m realdata

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: install
	$(BIN)/python tools/audit.py

# make bench DATA=imgs WEIGHTS=folder: against the peers that are installed, and against the physical limit.
bench: install
	$(BIN)/python benchmarks/peers.py --data $(DATA) --weights $(WEIGHTS)
	$(BIN)/python benchmarks/limits.py --data $(DATA) --weights $(WEIGHTS)

docs: install
	$(BIN)/python tools/write_docs.py

clean:
	rm -rf demo dist build .pytest_cache .mypy_cache .ruff_cache

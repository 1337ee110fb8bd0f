# make demo: the main job, offline.   make test: the tests.   make test-slow: the long ones.   All install first.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCK := requirements/locked.txt
PIP := -m pip install --quiet --disable-pip-version-check
PYTEST := -m pytest -q --numprocesses auto --maxprocesses 4 --dist worksteal
SLOW := -m 'slow and not network and not gpu and not realdata'
COMPILE := uv pip compile pyproject.toml --extra dev --extra parquet --python-version 3.11 --no-header --quiet

.PHONY: install demo test test-slow test-latest test-oldest realdata lint audit lock lock-check bench docs site clean

install: $(STAMP)

# What was tested, to the hash; then this tree itself, with the build tools of the lock.
$(STAMP): pyproject.toml $(LOCK)
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/python $(PIP) --require-hashes --requirement $(LOCK)
	$(BIN)/python $(PIP) --no-deps --no-build-isolation --editable .
	touch $(STAMP)

demo: install
	$(BIN)/python tools/demo.py

test: install
	$(BIN)/python $(PYTEST)

# What make test leaves out: whole tables of settings, kills at every point, long statistics.
test-slow: install
	$(BIN)/python $(PYTEST) $(SLOW)

# The newest and the oldest versions that pyproject.toml allows, each in an environment of its own.
test-latest:
	test -x .venv-latest/bin/python || python3 -m venv .venv-latest
	.venv-latest/bin/python $(PIP) --upgrade --upgrade-strategy eager --editable '.[dev]'
	.venv-latest/bin/python $(PYTEST)

test-oldest:
	test -x .venv-oldest/bin/python || python3.11 -m venv .venv-oldest
	.venv-oldest/bin/python $(PIP) --requirement requirements/oldest.txt
	.venv-oldest/bin/python $(PIP) --no-deps --no-build-isolation --editable .
	.venv-oldest/bin/python $(PYTEST)

realdata: install
	$(BIN)/python -m pytest -q -m realdata

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: install
	$(BIN)/python tools/audit.py

# make lock: resolve anew what make install takes, and the oldest that is allowed (needs uv).
lock:
	$(COMPILE) --universal --upgrade --generate-hashes --output-file $(LOCK)
	$(COMPILE) --resolution lowest-direct --upgrade --no-annotate --output-file requirements/oldest.txt

lock-check: install
	$(BIN)/python tools/lock.py

# make bench DATA=imgs WEIGHTS=folder: against the peers that are installed, and the physical limit; engines, start-up.
bench: install
	$(BIN)/python benchmarks/peers.py --data $(DATA) --weights $(WEIGHTS)
	$(BIN)/python benchmarks/limits.py --data $(DATA) --weights $(WEIGHTS)
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/startup.py

docs: install
	$(BIN)/python tools/write_docs.py

# The pages of docs/ as a site in build/site, by what the extra docs names, in an environment of its own without torch.
EXTRA := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])
site:
	test -x .venv-site/bin/python || python3 -m venv .venv-site
	.venv-site/bin/python $(PIP) $$(.venv-site/bin/python -c '$(EXTRA)')
	NO_MKDOCS_2_WARNING=1 .venv-site/bin/mkdocs build --strict --quiet

clean:
	rm -rf demo dist build .pytest_cache .mypy_cache .ruff_cache

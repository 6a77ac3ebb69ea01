# Everything here works on a machine that has only Python 3.11+ and make; `make help` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Test processes at a time; each starts a server of its own.
WORKERS ?= 2
# The stamp is newer than pyproject.toml when the packages named there are installed.
STAMP := $(VENV)/.dev-installed
DEMO_STAMP := $(VENV)/.demo-installed
# The versions that developers share hold for the Python they were found with; others take the newest.
LOCK := requirements-dev.lock
PYTHON_NAME = $(shell $(BIN)/python -c 'import sys; print("Python %d.%d" % sys.version_info[:2])')
CONSTRAINTS = $(if $(shell grep -x '. $(PYTHON_NAME)' $(LOCK)),--constraint $(LOCK))

.DEFAULT_GOAL := help
.PHONY: help venv demo test endurance golden docs site lint check coverage soak bench migration release lock clean

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed 's/:.*## /\t/' | expand -t 12

venv: $(STAMP) ## make the virtual environment with everything that developers need

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml hatch_build.py $(LOCK) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) --editable '.[dev]'
	@touch $(STAMP) $(DEMO_STAMP)

$(DEMO_STAMP): pyproject.toml hatch_build.py $(LOCK) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) --editable '.[demo]'
	@touch $(DEMO_STAMP)

demo: $(DEMO_STAMP) ## play a working day on an embedded PostgreSQL and print its audit trail
	$(BIN)/pgaudit-wf demo $(ARGS)

test: $(STAMP) ## run the suite; PG=15|16|17|18 picks the server, ARGS='-k name' goes to pytest
	PG=$(PG) $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

endurance: $(STAMP) ## run what takes too long or too much memory for every run, on the server that PG= picks
	PG=$(PG) PGAUDIT_WF_ENDURANCE=1 $(BIN)/python -m pytest -n 1 --timeout 1800 \
		tests/endurance tests/capture/test_ddl_matrix.py $(ARGS)

coverage: $(STAMP) ## run the suite and list what it never runs: lines of Python, functions in the database
	rm -rf build/coverage
	mkdir -p build/coverage/functions
	-PG=$(PG) PGAUDIT_WF_FUNCTION_CALLS=$(CURDIR)/build/coverage/functions \
		$(BIN)/coverage run -m pytest -n $(WORKERS) $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

golden: $(STAMP) ## rewrite tests/capture/golden/ with the trigger functions as they are generated now
	$(BIN)/python -m pytest -q --rewrite-golden tests/capture/test_golden.py

docs: $(STAMP) ## rewrite docs/reference/sql.md and the output in docs/tutorial.md
	$(BIN)/python -m pytest -q --rewrite-golden tests/dev/test_reference.py tests/dev/test_tutorial.py tests/integrations/test_walkthroughs.py

site: $(STAMP) ## make a site of the manual: build/site/docs/index.html
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html -c docs/site . build/site

lint: $(STAMP) ## check style and types of Python and SQL
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/sqlfluff lint --disable-progress-bar sql
	$(BIN)/python -m pytest -q -m lint

check: lint test ## lint and test

soak: $(STAMP) ## write for minutes while servers, followers and the disk fail, then count what is lost: ARGS='--minutes 10'
	$(BIN)/python tools/soak.py $(ARGS)

bench: $(STAMP) ## measure what auditing costs; PG= picks the server
	PG=$(PG) $(BIN)/python -m benchmarks $(ARGS)

migration: $(STAMP) ## write what changed in sql/ since the last release into a new migration: NAME=what_it_does
	$(BIN)/python tools/make_migration.py $(NAME)

release: $(STAMP) ## set the version, date the changelog, freeze the migrations and build into dist/: VERSION=0.1.0
	$(BIN)/python tools/make_release.py "$(VERSION)"

lock: ## find the newest versions of developers' packages and write them to requirements-dev.lock
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	build/lock/bin/python -c 'import sys; print("# Written by make lock with\n# Python %d.%d" % sys.version_info[:2])' >$(LOCK)
	build/lock/bin/python -m pip freeze --disable-pip-version-check --exclude-editable >>$(LOCK)

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

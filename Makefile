# make study   the study of config.yaml, from nothing to figures and report; `make study CONFIG=configs/evening.yaml` for another
# make test    the tests
# make torture faults at random moments, each compared with an undisturbed run: 15 minutes; `MINUTES=60` for more
# make lint    style and workflow checks          make format   apply the style
# make bench   the benchmarks, into docs/benchmarks.md; `make bench QUICK=1` with few repeats, `make bench RESULTS=results/embedded`
#              with a finished study's stages, COMPILED=FOLDER with what its jobs compiled (benchmarks/whole.py)
# make env     the environment alone, in .venv    make clean    remove caches; results and .venv stay
#
# TORCH_INDEX=https://download.pytorch.org/whl/cpu takes PyTorch without CUDA (about 200 MB instead of 3 GB).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: study test bench torture lint format clean env

CONFIG ?=
MINUTES ?= 14
TORCH_INDEX ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
STUDY = $(shell sed -n 's/^study: *\([A-Za-z0-9_-]*\).*/\1/p' $(or $(CONFIG),config.yaml))

# A study and its tests start Python some hundred times: where the environment forbids it to keep what it compiles, each
# start would compile the library again.
unexport PYTHONDONTWRITEBYTECODE

study: .venv/ready
	@$(BIN)/snakemake --profile profiles/local $(if $(CONFIG),--configfile $(CONFIG))
	@echo
	@echo "Report:   results/$(STUDY)/report.html"
	@echo "Summary:  results/$(STUDY)/summary.md"
	@echo "Figures:  results/$(STUDY)/figures/"
	@echo "Tables:   results/$(STUDY)/tables/"
	@echo "Explorer: results/$(STUDY)/explorer.html"

# The tests compile far more than they run: their own programs are not optimised (those of the jobs that they start are).
test: .venv/ready-test
	@XLA_FLAGS="$${XLA_FLAGS:-} --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1" $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

bench: .venv/ready-test
	@$(BIN)/python benchmarks/all.py $(if $(QUICK),--quick) $(if $(RESULTS),--results $(RESULTS)) $(if $(COMPILED),--compiled $(COMPILED))

torture: .venv/ready-test
	@$(BIN)/python tests/torture/torture.py --minutes $(MINUTES)

lint: .venv/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint

format: .venv/ready-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules

# .snakemake stays: it holds what Snakemake knows about how the results were made.
clean:
	rm -rf .cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -path ./results -prune -o -name __pycache__ -type d -exec rm -rf {} +

env: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	@python=; \
	for candidate in $${PYTHON:-python3 python3.13 python3.12 python3.11}; do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "Python 3.11 or newer is needed and none was found: install it (on Debian and Ubuntu: sudo apt install python3.11 python3.11-venv)." >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import venv, ensurepip' 2>/dev/null; then \
	  echo "$$python cannot make virtual environments: install its venv package (on Debian and Ubuntu: sudo apt install $$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'))." >&2; exit 1; \
	fi; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "Making the environment in .venv with $$("$$python" --version): a few minutes, most of it for PyTorch."; \
	  "$$python" -m venv --clear .venv; \
	else \
	  echo "Bringing the environment in .venv up to date."; \
	fi
	@$(PIP) --requirement requirements.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/ready-test: requirements-test.lock .venv/ready
	@$(PIP) --requirement requirements.lock --requirement requirements-test.lock
	@touch $@

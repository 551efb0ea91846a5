# Everything a newcomer needs: `make demo` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
# Three processes on two cores: tests of a cluster wait much of their time. tests/conftest.py orders the modules.
PYTEST_ARGS ?= -n 3 --dist loadscope --no-loadscope-reorder
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
CORE_SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml

# Whose networks `pynas.ops.fuse` takes. Alone: torchvision has no build for CPUs, and its networks need none.
PEERS := timm==1.0.31 torchvision==0.28.0

SLURM := slurmctld slurmd slurm-client munge

.PHONY: demo test test-slurm lint format sanitize bench clean

demo: $(VENV)/.installed
	$(BIN)/pynas data fashion-mnist
	$(BIN)/pynas search examples/demo.yaml --dir studies/demo

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PYTEST_ARGS)

# The tests on a real Slurm of two nodes on this machine; as root, for its daemons and their namespaces want that.
test-slurm: $(VENV)/.installed-dev
	@test "$$(id -u)" = 0 || { echo "make test-slurm: run it as root (sudo make test-slurm)" >&2; exit 2; }
	@test -x /usr/sbin/slurmctld || \
		{ apt-get update -qq && apt-get install -qq -y --no-install-recommends $(SLURM) >/dev/null; }
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/slurm

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -name '*.[ch]pp' -o -name '*.cu')

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc -name '*.[ch]pp' -o -name '*.cu')

# The tests of core and kernels against a build with the address and undefined-behaviour sanitizers.
sanitize: $(VENV)/.installed-dev
	sh tests/core/sanitize.sh $(BIN)

LEAGUE := hpolib/protein_structure nasbench201/cifar100

bench: $(VENV)/.installed-dev
	$(PIP) install -q -e '.[bench]' --no-build-isolation
	$(BIN)/python benchmarks/bench_evolve.py
	$(BIN)/python benchmarks/bench_scoring.py
	$(BIN)/python benchmarks/bench_pool.py
	$(BIN)/python benchmarks/bench_import.py
	$(BIN)/python benchmarks/bench_loader.py
	$(BIN)/python benchmarks/bench_ema.py
	$(BIN)/python benchmarks/bench_depthwise.py
	$(BIN)/python benchmarks/bench_pointwise.py
	$(BIN)/python benchmarks/bench_batch_norm.py
	$(BIN)/python benchmarks/bench_blocks.py
	$(BIN)/python benchmarks/bench_candidate.py
	$(BIN)/python benchmarks/bench_fpnas_estimator.py
	$(BIN)/python benchmarks/bench_supernet_memory.py
	$(BIN)/python benchmarks/bench_mpi_executor.py
	$(BIN)/python benchmarks/bench_sync_batch_norm.py
	$(BIN)/python benchmarks/bench_scaling.py
	$(BIN)/python benchmarks/league_predictors.py --seeds 2 --tables $(LEAGUE)
	$(BIN)/python benchmarks/league_search.py --seeds 2 --counts 16 32 --tables $(LEAGUE)

# torch first and pinned: a range may pull gigabytes of CUDA packages.
$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "pynas needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q '$(TORCH)'
	$(PIP) install -q 'setuptools>=77' 'pybind11>=2.13' 'cmake>=3.25' ninja
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(CORE_SOURCES)
	$(PIP) install -q --no-build-isolation -e '.[all]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch $(CORE_SOURCES)
	$(PIP) install -q --no-build-isolation -e '.[dev]'
	$(PIP) install -q --no-deps $(PEERS)
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build build-* pynas/_core*.so pynas/libpynas_ops.so *.egg-info

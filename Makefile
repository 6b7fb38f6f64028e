# Everything from a fresh clone with Python 3.11+, make and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint types parity bench clean

demo: $(VENV)/base  ## train a small DeepSeek-V3 on real text, export it, generate from the export
	rm -rf runs/demo
	$(BIN)/archzoo train deepseek-v3-nano --out runs/demo
	$(BIN)/archzoo export runs/demo runs/demo/export
	$(BIN)/archzoo generate runs/demo/export --prompt 'def main(' --tokens 200 --temperature 0.7

test: $(VENV)/test  ## the default suite
	$(BIN)/python -m pytest -q -n auto --dist loadfile

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev  ## of the package as it is installed, since this folder's name need not be a Python name
	rm -rf $(VENV)/types build
	$(BIN)/pip install -q --no-deps --target $(VENV)/types .
	cd $(VENV)/types && ../bin/mypy --config-file $(CURDIR)/pyproject.toml -p archzoo

parity: $(VENV)/parity  ## every family against the installed transformers
	$(BIN)/python tests/zoo/parity.py

bench: $(VENV)/base  ## against the peers that benchmarks/peers.sh installed
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/decode.py

$(VENV)/base:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "archzoo needs Python 3.11 or newer; this is $$($(PYTHON) -V): make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e .
	@touch $@

$(VENV)/%: $(VENV)/base pyproject.toml
	$(BIN)/pip install -q -e '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info

# Everything runs in .venv, which the first target that needs it sets up; nothing is installed by hand.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt
# Where `make libllama` has been, llama-cpp-python is its wheel there: nothing is compiled.
LLAMA_CPP_PYTHON := $(shell sed -n 's/^llama-cpp-python==//p' constraints.txt)
LLAMA_WHEEL := $(wildcard $(LLAMA_CPP_LIB_PATH)/llama_cpp_python-$(LLAMA_CPP_PYTHON)-*.whl)

.PHONY: demo test quick screenshots parity lint types types-without-torch docs format dist lock libllama clean

demo: .venv/runtime
	$(BIN)/acestep-gguf demo

# Says at the end what was skipped, and why: the tests of the server's page where there is no browser.
test: .venv/dev
	$(BIN)/pytest -n 2 --cov -rs

# For the minute before a commit, on two cores.
quick: .venv/dev
	$(BIN)/pytest -n 2 -m 'not parity and not slow'

# The pictures of the page in docs/.
screenshots: .venv/dev
	$(BIN)/pytest --screenshots docs/images tests/acestep_gguf/server/page/test_screenshots.py

# Compares with transformers, live.
parity: .venv/reference
	$(BIN)/pytest -m parity

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml
	$(BIN)/hadolint docker/Dockerfile docker/Dockerfile.cuda

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The training scripts need torch's types.
types: .venv/reference
	$(BIN)/mypy

types-without-torch: .venv/dev
	$(BIN)/mypy acestep_gguf tests

# The site, in build/site. A broken link, or a page that README.md's last table does not name, is an error; so is a
# page that would load anything from elsewhere.
docs: .venv/docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs -d build/doctrees . build/site
	! grep -rE '<(script|link|img|iframe)[^>]+(src|href)="(https?:)?//' build/site --include='*.html'

dist: .venv/dev
	$(BIN)/python -m build

# The newest versions that pyproject.toml allows, for each of its Pythons; nothing is installed but the tool.
lock: .venv/bin/python
	$(INSTALL) uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --upgrade --no-annotate --no-header \
		--no-emit-index-url --no-emit-find-links --output-file constraints.txt pyproject.toml

# llama.cpp's libraries for every kind of CPU, in the folder LLAMA_CPP_LIB_PATH, for all environments to come.
libllama: .venv/bin/python
	PYTHON=$(BIN)/python scripts/edge/build_libllama.sh "$(LLAMA_CPP_LIB_PATH)"

clean:
	rm -rf build dist *.egg-info .venv

# The set-up, a stamp for each stage. llama-cpp-python is compiled here, about six minutes on two cores, unless
# `make libllama` did so before.
.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv .venv

.venv/runtime: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) $(LLAMA_WHEEL) --editable '.[convert]'
	touch $@

.venv/dev: .venv/runtime
	$(INSTALL) --editable '.[dev]'
	touch $@

.venv/docs: .venv/runtime
	$(INSTALL) --editable '.[docs]'
	touch $@

.venv/reference: .venv/dev
	$(INSTALL) --editable '.[reference]'
	touch $@

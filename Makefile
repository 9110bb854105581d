# Each target makes .venv if it is missing and reinstalls when one of the files under $(STAMP) changed.
PYTHON ?= python3
ARGS   ?=
# The versions to install. To try others: rm -r .venv, then make test CONSTRAINTS=FILE.
CONSTRAINTS ?= constraints.txt
BIN    := .venv/bin
STAMP  := .venv/.installed
SITE   := .venv/.site
# A library that tests compare with. Its own requirements would bring a second OpenCV over ours; what it needs is here.
PEER   := quantus==0.6.0
# Commands of the environment first on the path, for what the tools start by name. `exec`, so that a signal that
# make passes on reaches Python and not a shell that keeps it.
RUN    := PATH="$(CURDIR)/$(BIN):$$PATH" exec $(BIN)/python
COVER  := COVERAGE_RCFILE=tests/coverage.ini $(RUN) -m coverage

.DEFAULT_GOAL := help
.PHONY: help venv course test test-all quick coverage site print demo lab export readme film constraints clean

help:  ## show this list
	@echo "Usage: make TARGET [PYTHON=python3.12] [ARGS='...']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

venv: $(STAMP)  ## make .venv and install the project in it, with the tested versions
	@echo "Ready: . .venv/bin/activate"

$(STAMP): settings.ini setup.py $(CONSTRAINTS)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  command -v $(PYTHON) >/dev/null || { \
	    echo "No '$(PYTHON)' here: install Python 3.11 or newer, or name yours: make PYTHON=/path/to/python"; \
	    exit 1; }; \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$$($(PYTHON) --version) is too old: ltpa needs 3.11 or newer. Name one: make PYTHON=python3.12"; \
	    exit 1; }; \
	  echo "Making .venv with $$($(PYTHON) --version)"; \
	  $(PYTHON) -m venv --clear .venv || { \
	    echo "Could not make .venv. On Debian or Ubuntu: apt-get install python3-venv; then repeat"; exit 1; }; }
	@echo "Installing ltpa and its tools in .venv (some minutes and GB the first time, for PyTorch)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]' || { \
	  echo "Installing failed, for the reason above: mend it and repeat the command."; \
	  echo "If a package has no version for this Python: rm -r .venv, then add PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps $(PEER) || \
	  echo "Could not install $(PEER): the tests that compare with it will be skipped"
	@touch $@

course: $(STAMP)  ## run every lesson into build/course, say what came out (ARGS='01 03' picks some)
	@$(RUN) tools/course.py $(ARGS)

quick: $(STAMP)  ## the tests of some minutes: all but those marked slow
	@$(RUN) -m pytest -v -m 'not slow and not whole' $(ARGS)

test: $(STAMP)  ## check the tree, run the tests, 15 min at most (ARGS='-k models' picks some)
	@echo "Checking the tree, then running the tests"
	@$(RUN) -m pytest -v -m 'not whole' --durations=8 $(ARGS)

coverage: $(STAMP)  ## how much of ltpa make test runs, and the five modules of which it runs least: half an hour
	@mkdir -p build/coverage
	@$(COVER) erase
	@$(COVER) run -m pytest -q -m 'not whole' $(ARGS)
	@$(COVER) combine -q
	@$(COVER) report --sort=cover | awk 'NR == 1 || NR > 2 && NR < 8 || /^TOTAL/'

test-all: $(STAMP)  ## all of that in random order, and Run All of every notebook, 45 min at most: nightly, and before a release
	@echo "Checking the tree, then running every test and every cell"
	@$(RUN) -m pytest -v --random-order --durations=20 $(ARGS)

$(SITE): $(STAMP)
	@echo "Installing what builds the site"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c $(CONSTRAINTS) -e '.[site]'
	@touch $@

site: $(SITE)  ## the course as static pages from the committed outputs: build/site/index.html
	@$(RUN) tools/website.py

print: $(SITE)  ## the course to print, one page and a PDF, in build/print (ARGS='01 05' picks lessons)
	@$(RUN) tools/print.py $(ARGS)

demo: $(STAMP)  ## a network in the browser, one page to open by double click: build/demo/index.html (needs npm)
	@$(RUN) tools/demo.py

lab: $(STAMP)  ## JupyterLab, index.ipynb open (ARGS=--no-browser, --port=..., as root --allow-root)
	@echo "Starting JupyterLab on nbs/index.ipynb; stop with Ctrl-C"
	@JUPYTER_PREFER_ENV_PATH=1 $(RUN) -m jupyterlab nbs --LabApp.default_url=/lab/tree/index.ipynb $(ARGS)

export: $(STAMP)  ## clean the notebooks, then write ltpa/*.py from them
	@$(RUN) $(BIN)/nbdev_clean
	@$(RUN) tools/tidy.py
	@$(RUN) $(BIN)/nbdev_export
	@$(RUN) tools/check_notebooks.py

readme: $(STAMP)  ## write README.md from nbs/index.ipynb
	@$(RUN) tools/readme.py

film: $(STAMP)  ## film the explorer in a real browser, for README (needs chromium)
	@$(RUN) tools/film.py

constraints: $(STAMP)  ## resolve settings.ini anew and write constraints.txt: the newest versions that fit
	@echo "Resolving the newest versions (about a minute; nothing is installed)"
	@mkdir -p build
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --dry-run --ignore-installed \
	  --report build/resolved.json -e '.[dev,site]'
	@$(RUN) tools/constraints.py build/resolved.json
	@echo "Now run make test: it installs these versions and tries them."

clean:  ## remove what make built; .venv, runs/ and data/ stay
	@rm -rf build dist .pytest_cache _docs _proc
	@find ltpa tests tools -name __pycache__ -prune -exec rm -rf {} +
	@echo "Removed build/, dist/ and caches"

# Two commands do all the set-up:  make course  (run the course)   make test  (pass every test)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: course lab test bench export clean

course: $(VENV)/.installed
	$(BIN)/lessonlib run

lab: $(VENV)/.installed
	$(BIN)/lessonlib lab

test: $(VENV)/.installed
	$(BIN)/python -m pytest tests

bench: $(VENV)/.installed
	$(BIN)/python bench/sliders.py
	$(BIN)/python bench/training.py
	$(BIN)/python bench/images.py
	$(BIN)/python bench/imports.py
	$(BIN)/python bench/cleaner.py

# For developers: notebooks to package, with the notebooks' noise removed.
export: $(VENV)/.installed
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export

$(VENV)/.installed: settings.ini setup.py
	$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('lessonlib needs Python 3.11 or newer; this is ' + sys.version.split()[0] + '. Try: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e ".[dev]"
	touch $@

clean:
	rm -rf _build build dist *.egg-info

# From nothing (Python 3.11 or newer and make) to the one job that is asked for.
#   make demo   set up and ride: two processes, one text
#   make test   set up (with a compiler, for llama.cpp), then scripts/check and scripts/test

VENV := .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
DEMO_EXTRAS ?= edge,cloud,onnx,torch
TEST_EXTRAS ?= all,dev
ARGS ?=

comma := ,
stamp = $(VENV)/.stamps/$(subst $(comma),-,$(1))
INPUTS := pyproject.toml setup.py constraints.txt scripts/setup scripts/house.py

.PHONY: help demo test check setup pin clean

help:
	@sed -n '2,3s/^# *//p' Makefile

demo: $(call stamp,$(DEMO_EXTRAS))
	@$(VENV)/bin/outrider demo $(ARGS)

test: $(call stamp,$(TEST_EXTRAS))
	@status=0; $(VENV)/bin/python scripts/check || status=1; \
	$(VENV)/bin/python scripts/test $(ARGS) || status=1; exit $$status

check: $(call stamp,$(TEST_EXTRAS))
	@$(VENV)/bin/python scripts/check $(ARGS)

setup: $(call stamp,$(TEST_EXTRAS))

# Write down the versions of a .venv whose tests passed.
pin:
	@{ sed -n '/^#/p' constraints.txt; $(VENV)/bin/pip list --format=freeze --exclude-editable \
	| sed 's/+cpu$$//' | LC_ALL=C sort -f; } > constraints.new && mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with venv is needed; set PYTHON=..." >&2; exit 1; }
	@echo "set-up: $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

# Only the order matters: a newer interpreter file alone is no reason to install again.
$(VENV)/.stamps/%: $(INPUTS) | $(VENV)/bin/python
	@$(VENV)/bin/python scripts/setup $(subst -,$(comma),$*)
	@mkdir -p $(@D) && touch $@

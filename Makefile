# Targets for people. Everything installed by hand elsewhere is installed here by `make setup`.
# As a user: only the commands shown with sudo run as root.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
PYTHON ?= python3
PACKAGES = busybox-static gcc ifupdown iproute2 iputils-ping libc6-dev mmdebstrap musl-tools \
	procps python3-venv util-linux
BIN = .venv/bin


.PHONY: help setup demo bench lint test clean

help:
	@echo "make demo | setup | lint | test | bench | clean"

# The packages of Debian that are missing, then a virtual environment with the commands in .venv/bin.
setup: .venv/ready

.venv/ready: Makefile pyproject.toml setup.py overlay_boot/reaper.c $(wildcard overlay_boot/*.py bin/*)
	@missing=$$(for p in $(PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done)
	if [ -n "$$missing" ]; then
	  echo "installing Debian packages$(if $(SUDO), with sudo,):" $$missing
	  $(SUDO) apt-get update -q
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends $$missing
	fi
	[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	rm -f overlay_boot/reaper
	$(BIN)/pip install --quiet --config-settings editable_mode=compat --editable '.[dev]'
	test -x overlay_boot/reaper
	$(BIN)/python -m compileall -q overlay_boot
	touch $@

demo: setup
	@SUDO="$(SUDO)" examples/demo

lint: setup
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	@$(SUDO) $(BIN)/python -m pytest

clean:
	rm -rf .venv build dist .cache *.egg-info .*_cache overlay_boot/reaper

# Side by side with Debian's version and other containers; ARGS="--rounds 3 --many 20" is quicker.
bench: setup
	@$(SUDO) $(BIN)/python -m bench $(ARGS)

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


.PHONY: help setup demo lint test clean

help:
	@echo "make demo | setup | lint | test | clean"

# The packages of Debian that are missing, then a virtual environment with the commands in .venv/bin.
setup: .venv/ready

.venv/ready: Makefile pyproject.toml setup.py overlay_boot/reaper.c
	@missing=$$(for p in $(PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done)
	if [ -n "$$missing" ]; then
	  echo "installing Debian packages$(if $(SUDO), with sudo,):" $$missing
	  $(SUDO) apt-get update -q
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends $$missing
	fi
	[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	rm -f overlay_boot/reaper
	$(BIN)/pip install --quiet --editable '.[dev]'
	test -x overlay_boot/reaper
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

# Targets for people: `make help` lists them. As a user, only what is shown with sudo runs as root.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
ifneq ($(word 2,$(CURDIR)),)
$(error the path of this folder has a blank, which the first line of a script cannot have: move it)
endif
# /tmp may be mounted noexec, and tests run scripts of their own.
export TMPDIR := $(or $(TMPDIR),$(if $(findstring noexec,$(shell findmnt -no OPTIONS -T /tmp)),/var/tmp,/tmp))
SUDO := $(if $(filter 0,$(shell id -u)),,sudo$(if $(filter-out /tmp,$(TMPDIR)), env TMPDIR=$(TMPDIR)))
PYTHON ?= python3
BIN = .venv/bin
SUITE ?= trixie
PROVIDER ?= qemu
WORKERS ?= auto
MADE = .venv build spec/build dist .cache *.egg-info */*.egg-info .*_cache overlay_boot/reaper overlay_boot/helper $(wildcard */__pycache__ */*/__pycache__)

install = SUDO="$(SUDO)" tools/setup packages $(1)

# The spec and its reports in build/spec. Where make is ended by a signal, so is the run.
RUN = setpriv --pdeathsig TERM $(BIN)/python -m spec run --reports build/spec -n $(WORKERS)

.PHONY: help setup demo lint test-setup test spec mutants torture lives load fuzz conformance man bench stage deb deb-check vm-setup vm-test vm-services vm-selftest bench-vm box clean

help: ## this list
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: .venv/ready ## Debian's packages, and .venv with the commands
.venv/ready: Makefile tools/setup pyproject.toml setup.py $(wildcard overlay_boot/*.[ch] overlay_boot/*.py bin/*)
	@$(call install,build)
	SUDO="$(SUDO)" tools/setup venv $(PYTHON)
	touch $@
test-setup: setup
	@$(call install,test)
vm-setup: setup
	@$(call install,vm $(filter vagrant,$(PROVIDER)))

demo: setup ## boot two real subhosts, enter them, stop them
	@$(call install,demo)
	SUDO="$(SUDO)" examples/demo

lint: setup ## ruff, mypy, gcc's analyzer, and clang's where that is
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	tools/analyze overlay_boot/*.c

test: lint test-setup ## lint, unit tests, boots, and the spec on this machine
	@$(SUDO) $(BIN)/python -m pytest -p no:cacheprovider -n $(WORKERS) --dist worksteal tests
	$(BIN)/python -m spec check
	$(MAKE) --no-print-directory spec

spec: test-setup ## the spec on this machine; ARGS="-k vlan" for a part
	@$(SUDO) $(RUN) --implementation $(BIN) --allow-preconditions $(ARGS)

# ARGS: "-k share" for some of the faults; "--points 0" for all system calls, "--case ..." for one as it
# is printed; "--only lives --steps 200" or "--part 0.1" for less of lives or load; "--target
# vm://trixie --implementation build/stage --only clock" for load in a machine; "--only record --runs
# 1000000" for one parser; "--rounds 3 --many 20" for a quicker bench.
mutants: test-setup vm-setup ## do the tests notice deliberate faults?
	@$(SUDO) $(BIN)/python -m tests.mutants $(ARGS)
torture: test-setup ## each system call of a boot and an end, killed or failed
	@$(SUDO) $(BIN)/python -m tests.torture $(or $(ARGS),--page docs/reliability.md)
lives: test-setup ## random events in subhosts, and races; half an hour
	@$(SUDO) $(BIN)/python -m tests.lives $(or $(ARGS),--page docs/reliability.md)
load: test-setup ## 500 subhosts, a machine short of everything; an hour
	@$(SUDO) $(BIN)/python -m tests.load $(or $(ARGS),--page docs/reliability.md)
fuzz: test-setup ## a million malformed files for the parsers
	@$(BIN)/pip install --quiet atheris
	$(BIN)/python -m tests.fuzz $(or $(ARGS),--page docs/reliability.md)
bench: setup ## beside Debian's version and other containers
	@$(SUDO) $(BIN)/python -m bench $(ARGS)

conformance: setup ## docs/conformance.md of the results in build/spec
	@$(BIN)/python -m spec conformance $(filter-out %-part.json,$(sort $(wildcard build/spec/*.json))) > build/conformance.md
	mv build/conformance.md docs/conformance.md

man: $(wildcard spec/*.8.adoc) ## the man pages as roff and HTML, in build/man
	@$(call install,man)
	asciidoctor -w -b manpage -D build/man $^
	asciidoctor -w -b html5 -a webfonts! -D build/man/html $^

stage: setup ## build/stage, for: python -m vm up --install build/stage
	@tools/lay build/stage

deb: ## the Debian packages of the files that git tracks, in dist/
	@$(call install,deb)
	tools/deb
deb-check: vm-setup ## lintian, blhc, piuparts, machine start, takeover
	@mkdir -p build
	$(SUDO) $(BIN)/python -m tests.debian
	$(BIN)/python -m pytest tests/vm/test_machine_start.py tests/vm/test_takeover.py -m vm $(ARGS)

# On this tree, or DEB: a file, or the name of a package of SUITE. As many machines run at a time as there
# are processors, so each has one. PROVIDER=vagrant has one machine for all tests: its snapshots are slow.
TARGET = vm://$(SUITE)?provider=$(PROVIDER)&flavour=mta&$(if $(filter vagrant,$(PROVIDER)),fresh=no,cpus=1)
vm-test: vm-setup ## the spec in machines of SUITE, on this tree or DEB
	@exec tools/with-build '$(DEB)' $(SUITE) $(RUN) --target '$(TARGET)' --implementation {} $(if $(PAGE),--page $(PAGE)) $(ARGS)
vm-services: vm-setup ## real services in subhosts, in a machine of SUITE
	@exec tools/with-build '$(DEB)' $(SUITE) env DEB={} SUITE=$(SUITE) $(BIN)/python -m pytest tests/vm/test_services.py -m vm $(ARGS)
vm-selftest: vm-setup ## the harness' own tests on real machines, some minutes
	@$(call install,autopkgtest)
	@$(BIN)/python -m pytest tests/vm -m vm --ignore tests/vm/test_services.py $(ARGS)
box: vm-setup ## an image as a box for Vagrant, in dist/
	@$(BIN)/python -m vm box $(SUITE)
bench-vm: vm-setup ## the figures of docs/vm.md
	@$(BIN)/python -m bench.vm $(ARGS)

clean: ## remove all that was made here
	@rm -rf --one-file-system $(MADE) 2> /dev/null || {
	  echo "some of it is root's: $(SUDO) rm -rf $(MADE)"
	  $(SUDO) rm -rf --one-file-system $(MADE)
	}

# Targets for people: `make help` lists them. As a user, only what is shown with sudo runs as root.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
ifneq ($(word 2,$(CURDIR)),)
$(error the path of this folder has a blank, which the first line of a script cannot: move it)
endif
# /tmp may be mounted noexec, and tests run scripts of their own.
export TMPDIR := $(or $(TMPDIR),$(if $(findstring noexec,$(shell findmnt -no OPTIONS -T /tmp)),/var/tmp,/tmp))
SUDO := $(if $(filter 0,$(shell id -u)),,sudo$(if $(filter-out /tmp,$(TMPDIR)), env TMPDIR=$(TMPDIR)))
PYTHON ?= python3
BIN = .venv/bin
SUITE ?= trixie
PROVIDER ?= qemu
WORKERS ?= auto
MADE = .venv build dist .cache *.egg-info .*_cache overlay_boot/reaper overlay_boot/helper $(wildcard */__pycache__ */*/__pycache__)

install = SUDO="$(SUDO)" tools/setup packages $(1)

# The spec and its reports in build/spec. Where make is ended by a signal, so is the run.
RUN = setpriv --pdeathsig TERM $(BIN)/python -m spec run --reports build/spec -n $(WORKERS)

.PHONY: help setup demo lint test-setup test spec mutants torture lives fuzz conformance man bench stage deb deb-check vm-setup vm-test vm-services vm-selftest bench-vm box clean

help: ## this list
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: .venv/ready ## Debian's packages, and .venv with the commands

.venv/ready: Makefile tools/setup pyproject.toml setup.py $(wildcard overlay_boot/*.[ch] overlay_boot/*.py bin/*)
	@$(call install,build)
	SUDO="$(SUDO)" tools/setup venv $(PYTHON)
	touch $@

demo: setup ## boot two real subhosts, enter them, stop them
	@$(call install,demo)
	SUDO="$(SUDO)" examples/demo

lint: setup ## ruff, mypy and gcc's analyzer
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	for name in reaper helper; do
	    gcc -std=c11 -O2 -Wall -Wextra -Werror -fanalyzer -c "overlay_boot/$$name.c" -o /dev/null
	done

test-setup: setup
	@$(call install,test)

test: lint test-setup ## lint, unit tests, boots, and the spec on this machine
	@$(SUDO) $(BIN)/python -m pytest -p no:cacheprovider tests
	$(BIN)/python -m spec check
	$(MAKE) --no-print-directory spec

spec: test-setup ## the spec on this machine; ARGS="-k vlan" for a part
	@$(SUDO) $(RUN) --implementation $(BIN) --allow-preconditions $(ARGS)

# ARGS="-k share" for some of them.
mutants: test-setup vm-setup ## does the spec notice deliberate faults?
	@$(SUDO) $(BIN)/python -m tests.mutants $(ARGS)

# ARGS="--points 0" for all that there are, ARGS="--case ..." for one as it is printed.
torture: test-setup ## each system call of a boot and an end, killed or failed
	@$(SUDO) $(BIN)/python -m tests.torture $(or $(ARGS),--page docs/reliability.md)

# ARGS="--only lives --steps 200" or ARGS="--part 0.1" for less of it.
lives: test-setup ## random lives of subhosts, and races, half an hour
	@$(SUDO) $(BIN)/python -m tests.lives $(or $(ARGS),--page docs/reliability.md)

# ARGS="--only record --runs 1000000" for one parser.
fuzz: test-setup ## files that anybody may have made up, a million of them
	@$(BIN)/pip install --quiet atheris
	$(BIN)/python -m tests.fuzz $(or $(ARGS),--page docs/reliability.md)

conformance: setup ## docs/conformance.md of the results in build/spec
	@$(BIN)/python -m spec conformance $(filter-out %-part.json,$(sort $(wildcard build/spec/*.json))) > docs/conformance.new
	mv docs/conformance.new docs/conformance.md

man: $(wildcard spec/*.8.adoc) ## the man pages as roff and HTML, in build/man
	@$(call install,man)
	asciidoctor -w -b manpage -D build/man $^
	asciidoctor -w -b html5 -a webfonts! -D build/man/html $^

# ARGS="--rounds 3 --many 20" is quicker.
bench: setup ## beside Debian's version and other containers
	@$(SUDO) $(BIN)/python -m bench $(ARGS)

stage: setup ## build/stage, for: python -m vm up --install build/stage
	@tools/lay build/stage

deb: ## the Debian package, in dist/, of the files that git knows
	@$(call install,deb)
	rm -rf build/deb
	mkdir -p build/deb/source dist
	git ls-files -z | xargs -0 cp -a --parents -t build/deb/source
	cd build/deb/source
	dpkg-buildpackage -b -us -uc > ../log 2>&1 || { tail -30 ../log; exit 1; }
	cd ../../..
	mv build/deb/*.deb dist/
	ls dist/*.deb

# In a chroot of sid; then at work in disposable machines.
deb-check: vm-setup ## lintian, blhc, piuparts, machine start, takeover
	@mkdir -p build
	$(SUDO) $(BIN)/python -m tests.debian
	$(BIN)/python -m pytest tests/vm/test_machine_start.py tests/vm/test_takeover.py -m vm $(ARGS)

vm-setup: setup
	@$(call install,vm $(filter vagrant,$(PROVIDER)))

# What is installed in machines: this tree or DEB, a file or the name of a package of SUITE.
define what
what='$(DEB)'
if [ -z "$$what" ]; then
  what=$$(mktemp -d build/stage.XXXXXX)
  trap 'rm -rf "$$what"' EXIT
  tools/lay "$$what"
elif [ ! -e "$$what" ]; then
  what=$$($(BIN)/python -m vm fetch "$$what" $(SUITE))
fi
endef

# PROVIDER=vagrant has one machine for all tests, since its snapshots are slow.
TARGET = vm://$(SUITE)?provider=$(PROVIDER)&flavour=mta$(if $(filter vagrant,$(PROVIDER)),&fresh=no)
vm-test: vm-setup ## the spec in machines of SUITE, on this tree or DEB
	@$(what)
	$(RUN) --target '$(TARGET)' --implementation "$$what" $(if $(PAGE),--page $(PAGE)) $(ARGS)

vm-services: vm-setup ## real services in subhosts, in a machine of SUITE
	@$(what)
	DEB="$$what" SUITE=$(SUITE) $(BIN)/python -m pytest tests/vm/test_services.py -m vm $(ARGS)

vm-selftest: vm-setup ## the harness' own tests on real machines, some minutes
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

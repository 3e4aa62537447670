# Targets for people. Everything installed by hand elsewhere is installed here by `make setup`.
# As a user: only the commands shown with sudo run as root.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
PYTHON ?= python3
PACKAGES = asciidoctor bridge-utils busybox-static e2fsprogs fdisk gcc ifupdown iproute2 iputils-ping \
	libc6-dev mmdebstrap musl-tools openssh-client procps python3-venv util-linux
BIN = .venv/bin
VM_PACKAGES = cpio debian-archive-keyring lz4 mmdebstrap openssh-client qemu-system-x86 qemu-utils \
	uidmap zstd
VAGRANT_PACKAGES = libvirt-clients libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-system \
	vagrant vagrant-libvirt
SUITE ?= trixie
# As many as there are processors, as far as memory goes: 1.5 GiB for each.
WORKERS ?= $(shell awk -v n=$$(nproc) '/^MemAvailable/ {m = int($$2 / 1572864); print m < 1 ? 1 : m < n ? m : n}' /proc/meminfo)
PROVIDER ?= qemu
DEB_PACKAGES = asciidoctor debhelper dh-python dpkg-dev musl-dev pybuild-plugin-pyproject python3-all \
	python3-jsonschema python3-pyroute2 python3-pytest python3-pytest-xdist python3-setuptools

# $(call install,PACKAGES): those of them that are missing.
define install
missing=$$(for p in $(1); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done)
if [ -n "$$missing" ]; then
  echo "installing Debian packages$(if $(SUDO), with sudo,):" $$missing
  $(SUDO) apt-get update -q
  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends $$missing
fi
endef

.PHONY: help setup demo lint test spec mutants conformance man bench clean stage deb deb-check vm-setup vm-test vm-selftest bench-vm box

help:
	@echo "make demo | setup | lint | test | spec | mutants | conformance | man | bench | deb | deb-check | stage |"
	echo "     vm-test | vm-selftest | bench-vm | box | clean"

# The packages of Debian that are missing, then a virtual environment with the commands in .venv/bin.
setup: .venv/ready

.venv/ready: Makefile pyproject.toml setup.py overlay_boot/reaper.c $(wildcard overlay_boot/*.py bin/*)
	@$(call install,$(PACKAGES))
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

# Unit tests, boots, and the whole spec on this machine.
test: lint
	@$(SUDO) $(BIN)/python -m pytest -p no:cacheprovider tests
	$(BIN)/python -m spec check
	$(MAKE) --no-print-directory spec

# $(call turn,RESULTS.json): wait for another run that makes the same results, and hold them.
define turn
mkdir -p $(dir $(1))
exec 9> $(1:.json=.lock)
flock -n 9 || { echo "waiting for another run that makes $(1)"; flock 9; }
endef

# $(call run_spec,RESULTS.json,OPTIONS,SUDO): the spec and its reports, of this run or none. Where
# make is ended by a signal, so is the run.
define run_spec
rm -f $(1) $(addprefix $(basename $(1)).,html xml tap)
status=0
$(3) setpriv --pdeathsig TERM $(BIN)/python -m spec run $(2) --results $(1) \
  $(if $(filter-out 1,$(WORKERS)),-n $(WORKERS)) $(ARGS) || status=$$?
[ ! -e $(1) ] || $(BIN)/python -m spec report $(1) --html $(1:.json=.html) --junit $(1:.json=.xml) --tap $(1:.json=.tap)
exit $$status
endef

# A part of the tests must not pass for all of them.
PART = $(if $(filter -k% --,$(ARGS)),-part)

# The spec on this machine, as root, in name spaces of its own; reports in build/spec.
# ARGS="-k vlan" and the like: see python -m spec run --help.
spec: setup
	@$(call turn,build/spec/here$(PART).json)
	$(call run_spec,build/spec/here$(PART).json,--implementation $(BIN) --allow-preconditions,$(SUDO))

# Has the spec teeth? Deliberate faults in copies of the implementation; ARGS="-k share" for some.
mutants: vm-setup
	@$(SUDO) $(BIN)/python -m tests.mutants $(ARGS)

# docs/conformance.md anew, of the results that are in build/spec.
conformance: setup
	@$(BIN)/python -m spec conformance $(filter-out %-part.json,$(sort $(wildcard build/spec/*.json))) > docs/conformance.new
	mv docs/conformance.new docs/conformance.md

# The man pages as roff and HTML, in build/man.
man: $(wildcard spec/*.8.adoc)
	@$(call install,asciidoctor)
	asciidoctor -w -b manpage -D build/man $^
	asciidoctor -w -b html5 -a webfonts! -D build/man/html $^

# Side by side with Debian's version and other containers; ARGS="--rounds 3 --many 20" is quicker.
bench: setup
	@$(SUDO) $(BIN)/python -m bench $(ARGS)

# $(call stage,FOLDER): the implementation as it lies in a Debian machine.
define stage
mkdir -p build
rm -rf $(1)
flock build/pip.lock $(BIN)/pip install --quiet --no-deps --no-compile \
  --target $(1)/usr/lib/python3/dist-packages .
mv $(1)/usr/lib/python3/dist-packages/bin $(1)/usr/bin
sed -i '1s|.*|#!/usr/bin/python3|' $(1)/usr/bin/*
endef

# What is put into a disposable machine: python -m vm up --install build/stage
stage: setup
	@$(call stage,build/stage)

# The Debian package, in dist/, of the files that git knows.
deb:
	@$(call install,$(DEB_PACKAGES))
	rm -rf build/deb
	mkdir -p build/deb/source dist
	git ls-files -z | xargs -0 cp -a --parents -t build/deb/source
	cd build/deb/source
	dpkg-buildpackage -b -us -uc > ../log 2>&1 || { tail -30 ../log; exit 1; }
	cd ../../..
	mv build/deb/*.deb dist/
	ls dist/*.deb

# What Debian's own tools say of the packages, built in a chroot of sid; then the packages at work in
# disposable machines: at machine start, and taking over from Debian's.
deb-check: vm-setup
	@mkdir -p build
	$(SUDO) $(BIN)/python -m tests.debian
	$(BIN)/python -m pytest tests/vm/test_machine_start.py tests/vm/test_takeover.py -m vm $(ARGS)

vm-setup: setup
	@$(call install,$(VM_PACKAGES) $(if $(filter vagrant,$(PROVIDER)),$(VAGRANT_PACKAGES)))

# The spec in disposable machines: on this working tree, or on DEB, a file or a package of SUITE.
# PROVIDER=vagrant goes through Vagrant, with one machine for all tests, since its snapshots are
# slow; ARGS are handed on to `python -m spec run`.
PAGE ?= $(if $(filter-out overlay-boot-python%,$(notdir $(DEB))),1.6,ours)
VIA = $(if $(filter vagrant,$(PROVIDER)),-vagrant)
RESULTS = build/spec/$(SUITE)$(if $(DEB),-$(firstword $(subst _, ,$(notdir $(DEB)))))$(VIA)$(PART).json
STAGE = $(RESULTS:build/spec/%.json=build/stage.%)
TARGET = vm://$(SUITE)?provider=$(PROVIDER)&flavour=mta$(if $(VIA),&fresh=no)
vm-test: WORKERS := $(if $(VIA),1,$(WORKERS))
vm-test: vm-setup
	@$(call turn,$(RESULTS))
	what='$(or $(DEB),$(STAGE))'
	$(if $(DEB),,$(call stage,$(STAGE)))
	[ -e "$$what" ] || what=$$($(BIN)/python -m vm fetch "$$what" $(SUITE))
	$(call run_spec,$(RESULTS),--target '$(TARGET)' --implementation "$$what" --page $(PAGE))

# The harness' own tests on real machines, some minutes.
vm-selftest: vm-setup
	@$(BIN)/python -m pytest tests/vm -m vm $(ARGS)

# An image as a box for Vagrant, in dist/.
box: vm-setup
	@$(BIN)/python -m vm box $(SUITE)

bench-vm: vm-setup
	@$(BIN)/python -m bench.vm $(ARGS)

clean:
	rm -rf .venv build dist .cache *.egg-info .*_cache overlay_boot/reaper

"""QEMU as a provider: the image, the accelerator, and the state after a boot, kept beside the image."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

from vm import folders, image, recipe
from vm.errors import HostError, MachineError, VmError
from vm.image import Image
from vm.machine import Machine
from vm.options import CPUS, INITS, Provider, Wanted
from vm.processes import Say
from vm.qemu import Frozen, QemuMachine
from vm.shape import PROGRAM, Shape

#: What tests are likely to use first, loaded before a booted state is kept: under emulation it is
#: what takes long in a fresh machine.
WARM = (
    "systemctl is-system-running --wait || :",  # all is started, or has failed
    "modprobe -a overlay veth bridge 8021q dummy macvlan loop",
    "python3 -c 'import pyroute2, ctypes, json, subprocess'",
    "ip link; ps -e; mount; unshare -mnp --fork true; nsenter -t 1 -m true; ifquery --list",
    "sync",
)
#: Why a machine can fail to start that has nothing to do with KVM or with a kept state.
SHORTAGE = r"(?i)no space left|cannot allocate|not done after"


class Qemu(Provider):
    """Machines in QEMU processes of this user, restored from the state after a boot."""

    can = frozenset({"init", "cpus", "network", "cold", "detached"})

    def up(self, wanted: Wanted, say: Say) -> Machine:
        """See Provider.up."""
        if not shutil.which(PROGRAM):
            raise HostError("QEMU is missing: apt-get install qemu-system-x86 qemu-utils")
        folders.sweep()
        source = image.build(wanted.suite, wanted.flavour, say=say)
        made = shape(source, accelerator(source, say=say), wanted.init, int(wanted.cpus))
        if not wanted.cold:
            try:
                return _restored(source, made, wanted, say)
            except (VmError, OSError) as error:
                say(f"machine: no state can be kept or restored, so it boots: {error}")
        made = replace(made, network=wanted.network)
        machine = _boot(source, made, wanted.suite, detached=wanted.detached)
        if not wanted.cold:
            machine.can = frozenset()
        return machine

    def prepare(self, wanted: Wanted, say: Say) -> None:
        """See Provider.prepare."""
        self.up(wanted, say).close()


def _restored(source: Image, made: Shape, wanted: Wanted, say: Say) -> Machine:
    """A machine in the booted state. One that does not restore is made anew, unless in use."""

    def start(state: Frozen) -> Machine:
        return state.start(
            wanted.suite, private=False, detached=wanted.detached, network=wanted.network
        )

    state = booted(source, made, say=say)
    try:
        return start(state)
    except (VmError, OSError, ValueError) as error:
        if folders.in_use(source.lock) or re.search(SHORTAGE, str(error)):
            raise
        say(f"machine: the state kept after a boot is broken, so it is made anew: {error}")
        folders.remove(state.folder)
    return start(booted(source, made, say=say))


def shape(source: Image, accelerator: str, init: str, cpus: int = 2) -> Shape:
    """What machines of an image are made of here, with no more processors than there are."""
    cpus = min(cpus, os.cpu_count() or 1)
    flavour = source.folder.name.split("-")[1]  # as Recipe.stem has it: the image may be damaged
    memory = recipe.MEMORY.get(flavour, 512)
    return Shape(str(source.kernel), str(source.initrd), accelerator, memory, cpus, init)


def shapes(source: Image) -> Iterator[Shape]:
    """All that a state of an image can have been kept in here."""
    for accelerator, init, cpus in product(("kvm", "tcg"), INITS, CPUS):
        yield shape(source, accelerator, init, int(cpus))


def kept(source: Image, made: Shape) -> Path:
    """Where the state after a boot in that shape is kept."""
    warm = hashlib.sha256(repr(WARM).encode()).hexdigest()[:4]
    return source.folder / f"booted-{made.key}-{warm}"


def _boot(source: Image, made: Shape, name: str, *, detached: bool = False) -> QemuMachine:
    """A cold boot. Raises HostError where it fails for an image that is damaged."""
    try:
        return QemuMachine.boot(source, made, name, detached=detached)
    except (MachineError, HostError):
        source.check(thoroughly=True)
        raise


def booted(source: Image, made: Shape, *, say: Say = print) -> Frozen:
    """The state after a boot of that image in that shape, warmed up: kept beside the image."""
    target = kept(source, made)
    busy = lambda: say("machine: waiting for another run that boots it to keep the state")
    with folders.Lock(source.folder / "booting", wait=True, busy=busy):
        if target.exists():
            return Frozen(target)
        say(f"machine: booting ({made.accelerator}, {made.init}) to keep the state after it")
        with folders.workspace("booted") as work:
            try:
                _keep(source, made, work / "state")
            except MachineError as error:  # under TCG a kernel panics, once in some 100 boots
                say(f"machine: boots once more: {error}")
                folders.remove(work / "state")
                _keep(source, made, work / "state")
            (work / "state").rename(target)
    return Frozen(target)


def _keep(source: Image, made: Shape, state: Path) -> None:
    """Boot, and freeze what comes of it into a new folder."""
    with _boot(source, made, "boot") as machine:
        for command in WARM:
            machine.need(command, timeout=180)
        check_clock(machine)
        machine.freeze(state, state / "ram")


def check_clock(machine: Machine, seconds: float = 2.0) -> None:
    """Raise MachineError where a machine's clock is not as fast as this one's. A kernel calibrates its
    clock when it starts; under TCG on a busy machine the result is sometimes wrong by a multiple, and
    every wait in the machine would be too short or too long."""
    times = []
    for pause in (seconds, 0):
        before = time.monotonic()
        guest = float(machine.need("cut -d' ' -f1 /proc/uptime").out)
        times.append((before, guest, time.monotonic()))
        time.sleep(pause)
    (begun, first, answered), (asked, second, ended) = times
    passed, least, most = second - first, asked - answered, ended - begun
    if not 0.9 * least <= passed <= 1.1 * most:
        raise MachineError(
            f"{machine.name}: its clock went {passed:.1f} s in {least:.1f} to {most:.1f} s"
        )


def accelerator(source: Image, *, say: Say = print) -> str:
    """kvm when a guest really boots with it, else tcg. VM_ACCEL says it without trying.

    /dev/kvm alone proves little: nested or paravirtual ones exist that cannot run a stock kernel.
    So a boot is tried, once per start of this machine.
    """
    if named := os.environ.get("VM_ACCEL"):
        say(f"machine: {named}, as VM_ACCEL says")
        return named
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    verdict = folders.run() / f"accelerator-{boot}"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        there = Path("/dev/kvm").exists()
        why = f"/dev/kvm {'may not be used by this user' if there else 'is not there'}"
    elif verdict.exists():
        why = verdict.read_text()
    else:
        made = shape(source, "kvm", "small", 1)
        why, shortage = "", False
        try:
            QemuMachine.boot(source, made, "probe", timeout=10).close()
        except MachineError as error:
            first, *said = (line.strip() for line in str(error).splitlines())
            words = [line for line in said if line.startswith(("KVM", PROGRAM))]
            why = (words or [first])[0]
            shortage = bool(re.search(SHORTAGE, str(error)))
        if not shortage:
            partial = verdict.with_name(f"{verdict.name}.{os.getpid()}")
            partial.write_text(why)
            partial.rename(verdict)
    say(f"machine: no KVM: {why}: emulating (TCG)" if why else "machine: KVM works")
    return "tcg" if why else "kvm"

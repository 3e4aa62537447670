"""From a suite's name to a running machine: the image, the accelerator, the booted state."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from vm import folders, image, recipe
from vm.image import Image
from vm.machine import CommandFailed, Machine, MachineError
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
PROVIDERS = ("qemu", "vagrant")
INITS = ("systemd", "small")


def up(
    suite: str,
    *,
    provider: str = "qemu",
    flavour: str = "plain",
    init: str = "systemd",
    network: bool = False,
    detached: bool = False,
    cold: bool = False,
    say: Say = print,
) -> Machine:
    """A running machine of a suite that answers commands; its image is built when missing.

    `init` is "systemd" or "small" (a shell script: a faster boot, no services but sshd). With
    `network` the guest reaches what this machine reaches. A `detached` machine outlives this
    process. The state after a boot is kept beside the image and restored from then on; `cold`
    boots anyway. `say` takes one line at a time on what is being done. Raises MachineError.
    """
    if provider == "vagrant":
        from vm.vagrant import VagrantMachine

        return VagrantMachine.up(suite, flavour=flavour, say=say)
    for kind, given, known in (("provider", provider, PROVIDERS), ("init", init, INITS)):
        if given not in known:
            raise MachineError(f"{kind} {given!r} is not known: one of {', '.join(known)}")
    recipe.known(suite, flavour)
    if not shutil.which(PROGRAM):
        raise MachineError("QEMU is missing: apt-get install qemu-system-x86 qemu-utils")
    folders.sweep()
    source = image.build(suite, flavour, say=say)
    made = shape(source, accelerator(source, say=say), init)
    if not cold:
        try:
            return _restored(source, made, suite, detached, network, say)
        except (MachineError, OSError) as error:
            say(f"machine: no state can be kept or restored, so it boots: {error}")
    machine = QemuMachine.boot(source, replace(made, network=network), suite, detached=detached)
    machine.can_clone = cold
    return machine


def _restored(
    source: Image, made: Shape, suite: str, detached: bool, network: bool, say: Say
) -> Machine:
    """A machine in the booted state. One that does not restore is made anew, unless in use."""
    state = booted(source, made, say=say)
    try:
        return state.start(suite, private=False, detached=detached, network=network)
    except (MachineError, OSError, ValueError) as error:
        if folders.in_use(source.lock) or re.search(SHORTAGE, str(error)):
            raise
        say(f"machine: the state kept after a boot is broken, so it is made anew: {error}")
        folders.remove(state.folder)
    state = booted(source, made, say=say)
    return state.start(suite, private=False, detached=detached, network=network)


def from_url(url: str, *, say: Say = print) -> Machine:
    """`up` by one word: vm://SUITE, or vm://SUITE?provider=vagrant&flavour=mta&init=small."""
    suite, options = _parse(url)
    return up(suite, **options, say=say)


def prepare(url: str, *, say: Say = print) -> None:
    """Make what machines of that URL start from, where it is missing: `from_url` is quick then."""
    suite, options = _parse(url)
    if options["provider"] != "vagrant":
        up(suite, **options, say=say).close()
    elif "VAGRANT_BOX" not in os.environ:
        image.build(suite, options["flavour"], say=say)


def _parse(url: str) -> tuple[str, dict[str, Any]]:
    """The suite and the options for `up`."""
    parts = urlsplit(url)
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    options = {"provider": "qemu", "flavour": "plain", "init": "systemd"}
    if parts.scheme != "vm" or not given.keys() <= options.keys():
        raise MachineError(f"{url}: a machine is vm://SUITE[?provider=...&flavour=...&init=...]")
    return parts.netloc, options | given


def install(machine: Machine, what: Path) -> None:
    """Put software into a machine: a .deb, or a folder that is laid over its root.

    The machine need not reach any network, so what a package depends on has to be in the image.
    """
    if what.is_dir():
        machine.copy_in(what, "/")
    elif what.suffix == ".deb":
        file = f"/root/{what.name}"
        machine.copy_in(what, file)
        _must(machine, f"dpkg --install {shlex.quote(file)} && rm {shlex.quote(file)}", 300)
    else:
        raise MachineError(f"{what}: neither a .deb nor a folder to lay over the machine's root")


def _must(machine: Machine, command: str, timeout: float) -> None:
    """A command without which the machine is of no use. Raises MachineError."""
    try:
        machine.succeed(command, timeout=timeout)
    except CommandFailed as error:
        raise MachineError(f"{machine.name}: {error}") from error


def shape(source: Image, accelerator: str, init: str) -> Shape:
    """What machines of an image are made of here."""
    cpus = min(2, os.cpu_count() or 1)
    return Shape(str(source.kernel), str(source.initrd), accelerator, cpus=cpus, init=init)


def kept(source: Image, made: Shape) -> Path:
    """Where the state after a boot in that shape is kept."""
    warm = hashlib.sha256(repr(WARM).encode()).hexdigest()[:4]
    return source.folder / f"booted-{made.key}-{warm}"


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
                machine = QemuMachine.boot(source, made, "boot")
            except MachineError as error:  # under TCG a kernel panics, once in some 100 boots
                say(f"machine: boots once more: {error}")
                machine = QemuMachine.boot(source, made, "boot")
            with machine:
                for command in WARM:
                    _must(machine, command, 180)
                machine.freeze(work / "state", work / "state/ram")
            (work / "state").rename(target)
    return Frozen(target)


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
        made = replace(shape(source, "kvm", "small"), cpus=1)
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

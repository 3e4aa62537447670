"""From a suite's name to a running machine: the image, the accelerator, the booted state."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from vm import folders, image
from vm.image import Image, Say
from vm.machine import CommandFailed, CommandTimeout, Machine, MachineError
from vm.qemu import Frozen, QemuMachine
from vm.shape import PROGRAM, Shape

#: What tests are likely to use first, loaded before a booted state is kept: under emulation it is
#: what takes long in a fresh machine.
WARM = (
    "systemctl is-system-running --wait || :",  # all is started, or has failed
    "modprobe -a overlay veth bridge 8021q dummy macvlan loop",
    "python3 -c 'import pyroute2, ctypes, json, subprocess'",
    "for command in ip ps mount unshare nsenter ssh ifup; do command -v $command; done >/dev/null",
    "ip link; ps -e; mount; unshare -mnp --fork true; nsenter -t 1 -m true; ifquery --list",
    "sync",
)
PROVIDERS = ("qemu", "vagrant")


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
    if provider != "qemu":
        raise MachineError(f"provider {provider!r} is not known: one of {', '.join(PROVIDERS)}")
    if not shutil.which(PROGRAM):
        raise MachineError("QEMU is missing: apt-get install qemu-system-x86 qemu-utils")
    folders.sweep()
    source = image.build(suite, flavour, say=say)
    shape = Shape(
        str(source.kernel),
        str(source.initrd),
        accelerator(source, say=say),
        cpus=min(2, os.cpu_count() or 1),
        init=init,
        network=network,
    )
    if cold:
        return QemuMachine.boot(source, shape, suite, detached=detached)
    try:
        state = booted(source, shape, say=say)
        return state.start(suite, private=False, detached=detached, network=network)
    except MachineError as error:
        say(f"machine: no state can be kept or restored, so it boots: {error}")
    machine = QemuMachine.boot(source, shape, suite, detached=detached)
    machine.can_clone = False
    return machine


def from_url(url: str, *, say: Say = print) -> Machine:
    """`up` by one word: vm://SUITE, or vm://SUITE?provider=vagrant&flavour=mta&init=small."""
    suite, options = _parse(url)
    return up(suite, **options, say=say)


def prepare(url: str, *, say: Say = print) -> None:
    """Make what machines of that URL start from, where it is missing: `from_url` is quick then."""
    suite, options = _parse(url)
    if options["provider"] == "qemu":
        up(suite, **options, say=say).close()
    else:
        image.build(suite, options["flavour"], say=say)


def _parse(url: str) -> tuple[str, dict[str, Any]]:
    """The suite and the options for `up`."""
    parts = urlsplit(url)
    given = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
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
    except (CommandFailed, CommandTimeout) as error:
        raise MachineError(f"{machine.name}: {error}") from error


def booted(source: Image, shape: Shape, *, say: Say = print) -> Frozen:
    """The state after a boot of that image in that shape, warmed up: kept beside the image."""
    warm = hashlib.sha256(repr(WARM).encode()).hexdigest()[:4]
    target = source.folder / f"booted-{shape.key}-{warm}"
    turn = folders.Lock(source.folder / "booting", wait=True)
    try:
        if not target.exists():
            say(f"machine: booting ({shape.accelerator}, {shape.init}) to keep the state after it")
            work, lock = folders.claim(folders.private(folders.cache() / "building"), "booted")
            try:
                try:
                    machine = QemuMachine.boot(source, shape, "boot")
                except (
                    MachineError
                ) as error:  # under TCG a kernel may panic, once in some 100 boots
                    say(f"machine: boots once more: {error}")
                    machine = QemuMachine.boot(source, shape, "boot")
                with machine:
                    for command in WARM:
                        _must(machine, command, 180)
                    state = work / "state"
                    machine.freeze(state, state / "ram")
                state.rename(target)
            finally:
                folders.remove(work)
                lock.release()
    finally:
        turn.release()
    return Frozen(target)


def accelerator(source: Image, *, say: Say = print) -> str:
    """kvm when a guest really boots with it, else tcg. VM_ACCEL says it without trying.

    /dev/kvm alone proves little: nested or paravirtual ones exist that cannot run a stock kernel.
    So a boot is tried, once per start of this machine.
    """
    if named := os.environ.get("VM_ACCEL"):
        return named
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        why = "may not be used by this user" if Path("/dev/kvm").exists() else "is not there"
        say(f"machine: /dev/kvm {why}: emulating (TCG)")
        return "tcg"
    start = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    verdict = folders.run() / f"accelerator-{start}"
    if not verdict.exists():
        shape = Shape(str(source.kernel), str(source.initrd), "kvm", cpus=1, init="small")
        try:
            QemuMachine.boot(source, shape, "probe", timeout=10).close()
            found = "kvm"
        except MachineError:
            found = "tcg"
        partial = verdict.with_name(f"{verdict.name}.{os.getpid()}")
        partial.write_text(found)
        partial.rename(verdict)
    found = verdict.read_text()
    say(f"machine: KVM {'works' if found == 'kvm' else 'does not work here: emulating (TCG)'}")
    return found


def end_in_order() -> None:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does, so that its machines end too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)

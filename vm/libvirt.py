"""libvirt for the Vagrant provider: the system's own when it runs, else one for as long as needed."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from pathlib import Path

from vm import folders, processes
from vm.errors import HostError
from vm.processes import Say

URI = "qemu:///system"
TURN = Path("/run/lock/disposable-vm.libvirt")
KVM = Path("/dev/kvm")
#: Start the rest of the words with $0 in the place of /dev/kvm.
WITHOUT_KVM = f'mount --bind "$0" {KVM} && exec "$@"'


def virsh(*words: str, limit: float = 120) -> subprocess.CompletedProcess[str]:
    """Run virsh on the system's libvirt. Raises HostError past the limit."""
    command = ["virsh", "--quiet", "--connect", URI, *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        raise HostError(f"libvirt: no answer to {' '.join(words)} in {limit:g} s") from None


class Libvirt:
    """Makes sure that libvirt answers; `close` ends what this object started.

    Runs that need one of their own take turns, since there is one place for it on a machine.
    """

    def __init__(self, folder: Path, *, say: Say = print) -> None:
        """`folder` takes the daemons' logs and process ids, for whoever clears up after a crash.

        Raises HostError.
        """
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._turn: folders.Lock | None = None
        if not shutil.which("virsh"):
            raise HostError("libvirt is missing: make vm-setup PROVIDER=vagrant")
        if os.geteuid() != 0:
            if virsh("version").returncode:
                raise HostError(f"libvirt does not answer at {URI}: start libvirtd, or be root")
            return
        busy = lambda: say("libvirt: waiting for another run, which has started it")
        self._turn = folders.Lock(TURN, wait=True, busy=busy)
        try:
            if virsh("version").returncode:
                self._start(folder)
            else:  # the system's
                self._turn.release()
        except BaseException:
            self.close()
            raise

    def _start(self, folder: Path) -> None:
        # What QEMU can do libvirt finds out as root, with KVM. Where the user that its machines run as
        # may not use that, it takes what it kept for outdated, half a minute at each definition.
        before: list[str | Path] = []
        if KVM.exists() and not KVM.stat().st_mode & 0o066:
            os.mknod(folder / "kvm", stat.S_IFCHR | 0o600, os.makedev(1, 3))  # null's
            before = ["unshare", "--mount", "--propagation", "slave"]
            before += ["sh", "-c", WITHOUT_KVM, folder / "kvm"]
        for name in ("virtlogd", "libvirtd"):
            with (folder / f"{name}.log").open("wb") as log, processes.uninterrupted():
                daemon = subprocess.Popen(
                    [*before, f"/usr/sbin/{name}"], stdout=log, stderr=log, start_new_session=True
                )  # a session of its own: Ctrl-C must not end it before its machines
                self._daemons.append(daemon)
                processes.record(folder / f"{name}.pid", daemon.pid)
        deadline = time.monotonic() + 20
        while virsh("version").returncode:
            if time.monotonic() > deadline:
                said = (folder / "libvirtd.log").read_text().splitlines()[-1:]
                raise HostError(f"libvirtd does not start: {' '.join(said)}")
            time.sleep(0.1)

    def close(self) -> None:
        """End the daemons that were started here."""
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons = []
        if self._turn:
            self._turn.release()

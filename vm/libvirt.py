"""libvirt for the Vagrant provider: the system's own when it runs, else one for as long as needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from vm import folders
from vm.machine import MachineError

URI = "qemu:///system"


def virsh(*words: str) -> subprocess.CompletedProcess[str]:
    """Run virsh on the system's libvirt."""
    command = ["virsh", "--quiet", "--connect", URI, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


class Libvirt:
    """Makes sure that libvirt answers; `close` ends what this object started.

    Runs that need one of their own take turns.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` takes the daemons' logs and process ids, for whoever clears up after a crash."""
        self._daemons: list[subprocess.Popen[bytes]] = []
        if not shutil.which("virsh"):
            raise MachineError("libvirt is missing: make vm-setup PROVIDER=vagrant")
        self._turn: folders.Lock | None = folders.Lock(folders.run() / ".libvirt", wait=True)
        if virsh("version").returncode == 0:  # the system's
            self.close()
            return
        if os.geteuid() != 0:
            raise MachineError(f"libvirt does not answer at {URI}: start libvirtd, or be root")
        try:
            for name in ("virtlogd", "libvirtd"):
                with (folder / f"{name}.log").open("wb") as log:
                    daemon = subprocess.Popen(
                        [f"/usr/sbin/{name}"], stdout=log, stderr=log, start_new_session=True
                    )  # a session of its own: Ctrl-C must not end it before its machines
                self._daemons.append(daemon)
                folders.record(folder / f"{name}.pid", daemon.pid)
            deadline = time.monotonic() + 20
            while virsh("version").returncode:
                if time.monotonic() > deadline:
                    said = (folder / "libvirtd.log").read_text().splitlines()[-1:]
                    raise MachineError(f"libvirtd does not start: {' '.join(said)}")
                time.sleep(0.1)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the daemons that were started here."""
        for daemon in reversed(self._daemons):
            daemon.terminate()
            daemon.wait()
        self._daemons = []
        if self._turn:
            self._turn.release()
            self._turn = None

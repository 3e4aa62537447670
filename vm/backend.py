"""A backend for testinfra: `--hosts=vm://trixie?flavour=mta` starts such a machine, with the options
of `vm.from_url`; `--hosts=vm://NAME` reaches one that runs already (see `python -m vm list`)."""

from __future__ import annotations

import atexit
from typing import Any

import testinfra.backend
from testinfra.backend.base import BaseBackend, CommandResult

from vm import cli, start
from vm.machine import Machine
from vm.qemu import QemuMachine
from vm.recipe import SUITES


class MachineBackend(BaseBackend):  # type: ignore[misc]
    """Runs testinfra's commands in a machine, each within 60 seconds."""

    NAME = "vm"

    def __init__(self, hostspec: str, *args: Any, machine: Machine | None = None, **kw: Any):
        self.hostspec = hostspec
        self._machine = machine
        super().__init__(hostspec, *args, **kw)

    @property
    def machine(self) -> Machine:
        """The machine, started when first used and ended with this process."""
        if self._machine is None:
            if self.hostspec.partition("?")[0] in SUITES:
                self._machine = start.from_url(f"vm://{self.hostspec}", say=cli.say)
                atexit.register(self._machine.close)
            else:
                attached = QemuMachine.attach(cli.pick(self.hostspec).folder)
                atexit.register(attached.disconnect)
                self._machine = attached
        return self._machine

    def run(self, command: str, *args: str, **_: Any) -> CommandResult:
        """See testinfra."""
        quoted = self.get_command(command, *args)
        result = self.machine.run(quoted)
        return self.result(result.status, self.encode(quoted), result.stdout, result.stderr)


_parse = testinfra.backend.parse_hostspec


def _parse_with_options(hostspec: str) -> Any:
    """testinfra's own, which drops the options of a backend that it does not know."""
    host, words = _parse(hostspec)
    return hostspec.removeprefix("vm://") if words.get("connection") == "vm" else host, words


def register() -> None:
    """Make `vm://` known to testinfra."""
    testinfra.backend.BACKENDS["vm"] = "vm.backend.MachineBackend"
    testinfra.backend.parse_hostspec = _parse_with_options


def host(machine: Machine) -> Any:
    """A testinfra host for a machine that is at hand."""
    from testinfra.host import Host

    return Host(MachineBackend(machine.name, machine=machine))

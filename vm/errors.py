"""All that can go wrong, as different verdicts: a caller reads from the class whose fault it is.

    VmError
      RequestError    what was asked for does not exist or does not fit: nothing was started
      HostError       the machine that runs the harness lacks something: room, a tool, a network
      MachineError    the disposable machine itself broke: no verdict on what ran in it
    CommandFailed     a command in a machine did not do what was asked of it (an AssertionError)
      CommandTimeout  it ran past its time limit and was killed; the machine still answers

The first line of each says what failed, on which path, and what to do; further lines, where there
are any, are the last words of QEMU, Vagrant or the guest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vm.machine import Result


class VmError(Exception):
    """Why there is no machine, or no result from one."""


class RequestError(VmError):
    """What was asked for does not exist or does not fit: an unknown suite, a file that is none."""

    @classmethod
    def unless_known(cls, kind: str, given: str, known: Iterable[str]) -> None:
        """Raise it where a name is none of those that there are, and list those."""
        if given not in known:
            raise cls(f"{kind} {given!r} is not known: take one of {', '.join(known)}")


class HostError(VmError):
    """This machine, the one the harness runs on, lacks something: room, a tool, a mirror, a right."""


class MachineError(VmError):
    """The disposable machine broke (it would not boot, died, hung)."""


class CommandFailed(AssertionError):
    """A command in the machine did not end as it had to. `result` holds what it did."""

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.result = result


class CommandTimeout(CommandFailed):
    """A command ran past its time limit and was killed; the machine itself still answers."""

"""Disposable Debian machines: boot one, freeze it, restore it as often as wanted, run commands.

    import vm

    with vm.up("trixie") as machine:                    # image built on first use, then cached
        vm.install(machine, Path("thing.deb"))          # or a folder, laid over the root
        assert machine.run("thing --version").out == "1.0"
        machine.snapshot("ready")                       # memory and disk; the machine runs on
        with vm.Pool(machine, "ready") as pool:         # restores the next one ahead
            with pool.take() as fresh:                  # its own machine for each test
                fresh.fail("thing --break")
                fresh.wait_until("test -e /run/thing", timeout=10)

`up(suite, provider="qemu", flavour="plain")` takes the options of `Wanted`, which knows them all;
`from_url("vm://trixie?provider=vagrant")` is the same in one word.
`Pool.take` works with both: where a provider cannot run several machines from one snapshot, the one
machine is put back instead.

`machine.Machine` is the whole interface. A machine that broke raises MachineError, a wish that cannot
be met RequestError, a shortage on this side HostError (all of them VmError); a command that did not
do what was asked raises CommandFailed (an AssertionError), one that took too long CommandTimeout.
"""

from vm.errors import (
    CommandFailed,
    CommandTimeout,
    HostError,
    MachineError,
    RequestError,
    VmError,
)
from vm.machine import Machine, Result
from vm.options import Wanted
from vm.pool import Pool
from vm.software import install, look
from vm.start import from_url, prepare, up

__all__ = [
    "CommandFailed",
    "CommandTimeout",
    "HostError",
    "Machine",
    "MachineError",
    "Pool",
    "RequestError",
    "Result",
    "VmError",
    "Wanted",
    "from_url",
    "install",
    "look",
    "prepare",
    "up",
]

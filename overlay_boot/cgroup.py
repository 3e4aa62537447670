"""A cgroup of the subhost's own, where there is cgroup v2 (overlay-boot(8), cgroup)."""

from __future__ import annotations

import errno
import os

from overlay_boot import lines_of
from overlay_boot.waiting import Deadline, Waiter

MOUNTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")  # the second where v1 is mounted as well
# What the kernel says of a cgroup or process that has gone, be it while its file is open, and of a
# threaded cgroup, whose processes are told of by the one above it (cgroups(7)).
NOTHING = (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EOPNOTSUPP)


def _of(pid: int | str) -> str:
    """The path of a process's cgroup in the hierarchy of v2; empty where there is none."""
    lines = lines_of(f"/proc/{pid}/cgroup")
    return next((line[3:] for line in lines if line.startswith("0::")), "")


def wanted(name: str) -> str:
    """Where the cgroup of the subhost of that name is to be: below the one that this process is
    in, so that the limits of a unit or of an administrator hold for it. Empty where it cannot be
    made, as there is no cgroup v2, or it is read-only."""
    own = _of("self")
    for mount in MOUNTS if own else ():
        folder = mount + own.rstrip("/")
        if os.access(f"{folder}/cgroup.procs", os.W_OK):
            return f"{folder}/overlay-{name}"
    return ""


def problem() -> str:
    """Why systemd cannot be pid 1 of a subhost on this machine; empty where it can."""
    if not os.path.exists(f"{MOUNTS[0]}/cgroup.controllers"):
        return (
            f"systemd in a subhost needs cgroup v2 alone on {MOUNTS[0]}, and this machine has v1 or "
            "none: start it with systemd.unified_cgroup_hierarchy=1, or use the default INIT"
        )
    if not wanted(""):
        return (
            f"systemd in a subhost needs a cgroup of its own, and {MOUNTS[0]}{_of('self')} cannot be "
            "written: mount it read-write, or use the default INIT"
        )
    return ""


def of_process(pid: int, outer: str) -> str:
    """Where a process is in the cgroup `outer`: below it where systemd is at work, which the kernel
    allows no process in the outer one itself."""
    try:
        own = _of(pid)
    except OSError:
        return outer  # it has ended
    for mount in MOUNTS:
        if f"{mount}{own}".startswith(f"{outer}/"):
            return mount + own
    return outer


def join(cgroup: str, pid: int) -> None:
    """Move a process into the cgroup."""
    with open(f"{cgroup}/cgroup.procs", "w") as file:
        file.write(str(pid))


def used(cgroup: str) -> dict[str, float | None]:
    """What the processes of the cgroup, and of those that were made in it, use: how many they are,
    their memory in bytes, of which a page that several share counts to each in part (Pss, proc(5)),
    and the processor time in seconds of all that there ever were. None for each where it has none."""
    processes = memory = 0
    for folder, _, _ in os.walk(cgroup):
        for pid in _lines(f"{folder}/cgroup.procs"):
            processes += 1
            sizes = dict(line.split(":") for line in _lines(f"/proc/{pid}/smaps_rollup")[1:])
            memory += int(sizes.get("Pss", "0").split()[0]) * 1024
    if not processes:
        return {"processes": None, "memory": None, "cpu": None}
    spent = dict(line.split() for line in _lines(f"{cgroup}/cpu.stat"))
    cpu = int(spent.get("usage_usec", 0)) / 1e6
    return {"processes": processes, "memory": memory, "cpu": cpu}


def _lines(path: str) -> list[str]:
    """The lines of a file of the kernel's; none where there is nothing that it could tell of."""
    try:
        return lines_of(path)[:-1]
    except OSError as error:
        if error.errno in NOTHING:
            return []
        raise


def remove(cgroup: str) -> None:
    """Remove the cgroup, if it is there, with those that were made in it. Processes that have just
    ended are in it for a moment still; raises OSError when there are others."""

    def fail(error: OSError) -> None:
        raise error  # or else os.walk() would find nothing, for ever

    deadline = Deadline(2)
    while os.path.isdir(cgroup):
        try:
            try:
                os.rmdir(cgroup)  # needs no descriptor, of which there may be none left
            except OSError:
                for folder, _, _ in os.walk(cgroup, topdown=False, onerror=fail):
                    os.rmdir(folder)
        except FileNotFoundError:
            pass
        except OSError:
            if deadline.passed:
                raise
            Waiter().wait(seconds=0.005)

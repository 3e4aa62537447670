"""overlay-share: a path of the main host into a subhost that runs already (overlay-share(8))."""

from __future__ import annotations

import os
import stat

from overlay_boot import ConfigError, NotRunning, OverlayBootError, explain, lines_of
from overlay_boot.linux import CLONE_NEWNS, detach, move_mount, open_tree, setns
from overlay_boot.records import Record
from overlay_boot.signals import SIGKILL
from overlay_boot.tree import Tree
from overlay_boot.waiting import Waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 10  # seconds


def share(record: Record, path: str) -> None:
    """Bind a folder or file onto the same path of the subhost, its submounts with it; a missing
    mount point is made. What is shared already stays so. Raises ConfigError for what cannot be
    shared."""
    path = _below_root(path)
    try:
        source = os.stat(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: name a folder or a file") from error
    mounts = open_tree(path)
    stale = _is_stale(record, path)

    def attach() -> None:
        if stale:
            detach(path)
        with Tree("/") as tree:
            target = tree.open(path, stat.S_ISDIR(source.st_mode))
            if not os.path.samestat(os.fstat(target), source):
                move_mount(mounts, target)

    _in_its_mounts(record, attach, f"cannot share {path} with {record.name}")


def unshare(record: Record, path: str) -> None:
    """Undo share, also of what the main host has replaced or removed since. Whoever uses it keeps
    what he has open."""
    path = _below_root(path)
    stale = _is_stale(record, path)
    source = os.stat(path) if os.path.exists(path) else None

    def remove() -> None:
        with Tree("/") as tree:
            there = source and tree.has(path) and os.fstat(tree.open(path))
        if not stale and not (source and there and os.path.samestat(there, source)):
            raise OverlayBootError("it is not shared")
        detach(path)

    _in_its_mounts(record, remove, f"cannot remove {path} from {record.name}")


def _below_root(path: str) -> str:
    path = os.path.abspath(path)
    if path.strip("/") == "":
        raise ConfigError(f"{path} is the whole root: name a path below it")
    return path


def _is_stale(record: Record, path: str) -> bool:
    """Whether the subhost has at path a mount of something that is not there any more: a file that
    an editor has replaced, or that was removed (proc(5), mountinfo)."""
    try:
        lines = lines_of(f"/proc/{record.pid}/mountinfo")[:-1]
    except OSError:
        return False  # it has ended, which is told by what comes next
    mounts = [line.split(" ")[3:5] for line in lines]
    shown = "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in path)
    return any(root.endswith("//deleted") and point == shown for root, point in mounts)


def _in_its_mounts(record: Record, do: Callable[[], None], what: str) -> None:
    """Do something in the subhost's mount namespace; raises OverlayBootError with what it was and
    why it failed. The process that does it is in no other namespace of the subhost's, so that
    nobody there can see it."""
    process = record.open_process()
    if process is None:
        raise NotRunning(f"{record.name} is not running")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            null = os.open("/dev/null", os.O_RDWR)
            for fd in (0, 1, 2):  # nobody is to wait for the end of these, if it comes to that
                os.dup2(null, fd)
            setns(process, CLONE_NEWNS)
            os.chdir("/")
            do()
            os.write(write, b"done")
        except BaseException as error:  # noqa: BLE001  a forked child returns to nobody
            os.write(write, os.fsencode(explain(error))[:4096])
        finally:
            os._exit(0)
    os.close(write)
    if not Waiter().wait(read, seconds=LIMIT):
        os.kill(child, SIGKILL)  # which may wait for an end of the subhost, and is not waited for
        raise OverlayBootError(f"{what}: its file systems did not answer for {LIMIT} s")
    said = os.fsdecode(os.read(read, 4096))
    os.waitpid(child, 0)
    if said != "done":
        raise OverlayBootError(f"{what}: {said or 'the process that did it was killed'}")

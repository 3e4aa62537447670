"""overlay-share: a path of the main host into a subhost that runs already (overlay-share(8))."""

from __future__ import annotations

import os
import stat

from overlay_boot import ConfigError, NotRunning, OverlayBootError, explain
from overlay_boot.linux import CLONE_NEWNS, detach, move_mount, open_tree, setns
from overlay_boot.records import Record
from overlay_boot.tree import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def share(record: Record, path: str) -> None:
    """Bind a folder or file onto the same path of the subhost, its submounts with it; a missing
    mount point is made. What is shared already stays so. Raises ConfigError for what cannot be
    shared."""
    path, source = _source(path)
    mounts = open_tree(path)

    def attach() -> None:
        with Tree("/") as tree:
            target = tree.open(path, stat.S_ISDIR(source.st_mode))
            if not os.path.samestat(os.fstat(target), source):
                move_mount(mounts, target)

    _in_its_mounts(record, attach, f"cannot share {path} with {record.name}")


def unshare(record: Record, path: str) -> None:
    """Undo share, for what is in use as soon as it is not any more."""
    path, source = _source(path)

    def remove() -> None:
        with Tree("/") as tree:
            if not tree.has(path) or not os.path.samestat(os.fstat(tree.open(path)), source):
                raise OverlayBootError("it is not shared")
        detach(path)

    _in_its_mounts(record, remove, f"cannot remove {path} from {record.name}")


def _source(path: str) -> tuple[str, os.stat_result]:
    path = os.path.abspath(path)
    try:
        source = os.stat(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: name a folder or a file") from error
    if path.strip("/") == "":
        raise ConfigError(f"{path} is the whole root: name a path below it")
    return path, source


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
            setns(process, CLONE_NEWNS)
            os.chdir("/")
            do()
            os.write(write, b"done")
        except BaseException as error:  # noqa: BLE001  a forked child returns to nobody
            os.write(write, os.fsencode(explain(error))[:4096])
        finally:
            os._exit(0)
    os.close(write)
    said = os.fsdecode(os.read(read, 4096))
    os.waitpid(child, 0)
    if said != "done":
        raise OverlayBootError(f"{what}: {said or 'the process that did it was killed'}")

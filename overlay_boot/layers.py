"""What UPPER adds, changes and deletes of LOWER, read from the two as the kernel's overlay reads them
(overlay-diff(8); Documentation/filesystems/overlayfs.rst).

UPPER may have been filled with anything by the subhost's root, who may be at it right now: folders
are opened with openat2(2) below UPPER and LOWER, no link is followed, and one folder at a time is
held open. What an overlay does not see, since it is mounted on one of the two, is not seen here.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from overlay_boot.linux import birth_time, open_in_root, open_tree
from overlay_boot.records import identity_of
from overlay_boot.tree import at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

OPAQUE = "trusted.overlay.opaque"  # of a folder: nothing of LOWER's folder shows in it
REDIRECT = "trusted.overlay.redirect"  # LOWER has it at another path
METACOPY = "trusted.overlay.metacopy"  # attributes only: the contents are LOWER's
OWN = "trusted.overlay."
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
}


@dataclass(slots=True)
class Change:
    """One path at which UPPER has a say."""

    path: str
    """From the subhost's root."""
    change: str
    """added, changed, copied (and still the same as LOWER's), deleted, replaced (a folder of which
    nothing shows any more) or moved."""
    kind: str
    """file, folder, link, pipe, socket or device; of what is deleted, LOWER's, or nothing."""
    size: int = 0
    """Bytes that UPPER holds of a file."""
    source: str = ""
    """LOWER's path, where that is another."""
    note: str = ""
    shown: bool = True
    """Whether LOWER's would show, if UPPER's were not there."""
    made: int = 0
    """When UPPER's was made, in nanoseconds since 1970, where LOWER's has been put there since."""


@dataclass(slots=True)
class _Folder:
    """A folder of UPPER that is to be looked at: its path below UPPER, that of its parent below
    LOWER (None where there is none), whether LOWER's is hidden, and the names that lead on to all
    that is wanted."""

    path: str
    parent: str | None
    hidden: bool
    wanted: list[str]
    source: str | None = None
    """Its path below LOWER, once it has been opened."""


def kind_of(status: os.stat_result | None) -> str:
    """What a file is, in a word."""
    return _KINDS.get(stat.S_IFMT(status.st_mode), "device") if status else "nothing"


def is_whiteout(status: os.stat_result) -> bool:
    """Whether this is the overlay's mark of a deleted file."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def attribute(file: int | str, name: str) -> bytes | None:
    """An extended attribute of an open file, or of one given by its path, of which the last part is
    not followed as a link; None where it has none."""
    try:
        return os.getxattr(file, name, follow_symlinks=isinstance(file, int))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return None
        raise


def attribute_names(path: str) -> list[str]:
    """The names of a file's extended attributes; no link is followed."""
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []
        raise


def status_of(name: str, folder: int | None) -> os.stat_result | None:
    """lstat(2) of a name in an open folder, None where there is none of either."""
    if folder is None:
        return None
    try:
        return os.lstat(name, dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _shown(name: str, lower: int | None) -> os.stat_result | None:
    """status_of a name in a folder of LOWER, which may have been the UPPER of another overlay."""
    status = status_of(name, lower)
    return None if status and is_whiteout(status) else status


def open_if_there(root: int, path: str, flags: int, links: bool = False) -> int | None:
    """open_in_root, or None where there is none or something else is on the way to it."""
    try:
        return open_in_root(root, path or ".", flags, links)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


class Layers:
    """UPPER and LOWER, open: copies of their mounts without what is mounted on them."""

    def __init__(self, upper: str, lower: str, hidden: Sequence[str] = ()) -> None:
        self.hidden = hidden
        self.upper = open_tree(upper, recursive=False)
        self.lower = open_tree(lower, recursive=False)
        self.problems: list[tuple[str, str]] = []
        """Folders that could not be read, and why."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.upper)
        os.close(self.lower)

    def changes(self, wanted: list[str]) -> Iterator[Change]:
        """What differs at and below a path, given by its names; folder by folder, each in order.
        Whatever goes away meanwhile is passed over."""
        todo = [_Folder("", None, False, wanted)]
        while todo:
            folder = todo.pop()
            try:
                with self._open(folder) as (upper, lower):
                    yield from self._folder(folder, upper, lower, todo)
            except FileNotFoundError:
                continue
            except OSError as error:
                self.problems.append((f"/{folder.path}", error.strerror or str(error)))

    @contextmanager
    def _open(self, folder: _Folder) -> Iterator[tuple[int, int | None]]:
        """UPPER's folder, and what LOWER has in its place, which need not be a folder."""
        flags = os.O_RDONLY | _FOLDER
        with ExitStack() as stack:
            upper = open_in_root(self.upper, folder.path or ".", flags, links=False)
            stack.callback(os.close, upper)
            redirect = os.fsdecode(attribute(upper, REDIRECT) or b"")
            name = folder.path.rpartition("/")[2]
            if redirect.startswith("/"):  # whatever is hidden above it
                folder.source, folder.hidden = redirect.strip("/"), False
            elif folder.parent is not None:
                folder.source = _join(folder.parent, redirect or name)
            elif not folder.path:
                folder.source = ""
            folder.hidden = folder.hidden or attribute(upper, OPAQUE) == b"y"
            lower = None
            if folder.source is not None:
                lower = open_if_there(self.lower, folder.source, os.O_PATH | os.O_NOFOLLOW)
            if lower is None:
                folder.source = None
            else:
                stack.callback(os.close, lower)
            yield upper, lower

    def _folder(
        self, folder: _Folder, upper: int, lower: int | None, todo: list[_Folder]
    ) -> Iterator[Change]:
        """What differs in a folder, itself included; its folders are left to do."""
        if lower is not None and identity_of(os.fstat(lower)) in self.hidden:
            return  # UPPER or WORK itself, which a boot hides from the subhost
        first = folder.wanted[:1]
        if not first:
            yield from self._itself(folder, upper, lower)
        if lower is not None and not stat.S_ISDIR(os.fstat(lower).st_mode):
            lower = folder.source = None
        deeper = []
        for name in first or sorted(os.listdir(upper)):
            status = status_of(name, upper)
            if status is None:
                continue
            if stat.S_ISDIR(status.st_mode):
                path, rest = _join(folder.path, name), folder.wanted[1:]
                deeper.append(_Folder(path, folder.source, folder.hidden, rest))
            elif not folder.wanted[1:] or is_whiteout(status):
                try:
                    change = self._entry(folder, name, status, upper, lower)
                except FileNotFoundError:
                    continue
                yield change
        if folder.hidden and lower is not None:
            for name in first or sorted(os.listdir(at(lower))):
                below = _shown(name, lower)
                if below and status_of(name, upper) is None:
                    path = f"/{_join(folder.path, name)}"
                    yield Change(path, "deleted", kind_of(below), shown=False)
        todo += reversed(deeper)

    def _itself(self, folder: _Folder, upper: int, lower: int | None) -> Iterator[Change]:
        here, below = os.fstat(upper), os.fstat(lower) if lower is not None else None
        change = Change(f"/{folder.path}", "", "folder", shown=False)
        moved = attribute(upper, REDIRECT) is not None
        if below is None:
            change.change = "added"
        elif not stat.S_ISDIR(below.st_mode):
            change.change, change.note = "changed", f"was a {kind_of(below)}"
        elif moved:
            change.change, change.source = "moved", f"/{folder.source}"
        elif attribute(upper, OPAQUE) == b"y":
            change.change = "replaced"
        elif _owner(here) != _owner(below):
            change.change, change.note = "changed", "attributes"
        if change.change:
            yield change

    def _entry(
        self, folder: _Folder, name: str, here: os.stat_result, upper: int, lower: int | None
    ) -> Change:
        """What UPPER's file, which is no folder, does to LOWER's."""
        below = _shown(name, lower)
        path = f"/{_join(folder.path, name)}"
        if is_whiteout(here):
            note = "" if below else "LOWER has none any more"
            return Change(path, "deleted", kind_of(below), note=note)
        change = Change(path, "added", kind_of(here), shown=below is not None)
        if below and folder.source != folder.path:
            change.source = f"/{_join(folder.source or '', name)}"
        change.shown = change.shown and not folder.hidden
        if change.kind == "file":
            change.size = here.st_size
            if METACOPY in attribute_names(f"{at(upper)}/{name}"):
                return self._attributes_only(folder, name, upper, change)
        if below is None:
            return change
        change.change = "changed"
        if kind_of(here) != kind_of(below):
            change.note = f"was a {kind_of(below)}"
        elif _same(name, here, upper, below, lower):
            change.change = "copied"
        if change.change == "changed" and not stat.S_ISDIR(below.st_mode):
            made = birth_time(name, upper) or here.st_ctime_ns
            change.made = made if below.st_ctime_ns > made else 0
        return change

    def _attributes_only(self, folder: _Folder, name: str, upper: int, change: Change) -> Change:
        """A file of which UPPER has no contents."""
        change.size, change.note, change.change = 0, "attributes", "changed"
        redirect = os.fsdecode(attribute(f"{at(upper)}/{name}", REDIRECT) or b"")
        if redirect:
            source = (
                redirect
                if redirect.startswith("/")
                else f"/{_join(folder.source or '', redirect)}"
            )
            change.change, change.source = "moved", source
        return change


def _owner(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mode, status.st_uid, status.st_gid


def _attributes(folder: str, name: str) -> dict[str, bytes | None]:
    """A file's extended attributes, but for those that are the overlay's."""
    names = attribute_names(f"{folder}/{name}")
    return {key: attribute(f"{folder}/{name}", key) for key in names if not key.startswith(OWN)}


def _same(
    name: str, here: os.stat_result, upper: int, below: os.stat_result, lower: int | None
) -> bool:
    """Whether a file of UPPER is, by all that can be told without reading it, still as the file of
    LOWER in its place, which is of the same kind."""
    if _owner(here) != _owner(below) or here.st_rdev != below.st_rdev or lower is None:
        return False
    if stat.S_ISLNK(here.st_mode):
        return os.readlink(name, dir_fd=upper) == os.readlink(name, dir_fd=lower)
    if stat.S_ISREG(here.st_mode) and (
        (here.st_size, here.st_mtime_ns) != (below.st_size, below.st_mtime_ns)
    ):
        return False
    return _attributes(at(upper), name) == _attributes(at(lower), name)

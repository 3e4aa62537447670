"""Paths inside a subhost's tree, which its own root may have filled with symbolic links.

Every path is opened with openat2(2) RESOLVE_IN_ROOT, and mounts are made on the open file: no link
can lead a mount or a new file onto the main host (decision 10).
"""

from __future__ import annotations

import os

from overlay_boot.linux import MS_NOSUID, bind, make_read_only, mount, open_in_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

REAPER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "reaper")


def at(fd: int) -> str:
    """A path to an open file, for mount(2)."""
    return f"/proc/self/fd/{fd}"


def open_folder(path: str) -> int:
    """An O_PATH descriptor of a directory."""
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


class Tree:
    """A root directory to make things in, remembering whatever of them UPPER lacked.

    The root is UPPER itself or the mounted LIVE: an overlay copies missing parents up to UPPER.
    """

    def __init__(self, root: str, upper: str, made: list[str]) -> None:
        self.fd = open_folder(root)
        self.upper = upper
        self.made = made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def open(self, path: str, directory: bool = True) -> int:
        """An O_PATH descriptor of path, made as a directory or file, with parents, if missing."""
        path = path.strip("/")
        try:
            return open_in_root(self.fd, path, os.O_PATH)
        except FileNotFoundError:
            folder, _, name = path.rpartition("/")
            parent = self.open(folder) if folder else os.dup(self.fd)
        self.note(path)
        try:
            if directory:
                os.mkdir(name, 0o755, dir_fd=parent)
            else:
                os.close(self.create(name, parent, 0o644))
        finally:
            os.close(parent)
        return open_in_root(self.fd, path, os.O_PATH)

    def note(self, path: str) -> None:
        """Remember whatever of path UPPER lacks."""
        parts = path.split("/")
        for count in range(1, len(parts) + 1):
            here = os.path.join(self.upper, *parts[:count])
            if not os.path.lexists(here):
                self.made.append(here)

    def create(self, name: str, folder: int, mode: int) -> int:
        """A new file in an open folder, for writing; never through a symbolic link."""
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        return os.open(name, flags, mode, dir_fd=folder)

    def mount(self, path: str, kind: str, flags: int = 0, data: str = "") -> None:
        """Mount a file system of its own on path."""
        target = self.open(path)
        mount(kind, at(target), kind, MS_NOSUID | flags, data)
        os.close(target)

    def install_reaper(self) -> None:
        """Put /.reaper in place: a copy in UPPER unless it is right already, and over it the main
        host's own file, read-only, so that all subhosts share its pages."""
        with open(REAPER, "rb") as file:
            wanted = file.read()
        if _executable(self.fd, ".reaper") != wanted:
            self.note(".reaper")
            if os.path.lexists(f"{at(self.fd)}/.reaper"):
                os.unlink(".reaper", dir_fd=self.fd)
            with open(self.create(".reaper", self.fd, 0o755), "wb") as file:
                file.write(wanted)
        for do in (lambda path: bind(REAPER, path), make_read_only):
            # Opened anew, since an open file stays below what is mounted on it.
            target = os.open(".reaper", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
            do(at(target))
            os.close(target)


def _executable(folder: int, name: str) -> bytes:
    """The contents of an executable file, empty if it is anything else."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return b""
    with open(fd, "rb") as file:
        return file.read() if os.fstat(fd).st_mode & 0o111 == 0o111 else b""


def remove(made: list[str]) -> None:
    """Remove what was made, the last first; what has got contents since stays."""
    for path in reversed(made):
        try:
            os.rmdir(path) if os.path.isdir(path) else os.unlink(path)
        except OSError:
            pass  # never made, or in use by now: no reason to hide the boot's own failure

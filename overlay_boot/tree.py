"""Paths inside a subhost's tree, which its own root may have filled with anything.

Every path is opened with openat2(2) RESOLVE_IN_ROOT, and mounts are made on the open file: no link
can lead a mount or a new file onto the main host (overlay-boot(8), share-symlink). What is made is
written down and can be undone, by the same rules.
"""

from __future__ import annotations

import os
import stat

from overlay_boot import REAPER, OverlayBootError
from overlay_boot.linux import MS_NOSUID, bind, make_read_only, mount, open_in_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

LARGEST = 1 << 20  # bytes of a text that is read
PASSED_ON = "OVERLAY_BOOT_MADE"  # where hook programs find the list of what is made


def at(fd: int) -> str:
    """A path to an open file, for mount(2) and for other processes of this one's family."""
    return f"/proc/self/fd/{fd}"


def open_folder(path: str) -> int:
    """An O_PATH descriptor of a directory."""
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _target(folder: int, name: str) -> str:
    """Where a symbolic link leads; empty for anything else."""
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:
        return ""


class Made:
    """What a boot has made below a folder, such as UPPER, that lacked it before.

    The list is a file in memory: all processes of a boot, also the hook programs that a hook of
    one's own calls, add to the same one, and whichever is left undoes it.
    """

    def __init__(self, folder: str, file: int | None = None) -> None:
        self.folder = folder
        self.file = file if file is not None else self._new_list()

    @staticmethod
    def _new_list() -> int:
        fd = os.memfd_create("made", os.MFD_CLOEXEC)
        appending = os.open(at(fd), os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        os.close(fd)
        return appending

    @classmethod
    def passed_on(cls, folder: str) -> Made:
        """The list of the boot that runs this program, as its hook; else one of its own."""
        path = os.environ.get(PASSED_ON)
        return cls(folder, os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC) if path else None)

    def path(self) -> str:
        """Where other processes find the list, as long as this one lives."""
        return f"/proc/{os.getpid()}/fd/{self.file}"

    def note(self, path: str) -> None:
        """Write down whatever of path, which has no links in it, the folder lacks."""
        parts = path.strip("/").split("/")
        root = open_folder(self.folder)
        try:
            for count in range(1, len(parts) + 1):
                here = "/".join(parts[:count])
                try:
                    os.close(open_in_root(root, here, os.O_PATH | os.O_NOFOLLOW, links=False))
                except (FileNotFoundError, NotADirectoryError):
                    os.write(self.file, os.fsencode(here) + b"\0")
        finally:
            os.close(root)

    def undo(self) -> None:
        """Remove what was made, the last first; what has got contents since stays."""
        names = os.pread(self.file, os.fstat(self.file).st_size, 0).split(b"\0")[:-1]
        os.ftruncate(self.file, 0)
        root = open_folder(self.folder)
        for path in map(os.fsdecode, reversed(names)):
            folder, _, name = path.rpartition("/")
            try:
                parent = open_in_root(root, folder or ".", os.O_PATH | os.O_DIRECTORY, links=False)
            except OSError:
                continue  # never made
            try:
                status = os.stat(name, dir_fd=parent, follow_symlinks=False)
                remove = os.rmdir if stat.S_ISDIR(status.st_mode) else os.unlink
                remove(name, dir_fd=parent)
            except OSError:
                pass  # never made, or in use by now: no reason to hide the boot's own failure
            os.close(parent)
        os.close(root)


class Tree:
    """A root directory to make things in. The root is UPPER itself or the mounted LIVE: an overlay
    copies missing parents up to UPPER. `made` is told of them, if given."""

    def __init__(self, root: str, made: Made | None = None) -> None:
        self.fd = open_folder(root)
        self.made = made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def open(self, path: str, directory: bool = True, links: int = 40) -> int:
        """An O_PATH descriptor of path, made as a directory or file, with parents, if missing;
        below a link that leads nowhere yet it is made where that leads."""
        path = path.strip("/") or "."
        try:
            return open_in_root(self.fd, path, os.O_PATH)
        except FileNotFoundError:
            folder, _, name = path.rpartition("/")
            parent = self.open(folder)
        try:
            target = _target(parent, name)
            if target and links:
                path = target if target.startswith("/") else f"{folder}/{target}"
                return self.open(path, directory, links - 1)
            self.note(parent, name)
            if directory:
                os.mkdir(name, 0o755, dir_fd=parent)
            else:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
                os.close(os.open(name, flags, 0o644, dir_fd=parent))
        finally:
            os.close(parent)
        return open_in_root(self.fd, path, os.O_PATH)

    def note(self, parent: int, name: str) -> None:
        """Write down that name is about to be made in an open folder of the tree."""
        if self.made:
            root = os.readlink(at(self.fd)).rstrip("/")
            folder = os.readlink(at(parent)).removeprefix(root)
            self.made.note(f"{folder}/{name}")

    def has(self, path: str) -> bool:
        """Whether there is anything at path, a link that leads nowhere included."""
        try:
            os.close(open_in_root(self.fd, path, os.O_PATH | os.O_NOFOLLOW))
        except FileNotFoundError:
            return False
        return True

    def read(self, path: str) -> bytes:
        """What is in a regular file; empty where there is none, or one that is larger than anybody
        would write. Nothing else is opened: it could make us wait, or be a device."""
        try:
            file = open_in_root(self.fd, path, os.O_PATH)
        except OSError:
            return b""
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return b""
            with open(at(file), "rb") as opened:
                data = opened.read(LARGEST + 1)
            return data if len(data) <= LARGEST else b""
        finally:
            os.close(file)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        folder, _, name = path.rpartition("/")
        parent = self.open(folder)
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        finally:
            os.close(parent)

    def write(self, path: str, data: bytes, mode: int) -> None:
        """A new file, whole or not at all; never through a symbolic link."""
        folder, _, name = path.rpartition("/")
        parent = self.open(folder)
        try:
            self.note(parent, name)
            try:
                fd = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, mode, dir_fd=parent)
            except OSError:  # a file system, or an older overlay, without unnamed files
                self._write_under_a_name(parent, name, data, mode)
                return
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(fd, mode)
                os.link(at(fd), name, src_dir_fd=fd, dst_dir_fd=parent)
        finally:
            os.close(parent)

    def _write_under_a_name(self, parent: int, name: str, data: bytes, mode: int) -> None:
        new = f".{name}.new"
        try:
            os.unlink(new, dir_fd=parent)  # of a boot that was killed, or anything else
        except FileNotFoundError:
            pass
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        fd = os.open(new, flags, mode, dir_fd=parent)
        try:
            with open(fd, "wb") as file:
                file.write(data)
                os.fchmod(fd, mode)
            os.rename(new, name, src_dir_fd=parent, dst_dir_fd=parent)
        except OSError:
            os.unlink(new, dir_fd=parent)
            raise

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
        if not self._has_executable(".reaper", wanted):
            self.write(".reaper", wanted, 0o755)
        for do in (lambda path: bind(REAPER, path), make_read_only):
            # Opened anew, since an open file stays below what is mounted on it.
            target = os.open(".reaper", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
            do(at(target))
            os.close(target)

    def _has_executable(self, name: str, wanted: bytes) -> bool:
        """Whether the root has just this executable; anything else of that name is removed.
        Nothing is opened that could make us wait or read for ever."""
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        except FileNotFoundError:
            return False
        try:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and status.st_size == len(wanted):
                with open(at(fd), "rb") as file:
                    if file.read() == wanted and status.st_mode & 0o111 == 0o111:
                        return True
        finally:
            os.close(fd)
        if stat.S_ISDIR(status.st_mode):
            raise OverlayBootError(f"{self.root_path()}/{name} is a directory: remove it")
        os.unlink(name, dir_fd=self.fd)
        return False

    def root_path(self) -> str:
        """The path of the root, for messages."""
        return os.readlink(at(self.fd)).rstrip("/")

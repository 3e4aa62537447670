"""One interface for every disposable machine, whatever runs it.

A provider implements the few abstract methods of `Machine`; all else here is made of them.
What can go wrong is in vm/errors.py.
"""

from __future__ import annotations

import os
import posixpath
import secrets
import shlex
import stat
import tarfile
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Self

from vm.errors import CommandFailed, CommandTimeout, MachineError, RequestError, VmError

DIAGNOSTICS = (
    "date; uptime",
    "dmesg | tail -n 40",
    "ps -eo pid,ppid,pidns,stat,etimes,args --forest",
    "cat /proc/self/mountinfo",
    "ip -details address; ip netns",
    "df -h; free -m",
)


#: What a command reads: bytes, or a file that has a descriptor.
Input = bytes | IO[bytes]
#: Takes a command's output as it comes.
Sink = Callable[[bytes], object]

LONGEST_COMMAND = 128 * 1024 - 1  # bytes: the kernel's limit for one argument
LONGEST_SHOWN = 16 * 1024  # characters of one output in a message


def shortened(text: str) -> str:
    """A text for a message: of one that is too long the beginning and the end."""
    if len(text) <= LONGEST_SHOWN:
        return text
    half = LONGEST_SHOWN // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


@dataclass(frozen=True)
class Result:
    """What a command did: its exit status (128 + N when signal N ended it) and its output."""

    command: str
    status: int
    stdout: bytes
    stderr: bytes
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the command ended with status 0."""
        return self.status == 0

    @property
    def out(self) -> str:
        """Standard output as text, without the line ends at its end."""
        return self.stdout.decode(errors="replace").rstrip("\n")

    @property
    def err(self) -> str:
        """Standard error as text, without the line ends at its end."""
        return self.stderr.decode(errors="replace").rstrip("\n")

    def __str__(self) -> str:
        parts = [f"$ {self.command}", self.out, self.err, f"(status {self.status})"]
        return "\n".join(shortened(part) for part in parts if part)


class Machine(ABC):
    """A running machine, root's shell in it, and its snapshots. Close it, or use it with `with`.

    Commands run by /bin/sh as root with / as current folder and a plain environment. All time
    limits are in seconds.
    """

    name: str
    #: What it can do besides running commands: "snapshot" (and `restore`), and "clone", so that many
    #: machines run side by side from one snapshot. What a provider can make is in vm/options.py.
    can: frozenset[str] = frozenset()
    #: Commands whose output explains a failure, run by `dump` besides the general ones.
    explain: tuple[str, ...] = ()

    @abstractmethod
    def _run(
        self, command: str, timeout: float, input: Input, out: Sink | None, err: Sink | None
    ) -> Result:
        """See `run`, for a command that fits into an argument."""

    @abstractmethod
    def snapshot(self, name: str) -> None:
        """Keep the machine's whole state (memory and disk) under that name; it runs on."""

    @abstractmethod
    def restore(self, name: str) -> None:
        """Put this machine back to a state it had, with the clock right and fresh entropy."""

    @abstractmethod
    def reboot(self, *, timeout: float = 120) -> None:
        """Start again from the disk as it is; returns when commands run again."""

    @abstractmethod
    def close(self) -> None:
        """End the machine and remove all it left. Closing it twice is fine."""

    @abstractmethod
    def ssh_command(self) -> list[str]:
        """The ssh command line, without a remote command, that reaches root in the machine."""

    def clone(self, name: str) -> Machine:
        """A further machine, restored from this one's snapshot, beside it."""
        raise RequestError(f"{self.name}: this provider cannot run machines side by side")

    def console(self) -> str:
        """What the machine wrote to its console so far (empty where that cannot be read)."""
        return ""

    def run(
        self,
        command: str,
        *,
        timeout: float = 60,
        input: Input = b"",
        out: Sink | None = None,
        err: Sink | None = None,
    ) -> Result:
        """Run a command of any length to its end and tell how it went, whatever its status.

        It has ended when its shell has: a background process that keeps the output open is not
        waited for. `out` and `err` take the output, as it comes where the provider can do that,
        and the result has none then. Bytes in the command that are no UTF-8 are given as Python
        gives those of the command line. Raises CommandTimeout past the limit (math.inf: there is
        none), with the output up to then, and MachineError when the machine no longer answers.
        """
        if "\0" in command:
            raise ValueError("a command has no zero bytes: use `input`")
        if len(os.fsencode(command)) <= LONGEST_COMMAND:
            return self._run(command, timeout, input, out, err)
        file = f"/tmp/.vm-{secrets.token_hex(8)}"
        script = f"rm {file}\n".encode() + os.fsencode(command)
        self.need(f"umask 077; cat > {file}", timeout=timeout, input=script)
        return replace(self._run(f". {file}", timeout, input, out, err), command=command)

    def succeed(
        self, command: str, *, timeout: float = 60, input: Input = b"", out: Sink | None = None
    ) -> Result:
        """`run`, but any status other than 0 raises CommandFailed."""
        result = self.run(command, timeout=timeout, input=input, out=out)
        if result.status != 0:
            raise CommandFailed(f"failed in {self.name}:\n{result}", result)
        return result

    def fail(self, command: str, *, timeout: float = 60, input: Input = b"") -> Result:
        """`run`, but status 0 raises CommandFailed."""
        result = self.run(command, timeout=timeout, input=input)
        if result.status == 0:
            raise CommandFailed(f"succeeded unexpectedly in {self.name}:\n{result}", result)
        return result

    def need(self, command: str, *, timeout: float = 60, input: Input = b"") -> Result:
        """`succeed`, for what the machine is of no use without: a failure raises MachineError."""
        try:
            return self.succeed(command, timeout=timeout, input=input)
        except CommandFailed as error:
            raise MachineError(f"{self.name}: {error}") from error

    def wait_until(self, command: str, *, timeout: float = 30, every: float = 0.1) -> Result:
        """Repeat a command until it succeeds; past the limit raise CommandTimeout with `dump`."""
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            try:
                result = self.run(command, timeout=max(left, 1))
            except CommandTimeout as error:
                result = error.result
            if result.status == 0:
                return result
            if time.monotonic() >= deadline:
                message = f"not within {timeout:g} s in {self.name}:\n{result}\n{self.dump()}"
                raise CommandTimeout(message, result)
            time.sleep(every)

    def copy_in(
        self, source: Path | bytes, target: str, *, timeout: float = 120, readable: bool = False
    ) -> None:
        """Write a file of this machine, or bytes, to a path in the machine, whatever its name.

        Missing folders are made; the permission bits come along. A folder's content is laid over
        `target`, owned by root; folders that are there already keep their owner and mode.
        `readable`: all may read what the owner may read, whatever the umask was where it was made.
        Raises RequestError for what is neither a file nor a folder.
        """
        path = shlex.quote(target)
        prepare = f"mkdir -p -- {shlex.quote(posixpath.dirname(target) or '.')} && "
        if isinstance(source, bytes):
            self.succeed(f"{prepare}cat > {path}", timeout=timeout, input=source)
            return
        mode = source.stat().st_mode
        if stat.S_ISDIR(mode):
            with tempfile.TemporaryFile() as archive:
                _pack(source.resolve(), archive, readable)
                archive.seek(0)
                # A link to a folder stays one: /bin is one.
                keep = "--no-overwrite-dir --keep-directory-symlink"
                command = f"mkdir -p -- {path} && tar {keep} -xf - -C {path}"
                self.succeed(command, timeout=timeout, input=archive)
        elif stat.S_ISREG(mode):
            with source.open("rb") as file:
                command = f"{prepare}cat > {path} && chmod -- {stat.S_IMODE(mode):o} {path}"
                self.succeed(command, timeout=timeout, input=file)
        else:
            raise RequestError(f"{source}: neither a file nor a folder")

    def copy_out(self, source: str, target: Path, *, timeout: float = 120) -> None:
        """Write a file of the machine to a path here, whole or not at all; through a link, as cp(1).
        Raises RequestError where there is something other than a regular file."""
        target = target.resolve()
        if target.exists() and not target.is_file():
            raise RequestError(f"{target}: not a regular file")
        partial = target.parent / f".vm-{secrets.token_hex(8)}"
        try:
            with partial.open("xb") as file:
                self.succeed(f"cat < {shlex.quote(source)}", timeout=timeout, out=file.write)
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)

    def dump(self) -> str:
        """What would explain a failure: the console's end, kernel log, processes, mounts, links.

        Never raises: what cannot be had is named in its place.
        """
        console = shortened("\n".join(self.console().splitlines()[-40:]))
        parts = [f"--- console of {self.name}\n{console}"]
        for command in (*DIAGNOSTICS, *self.explain):
            try:
                said = self.run(command, timeout=20).out
                parts.append(f"--- {command}\n{shortened(said)}")
            except (VmError, CommandFailed) as error:
                parts.append(f"--- {command}\n(not to be had: {str(error).splitlines()[0]})")
                if isinstance(error, VmError):
                    break
        return "\n".join(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pack(folder: Path, file: IO[bytes], readable: bool) -> None:
    """Write a tar archive of what a folder holds, owned by root."""

    def as_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = "root"
        if readable:
            info.mode |= (info.mode & 0o500) >> 3 | (info.mode & 0o500) >> 6
        return info

    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.add(folder, arcname=".", filter=as_root)

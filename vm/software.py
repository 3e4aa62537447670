"""What is put into a machine: looked at before one is started, then installed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from vm.errors import CommandFailed, HostError, MachineError, RequestError
from vm.machine import Machine

ARCHITECTURES = ("amd64", "all")
#: Where a command is looked for in a folder that is laid over the root.
BINS = ("usr/bin", "usr/sbin", "bin", "sbin", "usr/local/bin", "usr/local/sbin")


def look(what: Path, *, commands: Iterable[str] = ()) -> None:
    """See that something can be put into a machine: a .deb, or a folder to lay over its root.

    It has to bring all of `commands`. Raises RequestError, which says what is wrong with it.
    """
    if not what.exists():
        raise RequestError(f"{what}: no such file or folder")
    found = set(_files_of(what) if what.is_dir() else _files_in(what))
    if missing := [name for name in commands if not found & {f"{bin}/{name}" for bin in BINS}]:
        raise RequestError(f"{what}: has no command {' '.join(missing)} in {', '.join(BINS)}")


def _files_of(folder: Path) -> Iterable[str]:
    """What a folder has, as paths below it."""
    unreadable: list[OSError] = []
    found = [str(path.relative_to(folder)) for path in _walk(folder, unreadable)]
    if unreadable:
        raise RequestError(f"{unreadable[0].filename}: {unreadable[0].strerror}")
    if packages := [name for name in found if name.endswith(".deb") and "/" not in name]:
        raise RequestError(f"{folder}: a folder of packages: give one of {' '.join(packages)}")
    if not found:
        raise RequestError(f"{folder}: an empty folder, nothing to lay over the machine's root")
    return found


def _walk(folder: Path, unreadable: list[OSError]) -> Iterable[Path]:
    """Files and links below a folder; what cannot be read is told apart."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        unreadable.append(error)
        return
    for path in entries:
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path, unreadable)
        else:
            yield path


def _files_in(package: Path) -> Iterable[str]:
    """What a package has, all of which can be unpacked."""
    if package.suffix == ".changes":
        named = re.findall(
            r"(?m)^ \S+ \d+ \S+ \S+ (\S+\.deb)$", package.read_text("utf-8", "replace")
        )
        raise RequestError(
            f"{package}: a list of what was built; give a package: {' '.join(named) or 'it has none'}"
        )
    fields = _dpkg_deb(package, "--field", package.absolute(), "Architecture", "Package")
    about = dict(line.split(": ", 1) for line in fields.splitlines() if ": " in line)
    if (architecture := about.get("Architecture", "")) not in ARCHITECTURES:
        raise RequestError(f"{package}: a package for {architecture}, but machines are amd64")
    listing = _dpkg_deb(package, "--contents", package.absolute())
    return [
        str(PurePosixPath(line.split(None, 5)[5].split(" -> ")[0]))
        for line in listing.splitlines()
    ]


def _dpkg_deb(package: Path, *words: str | Path) -> str:
    try:
        done = subprocess.run(
            ["dpkg-deb", *words], capture_output=True, text=True, errors="replace", check=False
        )
    except FileNotFoundError:
        raise HostError(f"{package}: dpkg-deb is missing, which could look into it") from None
    if done.returncode:
        why = re.sub(r"^dpkg-deb: error: ", "", (done.stderr.splitlines() or ["?"])[0])
        raise RequestError(f"{package}: neither a .deb that is whole nor a folder: {why}")
    return done.stdout


def install(machine: Machine, what: Path) -> None:
    """Put software into a machine: a .deb, or a folder that is laid over its root.

    The machine need not reach any network, so what a package depends on has to be in the image.
    All may read what a folder brings, whatever the umask was where it was made. Raises
    RequestError for what `look` refuses, and MachineError where the package does not install.
    """
    look(what)
    if what.is_dir():
        try:
            machine.copy_in(what, "/", readable=True)
        except CommandFailed as error:
            raise MachineError(
                f"{what} cannot be laid over the root of {machine.name}: {error}"
            ) from None
        _compile(machine, [f"/{path}" for path in _files_of(what) if path.endswith(".py")])
        return
    file = f"/root/{what.name}"
    machine.copy_in(what, file)
    machine.need(f"dpkg --install {shlex.quote(file)} && rm {shlex.quote(file)}", timeout=300)


def _compile(machine: Machine, modules: list[str]) -> None:
    """Compile modules of Python, as dpkg does with a package's.

    Else each machine made of that one does so anew, at first use. One that cannot be compiled is
    no concern of who installs it: whoever imports it will see.
    """
    if modules:
        names = os.fsencode("\n".join(modules))
        machine.run("python3 -m compileall -q -i -", input=names, timeout=300)

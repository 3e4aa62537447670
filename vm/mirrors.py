"""Debian's mirrors, as this machine's own apt knows them, and how apt is told to reach them.

A password in a mirror's address, or in apt's auth.conf, goes into a netrc(5) file of whoever fetches,
and nowhere else: source lines, messages, images and the arguments of programs are free of them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from vm import folders
from vm.errors import HostError
from vm.processes import run

#: What apt's configuration says below Acquire:: of other things than the way to a mirror.
OTHER = (
    r"Acquire::(Languages|GzipIndexes|CompressionTypes|IndexTargets|Changelogs|PDiffs|cdrom|gpgv)"
)
#: apt as a user who may not write to its own folders, and no further than to the Release files.
RELEASES_ONLY = (
    "APT::Sandbox::User=root",
    "Acquire::IndexTargets::deb::Packages::DefaultEnabled=false",
    "Acquire::IndexTargets::deb::Translations::DefaultEnabled=false",
    "Acquire::IndexTargets::deb-src::Sources::DefaultEnabled=false",
)
#: What apt's configuration says of this machine's own packages: programs to run, what to prefer.
OWN = (
    *(f"APT::Update::{when}" for when in ("Pre-Invoke", "Post-Invoke", "Post-Invoke-Success")),
    "APT::Default-Release",
)


@dataclass(frozen=True)
class Mirrors:
    """Where Debian's packages come from."""

    main: str
    security: str | None = None
    """The security archive's, which lies elsewhere; None where one mirror is named for all."""
    logins: tuple[str, ...] = ()
    """Lines for netrc(5), of the passwords that were in the addresses."""


def mirrors() -> Mirrors:
    """MIRROR= for all, else those of this machine's apt. Raises HostError where there is none."""
    if named := os.environ.get("MIRROR"):
        address, login = without_login(named)
        return Mirrors(address, logins=tuple(login))
    if not shutil.which("apt-get"):
        raise HostError("there is no apt here to name a Debian mirror: set MIRROR=")
    candidates = list(_candidates())
    own = folders.own(folders.cache() / "packages") / "mirrors"
    trouble = "apt's sources name no Debian mirror: add one, or set MIRROR="
    found = _debians(candidates, _place("Dir::State::lists/d")) or _debians(
        candidates, own / "lists"
    )
    if not found and candidates:
        trouble = _fetch(own) or trouble
        found = _debians(candidates, own / "lists")
    if not found:
        raise HostError(trouble)
    main, login = without_login(found["Debian"])
    security, more = without_login(found.get("Debian-Security", ""))
    return Mirrors(main, security or None, (*login, *more))


def without_login(uri: str) -> tuple[str, list[str]]:
    """An address without user and password, and the line for netrc(5) that has them."""
    parts = urlsplit(uri)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return uri, []
    user, _, password = (unquote(word) for word in login.partition(":"))
    if re.search(r"\s", user + password):
        raise HostError(f"a mirror at {host}: apt takes no blank in a user's name or password")
    place = f"{parts.scheme}://{host}{parts.path}".rstrip("/")
    line = f"machine {place}/ login {user} password {password}"
    return urlunsplit(parts._replace(netloc=host)), [line]


def settings(folder: Path, logins: tuple[str, ...]) -> Path:
    """Write apt's configuration for a build into a folder, for its owner's eyes; the file.

    That is how this machine's apt is set up to fetch (proxies, certificates, time limits, what it
    takes for valid), and the passwords of the mirrors.
    """
    dump = run("apt's settings", "apt-config", "dump", "--format=%f %v%n", "Acquire")
    pairs = [line.partition(" ")[::2] for line in dump.splitlines()]
    lines = [
        f'{name} "{value}";'
        for name, value in pairs
        if value and '"' not in value and not re.match(OTHER, name)
    ]
    if known := [*logins, *_own_logins()]:
        _secret(folder / "auth.conf", known)
        lines.append(f'Dir::Etc::netrc "{folder}/auth.conf";')
    return _secret(folder / "apt.conf", lines)


def forget(settings: Path) -> None:
    """Add to a file of apt's configuration that nothing of this machine's own packages counts."""
    with settings.open("a") as file:
        file.writelines(f"#clear {name};\n" for name in OWN)


def _secret(file: Path, lines: list[str]) -> Path:
    file.touch(0o600)
    file.write_text("\n".join(lines) + "\n")
    return file


def _place(name: str) -> Path:
    """A folder or file of apt's own, by the name of the setting."""
    told = run("apt's settings", "apt-config", "shell", "place", name)
    return Path(told.strip().removeprefix("place='").removesuffix("'"))


def _own_logins() -> Iterator[str]:
    """The lines of apt_auth.conf(5) that this user may read."""
    parts = _place("Dir::Etc::netrcparts/d").glob("*.conf")
    for file in [_place("Dir::Etc::netrc/f"), *sorted(parts)]:
        if os.access(file, os.R_OK):
            yield from file.read_text(errors="surrogateescape").splitlines()


def _candidates() -> Iterator[tuple[str, str]]:
    """Address and name of the Release file of each source that apt has, fetched or not."""
    listing = run("apt's sources", "apt-get", "update", "--print-uris")
    yield from re.findall(r"(?m)^'(\S+)/dists/\S+/InRelease' (\S+)_InRelease ", listing)


def _debians(candidates: list[tuple[str, str]], lists: Path) -> dict[str, str]:
    """Debian's among the addresses, by label, as far as their Release files lie in a folder.

    Its name is no proof: others call their suites as Debian does, and a mirror may have any path.
    Nothing where the archive itself, whose label is Debian, is not among them.
    """
    found: dict[str, str] = {}
    for uri, file in candidates:
        for path in (lists / f"{file}_InRelease", lists / f"{file}_Release"):
            if path.exists():
                head = path.read_text(errors="replace")[:4000]
                fields = dict(re.findall(r"(?m)^(Origin|Label): *(.*?) *$", head))
                if fields.get("Origin") == "Debian":
                    found.setdefault(fields.get("Label", ""), uri)
    return found if "Debian" in found else {}


def _fetch(folder: Path) -> str:
    """Fetch the Release files of apt's sources, where apt has none, as in a container's image.

    Why that failed, for one of them at least, or nothing.
    """
    (folder / "lists/partial").mkdir(parents=True, exist_ok=True)
    places = (f"Dir::State::Lists={folder}/lists", f"Dir::Cache={folder}", "Debug::NoLocking=1")
    flags = [word for value in (*places, *RELEASES_ONLY) for word in ("-o", value)]
    own = folder / "apt.conf"
    own.unlink(missing_ok=True)
    forget(own)
    flags += ["-c", str(own)]
    with folders.Lock(folder / "lock", wait=True):
        try:
            run("apt's sources", "apt-get", "-q", *flags, "update", "--error-on=any")
        except HostError as error:
            return str(error)
    return ""

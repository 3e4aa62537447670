"""A package of a suite, fetched by apt through this machine's mirrors without touching its own state."""

from __future__ import annotations

import re
from pathlib import Path

from vm import folders, mirrors
from vm.errors import RequestError
from vm.processes import Say, run
from vm.recipe import sources

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def fetch(package: str, suite: str, *, architecture: str = "", say: Say = print) -> Path:
    """The .deb that the suite has now, in the cache. Raises VmError."""
    if package.endswith(".deb") or not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", package):
        raise RequestError(f"{package}: neither a file that is there nor the name of a package")
    base = folders.own(folders.cache() / "packages") / f"{suite}{architecture}"
    for folder in ("lists/partial", "archives/partial", "debs"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    (base / "status").touch()
    known = mirrors.mirrors()
    lines = [
        line.replace("deb ", f"deb [signed-by={KEYRING}] ", 1) for line in sources(suite, known)
    ]
    (base / "sources.list").write_text("\n".join(lines) + "\n")
    places = {
        "Dir::Etc::SourceList": base / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State::Lists": base / "lists",
        "Dir::State::Status": base / "status",
        "Dir::Cache": base,
        "Debug::NoLocking": "true",
        "APT::Architecture": architecture or "amd64",
        "APT::Sandbox::User": "root",
    }
    flags = [flag for name, value in places.items() for flag in ("-o", f"{name}={value}")]
    what = f"package {package} of {suite}"
    busy = lambda: say(f"{what}: waiting for another run that fetches one")
    with folders.workspace("fetch") as work, folders.Lock(base / "lock", wait=True, busy=busy):
        settings = mirrors.settings(work, known.logins)
        mirrors.forget(settings)
        flags += ["-c", str(settings)]
        (work / "debs").mkdir()
        for command in (["update", "--error-on=any"], ["download", package]):
            run(what, "apt-get", "-q", *flags, *command, folder=work / "debs")
        (file,) = (work / "debs").glob(f"{package}_*.deb")
        return file.replace(base / "debs" / file.name)

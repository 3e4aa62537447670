"""A package of a suite, fetched by apt through this machine's mirrors without touching its own state."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vm import folders
from vm.image import explain
from vm.machine import MachineError
from vm.recipe import sources


def fetch(package: str, suite: str) -> Path:
    """The .deb that the suite has now, in the cache. Raises MachineError."""
    base = folders.private(folders.cache() / "packages") / suite
    for folder in ("lists/partial", "archives/partial", "debs"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    (base / "status").touch()
    lines = [line.replace("deb ", "deb [signed-by=@] ", 1) for line in sources(suite)]
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (base / "sources.list").write_text("\n".join(lines).replace("@", keyring) + "\n")
    places = {
        "Dir::Etc::SourceList": base / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State::Lists": base / "lists",
        "Dir::State::Status": base / "status",
        "Dir::Cache": base,
        "Debug::NoLocking": "true",
        "APT::Sandbox::User": "root",
    }
    flags = [flag for name, value in places.items() for flag in ("-o", f"{name}={value}")]
    lock = folders.Lock(base / "lock", wait=True)
    try:
        for command in (["update", "--error-on=any"], ["download", package]):
            done = subprocess.run(
                ["apt-get", "-q", *flags, *command],
                cwd=base / "debs",
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            if done.returncode:
                raise MachineError(explain(f"package {package} of {suite}", done.stdout))
    finally:
        lock.release()
    files = (base / "debs").glob(f"{package}_*.deb")
    return max(files, key=lambda file: file.stat().st_mtime)

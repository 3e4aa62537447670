"""Other containers doing the nearest job: set one up on a small root, run true in it, take it down."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.subhosts import Unavailable, run

PACKAGES = {
    "busybox": "busybox-static",
    "systemd-nspawn": "systemd-container",
    "runc": "runc",
    "bwrap": "bubblewrap",
}


def peers(folder: Path) -> Iterator[tuple[str, list[str | Path]]]:
    """Title and command line of each peer that is or can be installed; what it needs is made in
    folder. Says why another is left out."""
    root = folder / "machine"
    for part in ("bin", "dev", "etc", "proc", "run", "sys", "tmp", "usr"):
        (root / part).mkdir(parents=True)
    (root / "etc/os-release").touch()  # systemd-nspawn takes no root without it
    nspawn: list[str | Path] = ["--quiet", "--register=no", "--keep-unit", "--directory", root]
    bwrap: list[str | Path] = [
        "--unshare-all",
        "--bind",
        root,
        "/",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
    ]
    commands: dict[str, list[str | Path]] = {
        "systemd-nspawn": ["systemd-nspawn", *nspawn, "/bin/true"],
        "systemd-nspawn --network-veth": [
            "systemd-nspawn",
            "--network-veth",
            *nspawn,
            "/bin/true",
        ],
        "runc run": ["runc", "run", "--bundle", folder, f"bench{os.getpid()}"],
        "bwrap": ["bwrap", *bwrap, "/bin/true"],
    }
    for title, command in commands.items():
        program = title.split()[0]
        try:
            _install("busybox")
            _install(program)
            if program == "runc":
                _bundle(folder, root)
        except Unavailable as why:
            left_out(title, why)
        else:
            shutil.copy(shutil.which("busybox") or "", root / "bin/true")
            yield title, command
    yield "python3 -c pass", [sys.executable, "-c", "pass"]


def left_out(who: str, why: Exception) -> None:
    """Say that someone is not measured, and why."""
    print(f"{who} is left out: {why}", file=sys.stderr)


def _install(program: str) -> None:
    if not shutil.which(program):
        print(f"installing Debian package: {PACKAGES[program]}", file=sys.stderr)
        run("apt-get", "install", "-yq", "--no-install-recommends", PACKAGES[program])


def _bundle(folder: Path, root: Path) -> None:
    """What runc runs (config.json of the OCI runtime specification): its own example, with true."""
    run("runc", "spec", "--bundle", folder)
    file = folder / "config.json"
    spec = json.loads(file.read_text())
    spec["root"] = {"path": str(root), "readonly": True}
    spec["process"] |= {"terminal": False, "args": ["/bin/true"]}
    file.write_text(json.dumps(spec))

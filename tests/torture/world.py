"""What there is of subhosts, and of anything else that a boot could leave, in the sandbox."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import subprocess
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def processes(but: set[int]) -> list[str]:
    """All processes but those and this one."""
    found = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        state = text.rpartition(")")[2].split()[0]
        # One that has ended waits for its parent: that is listed, or the sandbox' own.
        if pid in but or pid == os.getpid() or state == "Z":
            continue
        name = text.partition("(")[2].rpartition(")")[0]
        found.append(f"process {name} {state} {command[:60]}".strip())
    return found


def first_process() -> int:
    """The pid of a subhost's pid 1 that runs something of its own; 0 if there is none."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            lines = Path(f"/proc/{name}/status").read_text().splitlines()
        except OSError:
            continue
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        numbers = fields.get("NSpid", "").split()
        if len(numbers) > 1 and numbers[-1] == "1" and fields["State"][0] not in "ZX":
            return int(name)
    return 0


def _files(folder: str, but: tuple[str, ...]) -> list[str]:
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not f"{place}/{name}".startswith(but)]
        found += [f"file {place}/{name}" for name in folders + files]
    return [path for path in found if not path.removeprefix("file ").startswith(but)]


def _links() -> list[str]:
    """The interfaces, with what a bridge could lose: its address and its ports."""
    found = []
    for _, name in socket.if_nameindex():
        folder = Path(f"/sys/class/net/{name}")
        detail = ""
        if (folder / "bridge").is_dir():
            detail = f" {(folder / 'address').read_text()} {(folder / 'mtu').read_text()}"
            detail += " ".join(sorted(os.listdir(folder / "brif")))
        found.append(f"interface {name}{detail}".replace("\n", ""))
    return found


def look(but: set[int], ignored: tuple[str, ...], name: str) -> list[str]:
    """All of it, as lines that can be compared; `ignored` are paths that are the test's own."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found = [f"mount {' '.join(line.split()[3:6])}" for line in mounts]
    found += processes(but)
    found += _links()
    for folder in ("/run", "/tmp", "/opt", "/srv"):
        found += _files(folder, ignored)
    for place, folders, _ in os.walk(CGROUPS):  # passes over what goes away meanwhile
        found += [f"cgroup {place}/{each}" for each in folders if each == f"overlay-{name}"]
    return sorted(found)


def tree(*folders: Path) -> list[str]:
    """Every path below the folders, with all of it that matters."""
    found = []
    for folder in folders:
        for path in sorted([folder, *folder.rglob("*")]):
            status = path.lstat()
            kind = stat.filemode(status.st_mode)
            what = ""
            if stat.S_ISREG(status.st_mode):
                what = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
            elif stat.S_ISLNK(status.st_mode):
                what = os.readlink(path)
            where = path.relative_to(folder.parent)
            found.append(f"{where} {kind} {status.st_uid}:{status.st_gid} {what}")
    return found


def difference(before: list[str], after: list[str]) -> str:
    """What is more and what is less, in one line; empty if nothing is."""
    more = [f"+{line}" for line in after if line not in before]
    less = [f"-{line}" for line in before if line not in after]
    counted = [] if more or less or before == after else ["a line more often"]
    return "; ".join([*more, *less, *counted][:12])


def prepare() -> None:
    """Make of the sandbox what the scenes want: a cgroup of its own, and a bridge."""
    if not (CGROUPS / "cgroup.procs").exists():
        subprocess.run(["mount", "-t", "cgroup2", "cgroup2", CGROUPS], check=True)
    for command in ("link add br0 type bridge", "link set br0 up"):
        subprocess.run(["ip", *command.split()], check=True)

"""python -m bench: boots, stops and memory of overlay-boot side by side with its peers, in one run.

Every figure is taken in turn (A B C A B C ...), so that a machine whose speed drifts drifts for
all; the table gives medians and ratios to Debian's shell version. It judges nothing by itself:
the targets of the project stand beside the ratios. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

from vm.archive import fetch

OURS = Path(sys.executable).parent
TARGETS = {"boot": 0.15, "boot, one cable": 0.5, "stop": 0.5, "idle memory": 0.3}
CONF = "BASE=.\nSTART= none\nLOWER= /\nLOG= {log}\nCABLES= {cables}\n"


class Unavailable(Exception):
    """A peer cannot be measured here, and why."""


def quiet(*command: str | Path) -> None:
    """Run a command to its end; raises with its messages if it fails."""
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Unavailable(f"{command[0]}: {said[-1] if said else done.returncode}")


def processes() -> dict[int, str]:
    """Every process's name by pid."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            found[int(pid)] = Path(f"/proc/{pid}/comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def milliseconds(do: Callable[[], None]) -> float:
    """How long do takes."""
    started = time.perf_counter()
    do()
    return (time.perf_counter() - started) * 1000


class Implementation:
    """An overlay-boot: where its commands are, and a subhost of it."""

    def __init__(self, title: str, commands: Path, folder: Path, name: str) -> None:
        self.title = title
        self.commands = commands
        self.name = name
        self.netns = 0  # its network namespace's inode
        self.conf = folder / name / f"{name}.conf"
        for part in ("root", "work", "live"):
            (self.conf.parent / part).mkdir(parents=True)

    def configure(self, cables: str) -> None:
        """Write the configuration. Debian's version takes a relative LOG from the caller's folder."""
        self.conf.write_text(CONF.format(cables=cables, log=self.conf.parent / "log"))

    def boot(self, cables: str = "") -> float:
        """Milliseconds from the command to /.reaper as pid 1: what both versions end in."""
        self.configure(cables)
        before = {pid for pid, name in processes().items() if name == ".reaper"}
        started = time.perf_counter()
        command = [self.commands / "overlay-boot", self.conf]
        with subprocess.Popen(command, stdout=DEVNULL, stderr=DEVNULL) as boot:
            while not {p for p, name in processes().items() if name == ".reaper"} - before:
                if time.perf_counter() - started > 30:
                    raise Unavailable(f"{self.title} did not boot: see {self.conf.parent}/log")
            taken = (time.perf_counter() - started) * 1000
            boot.wait()
        self.netns = os.stat(f"/run/netns/{self.name}").st_ino
        return taken

    def settle(self) -> None:
        """Wait until the boot's own processes have ended."""
        count, same = 0, 0
        while same < 10:
            time.sleep(0.02)
            same = same + 1 if len(self.pids()) == count else 0
            count = len(self.pids())

    def pids(self) -> list[int]:
        """The processes that are there because of the subhost: its own, and those on the main
        host whose command line names its configuration or its name."""
        found = []
        for pid in processes():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                inside = os.stat(f"/proc/{pid}/ns/net").st_ino == self.netns
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            mine = str(self.conf).encode() in words or f"/netns/{self.name}".encode() in words
            if mine or inside:
                found.append(pid)
        return found

    def memory(self) -> float:
        """KiB that the idle subhost's processes hold, shared pages divided among their users."""
        total = 0
        for pid in self.pids():
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(rollup.split("Pss:")[1].split()[0])
        return float(total)

    def stop(self) -> float:
        """Milliseconds until overlay-stop has returned and every process is gone."""

        def do() -> None:
            subprocess.run(
                [self.commands / "overlay-stop", self.conf],
                stdout=DEVNULL,
                stderr=DEVNULL,
                check=False,
            )
            while self.pids():
                pass

        return milliseconds(do)


def peers(folder: Path) -> dict[str, Callable[[], None]]:
    """Nearest jobs of others: a container of a read-only root that runs true, start to end."""
    bundle = folder / "runc"
    bundle.mkdir()
    found: dict[str, Callable[[], None]] = {}
    for program, package in (
        ("systemd-nspawn", "systemd-container"),
        ("runc", "runc"),
        ("bwrap", "bubblewrap"),
    ):
        if not shutil.which(program):
            subprocess.run(
                ["apt-get", "install", "-yq", "--no-install-recommends", package],
                stdout=DEVNULL,
                stderr=DEVNULL,
                check=False,
            )
    root = folder / "machine"
    root.mkdir()
    busybox = shutil.which("busybox") or ""
    for part in ("bin", "usr", "etc", "proc", "sys", "dev", "run", "tmp"):
        (root / part).mkdir()
    shutil.copy(busybox, root / "bin/true")
    (root / "etc/os-release").touch()
    if shutil.which("runc"):
        subprocess.run(["runc", "spec"], cwd=bundle, check=True)
        spec = json.loads((bundle / "config.json").read_text())
        spec["root"]["path"], spec["process"]["args"] = str(root), ["/bin/true"]
        spec["process"]["terminal"] = False
        (bundle / "config.json").write_text(json.dumps(spec))
    commands: dict[str, list[str | Path]] = {
        "systemd-nspawn": ["systemd-nspawn", "-q", "--register=no", "--keep-unit", "-D", root, "/bin/true"],
        "runc run": ["runc", "run", "-b", bundle, f"bench{os.getpid()}"],
        "bwrap": ["bwrap", "--unshare-all", "--bind", root, "/", "--proc", "/proc", "--dev", "/dev", "/bin/true"],
        "python3 -c pass": [sys.executable, "-c", "pass"],
    }  # fmt: skip
    for title, command in commands.items():
        found[title] = partial(quiet, *command)
    return found


def many(ours: Implementation, folder: Path, count: int) -> dict[str, float]:
    """Boot so many subhosts to run at once; the ratio of the last boots to the first."""
    all_of_them = [Implementation("", OURS, folder, f"m{number}") for number in range(count)]
    times: list[float] = []
    memory: list[float] = []
    try:
        for each in all_of_them:
            each.configure("")
            boot: list[str | Path] = [OURS / "overlay-boot", "--wait", each.conf]
            times.append(milliseconds(partial(quiet, *boot)))
        tenth = max(1, count // 10)
        for each in all_of_them[::tenth]:
            each.netns = os.stat(f"/run/netns/{each.name}").st_ino
            memory.append(each.memory())
    finally:
        for each in all_of_them:
            subprocess.run(
                [OURS / "overlay-stop", each.name], stdout=DEVNULL, stderr=DEVNULL, check=False
            )
    left = [name for name in os.listdir("/run/overlay-boot") if name.startswith("m")]
    return {
        "subhosts": count,
        "last boots to first": statistics.median(times[-tenth:])
        / statistics.median(times[:tenth]),
        "KiB each": statistics.median(memory),
        "left behind": len(left),
    }


def measure(rounds: int, count: int, folder: Path) -> dict[str, Any]:
    """All figures: by what is measured, then by who."""
    package = fetch("overlay-boot", "sid")
    quiet("dpkg-deb", "-x", package, folder / "unpacked")
    debian = folder / "debian"  # not below a folder of its own name: its overlay-stop greps for it
    debian.symlink_to(next((folder / "unpacked").glob("var/lib/*")))
    version = package.name.split("_")[1]
    ours = Implementation("this project", OURS, folder, "obbo")
    shell = Implementation(f"Debian's {version}", debian, folder, "obbd")
    others = peers(folder)
    figures: dict[str, dict[str, list[float]]] = {
        what: {} for what in (*TARGETS, "container that runs true")
    }

    def note(what: str, who: str, value: float) -> None:
        figures[what].setdefault(who, []).append(value)

    for turn in range(rounds + 1):
        for which in (shell, ours):
            for what, cables in (("boot", ""), ("boot, one cable", "=")):
                try:
                    boot = which.boot(cables)
                    which.settle()
                    memory = which.memory()
                finally:
                    stop = which.stop()
                if turn:  # the first round warms up
                    note(what, which.title, boot)
                    if not cables:
                        note("idle memory", which.title, memory)
                        note("stop", which.title, stop)
        for title, do in list(others.items()):
            try:
                taken = milliseconds(do)
                if turn:
                    note("container that runs true", title, taken)
            except Unavailable as why:
                print(f"{title} is left out: {why}", file=sys.stderr)
                del others[title]
        print(f"\rround {turn} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {
        "reference": shell.title,
        "figures": {
            what: {who: statistics.median(values) for who, values in by.items()}
            for what, by in figures.items()
        },
        "many": many(ours, folder, count),
    }


def show(result: dict[str, Any]) -> None:
    """The table: medians, ratios to Debian's version, targets."""
    reference = str(result["reference"])
    for what, by in result["figures"].items():
        base = by.get(reference) or result["figures"]["boot"][reference]
        print(f"\n{what}" + (f" (target: {TARGETS[what]})" if what in TARGETS else ""))
        for who, value in by.items():
            unit = "KiB" if what == "idle memory" else "ms"
            print(f"  {who:24} {value:9.1f} {unit:4} ratio {value / base:5.2f}")
    print("\nmany at once (target: last to first 1.5, nothing left)")
    for what, number in result["many"].items():
        print(f"  {what:24} {number:9.2f}")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--many", type=int, default=200, metavar="COUNT")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures there as well"
    )
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("boots real subhosts: run it as root")
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir="/var/tmp"))
    try:
        result = measure(options.rounds, options.many, folder)
    finally:
        shutil.rmtree(folder)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

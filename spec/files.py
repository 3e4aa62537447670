"""Where a run's results and reports lie, whose turn it is to make them, and how many work on it."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from spec.results import ResultsError

SUFFIXES = (".json", ".html", ".xml", ".tap")
PER_WORKER = 1536 * 1024  # KiB: a machine, two clones of it, and Python


def stem(target: str, what: Path | None, *, part: bool) -> str:
    """A run's name for its files: here, trixie, sid-overlay-boot, trixie-vagrant, here-part.

    `what` is the package that is tested, or the folder; a folder is the working tree, and goes
    without saying. A part of the tests must not pass for all of them.
    """
    url = urlsplit(target)
    words = [url.hostname or url.path if url.scheme != "ssh" else f"ssh-{url.hostname}"]
    if what and not what.is_dir():
        words.append(what.name.partition("_")[0].removesuffix(".deb"))
    words += [name for name in parse_qs(url.query).get("provider", []) if name != "qemu"]
    words += ["part"] if part else []
    return re.sub(r"[^\w.+-]+", "-", "-".join(words))


def give(path: Path) -> None:
    """Hand on what root makes to whom its folder belongs, who may want to remove it."""
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def folder(path: Path) -> Path:
    """A folder, made with all above it where they are missing. Raises ResultsError."""
    try:
        if not path.is_dir():
            folder(path.parent)
            path.mkdir(exist_ok=True)
            give(path)
    except OSError as error:
        raise ResultsError(f"{path}: no folder for the reports: {error.strerror}") from None
    return path


def take_turn(results: Path) -> None:
    """Wait for another run that makes these results; they are this one's while the process lives,
    whatever it executes. What an earlier run has left of them goes away."""
    lock = results.with_suffix(".lock")
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    give(lock)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another run that makes {results}", flush=True)
        fcntl.flock(handle, fcntl.LOCK_EX)
    os.set_inheritable(handle, True)
    for suffix in SUFFIXES:
        results.with_suffix(suffix).unlink(missing_ok=True)


def workers(wanted: str | None, target: str) -> int:
    """How many tests run at once. `auto`: as many as there are processors, as far as memory goes, and
    twice as many on this machine, where much of a test is waiting; one where the target is one
    machine for all."""
    if wanted != "auto":
        return int(wanted or 1)
    url = urlsplit(target)
    if (
        url.scheme in ("host", "ssh")
        or target == "host"
        or "no" in parse_qs(url.query).get("fresh", [])
    ):
        return 1
    found = re.search(r"^MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    fits = int(found[1]) // PER_WORKER if found else 1
    processors = len(os.sched_getaffinity(0))
    return max(1, min(fits, processors if url.scheme == "vm" else 2 * processors))

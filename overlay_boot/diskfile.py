"""overlay-diskfile: a disk image's file system for LOWER or UPPER, mounted by a "!" value."""

from __future__ import annotations

import os
import subprocess

from overlay_boot import ConfigError, OverlayBootError, lines_of

SECTOR = 512  # bytes; the unit that partx(8) counts in


def diskfile(place: str, image: str = "", partition: str = "") -> str:
    """Mount image, or one of its partitions counted from 1, and return place, the path to use.

    The mount point is as much of place as is there: the rest of it lies in the image. Only
    overlay-boot mounts (it sets ACTION), and only what is not mounted yet. The mount stays.
    """
    if not image or os.environ.get("ACTION") != "overlay-boot":
        return place
    mount_point = place
    while not os.path.isdir(mount_point) and mount_point:
        mount_point = os.path.dirname(mount_point)
    if not mount_point.strip("/"):
        raise ConfigError(f"{place}: no folder of it is there: make the mount point with mkdir")
    if os.path.ismount(mount_point) or _backing_file(mount_point) == os.path.realpath(image):
        return place
    offset, size = _partition(image, partition) if partition else (0, os.path.getsize(image))
    options = f"loop,offset={offset},sizelimit={size}"
    _run("mount", "-o", options, image, mount_point)
    return place


def _backing_file(path: str) -> str:
    """The disk image that a path's file system is mounted from; empty if it is no such one."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        return "\n".join(lines_of(f"/sys/dev/block/{number}/loop/backing_file")[:-1])
    except OSError:
        return ""


def _partition(image: str, number: str) -> tuple[int, int]:
    """Where a partition begins in an image and how long it is, in bytes."""
    said = _run("partx", "-g", "-r", "-o", "NR,START,SECTORS", image)
    for line in said.splitlines():
        nr, start, sectors = line.split()
        if nr == number:
            return int(start) * SECTOR, int(sectors) * SECTOR
    raise OverlayBootError(f"{image} has no partition {number}: partx {image} lists them")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise OverlayBootError(f"{' '.join(command)}: {said}")
    return done.stdout

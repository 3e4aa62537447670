"""overlay-diff from the inside: much of it, odd names, sizes, what cannot be read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from overlay_boot.diff import quoted, size_of

from .conftest import BIN, needs_root, run

FOLDERS, FILES = 80, 500
KILOBYTES = 18 * 1024  # an interpreter with the modules, and a folder's names


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/etc/x-1.0_b,c", "/etc/x-1.0_b,c"),
        ("/a b", "'/a b'"),
        ("/it's", "'/it'\"'\"'s'"),
        ("/a\nb", "$'/a\\x0ab'"),
        ("/\x1b]0;x\x07'\\", "$'/\\x1b]0;x\\x07\\'\\\\'"),
        ("/\udcff", "$'/\\xff'"),
        ("/\u202e", "$'/\\xe2\\x80\\xae'"),
    ],
)
def test_names_are_quoted(name: str, shown: str) -> None:
    assert quoted(name) == shown and shown.isprintable()
    read = subprocess.run(["bash", "-c", f"printf %s {shown}"], capture_output=True, check=True)
    assert read.stdout == os.fsencode(name)


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0K"),
        (10200, "10K"),
        (1023 * 1024, "1.0M"),
        (1 << 62, "4.0E"),
    ],
)
def test_sizes_are_short(number: int, shown: str) -> None:
    assert size_of(number) == shown


def subhost(folder: Path, lower: str = "lower") -> Path:
    """A configuration with its folders."""
    for name in ("root", "work", "live", "lower"):
        (folder / name).mkdir(exist_ok=True)
    conf = folder / "big.conf"
    conf.write_text(f"BASE=.\nSTART=none\nLOWER={lower}\nLOG=log\n")
    return conf


MEASURED = """
import sys
sys.argv = sys.argv[1:]
from overlay_boot.cli import main
from overlay_boot.diff import USAGE, run
status = main("overlay-diff", (run, USAGE))
with open("/proc/self/status") as lines:
    print(*(line.split()[1] for line in lines if line.startswith("VmHWM:")), file=sys.stderr)
sys.exit(status)
"""


@needs_root
def test_many_files_take_no_memory(tmp_path: Path) -> None:
    """The most that the process ever had is what it has for a few files, and some for a folder's
    names: less than a list of all of them would take."""
    conf = subhost(tmp_path)
    for number in range(FOLDERS):
        for layer in ("root", "lower"):
            folder = tmp_path / layer / f"srv/{number // 10}/{number}"
            folder.mkdir(parents=True)
            (folder / "file-0").write_text(layer)
            for file in range(1, FILES):
                os.link(folder / "file-0", folder / f"file-{file}")
    for option in ([], ["--json"]):
        command = [sys.executable, "-c", MEASURED, BIN / "overlay-diff", *option, conf]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.count("/file-") == FOLDERS * FILES
        assert int(done.stderr) < KILOBYTES, done.stderr


@needs_root
def test_a_file_whose_attributes_alone_are_uppers(tmp_path: Path) -> None:
    """A metacopy: nothing of its size is UPPER's, and if it was moved that is told."""
    conf = subhost(tmp_path)
    for name in ("one", "two"):
        (tmp_path / "lower" / name).write_text("contents")
        made = tmp_path / "root" / name
        made.touch()
        os.truncate(made, 8)
        os.setxattr(made, "trusted.overlay.metacopy", b"")
    os.setxattr(tmp_path / "root/two", "trusted.overlay.redirect", b"/one")
    said = run("overlay-diff", conf).stdout.splitlines()[:2]
    assert said == [
        "changed        0  /one  (attributes)",
        "moved          0  /two  (attributes, from /one)",
    ]


@needs_root
def test_a_tree_deeper_than_any_path(tmp_path: Path) -> None:
    """What no path can name is told of, with status 1, and the rest is shown."""
    conf = subhost(tmp_path)
    (tmp_path / "root/z").touch()
    there = os.open(tmp_path / "root", os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=there)
        there, old = os.open("d" * 200, os.O_RDONLY, dir_fd=there), there
        os.close(old)
    os.close(there)
    done = run("overlay-diff", conf)
    subprocess.run(["rm", "-r", tmp_path / "root"], check=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot be read: File name too long" in done.stderr or "openat2" in done.stderr
    assert "\nadded          0  /z\n" in f"\n{done.stdout}"


@needs_root
def test_lower_need_not_end(tmp_path: Path) -> None:
    """Nothing waits where something else is in the place of a database."""
    conf = subhost(tmp_path)
    for layer in ("root", "lower"):
        (tmp_path / layer / "var/lib/dpkg/info").mkdir(parents=True)
        os.mkfifo(tmp_path / layer / "var/lib/dpkg/status")
    done = run("overlay-diff", conf)
    assert done.returncode == 0 and "PACKAGES" not in done.stdout, done.stderr


@needs_root
def test_a_record_of_an_older_version(tmp_path: Path, lower: Path) -> None:
    """One that was booted before UPPER was written down is looked at by its configuration."""
    conf = subhost(tmp_path, str(lower))
    assert run("overlay-boot", conf).returncode == 0
    try:
        wanted = run("overlay-diff", "big").stdout
        record = Path("/run/overlay-boot/big")
        said = record.read_bytes()
        items = said.split(b"\0")
        left = [item for item in items if not item.startswith((b"upper=", b"lower="))]
        assert len(left) == len(items) - 2
        record.write_bytes(b"\0".join(left))
        assert run("overlay-diff", "big").stdout == wanted and "/.reaper" in wanted
    finally:
        assert run("overlay-stop", "big").returncode == 0

"""What setup.py makes: a static program for any Linux, built as the environment says."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.debian.clone import tracked

ROOT = Path(__file__).parent.parent.parent
PT_INTERP, ET_DYN = 3, 3
PROGRAMS = ("reaper", "helper")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what setup.py needs."""
    for name in ("overlay_boot", "bin"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns(*PROGRAMS))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, tmp_path)
    return tmp_path


def run_setup(source: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py with these environment variables and none of the flags that are set here."""
    clean = {k: v for k, v in os.environ.items() if not k.endswith("FLAGS") and k != "CC"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "setup.py", *words],
        cwd=source, env={**clean, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def build(source: Path, **variables: str) -> str:
    """What building the program prints."""
    done = run_setup(source, "build_py", "--build-lib", "built", **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def headers(program: Path) -> tuple[int, set[int]]:
    """The type of a 64-bit little-endian ELF file, and the types of its program headers."""
    data = program.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01"
    (kind,) = struct.unpack_from("<H", data, 16)
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    return kind, {struct.unpack_from("<I", data, offset + size * n)[0] for n in range(count)}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.skipif(sys.byteorder != "little" or sys.maxsize < 1 << 32, reason="another ELF")
def test_the_program_is_static_and_position_independent(source: Path, name: str) -> None:
    build(source)
    program = source / "built/overlay_boot" / name
    kind, segments = headers(program)
    assert kind == ET_DYN and PT_INTERP not in segments
    done = subprocess.run([program], timeout=10, check=False, stderr=subprocess.PIPE)
    assert done.returncode == {"reaper": 0, "helper": 2}[name]


def test_the_environment_is_honoured(source: Path) -> None:
    """CC, CPPFLAGS, CFLAGS and LDFLAGS, each in the line where it belongs; the lines are shown."""
    (source / "own-cc").write_text('#!/bin/sh\nexec cc "$@"\n')
    (source / "own-cc").chmod(0o755)
    shown = build(
        source,
        CC=f"{source}/own-cc -DIN_CC",
        CPPFLAGS="-DIN_CPPFLAGS",
        CFLAGS="-O1 -DIN_CFLAGS",
        LDFLAGS="-Wl,-z,now",
    )
    lines = [line for line in shown.splitlines() if line.startswith(f"{source}/own-cc -DIN_CC ")]
    assert len(lines) == 2 * len(PROGRAMS)
    for compiled, linked in zip(lines[::2], lines[1::2], strict=True):
        assert " -c " in compiled and " -DIN_CPPFLAGS " in compiled and " -DIN_CFLAGS " in compiled
        assert " -Os " not in compiled
        assert " -c " not in linked and " -Wl,-z,now " in linked and " -s " not in linked


def test_a_failing_compiler_fails_the_build(source: Path) -> None:
    done = run_setup(source, "build_py", "--build-lib", "built", CC="false")
    assert done.returncode != 0 and "'false'" in done.stderr
    assert not (source / "built/overlay_boot/reaper").exists()


def test_the_wheel_is_for_any_python_and_c_library(source: Path) -> None:
    done = run_setup(source, "bdist_wheel", "--dist-dir", "dist")
    assert done.returncode == 0, done.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    machine = os.uname().machine
    tag = f"py3-none-manylinux_2_17_{machine}.musllinux_1_1_{machine}"
    assert wheel.name.endswith(f"-{tag}.whl")


def test_the_source_distribution_has_every_file(tmp_path: Path) -> None:
    """Its tests run from it: all that git knows is in it, but for what is only for git."""
    names = tracked()
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    done = run_setup(tmp_path, "--quiet", "sdist")
    assert done.returncode == 0, done.stderr
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    assert names - packed == set()

"""The suite's own wheel: it works where there is no clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from spec.clauses import FOLDER


def test_the_wheel_has_all_of_the_suite(tmp_path: Path) -> None:
    source = tmp_path / "spec"
    shutil.copytree(
        FOLDER, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg*")
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
    ]
    subprocess.run([*command, "-w", tmp_path, source], check=True, timeout=200)
    (wheel,) = tmp_path.glob("overlay_boot_spec-*.whl")
    place = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    lib = place / "overlay_boot_spec/lib/spec"
    tracked = {
        str(path.relative_to(source))
        for path in source.rglob("*")
        if path.is_file() and path.parts[len(source.parts)] not in ("console", "build")
    }
    there = {str(path.relative_to(lib)) for path in lib.rglob("*") if path.is_file()}
    assert {name for name in tracked - there if ".egg-info" not in name} == {"pyproject.toml"}
    code = "import sys, overlay_boot_spec; sys.exit(overlay_boot_spec.main())"
    for words, says in (
        (["list", "--json"], '"netns-name"'),
        (["where", "netns-name"], "test_variables.py"),
        (["run", "--target", "nowhere"], "nowhere: here, host, ssh"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(place)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert says in done.stdout + done.stderr, done
        assert str(FOLDER) not in done.stdout + done.stderr, done

"""Builds the reaper, the one compiled piece: a small static C program (see overlay_boot/reaper.c)."""

import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution

FLAGS = "-std=c11 -Os -Wall -Wextra -static -s -Wl,-z,noseparate-code,--build-id=none"


class BuildReaper(build_py):
    """build_py that also compiles the reaper next to the Python files it belongs to."""

    def run(self) -> None:
        super().run()
        compiler = shutil.which("musl-gcc") or "cc"
        root = Path("." if self.editable_mode else self.build_lib) / "overlay_boot"
        fresh = root / "reaper.new"
        subprocess.run(
            [compiler, *FLAGS.split(), "-o", str(fresh), "overlay_boot/reaper.c"], check=True
        )
        fresh.rename(root / "reaper")


class PlatformDistribution(Distribution):
    """The wheel holds machine code, so it is not for every platform."""

    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildReaper}, distclass=PlatformDistribution)

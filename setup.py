"""Builds the two compiled pieces, the static programs of overlay_boot, and tags the wheel.

CC, CPPFLAGS, CFLAGS and LDFLAGS are honoured. The programs are static ones at a random address
(static-pie), of musl where Debian's musl-dev is installed for CC's architecture: with glibc they
are forty times the size.
"""

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution

PROGRAMS = ("reaper", "helper")


def flags(variable: str, default: str = "") -> list[str]:
    """The words of an environment variable, as a shell takes them apart."""
    return shlex.split(os.environ.get(variable, default))


def say_and_run(*command: str) -> None:
    """Run a command that is shown first, as one line that blhc(1) can read."""
    print(shlex.join(command), flush=True)
    subprocess.run(command, check=True)


def output(*command: str) -> str:
    """What a command prints, or nothing where it does not know the question."""
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def musl(compiler: list[str]) -> tuple[list[str], list[str], list[str]]:
    """What to compile with, and to link with before and after the object, for a static-pie.

    Debian's musl-gcc cannot link one before musl 1.2.5, and builds for no other architecture, so
    the pieces that it would choose are named here.
    """
    architecture = output(*compiler, "-print-multiarch").replace("-gnu", "-musl")
    library = f"/usr/lib/{architecture}"
    if not (architecture and Path(library, "rcrt1.o").exists()):
        return [], ["-static-pie"], []
    own = output(*compiler, "-print-file-name=include")  # stddef.h and the like
    headers = ["-nostdinc", "-isystem", f"/usr/include/{architecture}", "-isystem", own]
    before = ["-nostdlib", "-pie", "-Wl,-static,--no-dynamic-linker,-z,text"]
    before += [f"{library}/rcrt1.o", f"{library}/crti.o"]
    # Nobody makes the relocated data of a musl static-pie read-only, so that a page for it alone
    # would be a page more for each process, and nothing else.
    after = [f"-L{library}", "-lc", "-lgcc", f"{library}/crtn.o", "-Wl,-z,norelro"]
    return headers, before, after


def build_programs(folder: Path) -> None:
    """Compile both into a folder; one that runs there is replaced, not written to."""
    compiler = flags("CC", "cc")
    headers, before, after = musl(compiler)
    warnings = ["-Wall", "-Wextra"]
    small = ["-fno-asynchronous-unwind-tables"]
    compile_flags = ["-std=c11", *warnings, "-fPIE", *small, *flags("CFLAGS", "-Os")]
    link_flags = ["-Wl,-z,noseparate-code", *flags("LDFLAGS", "-s -Wl,--build-id=none")]
    for name in PROGRAMS:
        source, built, new = f"overlay_boot/{name}.c", f"{folder}/{name}.o", f"{folder}/{name}.new"
        compile_only = [*flags("CPPFLAGS"), *headers, *compile_flags, "-c", source]
        say_and_run(*compiler, *compile_only, "-o", built)
        say_and_run(*compiler, *compile_flags, *before, built, *link_flags, *after, "-o", new)
        os.remove(built)
        os.rename(new, folder / name)


class BuildPrograms(build_py):
    """build_py that also compiles the programs next to the Python files they belong to."""

    def run(self) -> None:
        super().run()
        build_programs(Path("." if self.editable_mode else self.build_lib) / "overlay_boot")


def wheel_commands() -> dict[str, type[Command]]:
    """bdist_wheel with a tag for any Python 3 and any C library, on one architecture; nothing
    where wheels cannot be built."""
    try:
        from setuptools.command.bdist_wheel import bdist_wheel
    except ImportError:  # before setuptools 70.1
        try:
            from wheel.bdist_wheel import bdist_wheel
        except ImportError:
            return {}

    class StaticWheel(bdist_wheel):
        def get_tag(self) -> tuple[str, str, str]:
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            if platform.startswith("linux_"):
                machine = platform.removeprefix("linux_")
                platform = f"manylinux_2_17_{machine}.musllinux_1_1_{machine}"
            return "py3", "none", platform

    return {"bdist_wheel": StaticWheel}


class PlatformDistribution(Distribution):
    """What is built holds machine code, so it is not for every platform."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    cmdclass={"build_py": BuildPrograms, **wheel_commands()},
    distclass=PlatformDistribution,
)

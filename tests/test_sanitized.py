"""The two static programs, built with the sanitizers for addresses and undefined behaviour, at work."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import BIN, Subhost, needs_root

SOURCE = Path(__file__).parents[1]
# What they find ends the process, with a status that none of its roles has, and is in the log.
OPTIONS = '"detect_leaks=0:exitcode=99:detect_stack_use_after_return=1"'
DEFAULTS = f"const char *__asan_default_options(void) {{ return {OPTIONS}; }}\n"
FLAGS = ["-std=c11", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FOUND = ("AddressSanitizer", "runtime error:")


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of a copy of the package in which both programs are built that way. They need
    their libraries: so the subhost's LOWER is the main host's root."""
    folder = tmp_path_factory.mktemp("sanitized")
    package = folder / "overlay_boot"
    shutil.copytree(SOURCE / "overlay_boot", package)
    (folder / "defaults.c").write_text(DEFAULTS)
    for name in ("reaper", "helper"):
        (package / name).unlink()
        built = ["-o", package / name, package / f"{name}.c", folder / "defaults.c"]
        subprocess.run(["gcc", *FLAGS, *built], check=True)
    for command in (SOURCE / "bin").iterdir():
        script = folder / command.name
        first = f"#!{BIN}/python3\nimport sys\n\nsys.path.insert(0, {str(folder)!r})\n"
        script.write_text(first + command.read_text())
        script.chmod(0o755)
    return folder


def run(*command: str | Path, typed: str = "") -> subprocess.CompletedProcess[str]:
    """A command, which is to find nothing."""
    words = list(map(str, command))
    done = subprocess.run(
        words, input=typed, capture_output=True, text=True, timeout=120, check=False
    )
    assert not any(text in done.stdout + done.stderr for text in FOUND), done
    return done


@needs_root
def test_nothing_is_found_in_a_life_with_all_roles(subhost: Subhost, commands: Path) -> None:
    """Boot, enter in each way, stop with a service in START; then an end by itself, and a keeper
    without its pid 1."""
    boot, go, stop = (commands / f"overlay-{name}" for name in ("boot", "go", "stop"))
    service = subhost.folder / "root/one"
    service.write_text("#!/bin/sh\n[ $1 = stop ] || sleep 999 < /dev/null > /dev/null 2>&1 &\n")
    service.chmod(0o755)
    conf = subhost.write(f"LOWER=/\nSTART=/one /{'x' * 200}\nCABLES= = =")
    done = run(boot, "--wait", conf)
    assert "/one" not in done.stderr, done
    assert run(go, subhost.name, typed="echo $$; exit 5\n").returncode == 5
    assert run(go, subhost.name, "no-such-command").returncode == 127
    jobs = subhost.folder / "jobs"
    jobs.write_text(
        f"set -m\n{go} {subhost.name} sh -c 'kill -TSTP 0; exit 7'\nfg\necho ended $?\n"
    )
    said = run("script", "-qec", f"bash {jobs}", "/dev/null").stdout
    assert said.endswith("ended 7\n"), said  # fg had a job, and so it was stopped
    killed = (
        f"timeout -s KILL 1 {go} {subhost.name} sleep 60; timeout 1 {go} {subhost.name} sleep 60"
    )
    assert run("sh", "-c", killed).returncode == 124
    assert run(stop, subhost.name).returncode == 0
    subhost.write("LOWER=/\nCABLES= =")
    assert run(boot, "--wait", conf).returncode == 0
    assert run(go, subhost.name, typed="echo > /run/dummy_service\n").returncode == 0
    assert run(stop, subhost.name).returncode in (0, 3)
    assert run(boot, "--wait", conf).returncode == 0
    os.kill(subhost.pid(), 9)
    assert run(stop, subhost.name).returncode in (0, 3)
    log = (subhost.folder / "log").read_text()
    assert not any(text in log for text in FOUND), log


@needs_root
@pytest.mark.parametrize(
    "words",
    [[], ["--keep"], ["--clear"], ["--run"], ["--enter"], ["enter", "x"], ["--start", "x" * 5000]],
)
@pytest.mark.parametrize("name", ["reaper", "helper"])
def test_nothing_is_found_with_any_words(commands: Path, name: str, words: list[str]) -> None:
    """Called by somebody who means no harm, such as a shell's completion: an exit status, and no more."""
    assert run(commands / f"overlay_boot/{name}", *words).returncode in (0, 1, 2, 125)

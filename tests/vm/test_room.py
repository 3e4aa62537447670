"""What becomes of machines where this one runs out of room, or keeps an image badly."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vm.conftest import SUITE, leftovers, shared
from vm import folders, image, start
from vm.errors import HostError, MachineError
from vm.image import Image

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts: run as root")


@pytest.fixture
def mounted() -> Iterator[Callable[..., Path]]:
    """Mounts a tmpfs with these options on a new folder with a short name."""
    with tempfile.TemporaryDirectory(prefix="vm-") as name:
        made: list[Path] = []

        def mount(options: str) -> Path:
            folder = Path(name) / str(len(made))
            folder.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
            made.append(folder)
            return folder

        yield mount
        for folder in made:
            subprocess.run(["umount", "-l", folder], check=True)
            shutil.rmtree(shared(folder / "run"), ignore_errors=True)


@needs_root
@pytest.mark.vm
@pytest.mark.usefixtures("ready")
def test_a_disk_that_fills_under_a_machine(
    mounted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU pauses the machine: its silence is told from a guest that hangs, and the folder named, long
    before the command's time is over."""
    run = mounted("size=60M") / "run"
    monkeypatch.setenv("VM_RUN", str(run))
    full = f"paused, .*: no space left in {run}/"
    with start.up(SUITE) as machine, pytest.raises(HostError, match=full):
        machine.run("head -c 150M /dev/urandom > /root/fill; sync", timeout=math.inf)
    assert not leftovers(run)


@needs_root
@pytest.mark.vm
@pytest.mark.usefixtures("ready")
def test_memory_that_fills_under_a_machine(
    mounted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU is ended by SIGBUS. As in a container with a small /dev/shm, memory is in the run folder."""
    run = mounted("size=300M") / "run"
    monkeypatch.setenv("VM_RUN", str(run))
    monkeypatch.setattr(folders, "memory", lambda name: folders.run() / name)
    full = f"got no more memory: no space left in {run}/"
    with start.up(SUITE) as machine, pytest.raises(HostError, match=full):
        machine.run("head -c 240M /dev/zero > /dev/shm/fill", timeout=60)


@pytest.mark.vm
@pytest.mark.usefixtures("ready")
def test_a_damaged_image_says_how_to_make_it_anew(own_cache: Path) -> None:
    """One that is cut off, at once; one whose content is not as it was made, when it does not boot."""
    file = image.build(SUITE).folder / "vmlinux"
    kernel = file.read_bytes()
    file.unlink()  # the link: the file is the real cache's
    anew = f"is damaged .*: python -m vm build {SUITE} --flavour plain --fresh"
    with pytest.raises(HostError, match=anew):
        image.build(SUITE)
    file.write_bytes(kernel[:-1])
    with pytest.raises(HostError, match=anew):
        start.up(SUITE)
    file.write_bytes(bytes(len(kernel)))
    with pytest.raises(HostError, match=anew):
        start.up(SUITE, say=lambda line: None)
    file.write_bytes(kernel)
    start.up(SUITE, cold=True, init="small").close()


@pytest.mark.parametrize("text", ["", "{}", '{"files": 3}', '{"files": {"gone": [1, ""]}}', "\0"])
def test_an_image_without_a_word_on_itself_is_damaged(own_folders: Path, text: str) -> None:
    folder = own_folders / "trixie-mta-0123"
    folder.mkdir()
    with pytest.raises(HostError, match="build trixie --flavour mta --fresh"):
        Image(folder).check()
    (folder / "image.json").write_text(text)
    with pytest.raises(HostError, match="build trixie --flavour mta --fresh"):
        Image(folder).check()


@needs_root
def test_a_cache_in_which_no_program_may_run(
    mounted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before anything is fetched."""
    cache = mounted("size=10M,noexec") / "cache"
    monkeypatch.setenv("VM_CACHE", str(cache))
    monkeypatch.setenv("MIRROR", "http://mirror.invalid/debian")
    with pytest.raises(HostError, match=f"^VM_CACHE: {cache} is mounted noexec"):
        image.build(SUITE, say=lambda line: None)


@pytest.mark.vm
@pytest.mark.usefixtures("ready", "own_run")
def test_qemu_killed_by_another(own_cache: Path) -> None:
    """No lack of room that could be seen, but a word on who does such things."""
    with start.up(SUITE, cold=True, init="small") as machine:
        os.kill(int((folders.run() / machine.name / "pid").read_text().split()[0]), 9)
        with pytest.raises(MachineError, match="gone.*\n.*out of memory: see dmesg"):
            machine.run("true")

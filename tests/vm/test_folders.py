"""Who owns what in the cache and run folders, and that only the abandoned is removed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vm import folders
from vm.machine import MachineError


def test_run_folder_is_private(own_folders: Path) -> None:
    (own_folders / "run").mkdir(mode=0o755)
    assert folders.run().stat().st_mode & 0o777 == 0o700


def test_anothers_run_folder_is_refused(own_folders: Path) -> None:
    """A link that another user could have put into /tmp."""
    (own_folders / "elsewhere").mkdir()
    (own_folders / "run").symlink_to(own_folders / "elsewhere")
    with pytest.raises(MachineError, match="not a folder of user"):
        folders.run()


def test_only_abandoned_folders_are_swept(own_folders: Path) -> None:
    used, lock = folders.claim(folders.run(), "used")
    left, gone = folders.claim(folders.run(), "left")
    (left / "deep").mkdir()
    gone.release()
    assert folders.sweep() == [left.name]
    assert used.exists() and not left.exists()
    lock.release()


def test_the_process_of_an_abandoned_folder_is_ended(own_folders: Path) -> None:
    folder, lock = folders.claim(folders.run(), "left")
    with subprocess.Popen(["sleep", "100"]) as process:
        folders.record(folder / "pid", process.pid)
        lock.release()
        folders.sweep()
        assert process.wait(5) == -9


def test_a_reused_pid_is_left_alone(own_folders: Path) -> None:
    folder, lock = folders.claim(folders.run(), "left")
    with subprocess.Popen(["sleep", "100"]) as process:
        (folder / "pid").write_text(f"{process.pid} 1\n")
        lock.release()
        folders.sweep()
        assert process.poll() is None
        process.kill()


def test_a_lock_outlives_its_process_in_a_child(own_folders: Path) -> None:
    """As a detached machine holds its folder."""
    folder, lock = folders.claim(folders.run(), "detached")
    with subprocess.Popen(["sleep", "100"], pass_fds=[lock.fd]) as process:
        lock.release()
        assert folders.sweep() == []
        process.kill()
        process.wait()
        assert folders.sweep() == [folder.name]


def test_half_built_images_are_swept(own_folders: Path) -> None:
    building = folders.private(folders.cache() / "building")
    work, lock = folders.claim(building, "trixie")
    (work / "tree").mkdir()
    lock.release()
    assert folders.sweep() == [work.name]
    assert not work.exists()

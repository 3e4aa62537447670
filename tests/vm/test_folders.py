"""Who owns what in the cache and run folders, and that only the abandoned is removed."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vm import folders, processes
from vm.errors import HostError


def test_run_folder_is_private(own_folders: Path) -> None:
    (own_folders / "run").mkdir(mode=0o755)
    assert folders.run().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("what", ["link", "dangling", "file"])
def test_anothers_run_folder_is_refused(own_folders: Path, what: str) -> None:
    """What another user could have put into /tmp."""
    path = own_folders / "run"
    if what == "link":
        (own_folders / "elsewhere").mkdir()
    path.touch() if what == "file" else path.symlink_to(own_folders / "elsewhere")
    with pytest.raises(HostError, match="not a folder of user"):
        folders.run()


@pytest.mark.parametrize("folder", [folders.run, folders.cache])
def test_a_folder_with_other_things_in_it_is_refused(
    own_folders: Path, folder: Callable[[], Path]
) -> None:
    """What is abandoned gets removed: nobody shall lose a home that way."""
    for name in ("run", "cache"):
        (own_folders / name / "photos").mkdir(parents=True)
    with pytest.raises(HostError, match="holds other things"):
        folder()
    with pytest.raises(HostError, match="holds other things"):
        folders.sweep()
    assert (own_folders / "run/photos").exists() and (own_folders / "cache/photos").exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [("a b", "without blanks"), ("a'b", "without"), ("a%h", "without"), ("x" * 60, "longer than")],
)
def test_odd_names_are_refused(own_folders: Path, monkeypatch, name: str, why: str) -> None:
    monkeypatch.setenv("VM_RUN", str(own_folders / name))
    with pytest.raises(HostError, match=f"^VM_RUN: .*{why}"):
        folders.run()
    assert not (own_folders / name).exists()


def test_relative_names_are_of_the_current_folder(own_folders: Path, monkeypatch) -> None:
    monkeypatch.chdir(own_folders)
    monkeypatch.setenv("VM_CACHE", "here,there")
    assert folders.cache() == own_folders / "here,there"


def test_only_abandoned_folders_are_swept(own_folders: Path) -> None:
    used, lock = folders.claim(folders.run(), "used")
    left, gone = folders.claim(folders.run(), "left")
    (left / "deep").mkdir()
    gone.release()
    assert folders.sweep() == [left.name]
    assert used.exists() and not left.exists()
    lock.release()


def test_half_made_and_half_removed_folders_are_swept(own_folders: Path) -> None:
    """One that was interrupted before it had its lock, or after that was removed."""
    (folders.run() / "half").mkdir()
    (folders.building() / "half").mkdir()
    assert folders.sweep() == ["half", "half"]
    assert not list(folders.run().glob("*/")) and not list(folders.building().glob("*/"))


def test_memory_lives_as_long_as_its_machine(own_folders: Path) -> None:
    folder, lock = folders.claim(folders.run(), "machine")
    memory = folders.memory(folder.name)
    stray = memory.with_name("stray")
    stray.mkdir()
    folders.sweep()
    assert memory.exists() and not stray.exists()
    lock.release()
    assert folders.sweep() == [folder.name]
    assert not memory.exists() and memory.parent.exists()


def test_two_may_remove_the_same_folder(own_folders: Path, monkeypatch) -> None:
    (own_folders / "folder/deep").mkdir(parents=True)
    real, calls = shutil.rmtree, []

    def other_was_faster(path: Path, **options: object) -> None:
        calls.append(path)
        if len(calls) == 1:
            real(path / "deep")
            raise FileNotFoundError
        real(path, **options)

    monkeypatch.setattr(shutil, "rmtree", other_was_faster)
    folders.remove(own_folders / "folder")
    assert len(calls) == 2 and not (own_folders / "folder").exists()


def test_who_waits_for_a_lock_says_so(own_folders: Path) -> None:
    said: list[str] = []
    with folders.Lock(own_folders / "file"):
        with pytest.raises(BlockingIOError):
            folders.Lock(own_folders / "file", shared=True)
        assert folders.in_use(own_folders / "file")
        waiter = threading.Thread(
            target=lambda: folders.Lock(
                own_folders / "file", wait=True, busy=lambda: said.append("waits")
            ).release()
        )
        waiter.start()
        while not said:
            time.sleep(0.01)
        assert waiter.is_alive()
    waiter.join(10)
    assert not waiter.is_alive() and not folders.in_use(own_folders / "file")


def test_the_process_of_an_abandoned_folder_is_ended(own_folders: Path) -> None:
    folder, lock = folders.claim(folders.run(), "left")
    with subprocess.Popen(["sleep", "100"]) as process:
        processes.record(folder / "pid", process.pid)
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


def test_a_process_that_ends_meanwhile(own_folders: Path, monkeypatch) -> None:
    def gone(pid: int) -> int:
        raise ProcessLookupError

    with subprocess.Popen(["sleep", "100"]) as process:
        processes.record(own_folders / "pid", process.pid)
        monkeypatch.setattr("os.pidfd_open", gone)
        processes.kill_recorded(own_folders / "pid")
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
    work, lock = folders.claim(folders.building(), "trixie")
    (work / "tree").mkdir()
    lock.release()
    assert folders.sweep() == [work.name]
    assert not work.exists()

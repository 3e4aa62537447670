"""The files of a run: their names, whose turn it is, how many work on them, and who owns them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spec import files, installed, report, results
from spec.__main__ import main
from spec.reporter import write
from tests.conftest import needs_root
from tests.spec.test_report import outcome, results_of

VM = "vm://trixie?provider=qemu&flavour=mta&cpus=1"


@pytest.mark.parametrize(
    ("target", "what", "part", "stem"),
    [
        ("here", "bin", False, "here"),
        ("here", "bin", True, "here-part"),
        (VM, "bin", False, "trixie"),
        (VM, "overlay-boot_1.6.4-1_amd64.deb", False, "trixie-overlay-boot"),
        (VM, "my own.deb", True, "trixie-my-own-part"),
        ("vm://sid?provider=vagrant&flavour=mta&fresh=no", "bin", False, "sid-vagrant"),
        ("ssh://root@host.example:2222", None, False, "ssh-host.example"),
    ],
)
def test_files_are_named_after_what_is_tested(
    tmp_path: Path, target: str, what: str | None, part: bool, stem: str
) -> None:
    (tmp_path / "bin").mkdir()
    assert files.stem(target, tmp_path / what if what else None, part=part) == stem


@pytest.mark.parametrize(
    ("package", "page"), [("overlay-boot", "1.6"), ("overlay-boot-python", "ours"), ("x", "ours")]
)
def test_debians_package_is_held_to_its_own_page(tmp_path: Path, package: str, page: str) -> None:
    """Whatever its file is called, a blank in the path included."""
    control = tmp_path / "a b/DEBIAN/control"
    control.parent.mkdir(parents=True)
    fields = {"Package": package, "Version": "1", "Architecture": "all", "Maintainer": "x <x@x>"}
    lines = [f"{key}: {value}" for key, value in {**fields, "Description": "x"}.items()]
    control.write_text("\n".join(lines) + "\n")
    command = ["dpkg-deb", "--build", "a b", "a b.deb"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert installed.page_of(tmp_path / "a b.deb") == page
    assert installed.page_of(tmp_path) == installed.page_of(None) == "ours"


@pytest.mark.parametrize(
    ("wanted", "target", "number"),
    [
        (None, "here", 1),
        ("3", VM, 3),
        ("auto", "host", 1),
        ("auto", "ssh://root@machine", 1),
        ("auto", "vm://sid?provider=vagrant&fresh=no", 1),
    ],
)
def test_workers(wanted: str | None, target: str, number: int) -> None:
    assert files.workers(wanted, target) == number


def test_workers_are_as_many_as_memory_and_processors_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    for kib, number in ((100, 1), (4 * files.PER_WORKER, 4), (99 * files.PER_WORKER, 8)):
        monkeypatch.setattr(Path, "read_text", lambda _, kib=kib: f"MemAvailable:  {kib} kB\n")
        assert files.workers("auto", VM) == number
    assert files.workers("auto", "here") == 16  # they wait a lot


def test_runs_that_make_the_same_files_take_turns(tmp_path: Path) -> None:
    """The turn lasts as long as what the process executes; the first run's files are gone then."""
    results_file = tmp_path / "here.json"
    take = f"from spec.files import take_turn; import os, pathlib; take_turn(pathlib.Path({str(results_file)!r}))"
    hold = f"{take}; os.execvp('sh', ['sh', '-c', 'echo held; read x; echo new > {results_file}'])"
    first = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout and first.stdin and first.stdout.readline() == "held\n"
    second = subprocess.Popen(
        [sys.executable, "-c", f"{take}; print('mine')"], stdout=subprocess.PIPE, text=True
    )
    assert second.stdout
    assert second.stdout.readline() == f"waiting for another run that makes {results_file}\n"
    time.sleep(0.2)
    assert second.poll() is None
    first.communicate("\n", timeout=10)
    assert second.communicate(timeout=10)[0] == "mine\n"
    assert not results_file.exists()


def test_the_reports_are_all_beside_the_results(tmp_path: Path) -> None:
    path = tmp_path / "here.json"
    run = results_of(outcome("fail", "stop", reason="it runs on"))
    results.save(run, path)
    write(path)
    assert path.with_suffix(".tap").read_text() == report.tap(run)
    assert path.with_suffix(".xml").read_text() == report.junit(run)
    assert "1 of " in path.with_suffix(".html").read_text()


@needs_root
def test_what_root_makes_belongs_to_the_folders_owner(tmp_path: Path) -> None:
    os.chown(tmp_path, 1234, 1234)
    path = files.folder(tmp_path / "build/spec") / "here.json"
    files.take_turn(path)
    results.save(results_of(outcome("pass", "stop")), path)
    write(path)
    made = sorted(tmp_path.rglob("*"))
    assert len(made) == 7 and {entry.stat().st_uid for entry in made} == {1234}


def test_a_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    words = ["spec", "run", "--reports", str(tmp_path / "file" / "x")]
    monkeypatch.setattr("sys.argv", words)
    assert main() == 2
    assert capsys.readouterr().err.count("\n") == 1

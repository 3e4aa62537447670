"""Tools that are run to their end, and what becomes of them when it comes to another one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vm import processes
from vm.errors import HostError
from vm.processes import as_root, explain, run


def ends(pid: int) -> bool:
    """Whether a process ends within some seconds."""
    deadline = time.monotonic() + 10
    while processes.started(pid) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def wait_for(file: Path) -> str:
    """What a file holds, once it does."""
    deadline = time.monotonic() + 30
    while not (file.exists() and file.read_text().endswith("\n")):
        assert time.monotonic() < deadline, f"{file} does not come"
        time.sleep(0.02)
    return file.read_text()


@pytest.mark.parametrize(
    ("log", "advice"),
    [
        ("E: Temporary failure resolving 'deb.example'", "cannot be reached"),
        ("dpkg: error: cannot write: No space left on device", "no space left"),
        ("W: GPG error: NO_PUBKEY 0E98404D386FA1D9", "debian-archive-keyring"),
        ("E: The repository 'x y Release' does not have a Release file.", "not have this suite"),
        ("E: Release file for x is expired (invalid since 1d)", "out of date"),
        ("E: Unable to locate package nosuch", "no package of that name"),
        ("W: Could not connect to one of two\nE: Unable to locate package x", "no package"),
        ("setpriv: failed to execute lz: No such file or directory", "lz is missing"),
        ("noise\nE: something else\nI: removing tempdir", "E: something else"),
        ("", "without a word"),
    ],
)
def test_trouble_is_one_line_that_helps(log: str, advice: str) -> None:
    said = explain("image trixie", log)
    assert said.startswith("image trixie: ") and advice in said and "\n" not in said


def test_output_log_and_steps(tmp_path: Path) -> None:
    said: list[str] = []
    log = tmp_path / "log"
    log.write_text("before\n")
    script = "echo 'I: doing this...'; echo 'I: of no interest'; pwd; echo err >&2"
    out = run("step", "sh", "-c", script, log=log, say=said.append, folder=tmp_path)
    assert out == f"I: doing this...\nI: of no interest\n{tmp_path}\nerr\n"
    assert log.read_text() == "before\n" + out
    assert said == ["doing this"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["sh", "-c", "echo first; echo last; exit 3"], "step: last"),
        (
            ["sh", "-c", "echo 'cp: cannot copy: No space left on device'; exit 1"],
            "step: no space",
        ),
        (["sh", "-c", "kill -9 $$"], "step: failed without a word"),
        (["no-such-tool"], "step: no-such-tool is missing: make vm-setup"),
    ],
)
def test_failure_is_one_line_that_names_the_step(words: list[str], why: str) -> None:
    with pytest.raises(HostError) as caught:
        run("step", *words)
    assert str(caught.value).startswith(why) and "\n" not in str(caught.value)


def test_time_limit(tmp_path: Path) -> None:
    """What the tool has started holds its output open, and ends with it."""
    begin = time.monotonic()
    with pytest.raises(HostError, match=r"step: not done after 0\.3 s"):
        run("step", "sh", "-c", f"sleep 100 & echo $! > {tmp_path}/pid; wait", limit=0.3)
    assert time.monotonic() - begin < 10
    assert ends(int((tmp_path / "pid").read_text()))


def python(code: str) -> subprocess.Popen[bytes]:
    """Another Python that has `vm.processes` at hand and takes signals as the harness does."""
    begin = "import time; from vm.processes import *\n"
    begin += "signal.signal(signal.SIGINT, signal.default_int_handler); end_in_order()\n"
    return subprocess.Popen([sys.executable, "-c", begin + code], stderr=subprocess.PIPE)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_tool_dies_with_its_caller(tmp_path: Path, number: int) -> None:
    script = f"echo $$ > {tmp_path}/pid; exec sleep 100"
    with python(f"run('step', 'sh', '-c', {script!r})") as caller:
        pid = int(wait_for(tmp_path / "pid"))
        caller.send_signal(number)
        assert ends(pid)


@pytest.mark.skipif(
    subprocess.run([*as_root(contained=True), "true"], check=False, capture_output=True).returncode
    != 0,
    reason="this user may not make namespaces here",
)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_contained_tool_takes_along_what_it_started(number: int) -> None:
    """A killed build must not leave apt running."""
    script = "setsid sleep 54321 > /dev/null 2>&1 & sleep 100"
    code = f"run('step', *as_root(contained=True), 'sh', '-c', {script!r})"
    with python(code) as caller:
        find = ["pgrep", "-fx", "sleep 54321"]
        deadline = time.monotonic() + 30
        while not (
            found := subprocess.run(find, stdout=subprocess.PIPE, check=False).stdout.split()
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        caller.send_signal(number)
        assert all(ends(int(pid)) for pid in found)


def test_what_must_not_be_interrupted_is_finished_first(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
try:
    with uninterrupted():
        Path("{tmp_path}/begun").write_text("now\\n")
        time.sleep(1)
        Path("{tmp_path}/done").write_text("all\\n")
except KeyboardInterrupt:
    Path("{tmp_path}/interrupted").touch()
"""
    with python(code) as caller:
        wait_for(tmp_path / "begun")
        caller.send_signal(signal.SIGTERM)
        caller.send_signal(signal.SIGINT)
        assert caller.wait(10) == 0
    assert (tmp_path / "done").exists() and (tmp_path / "interrupted").exists()


def test_other_threads_are_not_disturbed() -> None:
    """Signals interrupt the main thread alone; another one may not even ask for them."""
    from threading import Thread

    ran: list[Callable[[], object]] = []

    def work() -> None:
        with processes.uninterrupted():
            ran.append(work)

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert ran

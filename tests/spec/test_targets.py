"""How targets reach the place where commands run."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from spec.__main__ import main
from spec.targets import Here, Host, NoAnswer, Ssh, TargetError
from tests.conftest import needs_root

NUMBER = 10**6 + os.getpid()  # of seconds: no other run's sleep has it
ROOT = Path(__file__).parents[2]
AROUND = """
mkdir "$1/world"
mount --rbind / "$1/world"
mount --make-rprivate "$1/world"
mount --bind "$1/name" "$1/world/etc/hostname"
cd "$2"
PYTHONPATH=$2 exec chroot "$1/world" "$3" "$1/look.py"
"""


def ends(command: str) -> bool:
    """Whether no process has that command line, now or soon."""
    limit = time.monotonic() + 5
    while subprocess.run(["pgrep", "-f", command], check=False).returncode == 0:
        if time.monotonic() > limit:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize(
    ("url", "port"),
    [("ssh://root@machine", []), ("ssh://machine:2222", ["-p", "2222"])],
)
def test_ssh_takes_the_port_that_is_given_or_configured(url: str, port: list[str]) -> None:
    target = Ssh(url)
    try:
        words = target.argv("true")
        assert (
            words[words.index("-p") : words.index("-p") + 2] == port if port else "-p" not in words
        )
    finally:
        target.close()
    assert not Path(target.folder).exists()


def test_ssh_that_cannot_connect_is_no_verdict() -> None:
    target = Ssh("ssh://root@127.0.0.1:1")
    try:
        with pytest.raises(TargetError, match=r"127\.0\.0\.1:1: .*refused"):
            target.run("true")
    finally:
        target.close()


def test_a_command_past_its_limit_is_ended_with_what_it_has_started() -> None:
    with pytest.raises(NoAnswer, match="no answer in 0 s: echo begun"):
        Host().run(f"echo begun; sleep {NUMBER} & wait", timeout=0.3)
    assert ends(f"^sleep {NUMBER}")


def test_commands_have_one_locale_whatever_the_callers_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.ISO-8859-1")
    assert Host().run("echo $LC_ALL").out == "C.UTF-8\n"


def test_commands_have_a_folder_for_temporary_files_that_the_sandbox_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    assert Host().succeed("mktemp -u").startswith("/tmp/")


def test_a_run_hands_on_all_signs_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's commands and what they print have signs that no other encoding has."""
    seen: dict[str, str] = {}
    monkeypatch.setattr(os, "execve", lambda _, words, environment: seen.update(environment))
    monkeypatch.setattr(sys, "argv", ["spec", "run", "--target", "host"])
    main()
    assert seen["PYTHONUTF8"] == "1"


@needs_root
def test_the_sandbox_has_its_own_folders_and_ends_with_its_processes() -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # one of its own folders, wherever TMPDIR is
    target = Here([folder])
    try:
        target.put(f"{folder}/seen", "both\n")
        target.put("/run/own", "")
        target.put("/opt/own", "")
        target.run(f"setsid sleep {NUMBER} > /dev/null 2>&1 &")
        assert target.run("touch /own").status != 0
        assert target.run("ls /sys/class/net").out == "lo\n"
    finally:
        target.close()
    assert (folder / "seen").read_text() == "both\n"
    assert not Path("/run/own").exists() and not Path("/opt/own").exists()
    assert ends(f"^sleep {NUMBER}")
    shutil.rmtree(folder)


@needs_root
def test_the_sandbox_in_a_chroot_is_not_of_the_machine_around_that(tmp_path: Path) -> None:
    """A test that went wrong here would leave what it makes on this machine: it only reads."""
    (tmp_path / "name").write_text("in the chroot\n")
    (tmp_path / "look.py").write_text(
        "from pathlib import Path\n"
        "from spec.targets import Here\n"
        f"target = Here([Path({str(tmp_path)!r})])\n"
        "print(target.succeed('cat /etc/hostname; ls -A /opt'))\n"
        "target.close()\n"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", AROUND, "sh", tmp_path, ROOT, sys.executable],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("in the chroot\nsubhost\n\n", "")

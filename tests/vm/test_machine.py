"""What every machine does on top of `run`, and the pool that hands machines out."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.vm.conftest import LocalMachine
from vm import start
from vm.booted import check_clock
from vm.errors import CommandFailed, CommandTimeout, MachineError, RequestError
from vm.machine import Machine, Result
from vm.pool import Pool

ODD = "a b'c\"d\\e$(f)\n-é"
ANY = [ODD, "-", "-n", "x\n", "\n", os.fsdecode(b"\xff\xfe"), "x" * 255, "a;b&c|d", "*", "~"]


def test_succeed_and_fail_raise_with_what_was_seen(local: LocalMachine) -> None:
    assert local.succeed("echo yes").out == "yes"
    with pytest.raises(CommandFailed, match="(?s)echo why.*why.*status 4"):
        local.succeed("echo why; exit 4")
    assert local.fail("exit 4").status == 4
    with pytest.raises(CommandFailed, match="succeeded unexpectedly"):
        local.fail("true")


def test_wait_until_returns_or_dumps(local: LocalMachine, tmp_path: Path) -> None:
    local.run(f"(sleep 0.3; echo now > {tmp_path}/flag) >/dev/null &")
    assert local.wait_until(f"cat {tmp_path}/flag", timeout=10).out == "now"
    local.explain = ("echo explained",)
    with pytest.raises(CommandTimeout, match="(?s)not within 0.2 s.*mountinfo.*explained"):
        local.wait_until("false", timeout=0.2)


@pytest.mark.parametrize("data", [b"", b"\0\xff\n", bytes(3 << 20)], ids=["empty", "bin", "3MB"])
def test_copy_both_ways(local: LocalMachine, tmp_path: Path, data: bytes) -> None:
    source, back = tmp_path / ODD, tmp_path / "back"
    source.write_bytes(data)
    source.chmod(0o4751)
    target = f"{tmp_path}/-new/{ODD}"
    local.copy_in(source, target)
    assert Path(target).stat().st_mode & 0o7777 == 0o4751
    local.copy_out(target, back)
    assert back.read_bytes() == data


@pytest.mark.parametrize("name", ANY, ids=range(len(ANY)))
def test_copies_whatever_the_name(local: LocalMachine, tmp_path: Path, name: str) -> None:
    """Of files, of what is in folders, and of the folders themselves, on both sides."""
    for folder in ("here", "there", "back"):
        (tmp_path / folder).mkdir()
    (tmp_path / "here" / name).write_text("text")
    local.copy_in(tmp_path / "here" / name, f"{tmp_path}/there/{name}")
    assert (tmp_path / "there" / name).read_text() == "text"
    local.copy_in(b"deep", f"{tmp_path}/deep/{name}/{name}/{name}")
    assert (tmp_path / "deep" / name / name / name).read_text() == "deep"
    local.copy_in(tmp_path / "here", f"{tmp_path}/whole/{name}")
    assert (tmp_path / "whole" / name / name).read_text() == "text"
    local.copy_out(f"{tmp_path}/there/{name}", tmp_path / "back" / name)
    assert (tmp_path / "back" / name).read_text() == "text"
    assert [path.name for path in (tmp_path / "back").iterdir()] == [name]


def test_relative_names_are_of_the_root_there(local: LocalMachine, tmp_path: Path) -> None:
    inside = str(tmp_path).removeprefix("/")
    local.copy_in(b"text", f"{inside}/-file")
    local.copy_out(f"{inside}/-file", tmp_path / "back")
    assert (tmp_path / "back").read_text() == "text"


def test_a_pipe_is_no_file_to_copy(local: LocalMachine, tmp_path: Path) -> None:
    """Reading one would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RequestError, match="pipe: neither a file nor a folder"):
        local.copy_in(tmp_path / "pipe", f"{tmp_path}/target")
    with pytest.raises(FileNotFoundError, match="missing"):
        local.copy_in(tmp_path / "missing", f"{tmp_path}/target")


def test_a_message_has_a_length(local: LocalMachine) -> None:
    """Of the report of a run with hundreds of failures each takes some KiB."""
    with pytest.raises(CommandFailed) as caught:
        local.succeed("echo begin; head -c 1000000 /dev/zero | tr '\\0' x; echo; echo end; exit 1")
    said = str(caught.value)
    assert len(said) < 40_000 and "begin" in said and "\nend" in said and "left out" in said
    assert len(caught.value.result.stdout) > 1_000_000


def test_copy_in_bytes_and_folders(local: LocalMachine, tmp_path: Path) -> None:
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/link").symlink_to("nowhere")
    local.copy_in(tmp_path / "tree", f"{tmp_path}/copy")
    assert (tmp_path / "copy/sub/link").readlink() == Path("nowhere")
    local.copy_in(b"bytes", f"{tmp_path}/file")
    assert (tmp_path / "file").read_bytes() == b"bytes"


def test_failed_copies_leave_nothing(local: LocalMachine, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="No such file"):
        local.copy_out(f"{tmp_path}/missing", tmp_path / "back")
    with pytest.raises(CommandFailed, match="/dev/null"):
        local.copy_in(b"", "/dev/null/file")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_laid_over_another_changes_only_what_it_brings(
    local: LocalMachine, tmp_path: Path
) -> None:
    for path in ("new/sub/added", "old/sub/kept"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    (tmp_path / "old").chmod(0o1777)
    (tmp_path / "old/sub").chmod(0o700)
    local.copy_in(tmp_path / "new", f"{tmp_path}/old")
    assert {path.name for path in (tmp_path / "old/sub").iterdir()} == {"added", "kept"}
    assert (tmp_path / "old").stat().st_mode & 0o7777 == 0o1777
    assert (tmp_path / "old/sub").stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://trixie", "a machine is vm://SUITE"),
        ("vm://trixie?colour=red", "a machine is vm://SUITE"),
        ("vm://trixie/plain", "a machine is vm://SUITE"),
        ("vm://trixie?network=perhaps", "a machine is vm://SUITE"),
        ("vm://trixie?detached=yes", "a machine is vm://SUITE"),
        ("vm://trixie?provider", "provider '' is not known"),
        ("vm://trixie?provider=vagrant&init=small", "provider vagrant cannot do 'init'"),
        ("vm://trixie?provider=vagrant&network=yes", "provider vagrant cannot do 'network'"),
        ("vm://trixie?flavour=sweet", "flavour 'sweet' is not known"),
        ("vm://sid?provider=none", "provider 'none' is not known"),
        ("vm://sid?init=sysv", "init 'sysv' is not known"),
        ("vm://etch", "suite 'etch' is not known"),
    ],
)
def test_bad_urls_are_refused_before_anything_is_done(
    url: str, why: str, own_folders: Path
) -> None:
    with pytest.raises(RequestError, match=why.replace("?", r"\?")):
        start.from_url(url)


class Clones(LocalMachine):
    """A machine that can be cloned."""

    can = frozenset({"snapshot", "clone"})
    made: list[LocalMachine]

    def clone(self, name: str) -> Machine:
        if name == "broken":
            raise MachineError("cannot clone")
        clone = LocalMachine(Path(str(self.process.args[0])))  # type: ignore[index]
        self.made.append(clone)
        return clone


def test_pool_restores_ahead_and_leaves_nothing(agent: Path) -> None:
    with Clones(agent) as machine:
        machine.made = []
        with Pool(machine, "state", ahead=2) as pool:
            for _ in range(3):
                with pool.take() as taken:
                    assert taken.run("true").ok and taken is not machine
        assert len(machine.made) >= 5
        assert all(clone.process.poll() is not None for clone in machine.made)


def test_pool_hands_on_a_failed_restore(agent: Path) -> None:
    with (
        Clones(agent) as machine,
        Pool(machine, "broken") as pool,
        pytest.raises(MachineError, match="cannot clone"),
        pool.take(),
    ):
        raise AssertionError("there is no machine to take")


def test_pool_of_one_machine_puts_it_back(local: LocalMachine) -> None:
    with Pool(local, "state") as pool:
        for _ in range(2):
            with pool.take() as taken:
                assert taken is local
    assert local.restored == ["state", "state"]


def test_a_folder_laid_over_a_link_goes_through_it(local: LocalMachine, tmp_path: Path) -> None:
    """As of bin over a root whose bin is a link: without it there is no shell any more. A link to the
    folder stands for that."""
    (tmp_path / "root/usr/bin").mkdir(parents=True)
    (tmp_path / "root/bin").symlink_to("usr/bin")
    (tmp_path / "new/bin").mkdir(parents=True)
    (tmp_path / "new/bin/hello").touch()
    (tmp_path / "link").symlink_to("new")
    local.copy_in(tmp_path / "link", f"{tmp_path}/root")
    assert (tmp_path / "root/bin").is_symlink() and (tmp_path / "root/usr/bin/hello").exists()


def test_what_comes_out_replaces_nothing_but_a_file(local: LocalMachine, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="/dev/null: not a regular file"):
        local.copy_out("/etc/hostname", Path("/dev/null"))
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    local.copy_out("/etc/os-release", tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == Path(
        "/etc/os-release"
    ).read_text()


@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (3.8, False), (0.3, False)])
def test_a_clock_that_runs_wrong_is_noticed(
    monkeypatch: pytest.MonkeyPatch, local: LocalMachine, factor: float, right: bool
) -> None:
    """Before a state is kept that every test's machine would have it from."""
    says = lambda _: Result("", 0, f"{time.monotonic() * factor}".encode(), b"", 0.0)
    monkeypatch.setattr(local, "need", says)
    with nullcontext() if right else pytest.raises(MachineError, match="its clock went"):
        check_clock(local, 0.3)

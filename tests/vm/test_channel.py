"""The command channel, with the real agent at its other end but no machine between."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import time
from pathlib import Path

import pytest

from tests.vm.conftest import LocalMachine
from vm.channel import FRAME, Channel
from vm.errors import CommandTimeout, MachineError


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_exit_status(local: LocalMachine, status: int) -> None:
    assert local.run(f"exit {status}").status == status


def test_signal_is_128_and_its_number(local: LocalMachine) -> None:
    assert local.run("kill -TERM $$").status == 128 + 15


def test_output_and_errors_are_apart(local: LocalMachine) -> None:
    result = local.run("echo out; echo err >&2; exit 3")
    assert (result.out, result.err, result.status) == ("out", "err", 3)


def test_ten_megabytes_of_binary_output(local: LocalMachine, tmp_path: Path) -> None:
    data = os.urandom(10 << 20)
    (tmp_path / "data").write_bytes(data)
    assert local.run(f"cat {tmp_path}/data").stdout == data


@pytest.mark.parametrize("size", [0, 1, 65536, (1 << 20) + 1, 10 << 20])
def test_input_arrives_whole(local: LocalMachine, size: int) -> None:
    data = os.urandom(size)
    assert local.run("sha256sum", input=data).out.split()[0] == hashlib.sha256(data).hexdigest()


def test_input_both_ways_at_once_does_not_block(local: LocalMachine) -> None:
    data = os.urandom(8 << 20)
    assert local.run("cat", input=data).stdout == data


def test_input_that_nobody_reads(local: LocalMachine) -> None:
    assert local.run("exit 7", input=bytes(10 << 20)).status == 7
    assert local.run("exec <&-; echo still", input=bytes(4 << 20)).out == "still"


def test_time_limit_kills_and_keeps_the_output(local: LocalMachine) -> None:
    begin = time.monotonic()
    with pytest.raises(CommandTimeout) as caught:
        local.run("echo first; sleep 100 & sleep 100", timeout=0.3)
    assert time.monotonic() - begin < 5
    assert caught.value.result.out == "first"
    assert caught.value.result.status == 128 + 9
    assert local.run("echo alive").out == "alive"


def test_time_limit_while_input_waits(local: LocalMachine) -> None:
    with pytest.raises(CommandTimeout):
        local.run("sleep 100", timeout=0.3, input=bytes(10 << 20))
    assert local.run("echo alive").out == "alive"


def test_background_process_is_not_waited_for_and_lives_on(local: LocalMachine) -> None:
    """Its output goes nowhere, but writing it does not kill it."""
    begin = time.monotonic()
    pid = local.run("(while sleep 0.05; do echo more; done) & echo $!").out
    assert time.monotonic() - begin < 5
    try:
        assert local.run(f"sleep 0.3; kill -0 {pid}").ok
    finally:
        local.run(f"kill {pid}")


def test_commands_start_plain(local: LocalMachine) -> None:
    """Root's environment and nothing of the harness': no descriptor, folder or variable."""
    assert local.run("pwd; ls /proc/self/fd | wc -l").out == "/\n4"  # 0 1 2 and ls' own
    names = {line.partition("=")[0] for line in local.run("env").out.splitlines()}
    assert names <= {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TERM", "PWD"}


def test_command_that_cannot_be_sent_is_refused(local: LocalMachine) -> None:
    with pytest.raises(ValueError, match="128 KiB"):
        local.run("x" * (128 << 10))
    assert local.run(": " + "x" * (100 << 10)).ok


def test_next_connection_ends_what_the_last_one_left(local: LocalMachine) -> None:
    """As when `python -m vm run` is interrupted and called again."""
    local.channel._send("R", b"exec sleep 100")
    local.channel.hello(timeout=5)
    assert local.run("echo next").out == "next"


def test_agent_gone_is_a_broken_machine(local: LocalMachine) -> None:
    local.process.kill()
    with pytest.raises(MachineError, match="gone"):
        local.run("true")


def test_stale_frames_are_dropped_and_a_new_agent_noticed() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        channel = Channel(ours)
        theirs.sendall(FRAME.pack(ord("X"), 99, 4) + struct.pack("<I", 0))
        theirs.sendall(FRAME.pack(ord("H"), 0, 0))
        with pytest.raises(MachineError, match="started again"):
            channel.run("true", timeout=5)
        channel.close()


def test_silence_is_a_hanging_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vm.channel.GRACE", 0.1)
    ours, theirs = socket.socketpair()
    with theirs:
        channel = Channel(ours)
        with pytest.raises(MachineError, match="hangs"):
            channel.run("true", timeout=0.1)
        with pytest.raises(MachineError, match="no answer"):
            channel.hello(timeout=0.1)
        channel.close()

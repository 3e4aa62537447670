"""The command channel, with the real agent at its other end but no machine between."""

from __future__ import annotations

import hashlib
import math
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
    with pytest.raises(ValueError, match="zero bytes"):
        local.run("echo a\0b")


@pytest.mark.parametrize("size", [100 << 10, (128 << 10) - 8, 128 << 10, 3 << 20])
def test_a_command_of_any_length(local: LocalMachine, size: int) -> None:
    """Beyond what the kernel takes as one argument: its input, status and output are its own."""
    words = [f"word{n:06}" for n in range(size // 11)]
    command = f"for w in {' '.join(words)}; do n=$((n + 1)); done; cat; echo $n $0; exit 7"
    result = local.run(command, input=b"input\n", timeout=120)
    assert (result.out, result.status) == (f"input\n{len(words)} sh", 7)
    assert result.command == command and not list(Path("/tmp").glob(".vm-*"))


def test_bytes_of_a_command_that_are_no_text(local: LocalMachine) -> None:
    """As Python gives those of the command line."""
    assert local.run(os.fsdecode(b"printf %s '\xff\xfe' | od -An -tx1")).out == " ff fe"


def test_output_comes_before_the_command_has_ended(local: LocalMachine) -> None:
    came: dict[bytes, float] = {}
    begin = time.monotonic()
    note = lambda data: came.setdefault(data, time.monotonic() - begin)
    result = local.run("echo one; sleep 1; echo two >&2", out=note, err=note)
    assert came[b"one\n"] < 0.8 < came[b"two\n"]
    assert (result.stdout, result.stderr, result.status) == (b"", b"", 0)


def test_output_is_not_kept_in_memory(local: LocalMachine) -> None:
    size, most = 0, 0

    def count(data: bytes) -> None:
        nonlocal size, most
        size, most = size + len(data), max(most, len(local.channel._in))

    local.run("head -c 100000000 /dev/zero", out=count)
    assert size == 100_000_000 and most < 4 << 20


def test_a_reader_that_goes_away_ends_the_command(local: LocalMachine, tmp_path: Path) -> None:
    """As `python -m vm run NAME yes | head`; the next command works."""

    def full(data: bytes) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        local.run(f"echo $$ > {tmp_path}/pid; exec yes", out=full)
    assert local.run("echo next").out == "next"
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_input_from_a_file_as_it_is_written(local: LocalMachine) -> None:
    """A pipe need not have ended for what it gave to arrive."""
    reading, writing = os.pipe()
    answers: list[bytes] = []

    def answer(data: bytes) -> None:
        answers.append(data)
        os.write(writing, b"more\n") if len(answers) == 1 else os.close(writing)

    os.write(writing, b"first\n")
    with open(reading, "rb") as file:
        assert local.run("cat", input=file, out=answer, timeout=20).ok
    assert answers == [b"first\n", b"more\n"]


def test_a_large_file_as_input(local: LocalMachine, tmp_path: Path) -> None:
    data = os.urandom(20 << 20)
    (tmp_path / "data").write_bytes(data)
    with (tmp_path / "data").open("rb") as file:
        said = local.run("sha256sum", input=file).out
    assert said.split()[0] == hashlib.sha256(data).hexdigest()


def test_no_time_limit(local: LocalMachine) -> None:
    for limit in (math.inf, 1e300):
        assert local.run("sleep 0.2; echo done", timeout=limit).out == "done"


def test_silence_is_looked_into(local: LocalMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a command says nothing, long before its time is over."""
    monkeypatch.setattr("vm.channel.SILENCE", 0.1)

    def look() -> None:
        raise MachineError("paused")

    with pytest.raises(MachineError, match="paused"):
        local.channel.run("sleep 60", timeout=math.inf, silent=look)


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

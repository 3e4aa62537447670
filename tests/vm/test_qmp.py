"""The client of QEMU's control protocol against a server that plays QEMU's part."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vm.errors import MachineError
from vm.qmp import QMP

GREETING = {"QMP": {"version": {}}}
OK: dict[str, Any] = {"return": {}}
Play = Callable[[list[list[dict[str, Any]]]], QMP]


@pytest.fixture
def play() -> Iterator[Play]:
    """Starts a server that gives the answers listed, one list for each command."""
    started = []

    def start(answers: list[list[dict[str, Any]]]) -> QMP:
        ours, theirs = socket.socketpair()
        theirs.settimeout(5)

        def serve() -> None:
            send = [GREETING]
            for after in [[OK], *answers, []]:
                theirs.sendall(b"".join(json.dumps(m).encode() + b"\r\n" for m in send))
                if not after or not theirs.recv(65536):
                    break
                send = after
            theirs.shutdown(socket.SHUT_WR)

        server = threading.Thread(target=serve)
        started.append((server, theirs))
        server.start()
        return QMP(ours, timeout=2)

    yield start
    for server, end in started:
        server.join()
        end.close()


def test_events_before_an_answer_are_kept(play: Play) -> None:
    event = {"event": "MIGRATION", "data": {"status": "completed", "other": 1}}
    qmp = play([[event, {"return": {"running": True}}]])
    assert qmp.execute("query-status") == {"running": True}
    assert qmp.wait("MIGRATION", timeout=1, status="completed") == event["data"]
    qmp.close()


def test_refusal_names_command_and_reason(play: Play) -> None:
    qmp = play([[{"error": {"class": "GenericError", "desc": "no such thing"}}]])
    with pytest.raises(MachineError, match="refused thing: no such thing"):
        qmp.execute("thing")
    qmp.close()


def test_failed_migration_ends_the_wait(play: Play) -> None:
    qmp = play([[OK, {"event": "MIGRATION", "data": {"status": "failed"}}]])
    qmp.execute("migrate", uri="fd:state")
    with pytest.raises(MachineError, match="could not save or restore"):
        qmp.wait("MIGRATION", timeout=1, status="completed")
    qmp.close()


def test_end_of_qemu(play: Play) -> None:
    qmp = play([])
    with pytest.raises(MachineError, match="gone"):
        qmp.execute("query-status")
    qmp.close()


def test_silence_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(MachineError, match="does not answer"):
        QMP(ours, timeout=0.1)
    ours.close()


def test_underscores_become_hyphens_and_descriptors_go_along() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b'{"QMP": {}}\n{"return": {}}\n{"return": "text"}\n')
        qmp = QMP(ours, timeout=1)
        assert qmp.execute("getfd", fd=ours.fileno(), fd_name="state") == "text"
        data, fds, _, _ = socket.recv_fds(theirs, 65536, 4)
        assert json.loads(data.splitlines()[-1])["arguments"] == {"fd-name": "state"}
        assert len(fds) == 1
        os.close(fds[0])
        qmp.close()

"""The host's end of the command channel; vm/agent.c is the guest's and describes the frames."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections import deque

from vm.errors import CommandTimeout, MachineError
from vm.machine import Result

FRAME = struct.Struct("<B3xII")
WORD = struct.Struct("<I")
CHUNK = 65536
WINDOW = 16 * CHUNK  # bytes of input under way; the agent's buffer
LONGEST_COMMAND = 128 * 1024 - 1  # the kernel's limit for one argument
GRACE = 10.0  # seconds for the agent to report a killed command


class Channel:
    """Runs commands in a guest over a connected socket, one at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setblocking(False)
        self._in = bytearray()
        self._out: deque[memoryview] = deque()
        self._id = int.from_bytes(os.urandom(3)) << 8  # tells this process' frames from another's

    def close(self) -> None:
        """Close the connection; a running command runs on."""
        self._socket.close()

    def hello(self, *, timeout: float, set_clock: bool = False) -> None:
        """Wait until the agent answers. `set_clock` also gives it the time and fresh entropy.

        A command that an earlier connection left running is killed.
        """
        payload = b""
        if set_clock:
            seconds, nanoseconds = divmod(time.time_ns(), 10**9)
            payload = struct.pack("<qq", seconds, nanoseconds) + os.urandom(64)
        wanted = self._next()
        self._send("K")
        self._send("T" if set_clock else "P", payload)
        deadline = time.monotonic() + timeout
        while True:
            kind, to, _ = self._frame(deadline)
            if kind == "":
                raise MachineError(f"no answer from the machine within {timeout:g} s")
            if (kind, to) == ("H", wanted):
                return

    def run(self, command: str, *, timeout: float, input: bytes = b"") -> Result:
        """See Machine.run."""
        if len(command.encode()) > LONGEST_COMMAND or "\0" in command:
            raise ValueError("a command is at most 128 KiB without zero bytes: use `input`")
        begin = time.monotonic()
        deadline = begin + timeout
        wanted = self._next()
        output: dict[str, list[bytes]] = {"O": [], "E": []}
        self._send("R", command.encode())
        rest, under_way = memoryview(input), 0
        self._feed(rest[:WINDOW])
        under_way, rest = len(rest[:WINDOW]), rest[WINDOW:]
        if not rest:
            self._send("I")
        killed = False
        while True:
            kind, to, payload = self._frame(deadline)
            if kind == "":
                if killed:
                    raise MachineError(f"the machine hangs: no answer while it ran {command!r}")
                killed, deadline = True, time.monotonic() + GRACE
                self._send("K")
            elif kind == "H" and to == 0:
                raise MachineError(f"the machine lost {command!r}: its agent was started again")
            elif to != wanted:
                continue
            elif kind in output:
                output[kind].append(payload)
            elif kind == "A" and rest:
                under_way -= WORD.unpack(payload)[0]
                more = rest[: WINDOW - under_way]
                self._feed(more)
                under_way, rest = under_way + len(more), rest[len(more) :]
                if not rest:
                    self._send("I")
            elif kind == "X":
                status = os.waitstatus_to_exitcode(WORD.unpack(payload)[0])
                break
        status = status if status >= 0 else 128 - status
        result = Result(
            command,
            status,
            b"".join(output["O"]),
            b"".join(output["E"]),
            time.monotonic() - begin,
        )
        if killed:
            raise CommandTimeout(f"still running after {timeout:g} s, killed:\n{result}", result)
        return result

    def _next(self) -> int:
        self._id = (self._id + 1) & 0xFFFFFFFF or 1
        return self._id

    def _feed(self, data: memoryview) -> None:
        for start in range(0, len(data), CHUNK):
            self._send("I", data[start : start + CHUNK])

    def _send(self, kind: str, payload: bytes | memoryview = b"") -> None:
        self._out.append(memoryview(FRAME.pack(ord(kind), self._id, len(payload))))
        if payload:
            self._out.append(memoryview(payload))

    def _frame(self, deadline: float) -> tuple[str, int, bytes]:
        """The next frame from the guest while sending what waits; kind "" past the deadline."""
        while True:
            if len(self._in) >= FRAME.size:
                kind, to, length = FRAME.unpack_from(self._in)
                if len(self._in) >= FRAME.size + length:
                    payload = bytes(self._in[FRAME.size : FRAME.size + length])
                    del self._in[: FRAME.size + length]
                    return chr(kind), to, payload
            left = deadline - time.monotonic()
            if left <= 0:
                return "", 0, b""
            wants_out = [self._socket] if self._out else []
            readable, writable, _ = select.select([self._socket], wants_out, [], left)
            try:
                if writable:
                    self._write()
                if readable:
                    data = self._socket.recv(1 << 20)
                    if not data:
                        raise ConnectionResetError
                    self._in += data
            except (ConnectionError, BrokenPipeError):
                raise MachineError("the machine is gone: its process ended") from None

    def _write(self) -> None:
        sent = self._socket.sendmsg(list(self._out)[:16])
        while sent:
            part = self._out[0]
            if sent < len(part):
                self._out[0] = part[sent:]
                break
            sent -= len(part)
            self._out.popleft()

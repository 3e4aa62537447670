"""The host's end of the command channel; vm/agent.c is the guest's and describes the frames."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable

from vm.errors import CommandTimeout, MachineError
from vm.machine import Input, Result, Sink

FRAME = struct.Struct("<B3xII")
WORD = struct.Struct("<I")
CHUNK = 65536
WINDOW = 16 * CHUNK  # bytes of input under way; the agent's buffer
GRACE = 10.0  # seconds for the agent to report a killed command
SILENCE = 5.0  # seconds without a word of the guest after which somebody looks why
LONGEST = 3600.0  # seconds of one wait: select(2) takes no more than some years


class Source:
    """What a command is fed with: bytes, or a file by its descriptor, as it becomes readable."""

    def __init__(self, given: Input) -> None:
        self._rest = memoryview(given) if isinstance(given, bytes) else None
        self.fd = -1 if isinstance(given, bytes) else given.fileno()
        self.under_way = 0  # bytes that the guest has not taken yet
        self.ended = False

    @property
    def has_room(self) -> bool:
        """Whether more may be sent now."""
        return not self.ended and self.under_way < WINDOW

    def take(self) -> bytes | memoryview:
        """What to send next; nothing at its end."""
        size = min(CHUNK, WINDOW - self.under_way)
        if self._rest is None:
            data: bytes | memoryview = os.read(self.fd, size)
        else:
            data, self._rest = self._rest[:size], self._rest[size:]
        self.under_way += len(data)
        self.ended = not data
        return data


NOTHING = Source(b"")
NOTHING.ended = True


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

    def run(
        self,
        command: str,
        *,
        timeout: float,
        input: Input = b"",
        out: Sink | None = None,
        err: Sink | None = None,
        silent: Callable[[], object] = lambda: None,
    ) -> Result:
        """See Machine.run. `silent` is called every few seconds while nothing comes. An exception
        other than MachineError kills the command."""
        output: dict[str, list[bytes]] = {"O": [], "E": []}
        sinks = {"O": out or output["O"].append, "E": err or output["E"].append}
        begin = time.monotonic()
        wanted = self._next()
        self._send("R", os.fsencode(command))
        try:
            status, killed = self._until_its_end(
                command, wanted, begin + timeout, input, sinks, silent
            )
        except MachineError:
            raise
        except BaseException:
            self._send("K")
            limit = time.monotonic() + GRACE
            while self._frame(limit)[:2] not in (("X", wanted), ("", 0)):
                pass
            raise
        stdout, stderr = (b"".join(output[kind]) for kind in "OE")
        result = Result(command, status, stdout, stderr, time.monotonic() - begin)
        if killed:
            raise CommandTimeout(f"still running after {timeout:g} s, killed:\n{result}", result)
        return result

    def _until_its_end(
        self,
        command: str,
        wanted: int,
        deadline: float,
        input: Input,
        sinks: dict[str, Sink],
        silent: Callable[[], object],
    ) -> tuple[int, bool]:
        """The command's exit status, and whether it was killed for its time limit."""
        source, killed = Source(input), False
        while True:
            kind, to, payload = self._frame(min(deadline, time.monotonic() + SILENCE), source)
            if kind == "" and time.monotonic() < deadline:
                silent()
            elif kind == "":
                if killed:
                    raise MachineError(
                        f"the machine hangs: no answer while it ran {command[:500]!r}"
                    )
                killed, deadline = True, time.monotonic() + GRACE
                self._send("K")
            elif kind == "H" and to == 0:
                raise MachineError(
                    f"the machine lost {command[:500]!r}: its agent was started again"
                )
            elif to != wanted:
                continue
            elif kind in sinks:
                sinks[kind](payload)
            elif kind == "A":
                source.under_way -= WORD.unpack(payload)[0]
            elif kind == "X":
                status = os.waitstatus_to_exitcode(WORD.unpack(payload)[0])
                return status if status >= 0 else 128 - status, killed

    def _next(self) -> int:
        self._id = (self._id + 1) & 0xFFFFFFFF or 1
        return self._id

    def _send(self, kind: str, payload: bytes | memoryview = b"") -> None:
        self._out.append(memoryview(FRAME.pack(ord(kind), self._id, len(payload))))
        if payload:
            self._out.append(memoryview(payload))

    def _frame(self, deadline: float, source: Source = NOTHING) -> tuple[str, int, bytes]:
        """The next frame from the guest, while sending what waits and what the source has to give;
        kind "" past the deadline."""
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
            if source.fd < 0:
                while source.has_room:
                    self._send("I", source.take())
            reading: list[socket.socket | int] = [self._socket]
            reading += [source.fd] if source.fd >= 0 and source.has_room else []
            wants_out = [self._socket] if self._out else []
            readable, writable, _ = select.select(reading, wants_out, [], min(left, LONGEST))
            if source.fd in readable:
                self._send("I", source.take())
            try:
                if writable:
                    self._write()
                if self._socket in readable:
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

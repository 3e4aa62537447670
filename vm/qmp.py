"""QEMU's control protocol: JSON lines over a socket."""

from __future__ import annotations

import json
import socket
import time
from collections import deque
from typing import Any

from vm.errors import MachineError


class QMP:
    """A connection to one QEMU. All errors are MachineError."""

    def __init__(self, connection: socket.socket, *, timeout: float = 20) -> None:
        """Take over a connected socket and negotiate; `timeout` holds for every later answer."""
        self._socket = connection
        self._timeout = timeout
        self._buffer = b""
        self._events: deque[dict[str, Any]] = deque()
        try:
            self._message(time.monotonic() + timeout)  # the greeting
            self.execute("qmp_capabilities")
        except MachineError:
            connection.close()
            raise

    def execute(self, command: str, *, fd: int | None = None, **arguments: Any) -> Any:
        """Run a command ; its return value. `fd` goes along where it takes one, and
        an underscore in an argument's name stands for QEMU's hyphen.
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        request = json.dumps({"execute": command, "arguments": named}).encode() + b"\n"
        try:
            socket.send_fds(self._socket, [request], [] if fd is None else [fd])
        except OSError as error:
            raise MachineError(f"QEMU is gone ({error.strerror})") from error
        deadline = time.monotonic() + self._timeout
        while True:
            message = self._message(deadline)
            if "event" in message:
                self._events.append(message)
            elif "error" in message:
                raise MachineError(f"QEMU refused {command}: {message['error']['desc']}")
            else:
                return message["return"]

    def wait(self, event: str, *, timeout: float, **data: Any) -> dict[str, Any]:
        """Wait for an event whose data has all the values given; earlier events are dropped."""
        deadline = time.monotonic() + timeout
        while True:
            message = self._events.popleft() if self._events else self._message(deadline)
            found: dict[str, Any] = message.get("data", {})
            if message.get("event") == event and data.items() <= found.items():
                return found
            if message.get("event") == "MIGRATION" and found.get("status") == "failed":
                raise MachineError("QEMU could not save or restore the machine's state")

    def close(self) -> None:
        """Close the connection; QEMU runs on."""
        self._socket.close()

    def _message(self, deadline: float) -> dict[str, Any]:
        """The next message, whatever it is."""
        while b"\n" not in self._buffer:
            try:
                self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
                data = self._socket.recv(65536)
            except TimeoutError:
                raise MachineError("QEMU does not answer on its control socket") from None
            except OSError as error:
                raise MachineError(f"QEMU is gone ({error.strerror})") from error
            if not data:
                raise MachineError("QEMU is gone")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

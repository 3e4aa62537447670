"""A fresh machine for every test: the next one is restored while the last one is in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Self

from vm.errors import VmError
from vm.machine import Machine


class Pool:
    """Hands out machines in one frozen state. Close it, or use it with `with`."""

    def __init__(self, machine: Machine, snapshot: str, *, ahead: int = 1) -> None:
        """From a machine's snapshot; the machine stays open as long as the pool.

        `ahead`: how many wait ready. Where a provider cannot run several machines from one
        snapshot, this machine itself is put back each time.
        """
        self._machine, self._snapshot = machine, snapshot
        self._ahead = ahead if "clone" in machine.can else 0
        self._ready: deque[Future[Machine]] = deque()
        self._worker = ThreadPoolExecutor(1, "restore")
        self._fill()

    def _fill(self) -> None:
        while len(self._ready) < self._ahead:
            self._ready.append(self._worker.submit(self._machine.clone, self._snapshot))

    @contextmanager
    def take(self) -> Iterator[Machine]:
        """A machine in the frozen state, ended afterwards (or put back by the next `take`)."""
        if "clone" not in self._machine.can:
            self._machine.restore(self._snapshot)
            yield self._machine
            return
        machine = self._next()
        try:
            self._fill()
            yield machine
        finally:
            machine.close()

    def _next(self) -> Machine:
        """The machine that waits. An interruption meanwhile leaves it to `close`."""
        if not self._ready:
            return self._machine.clone(self._snapshot)
        try:
            machine = self._ready[0].result()
        except Exception:
            self._ready.popleft()
            raise
        self._ready.popleft()
        return machine

    def close(self) -> None:
        """End the machines that nobody took."""
        self._ahead = 0
        while self._ready:
            future = self._ready.popleft()
            if not future.cancel():
                with suppress(VmError, OSError):  # one that never ran
                    future.result().close()
        self._worker.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""A fresh machine for every test: the next one is restored while the last one is in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from vm.machine import Machine, MachineError
from vm.qemu import Frozen, QemuMachine


class Pool:
    """Hands out machines in one frozen state. Close it, or use it with `with`."""

    def __init__(self, machine: Machine, snapshot: str | None, *, ahead: int = 1) -> None:
        """From a machine's snapshot; the machine stays open as long as the pool.

        Where a provider cannot run several from one, this machine itself is put back each time,
        and without a snapshot (None) it is handed out as it is. `ahead`: how many wait ready.
        """
        self._machine, self._snapshot = machine, snapshot
        self._ahead = ahead
        self._ready: deque[Future[Machine]] = deque()
        self._make: Callable[[], Machine] | None = None
        #: What another process gives to `attach`; None when machines cannot be shared.
        self.handle: str | None = None
        if snapshot is not None and machine.can_clone:
            self._make = lambda: machine.clone(snapshot)
            if isinstance(machine, QemuMachine):
                self.handle = str(machine.snapshots[snapshot].folder)
        self._start()

    @classmethod
    def attach(cls, handle: str, *, ahead: int = 1) -> Self:
        """A pool on the frozen state of another process, which keeps it until all are done."""
        frozen = Frozen(Path(handle))
        if not frozen.folder.exists():
            raise MachineError(f"{handle}: the frozen state is gone")
        pool = cls.__new__(cls)
        pool._ahead, pool._ready, pool.handle = ahead, deque(), handle
        pool._make = lambda: frozen.start("clone")
        pool._start()
        return pool

    def _start(self) -> None:
        self._worker = ThreadPoolExecutor(1, "restore")
        self._fill()

    def _fill(self) -> None:
        while self._make and len(self._ready) < self._ahead:
            self._ready.append(self._worker.submit(self._make))

    @contextmanager
    def take(self) -> Iterator[Machine]:
        """A machine in the frozen state, ended afterwards (or put back by the next `take`)."""
        if self._make is None:
            if self._snapshot is not None:
                self._machine.restore(self._snapshot)
            yield self._machine
            return
        machine = self._next(self._make)
        try:
            self._fill()
            yield machine
        finally:
            machine.close()

    def _next(self, make: Callable[[], Machine]) -> Machine:
        """The machine that waits. An interruption meanwhile leaves it to `close`."""
        if not self._ready:
            return make()
        try:
            machine = self._ready[0].result()
        except Exception:
            self._ready.popleft()
            raise
        self._ready.popleft()
        return machine

    def close(self) -> None:
        """End the machines that nobody took."""
        self._make = None
        while self._ready:
            future = self._ready.popleft()
            if not future.cancel():
                with suppress(MachineError):  # one that never ran
                    future.result().close()
        self._worker.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

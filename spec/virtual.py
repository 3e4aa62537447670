"""The target that is a disposable virtual machine, by the harness in vm/."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from spec.targets import AT_REST, CUT, Idle, NoAnswer, Result, Target, TargetError

if TYPE_CHECKING:
    import vm


def fresh_each(url: str) -> tuple[str, bool]:
    """A machine's URL as vm takes it, and whether each test has a fresh one: not with fresh=no."""
    place, _, query = url.partition("?")
    words = [word for word in query.split("&") if word]
    rest = [word for word in words if word != "fresh=no"]
    return "?".join([place, *filter(None, ["&".join(rest)])]), rest == words


WATCHED = "/run/spec-watched"


class Virtual(Target):
    """A disposable virtual machine: vm://SUITE[?provider=qemu&flavour=mta]. Each test has a fresh
    one, restored from the state that `freeze` keeps; with fresh=no, or where no state can be kept,
    all have the same one, as on other targets, and `note` says so."""

    disposable = True
    patience = 4.0  # until it is measured: emulation is slow

    def __init__(self, url: str) -> None:
        import vm

        self.name = url
        machine, self.disposable = fresh_each(url)
        try:
            self.machine = self.first = vm.from_url(machine)
        except vm.VmError as error:
            raise TargetError(str(error)) from error
        self.pool: vm.Pool | None = None

    def run(
        self, command: str, *, timeout: float = 30, input: str = "", idle: Idle | None = None
    ) -> Result:
        from vm import CommandTimeout, VmError

        limit = timeout * self.patience
        whole = self.whole(command)
        if idle:  # in a session of its own it outlives the machine's own limit, to be looked at
            whole = f"setsid -w sh -c {shlex.quote(f'echo $$ > {WATCHED}; {whole}')}"
        try:
            done = self.machine.run(whole, timeout=limit, input=input.encode())
            status, more = done.status, b""
        except CommandTimeout as late:
            if not idle:
                raise NoAnswer(f"no answer in {limit:.0f} s: {command}") from late
            idle()
            if self.run(f"kill -9 -- -$(cat {WATCHED})").status:  # what it said last is lost
                raise NoAnswer(f"it took more than {limit:.0f} s: {command}") from late
            done, status, more = late.result, CUT, AT_REST
        except VmError as error:
            raise TargetError(str(error)) from error
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr + more))
        return Result(command, status, out, err)

    def install(self, what: Path) -> bool:
        import vm

        vm.install(self.first, what)
        return True

    def freeze(self) -> None:
        import vm

        if not self.disposable:
            return
        try:
            self.first.snapshot("installed")
        except vm.VmError as error:
            self.note = f"all tests in one machine: {str(error).splitlines()[0]}"
            self.disposable = False
        else:
            self.pool = vm.Pool(self.first, "installed")

    @contextmanager
    def fresh(self) -> Iterator[None]:
        if not self.pool:
            yield
            return
        import vm

        with ExitStack() as stack:
            try:
                self.machine = stack.enter_context(self.pool.take())
            except (vm.VmError, OSError) as error:
                raise TargetError(f"no fresh machine: {error}") from error
            yield

    def close(self) -> None:
        from vm.processes import uninterrupted

        with uninterrupted(), ExitStack() as last:  # xdist interrupts a slow worker once more
            last.callback(self.first.close)
            if self.pool:
                last.callback(self.pool.close)

"""How a command tells that it failed, or that something is wrong: in one line of standard error."""

from __future__ import annotations

from collections.abc import Container

from spec.targets import Result

FAILED = range(1, 256)


def one_line(done: Result, status: int | Container[int], *names: str) -> None:
    """See that a command ended with that status, or one of them, and one line of error that names
    all of these."""
    __tracebackhide__ = True
    wanted = status if not isinstance(status, int) else (status,)
    assert done.status in wanted, f"its status is not {status}: {done}"
    lines = done.err.count("\n")
    assert lines == 1, f"it has {lines} lines of error and not one: {done}"
    missing = [name for name in names if name not in done.err]
    assert not missing, f"its line of error does not name {', '.join(missing)}: {done}"

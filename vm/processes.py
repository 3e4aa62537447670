"""Processes of this machine: tools that run to their end, signals, and whom a later run has to end."""

from __future__ import annotations

import os
import pwd
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vm.errors import HostError

Say = Callable[[str], None]

#: What goes wrong, told by the words of the tool, and what to do about it.
TROUBLE = (
    (r"Temporary failure resolving|Could not resolve|Could not connect|Network is unreachable",
     "the mirror cannot be reached: check the network, or name another one with MIRROR="),
    (r"No space left on device",
     "no space left: free some (python -m vm prune), or set VM_CACHE or VM_RUN"),
    (r"NO_PUBKEY|keyring .* not|public key is not available|not signed",
     "the suite's signature cannot be checked: install a newer debian-archive-keyring"),
    (r"does not have a Release file|404 +Not Found", "the mirror does not have this suite"),
    (r"Release file .* is expired",
     "the mirror's index is out of date: name another MIRROR=, or allow it in apt's configuration"),
    (r"Unable to locate package", "the suite has no package of that name"),
    (r"(?m)^(E|unshare|newuidmap): .*(uid_map|unshare|user namespace|newuidmap|not permitted)",
     "no user namespaces for this user: run as root, or install uidmap"),
    (r"unshare: you \(user \d+\) don't exist",
     "this user has no entry in passwd(5), so no namespace: take an image that another one made"),
    (r"setpriv: failed to execute (\S+): No such file", r"\1 is missing: make vm-setup"),
)  # fmt: skip


def explain(what: str, said: str) -> str:
    """One line on why something could not be done, from what a tool wrote; errors come first."""
    lines = said.splitlines()
    errors = [line for line in lines if re.match(r"E: |[\w.-]+: .*(error|cannot|failed)", line)]
    for text in ("\n".join(errors), said):
        for pattern, advice in TROUBLE:
            if match := re.search(pattern, text):
                return f"{what}: {match.expand(advice)}"
    return f"{what}: {(errors[:1] or lines[-1:] or ['failed without a word'])[0]}"


def run(
    what: str,
    *command: str | Path,
    log: Path | None = None,
    say: Say | None = None,
    folder: Path | None = None,
    limit: float = 3600,
) -> str:
    """Run a tool to its end, in `folder`; all that it wrote, which is appended to `log` as well.

    It dies with this process, however that ends, and what it has started with it where this one
    has the time to see to it. `say` is told its steps ("I: doing..."). Raises HostError, which
    begins with `what`, when it fails or runs on after `limit` seconds.
    """
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=folder,
        start_new_session=True,
    )
    assert process.stdout is not None

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    alarm = threading.Timer(limit, kill)
    begin = time.monotonic()
    said: list[str] = []
    try:
        alarm.start()
        with open(log or os.devnull, "a") as copy:
            for line in process.stdout:
                said.append(line)
                copy.write(line)
                if say and re.fullmatch(r"I: .*\.\.\.\n", line):
                    say(line[3:-4])
        process.wait()
    except BaseException:
        with uninterrupted():
            kill()
            process.stdout.read()  # until all that it started has ended too
            process.wait()
        raise
    finally:
        alarm.cancel()
        process.stdout.close()
    if process.returncode == -signal.SIGKILL and time.monotonic() - begin >= limit:
        raise HostError(f"{what}: not done after {limit:g} s")
    if process.returncode:
        raise HostError(explain(what, "".join(said)))
    return "".join(said)


def as_root(*, contained: bool = False) -> list[str]:
    """What makes a command root over its own files: a user namespace where we are not root.

    A `contained` command takes all that it started, and its mounts, with it when it ends. Root
    without CAP_SYS_ADMIN, as in most containers, can contain nothing, and cannot mount either.
    """
    words = [] if os.geteuid() == 0 else ["--map-root-user", "--map-auto"]
    words += ["--pid", "--fork", "--kill-child", "--mount-proc"] if contained else []
    if words and os.geteuid() == 0 and not may_contain():
        return []
    return ["unshare", *words, "--"] if words else []


def may_contain() -> bool:
    """Whether root may make namespaces of its own."""
    ask = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return subprocess.run(ask, capture_output=True, check=False).returncode == 0


def as_somebody() -> list[str]:
    """What makes ssh work for a user without an entry in passwd(5), as containers have: root's."""
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return ["unshare", "--map-root-user", "--"]
    return []


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_in_order() -> None:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does, so that its machines end too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that end this process wait until what is done here is done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # they interrupt the main thread only
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
        for caught in came[:1]:
            signal.raise_signal(caught)


def started(pid: int) -> str | None:
    """When a process started, in the kernel's clock ticks; None when there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


def record(file: Path, pid: int) -> None:
    """Write down which process belongs to a folder, so that a later run can end just that one."""
    file.write_text(f"{pid} {started(pid)}\n")


def recorded(file: Path) -> int | None:
    """The process that was written down, if it still runs."""
    try:
        pid, when = file.read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    return int(pid) if started(int(pid)) == when else None


def kill_recorded(file: Path) -> None:
    """End the process that was written down, if it still is that one."""
    pid = recorded(file)
    if pid is None:
        return
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if recorded(file) == pid:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        select.select([fd], [], [], 10)  # until its last thread has let go of all it held
    finally:
        os.close(fd)

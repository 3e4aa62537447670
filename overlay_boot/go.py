"""overlay-go: a shell or a command inside a running subhost (overlay-go(8)).

It is to be like a local program to whoever calls it. What is a terminal among the caller's 0, 1 and
2 becomes a pseudo-terminal of the subhost's own, so that tty(1), job control, sudo and screen work
in it and nothing in the subhost holds the caller's terminal; what is not goes in as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import termios
import tty

from overlay_boot import PATH, NotRunning, cgroup, lines_of
from overlay_boot.enter import Inside
from overlay_boot.linux import RESOLVE_CACHED, open_in_root, signals_as_file
from overlay_boot.records import Record
from overlay_boot.signals import SIGNALS_FORWARDED, read_signal

TIOCSPTLCK = 0x40045431
TIOCGPTPEER = 0x5441
FULL = 1 << 16  # bytes on their way in one direction before no more are read
LOOK = 0.3  # seconds after which a background job looks whether it is in the foreground


def go(record: Record, command: list[str]) -> int:
    """Run command, or root's shell, in the subhost; returns its exit status."""
    signals = signals_as_file((*SIGNALS_FORWARDED, signal.SIGTSTP, signal.SIGWINCH))
    fds = [0, 1, 2]
    terminals: list[Terminal] = []
    for device in dict.fromkeys(os.fstat(fd).st_rdev for fd in fds if os.isatty(fd)):
        outer = [fd for fd in (0, 1, 2) if os.isatty(fd) and os.fstat(fd).st_rdev == device]
        terminals.append(Terminal(record, outer))
        for fd in outer:
            fds[fd] = terminals[-1].slave
    inside = Inside(
        record,
        "--enter",
        command,
        fds,
        _environment(),
        cgroup.of_process(record.pid, record.cgroup) if record.cgroup else "",
        terminals[0].outer if terminals else -1,
    )
    inside.report()  # it is ready
    try:
        for terminal in terminals:
            terminal.start()
        _attend(inside, terminals, signals)
        for terminal in terminals:
            terminal.finish(signals)
    finally:
        for terminal in terminals:
            terminal.restore()
    return inside.status()


def _environment() -> dict[str, str]:
    kept = ("TERM", "COLORTERM", "LANG", "LC_ALL")
    fixed = {"PATH": PATH, "HOME": "/root", "USER": "root", "LOGNAME": "root"}
    return fixed | {name: os.environ[name] for name in kept if name in os.environ}


def _attend(inside: Inside, terminals: list[Terminal], signals: int) -> None:
    """Hand on signals and what is typed and printed, until the command has ended."""
    while True:
        poll = select.poll()
        poll.register(signals, select.POLLIN)
        poll.register(inside.reports, select.POLLIN)
        waiting = [terminal for terminal in terminals if terminal.register(poll)]
        ready = dict(poll.poll(LOOK * 1000 if waiting else None))
        for terminal in terminals:
            terminal.relay(ready)
        if signals in ready:
            number = read_signal(signals)
            if number == signal.SIGWINCH:
                for terminal in terminals:
                    terminal.resize()
            else:
                inside.send(number)
        if inside.reports in ready:
            if inside.report() == "ended":
                return
            _stop_like_the_command(terminals)
            inside.send(signal.SIGCONT)


def _stop_like_the_command(terminals: list[Terminal]) -> None:
    """Stop as the command did; returns when this goes on. At a terminal in raw mode it was Ctrl-Z,
    which is for the whole job, and which the kernel passes over where no shell could let that go
    on. Otherwise only this process stops, whatever it works for."""
    raw = [terminal for terminal in terminals if terminal.raw]
    for terminal in raw:
        terminal.restore()
    if not raw:
        os.kill(os.getpid(), signal.SIGSTOP)
        return
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
    os.killpg(0, signal.SIGTSTP)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})


class Terminal:
    """A terminal of the caller's and one of the subhost's own, and all that goes between them.
    Neither direction ever waits for the other. The caller's is what all of `outer` are."""

    def __init__(self, record: Record, outer: list[int]) -> None:
        self.outer = _own_description(outer[0])
        self.master, self.slave = _open_pty(record)
        os.set_blocking(self.master, False)
        self.before = termios.tcgetattr(self.outer)
        # Keys are for the command where its input or output is the terminal; beside another program
        # of a pipeline that reads them, such as less, they are not.
        self.takes_keys = 0 in outer or 1 in outer
        self.raw = False
        self.typed = b""
        self.printed = b""
        settings = termios.tcgetattr(self.outer)
        if not self.takes_keys:
            settings[1] &= ~termios.OPOST  # the caller's terminal does that
        termios.tcsetattr(self.slave, termios.TCSANOW, settings)
        self.resize()

    def start(self) -> None:
        """The command runs: the pseudo-terminal is its own from now on."""
        os.close(self.slave)

    def resize(self) -> None:
        """Give the pseudo-terminal the size of the caller's terminal."""
        with contextlib.suppress(OSError, termios.error):  # either may be gone by now
            termios.tcsetwinsize(self.master, termios.tcgetwinsize(self.outer))

    def register(self, poll: select.poll) -> bool:
        """Enter what there is to wait for; True where it is to be looked again soon, since this
        job is in the background and neither changes the terminal nor reads from it."""
        if self.master < 0:
            return False
        background = not self._in_foreground()
        if background:
            self.raw = False  # the shell has given the terminal to another job
        elif self.takes_keys and not self.raw:
            tty.setraw(self.outer, termios.TCSADRAIN)  # what was typed ahead stays
            self.raw = True
        outer = select.POLLIN if self.raw and len(self.typed) < FULL else 0
        poll.register(self.outer, outer | (select.POLLOUT if self.printed else 0))
        master = select.POLLIN if len(self.printed) < FULL else 0
        poll.register(self.master, master | (select.POLLOUT if self.typed else 0))
        return background and self.takes_keys

    def _in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self.outer) == os.getpgrp()
        except OSError:  # not the controlling terminal: nobody's job control
            return True

    def relay(self, ready: dict[int, int]) -> None:
        """Read and write what is ready."""
        events = ready.get(self.outer, 0)
        if events & select.POLLIN:
            self.typed += _read(self.outer)
        if self.printed and events & select.POLLOUT:
            self.printed = self.printed[_write(self.outer, self.printed) :]
        if events & (select.POLLHUP | select.POLLERR):
            # The caller's terminal is gone, and so is the command's, for whoever reads, writes or
            # is the head of a session there: as it would be for a local program.
            self._let_go()
            return
        events = ready.get(self.master, 0)
        if events & (select.POLLIN | select.POLLHUP):
            read = _read(self.master)
            self.printed += read
            if events & select.POLLHUP and not read:
                self._let_go()  # no process holds the other side, and all of it was read
                return
        if self.typed and events & select.POLLOUT:
            self.typed = self.typed[_write(self.master, self.typed) :]

    def _let_go(self) -> None:
        os.close(self.master)
        self.master = -1

    def restore(self) -> None:
        """Put the caller's terminal right."""
        if self.raw:
            with contextlib.suppress(termios.error):  # it is gone
                termios.tcsetattr(self.outer, termios.TCSADRAIN, self.before)
        self.raw = False

    def finish(self, signals: int) -> None:
        """Print what is left, unless the terminal is gone or a signal tells to end."""
        while self.master >= 0 and (data := _read(self.master)):
            self.printed += data
        while self.printed:
            poll = select.poll()
            poll.register(signals, select.POLLIN)
            poll.register(self.outer, select.POLLOUT)
            ready = dict(poll.poll())
            if signals in ready or ready[self.outer] & (select.POLLHUP | select.POLLERR):
                return
            self.printed = self.printed[_write(self.outer, self.printed) :]


def _own_description(fd: int) -> int:
    """The caller's terminal, opened anew: that it does not block is not for others to feel."""
    try:
        return os.open(os.ttyname(fd), os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return os.dup(fd)


def _open_pty(record: Record) -> tuple[int, int]:
    """A pseudo-terminal of the subhost's own, both ends; where it has no devpts, of the main host's.
    Its root may have put anything into the place of ptmx, such as a device that is not to be opened,
    or a file system that never answers: what is opened is known to be devpts's, and the kernel has
    the way to it in memory."""
    try:
        root = os.open(f"/proc/{record.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise NotRunning(f"{record.name} is not running") from None
    try:
        ptmx = open_in_root(root, "dev/pts/ptmx", os.O_PATH, more=RESOLVE_CACHED)
        try:
            if _kind_of_mount(record.pid, ptmx) != "devpts":
                raise OSError
            flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
            master = os.open(f"/proc/self/fd/{ptmx}", flags)
        finally:
            os.close(ptmx)
        fcntl.ioctl(master, TIOCSPTLCK, bytes(4))
        return master, fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return os.openpty()
    finally:
        os.close(root)


def _kind_of_mount(pid: int, file: int) -> str:
    """The file system that an open file is on, by a process's table of mounts: unlike statfs(2) that
    asks no file system."""
    lines = lines_of(f"/proc/self/fdinfo/{file}")
    wanted = next(line for line in lines if line.startswith("mnt_id:")).split()[1]
    rows = (line.split(" ") for line in lines_of(f"/proc/{pid}/mountinfo"))
    return next((row[row.index("-") + 1] for row in rows if row[0] == wanted), "")


def _read(fd: int) -> bytes:
    """What a descriptor has by now; nothing at its end as well."""
    try:
        return os.read(fd, FULL)
    except OSError:  # EAGAIN, or EIO: no process holds the other side any more
        return b""


def _write(fd: int, data: bytes) -> int:
    """How much of the data could be written."""
    try:
        return os.write(fd, data[:4096])
    except OSError:  # EAGAIN, or EIO, which the next poll tells
        return 0

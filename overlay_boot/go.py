"""overlay-go: a shell or a command inside a running subhost (decision 19).

At a terminal the shell gets a pseudo-terminal of the subhost's own, so that tty(1), job control,
sudo and screen work in it and nothing in the subhost holds the caller's terminal. Elsewhere it
gets the caller's standard input, output and error as they are.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import termios
import tty

from overlay_boot import PATH, explain
from overlay_boot.enter import enter, status_of
from overlay_boot.records import Record


def go(record: Record, command: list[str]) -> int:
    """Run command, or root's shell, in the subhost; returns its exit status."""
    middle = os.fork()
    if middle:
        # The terminal's signals are for the program inside.
        for number in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        return status_of(os.waitpid(middle, 0)[1])
    status = 1
    try:
        enter(record)
        at_terminal = os.isatty(0) and os.isatty(1) and os.path.exists("/dev/pts/ptmx")
        status = (_on_terminal if at_terminal else _on_pipes)(command)
    except OSError as error:
        os.write(2, os.fsencode(f"overlay-go: {error}\n"))
    finally:
        os._exit(status)


def _execute(command: list[str]) -> None:
    """Become the command. 127 and 126 as exit statuses tell what a shell's would."""
    home = "/root" if os.path.isdir("/root") else "/"
    shell = next((s for s in ("/bin/bash", "/usr/bin/bash") if os.access(s, os.X_OK)), "/bin/sh")
    environment = {"PATH": PATH, "HOME": home, "USER": "root", "LOGNAME": "root", "SHELL": shell}
    kept = ("TERM", "COLORTERM", "LANG", "LC_ALL")
    environment.update({name: os.environ[name] for name in kept if name in os.environ})
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    command = command or [shell]
    status, reason = 127, "not found in the subhost"
    folders = [""] if "/" in command[0] else PATH.split(":")
    os.chdir(home)
    for folder in folders:
        try:
            os.execve(os.path.join(folder, command[0]), command, environment)
        except FileNotFoundError:
            pass
        except OSError as error:
            status, reason = 126, explain(error)
    os.write(2, os.fsencode(f"overlay-go: {command[0]}: {reason}\n"))
    os._exit(status)


def _on_pipes(command: list[str]) -> int:
    inner = os.fork()
    if inner == 0:
        _execute(command)
    return status_of(os.waitpid(inner, 0)[1])


def _on_terminal(command: list[str]) -> int:
    master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(master, TIOCSPTLCK, bytes(4))
    number = int.from_bytes(fcntl.ioctl(master, TIOCGPTN, bytes(4)), "little")
    inner = os.fork()
    if inner == 0:
        os.setsid()
        slave = os.open(f"/dev/pts/{number}", os.O_RDWR)
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for fd in (0, 1, 2):
            os.dup2(slave, fd)
        os.closerange(3, slave + 1)
        _execute(command)
    resize(master)
    signal.signal(signal.SIGWINCH, lambda *_: resize(master))
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)  # what was typed ahead stays
        _relay(master, inner)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
    return status_of(os.waitpid(inner, 0)[1])


TIOCSPTLCK = 0x40045431
TIOCGPTN = 0x80045430


def resize(master: int) -> None:
    """Give the pseudo-terminal the size of the caller's terminal."""
    size = fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))
    fcntl.ioctl(master, termios.TIOCSWINSZ, size)


def _relay(master: int, inner: int) -> None:
    """Copy between the terminal and the pseudo-terminal until the program inside has ended;
    what it left running in the background may keep the pseudo-terminal open."""
    ended = os.pidfd_open(inner)
    sources = [0, master, ended]
    while True:
        ready = select.select(sources, [], [])[0]
        for fd in (fd for fd in (0, master) if fd in ready):
            try:
                data = os.read(fd, 65536)
            except OSError:  # EIO: no process holds the subhost's side any more
                data = b""
            if not data:
                sources.remove(fd)
            while data:
                data = data[os.write(master if fd == 0 else 1, data) :]
        if ready == [ended]:
            return

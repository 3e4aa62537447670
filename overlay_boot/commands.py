"""Commands that run on the main host: "!" values, hooks, INIT and ifup."""

from __future__ import annotations

import errno
import fcntl
import os

from overlay_boot import PATH
from overlay_boot.signals import SIGKILL, SIGNALS
from overlay_boot.waiting import Deadline, Waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LIMIT = 1 << 20  # bytes of output that are kept


def find(name: str, path: str = PATH) -> str:
    """The program of that name in the folders of a PATH; empty if there is none."""
    for folder in path.split(os.pathsep):
        program = os.path.join(folder, name)
        if os.path.isfile(program) and os.access(program, os.X_OK):
            return program
    return ""


def duplicate_above(fd: int, lowest: int) -> int:
    """A duplicate with a number that is not below lowest, closed on exec (fcntl(2))."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # The caller's limit is below that number.
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error


def close_others_on_exec() -> None:
    """No descriptor above 2 is handed on to another program, whoever has opened it."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.set_inheritable(int(name), False)
            except OSError:
                pass  # the one that lists them


def spawn(
    command: Sequence[str],
    environment: Mapping[str, str],
    fds: Sequence[int],
    more: Mapping[int, int] | None = None,
    program: str = "",
) -> int:
    """Start a program, given by its path, in a session of its own, with default signals and these
    descriptors as its 0, 1, 2 and whatever `more` adds, and no others; its pid. Raises OSError."""
    wanted = dict(enumerate(fds)) | dict(more or {})
    safe: dict[int, int] = {}
    try:
        # Out of the way first: a descriptor could be the number that another one is to get.
        for number, fd in wanted.items():
            safe[number] = duplicate_above(fd, 20)
        return os.posix_spawn(
            program or command[0],
            list(command),
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in safe.items()],
            setsid=True,
            setsigmask=(),
            setsigdef=SIGNALS,
        )
    finally:
        for fd in safe.values():
            os.close(fd)


class Done:
    """What came of a command: its exit status, as a shell shows it, and its output if captured."""

    def __init__(self, status: int, output: bytes, late: bool = False) -> None:
        self.status = status
        self.output = output
        self.late = late  # it did not end in time, and was killed


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    waiter: Waiter,
    *,
    folder: str = "/",
    capture: bool = False,
    errors_too: bool = False,
    seconds: float | None = None,
) -> Done:
    """Run a program, given by its path, to its end. Its messages go to standard error and, unless
    they are captured, its output to standard output. Where the wait is ended early (see Waiter), or
    after so many seconds, it is killed with its process group. Raises OSError."""
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    read, write = os.pipe()
    os.chdir(folder)
    try:
        fds = (null, write if capture else 1, write if errors_too else 2)
        child = spawn(command, environment, fds)
    finally:
        os.close(null)
        os.close(write)
        os.chdir("/")
    process = os.pidfd_open(child)
    output = b""
    deadline = Deadline(seconds)
    try:
        while process not in (ready := waiter.wait(process, read, seconds=deadline.left)):
            if not ready or deadline.passed:
                break
            part = os.read(read, 65536)
            output += part[: LIMIT - len(output)]
            if not part:  # it has closed its output
                waiter.wait(process, seconds=deadline.left)
                break
        late = not waiter.ended(process, 0)
        os.set_blocking(read, False)
        try:
            while part := os.read(read, 65536):  # what it left; others may hold the pipe open
                output += part[: LIMIT - len(output)]
        except BlockingIOError:
            pass
    finally:
        if not Waiter().ended(process, 0):
            os.killpg(child, SIGKILL)
        os.close(process)
        os.close(read)
        status = status_of(os.waitpid(child, 0)[1])
    return Done(status, output, late)


def status_of(wait_status: int) -> int:
    """The exit status that a shell would show: 128 and the signal's number for a killed one."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code

"""The commands: arguments in, exit statuses out. Only this module prints and exits.

No argparse: its import alone takes as long as a boot's mounts. Nothing is written through
sys.stdout either: what could not be written is to be told, not lost at the interpreter's end. The
programs in bin/ do without that end (os._exit), which takes a tenth of a stop.
"""

from __future__ import annotations

import os
import sys

from overlay_boot import ConfigError, OverlayBootError, __version__, explain, message, signals
from overlay_boot.commands import close_others_on_exec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from overlay_boot.boot import Boot
    from overlay_boot.config import ConfigFile
    from overlay_boot.waiting import Waiter

    Command = tuple[Callable[[list[str]], int], str]

STATUSES = "Exit status: 0 done, 1 failed, 2 usage or configuration, 3 not running"

BOOT = f"""\
Usage: overlay-boot [--wait | --foreground | --check] CONF
Start the subhost that the configuration file CONF describes;
see overlay-boot(8).

  --wait        return when its services have been started, not when it runs
  --foreground  stay until the subhost ends; SIGINT, SIGTERM and SIGHUP stop it
  --check       print the resolved configuration and the steps, do nothing
  --help        print this
  --version     print the version

{STATUSES}"""

STOP = f"""\
Usage: overlay-stop [--timeout SECONDS] NAME|CONF
Stop a subhost: its services in reverse order, then whatever is left;
see overlay-stop(8).

  --timeout SECONDS  for each service's stop script (default 90); then what is
                     left has 10 seconds, or these if fewer, after SIGTERM
  --help             print this
  --version          print the version

{STATUSES}"""

GO = f"""\
Usage: overlay-go [NAME|CONF [COMMAND [ARGUMENT...]]]
Open root's shell in a running subhost, or run COMMAND there;
without a name, list the subhosts that run. See overlay-go(8).

  --help     print this
  --version  print the version

{STATUSES};
with COMMAND, the command's own"""

LIST = f"""\
Usage: overlay-list [--json]
List the subhosts that run: name, pid 1, since when, kind of root, what they
use, cables, configuration; see overlay-list(8).

  --json     print an array of objects with the keys name, pid, since, root,
             processes, memory, cpu, cables, configuration
  --help     print this
  --version  print the version

{STATUSES}"""

SHARE = f"""\
Usage: overlay-share [--remove] PATH NAME|CONF
Bind a folder or file of the main host onto the same path of a running subhost;
see overlay-share(8).

  --remove   undo that
  --help     print this
  --version  print the version

{STATUSES}"""

DISKFILE = f"""\
Usage: overlay-diskfile MOUNTPOINT/[PATH] [DISKFILE [PARTITION]]
Mount a disk image for a "!" value of a configuration, and print the path;
see overlay-diskfile(8).

  --help     print this
  --version  print the version

{STATUSES}"""

HOOK = "A default hook of overlay-boot(8), for other hooks to call."


class UsageError(ConfigError):
    """A command line that the command does not take."""


def main(name: str, command: Command | None = None) -> int:
    """Run a command, of ours or given; what it raises becomes one line and an exit status."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:  # closed: no file of ours may come to have its number
            os.open("/dev/null", os.O_RDWR)
    close_others_on_exec()
    run, usage = command or COMMANDS[name]
    arguments = sys.argv[1:]
    try:
        if name != "overlay-boot":  # which takes signals where it waits
            signals.take_interrupts()
        if arguments[:1] in (["--help"], ["-h"]):
            out(usage)
            return 0
        if arguments[:1] == ["--version"]:
            out(f"{name} {__version__}")
            return 0
        return run(arguments)
    except UsageError as error:
        err(f"{name}: {error}: see {name} --help")
        return error.status
    except OverlayBootError as error:
        for line in str(error).split("\n"):
            err(f"{name}: {line}" if error.status != 2 else line)
        return error.status
    except KeyboardInterrupt:
        err(f"{name}: interrupted")
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:
        err(f"{name}: {explain(error)}")
        return 1


def out(text: str) -> None:
    """Print to standard output. Raises OSError where that cannot be written."""
    data = os.fsencode(f"{text}\n")
    while data:
        data = data[os.write(1, data) :]


def err(text: str) -> None:
    """Print a message to standard error, if that can be."""
    try:
        os.write(2, os.fsencode(f"{message(text)}\n"))
    except OSError:
        pass  # there is nobody left to tell


def split(arguments: list[str], *known: str) -> tuple[list[str], list[str]]:
    """Options and other words; an option ending in = takes a value. Raises UsageError."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    flags = [word for word in arguments[:cut] if word.startswith("-")]
    words = [word for word in arguments[:cut] if not word.startswith("-")] + arguments[cut + 1 :]
    for flag in flags:
        if flag not in known and not any(k[-1] == "=" and flag.startswith(k) for k in known):
            raise UsageError(f"unknown option {flag}")
    return flags, words


def need_root(name: str, arguments: list[str]) -> None:
    """Raise unless this is root."""
    if os.geteuid() != 0:
        raise OverlayBootError(f"only root can do this: try sudo {' '.join([name, *arguments])}")


def _boot(arguments: list[str]) -> int:
    from overlay_boot.waiting import on_signals

    # From the first: a signal during a boot waits until it can be undone.
    waiter = on_signals(signals.SIGINT, signals.SIGTERM, signals.SIGHUP)
    flags, words = split(arguments, "--wait", "--foreground", "--check")
    if len(flags) > 1:
        raise UsageError("--wait, --foreground and --check exclude each other")
    if len(words) != 1:
        raise UsageError("expected exactly one configuration file")
    from overlay_boot.config import ConfigFile

    conf = ConfigFile(words[0])
    for warning in conf.warnings:
        err(warning)
    try:
        if flags == ["--check"]:
            return _check(conf)
        need_root("overlay-boot", arguments)
        from overlay_boot.boot import boot

        booted = boot(conf, waiter)
    finally:
        for warning in conf.foreseen:
            err(warning)
    return _stay(booted, waiter, flags)


def _stay(booted: Boot, waiter: Waiter, flags: list[str]) -> int:
    """Report a subhost that runs by now, and stay as long as the options say."""
    from overlay_boot.waiting import Interrupted

    name = booted.subhost.name
    problem = ""
    try:
        doing = "wait for its services"
        try:
            if flags == ["--wait"]:
                booted.wait_for_start()
                if failed := booted.not_started():
                    problem = f"these services could not be started: {' '.join(failed)}"
            doing = "tell systemd so"
            booted.notify()
        except OSError as error:
            problem = f"overlay-boot cannot {doing}: {explain(error)}"
        try:
            out(f"{name}: running; its log is {booted.subhost.log}")
        except OSError as error:
            err(f"overlay-boot: {name} is running, but cannot say so: {error.strerror}")
        if problem:
            err(f"overlay-boot: {name} is running, but {problem}: see {booted.subhost.log}")
        if flags == ["--foreground"]:
            booted.wait_for_end()
    except Interrupted as error:
        if flags != ["--foreground"]:
            error.args = (f"interrupted while waiting; {name} keeps running",)
            raise
        return _stop_running(name) if booted.record.alive() else 0
    return 1 if problem else 0


def _check(conf: ConfigFile) -> int:
    from overlay_boot.boot import plan
    from overlay_boot.subhost import VARIABLES

    subhost = conf.check()
    for name in VARIABLES:
        if name == "SHARE":
            for share in subhost.shares:
                out(f"SHARE={share.text}")
        else:
            given = name in conf.assigned and conf.assigned[name].text
            out(f"{name}={subhost.texts[name]}" + ("" if given else "   (default)"))
    out("\nA boot would")
    for number, step in enumerate(plan(subhost), 1):
        out(f"{number:3} {step}")
    return 0


def _stop(arguments: list[str]) -> int:
    from overlay_boot.stop import SERVICE

    seconds = f"{SERVICE}"
    if "--timeout" in arguments[:-1]:
        at = arguments.index("--timeout")
        seconds = arguments[at + 1]
        del arguments[at : at + 2]
    flags, words = split(arguments, "--timeout=")
    seconds = flags[0].partition("=")[2] if flags else seconds
    try:
        timeout = float(seconds)
    except ValueError:
        timeout = -1
    if not 0 <= timeout < 1e6:
        raise UsageError(f"--timeout takes seconds, not {seconds!r}")
    if len(words) != 1:
        raise UsageError("expected exactly one name or configuration file of a subhost")
    need_root("overlay-stop", arguments)
    return _stop_running(words[0], timeout)


def _stop_running(name_or_conf: str, timeout: float | None = None) -> int:
    """Stop a subhost, and tell what did not end by itself."""
    from overlay_boot.running import find
    from overlay_boot.stop import SERVICE, stop

    record = find(name_or_conf)
    stopped = stop(record, SERVICE if timeout is None else timeout)
    for warning in stopped.warnings:
        err(f"overlay-stop: warning: {warning}")
    for problem in stopped.problems:
        err(f"overlay-stop: {record.name} is down, but {problem}")
    return 1 if stopped.problems else 0


def _go(arguments: list[str]) -> int:
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    elif arguments and arguments[0].startswith("-"):
        raise UsageError(f"unknown option {arguments[0]}")
    need_root("overlay-go", arguments)
    if not arguments:
        return _list([])
    from overlay_boot.go import go
    from overlay_boot.running import find

    return go(find(arguments[0]), arguments[1:])


def _list(arguments: list[str]) -> int:
    flags, words = split(arguments, "--json")
    if words:
        raise UsageError(f"expected no argument, not {words[0]!r}")
    need_root("overlay-list", arguments)
    from overlay_boot.listing import listed, table

    problems: list[str] = []
    rows = listed(problems)
    for problem in problems:
        err(f"overlay-list: {problem}")
    if flags:
        import json

        out(json.dumps(rows, indent=2))
    elif rows:
        out("\n".join(table(rows)))
    else:
        err("no subhost is running")
    return 0


def _share(arguments: list[str]) -> int:
    flags, words = split(arguments, "--remove")
    if len(words) != 2:
        raise UsageError("expected a path, and the name or configuration file of a subhost")
    need_root("overlay-share", arguments)
    from overlay_boot.running import find
    from overlay_boot.share import share, unshare

    (unshare if flags else share)(find(words[1]), words[0])
    return 0


def _diskfile(arguments: list[str]) -> int:
    _, words = split(arguments)
    if not 1 <= len(words) <= 3:
        raise UsageError("expected a path, and at most a disk image and a partition's number")
    from overlay_boot.diskfile import diskfile

    out(diskfile(*words))
    return 0


def _variable(name: str) -> str:
    """A variable of the configuration whose hook this is."""
    if name not in os.environ:
        raise OverlayBootError(f"{name} is not set: only overlay-boot runs this")
    return os.environ[name]


def _premount(arguments: list[str]) -> int:
    if len(arguments) != 1:
        raise UsageError("expected UPPER")
    from overlay_boot.cables import parse_cables
    from overlay_boot.hooks import premount
    from overlay_boot.tree import Made

    upper, name, lower = arguments[0], _variable("NAME"), _variable("LOWER")
    premount(upper, lower, name, parse_cables(name, _variable("CABLES")), Made.passed_on(upper))
    return 0


def _postmount(arguments: list[str]) -> int:
    if len(arguments) != 2:
        raise UsageError("expected LIVE and UPPER")
    from overlay_boot.hooks import postmount
    from overlay_boot.subhost import VARIABLES
    from overlay_boot.tree import Made

    live, upper = arguments
    start = VARIABLES["START"].parse(_variable("START"), {})
    postmount(live, _variable("RAM_SIZE"), start, Made.passed_on(upper))
    return 0


def _init(arguments: list[str]) -> int:
    if arguments:
        raise UsageError("expected no argument")
    from overlay_boot.hooks import init
    from overlay_boot.subhost import VARIABLES

    out(init(VARIABLES["START"].parse(_variable("START"), {})).rstrip("\n"))
    return 0


COMMANDS: dict[str, Command] = {
    "overlay-boot": (_boot, BOOT),
    "overlay-stop": (_stop, STOP),
    "overlay-go": (_go, GO),
    "overlay-list": (_list, LIST),
    "overlay-share": (_share, SHARE),
    "overlay-diskfile": (_diskfile, DISKFILE),
    "overlay-premount": (_premount, f"Usage: overlay-premount UPPER\n{HOOK}"),
    "overlay-postmount": (_postmount, f"Usage: overlay-postmount LIVE UPPER\n{HOOK}"),
    "overlay-init": (_init, f"Usage: overlay-init\n{HOOK}"),
}

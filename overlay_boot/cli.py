"""The commands: arguments in, exit statuses out. Only this module prints and exits.

No argparse: its import alone takes as long as a boot's mounts.
"""

from __future__ import annotations

import os
import sys

from overlay_boot import ConfigError, OverlayBootError, explain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from overlay_boot.config import Draft

STATUSES = "Exit status: 0 done, 1 failed, 2 usage or configuration, 3 not running"

BOOT = f"""\
Usage: overlay-boot [--wait | --foreground | --check] CONF
Start the subhost that the configuration file CONF describes; see overlay-boot(8).

  --wait        return when its services have been started, not as soon as it runs
  --foreground  stay until the subhost ends; SIGINT and SIGTERM stop it
  --check       print the resolved configuration and the steps of a boot, do nothing
  --help        print this

{STATUSES}"""

STOP = f"""\
Usage: overlay-stop [--timeout SECONDS] NAME|CONF
Stop a subhost: its services in reverse order, then whatever is left; see overlay-stop(8).

  --timeout SECONDS  grace before what does not end is killed (default 10)
  --help             print this

{STATUSES}"""

GO = f"""\
Usage: overlay-go [NAME|CONF [COMMAND [ARGUMENT...]]]
Open root's shell in a running subhost, or run COMMAND there; see overlay-go(8).
Without a name, list the subhosts that run.

  --help  print this

{STATUSES};
with COMMAND, the command's own"""

LIST = f"""\
Usage: overlay-list [--json]
List the subhosts that run: name, pid 1, since when, root, cables, configuration.

  --json  print an array of objects with the keys name, pid, since, root, cables, configuration
  --help  print this

{STATUSES}"""


SHARE = f"""\
Usage: overlay-share PATH NAME|CONF
Bind a folder of the main host onto the same path of a running subhost; see overlay-share(8).

  --help  print this

{STATUSES}"""

DISKFILE = f"""\
Usage: overlay-diskfile MOUNTPOINT/[PATH] [DISKFILE [PARTITION]]
Mount a disk image for a "!" value of a configuration, and print the path; see overlay-diskfile(8).

  --help  print this

{STATUSES}"""


class UsageError(ConfigError):
    """A command line that the command does not take."""


def command(main: Callable[[list[str]], int], usage: str) -> int:
    """Run one command's main and turn what it raises into one line and an exit status."""
    name = usage.split()[1]
    arguments = sys.argv[1:]
    if "--help" in arguments[:1] or "-h" in arguments[:1]:
        print(usage)
        return 0
    try:
        return main(arguments)
    except UsageError as error:
        print(f"{name}: {error}: see {name} --help", file=sys.stderr)
        return error.status
    except OverlayBootError as error:
        for line in str(error).split("\n"):
            print(f"{name}: {line}" if error.status != 2 else line, file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:
        print(f"{name}: {explain(error)}", file=sys.stderr)
        return 1


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
        again = " ".join([name, *arguments])
        raise OverlayBootError(f"only root can do this: try sudo {again}")


def boot() -> int:
    """overlay-boot"""
    return command(_boot, BOOT)


def _boot(arguments: list[str]) -> int:
    flags, words = split(arguments, "--wait", "--foreground", "--check")
    if len(flags) > 1:
        raise UsageError("--wait, --foreground and --check exclude each other")
    if len(words) != 1:
        raise UsageError("exactly one configuration file is wanted")
    from overlay_boot.config import Draft

    draft = Draft(words[0])
    for warning in draft.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if flags == ["--check"]:
        return _check(draft)
    need_root("overlay-boot", arguments)
    from overlay_boot.boot import boot

    if flags == ["--foreground"]:
        import signal

        signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = boot(draft)
    try:
        print(f"{started.subhost.name}: running; its log is {started.subhost.log}", flush=True)
        if flags == ["--wait"]:
            started.wait_for_reaper()
        elif flags == ["--foreground"]:
            started.wait_for_end()
    except KeyboardInterrupt:
        if flags == ["--wait"]:
            raise
        from overlay_boot.records import find
        from overlay_boot.stop import stop

        stop(find(started.subhost.name), 10)
    return 0


def _check(draft: Draft) -> int:
    from overlay_boot.boot import plan
    from overlay_boot.config import VARIABLES

    subhost = draft.subhost()
    for name in VARIABLES:
        if name == "SHARE":
            for share in subhost.shares:
                print(f"SHARE={share.text}")
        else:
            origin = "" if name in draft.given else "   (default)"
            print(f"{name}={subhost.values[name]}{origin}")
    print("\nA boot would")
    for number, step in enumerate(plan(subhost), 1):
        print(f"{number:3} {step}")
    return 0


def stop() -> int:
    """overlay-stop"""
    return command(_stop, STOP)


def _stop(arguments: list[str]) -> int:
    seconds = "10"
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
        raise UsageError("exactly one subhost's name or configuration file is wanted")
    need_root("overlay-stop", arguments)
    from overlay_boot.records import find
    from overlay_boot.stop import stop

    stop(find(words[0]), timeout)
    return 0


def go() -> int:
    """overlay-go"""
    return command(_go, GO)


def _go(arguments: list[str]) -> int:
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    elif arguments and arguments[0].startswith("-"):
        raise UsageError(f"unknown option {arguments[0]}")
    need_root("overlay-go", arguments)
    if not arguments:
        return _list([])
    from overlay_boot.go import go
    from overlay_boot.records import find

    return go(find(arguments[0]), arguments[1:])


def list_running() -> int:
    """overlay-list"""
    return command(_list, LIST)


def _list(arguments: list[str]) -> int:
    flags, words = split(arguments, "--json")
    if words:
        raise UsageError("no argument is wanted")
    need_root("overlay-list", arguments)
    import time

    from overlay_boot.records import running

    rows: list[dict[str, Any]] = [
        {
            "name": record.name,
            "pid": record.pid,
            "since": time.strftime("%FT%T%z", time.localtime(int(record.items["SINCE"]))),
            "root": record.items["ROOT"],
            "cables": record.hosts,
            "configuration": record.items["CONFIG"],
        }
        for record in running()
    ]
    if not rows and not flags:
        print("no subhost is running", file=sys.stderr)
        return 0
    if flags:
        import json

        print(json.dumps(rows, indent=2))
        return 0
    table = [["NAME", "PID", "SINCE", "ROOT", "CABLES", "CONFIGURATION"]]
    for row in rows:
        values = row | {"cables": " ".join(row["cables"]) or "-"}
        table.append([str(value) for value in values.values()])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(map(str.ljust, line, widths)).rstrip())
    return 0


def share() -> int:
    """overlay-share"""
    return command(_share, SHARE)


def _share(arguments: list[str]) -> int:
    _, words = split(arguments)
    if len(words) != 2:
        raise UsageError("a folder and a subhost's name or configuration file are wanted")
    need_root("overlay-share", arguments)
    from overlay_boot.records import find
    from overlay_boot.share import share

    share(find(words[1]), words[0])
    return 0


def diskfile() -> int:
    """overlay-diskfile"""
    return command(_diskfile, DISKFILE)


def _diskfile(arguments: list[str]) -> int:
    _, words = split(arguments)
    if not 1 <= len(words) <= 3:
        raise UsageError("a path, and at most a disk image and a partition's number, are wanted")
    from overlay_boot.diskfile import diskfile

    print(diskfile(*words))
    return 0

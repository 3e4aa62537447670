"""`python -m vm build|up|ssh|run|list|destroy|fetch|box|prune`.

Exit statuses: 0 done, 1 failed (one line on stderr says why), 2 usage. `run` hands on the command's
own, 124 when its time limit ran out, and 125 for whatever is not the command's doing: a usage that is
wrong, a machine that is not there or broke. `ssh` is ssh's own, or 125 when it cannot start.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from vm import archive, cache, folders, image, processes, software
from vm.errors import CommandTimeout, RequestError, VmError
from vm.machine import Sink
from vm.options import Wanted, add_suite
from vm.options import add as add_options
from vm.qemu import QemuMachine

LATE, BROKEN = 124, 125


def say(line: str) -> None:
    """Progress, apart from what a script would read."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Running:
    """A machine that `list` shows."""

    name: str
    pid: int
    detached: bool
    since: float

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return folders.run() / self.name


def running() -> list[Running]:
    """The machines of this user that run now, by name."""
    found = []
    for file in sorted(folders.run().glob("*/machine.json")):
        pid = processes.recorded(file.with_name("pid"))
        if pid is not None:
            about = json.loads(file.read_text())
            since = file.stat().st_mtime
            found.append(Running(file.parent.name, pid, bool(about["detached"]), since))
    return found


def pick(name: str) -> Running:
    """The running machine of that name, or whose name alone starts so."""
    detached = [machine for machine in running() if machine.detached]
    matching = [m for m in detached if m.name == name] or [
        m for m in detached if m.name.startswith(name)
    ]
    if len(matching) != 1:
        names = ", ".join(m.name for m in matching or detached) or "none runs: python -m vm up"
        raise RequestError(f"machine {name!r}: {'which' if matching else 'not found'} ({names})")
    return matching[0]


def build(options: argparse.Namespace) -> int:
    """Build an image, or find it in the cache; prints its folder."""
    print(image.build(options.suite, options.flavour, say=say, fresh=options.fresh).folder)
    return 0


def up(options: argparse.Namespace) -> int:
    """Start a machine that goes on running; prints its name."""
    begin = time.monotonic()
    wanted = Wanted.given(options, detached=True)
    if options.install:
        software.look(options.install)
    machine = wanted.made_by.up(wanted, say)
    try:
        if options.install:
            software.install(machine, options.install)
        seconds = round(time.monotonic() - begin, 2)
        about = {"name": machine.name, "seconds": seconds}
        print(json.dumps(about) if options.json else machine.name, flush=True)
    except BaseException:  # nobody knows its name
        machine.close()
        raise
    if not options.json:
        say(f"up after {seconds} s: python -m vm ssh {machine.name}")
    return 0


def ssh(options: argparse.Namespace) -> int:
    """A shell in a machine, or a command, over ssh."""
    machine = QemuMachine.attach(pick(options.name).folder)
    command = machine.ssh_command()
    machine.disconnect()
    os.execvp(command[0], [*command, *options.command])


def seconds(text: str) -> float:
    """A time limit: a number above 0, or inf for none."""
    value = float(text)
    if not value > 0:
        raise ValueError
    return value


def handing_on(stream: TextIO | None) -> Sink:
    """Hands on bytes as they come, to a stream of Python's; one that is closed takes none."""

    def hand_on(data: bytes) -> None:
        if stream is not None:
            stream.buffer.write(data)
            stream.buffer.flush()

    return hand_on


def run(options: argparse.Namespace) -> int:
    """Run a command in a machine: one word is a line for its shell, several are taken as they are."""
    words = options.command
    data = sys.stdin.buffer if options.input and sys.stdin else b""
    machine = QemuMachine.attach(pick(options.name).folder)
    try:
        return machine.run(
            words[0] if len(words) == 1 else shlex.join(words),
            timeout=options.timeout,
            input=data,
            out=handing_on(sys.stdout),
            err=handing_on(sys.stderr),
        ).status
    except CommandTimeout:
        say(f"vm: still running after {options.timeout:g} s, killed")
        return LATE
    finally:
        machine.disconnect()


def list_all(options: argparse.Namespace) -> int:
    """Show what the cache holds, and running machines."""
    items, machines = list(cache.items()), running()
    if options.json:
        rows = [asdict(one) | {"path": str(one.path)} for one in items]
        machines_ = [asdict(machine) for machine in machines]
        print(json.dumps({"cache": rows, "machines": machines_}))
        return 0
    print(f"cache in {folders.cache()}: {sum(one.bytes for one in items) >> 20} MiB")
    for one in items:
        note = "  in use" if one.used else "" if one.current else "  goes with python -m vm prune"
        print(f"  {one.kind:8} {one.path.name:34} {one.bytes >> 20:5} MiB{note}")
    print(f"machines in {folders.run()}:")
    for machine in machines:
        age = time.time() - machine.since
        kind = "" if machine.detached else "  of a running command"
        print(f"  {machine.name:34} pid {machine.pid}, up {age / 60:.0f} min{kind}")
    return 0


def destroy(options: argparse.Namespace) -> int:
    """End machines and remove all that they left."""
    if not options.name and not options.all:
        raise RequestError("destroy what? Name a machine, or --all")
    chosen = [m for m in running() if m.detached] if options.all else [pick(options.name)]
    for machine in chosen:
        QemuMachine.attach(machine.folder).close()
        print(machine.name)
    return 0


def fetch(options: argparse.Namespace) -> int:
    """Fetch a package of a suite through this machine's mirrors; prints the file."""
    print(archive.fetch(options.package, options.suite, say=say))
    return 0


def box(options: argparse.Namespace) -> int:
    """Pack an image as a box for Vagrant's libvirt provider; prints the file."""
    from vm.box import pack

    print(pack(image.build(options.suite, options.flavour, say=say), options.output, say=say))
    return 0


def prune(options: argparse.Namespace) -> int:
    """Remove what aborted runs left and what would be made otherwise today (or all not in use)."""
    for name in folders.sweep():
        print(f"left by an aborted run: {name}")
    print(f"freed {cache.prune(everything=options.all) >> 20} MiB")
    return 0


def add_run_options(command: argparse.ArgumentParser) -> None:
    """The options of `run`, which may stand before the machine's name or after it."""
    keep = argparse.SUPPRESS  # one that is not given leaves what was given before it
    command.add_argument(
        "-i", "--input", action="store_true", default=keep, help="hand on standard input"
    )
    command.add_argument(
        "--timeout", type=seconds, default=keep, help="seconds, or inf (default 600)"
    )


def parse(words: list[str]) -> argparse.Namespace:
    """The command line. Raises SystemExit where it is wrong."""
    if words[:1] != ["run"]:
        return parser().parse_args(words)
    end = words.index("--") if "--" in words else len(words)
    options = parser().parse_args(words[:end])
    after = argparse.ArgumentParser(prog="python -m vm run", add_help=False)
    add_run_options(after)
    after.add_argument("command", nargs=argparse.REMAINDER)
    after.parse_args(options.command, options)
    # The first -- ends the options, unless the command has begun: then it is the command's own.
    options.command += words[end if options.command else end + 1 :]
    if not options.command:
        after.error("run what? a command is missing")
    return options


def path(text: str) -> Path:
    """A path that was given; that of nothing, as of a variable that is not set, would be here."""
    if not text:
        raise argparse.ArgumentTypeError("an empty word is no path")
    return Path(text)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    whole = argparse.ArgumentParser(
        prog="python -m vm",
        description="Disposable Debian machines: built, booted, used and thrown away.",
    )
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, action: Callable[[argparse.Namespace], int], *flags: str) -> Any:
        about = (action.__doc__ or "").rstrip(".")
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(action=action)
        if "suite" in flags:
            add_suite(command)
            add_options(command.add_argument, "flavour")
        if "json" in flags:
            command.add_argument("--json", action="store_true", help="for a script to read")
        return command

    add("build", build, "suite").add_argument("--fresh", action="store_true", help="build anew")
    command = add("up", up, "suite", "json")
    add_options(command.add_argument, "init", "cpus", "network", "cold")
    command.add_argument("--install", type=path, metavar="DEB|DIR", help="put this into it")
    command = add("ssh", ssh)
    command.add_argument("name")
    command.add_argument("command", nargs=argparse.REMAINDER)
    command = add("run", run)
    command.set_defaults(input=False, timeout=600.0)
    add_run_options(command)
    command.add_argument("name")
    command.add_argument("command", nargs=argparse.REMAINDER, help="after -- whatever it is")
    add("list", list_all, "json")
    command = add("destroy", destroy)
    command.add_argument("name", nargs="?")
    command.add_argument("--all", action="store_true")
    command = add("box", box, "suite")
    command.add_argument("--output", type=Path, default=Path("dist"), help="folder (default dist)")
    command = add("fetch", fetch)
    command.add_argument("package")
    add_suite(command, "sid")
    command = add("prune", prune)
    command.add_argument("--all", action="store_true", help="current ones too")
    return whole


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    bad = BROKEN if words[:1] in (["run"], ["ssh"]) else 1
    try:
        options = parse(words)
    except SystemExit as end:
        return 0 if not end.code else max(bad, 2)
    processes.end_in_order()
    try:
        status: int = options.action(options)
        if sys.stdout:  # it may be closed
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (VmError, OSError) as error:
        say(f"vm: {error}")
        return bad
    except KeyboardInterrupt:
        say("vm: interrupted")
        return 128 + signal.SIGINT
    except Exception:  # noqa: BLE001 - a fault of this program is never the command's own status
        traceback.print_exc()
        return bad
    return status

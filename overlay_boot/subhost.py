"""What a configuration says, resolved: the table of the variables, and the Subhost they make.

VARIABLES is the only place that knows the variables: a row holds the default, the meaning, and what
makes a value of a text, or a Mistake (overlay-boot(8), VARIABLES).
"""

from __future__ import annotations

import os
import sys

from overlay_boot import commands
from overlay_boot.cables import Cable, parse_cables
from overlay_boot.check import Mistake, Pending, name_problem, program_problem, size_problem
from overlay_boot.linux import open_in_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def program(name: str) -> str:
    """A program of this package: it stands beside the command that is running."""
    return os.path.join(os.path.dirname(os.path.realpath(sys.argv[0])), name)


class Share:
    """One SHARE: the host's path, and the path it gets in the subhost (both absolute)."""

    def __init__(self, line: int, text: str) -> None:
        self.line = line
        self.text = text
        self.source, colon, target = text.partition(":/")
        self.target = colon[1:] + target or self.source
        self.under_lower = not colon

    def open(self, lower: str) -> int:
        """An O_PATH descriptor of what is shared: below LOWER, links resolved inside it, or the
        main host's own path where the line names two. Raises OSError."""
        if not self.under_lower:
            return os.open(self.source, os.O_PATH | os.O_CLOEXEC)
        root = os.open(lower, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return open_in_root(root, self.source, os.O_PATH)
        finally:
            os.close(root)


class Hook:
    """A command of INIT, PREMOUNT or POSTMOUNT: its program's path and its words; `ours` where it
    is the default one as it stands, which is a function of hooks.py, and `systemd` where it is
    overlay-init-systemd (systemd.py)."""

    def __init__(self, words: list[str], ours: bool = False) -> None:
        self.words = words
        self.ours = ours
        self.systemd = words == [program("overlay-init-systemd")]

    def __str__(self) -> str:
        return " ".join(self.words)


CAPABILITIES = {  # that a subhost has none of: what they do reaches the whole machine (capability.h)
    "SYS_MODULE": 16,
    "SYS_RAWIO": 17,
    "SYS_TIME": 25,
    "SYSLOG": 34,
    "PERFMON": 38,
    "BPF": 39,
}


class Capability:
    """What a CAPABILITY keeps: a mask of capabilities, and whether it is all that there is, which
    leaves the kernel's files writable too."""

    def __init__(self, words: list[str]) -> None:
        self.all = words == ["ALL"]
        self.dropped = [] if self.all else [name for name in CAPABILITIES if name not in words]
        self.kept = (1 << 64) - 1 - sum(1 << CAPABILITIES[name] for name in self.dropped)

    def __str__(self) -> str:
        return " without " + " ".join(self.dropped) if self.dropped else ""


class Subhost:
    """One subhost: absolute paths, split words, parsed cables. ConfigFile.resolve makes it."""

    def __init__(self, conf: str, values: dict[str, Any]) -> None:
        self.conf = conf
        self.name: str = values["NAME"]
        self.base: str = values["BASE"]
        self.live: str = values["LIVE"]
        self.upper: str = values["UPPER"]
        self.lower: str = values["LOWER"]
        self.work: str = values["WORK"]
        self.log: str = values["LOG"]
        self.ram_size: str = values["RAM_SIZE"]
        self.start: list[str] = values["START"]
        self.capability: Capability = values["CAPABILITY"]
        self.cables: list[Cable] = values["CABLES"]
        self.shares: list[Share] = values["SHARE"]
        self.premount: Hook = values["PREMOUNT"]
        self.postmount: Hook = values["POSTMOUNT"]
        self.init: Hook = values["INIT"]
        self.texts: dict[str, str] = {}
        """Every variable as text, for --check and the environment of hooks."""

    @property
    def root_kind(self) -> str:
        """How the root is set up: overlay, bind or plain (overlay-boot(8), ROOT FILE SYSTEM)."""
        upper, lower, live = map(os.path.realpath, (self.upper, self.lower, self.live))
        if upper != lower:
            return "overlay"
        return "bind" if upper != live else "plain"

    def environment(self) -> dict[str, str]:
        """What commands of the configuration find in their environment (hooks-environment)."""
        return {**os.environ, **self.texts, **command_environment(self.conf)}


def command_environment(conf: str) -> dict[str, str]:
    """What every command of a configuration finds in its environment (bang-environment); the
    programs of this package are on its PATH."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), os.path.dirname(program(""))))
    return {"CONFIG": conf, "ACTION": "overlay-boot", "PATH": path}


class Variable:
    """One row of the table. `parse` makes the value of a text and of the values known so far, or
    raises Mistake."""

    def __init__(
        self, default: str, meaning: str, parse: Callable[[str, dict[str, Any]], Any]
    ) -> None:
        self.default = default
        self.meaning = meaning
        self.parse = parse


def _name(text: str, known: dict[str, Any]) -> str:
    text = text or os.path.basename(known["CONFIG"]).removesuffix(".conf")
    return _checked("NAME", text, name_problem)


def _base(text: str, known: dict[str, Any]) -> str:
    if not text and not isinstance(text, Pending):
        raise Mistake("BASE is missing: add a line such as BASE=. for this folder")
    return _absolute(os.path.dirname(known["CONFIG"]), text)


def _path(text: str, known: dict[str, Any]) -> str:
    return _absolute(known["BASE"], text)


def _log(text: str, known: dict[str, Any]) -> str:
    return _path(text or f"/tmp/overlay-{known['NAME']}.log", known)


def _absolute(folder: str, path: str) -> str:
    if isinstance(path, Pending) or isinstance(folder, Pending) and not path.startswith("/"):
        return Pending(path)
    return os.path.normpath(os.path.join(folder, path))


def _size(text: str, _: dict[str, Any]) -> str:
    return _checked("RAM_SIZE", text, size_problem)


def _checked(variable: str, text: str, problem: Callable[[str], str]) -> str:
    if not isinstance(text, Pending) and (why := problem(text)):
        raise Mistake(f"{variable}: {why}")
    return text


def _start(text: str, _: dict[str, Any]) -> list[str]:
    if text == "none":
        return []
    if isinstance(text, Pending):
        return [text]
    words = text.split()
    for word in words:
        if word.startswith("#"):
            raise Mistake(
                f"START: {word[:40]!r} is not a service: a comment needs a line of its own"
            )
    return words


def _capability(text: str, _: dict[str, Any]) -> Capability:
    if isinstance(text, Pending):
        return Capability([])
    words = [word.upper().removeprefix("CAP_") for word in text.split()]
    if words != ["ALL"] and (wrong := [word for word in words if word not in CAPABILITIES]):
        raise Mistake(
            f"CAPABILITY: {wrong[0][:40]!r} is not one of {' '.join(CAPABILITIES)}: name some of "
            "these, or only all"
        )
    return Capability(words)


def _cables(text: str, known: dict[str, Any]) -> list[Cable]:
    return [] if isinstance(text, Pending) else parse_cables(known["NAME"], text)


def _hook(variable: str) -> Callable[[str, dict[str, Any]], Hook]:
    def parse(text: str, known: dict[str, Any]) -> Hook:
        if isinstance(text, Pending):
            return Hook([text])
        first, *rest = text.split()
        candidates = [os.path.join(known["BASE"], first), program(first)]
        candidates += [commands.find(first, os.environ.get("PATH", os.defpath))]
        if "/" in first:
            del candidates[1:]
        elif isinstance(known["BASE"], Pending):
            del candidates[0]
        found = next((path for path in candidates if os.path.isfile(path)), candidates[0])
        found = os.path.normpath(found)
        if not isinstance(known["BASE"], Pending) and (why := program_problem(found)):
            raise Mistake(f"{variable}: {why}")
        return Hook([found, *rest], [found, *rest] == [program(VARIABLES[variable].default)])

    return parse


def _taken_as_it_is(value: Any, _: dict[str, Any]) -> Any:
    return value


VARIABLES = {  # in the order in which their commands run
    "BASE": Variable("", "folder that the other paths start from; required", _base),
    "NAME": Variable("", "short name; the file's name without .conf by default", _name),
    "LIVE": Variable("live", "mount point of the running root file system", _path),
    "UPPER": Variable("root", "upper file system, the subhost's own files", _path),
    "LOWER": Variable("/", "lower file system, read-only", _path),
    "WORK": Variable("work", "work folder of the overlay, on UPPER's mount", _path),
    "CABLES": Variable("", "virtual cables: [bridge]=[MAC, stable or .VLAN tag] ...", _cables),
    "START": Variable("networking ssh", "services to start, or none", _start),
    "SHARE": Variable("", "path to share with the subhost; may be repeated", _taken_as_it_is),
    "RAM_SIZE": Variable("50M", "size of the tmpfs on /run, or none", _size),
    "CAPABILITY": Variable(
        "", "capabilities to keep of those that it has not, or all", _capability
    ),
    "LOG": Variable("", "log file; /tmp/overlay-NAME.log by default", _log),
    "PREMOUNT": Variable("overlay-premount", "runs before the root is mounted", _hook("PREMOUNT")),
    "POSTMOUNT": Variable(
        "overlay-postmount", "runs after the root is mounted", _hook("POSTMOUNT")
    ),
    "INIT": Variable("overlay-init", "prints the commands that pid 1 runs", _hook("INIT")),
}

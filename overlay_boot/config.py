"""A configuration file's text to one Subhost (overlay-boot(8), OPTIONS; decisions 1 to 7, 10, 23).

VARIABLES is the only place that knows the variables. A Draft is what the file says; it becomes a
Subhost once its "!" commands have run. All mistakes of a file are reported together, each as
"file:line: what, why, what to do", before anything has been touched.
"""

from __future__ import annotations

import os
import stat
import sys

from overlay_boot import ConfigError
from overlay_boot.cables import Cable, parse_cables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def program(name: str) -> str:
    """A program of this package: it stands beside the command that is running."""
    return os.path.join(os.path.dirname(os.path.realpath(sys.argv[0])), name)


def command_environment(conf: str) -> dict[str, str]:
    """What every command of a configuration finds in its environment (decision 4); the programs
    of this package are on its PATH."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), os.path.dirname(program(""))))
    return {"CONFIG": conf, "ACTION": "overlay-boot", "PATH": path}


class Variable:
    """One row of the table: a variable, what kind of value it takes, its default, its meaning."""

    def __init__(self, kind: str, default: str, meaning: str) -> None:
        self.kind = kind
        self.default = default
        self.meaning = meaning


VARIABLES = {
    "NAME": Variable("name", "", "short name; the file's name without .conf by default"),
    "BASE": Variable("path", "", "folder that the other paths start from; required"),
    "CABLES": Variable("cables", "", "virtual cables: [bridge]=[MAC address or .VLAN tag] ..."),
    "INIT": Variable("command", "overlay-init", "prints the commands that pid 1 runs"),
    "LIVE": Variable("path", "live", "mount point of the running root file system"),
    "LOG": Variable("path", "/tmp/overlay-{NAME}.log", "log file"),
    "LOWER": Variable("path", "/", "lower file system, read-only"),
    "POSTMOUNT": Variable("command", "overlay-postmount", "runs after the root is mounted"),
    "PREMOUNT": Variable("command", "overlay-premount", "runs before the root is mounted"),
    "RAM_SIZE": Variable("size", "50M", "size of the tmpfs on /run, or none"),
    "SHARE": Variable("share", "", "path to share with the subhost; may occur many times"),
    "START": Variable("words", "networking ssh", "services to start, or none"),
    "UPPER": Variable("path", "root", "upper file system, the subhost's own files"),
    "WORK": Variable("path", "work", "work folder of the overlay, on UPPER's mount"),
}


class Share:
    """One SHARE: the host's path, and the path it gets in the subhost (both absolute)."""

    def __init__(self, line: int, text: str) -> None:
        self.line = line
        self.text = text
        self.source, colon, target = text.partition(":/")
        self.target = colon[1:] + target or self.source
        self.under_lower = not colon


class Subhost:
    """All that a configuration says, resolved: absolute paths, split words, parsed cables."""

    def __init__(self, conf: str, values: dict[str, str], cables: list[Cable]) -> None:
        self.conf = conf
        self.values = values
        self.name = values["NAME"]
        self.base = values["BASE"]
        self.live = values["LIVE"]
        self.lower = values["LOWER"]
        self.upper = values["UPPER"]
        self.work = values["WORK"]
        self.log = values["LOG"]
        self.init = values["INIT"].split()
        self.premount = values["PREMOUNT"].split()
        self.postmount = values["POSTMOUNT"].split()
        self.ram_size = values["RAM_SIZE"]
        self.start = [] if values["START"] == "none" else values["START"].split()
        self.cables = cables
        self.shares: list[Share] = []

    @property
    def kind(self) -> str:
        """How the root is set up: overlay, bind or plain (overlay-boot(8), LIVE and UPPER)."""
        upper, lower, live = map(os.path.realpath, (self.upper, self.lower, self.live))
        if upper != lower:
            return "overlay"
        return "bind" if upper != live else "plain"

    def environment(self) -> dict[str, str]:
        """What commands of the configuration find in their environment (decision 12)."""
        return {**os.environ, **self.values, **command_environment(self.conf)}


class Draft:
    """What a configuration file says, line by line, before its commands have run."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.conf = os.path.abspath(path)
        self.lines: dict[str, int] = {}
        self.given: dict[str, str] = {}
        self.shares: list[Share] = []
        self.warnings: list[str] = []
        self._parse(self._text())

    def at(self, line: int, message: str) -> str:
        """A message about a line of the file, in the form that editors can jump to."""
        return f"{self.path}:{line}: {message}"

    def _text(self) -> str:
        try:
            with open(self.conf, "rb") as file:
                status = os.fstat(file.fileno())
                raw = file.read()
        except OSError as error:
            raise ConfigError(
                f"{self.path}: cannot read the configuration: {error.strerror}"
            ) from error
        if status.st_mode & stat.S_IWOTH:
            raise ConfigError(
                f"{self.path}: everyone may write it and its commands run as root: "
                f"chmod o-w {self.path}"
            )
        if status.st_uid not in (0, os.geteuid()):
            self.warnings.append(
                f"{self.path}: belongs to user id {status.st_uid}, who decides what runs as root"
            )
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            raise ConfigError(self.at(line, "not UTF-8 text: save the file as UTF-8")) from None
        if "\0" in text:
            line = text.count("\n", 0, text.index("\0")) + 1
            raise ConfigError(self.at(line, "a zero byte, which no value can hold: take it out"))
        return text

    def _parse(self, text: str) -> None:
        for number, line in enumerate(text.split("\n"), 1):
            name, equals, value = line.partition("=")
            value = value.strip()
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            if not equals or name not in VARIABLES:
                self.warnings.append(self.at(number, "ignored: " + _diagnosis(line)))
            elif name == "SHARE":
                self.shares.append(Share(number, value))
            elif name in self.lines:
                first = self.lines[name]
                message = f"ignored: {name} is assigned already at line {first}, which counts"
                self.warnings.append(self.at(number, message))
            else:
                self.lines[name] = number
                self.given[name] = value

    def evaluate(self, names: Iterable[str] = VARIABLES) -> None:
        """Run the "!" commands of the named variables, each once, and keep their values.

        Raises ConfigError naming the variable, the command and its exit status (decision 4).
        """
        import subprocess

        for name in [name for name in VARIABLES if name in names]:
            if not self.given.get(name, "").startswith("!"):
                continue
            command = self.given[name][1:].strip()
            folder = os.path.dirname(self.conf) if name == "BASE" else self.values()["BASE"]
            done = subprocess.run(
                ["/bin/sh", "-c", command],
                check=False,
                cwd=folder,
                env={**os.environ, **command_environment(self.conf)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
            value = os.fsdecode(done.stdout.partition(b"\n")[0].strip())
            if done.returncode or not value:
                why = "printed no value" if not done.returncode else "failed"
                raise ConfigError(
                    self.at(
                        self.lines[name],
                        f"{name}: the command {why}: {command} (exit status {done.returncode})",
                    )
                )
            self.given[name] = value

    def values(self) -> dict[str, str]:
        """Every variable's value: given or default, paths made absolute."""
        values: dict[str, str] = {}
        folder = os.path.dirname(self.conf)
        name = os.path.basename(self.conf).removesuffix(".conf")
        for key in ["NAME", "BASE", *VARIABLES]:  # the two that others depend on come first
            variable = VARIABLES[key]
            value = self.given.get(key) or variable.default
            if key in values or value.startswith("!"):
                values.setdefault(key, value)
            elif key == "NAME":
                values[key] = value or name
            elif key == "LOG":
                if not self.given.get(key):
                    value = value.replace("{NAME}", values["NAME"])
                values[key] = _absolute(values["BASE"], value)
            elif variable.kind == "path":
                start = folder if key == "BASE" else values["BASE"]
                values[key] = _absolute(start, value) if value else ""
            elif variable.kind == "command":
                values[key] = _command(values["BASE"], value)
            elif variable.kind in ("words", "cables"):
                values[key] = " ".join(value.split())
            else:
                values[key] = value
        values["SHARE"] = "\n".join(share.text for share in self.shares)
        return values

    def subhost(self) -> Subhost:
        """The Subhost that the file describes; values of commands yet to run go unchecked.

        Raises ConfigError with every mistake of the file.
        """
        from overlay_boot.check import mistakes, share_mistake

        values = self.values()
        cables: list[Cable] = []
        found: list[tuple[int, str]] = []
        if not values["CABLES"].startswith("!"):
            cables, wrong = parse_cables(values["NAME"], values["CABLES"])
            found += [(self.line("CABLES"), text) for text in wrong]
        subhost = Subhost(self.conf, values, cables)
        subhost.shares = self.shares
        found += [(self.line(name), text) for name, text in mistakes(subhost)]
        found += [
            (share.line, text) for share in self.shares if (text := share_mistake(subhost, share))
        ]
        if found:
            raise ConfigError("\n".join(self.at(line, text) for line, text in sorted(found)))
        return subhost

    def line(self, name: str) -> int:
        """The line that a variable's value comes from; for a default, BASE's or the first."""
        return self.lines.get(name) or self.lines.get("BASE", 1)


def _absolute(folder: str, path: str) -> str:
    return os.path.normpath(os.path.join(folder, path))


def _command(base: str, line: str) -> str:
    """A command line with its first word, the program, as a path: from BASE, this package, PATH."""
    first, *rest = line.split()
    candidates = [os.path.join(base, first), program(first)]
    candidates += [os.path.join(folder, first) for folder in os.get_exec_path()]
    if "/" in first:
        candidates = candidates[:1]
    found = next((path for path in candidates if os.path.isfile(path)), candidates[0])
    return " ".join([os.path.normpath(found), *rest])


def _diagnosis(line: str) -> str:
    """Why a line is no assignment, with the nearest name where one is near."""
    import difflib

    word = line.partition("=")[0].strip()
    near = difflib.get_close_matches(word.upper(), VARIABLES, 1, 0.6)
    if "=" in line and word in VARIABLES:
        return f"{word} must stand at the start of the line, with = right behind it"
    hint = f", did you mean {near[0]}?" if near else ""
    return f"{line.strip()[:40]!r} is not an assignment of a known variable{hint}"

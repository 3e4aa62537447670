"""A configuration file: read, checked, and resolved to one Subhost (overlay-boot(8),
CONFIGURATION FILE).

All mistakes of a file are reported together, each as "file:line: what, why, what to do", before
anything has been touched. Values and the "!" commands that give values are two things from the
first: what a command printed is never taken for a command again.
"""

from __future__ import annotations

import os
import stat

from overlay_boot import ConfigError, cgroup, check, commands
from overlay_boot.check import Mistake, Pending
from overlay_boot.subhost import VARIABLES, Share, Subhost, command_environment
from overlay_boot.waiting import Waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LIMIT = 1 << 20  # bytes of a configuration


class Assigned:
    """What the file assigns to a variable: a value, or the command that prints it."""

    def __init__(self, line: int, text: str) -> None:
        self.line = line
        self.is_command = text.startswith("!")
        self.text = text[1:].strip() if self.is_command else text


class ConfigFile:
    """What a configuration file says, line by line. Raises ConfigError."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.conf = os.path.abspath(path)
        self.assigned: dict[str, Assigned] = {}
        self.shares: list[Share] = []
        self.warnings: list[str] = []  # of the file's lines
        self.foreseen: list[str] = []  # of what the last `resolve` has found on the main host
        self._parse(self._text())

    def at(self, line: int, message: str) -> str:
        """A message about a line of the file, in the form that editors can jump to."""
        return f"{self.path}:{line}: {message}"

    def _text(self) -> str:
        try:
            # Without waiting for whoever might write into a named pipe.
            fd = os.open(self.conf, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(fd, "rb") as file:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise ConfigError(
                        f"{self.path}: not a regular file: name a configuration file"
                    )
                raw = file.read(LIMIT + 1)
        except OSError as error:
            raise ConfigError(
                f"{self.path}: cannot read the configuration: {error.strerror}"
            ) from error
        if len(raw) > LIMIT:
            raise ConfigError(f"{self.path}: more than {LIMIT} bytes: is this a configuration?")
        if status.st_mode & stat.S_IWOTH:
            raise ConfigError(
                f"{self.path}: everyone may write it and its commands run as root: "
                f"chmod o-w {self.path}"
            )
        if status.st_uid not in (0, os.geteuid()):
            who = f"belongs to user id {status.st_uid}, who decides what runs as root"
            self.warnings.append(f"{self.path}: warning: {who}")
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
                self.warnings.append(self.at(number, "warning: ignored: " + _diagnosis(line)))
            elif name == "SHARE":
                self.shares.append(Share(number, value))
            elif name in self.assigned:
                first = self.assigned[name].line
                message = (
                    f"warning: ignored: {name} is assigned already at line {first}, which counts"
                )
                self.warnings.append(self.at(number, message))
            else:
                self.assigned[name] = Assigned(number, value)

    @property
    def has_commands(self) -> bool:
        """Whether some value is only known once a command has run."""
        return any(assigned.is_command for assigned in self.assigned.values())

    def line(self, name: str) -> int:
        """The line that a variable's value comes from; for a default, BASE's or the first."""
        found = self.assigned.get(name) or self.assigned.get("BASE")
        return found.line if found else 1

    def check(self) -> Subhost:
        """What can be known of the subhost without running a command: their values are Pending.

        Raises ConfigError with every mistake of the file.
        """
        return self.resolve(lambda name, known: Pending(f"!{self.assigned[name].text}"))

    def resolve(
        self,
        evaluate: Callable[[str, dict[str, Any]], str],
        named: Callable[[str], None] = lambda name: None,
    ) -> Subhost:
        """The Subhost that the file describes. `evaluate` gives the value of a variable that is a
        command, once for each; `named` is called with NAME before any but BASE's and its own.

        Raises ConfigError with every mistake of the file.
        """
        values: dict[str, Any] = {"CONFIG": self.conf}
        texts: dict[str, str] = {}
        evaluated = ""
        found: list[tuple[int, str]] = []
        for name, variable in VARIABLES.items():
            given = self.assigned.get(name)
            if name == "SHARE":
                values[name] = self.shares
                texts[name] = "\n".join(share.text for share in self.shares)
                continue
            if given and given.is_command:
                text = evaluated = evaluate(name, values)
            else:
                text = given and given.text or variable.default
            try:
                values[name] = value = variable.parse(text, values)
            except Mistake as mistake:
                found += [(self.line(name), line) for line in mistake.lines]
                values[name] = value = variable.parse(Pending(text), values)
            texts[name] = value if isinstance(value, str) else " ".join(text.split())
            if name.endswith(("MOUNT", "INIT")):
                texts[name] = str(value)
            if name == "NAME" and not found:
                named(value)
        subhost = Subhost(self.conf, values)
        subhost.texts = texts
        if not isinstance(subhost.base, Pending):
            found += [(self.line(name), text) for name, text in check.folders(subhost)]
        for share in self.shares:
            if text := check.share_problem(subhost, share):
                found.append((share.line, f"SHARE: {text}"))
        if subhost.init.systemd and (text := cgroup.problem()):
            found.append((self.line("INIT"), f"INIT: {text}"))
        advice = [(self.line(name), text) for name, text in check.warnings(subhost)]
        # What a command of the file may yet create is no mistake.
        bridges = [(self.line("CABLES"), text) for text in check.bridges(subhost)]
        (advice if isinstance(evaluated, Pending) else found).extend(bridges)
        self.foreseen = [
            self.at(line, f"warning: {text}") for line, text in sorted(advice, key=_line)
        ]
        if found:
            raise ConfigError("\n".join(self.at(line, text) for line, text in sorted(found)))
        return subhost

    def run(self, waiter: Waiter) -> Callable[[str, dict[str, Any]], str]:
        """An `evaluate` for resolve that runs the command (overlay-boot(8), bang).

        Raises ConfigError naming the variable, the command and its exit status.
        """

        def evaluate(name: str, known: dict[str, Any]) -> str:
            command = self.assigned[name].text
            folder = os.path.dirname(self.conf) if name == "BASE" else known["BASE"]
            environment = {**os.environ, **command_environment(self.conf)}
            shell = ["/bin/sh", "-c", command]
            try:
                done = commands.run(shell, environment, waiter, folder=folder, capture=True)
            except OSError as error:
                raise ConfigError(
                    self.at(self.line(name), f"{name}: {folder}: {error.strerror}")
                ) from error
            value = os.fsdecode(done.output.partition(b"\n")[0]).strip()
            why = "failed" if done.status else "" if value else "printed no value"
            if "\0" in value:
                why = "printed a zero byte"
            if why:
                message = f"the command {why}: {command} (exit status {done.status})"
                raise ConfigError(self.at(self.line(name), f"{name}: {message}"))
            return value

        return evaluate


def _line(told: tuple[int, str]) -> int:
    return told[0]


def _diagnosis(line: str) -> str:
    """Why a line is no assignment, with the nearest name where one is near."""
    import difflib

    word = line.partition("=")[0].strip()
    near = difflib.get_close_matches(word[:40].upper(), VARIABLES, 1, 0.6)
    if "=" in line and word in VARIABLES:
        return f"{word} must stand at the start of the line, with = right behind it"
    hint = f", did you mean {near[0]}?" if near else ""
    return f"{line.strip()[:40]!r} is not an assignment of a known variable{hint}"

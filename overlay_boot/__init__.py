"""overlay-boot(8): start, enter, list and stop subhosts.

A subhost is a light container whose root is an overlay over the main host's own root. The way of
one boot: cli -> config (text to one Subhost) -> boot (an ordered plan of steps) -> root and net (what
the steps do) -> pid 1. Nothing below cli prints or exits; it raises OverlayBootError. docs/design.md
tells who lives as long as whom, and what holds.

Modules import only what a boot needs on its way: start-up time is part of the product.
"""

import os

__version__ = "2.0.0"
_HERE = os.path.dirname(os.path.abspath(__file__))
REAPER = os.path.join(
    _HERE, "reaper"
)  # the two static programs: this one stays while a subhost runs
HELPER = os.path.join(_HERE, "helper")
LINE = 900  # characters of a message, at most
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # inside every subhost


class OverlayBootError(Exception):
    """A failure told to the user in one line: what failed, on which path, what to do."""

    status = 1


class ConfigError(OverlayBootError):
    """Mistakes in a configuration file or on the command line, one line each."""

    status = 2


class NotRunning(OverlayBootError):
    """The subhost that was named is not running."""

    status = 3


def lines_of(path: str) -> list[str]:
    """The lines of a file in /proc or /sys. A newline alone ends one: whatever else there is may be
    in a name that somebody chose. Raises OSError."""
    with open(path, "rb") as file:
        return os.fsdecode(file.read()).split("\n")


def printable(text: str) -> str:
    """A text for a terminal: what would steer it, or begin another line, as \\x and its bytes."""
    return "".join(
        each if each.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(each))
        for each in text
    )


def message(text: str) -> str:
    """A message for a terminal; of a long one the beginning, which names what it is about, and the
    end, which tells what to do."""
    line = printable(text)
    return line if len(line) <= LINE else f"{line[: LINE // 2]}...{line[-LINE // 3 :]}"


def explain(error: BaseException) -> str:
    """An error in a few words: for a system call's, the path and the kernel's reason."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__

"""The options of a run, for `spec run` and for pytest alike."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spec.clauses import PAGES
from spec.shards import parse


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty word is no path")
    return Path(text).absolute()


def _shard(text: str) -> str:
    try:
        parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = 0
    if not 0 < factor < 1e6:
        raise argparse.ArgumentTypeError(f"{text}: wanted is a factor above 0, below a million")
    return factor


def number(text: str) -> str:
    """How many tests run at once: a number from 1, or auto. Raises ArgumentTypeError."""
    if text != "auto" and not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text}: wanted is a number from 1, or auto")
    return text


OPTIONS: dict[str, dict[str, Any]] = {
    "target": {"default": "here", "help": "here (default), host, ssh://MACHINE, vm://SUITE"},
    "implementation": {
        "metavar": "DIR",
        "type": _path,
        "help": "folder of the commands; for vm:// a tree to lay over the root, or a .deb",
    },
    "deb": {"metavar": "FILE", "type": _path, "help": "package of the commands"},
    "page": {
        "choices": PAGES,
        "help": "whose promises are in force (default: 1.6 for Debian's own package, else ours)",
    },
    "all": {"action": "store_true", "help": "also test what that page does not promise"},
    "shard": {"metavar": "I/N", "type": _shard, "help": "only part I of N, of like durations"},
    "results": {"metavar": "FILE", "type": _path, "help": "where to write results.json"},
    "expectations": {"metavar": "FILE", "type": _path, "help": "known failures (TOML)"},
    "allow-preconditions": {
        "action": "store_true",
        "help": "succeed even where this target could not show a promise",
    },
    "patience": {
        "metavar": "FACTOR",
        "type": _factor,
        "default": 1.0,
        "help": "wait so many times as long as the measured target needs (default 1)",
    },
}


def add_options(add: Callable[..., object], *names: str) -> None:
    """Give a parser these options: argparse's add_argument, or pytest's addoption."""
    for name in names:
        add(f"--{name}", **OPTIONS[name])


def words(options: argparse.Namespace) -> list[str]:
    """The options as they were given, to be handed on."""
    said = []
    for name, about in OPTIONS.items():
        value = getattr(options, name.replace("-", "_"))
        if "action" in about:
            said += [f"--{name}"] if value else []
        elif value is not None:
            said.append(f"--{name}={value}")
    return said

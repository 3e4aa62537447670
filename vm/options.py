"""What a machine can be asked to be.

The one place that knows the options: of `vm.up`, of `python -m vm`, of pytest and of vm:// URLs.
A new option is a field of `Wanted`; a new provider is a class and a row of PROVIDERS.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass, field, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from vm import recipe
from vm.errors import RequestError
from vm.processes import Say

if TYPE_CHECKING:
    from vm.machine import Machine


class Provider(ABC):
    """A way to run machines."""

    can: frozenset[str]
    """The abilities among the options of `Wanted` that it has."""

    @abstractmethod
    def up(self, wanted: Wanted, say: Say) -> Machine:
        """A running machine that answers commands; its image is built when missing.

        Raises VmError.
        """

    @abstractmethod
    def prepare(self, wanted: Wanted, say: Say) -> None:
        """Make what such machines start from, where it is missing. Raises VmError."""


#: Where the class of each provider is. Only the one that is used gets imported.
PROVIDERS = {"qemu": "vm.booted:Qemu", "vagrant": "vm.vagrant:Vagrant"}
INITS = ("systemd", "small")
CPUS = ("1", "2")
YES = {"yes": True, "no": False}


def _option(default: Any, about: str, known: Iterable[str] | None = None, **more: Any) -> Any:
    """A field with its help, and its values where not all are taken.

    More: `url=False` for what no URL may name, `ability=True` for what not every provider can do.
    """
    return field(default=default, metadata={"about": about, "known": known, **more})


@dataclass(frozen=True)
class Wanted:
    """A machine as it is asked for. Raises RequestError for what there is not or cannot be."""

    suite: str = _option(recipe.DEFAULT, "suite of Debian's", recipe.SUITES, url=False)
    flavour: str = _option("plain", "packages beside the plain ones", recipe.FLAVOURS)
    provider: str = _option("qemu", "what runs the machine", PROVIDERS)
    init: str = _option("systemd", "small: a script, which boots faster", INITS, ability=True)
    cpus: str = _option("2", "virtual processors", CPUS, ability=True)
    network: bool = _option(False, "reach what this machine reaches", ability=True)
    cold: bool = _option(False, "boot, restore no kept state", ability=True)
    detached: bool = _option(False, "outlive the command", ability=True, url=False)

    def __post_init__(self) -> None:
        for one in fields(self):
            given, known = getattr(self, one.name), one.metadata["known"]
            if known is not None:
                RequestError.unless_known(one.name, given, known)
        can = self.made_by.can
        for one in (one for one in fields(self) if one.metadata.get("ability")):
            if getattr(self, one.name) != one.default and one.name not in can:
                others = f", but {', '.join(sorted(can))}" if can else ""
                raise RequestError(f"provider {self.provider} cannot do {one.name!r}{others}")

    @property
    def made_by(self) -> Provider:
        """The provider."""
        module, _, name = PROVIDERS[self.provider].partition(":")
        made: Provider = getattr(import_module(module), name)()
        return made

    @classmethod
    def from_url(cls, url: str) -> Wanted:
        """By one word: vm://SUITE, or vm://SUITE?provider=vagrant&flavour=mta."""
        parts = urlsplit(url)
        given: dict[str, Any] = dict(parse_qsl(parts.query, keep_blank_values=True))
        allowed = {one.name: one for one in fields(cls) if one.metadata.get("url", True)}
        wrong = [name for name in given if name not in allowed]
        for name in given.keys() & allowed.keys():
            if isinstance(allowed[name].default, bool):
                wrong += [name] if given[name] not in YES else []
                given[name] = YES.get(given[name])
        if parts.scheme != "vm" or parts.path or wrong:
            options = "&".join(f"{one.name}={'|'.join(_values(one))}" for one in allowed.values())
            raise RequestError(f"{url}: a machine is vm://SUITE, or vm://SUITE? with {options}")
        return cls(suite=parts.netloc, **given)

    @classmethod
    def given(cls, namespace: argparse.Namespace, prefix: str = "", **more: Any) -> Wanted:
        """By the options of a command or of pytest that were made by `add`."""
        named = {one.name: getattr(namespace, prefix + one.name, None) for one in fields(cls)}
        return cls(**{name: value for name, value in named.items() if value is not None} | more)


def _values(one: Field[Any]) -> Iterable[str]:
    return YES if isinstance(one.default, bool) else one.metadata["known"]


def add(add_option: Callable[..., Any], *names: str, prefix: str = "--") -> None:
    """Declare options of that name by argparse's `add_argument` or pytest's `addoption`."""
    for one in (one for one in fields(Wanted) if one.name in names):
        about, known = one.metadata["about"], one.metadata["known"]
        if isinstance(one.default, bool):
            add_option(f"{prefix}{one.name}", action="store_true", help=about)
        else:
            about += f" (default {one.default})"
            add_option(f"{prefix}{one.name}", default=one.default, choices=list(known), help=about)


def add_suite(command: argparse.ArgumentParser, default: str = recipe.DEFAULT) -> None:
    """Declare the suite as a word of its own that may be left out."""
    command.add_argument("suite", nargs="?", default=default, choices=list(recipe.SUITES))

"""From a suite's name to a running machine."""

from __future__ import annotations

from typing import Any

from vm.machine import Machine
from vm.options import Wanted
from vm.processes import Say


def up(suite: str, *, say: Say = print, **options: Any) -> Machine:
    """A running machine of a suite that answers commands; its image is built when missing.

    The options are those of `options.Wanted`. The state after a boot is kept beside the image and
    restored from then on; with `cold` it boots anyway. A `detached` machine outlives this process.
    `say` takes one line at a time on what is being done. Raises VmError.
    """
    wanted = Wanted(suite, **options)
    return wanted.made_by.up(wanted, say)


def from_url(url: str, *, say: Say = print) -> Machine:
    """`up` by one word: vm://SUITE, or vm://SUITE?provider=vagrant&flavour=mta&init=small."""
    wanted = Wanted.from_url(url)
    return wanted.made_by.up(wanted, say)


def prepare(url: str, *, say: Say = print) -> None:
    """Make what machines of that URL start from, where it is missing: `from_url` is quick then."""
    wanted = Wanted.from_url(url)
    wanted.made_by.prepare(wanted, say)

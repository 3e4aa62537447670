"""What the cache holds: for `list` to show, and for `prune` to remove what nobody needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vm import booted, folders, image
from vm.errors import HostError
from vm.processes import Say
from vm.recipe import FLAVOURS, SUITES, plan


@dataclass(frozen=True)
class Item:
    """A part of the cache that can go alone."""

    kind: str
    path: Path
    current: bool
    """Whether it would be made in the same way today, and is worth keeping."""
    used: bool
    """Whether something that runs needs it."""
    bytes: int


def items() -> Iterator[Item]:
    """All that the cache holds. An image is current whatever mirror it came from."""
    cache, stems = folders.cache(), tuple(plan(s, f).stem for s in SUITES for f in FLAVOURS)

    def item(kind: str, path: Path, keep: bool, used: bool = False, *, deep: bool = True) -> Item:
        return Item(kind, path, keep, used, _size(path, deep))

    for one in image.cached():
        keep, used = one.folder.name.startswith(stems), folders.in_use(one.lock)
        yield item("image", one.folder, keep, used, deep=False)
        made = sorted(one.folder.glob("booted-*"))
        try:  # it asks QEMU its version
            states = [booted.kept(one, shape) for shape in booted.shapes(one)] if made else []
        except HostError:  # there is none, and nobody can know
            states = made
        for path in made:
            yield item("state", path, keep and path in states, used)
    for path in sorted(cache.glob("images/*.log")):
        yield item("log", path, path.stem.startswith(stems) and path.with_suffix("").exists())
    for path in sorted(cache.glob("boxes/*")):
        yield item("box", path, path.name.startswith(stems))
    for path in sorted(cache.glob("packages/*")):
        yield item("packages", path, keep=True)
    for path in cache.glob("vagrant"):  # made of the boxes again when it is wanted
        yield item("vagrant", path, False, folders.in_use(cache / "vagrant.used"))
    for path in sorted(folders.building().glob("*/")):
        yield item("building", path, True, folders.in_use(path / "lock"))


def _size(path: Path, deep: bool) -> int:
    """The bytes that a file takes, or a folder with what is in it; nothing for what goes away
    meanwhile, as in a build. A folder's own folders count only where it is deep."""
    paths = [path]
    for folder, inner, files in os.walk(path):  # passes over what it cannot read
        paths += [Path(folder, name) for name in inner + files]
        if not deep:
            break
    bytes_taken = 0
    for each in paths:
        with suppress(FileNotFoundError):
            bytes_taken += each.lstat().st_blocks * 512
    return bytes_taken


def prune(*, everything: bool = False, say: Say = print) -> int:
    """Remove what is neither current nor in use, or all that is not in use; the bytes freed."""
    freed = 0
    for one in list(items()):
        if not one.used and (everything or not one.current):
            say(f"{one.kind} {one.path.name}")
            folders.remove(one.path)
            freed += one.bytes
    return freed

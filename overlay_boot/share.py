"""overlay-share: a folder of the main host into a subhost that runs already."""

from __future__ import annotations

import os

from overlay_boot import ConfigError, OverlayBootError, explain
from overlay_boot.enter import inside
from overlay_boot.linux import move_mount, open_tree
from overlay_boot.records import Record
from overlay_boot.tree import Tree


def share(record: Record, path: str) -> None:
    """Bind the folder onto the same path of the subhost, its submounts with it; a missing mount
    point is made. Raises ConfigError for what is no folder."""
    path = os.path.abspath(path)
    if not os.path.isdir(path) or path == "/":
        raise ConfigError(f"{path} is not a folder that can be shared: name one below /")
    mounts = open_tree(path)
    result_read, result = os.pipe()

    def attach() -> None:
        try:
            with Tree("/", "/", []) as tree:
                move_mount(mounts, tree.open(path))
        except OSError as error:
            os.write(result, os.fsencode(explain(error)))

    status = inside(record, attach)
    os.close(result)
    failure = os.fsdecode(os.read(result_read, 4096))
    if status or failure:
        raise OverlayBootError(f"cannot share {path} with {record.name}: {failure or status}")

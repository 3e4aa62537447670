"""What overlay-list(8) says of the subhosts that run."""

from __future__ import annotations

import time

from overlay_boot import cgroup
from overlay_boot.records import running

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def listed(problems: list[str]) -> list[dict[str, Any]]:
    """A row for each subhost, with the keys of --json; what is in the records' folder and is no
    record goes into problems."""
    return [
        {
            "name": record.name,
            "pid": record.pid,
            "since": time.strftime("%FT%T%z", time.localtime(record.since)),
            "root": record.root_kind,
            **cgroup.used(record.cgroup),
            "cables": [link.name for link in record.cables],
            "configuration": record.conf,
        }
        for record in running(problems)
    ]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as lines of aligned columns, below their names."""
    cells = [[key.upper() for key in rows[0]]]
    for row in rows:
        values = row | {"cables": " ".join(row["cables"])}
        if row["cpu"] is not None:
            values |= {"memory": f"{row['memory'] / 2**20:.1f}M", "cpu": f"{row['cpu']:.2f}s"}
        cells.append([str("-" if value in (None, "") else value) for value in values.values()])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]

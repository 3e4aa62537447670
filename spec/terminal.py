"""Commands of the main host on a terminal: what is typed, and what then shows."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from spec.subhost import Subhost

DRIVER = Path(__file__).with_name("drive.py")


def drive(
    subhost: Subhost, command: str, *steps: list[Any], timeout: float = 60
) -> dict[str, Any]:
    """Run a shell command of the main host on a terminal and type at it: see drive.py."""
    driver = subhost.put("drive.py", DRIVER.read_text())
    done = subhost.on_host(
        f"python3 {driver} sh -c {shlex.quote(command)}", input=json.dumps(steps), timeout=timeout
    )
    assert done.status == 0 and done.out.startswith("{"), done
    result: dict[str, Any] = json.loads(done.out)
    return result


def fulfilled(result: dict[str, Any]) -> dict[str, Any]:
    """A result of drive in which no step failed."""
    assert result["failed"] is None, result
    return result

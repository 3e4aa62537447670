"""What comes of spec/probe.py: what root in a subhost tries, and the same on the main host."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from spec.plugin import precondition
from spec.subhost import Subhost

PROBE = Path(__file__).with_name("probe.py")


def probe(subhost: Subhost, *words: str) -> dict[str, Any]:
    """What came of spec/probe.py in a subhost that lies over the main host's root."""
    if subhost.inside("command -v python3 > /dev/null || echo none"):
        precondition("python3 is not installed")
    subhost.put("probe.py", PROBE.read_text(), 0o644)
    done = subhost.on_host(
        f"overlay-go {subhost.name} python3 - {shlex.join(words)} < {subhost.folder}/probe.py"
    )
    assert done.out.startswith("{"), done
    found: dict[str, Any] = json.loads(done.out)
    return found


def outside(subhost: Subhost, *words: str) -> dict[str, Any]:
    """What comes of it on the main host."""
    subhost.put("probe.py", PROBE.read_text(), 0o644)
    done = subhost.on_host(f"python3 {subhost.folder}/probe.py {shlex.join(words)}")
    assert done.out.startswith("{"), done
    found: dict[str, Any] = json.loads(done.out)
    return found

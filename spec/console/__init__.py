"""overlay-boot-spec: the executable spec as a command, without the clone.

The wheel has the suite in lib/, as a clone has it at its root: its tests import each other as
`spec.`, a name that is not for every Python program of a machine to see.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    """`python -m spec` with this wheel's suite; its exit status."""
    sys.path.insert(0, str(Path(__file__).parent / "lib"))
    from spec.__main__ import main as spec

    return spec()

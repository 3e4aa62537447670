"""The files of the clone, where there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def tracked() -> set[str]:
    """The files that git knows, by their paths in the repository. Skips the test outside a clone,
    such as in a package's build."""
    command = ["git", "ls-files", "-z"]
    if shutil.which("git"):
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        found = {name for name in listed.stdout.split("\0") if (ROOT / name).is_file()}
        if found:  # a package may be built in a folder of a clone that git knows nothing in
            return found
    pytest.skip("not a clone, so what belongs to it is not known")

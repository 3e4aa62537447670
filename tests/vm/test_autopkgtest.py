"""autopkgtest(1) itself, with a machine of the harness as its testbed, on the packages that were built
last: the light test of debian/tests. The other one is the whole spec, which `make vm-test` runs.

What the tests need is installed in the machine, from the mirrors of this one.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.debian.clone import tracked
from tests.vm.test_machine_start import LIMIT, ROOT, SUITE, package

pytestmark = pytest.mark.vm


def test_the_light_test_passes_as_a_user(own_run: Path, tmp_path: Path) -> None:
    """Without needs-root autopkgtest runs a test as a user, whose PATH Debian leaves without sbin."""
    source = tmp_path / "source"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    (spec,) = package().parent.glob("overlay-boot-spec_*_all.deb")
    command = ["autopkgtest", f"--output-dir={tmp_path / 'out'}", package(), spec, source]
    command += ["--test-name=light", "--timeout-factor=3", "--"]
    command += ["ssh", f"--setup-script={ROOT / 'vm/autopkgtest.py'}", "--", SUITE]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=LIMIT * 4, cwd=tmp_path
    )
    # 8: all is well, but what passed is superficial.
    assert done.returncode == 8, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "out/summary").read_text().split()[:2] == ["light", "PASS"]

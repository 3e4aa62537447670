"""What the races have found in the commands, each as a test of its own."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import run

INTERRUPT = """
import os, signal, sys

signal.signal(2, signal.default_int_handler)  # which is ignored where tests run in the background

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "overlay_boot.cli":
            os.kill(os.getpid(), 2)

sys.meta_path.insert(0, Interrupt())
"""


@pytest.mark.parametrize("command", ["go", "list", "share", "stop"])
def test_ctrl_c_while_a_command_is_loaded_is_told_in_a_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    words = {"list": [], "share": ["/srv", "none"]}.get(command, ["none"])
    done: subprocess.CompletedProcess[str] = run(f"overlay-{command}", *words, env=environment)
    assert (done.returncode, done.stderr) == (130, f"overlay-{command}: interrupted\n")

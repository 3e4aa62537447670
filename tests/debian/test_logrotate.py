"""The snippet for logrotate, by logrotate itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SNIPPET = ROOT / "contrib/logrotate/subhosts"
LARGE = b"a line of a service\n" * 60000  # more than 1 MiB


def rotate(folder: Path) -> None:
    """Run logrotate with the snippet as if the folder were /tmp."""
    conf = folder / "conf"
    text = SNIPPET.read_text().replace("/tmp/", f"{folder}/")
    if os.getuid():  # another user cannot become root, and need not
        text = text.replace("su root root\n", "\n")
    conf.write_text(text)
    conf.chmod(0o644)
    command = ["/usr/sbin/logrotate", "--state", str(folder / "state"), str(conf)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_large_log_is_copied_and_emptied(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    large, small = (tmp_path / f"overlay-{name}.log" for name in ("large", "small"))
    small.write_text("a line\n")
    for times in range(1, 7):
        large.write_bytes(LARGE)
        large.chmod(0o640)
        before = large.stat().st_ino
        with large.open("ab", buffering=0) as service:  # as a service has it open
            rotate(tmp_path)
            service.write(b"afterwards\n")
        assert large.read_text() == "afterwards\n"
        assert large.stat().st_ino == before
        copies = sorted(tmp_path.glob("overlay-large.log.*"))
        assert len(copies) == min(times, 4)
        assert all(copy.stat().st_mode & 0o777 == 0o640 for copy in copies)
        assert sum(copy.stat().st_size for copy in copies) < len(LARGE) / 10
    assert small.read_text() == "a line\n"
    assert not list(tmp_path.glob("overlay-small.log.*"))

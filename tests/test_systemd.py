"""What overlay-init-systemd prints."""

import subprocess
from pathlib import Path

import pytest

from overlay_boot.systemd import init, unit_of


@pytest.mark.parametrize(
    ("word", "unit"),
    [
        ("ssh", "ssh.service"),
        ("ssh.service", "ssh.service"),
        ("ssh.socket", "ssh.socket"),
        ("at@1.2", "at@1.2.service"),
        ("/etc/init.d/ssh", "overlay-start-7.service"),
    ],
)
def test_the_unit_of_a_word(word: str, unit: str) -> None:
    assert unit_of(word, 7) == unit


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
def test_any_shell_takes_the_script(tmp_path: Path, shell: str) -> None:
    script = init("web", ["it's", '/opt/a"$b%c\\', "$(false)", "none.timer"], str(tmp_path))
    command = [shell, *(["sh"] if shell == "busybox" else []), "-n"]
    report = script.partition("overlay-init/report << 'END'\n")[2].partition("END\n")[0]
    for text in (script, report):
        assert subprocess.run(command, input=text, text=True, check=False).returncode == 0
    assert ' "/opt/a\\"$$b%%c\\\\" start\n' in script
    assert "After=it's.service\n[Service]" in script


def test_an_upper_keeps_its_machine_id(tmp_path: Path) -> None:
    assert "> /etc/machine-id" in init("web", [], str(tmp_path))
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").touch()
    assert "> /etc/machine-id" not in init("web", [], str(tmp_path))


def test_what_start_names_is_not_masked(tmp_path: Path) -> None:
    masked, named = (
        init("web", start, str(tmp_path)).partition("for unit in ")[2].partition(";")[0].split()
        for start in ([], ["systemd-resolved"])
    )
    assert set(masked) - set(named) == {"systemd-resolved.service"}

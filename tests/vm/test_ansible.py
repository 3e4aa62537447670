"""contrib/ansible with real ansible-core: subhosts on two machines, and tasks inside of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.vm.test_machine_start import LIMIT, ROOT, SUITE, package
from vm import archive, cli, start
from vm.qemu import QemuMachine

pytestmark = pytest.mark.vm
CONTRIB = ROOT / "contrib/ansible"
PLAYBOOK = """
- hosts: main_hosts
  gather_facts: false
  roles: [subhosts]
  vars:
    subhosts:
      - {name: web, configuration: "START= /usr/local/bin/true-to-start\\n"}
  pre_tasks:
    - ansible.builtin.copy:
        {dest: /usr/local/bin/true-to-start, mode: "0755", content: "#!/bin/sh\\n"}
- hosts: webs
  tasks:
    - ansible.builtin.copy: {dest: /srv/who, content: "{{ inventory_hostname }} is {{ ansible_hostname }}\\n"}
    - ansible.builtin.command: cat /proc/1/comm
      register: first
      changed_when: false
    - ansible.builtin.assert: {that: first.stdout == ".reaper"}
    - ansible.builtin.fetch: {src: /srv/who, dest: "{{ playbook_dir }}/fetched/"}
"""


@pytest.fixture(scope="module")
def ansible(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ansible-core's commands."""
    folder = tmp_path_factory.mktemp("ansible")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin/pip", "install", "--quiet", "ansible-core"], check=True)
    return folder / "bin"


@pytest.fixture
def machines(own_run: Path) -> Iterator[dict[str, QemuMachine]]:
    """Two machines that know nothing of subhosts yet."""
    with ExitStack() as stack:
        made = {}
        for name in ("alpha", "beta"):
            made[name] = machine = stack.enter_context(start.up(SUITE, say=cli.say))
            assert isinstance(machine, QemuMachine)
            for module in (
                "distro-info-data",
                "python-apt-common",
                "python3-apt",
            ):  # which Ansible would fetch itself
                file = archive.fetch(module, SUITE, say=cli.say)
                machine.copy_in(file, f"/root/apt/{file.name}")
            machine.succeed("dpkg --install /root/apt/*.deb; systemctl start ssh", timeout=LIMIT)
        yield made


def hosts(machines: dict[str, QemuMachine], prefix: str) -> dict[str, dict[str, str]]:
    """How Ansible reaches each machine: as the harness does."""
    found = {}
    for name, machine in machines.items():
        options = [word for word in machine.ssh_command() if "=" in word and word[:7] != "Control"]
        found[prefix + name] = {
            "ansible_host": "127.0.0.1",
            "ansible_user": "root",
            "ansible_port": str(machine.ssh_port()),
            "ansible_ssh_common_args": " ".join(["-F none", *(f"-o {word}" for word in options)]),
        }
    return found


def test_two_machines(ansible: Path, machines: dict[str, QemuMachine], tmp_path: Path) -> None:
    """The role is run twice, and the second time nothing changes; tasks write in the subhosts alone."""
    webs = {"ansible_connection": "overlay_go", "ansible_subhost": "web"}
    inventory = {
        "main_hosts": {"hosts": hosts(machines, ""), "vars": {"subhosts_package": str(package())}},
        "webs": {"hosts": hosts(machines, "web_"), "vars": webs},
    }
    (tmp_path / "inventory.json").write_text(json.dumps({"all": {"children": inventory}}))
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    (tmp_path / "ansible.cfg").write_text(
        f"[defaults]\nroles_path = {CONTRIB}/roles\nconnection_plugins = {CONTRIB}/connection_plugins\n"
        f"inventory = inventory.json\ntimeout = {LIMIT}\n[ssh_connection]\npipelining = true\nssh_args =\n"
    )
    for changes in (True, False):
        done = subprocess.run(
            [ansible / "ansible-playbook", "play.yml"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        lines = done.stdout.partition("PLAY RECAP")[2].splitlines()
        counts = {line.split()[0]: line for line in lines if " : " in line}
        assert counts.keys() == {"alpha", "beta", "web_alpha", "web_beta"}
        for line in counts.values():
            assert ("changed=0 " not in line) == changes, done.stdout
    for name, machine in machines.items():
        written = machine.succeed("cat /opt/subhost/web/root/srv/who").out
        assert written == f"web_{name} is web"
        assert machine.run("ls /srv/who").out == ""
        fetched = tmp_path / f"fetched/web_{name}/srv/who"
        assert fetched.read_text() == f"web_{name} is web\n"
        assert "active" in machine.succeed("systemctl is-active 'subhosts@*'").out

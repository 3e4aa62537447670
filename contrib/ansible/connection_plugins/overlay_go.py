# SPDX-License-Identifier: GPL-2.0-or-later
"""Tasks in a subhost: by Ansible's own ssh connection to its main host, and overlay-go(8) there."""

from __future__ import annotations

import shlex

from ansible.errors import AnsibleConnectionFailure, AnsibleFileNotFound
from ansible.plugins.connection import ConnectionBase
from ansible.plugins.loader import connection_loader

# Ansible hands on only the variables that are named here; what they mean, their defaults and the settings
# in ansible.cfg are those of its plugin ssh.
DOCUMENTATION = """
name: overlay_go
short_description: run tasks in a subhost of overlay-boot(8)
description:
  - Reaches the main host by Ansible's connection plugin ssh, with its settings (ansible_host, ansible_user,
    ansible_port, ...), and enters the subhost there with overlay-go(8).
  - Where ansible_user is not root, it has to be allowed to run overlay-go with sudo and without a
    password. Inside, tasks are root's.
options:
  subhost:
    description: Name of the subhost; the inventory's name of this host unless it is set.
    default: inventory_hostname
    vars: [{name: inventory_hostname}, {name: ansible_subhost}]
  host:
    description: The main host, as the plugin ssh has it.
    vars: [{name: ansible_host}, {name: ansible_ssh_host}]
  port:
    description: As the plugin ssh has it.
    vars: [{name: ansible_port}, {name: ansible_ssh_port}]
  remote_user:
    description: As the plugin ssh has it.
    vars: [{name: ansible_user}, {name: ansible_ssh_user}]
  password:
    description: As the plugin ssh has it.
    vars: [{name: ansible_password}, {name: ansible_ssh_pass}, {name: ansible_ssh_password}]
  private_key_file:
    description: As the plugin ssh has it.
    vars: [{name: ansible_private_key_file}, {name: ansible_ssh_private_key_file}]
  host_key_checking:
    description: As the plugin ssh has it.
    vars: [{name: ansible_host_key_checking}, {name: ansible_ssh_host_key_checking}]
  ssh_args:
    description: As the plugin ssh has it.
    vars: [{name: ansible_ssh_args}]
  ssh_common_args:
    description: As the plugin ssh has it.
    vars: [{name: ansible_ssh_common_args}]
  ssh_extra_args:
    description: As the plugin ssh has it.
    vars: [{name: ansible_ssh_extra_args}]
  timeout:
    description: As the plugin ssh has it.
    vars: [{name: ansible_ssh_timeout}]
"""

NOT_RUNNING = 3


class Connection(ConnectionBase):
    """One subhost."""

    transport = "overlay_go"
    has_pipelining = True

    def __init__(self, play_context, *arguments, **named):
        super().__init__(play_context, *arguments, **named)
        self.ssh = connection_loader.get("ssh", play_context, *arguments, **named)

    def set_options(self, task_keys=None, var_options=None, direct=None):
        super().set_options(task_keys=task_keys, var_options=var_options, direct=direct)
        self.ssh.set_options(task_keys=task_keys, var_options=var_options, direct=direct)

    def _connect(self):
        self.ssh._connect()
        return self

    def exec_command(self, cmd, in_data=None, sudoable=True):
        """The exit status, output and errors of a command of root's in the subhost."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        name = self.get_option("subhost")
        inside = shlex.join(["overlay-go", name, "/bin/sh", "-c", cmd])
        command = f'if [ "$(id -u)" = 0 ]; then exec {inside}; else exec sudo -n {inside}; fi'
        status, out, err = self.ssh.exec_command(command, in_data=in_data, sudoable=False)
        if status == NOT_RUNNING and b"overlay-go: " in err:
            raise AnsibleConnectionFailure(err.decode(errors="replace").strip())
        return status, out, err

    def put_file(self, in_path, out_path):
        super().put_file(in_path, out_path)
        try:
            with open(in_path, "rb") as file:
                data = file.read()
        except FileNotFoundError as error:
            raise AnsibleFileNotFound(f"{in_path} is not there") from error
        self._expect_success(f"cat > {shlex.quote(out_path)}", data)

    def fetch_file(self, in_path, out_path):
        super().fetch_file(in_path, out_path)
        data = self._expect_success(f"cat {shlex.quote(in_path)}")
        with open(out_path, "wb") as file:
            file.write(data)

    def _expect_success(self, command, data=b""):
        status, out, err = self.exec_command(command, in_data=data or b"\n")
        if status:
            said = err.decode(errors="replace").strip()
            raise AnsibleConnectionFailure(f"{command}: {said or f'exit status {status}'}")
        return out

    def reset(self):
        self.ssh.reset()

    def close(self):
        self.ssh.close()
        self._connected = False

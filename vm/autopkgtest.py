#!/usr/bin/python3
"""A set-up script for autopkgtest-virt-ssh(1): its testbed is a disposable machine, and each revert
is a fresh one. Its arguments are the suite and the flavour (mta, unless another one is named):

    autopkgtest PACKAGE... -- ssh --setup-script /path/of/vm/autopkgtest.py -- sid
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vm import folders
from vm.cli import pick, say
from vm.errors import RequestError, VmError
from vm.options import Wanted, add_suite
from vm.qemu import QemuMachine

CAPABILITIES = ("isolation-machine", "revert", "revert-full-system")


def end(name: str | None) -> None:
    """End the machine, unless it has gone already."""
    with contextlib.suppress(RequestError):
        if name:
            QemuMachine.attach(pick(name).folder).close()


def start(suite: str, flavour: str) -> None:
    """A machine that reaches what this one reaches, and how to reach it."""
    wanted = Wanted(suite, flavour, network=True, detached=True)
    machine = wanted.made_by.up(wanted, say)
    assert isinstance(machine, QemuMachine)
    machine.need("apt-get -q update", timeout=600)  # no image has apt's lists
    words = dict(word.split("=", 1) for word in machine.ssh_command() if "=" in word)
    kept = ("UserKnownHostsFile", "HostKeyAlias", "StrictHostKeyChecking")
    print(f"login=root\nhostname=127.0.0.1\nport={words['Port']}")
    print(f"identity={words['IdentityFile']}\nextraopts=--name {machine.name}")
    print(f"options={' '.join(f'-o {name}={words[name]}' for name in kept)}")
    print(f"capabilities={','.join(CAPABILITIES)}")
    machine.disconnect()


def main() -> int:
    """What autopkgtest-virt-ssh asks for; 0 where that was done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("request", choices=["open", "revert", "cleanup", "debug-failure"])
    add_suite(parser)
    parser.add_argument("flavour", nargs="?", default="mta")
    parser.add_argument("--name", help="the machine, once there is one")
    options = parser.parse_intermixed_args()
    try:
        if options.request == "debug-failure":
            console = folders.run() / str(options.name) / "console.log"
            print(console.read_text(errors="replace")[-3000:], file=sys.stderr)
            return 0
        end(options.name)
        if options.request != "cleanup":
            start(options.suite, options.flavour)
    except (VmError, OSError) as error:
        print(f"vm: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

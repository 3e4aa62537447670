"""`make bench-vm`: what the disposable machines cost, measured in turn on this machine.

`--image` also builds an image anew, `--vagrant` runs the same through Vagrant, `--autopkgtest` through
autopkgtest-virt-qemu. Medians of the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vm
from vm import booted, cli, image, start
from vm.qemu import QemuMachine
from vm.shape import Shape

MEBIBYTE = 1 << 20


def timed(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    begin = time.monotonic()
    action()
    return time.monotonic() - begin


def show(what: str, figures: list[float], unit: str = "s") -> None:
    """One line of the table."""
    middle = statistics.median(figures)
    print(f"{what:58} {middle:8.3f} {unit:4} ({min(figures):.3f}-{max(figures):.3f})", flush=True)


class GuestAgent:
    """Debian's qemu-guest-agent as a command channel, for comparison."""

    def __init__(self, path: Path) -> None:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        self._file = connection.makefile("rw")
        connection.close()

    def ask(self, name: str, **arguments: Any) -> Any:
        """One request and its answer."""
        self._file.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self._file.flush()
        return json.loads(self._file.readline())["return"]

    def run(self, command: str) -> None:
        """A command to its end; the agent has to be asked again and again."""
        shell = {"path": "/bin/sh", "arg": ["-c", command], "capture-output": True}
        pid = self.ask("guest-exec", **shell)["pid"]
        while not self.ask("guest-exec-status", pid=pid)["exited"]:
            time.sleep(0.002)


class WithGuestAgent(Shape):
    """A shape that has the port of qemu-guest-agent as well."""

    def command(self, folder: Path, *arguments: Any, **named: Any) -> list[str]:
        """See Shape."""
        port = f"socket,id=ga,path={folder}/ga,server=on,wait=off"
        device = "virtserialport,chardev=ga,name=org.qemu.guest_agent.0"
        whole = super().command(folder, *arguments, **named)
        return [*whole, "-chardev", port, "-device", device]


def channels(source: image.Image, shape: Shape, runs: int) -> None:
    """The command channel beside qemu-guest-agent, in one machine."""
    wide = WithGuestAgent(shape.kernel, shape.initrd, shape.accelerator, cpus=shape.cpus)
    with QemuMachine.boot(source, wide, "bench") as machine:
        machine.succeed(booted.WARM[0], timeout=180)
        machine.wait_until("systemctl is-active qemu-guest-agent", timeout=60)
        guest_agent = GuestAgent(machine.folder / "ga")
        ways: dict[str, Callable[[str], object]] = {
            "own agent": machine.run,
            "qemu-guest-agent": guest_agent.run,
        }
        for command, what in (("true", "`true`"), ("head -c 10000000 /dev/zero", "10 MB out")):
            times: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(runs * 4 if command == "true" else runs):
                for way, run in ways.items():
                    times[way].append(timed(lambda run=run, command=command: run(command)))  # type: ignore[misc]
            for way, figures in times.items():
                show(f"{what} over {way}", figures)
        data = os.urandom(100 * MEBIBYTE)
        show("100 MiB in", [timed(lambda: machine.copy_in(data, "/root/data"))])
        show("100 MiB out", [timed(lambda: machine.succeed("cat /root/data"))])


def memory(pid: int) -> float:
    """A process' share of memory (PSS) in MiB."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in rollup.splitlines() if line[:4] == "Pss:") / 1024


def restores(suite: str, runs: int) -> None:
    """From request to first finished command, one at a time and several at once."""
    start.up(suite, say=cli.say).close()  # makes the kept state
    begin = time.monotonic()
    machine = start.up(suite, say=cli.say)
    assert isinstance(machine, QemuMachine)
    with machine:
        machine.succeed("true")
        show("up from the kept state, first command finished", [time.monotonic() - begin])
        show(
            "snapshot of the running machine, until it runs on",
            [timed(lambda: machine.snapshot("a"))],
        )
        alone, pooled = [], []
        for _ in range(runs):
            begin = time.monotonic()
            with machine.clone("a") as clone:
                clone.succeed("true")
                alone.append(time.monotonic() - begin)
        show("restore, first command finished", alone)
        with vm.Pool(machine, "a") as pool:
            for _ in range(runs):
                begin = time.monotonic()
                with pool.take() as taken:
                    taken.succeed("true")
                    pooled.append(time.monotonic() - begin)
                    taken.succeed("sleep 0.5")  # a test, while the next one is restored
        show("the same from a pool", pooled)
        begin = time.monotonic()
        clones = [machine.clone("a") for _ in range(4)]
        for clone in clones:
            clone.succeed("true")
        show("four restored, all have answered", [time.monotonic() - begin])
        shares = [memory(clone._process.pid) for clone in clones if clone._process]
        show("memory of one of four (PSS)", shares, "MiB")
        for clone in clones:
            clone.close()


def by_vagrant(suite: str) -> None:
    """The same through Vagrant and libvirt."""
    begin = time.monotonic()
    machine = start.up(suite, provider="vagrant", say=cli.say)
    try:
        machine.succeed("true")
        show("vagrant up, first command finished", [time.monotonic() - begin])
        show("  `true`", [timed(lambda: machine.succeed("true")) for _ in range(10)])
        show("  snapshot save", [timed(lambda: machine.snapshot("a"))])
        show("  snapshot restore", [timed(lambda: machine.restore("a"))])
    finally:
        show("  destroy", [timed(machine.close)])


def beside_autopkgtest(suite: str, kind: str, runs: int) -> None:
    """autopkgtest-virt-qemu on the same image, in turn with a boot and a restore of this harness."""
    from bench.autopkgtest import testbed

    with testbed(suite, kind, cli.say) as (bed, shape):
        source = image.build(suite, "generic", say=cli.say)
        times: dict[str, list[float]] = {}

        def measure(what: str, action: Callable[[], object]) -> None:
            times.setdefault(what, []).append(timed(action))

        def revert() -> None:
            bed.ask("revert")
            bed.run("true")

        def boot() -> None:
            with QemuMachine.boot(source, shape, "bench") as machine:
                machine.succeed("true")

        def restore() -> None:
            with machine.clone("a") as clone:
                clone.succeed("true")

        bed.ask("open")
        with start.up(suite, flavour="generic", say=cli.say) as machine:
            machine.snapshot("a")
            for _ in range(runs):
                measure("autopkgtest-virt-qemu: revert, first command finished", revert)
                measure("  `true`", lambda: bed.run("true"))
                measure("this harness: cold boot of the same image, first command", boot)
                measure("this harness: restore of the same image, first command", restore)
        for what, figures in times.items():
            show(what, figures)


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="trixie")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--image", action="store_true")
    parser.add_argument("--vagrant", action="store_true")
    parser.add_argument("--autopkgtest", action="store_true")
    options = parser.parse_args()
    if options.image:
        build = lambda: image.build(options.suite, say=cli.say, fresh=True)
        show("image built", [timed(build)])
    source = image.build(options.suite, say=cli.say)
    kind = booted.accelerator(source, say=cli.say)
    print(f"{options.suite}, {kind}, {os.cpu_count()} processors, median (least-most)")
    boots: dict[str, list[float]] = {"small": [], "systemd": []}
    for _ in range(max(options.runs // 3, 1)):
        for init, figures in boots.items():
            shape = Shape(str(source.kernel), str(source.initrd), kind, init=init)
            begin = time.monotonic()
            with QemuMachine.boot(source, shape, "bench") as machine:
                machine.succeed("true")
                figures.append(time.monotonic() - begin)
    for init, figures in boots.items():
        show(f"cold boot to first finished command, init {init}", figures)
    channels(source, shape, options.runs)
    restores(options.suite, options.runs)
    if options.vagrant:
        by_vagrant(options.suite)
    if options.autopkgtest:
        beside_autopkgtest(options.suite, kind, max(options.runs // 3, 1))


if __name__ == "__main__":
    main()

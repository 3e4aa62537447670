"""overlay-stop: the services in reverse, SIGTERM, SIGKILL, and wait until all is gone
(decision 18)."""

from __future__ import annotations

import os
import select
import time

from overlay_boot import PATH, OverlayBootError
from overlay_boot.enter import inside
from overlay_boot.linux import SIGCONT, SIGKILL, SIGTERM, kill_process
from overlay_boot.records import Record

SETTLE = 10.0  # seconds for the kernel to clear up after the last process
IFDOWN = 90.0  # seconds for the keeper, which waits for ifdown and what that calls


def stop(record: Record, timeout: float) -> None:
    """Stop a running subhost; returns when its processes, mounts, cables, name and record are
    gone. Services, and then what is left after SIGTERM, have timeout seconds each to end."""
    process = record.open_process()
    if process is not None:
        services = record.items["START"].split()
        if services != ["none"]:
            held = _hold(record)
            _stop_services(record, services, timeout)
            os.close(held)
        if not _ended(process, 0):
            inside(record, _terminate_all)
        if not _ended(process, timeout):
            kill_process(process, SIGKILL)
        if not _ended(process, SETTLE):
            raise OverlayBootError(f"{record.name}: pid {record.pid} does not die: see its state")
    _wait_until_clear(record)


def _ended(process: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _hold(record: Record) -> int:
    """Give pid 1 a child until the descriptor that this returns is closed: or else it would end
    with the last process of a service, and take the script that stops the next one with it."""
    wait, held = os.pipe()

    def orphan() -> None:
        if os.fork() == 0:
            os.close(held)
            os.read(wait, 1)
            os._exit(0)

    inside(record, orphan)
    os.close(wait)
    return held


def _stop_services(record: Record, services: list[str], timeout: float) -> None:
    from overlay_boot import hooks
    from overlay_boot.log import open_log

    log = open_log(record.items["LOG"])
    script = hooks.services(list(reversed(services)), "stop")
    arguments = ["/bin/sh", "-c", script, "overlay-stop"]

    def run() -> None:
        null = os.open("/dev/null", os.O_RDWR) if os.path.exists("/dev/null") else log
        for number, fd in enumerate((null, log, log)):
            os.dup2(fd, number)
        os.setsid()
        os.execve(arguments[0], arguments, {"PATH": PATH})

    runner = os.fork()
    if runner == 0:
        status = 1
        try:
            status = inside(record, run)
        finally:
            os._exit(status)
    watch = os.pidfd_open(runner)
    if not _ended(watch, timeout):
        os.kill(runner, SIGKILL)
    os.close(watch)
    os.waitpid(runner, 0)
    os.close(log)


def _terminate_all() -> None:
    """Every process of the pid namespace but pid 1, which ends by itself without children."""
    for number in (SIGTERM, SIGCONT):
        try:
            os.kill(-1, number)
        except ProcessLookupError:
            pass  # none left


def _wait_until_clear(record: Record) -> None:
    deadline = time.monotonic() + IFDOWN
    while record.stands():
        if record.lock():  # the keeper is gone: its work falls to us
            record.clear()
        elif time.monotonic() > deadline:
            raise OverlayBootError(f"{record.name}: ifdown does not end: see ps, and end it")
        time.sleep(0.001)
    deadline = time.monotonic() + SETTLE
    while left := record.interfaces():
        if time.monotonic() > deadline - SETTLE / 2:
            from overlay_boot.net import delete_links

            delete_links(left)  # something outside the subhost holds its network namespace
        if time.monotonic() > deadline:
            raise OverlayBootError(f"{' '.join(left)} did not go away: remove it by hand")
        time.sleep(0.001)

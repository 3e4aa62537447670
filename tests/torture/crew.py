"""Workers in sandboxes of their own, and the points that are handed out to them."""

from __future__ import annotations

import json
import os
import queue
import random
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spec.subhost import MAKE_TINY
from spec.targets import Here

from .calls import ERRORS, KILL
from .scenes import SCENES

SOURCE = Path(__file__).parents[2]
LIMIT = 240  # seconds for one point, all its waits together


class TortureError(Exception):
    """The test itself broke."""


@dataclass(frozen=True)
class Case:
    """One point of one scene and end."""

    scene: str
    end: str
    process: str
    number: int
    name: str
    action: str

    @classmethod
    def parse(cls, text: str) -> Case:
        """The opposite of str(case)."""
        scene, end, process, number, name, action = text.split(",")
        return cls(scene, end, process, int(number), name, action)

    def __str__(self) -> str:
        words = (self.scene, self.end, self.process, self.number, self.name, self.action)
        return ",".join(map(str, words))

    def request(self) -> dict[str, Any]:
        """What a worker is asked."""
        point = [self.process, self.number, self.name, self.action]
        return {"scene": self.scene, "end": self.end, "point": point}


class Crew:
    """One worker in one sandbox; a new one whenever the last has ended."""

    def __init__(self, name: str) -> None:
        self.name = f"{name}{os.getpid() % 0xFFFF:x}"
        self.here: Here | None = None
        self.worker: subprocess.Popen[str] | None = None

    def _start(self) -> subprocess.Popen[str]:
        self.close()
        self.here = Here([SOURCE])
        self.here.succeed(MAKE_TINY)
        command = f"cd {SOURCE} && exec {sys.executable} -m tests.torture.worker {self.name}"
        self.worker = subprocess.Popen(
            self.here.argv(f"export PATH={self.here.path}\n{command}"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self.worker

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ask the worker; a wrong answer ends it, and its sandbox with it."""
        worker = self.worker
        if worker is None or worker.poll() is not None:
            worker = self._start()
        assert worker.stdin and worker.stdout and worker.stderr
        with suppress(BrokenPipeError):
            worker.stdin.write(json.dumps(request) + "\n")
            worker.stdin.flush()
        ready = select.select([worker.stdout], [], [], LIMIT)[0]
        line = worker.stdout.readline() if ready else ""
        if not line:
            if not ready:
                worker.kill()
            said = worker.stderr.read() if ready else "it did not end in time"
            self.close()
            raise TortureError(f"{request}: {said}")
        answer: dict[str, Any] = json.loads(line)
        if answer.get("faults"):
            self.close()
        return answer

    def close(self) -> None:
        """End the sandbox and all that is in it."""
        if self.worker:
            self.worker.kill()
            self.worker.communicate()
            self.worker = None
        if self.here:
            self.here.close()
            self.here = None
        for place, folders, _ in os.walk("/sys/fs/cgroup"):  # passes over what goes away meanwhile
            for folder in folders:
                if folder == f"overlay-{self.name}":
                    with suppress(OSError):
                        os.rmdir(f"{place}/{folder}")


def plan(crew: Crew, scenes: Iterable[str] = ()) -> list[Case]:
    """Every point of the scenes: each call killed, and failing in each way that is likely."""
    cases: dict[Case, None] = {}
    for scene in SCENES:
        if scenes and scene.name not in scenes:
            continue
        for end in scene.ends:
            for process, number, name, *_ in crew.ask({"scene": scene.name, "end": end})["calls"]:
                if process == "?" or (process, number) in (("boot", 1), ("stop", 1)):
                    continue  # the start of the command itself is the test's own
                if end == "end" and not process.startswith("boot.1"):
                    continue
                for action in (KILL, *ERRORS[name]):
                    cases[Case(scene.name, end, process, number, name, action)] = None
    return list(cases)


def sample(cases: list[Case], count: int, seed: int) -> list[Case]:
    """So many of them, at random but the same for the same seed."""
    return random.Random(seed).sample(cases, min(count, len(cases)))


def torture(cases: list[Case], workers: int, tell: Callable[[Case, dict[str, Any]], None]) -> None:
    """Try all cases, and tell of each as it comes."""
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)
    lock = threading.Lock()

    def work(crew: Crew) -> None:
        try:
            while True:
                case = waiting.get_nowait()
                try:
                    answer = crew.ask(case.request())
                except TortureError as error:
                    answer = {"faults": [f"the test broke: {error}"], "remarks": [], "hit": "?"}
                with lock:
                    tell(case, answer)
        except queue.Empty:
            pass
        finally:
            crew.close()

    threads = [threading.Thread(target=work, args=[Crew(f"t{n}")]) for n in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

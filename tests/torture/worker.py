"""python -m tests.torture.worker NAME: in a sandbox, tries the points that it reads as JSON lines from
standard input, and writes what came of each.

It ends itself after a point that left something behind: the next one is to have a clean sandbox.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import world
from .scenes import SCENES, Scene
from .supervisor import Done, Point, Supervisor, run

BIN = Path(sys.executable).parent
FOLDER = Path("/opt/subhost")
TINY = FOLDER / ".tiny"
PATIENCE = 5.0  # seconds until all is gone, or a verdict
SLOW = 8.0  # seconds for one command


@dataclass
class Trial:
    """What came of one point."""

    faults: list[str] = field(default_factory=list)  # what must not be
    remarks: list[str] = field(default_factory=list)  # what could be better
    commands: list[str] = field(default_factory=list)
    hit: str = ""
    drifted: str = ""
    seconds: float = 0


class Worker:
    """One subhost of one scene after the other, each of the same name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = FOLDER / name
        self.conf = self.folder / f"{name}.conf"
        self.log = self.folder / "log"
        self.trees = [self.folder / part for part in ("root", "work", "live")]
        self.own = {int(pid) for pid in filter(str.isdigit, os.listdir("/proc"))}
        checkout = str(Path(__file__).parents[2])
        self.ignored = (checkout, f"{self.folder}/", str(TINY), "/run/network", "/run/lock")
        self.references: dict[str, tuple[list[str], list[str]]] = {}
        self.before: list[str] = []
        world.prepare()

    # --- the subhost

    def set_up(self, scene: Scene) -> None:
        """The scene's folder as it is before the first boot."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in self.trees:
            folder.mkdir(parents=True)
        (self.folder / "one").mkdir()
        (self.folder / "root/etc").mkdir()
        (self.folder / "root/etc/motd").write_text("its own\n")
        if scene.fill:
            target = self.folder / scene.fill
            subprocess.run(["cp", "-a", f"{TINY}/.", target], check=True)
        lines = scene.text.format(self.folder).splitlines()
        given = {line.partition("=")[0] for line in lines}
        defaults = {"BASE": ".", "LOWER": str(TINY), "START": "none", "LOG": str(self.log)}
        lines += [f"{key}= {value}" for key, value in defaults.items() if key not in given]
        self.conf.write_text("\n".join(lines) + "\n")
        for path, text in scene.files.items():
            file = self.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.replace("{bin}", str(BIN)))
            file.chmod(0o755)

    def boot(self, scene: Scene) -> list[str]:
        """The command that boots it."""
        return [str(BIN / "overlay-boot"), *scene.options, str(self.conf)]

    def stop(self) -> list[str]:
        """The command that stops it."""
        return [str(BIN / "overlay-stop"), "--timeout", "2", self.name]

    def tree(self) -> list[str]:
        """UPPER, WORK and LIVE."""
        return world.tree(*self.trees)

    def look(self) -> list[str]:
        """The world but the subhost's own folder."""
        return world.look(self.own, self.ignored, self.name)

    def left(self, seconds: float = PATIENCE) -> str:
        """What is there that was not before the first boot, after so long at most."""
        deadline = time.monotonic() + seconds
        while left := world.difference(self.before, self.look()):
            if time.monotonic() > deadline:
                return left
            time.sleep(0.01)
        return ""

    def learn(self, scene: Scene) -> None:
        """How the trees are before a boot, and after one that was stopped."""
        if not self.before:  # the first boot makes the folders of names and records
            self.set_up(scene)
            self.expect(run(self.boot(scene), self.folder))
            self.expect(run(self.stop(), self.folder))
            self.before = self.look()
        self.set_up(scene)
        pristine = self.tree()
        for _ in range(2):
            self.expect(run(self.boot(scene), self.folder))
            self.expect(run(self.stop(), self.folder))
            booted = self.tree()
            if left := self.left():
                raise AssertionError(f"{scene.name} leaves {left}, undisturbed")
            if self.references.setdefault(scene.name, (pristine, booted)) != (pristine, booted):
                raise AssertionError(f"{scene.name}: a second boot changes the trees")

    def expect(self, done: Done) -> None:
        """Raise unless a command that nobody disturbed did as it should."""
        if done.status:
            log = self.log.read_text() if self.log.exists() else ""
            raise AssertionError(f"undisturbed: {done}\n{log}")

    # --- a trial

    def calls(self, scene: Scene, end: str) -> list[list[object]]:
        """All calls of an undisturbed life, in the order in which they came."""
        if scene.name not in self.references:
            self.learn(scene)
        self.set_up(scene)
        supervisor = Supervisor(self.folder)
        self.expect(supervisor.run("boot", self.boot(scene)))
        if end == "stop":
            self.expect(supervisor.run("stop", self.stop()))
        else:
            os.kill(world.first_process(), 9)
        if left := self.left():
            raise AssertionError(f"{scene.name}, {end} leaves {left} while its calls are told")
        supervisor.close()
        return [[*call] for call in supervisor.calls]

    def attempt(self, scene: Scene, end: str, point: Point) -> Trial:
        """One life with one call killed or failed, then stop, boot, stop."""
        if scene.name not in self.references:
            self.learn(scene)
        self.set_up(scene)
        trial = Trial()
        begun = time.monotonic()
        supervisor = Supervisor(self.folder, point)
        self.live(scene, end, point, supervisor, trial)
        trial.hit = str(supervisor.hit or "")
        trial.drifted = supervisor.drifted
        self.recover(scene, trial)
        supervisor.close()
        trial.seconds = time.monotonic() - begun
        return trial

    def live(
        self, scene: Scene, end: str, point: Point, supervisor: Supervisor, trial: Trial
    ) -> None:
        """Boot, and end or stop, with what the point disturbs."""
        pristine, booted = self.references[scene.name]
        done = supervisor.run("boot", self.boot(scene))
        trial.commands.append(f"boot: {done}")
        pid = world.first_process()
        hit = point.process if supervisor.hit else ""
        if done.status == -9 and hit == "boot":
            deadline = time.monotonic() + PATIENCE
            while not pid and self.left(0) and time.monotonic() < deadline:
                pid = world.first_process()
            if not pid and (left := self.left(0)):
                trial.remarks.append(f"left until overlay-stop: {left}")
        else:
            self.judge(done, "overlay-boot", trial)
            if done.status == 0 and not pid and not hit.startswith("boot.1.1"):
                trial.faults.append("status 0, but it does not run")
            if done.status and pid and not self.allowed(scene, done):
                trial.faults.append("not status 0, but it runs")
            if done.status and not pid:
                if left := self.left():
                    trial.faults.append(f"a failed boot left {left}")
                ran = "--wait" in scene.options and "ended before" in done.err
                if changed := world.difference(booted if ran else pristine, self.tree()):
                    trial.faults.append(f"a failed boot left files: {changed}")
        if not pid:
            return
        if end == "end":
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass
            if (left := self.left()) and not supervisor.hit:
                trial.faults.append(f"an end left {left}")
            elif left:
                trial.remarks.append(f"left until overlay-stop: {left}")
            return
        done = supervisor.run("stop", self.stop())
        trial.commands.append(f"stop: {done}")
        if done.status == -9 and supervisor.hit and point.process == "stop":
            return
        self.judge(done, "overlay-stop", trial)
        if done.status == 0 and world.first_process():
            trial.faults.append("overlay-stop: status 0, but it runs")
        if done.status == 0 and (left := self.left(0)):
            trial.faults.append(f"overlay-stop: status 0, but it left {left}")

    def allowed(self, scene: Scene, done: Done) -> bool:
        """Whether a boot may say that it failed although the subhost runs: --wait, and services."""
        return "--wait" in scene.options and "service" in done.err

    def judge(self, done: Done, command: str, trial: Trial) -> None:
        """Whether a command that nobody killed told in one line what was wrong."""
        lines = done.err.splitlines()
        if done.status is None:
            trial.faults.append(f"{command} did not end")
        elif "Traceback" in done.err:
            trial.faults.append(f"{command}: traceback: {lines[-1]}")
        elif done.status not in (0, 1, 2, 3):
            trial.faults.append(f"{command}: status {done.status}: {done.err}")
        elif done.status and len(lines) != 1 and not (lines and "is down, but" in lines[0]):
            trial.faults.append(f"{command}: status {done.status} with {len(lines)} lines")
        elif any(not line.startswith(f"{command}: ") for line in lines) and done.status != 2:
            trial.faults.append(f"{command}: another's message: {done.err}")
        if done.seconds > SLOW:
            trial.remarks.append(f"{command} took {done.seconds:.0f} s")

    def recover(self, scene: Scene, trial: Trial) -> None:
        """Stop, boot, stop: then all is as if nothing had been disturbed."""
        references = self.references[scene.name]
        done = run(self.stop(), self.folder)
        trial.commands.append(f"stop: {done}")
        self.judge(done, "overlay-stop", trial)
        if left := self.left():
            trial.faults.append(f"the next overlay-stop left {left}")
        if (now := self.tree()) not in references:
            changed = world.difference(references[0], now)
            trial.faults.append(f"files neither as before nor as after a boot: {changed}")
        for command, name in ((self.boot(scene), "boot"), (self.stop(), "stop")):
            done = run(command, self.folder)
            trial.commands.append(f"{name}: {done}")
            if done.status:
                trial.faults.append(f"the next {name}: {done}")
            if name == "boot" and not world.first_process():
                trial.faults.append("the next boot: it does not run")
        if left := self.left():
            trial.faults.append(f"in the end there is {left}")
        if changed := world.difference(references[1], self.tree()):
            trial.faults.append(f"in the end the files differ: {changed}")


def main() -> None:
    """Answer requests until there are no more."""
    worker = Worker(sys.argv[1])
    scenes = {scene.name: scene for scene in SCENES}
    for line in sys.stdin:
        request = json.loads(line)
        scene, end = scenes[request["scene"]], request["end"]
        if "point" not in request:
            answer: dict[str, object] = {"calls": worker.calls(scene, end)}
        else:
            trial = worker.attempt(scene, end, Point(*request["point"]))
            answer = dict(trial.__dict__)
            if trial.faults and worker.log.exists():
                answer["log"] = worker.log.read_text()[-3000:]
        print(json.dumps(answer), flush=True)
        if answer.get("faults"):
            return


if __name__ == "__main__":
    main()

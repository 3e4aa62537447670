"""An ordered plan: named steps, each with what it does and what undoes it."""

from __future__ import annotations

from overlay_boot import OverlayBootError, explain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Step:
    """One step of a boot. The name is what --check prints and what an error says failed."""

    def __init__(
        self, name: str, do: Callable[[], object], undo: Callable[[], object] | None = None
    ) -> None:
        self.name = name
        self.do = do
        self.undo = undo


def run(steps: list[Step], done: list[Step]) -> None:
    """Do the steps in turn, adding each to done. A step that fails undoes its own part; what is
    in done is for the caller to roll back."""
    for step in steps:
        try:
            step.do()
        except OSError as error:
            raise OverlayBootError(f"cannot {step.name}: {explain(error)}") from error
        done.append(step)


def roll_back(done: list[Step]) -> list[str]:
    """Undo the steps, the last one first; what could not be undone."""
    problems = []
    while done:
        step = done.pop()
        try:
            if step.undo:
                step.undo()
        except (OSError, OverlayBootError) as error:
            problems.append(f"and cannot undo '{step.name}': {explain(error)}")
    return problems

"""overlay-stop where what works for it fails."""

import pytest

from overlay_boot import stop
from overlay_boot.enter import Inside
from overlay_boot.running import find

from .conftest import Subhost, needs_root


@needs_root
@pytest.mark.parametrize("times", [1, 10**6])
def test_who_tells_the_processes_to_end_fails(
    subhost: Subhost, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """As where the OOM killer takes it, once or always: SIGTERM is sent by another one, or at least
    the subhost's processes are not blamed."""
    failed = []

    class Failing(Inside):
        def __init__(self, record, role, command, *more, **options) -> None:
            if role == "--terminate" and len(failed) < times:
                role, command = "--enter", ["false"]
                failed.append(role)
            super().__init__(record, role, command, *more, **options)

    monkeypatch.setattr(stop, "Inside", Failing)
    subhost.boot()
    done = stop.stop(find(subhost.name), timeout=1)
    told = ["dummy_service could not be told to end: killed"] if times > 1 else []
    assert failed and done.problems == told

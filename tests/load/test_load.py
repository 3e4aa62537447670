"""The short forms of `make load`, and that they would notice what is wrong."""

import os
from pathlib import Path

import pytest

from tests.lives.world import place

from .ground import Trial, lower_quartile
from .report import write_part
from .trials import TRIALS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces: run as root")
# The clock is set in machines only. What takes all processors for a while, or waits for the grace, is
# for the long form.
LONG = ("clock", "bomb", "processes", "hostile")


@pytest.mark.parametrize("name", [name for name in TRIALS if name not in LONG])
def test_a_bad_day_has_no_surprise(name: str) -> None:
    with place("here", None) as target:
        trial = TRIALS[name](target, 0.005)
    assert not trial.problems, "\n".join(trial.problems)
    assert trial.done


def test_what_is_left_and_what_fails_is_noticed() -> None:
    with place("here", None) as target:
        trial = Trial(target)
        life = trial.subhost("CABLES= =")
        assert trial.boot(life) == trial.pid(life) > 0
        assert [text for text in trial._left() if "it runs" in text]
        trial.run(f"overlay-boot {life.conf}")
        assert len(trial.problems) == 1 and "status 1, not 0" in trial.problems[0]
        trial.stop(life)
        assert not [text for text in trial._left() if text.startswith(life.named)]


def test_the_page_tells_what_was_measured_and_what_was_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    found = {
        "where": "here",
        "done": "500 subhosts",
        "figures": ["boot 16 ms alone, 17 ms among all"],
        "curves": {"boot": [16.0, 17.0], "stop": [9.0, 9.0]},
        "problems": ["overlay-stop took 30.0 s\nand more"],
        "seconds": 90,
    }
    write_part(page, {"crowd": found})
    text = page.read_text()
    assert "| crowd | 500 subhosts | 1 | boot 16 ms alone, 17 ms among all | 2 min |" in text
    assert "- crowd: overlay-stop took 30.0 s\n" in text
    assert "](reliability-crowd.svg)\n" in text
    drawn = (tmp_path / "reliability-crowd.svg").read_text()
    assert ">boot<" in drawn and ">stop<" in drawn
    assert lower_quartile([4, 1, 3, 2]) == 2

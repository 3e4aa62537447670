"""The report for a reader in a hurry: its verdict, its causes, and that its HTML is sound."""

import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from spec import results
from spec.__main__ import main
from spec.clauses import clauses, in_force
from spec.report_html import cut, headline, html
from spec.report_view import REPRODUCE, Run, causes, told
from spec.results import Outcome, Results
from tests.spec.test_report import everything, outcome, results_of


def failing(*ids: str, says: str, verdict: str = "fail") -> Outcome:
    """A test that did not pass, with pytest's account of it."""
    lines = "\n".join(f"E       {line}" for line in says.splitlines())
    details = f"    def test_it(subhost):\n>       assert it\n{lines}\n\nspec/test_x.py:9: Error"
    return {**outcome(verdict, *ids, reason=says[:20]), "details": details}


def but(*tests: Outcome, selection: str | None = None) -> Results:
    """The results of a run in which all passed but for these."""
    concerned = {name for test in tests for name in test["clauses"]}
    passed = [test for test in everything() if not concerned & {*test["clauses"]}]
    return {**results_of(*passed, *tests), "selection": selection}


ALL = len(in_force("ours"))


@pytest.mark.parametrize(
    ("tests", "verdict", "rest", "tone"),
    [
        ([], f"All {ALL} promises kept", "", "good"),
        ([("fail", "stop", "upper")], f"2 of {ALL} promises not kept", "", "bad"),
        (
            [("error", "stop")],
            f"1 of {ALL} promises could not be judged: the tests broke",
            "1 test broke",
            "bad",
        ),
        (
            [("precondition", "vlan")],
            f"{ALL - 1} of {ALL} promises kept, none broken",
            "1 not testable here",
            "odd",
        ),
        (
            [("fail",)],
            f"None of {ALL} promises broken, but the run itself failed",
            "the run itself: left",
            "bad",
        ),
    ],
)
def test_the_verdict_stands_on_top(
    tests: list[tuple[str, ...]], verdict: str, rest: str, tone: str
) -> None:
    run = Run(but(*(failing(*ids, says="left", verdict=how) for how, *ids in tests)))
    assert (run.verdict, run.rest, run.tone) == (verdict, rest, tone)
    assert (tone == "good") == (results.trouble(run.results) == [])


def test_the_verdict_on_a_part_counts_what_ran() -> None:
    part = {**results_of(outcome("pass", "stop", "upper")), "selection": "-k stop"}
    assert (Run(part).verdict, Run(part).tone) == ("All 2 tested promises kept", "good")
    assert Run({**results_of(), "selection": "-k stop"}).tone == "odd"


def test_a_known_failure_leaves_the_verdict_good() -> None:
    tests = [test for test in everything() if test["clauses"] != ["stop"]]
    run = Run(results_of(*tests, outcome("fail", "stop"), known={"stop": "slow"}))
    assert (run.verdict, run.tone) == (f"{ALL - 1} of {ALL} promises kept, none broken", "good")
    assert run.rest == "1 known failure"


def test_several_runs_have_one_headline() -> None:
    good, bad = Run(but(), "A"), Run(but(outcome("fail", "stop")), "B")
    assert headline([good, good]) == ("2 runs side by side: no promise broken", "good")
    assert headline([good, bad]) == ("2 runs side by side: 1 with failures", "bad")


@pytest.mark.parametrize(
    ("says", "words", "asserted"),
    [
        ("AssertionError: two lines\nwere wanted\nassert 1 == 2", "two lines were wanted", True),
        ("assert 1 == 2\n +  where 1 = one()", "Expected: It does <so>.", True),
        ("KeyError: 'eth0'", "there is no 'eth0'", False),
        ("spec.targets.TargetError: the sandbox has ended", "the sandbox has ended", False),
        ("Failed: DID NOT RAISE", "DID NOT RAISE", False),
        (
            "AssertionError: $ overlay-boot /opt/x.conf\nsome\nno such file\n(status 2)\nassert 2",
            "overlay-boot ended with status 2: no such file",
            True,
        ),
        (
            "AssertionError: it is not up: $ overlay-boot x\nit runs\n(status 0)\nthe log",
            "it is not up",
            False,
        ),
    ],
)
def test_the_reason_comes_in_words(says: str, words: str, asserted: bool) -> None:
    found = told(failing("stop", says=says))
    assert (found[0], found[1].startswith("assert ")) == (words, asserted)


def test_without_pytests_account_the_reason_is_all() -> None:
    assert told(outcome("fail", "stop", reason="it runs on"))[0] == "it runs on"


def test_failures_are_grouped_by_cause_over_all_runs() -> None:
    first = failing("stop", "upper", says="no /opt/subhost/s0x1/live, pid 4711")
    same = failing("lower", says="no /opt/subhost/s1x22/live, pid 123")
    other = failing("netns-lo", says="lo is down")
    broke = failing("share", says="the machine hangs", verdict="error")
    runs = [Run(but(first, same, other, broke), "A"), Run(but(other), "B")]
    found = [
        (cause.number, cause.words, list(cause.promises), [run.letter for run in cause.runs])
        for cause in causes(runs)
    ]
    assert found == [
        (1, "the machine hangs", ["share"], ["A"]),
        (2, "no /opt/subhost/s1x22/live, pid 123", ["lower", "upper", "stop"], ["A"]),
        (3, "lo is down", ["netns-lo"], ["A", "B"]),
    ]


def test_one_test_with_several_values_fails_for_one_reason() -> None:
    tests = [
        {**failing("stop", says=f"{says} is left"), "id": f"t.py::t[{says}]"} for says in "ab"
    ]
    (cause,) = causes([Run(but(*tests), "A")])
    assert (cause.words, len(cause.tests)) == ("a is left", 2)


def test_what_is_not_shown_is_grouped_by_its_reason() -> None:
    tests = (outcome("precondition", name, reason="no 8021q") for name in ("vlan", "vlan-name"))
    found = [(one.verdict, one.words, list(one.promises)) for one in causes([Run(but(*tests))])]
    assert found == [("precondition", "no 8021q", ["vlan", "vlan-name"])]


class Balance(HTMLParser):
    """Notes ids, links, and tags that are not closed in order."""

    VOID = ("meta", "br", "col", "img", "hr", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value or "")
            elif key == "href":
                self.links.append(value or "")
            elif key == "src":
                self.sources.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())


def test_much_evidence_makes_no_huge_report() -> None:
    """The end of each piece is kept: there the reason mostly stands."""
    assert cut("short", 10) == "short"
    assert cut("a" * 100 + "end", 10).endswith("\naaaaaaaend")
    much = [{"title": title, "text": "x" * results.LIMIT} for title in ("log", "mounts")]
    tests = [{**outcome("fail", name), "evidence": [*much]} for name in in_force("ours")]
    tests[0]["evidence"].append({"title": REPRODUCE, "text": f"# first\n{'x' * 3000}"})
    text = html([results_of(*tests)])
    assert len(text) < 5 * 1024 * 1024
    assert "# first" in text, "commands that are cut reproduce nothing"


def test_html_is_one_sound_file_with_each_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which("asciidoctor"):
        pytest.skip("asciidoctor is not installed")
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    results.save(results_of(*everything()), files[0])
    failed = outcome("fail", "stop", "stop-netns", reason="<b>left</b>")
    left = outcome("fail", reason="left over: x0")
    results.save(results_of(failed, left, page="1.6"), files[1])
    page = tmp_path / "r.html"
    monkeypatch.setattr("sys.argv", ["spec", "report", *map(str, files), "--html", str(page)])
    assert main() == 0
    text = page.read_text()
    found = Balance()
    found.feed(text)
    assert found.open == [] and found.sources == []
    assert sorted(set(found.ids)) == sorted(found.ids)
    assert set(clauses()) <= set(found.ids)
    assert [link for link in found.links if link[0] != "#" or link[1:] not in found.ids] == []
    assert '<details class="clause fail" id="stop" data-verdicts="pass fail">' in text
    assert '<details class="clause pass" id="boot-race" data-verdicts="pass unpromised">' in text
    assert "&lt;b&gt;left&lt;/b&gt;" in text and "<b>left</b>" not in text
    assert '<h1 class="bad">2 runs side by side: 1 with failures</h1>' in text
    assert "left over: x0</h3>" in text
    assert text.count("<script>") == 1
    assert 'What was seen is with <a href="#cause-1">reason 1</a>.' in text


def test_html_takes_nothing_for_markup(tmp_path: Path) -> None:
    """Neither in text nor in an attribute, wherever it comes from."""
    if not shutil.which("asciidoctor"):
        pytest.skip("asciidoctor is not installed")
    bad = """"><script>'&</style></script>"""
    test = {**failing("stop", says=bad), "promise": bad, "reason": bad}
    evil = {**results_of(test, outcome("skip", "upper", reason=bad)), "selection": bad}
    evil["implementation"] = {"name": bad, "version": bad, "source": bad, "more": f"{bad}\n2"}
    evil["target"] = {"name": bad, "system": bad, "kernel": bad, "note": bad}
    for runs in ([evil], [evil, evil]):
        text = html(runs)
        assert text.count("<script>") == 1 and text.count("</style>") == 1
        assert bad not in text and "&amp;lt;" not in text
        found = Balance()
        found.feed(text)
        assert found.open == []


def test_html_of_success_says_so() -> None:
    if not shutil.which("asciidoctor"):
        pytest.skip("asciidoctor is not installed")
    text = html([but()])
    assert f'<h1 class="good">All {ALL} promises kept</h1>' in text
    assert "Nothing: no test failed." in text and 'class="cause' not in text

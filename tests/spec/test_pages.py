"""The marks in the man pages, the coverage of the reference page, the expectations."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from markupsafe import Markup

from spec import expectations, reference
from spec.catalogue import Catalogue, problems
from spec.clauses import FOLDER, PAGES, Clause, PageError, clauses, in_force, parse, plain

PAGE = """\
== NAME

tool - [#one.must.v1-2.ref-name-1.d3.d12]#The *first* `_promise_`
of it.# Said {hash}1. [#two.default.v1-6]#Default: `/`.#

== OPTIONS

*--long* _value_::
[#three.example.v1-6.only-1-6,untested="takes a year"]
----
# tool a*b*c
----

=== More of them

[#four.decision.ours]#Four.#
"""


def test_a_mark_says_all_about_its_clause() -> None:
    one, two, three, four = parse(PAGE, "tool.8")
    assert one == Clause(
        id="one",
        level="must",
        since="1.2",
        sentence="The first _promise_ of it.",
        page="tool.8",
        section="NAME",
        topic="",
        line=3,
        refs=("name-1",),
        decisions=("D3", "D12"),
        pages=PAGES,
        untested=None,
    )
    assert (two.level, two.pages) == ("default", ("1.6", "ours"))
    assert (three.sentence, three.untested) == ("# tool a*b*c", "takes a year")
    assert (three.topic, three.pages) == ("--long value", ("1.6",))
    assert (four.section, four.topic, four.pages) == ("OPTIONS", "More of them", ("ours",))


@pytest.mark.parametrize(
    ("mark", "complaint"),
    [
        ("[#a.must]#x#", "one level and one version"),
        ("[#a.must.should.ours]#x#", "one level and one version"),
        ("[#a.must.ours.reff-1]#x#", "unknown role"),
        ("[#a.must.ours]x", "mark without a sentence: a"),
    ],
)
def test_a_bad_mark_is_refused(mark: str, complaint: str) -> None:
    with pytest.raises(PageError, match=f"^p.adoc:.*{complaint}"):
        parse(f"== NAME\n\n{mark}\n", "p")


def test_inline_markup_is_taken_out_but_not_from_code() -> None:
    assert (
        plain("*bold*, _it_ and\n`a_b_c *d*`, x_y_z, {hash}1")
        == "bold, it and a_b_c *d*, x_y_z, #1"
    )


def test_asciidoctor_and_the_parser_see_the_same_marks() -> None:
    if not shutil.which("asciidoctor"):
        pytest.skip("asciidoctor is not installed")
    from spec.report_pages import pages

    trees = pages().values()
    ids = [node.get("id") for tree in trees for node in tree.iter()]
    assert len(clauses()) > 100
    assert [name for name in clauses() if ids.count(name) != 1] == []
    assert not [text for tree in trees for text in tree.itertext() if "]#" in text]


def test_the_parser_of_marks_and_asciidoctor_read_the_same_sentence() -> None:
    """Of each clause, whatever markup is in it."""
    if not shutil.which("asciidoctor"):
        pytest.skip("asciidoctor is not installed")
    from spec.report_pages import pages

    def same(text: str) -> str:
        return "".join(text.translate({0x2019: "'", 0x200B: None}).split())

    found = {node.get("id"): node for tree in pages().values() for node in tree.iter()}
    for clause in clauses().values():
        said = "".join(found[clause.id].itertext())
        assert same(said).replace("…", "...") == same(clause.sentence).replace("…", "...")


def test_html_that_is_not_well_formed_is_refused() -> None:
    from spec.report_pages import tree
    from spec.results import ResultsError

    with pytest.raises(ResultsError, match="not well-formed"):
        tree("<p>one<br>two</p>")


def test_a_page_is_opened_at_its_clauses_alone() -> None:
    from spec.report_pages import markup, tree

    page = tree(
        '<h2 id="_name">A &amp; B</h2><p id="x">Say <span id="netns-lo"><b>this</b> &lt;that</span>'
        '<br/></p><div id="example-tiny" class="listingblock"><pre>a &lt; b</pre></div>'
    )
    found = markup(page, "tool.8", lambda name, text, block: Markup(f"[{name} {text} {block}]"))
    assert found == (
        '<div class="root"><h3 id="tool.8_name">A &amp; B</h3><div id="tool.8x" class="p">Say '
        "[netns-lo <b>this</b> &lt;that False]<br></div>[example-tiny a &lt; b True]</div>"
    )


def test_the_versions_of_the_page_promise_what_they_should() -> None:
    assert "log-default" in in_force("1.2")
    assert "log-default" not in in_force("1.6")
    assert "log-default-1-6" in in_force("1.6")
    assert "log-default-1-6" not in in_force("ours")
    assert not [one for one in in_force("1.6").values() if one.since == "ours"]


def test_each_decision_is_a_clause_and_has_its_reason() -> None:
    named = {name for clause in clauses().values() for name in clause.decisions}
    assert named == {f"D{number}" for number in range(1, 37)}
    design = (FOLDER.parent / "docs/design.md").read_text()
    reasons = re.findall(r"^\| `([a-z][a-z0-9-]+)` \| \S", design, re.MULTILINE)
    assert {name for clause in reasons for name in clauses()[clause].decisions} == named


def test_the_reference_page_is_covered() -> None:
    assert reference.problems() == []


REFERENCE = """\
tool(8)
=======
:attribute: x

NAME
----
tool - does it

OPTIONS
-------
First.

*NAME*::

Of a name.
+
More of it.

EXAMPLES
--------

=== /opt/tiny/tiny.conf
****
----
BASE=.
----
****

After.
"""


def test_paragraphs_are_named_by_place() -> None:
    assert reference.paragraphs(REFERENCE) == {
        "name-1": "tool - does it",
        "options-1": "First.",
        "options-name-1": "Of a name.",
        "options-name-2": "More of it.",
        "examples-tiny-1": "BASE=.",
        "examples-tiny-2": "After.",
    }


def test_coverage_notices_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = reference.TABLE.read_text().splitlines(keepends=True)
    name, digest, ids = lines[1].split("\t")
    lines[1] = f"{name}\t{digest}\t{ids.split()[0]} boot-race\n"
    lines[2] = "extra-1\t0\t\n"
    monkeypatch.setattr(reference, "TABLE", tmp_path / "coverage")
    reference.TABLE.write_text("".join(lines))
    page = tmp_path / "page"
    page.write_text(REFERENCE)
    found = "\n".join(reference.problems(page))
    assert f"{name}: the pages' marks say {ids.strip()}" in found
    assert "extra-1: no clause restates this paragraph" in found
    assert "no such paragraph, named by boot-conf" in found
    assert f"differs from {page}" in found


def test_expectations_are_found_by_version(tmp_path: Path) -> None:
    for name in ("debian", "debian-1.6", "debian-1.6.4"):
        (tmp_path / f"{name}.toml").touch()
    found = [
        expectations.find(name, version, tmp_path)
        for name, version in [
            ("debian", "1.6.4-1"),
            ("debian", "1.6.10-1"),
            ("debian", "2.0"),
            ("other", "1.6.4"),
            ("", ""),
        ]
    ]
    assert [file and file.stem for file in found] == [
        "debian-1.6.4",
        "debian-1.6",
        "debian",
        None,
        None,
    ]


@pytest.mark.parametrize(
    "text",
    [
        '[[expect]]\nclause = "no-such-clause"\nmatch = "."\nreason = "x"',
        '[[expect]]\nclause = "boot-race"\nmatch = "."\nreason = ""',
        '[[expect]]\nclause = "boot-race"\ntest = "t.py::t"\nmatch = "."\nreason = "x"',
        '[[expect]]\nclause = "boot-race"\nreason = "x"',
        "expected = 1",
        "[[",
    ],
)
def test_a_bad_expectation_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text)
    with pytest.raises(PageError, match="x.toml"):
        expectations.load(file)


def test_the_expectations_of_this_repository_are_fine() -> None:
    for file in (FOLDER / "expectations").glob("*.toml"):
        expectations.load(file)


def test_man_shows_the_pages(tmp_path: Path) -> None:
    if not shutil.which("asciidoctor"):
        pytest.skip("asciidoctor is not installed")
    page = FOLDER / "overlay-boot.8.adoc"
    roff = tmp_path / "overlay-boot.8"
    done = subprocess.run(
        ["asciidoctor", "-w", "-b", "manpage", "-o", roff, page],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    assert '.TH "OVERLAY\\-BOOT" "8"' in roff.read_text()


def test_a_promise_is_a_sentence() -> None:
    """It stands in reports alone, for people who have not read the test."""
    wrong = ["50M.", "with a size of 50M by default.", "Its size is 50M by default:", ""]
    right = ["Its size is 50M by default.", "overlay-stop takes no more\n\nthan 5 s."]
    named = {f"t.py::{number}": says for number, says in enumerate(wrong + right)}
    lines = [line for line in problems(Catalogue(promises=named)) if line.startswith("t.py")]
    assert [line.partition(": its docstring stands in reports")[0] for line in lines] == [
        f"t.py::{number}" for number in range(len(wrong))
    ]

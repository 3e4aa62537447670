"""One self-contained HTML file: the verdict, what failed by its cause, and the man pages, each
sentence with the verdict on it.

Jinja2 fills the templates, with everything escaped; every marked sentence of the pages becomes a
<details>: its summary is the sentence, its content what the tests saw. The file reads without
JavaScript.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from spec.clauses import FOLDER, Clause, clauses
from spec.report_pages import headings, markup, pages
from spec.report_view import REPRODUCE, WORDS, Cause, Run, causes, told
from spec.results import SHOWN, Judgement, Outcome, Results, by_section, count, shown

LOUD = ("fail", "error")
LEVELS = {
    "must": "required",
    "default": "a default",
    "should": "recommended",
    "example": "an example",
    "decision": "where the page leaves it open",
}
ROOM = 3 * 1024 * 1024  # characters for the evidence of all tests together
LEAST, MOST = 1024, 32 * 1024  # for one piece of it

Row = tuple[Run, Judgement, str, list[tuple[Outcome, str]]]
"""One run's view of a clause: verdict, and tests, each with the place that tells of it."""


def room(runs: list[Run]) -> int:
    """How many characters of each piece of evidence are shown, so that all have room."""
    pieces = [
        len(text)
        for run in runs
        for test in run.tests.values()
        for text in [test["details"] or "", *(seen["text"] for seen in test["evidence"])]
    ]
    limit = MOST
    while limit > LEAST and sum(min(piece, limit) for piece in pieces) > ROOM:
        limit //= 2
    return limit


def cut(text: str, limit: int) -> str:
    """The end of a long text, where the reason of a failure mostly stands."""
    if len(text) <= limit:
        return text
    left = len(text) - limit
    return f"[{left} characters left out here: results.json has more]\n{text[left:]}"


@dataclass
class _Report:
    """What the templates need of these runs."""

    runs: list[Run]
    causes: list[Cause]
    told: dict[tuple[str, str], str] = field(default_factory=dict)
    """The place that tells of a test, by the run's letter and the test."""

    def __post_init__(self) -> None:
        for cause in self.causes:
            for run, test in cause.tests:
                self.told.setdefault((run.letter, test["id"]), f"cause-{cause.number}")

    def rows(self, clause: Clause) -> list[Row]:
        """Each run's view of a clause."""
        found = []
        for run in self.runs:
            judged = run.verdicts[clause.id]
            tests = [run.tests[name] for name in judged["tests"] if name in run.tests]
            places = [self.told.setdefault((run.letter, t["id"]), clause.id) for t in tests]
            placed = [
                (test, "" if place == clause.id else place)
                for test, place in zip(tests, places, strict=True)
            ]
            found.append((run, judged, shown(judged), placed))
        return found


def sections(runs: list[Run]) -> list[tuple[str, list[dict[str, int]]]]:
    """For each section that has clauses: page and heading, and how each run did in it."""
    tallies = [
        {f"{page}: {section}": count(found) for (page, section), found in by_section(run).items()}
        for run in (run.results for run in runs)
    ]
    keys = dict.fromkeys(f"{clause.page}: {clause.section}" for clause in clauses().values())
    return [
        (
            key,
            [{v: n[v] for v in SHOWN if n.get(v)} for n in (t.get(key, {}) for t in tallies)],
        )
        for key in keys
    ]


def headline(runs: list[Run]) -> tuple[str, str]:
    """The verdict on all runs together, in a sentence and as a tone."""
    tones = [run.tone for run in runs]
    tone = next(tone for tone in ("bad", "odd", "good") if tone in tones)
    if len(runs) == 1:
        return runs[0].verdict, tone
    bad = tones.count("bad")
    if not bad:
        return f"{len(runs)} runs side by side: no promise broken", tone
    return f"{len(runs)} runs side by side: {bad} with failures", tone


def html(found: list[Results]) -> str:
    """The report on these runs. Raises ResultsError where the pages cannot be rendered."""
    several = len(found) > 1
    runs = [
        Run(one, chr(ord("A") + number) if several else "") for number, one in enumerate(found)
    ]
    report = _Report(runs, causes(runs))
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    limit = room(runs)
    environment.filters["cut"] = lambda text: cut(text, limit)
    environment.globals.update(
        words=WORDS, shown=SHOWN, levels=LEVELS, loud=LOUD, reproduce=REPRODUCE,
        clauses=clauses(), several=several, told=told,
    )  # fmt: skip
    sentence = getattr(environment.get_template("parts.html.j2").module, "sentence")  # noqa: B009

    def opened(name: str, text: Markup, listing: bool) -> Markup:
        rows = report.rows(clauses()[name])
        worst = min((verdict for _, _, verdict, _ in rows), key=list(SHOWN).index)
        return Markup(sentence(clauses()[name], text, listing, worst, rows))

    trees = pages()
    links = {
        f"{page}: {title}": f"{page}{name}"
        for page, tree in trees.items()
        for title, name in headings(tree)
    }
    says, tone = headline(runs)
    shows = {verdict for run in runs for verdict in run.tally}
    return environment.get_template("report.html.j2").render(
        headline=says,
        tone=tone,
        title=" and ".join(run.label for run in runs),
        runs=runs,
        causes=report.causes,
        verdicts=[verdict for verdict in SHOWN if verdict in shows],
        sections=[(name, links[name], tallies) for name, tallies in sections(runs)],
        pages=[(page, markup(tree, page, opened)) for page, tree in trees.items()],
        style=Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
        script=Markup((FOLDER / "report.js").read_text(encoding="utf-8")),
    )

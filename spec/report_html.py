"""One self-contained HTML file: the man pages, each sentence with the verdict on it.

asciidoctor makes the pages, as for `make man`; then every marked sentence becomes a <details>:
its summary is the sentence, its content what the tests saw. It reads without JavaScript; the
few lines of it only open a sentence that a link leads to, and step through what did not pass.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from html import escape
from pathlib import Path

from spec.clauses import FOLDER, Clause, clauses
from spec.results import (
    SHOWN,
    Judgement,
    Outcome,
    Results,
    ResultsError,
    align,
    by_section,
    count,
    label,
    place,
    reasons,
    shown,
)

LEGEND = {
    "pass": "as promised",
    "fail": "not as promised",
    "error": "the test itself broke",
    "expected": "not as promised, and known",
    "precondition": "cannot be shown on that system",
    "skip": "left out by the test",
    "untested": "no test ran",
    "unpromised": "not in that version of the page",
}
_QUIET = ("pass", "unpromised")
_SCRIPT = """
const open = () => { const it = document.getElementById(location.hash.slice(1));
  if (it && it.tagName === 'DETAILS') { it.open = true; it.scrollIntoView({block: 'center'}); } };
addEventListener('hashchange', open); open();
addEventListener('keydown', event => {
  if (!['n', 'p'].includes(event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
  const all = [...document.querySelectorAll('.clause:not(.pass, .unpromised) > summary')];
  const here = all.indexOf(document.activeElement);
  const next = all.at(event.key === 'n' ? (here + 1) % all.length : Math.max(here, 0) - 1);
  if (next) { next.focus(); next.scrollIntoView({block: 'center'}); } });
"""


class _Report:
    """What all parts of the page need: the runs, and each run's verdicts by clause."""

    def __init__(self, runs: list[Results]) -> None:
        self.runs = runs
        several = len(runs) > 1
        self.letters = [chr(ord("A") + number) if several else "" for number in range(len(runs))]
        self.verdicts = [align(run) for run in runs]
        self.tests = [{test["id"]: test for test in run["tests"]} for run in runs]
        self.told: dict[tuple[int, str], str] = {}

    def of(self, clause: str) -> list[Judgement]:
        """The verdicts on one clause, run by run."""
        return [judged[clause] for judged in self.verdicts]


def _sign(verdict: str, letter: str = "", about: str = "") -> str:
    title = f' title="{escape(about)}: {verdict}"' if about else ""
    return (
        f'<span class="sign {verdict}"{title}>'
        f'{letter}<b aria-hidden="true">{SHOWN[verdict]}</b><i> {verdict}</i></span>'
    )


def _signs(report: _Report, clause: str) -> str:
    return "".join(
        _sign(shown(judged), letter, label(run))
        for run, letter, judged in zip(report.runs, report.letters, report.of(clause), strict=True)
    )


def _block(title: str, text: str, *, open_: bool = False) -> str:
    return (
        f"<details{' open' if open_ else ''}><summary>{escape(title)}</summary>"
        f'<pre tabindex="0">{escape(text)}</pre></details>'
    )


def _test(report: _Report, number: int, test: Outcome, clause: str) -> str:
    head = (
        f'<p class="test">{_sign(test["verdict"])} <code>{escape(test["id"])}</code>'
        f" <small>{test['seconds']:.2f} s</small><br>{escape(test['promise'])}</p>"
    )
    first = report.told.setdefault((number, test["id"]), clause)
    if first != clause:
        return head + f'<p>Its evidence is with <a href="#{first}">{first}</a>.</p>'
    parts = [head]
    if test["expected"]:
        parts.append(f"<p><strong>Known:</strong> {escape(test['expected'])}</p>")
    if test["reason"]:
        parts.append(f'<p class="reason">{escape(test["reason"])}</p>')
    failed = test["verdict"] in ("fail", "error")
    parts += [_block(seen["title"], seen["text"], open_=failed) for seen in test["evidence"]]
    if test["details"]:
        parts.append(_block("the test", test["details"]))
    return "".join(parts)


def _panel(report: _Report, clause: Clause) -> str:
    facts = [clause.level, "this project's" if clause.since == "ours" else f"page {clause.since}"]
    facts += [f"decision {name}" for name in clause.decisions]
    link = f'<a href="#{clause.id}">{clause.id}</a>'
    parts = [f'<p class="facts">{link} · {escape(" · ".join(facts))}</p>']
    for number, (run, judged) in enumerate(zip(report.runs, report.of(clause.id), strict=True)):
        verdict = shown(judged)
        head = f"{report.letters[number]} {escape(label(run))}".strip()
        parts.append(f"<h4>{head}: {verdict}, {LEGEND[verdict]}</h4>")
        if clause.untested:
            parts.append(f"<p>No test can show this: {escape(clause.untested)}</p>")
        for name in judged["tests"]:
            parts.append(_test(report, number, report.tests[number][name], clause.id))
    return f'<div class="panel">{"".join(parts)}</div>'


def _clause(report: _Report, clause: Clause, text: str) -> str:
    verdicts = [shown(judged) for judged in report.of(clause.id)]
    worst = min(verdicts, key=list(SHOWN).index, default="untested")
    return (
        f'<details class="clause {worst}" id="{clause.id}"><summary>{text} '
        f"{_signs(report, clause.id)}</summary>{_panel(report, clause)}</details>"
    )


def pages() -> dict[str, str]:
    """The man pages as asciidoctor's HTML, without head and body, by name."""
    if not shutil.which("asciidoctor"):
        raise ResultsError("asciidoctor, which renders the man pages, is missing: apt install it")
    with tempfile.TemporaryDirectory(prefix="spec-html-") as folder:
        files = sorted(FOLDER.glob("*.8.adoc"))
        command = ["asciidoctor", "-s", "-b", "html5", "-D", folder, *map(str, files)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise ResultsError(f"asciidoctor failed: {done.stderr.strip()}")
        return {file.stem: (Path(folder) / f"{file.stem}.html").read_text() for file in files}


_SENTENCE = re.compile(r'<span id="([a-z0-9-]+)" class="[^"]*">(.*?)</span>', re.DOTALL)
_LISTING = re.compile(
    r'<div id="([a-z0-9-]+)" class="listingblock [^"]*">\s*<div class="content">\s*'
    r"<pre>(.*?)</pre>\s*</div>\s*</div>",
    re.DOTALL,
)


def _page(report: _Report, name: str, text: str) -> str:
    """One page: ids made unique, headings one level down, clauses opened up."""
    known = clauses()
    text = text.replace('id="_', f'id="{name}_')
    text = re.sub(r"<(/?)h([2-4])\b", lambda match: f"<{match[1]}h{int(match[2]) + 1}", text)
    text = re.sub(r"<p>(.*?)</p>", r'<div class="p">\1</div>', text, flags=re.DOTALL)
    text = _SENTENCE.sub(
        lambda match: _clause(report, known[match[1]], f'<span class="text">{match[2]}</span>'),
        text,
    )
    text = _LISTING.sub(
        lambda match: _clause(report, known[match[1]], f'<code class="block">{match[2]}</code>'),
        text,
    )
    return f'<article id="{name}"><h2>{name.replace(".8", "(8)")}</h2>{text}</article>'


def _table(head: list[str], rows: list[list[str]]) -> str:
    """A table of ready HTML; the first cell of each row is its heading."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _tally(numbers: dict[str, int]) -> str:
    return " ".join(
        f'<span class="sign {verdict}"><b aria-hidden="true">{SHOWN[verdict]}</b>'
        f"{numbers[verdict]}<i> {verdict}</i></span>"
        for verdict in reversed(SHOWN)
        if numbers.get(verdict)
    )


def _runs(report: _Report) -> str:
    rows = [
        [
            f"{letter} {escape(label(run))}".strip(),
            escape(place(run)),
            f"page {escape(run['page'])}",
            f"{escape(run['started'][:16].replace('T', ' '))}, {run['seconds']:.0f} s",
            _tally(count(run["clauses"])),
        ]
        for letter, run in zip(report.letters, report.runs, strict=True)
    ]
    part = [run["selection"] for run in report.runs if run["selection"]]
    note = f"<p>Only a part was run: {escape('; '.join(part))}</p>" if part else ""
    head = ["implementation", "system", "held to", "when", "clauses in force"]
    return _table(head, rows) + note


def _failures(report: _Report) -> str:
    """What did not pass, each implementation for itself, the worst first.

    Clauses share a line where one reason is known for all of them.
    """
    parts = []
    for run, judged in zip(report.runs, report.verdicts, strict=True):
        groups: dict[tuple[int, str, str], list[Judgement]] = {}
        quiet = _QUIET + (("untested",) if run["selection"] else ())
        for one in judged.values():
            verdict = shown(one)
            if verdict not in quiet:
                why = one["expected"] or next(
                    iter(reasons(run, one)), one["untested"] or "no test"
                )
                own = one["id"] if verdict in ("fail", "error") else ""
                rank = list(SHOWN).index(verdict)
                groups.setdefault((rank, own, why), []).append(one)
        items = ""
        for (_, own, why), found in sorted(groups.items(), key=lambda pair: pair[0][0]):
            links = " ".join(f'<a href="#{one["id"]}">{one["id"]}</a>' for one in found)
            said = f"<q>{escape(found[0]['sentence'])}</q><br>" if own else ""
            sign = _sign(shown(found[0]))
            items += f"<li>{sign} {links} {said}{escape(why)}</li>"
        for test in run["tests"]:
            if not test["clauses"] and test["verdict"] in ("fail", "error"):
                items += f"<li>{_test(report, report.runs.index(run), test, '')}</li>"
        all_of = (
            " of the part that was run" if run["selection"] else ": every clause in force passed"
        )
        none = f"<p>Nothing{all_of}.</p>"
        parts.append(f"<h3>{escape(label(run))}</h3>{f'<ul>{items}</ul>' if items else none}")
    return "".join(parts)


def _sections(report: _Report) -> str:
    tallies = [
        {key: count(found) for key, found in by_section(run).items()} for run in report.runs
    ]
    keys = list(dict.fromkeys((clause.page, clause.section) for clause in clauses().values()))
    rows = []
    for page, section in keys:
        slug = re.sub(r"[^a-z0-9]+", "_", section.lower())
        link = f'<a href="#{page}_{slug}">{page.replace(".8", "")}: {section.capitalize()}</a>'
        rows.append([link, *(_tally(tally.get((page, section), {})) for tally in tallies)])
    return _table(["section", *(escape(label(run)) for run in report.runs)], rows)


def html(runs: list[Results]) -> str:
    """The report on these runs. Raises ResultsError where the pages cannot be rendered."""
    report = _Report(runs)
    legend = "".join(f"<li>{_sign(name)}: {LEGEND[name]}</li>" for name in reversed(SHOWN))
    title = " and ".join(label(run) for run in runs)
    body = "".join(_page(report, name, text) for name, text in pages().items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}: overlay-boot(8), sentence by sentence</title>
<style>{(FOLDER / "report.css").read_text()}</style>
</head>
<body>
<header><h1>overlay-boot(8), sentence by sentence</h1>
<p>Each marked sentence of these man pages is a promise that was tested on a running system.
A click (or Enter) on it shows how; <kbd>n</kbd> and <kbd>p</kbd> go to the next and the previous
one that did not pass.</p>
{_runs(report)}
<details><summary>Signs</summary><ul class="legend">{legend}</ul></details></header>
<main>
<section><h2>What did not pass</h2>{_failures(report)}</section>
<section><h2>By section</h2>{_sections(report)}</section>
{body}
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""

"""The report: one row a case, in Markdown for people, in JSON for who merges several."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

PASS, NOT_RUN, FAIL = "pass", "not run", "FAIL"
SEVERITY = (PASS, NOT_RUN, FAIL)
MAX_SEEN_CHARS = 220
# Ids differ from run to run; the report should not.
_ID = re.compile(
    r"\b((?:batch_req|msgbatch|batch|file|upload|part|req)[-_])(?=[A-Za-z-]*\d)[0-9A-Za-z-]{8,}(-output|-error)?"
)


@dataclass(frozen=True)
class Result:
    """What came of one case, with one of the SDK's two clients."""

    section: str
    case: str
    expected: str
    mode: str
    verdict: str
    seen: str


@dataclass(frozen=True)
class Run:
    """One run of a suite; `title` is what it looks at."""

    title: str
    server: str
    sdk: str
    date: str
    results: Sequence[Result]


def brief(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a text as it fits into a cell: one line, no ids, no secrets."""
    for secret in secrets:
        text = text.replace(secret, "…")
    text = " ".join(_ID.sub(r"\1…", text).split())
    return text if len(text) <= MAX_SEEN_CHARS else text[: MAX_SEEN_CHARS - 1] + "…"


def fold(results: Iterable[Result]) -> list[Result]:
    """Return one result for each case: the worst of its runs, with what was seen in those that were as bad."""
    by_case: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        by_case.setdefault((result.section, result.case), []).append(result)
    return [_worst(found) for found in by_case.values()]


def _worst(found: list[Result]) -> Result:
    verdict = max((result.verdict for result in found), key=SEVERITY.index)
    worst = [result for result in found if result.verdict == verdict]
    seen = "; ".join(dict.fromkeys(result.seen for result in worst))
    modes = {result.mode for result in worst}
    if modes != {result.mode for result in found}:
        seen = f"({', '.join(modes)} only) {seen}"
    return replace(worst[0], seen=brief(seen))


def counts(results: Iterable[Result]) -> str:
    """Return `12 pass, 1 FAIL, 3 not run`."""
    found = Counter(result.verdict for result in results)
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in (PASS, FAIL, NOT_RUN) if found[verdict]) or "nothing"


def markdown(run: Run) -> str:
    """Return the report of one run."""
    rows = fold(run.results)
    head = f"""\
# Conformance: {run.title}

- Server: {run.server}
- SDK: {run.sdk}
- Date: {run.date}
- Cases: {counts(rows)}
"""
    return "\n".join([head, *_tables(rows)])


def _tables(rows: Sequence[Result]) -> Iterable[str]:
    for section in dict.fromkeys(row.section for row in rows):
        yield f"## {section}\n\n| case | expected | seen | verdict |\n| --- | --- | --- | --- |"
        for row in rows:
            if row.section == section:
                yield line(row.case, row.expected, row.seen, row.verdict)
        yield ""


def line(*cells: str) -> str:
    """Return one row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def write(run: Run, path: Path) -> None:
    """Write the report; as JSON if the file's name ends so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(run), indent=1) if path.suffix == ".json" else markdown(run))


def read(path: Path) -> Run:
    """Return the run of a report in JSON."""
    loaded = json.loads(path.read_text())
    return Run(**{**loaded, "results": [Result(**each) for each in loaded["results"]]})

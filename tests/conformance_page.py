"""The page that several runs of conformance suites make together."""

from collections.abc import Iterator, Mapping, Sequence

from conformance.report import NOT_RUN, SEVERITY, Result, Run, counts, fold, line

HEAD = """\
# Conformance

What the stock SDKs see of Promptmill, case by case. Written by `make conformance`; do not edit.

API, worker (with the scripted engine) and reconciler run as processes, on a database of their own. Each case runs with
the synchronous and with the asynchronous client, for three generations of the `openai` SDK and the newest `anthropic`
SDK, each in an environment of its own. L0 is what is refused at the call, L1 what fails a batch, L2 what fails one row;
SDK is what programs rely on besides; TIME needs a clock that can be set forward.

## Against any server

The suites need nothing of Promptmill but its checkout:

```sh
promptmill conformance --base-url https://host/v1 --api-key KEY --other-api-key KEY_OF_ANOTHER_TENANT --report report.md
```

Or, in an environment that has `openai`, any version, and `pytest`, with more options (`--help` shows them):

```sh
pytest -c tests/conformance/pytest.ini tests/conformance --base-url https://host/v1 --api-key KEY --large
```

Anthropic's Message Batches, in an environment that has `anthropic` and `pytest`; the address is without `/v1`:

```sh
pytest -c tests/conformance_anthropic/pytest.ini tests/conformance_anthropic --base-url https://host --api-key KEY \\
    --other-api-key KEY_OF_ANOTHER_TENANT --model MODEL --max-requests 50000 --large
```

A suite makes up to 400 small batches and as many files in the key's project, and leaves them there. "Not run" is no verdict:
the case needs something that the run was not given, and says what.

- A second tenant: `--other-api-key`.
- Time: `--clock-command`, a shell command that sets the server's clock forward by a number of seconds.
- Quotas: `--rate-limited-api-key`, a key that gets 429 within a hundred batches; `--token-limited-api-key`, one whose
  quota of enqueued tokens is smaller than ten requests.
- Time and traffic: `--large`, for 50,000 requests and 200 MB. They do not depend on the SDK; here the newest of each
  does them. `--max-requests` is the limit of message batches, 100,000 unless it is given.

Not in them, since a server is more than its address to them: webhooks, and what happens when processes are killed.
`tests/` has both.
"""


def page(suites: Mapping[str, Sequence[Run]]) -> str:
    """Return the page: for each suite one row a case, and one column of verdicts for each run."""
    return "\n".join([HEAD, *(part for title, runs in suites.items() for part in _suite(title, runs))])


def _suite(title: str, runs: Sequence[Run]) -> Iterator[str]:
    folded = [fold(run.results) for run in runs]
    yield f"## {title}, {runs[-1].date}\n"
    yield line("SDK", "cases")
    yield line("---", "---")
    yield from (line(run.sdk, counts(rows)) for run, rows in zip(runs, folded, strict=True))
    yield ""
    yield from _tables([run.sdk for run in runs], folded)


def _tables(names: Sequence[str], folded: Sequence[Sequence[Result]]) -> Iterator[str]:
    found = [{(row.section, row.case): row for row in rows} for rows in folded]
    cases = list(dict.fromkeys(case for rows in found for case in rows))
    for section in dict.fromkeys(section for section, _ in cases):
        yield f"### {section}\n"
        yield line("case", "expected", "seen", *names)
        yield line(*["---"] * (3 + len(names)))
        yield from (_row(case, [rows.get(case) for rows in found]) for case in cases if case[0] == section)
        yield ""


def _row(case: tuple[str, str], found: Sequence[Result | None]) -> str:
    """Return the row of a case; what was seen is the newest SDK's, unless another saw worse."""
    there = [row for row in found if row]
    shown = max(reversed(there), key=lambda row: SEVERITY.index(row.verdict) if row.verdict != NOT_RUN else -1)
    verdicts = [row.verdict if row else "" for row in found]
    return line(case[1], shown.expected, shown.seen, *verdicts)

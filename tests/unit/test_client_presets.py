import json
import math
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import estimating, tables, writing
from client.presets import confidence, label, parts, prompts, rehearsal, runs, translate
from client.presets.job import Job, answer, custom_id
from jobs.errors import InvalidRequest

LABELS = label.Labels({"positive": "happy", "negative": "", "no": ""})


def choice(text: str, finish: str = "stop", tokens: list[Any] | None = None) -> dict[str, Any]:
    logprobs = None if tokens is None else {"content": tokens}
    return {"finish_reason": finish, "message": {"content": text}, "logprobs": logprobs}


def line(text: str, **more: Any) -> dict[str, Any]:
    return {
        "custom_id": "a",
        "response": {"status_code": 200, "body": {"choices": [choice(text, **more)]}},
        "error": None,
    }


def translating(table: tables.Table, languages: Sequence[str] = ("de", "fr"), **options: Any) -> Job:
    prompt = prompts.template(options.pop("prompt", prompts.TRANSLATE), "prompt")
    return translate.job(table, "text", languages, model="m", prompt=prompt, **options)


def texts(path: Path, *cells: str) -> tables.Table:
    path.write_text("".join(json.dumps({"id": number, "text": cell}) + "\n" for number, cell in enumerate(cells)))
    return tables.open_table(path)


def test_each_row_is_asked_about_in_each_language(tmp_path: Path) -> None:
    table = texts(tmp_path / "a.jsonl", "Good morning", " ", "Two\nlines")
    rendered = list(runs.requests(table, translating(table, source="en")))
    assert [number for number, _ in rendered] == [1, 2, 3]
    assert rendered[1] == (2, []), "nothing is asked about an empty cell"
    first, second = map(json.loads, rendered[0][1])
    assert (first["custom_id"], second["custom_id"]) == ("row-1-de", "row-1-fr")
    (message,) = first["body"]["messages"]
    assert message["role"] == "user"
    assert "from English into German." in message["content"]
    assert message["content"].endswith("\n\nGood morning")
    assert first["body"]["stop"] == ["\n"]
    assert "stop" not in json.loads(rendered[2][1][0])["body"]


def test_a_rehearsal_counts_what_would_be_asked(tmp_path: Path) -> None:
    table = texts(tmp_path / "a.jsonl", " ", "Good morning", "Two\nlines")
    made = rehearsal.rehearse(table, translating(table, prompt="{{ text }}", max_tokens=10), "m", None)
    assert (made.rows, made.requests.rows, made.requests.answer_tokens) == (3, 4, 40)
    assert made.requests.input_tokens == 2 * (3 + 3 + 2 * estimating.TOKENS_PER_TURN)
    document = made.document()
    assert (document["rows"], document["requests"], document["first_prompt"]) == (3, 4, "Good morning")
    empty = texts(tmp_path / "b.jsonl", "")
    assert rehearsal.rehearse(empty, translating(empty), "m", None).first_prompt is None


def test_a_language_is_a_code_or_a_name() -> None:
    assert [translate.name(each) for each in ("de", "PT", "Swiss German")] == ["German", "Portuguese", "Swiss German"]


def test_columns_are_named_after_the_column_and_the_language(tmp_path: Path) -> None:
    assert list(translating(texts(tmp_path / "a.jsonl", "a")).added) == ["text_de", "text_fr", "error"]


def test_a_template_of_ones_own_sees_the_row_and_cannot_leave_its_sandbox(tmp_path: Path) -> None:
    table = texts(tmp_path / "a.jsonl", "{{ 7 * 7 }}")
    (_, (first,)), *_ = runs.requests(
        table, translating(table, ["de"], prompt="{{ row.id }} {{ language }}: {{ text }}")
    )
    assert json.loads(first)["body"]["messages"][0]["content"] == "0 German: {{ 7 * 7 }}", "text is no template"
    for template in ("{{ ''.__class__.__mro__ }}", "{{ row.nothing }}", "{{ row.update({'a': 1}) }}", "{{ 1 / 0 }}"):
        with pytest.raises(InvalidRequest, match="Row 1: The prompt cannot be made"):
            list(runs.requests(table, translating(table, ["de"], prompt=template)))
    with pytest.raises(InvalidRequest, match="prompt, line 2"):
        prompts.template("a\n{% if %}", "prompt")


@pytest.mark.parametrize(
    ("found", "values", "code"),
    [
        (line(" Guten Morgen\n"), ["Guten Morgen"], None),
        (line("Guten Mor", finish="length"), ["Guten Mor"], "cut_off"),
        (line(""), [""], "empty_answer"),
        (None, [None], "no_result"),
        (
            {"custom_id": "a", "response": None, "error": {"code": "batch_expired", "message": "m"}},
            [None],
            "batch_expired",
        ),
        (
            {"response": {"status_code": 400, "body": {"error": {"code": "rejected", "message": "m"}}}, "error": None},
            [None],
            "rejected",
        ),
        ({"response": {"status_code": 500, "body": {}}, "error": None}, [None], "500"),
    ],
)
def test_what_became_of_a_request_is_told(tmp_path: Path, found: Any, values: list[Any], code: str | None) -> None:
    read = answer(translating(texts(tmp_path / "a.jsonl", "a")), found)
    assert read.values == values
    assert (read.failure and read.failure.code) == code


def test_labels_are_asked_for_by_a_schema(tmp_path: Path) -> None:
    table = texts(tmp_path / "a.jsonl", "Fine")
    prompt = prompts.template(prompts.LABEL, "prompt")
    job = label.job(table, "text", LABELS, model="m", prompt=prompt)
    assert list(job.added.items()) == [("label", str), ("label_confidence", float), ("error", str)]
    body = json.loads(next(runs.requests(table, job))[1][0])["body"]
    assert body["response_format"]["json_schema"]["schema"]["properties"]["label"]["enum"] == list(LABELS.meanings)
    assert "- positive: happy\n- negative\n- no\n" in body["messages"][0]["content"]
    assert (body["logprobs"], body["top_logprobs"]) == (True, 20)


@pytest.mark.parametrize(
    ("text", "values", "code"),
    [
        ('{"label": "no"}', ["no", None], None),
        ('{"label": "other"}', [None, None], "invalid_answer"),
        ('["no"]', [None, None], "invalid_answer"),
        ("no", [None, None], "invalid_answer"),
    ],
)
def test_an_answer_that_is_no_label_is_a_failure(text: str, values: list[Any], code: str | None) -> None:
    read = label.read(choice(text), list(LABELS.meanings))
    assert read.values == values
    assert (read.failure and read.failure.code) == code


@pytest.mark.parametrize(
    ("content", "meanings", "instructions"),
    [
        ("- yes\n- no\n", {"yes": "", "no": ""}, ""),
        ("labels: [on, off]\ninstructions: Look.\n", {"on": "", "off": ""}, "Look."),
        ("labels:\n  good: well made\n  bad:\n", {"good": "well made", "bad": ""}, ""),
    ],
)
def test_labels_come_from_a_file(tmp_path: Path, content: str, meanings: dict[str, str], instructions: str) -> None:
    (tmp_path / "labels.yaml").write_text(content)
    assert label.load(str(tmp_path / "labels.yaml")) == label.Labels(meanings, instructions)


def test_labels_come_from_a_list() -> None:
    assert label.load("good, bad").meanings == {"good": "", "bad": ""}


@pytest.mark.parametrize(
    "content", ["", "- one\n", "labels: 3\n", "label: [a, b]\n", "[1, [2]]", "a: [", "labels: {a: [x], b: }\n"]
)
def test_a_file_without_labels_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "labels.yaml").write_text(content)
    with pytest.raises(InvalidRequest, match=r"labels\.yaml"):
        label.load(str(tmp_path / "labels.yaml"))


def token(text: str, chance: float, **others: float) -> dict[str, Any]:
    top = [{"token": each, "logprob": math.log(value)} for each, value in {text: chance, **others}.items()]
    return {"token": text, "logprob": math.log(chance), "bytes": list(text.encode()), "top_logprobs": top}


def test_a_confidence_is_the_share_among_the_labels() -> None:
    tokens = [token('{"label": "', 0.9), token("positive", 0.3, negative=0.1, no=0.1, Positive=0.5), token('"}', 0.01)]
    assert confidence.of("positive", list(LABELS.meanings), tokens) == 0.6


def test_a_label_of_several_tokens_is_told_apart_where_it_differs() -> None:
    tokens = [
        token('{"label": "', 1),
        token("n", 0.8, positive=0.2),
        token("o", 0.25, egative=0.75),
        token('"', 1),
        token("}", 1),
    ]
    assert confidence.of("no", list(LABELS.meanings), tokens) == 0.2


def test_one_label_spelt_in_two_ways_is_one_label() -> None:
    tokens = [token('{"label":"', 1), token("pos", 0.4, positive=0.4, negative=0.1, no=0.1), token('itive"}', 1)]
    assert confidence.of("positive", list(LABELS.meanings), tokens) == 0.8


def test_a_label_that_is_not_listed_may_be_as_likely_as_the_least() -> None:
    tokens = [token('{"label": "', 1), token("positive", 0.1, Yes=0.6, The=0.05), token('"}', 1)]
    assert confidence.of("positive", list(LABELS.meanings), tokens) == 0.5


def test_a_character_may_be_cut_by_tokens() -> None:
    pieces = [b'{"label": "gr', b"\xc3", b"\xbcn", b'"}']
    tokens = [{"token": "?", "logprob": 0.0, "bytes": list(piece), "top_logprobs": []} for piece in pieces]
    assert confidence.of("grün", ["grün", "blau"], tokens) == 1.0


def test_without_probabilities_there_is_no_confidence() -> None:
    assert confidence.of("no", ["no", "yes"], []) is None


@given(
    st.lists(st.lists(st.binary(min_size=1, max_size=20), max_size=3), max_size=30),
    st.integers(3, 10),
    st.integers(60, 200),
)
def test_parts_hold_every_row_once_and_keep_to_the_limits(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[bytes]], max_requests: int, max_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    cut = list(parts.cut(enumerate(rows, 1), folder, max_requests=max_requests, max_bytes=max_bytes))
    assert b"".join(part.path.read_bytes() for part in cut) == b"".join(line for row in rows for line in row)
    assert sum(part.requests for part in cut) == sum(map(len, rows))
    assert all(0 < part.requests <= max_requests and part.path.stat().st_size <= max_bytes for part in cut)
    begin = 0
    for part in cut:
        assert part.path.read_bytes() == b"".join(line for row in rows[begin : part.last_row] for line in row)
        begin = part.last_row
    assert all(not row for row in rows[begin:]) or not cut


def test_a_row_that_no_batch_holds_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="Row 2 has 1 requests of 11 bytes"):
        list(parts.cut([(1, [b"a"]), (2, [b"b" * 11])], tmp_path, max_requests=5, max_bytes=10))


def test_a_request_is_named_after_its_row() -> None:
    assert (custom_id(7, ""), custom_id(7, "de")) == ("row-7", "row-7-de")


def test_a_long_table_takes_little_memory(tmp_path: Path) -> None:
    """Rendered, cut, found again and written: of 20,000 rows (14 MB of requests) never more than a block is held."""
    table = texts(tmp_path / "a.jsonl", *(f"{number} " + "word " * 40 for number in range(20_000)))
    job = translating(table, ["de"])
    tracemalloc.start()
    try:
        cut = [
            part.last_row
            for part in parts.cut(runs.requests(table, job), tmp_path, max_requests=9_000, max_bytes=10**9)
        ]
        filled = writing.fill(table, 2, lambda _, row: [row[1], None])
        writing.write(table, tmp_path / "out.csv", job.added, filled)
        assert cut == [9_000, 18_000, 20_000]
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()

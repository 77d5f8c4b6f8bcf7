"""Runs of a preset against a server of a few lines: what is kept beside the output, and what changes under a run."""

import contextlib
import email
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from openai import APIConnectionError, BadRequestError, OpenAI
from openai.types import Batch, BatchRequestCounts

from client import joining, results, tables, watching
from client.presets import prompts, runs, state, translate
from client.presets.job import Job
from jobs.errors import InvalidRequest


class Server:
    """Batches that are done when they are made: each answer is the prompt, if it is not among the `rejected`."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.cancelled: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.rejected: set[str] = set()
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._by_key: dict[str, httpx2.Response] = {}
        self.refusal: httpx2.Response | None = None
        self.on_create: Callable[[], object] = lambda: None
        self.on_download: Callable[[], object] = lambda: None

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        answer: Any = None
        match request.method, request.url.path.removeprefix("/v1/").split("/"):
            case "POST", ["files"]:
                return self._upload(request)
            case "POST", ["batches"]:
                key = request.headers["idempotency-key"]
                if key not in self._by_key:
                    made = self._create(json.loads(request.content))
                    if made.is_error:
                        return made
                    self._by_key[key] = made
                return self._by_key[key]
            case "POST", ["batches", name, "cancel"] if name in self.batches:
                self.cancelled.append(name)
                answer = self.batches[name]
            case "GET", ["batches", name]:
                answer = self.batches.get(name)
            case "GET", ["files", name, "content"] if name in self.files:
                self.on_download()
                return httpx2.Response(200, content=self.files[name])
            case "GET", ["files", name] if name in self.files:
                answer = {"id": name, "bytes": len(self.files[name])}
        return httpx2.Response(200 if answer else 404, json=answer or {"error": {"message": "There is none."}})

    def _upload(self, request: httpx2.Request) -> httpx2.Response:
        head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
        parts = email.message_from_bytes(head + request.content).walk()
        name = f"file-{len(self.files)}"
        self.files[name] = next(part.get_payload(decode=True) for part in parts if part.get_filename())  # type: ignore[assignment]
        return httpx2.Response(200, json={"id": name, "object": "file"})

    def _create(self, asked: dict[str, Any]) -> httpx2.Response:
        self.on_create()
        if self.refusal:
            return self.refusal
        name = f"batch_{len(self.batches)}"
        self.asked.append(asked)
        rows = self._requests(asked["input_file_id"])
        good = [row for row in rows if _text(row) not in self.rejected]
        bad = [row for row in rows if row not in good]
        files = {
            "output_file_id": self._write(f"{name}-output", map(_answer, good)),
            "error_file_id": self._write(f"{name}-error", map(_failure, bad)),
        }
        self._rows[f"{name}-error"] = bad
        counts = {"total": len(rows), "completed": len(good), "failed": len(bad)}
        self.batches[name] = {"id": name, "status": "completed", "request_counts": counts, **files}
        return httpx2.Response(200, json=self.batches[name])

    def _requests(self, file_id: str) -> list[dict[str, Any]]:
        """Return what a file asks for: an error file, for what failed there."""
        return self._rows.get(file_id) or [json.loads(line) for line in self.files[file_id].splitlines()]

    def _write(self, name: str, lines: Iterable[dict[str, Any]]) -> str | None:
        self.files[name] = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        return name if self.files[name] else None


def _text(row: dict[str, Any]) -> str:
    return str(row["body"]["messages"][0]["content"])


def _failure(row: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": row["custom_id"], "response": None, "error": {"code": "rejected", "message": "No."}}


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    message = {"content": _text(row)}
    body = {"choices": [{"message": message, "finish_reason": "stop"}]}
    return {"custom_id": row["custom_id"], "response": {"status_code": 200, "body": body}, "error": None}


@pytest.fixture
def server() -> Server:
    return Server()


@contextlib.contextmanager
def connected(server: Callable[[httpx2.Request], httpx2.Response]) -> Iterator[OpenAI]:
    with (
        httpx2.Client(transport=httpx2.MockTransport(server)) as client,
        OpenAI(base_url="http://server/v1", api_key="k", http_client=client, max_retries=0) as made,
    ):
        yield made


@pytest.fixture
def sdk(server: Server) -> Iterator[OpenAI]:
    with connected(server) as made:
        yield made


def run(sdk: OpenAI, source: Path, out: Path) -> runs.Outcome:
    table = tables.open_table(source)

    def job(model: str) -> Job:
        return translate.job(table, "text", ["de"], model=model, prompt=prompts.template("{{ text }}", "prompt"))

    with state.locked(out):
        return runs.run(sdk, table, out, job, state.load(out) or state.new("m"), 2)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.csv"
    path.write_text("text\none\ntwo\nthree\n")
    return path


@pytest.mark.parametrize("now", ["text\nthree\ntwo\none\n", "text\none\ntwo\nthree\nfour\n", "text\none\n"])
@pytest.mark.parametrize("at_file", [1, 2])
def test_a_table_that_changes_under_its_run_is_not_answered_for_other_rows(
    sdk: OpenAI, server: Server, source: Path, tmp_path: Path, now: str, at_file: int
) -> None:
    seen: list[int] = []

    def change() -> None:
        seen.append(1)
        if len(seen) == at_file:
            source.write_text(now)

    server.on_download = change
    out = tmp_path / "b.csv"
    with pytest.raises(InvalidRequest, match="another input"):
        run(sdk, source, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "b.csv.promptmill"]
    # As it was, it goes on with the batches that it has.
    source.write_text("text\none\ntwo\nthree\n")
    assert run(sdk, source, out).batches == ["batch_0", "batch_1"]
    assert out.read_text() == "text,text_de,error\none,one,\ntwo,two,\nthree,three,\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "b.csv"]


def test_a_table_that_changes_while_its_batches_run_is_not_read(
    sdk: OpenAI, server: Server, source: Path, tmp_path: Path
) -> None:
    def change() -> None:
        if len(server.batches) == 1:
            source.write_text("text\nthree\ntwo\none\n")

    server.on_create = change
    with pytest.raises(InvalidRequest, match="another input"):
        run(sdk, source, tmp_path / "b.csv")
    assert not (tmp_path / "b.csv").exists()


@pytest.mark.parametrize("damage", [None, b"{", b'{"run": "\xff"}'])
def test_a_restart_forgets_a_run_whatever_is_left_of_it(
    sdk: OpenAI, server: Server, tmp_path: Path, damage: bytes | None
) -> None:
    out = tmp_path / "b.csv"
    made = [state.PartState("x", "batch_gone"), state.PartState("y", "batch_0"), state.PartState("z")]
    server.batches["batch_0"] = {"id": "batch_0", "status": "in_progress"}
    state.save(out, state.State("run", "m", made))
    if damage is not None:
        (state.folder(out) / "state.json").write_bytes(damage)
    with state.locked(out):
        runs.restart(sdk, out)
        assert state.load(out) is None
    assert server.cancelled == ([] if damage else ["batch_0"])
    assert list(tmp_path.iterdir()) == []


def test_after_a_refusal_the_corrected_command_begins_anew(
    sdk: OpenAI, server: Server, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b.csv"
    failed: dict[str, Any] = {"id": "batch_x", "status": "failed"}
    for status, answer in ((400, {"error": {"message": "No."}}), (200, failed)):
        server.refusal = httpx2.Response(status, json=answer)
        with pytest.raises((BadRequestError, InvalidRequest)):
            run(sdk, source, out)
        assert list(tmp_path.iterdir()) == [source]
        source.write_text("text\nother\n")
    server.refusal = None
    assert run(sdk, source, out).rows == 1


def test_after_a_refusal_batches_that_run_are_remembered(
    sdk: OpenAI, server: Server, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b.csv"

    def refuse() -> None:
        if server.batches:
            server.refusal = httpx2.Response(400, json={"error": {"message": "No."}})

    server.on_create = refuse
    with pytest.raises(BadRequestError):
        run(sdk, source, out)
    server.refusal, server.on_create = None, lambda: None
    assert run(sdk, source, out).batches == ["batch_0", "batch_1"]


def test_one_output_has_one_run_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "b.csv"
    with state.locked(out):
        with pytest.raises(InvalidRequest, match="is under way"), state.locked(out):
            pass
        state.save(out, state.new("m"))
    with state.locked(out):
        assert state.load(out), "what is remembered stays"
        state.forget(out)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def failed(sdk: OpenAI, server: Server, source: Path, tmp_path: Path) -> Path:
    """The output of a run that is finished, in which the second row of the first part and the second part failed."""
    server.rejected = {"two", "three"}
    out = tmp_path / "b.csv"
    outcome = run(sdk, source, out)
    assert (outcome.failed_rows, outcome.retryable_requests) == (2, 2)
    assert out.read_text() == "text,text_de,error\none,one,\ntwo,,rejected: No.\nthree,,rejected: No.\n"
    assert sorted(path.name for path in state.folder(out).iterdir()) == ["lock", "state.json"]
    kept = state.load(out)
    assert kept and (kept.finished, kept.failed_rows) == (True, 2)
    return out


ANSWERED = "text,text_de,error\none,one,\ntwo,two,\nthree,three,\n"


def test_what_failed_is_run_again_until_all_is_answered(
    sdk: OpenAI, server: Server, source: Path, failed: Path
) -> None:
    server.rejected = {"two"}
    outcome = run(sdk, source, failed)
    assert (outcome.failed_rows, outcome.batches) == (1, ["batch_0", "batch_2", "batch_1", "batch_3"])
    assert failed.read_text() == "text,text_de,error\none,one,\ntwo,,rejected: No.\nthree,three,\n"
    server.rejected = set()
    assert run(sdk, source, failed).batches == ["batch_0", "batch_2", "batch_4", "batch_1", "batch_3"]
    assert failed.read_text() == ANSWERED
    assert [each["input_file_id"] for each in server.asked[2:]] == ["batch_0-error", "batch_1-error", "batch_2-error"]
    assert server.asked[-1]["metadata"] == {"made_by": "promptmill", "out": "b.csv"}
    assert sorted(path.name for path in failed.parent.iterdir()) == ["a.csv", "b.csv"]


class Killed(BaseException):
    """Ends a run in the middle of a call."""


class Dying:
    """Passes calls on, and ends the run at one of them: before the server gets it, or before its answer is heard."""

    def __init__(self, server: Server, calls: int, *, done: bool) -> None:
        self._server, self._left, self._done = server, calls, done

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self._left -= 1
        if self._left >= 0:
            return self._server(request)
        if self._done:
            self._server(request)
        raise Killed


@pytest.mark.parametrize("done", [False, True])
def test_a_retry_that_is_killed_at_any_call_goes_on_and_submits_nothing_twice(
    server: Server, source: Path, failed: Path, done: bool
) -> None:
    server.rejected = set()
    before = (failed.read_bytes(), state.load(failed), dict(server.files), dict(server.batches))
    for calls in range(100):
        failed.write_bytes(before[0])
        assert before[1]
        state.save(failed, before[1])
        server.files, server.batches, server._by_key = dict(before[2]), dict(before[3]), {}
        with contextlib.suppress(Killed), connected(Dying(server, calls, done=done)) as sdk:
            run(sdk, source, failed)
            break
        with connected(server) as sdk:
            assert run(sdk, source, failed).batches == ["batch_0", "batch_2", "batch_1", "batch_3"]
        assert failed.read_text() == ANSWERED
        assert not state.folder(failed).exists()
    assert 10 < calls < 99


def test_nothing_is_run_again_for_another_table(sdk: OpenAI, server: Server, source: Path, failed: Path) -> None:
    source.write_text("text\none\ntwo\nthird\n")
    with pytest.raises(InvalidRequest, match=r"another input or other options.*--restart --force"):
        run(sdk, source, failed)
    assert len(server.batches) == 2
    kept = state.load(failed)
    assert kept and kept.finished


def test_nothing_is_submitted_for_rows_that_were_added_behind_a_finished_run(
    sdk: OpenAI, server: Server, source: Path, tmp_path: Path
) -> None:
    """Two rows fill a batch, so that the parts that there were are as they were."""
    source.write_text("text\none\ntwo\n")
    server.rejected = {"two"}
    out = tmp_path / "b.csv"
    assert run(sdk, source, out).failed_rows == 1
    source.write_text("text\none\ntwo\nthree\n")
    with pytest.raises(InvalidRequest, match="another input or other options"):
        run(sdk, source, out)
    assert len(server.batches) == 1
    kept = state.load(out)
    assert kept and kept.finished and len(kept.parts) == 1


def test_nothing_is_run_again_if_answers_are_gone(sdk: OpenAI, server: Server, source: Path, failed: Path) -> None:
    kept = server.files.pop("batch_0-output")
    with pytest.raises(InvalidRequest, match=r"batch_0-output, of the run for .* is not on the server"):
        run(sdk, source, failed)
    server.files["batch_0-output"] = kept
    del server.batches["batch_1"]
    with pytest.raises(InvalidRequest, match=r"batch_1, of the run for .* is not on the server.*--restart --force"):
        run(sdk, source, failed)
    assert len(server.asked) == 2


def test_a_retry_that_is_refused_can_be_asked_for_again(
    sdk: OpenAI, server: Server, source: Path, failed: Path
) -> None:
    no_worker: dict[str, Any] = {"id": "batch_x", "status": "failed"}
    for status, answer in ((400, {"error": {"message": "No."}}), (200, no_worker)):
        server.refusal = httpx2.Response(status, json=answer)
        with pytest.raises((BadRequestError, InvalidRequest)):
            run(sdk, source, failed)
        kept = state.load(failed)
        assert kept and kept.finished and not any(part.retries for part in kept.parts)
    server.refusal, server.rejected = None, set()
    run(sdk, source, failed)
    assert failed.read_text() == ANSWERED


def test_a_retry_of_which_one_part_runs_is_under_way(sdk: OpenAI, server: Server, source: Path, failed: Path) -> None:
    def refuse() -> None:
        if len(server.batches) == 3:
            server.refusal = httpx2.Response(400, json={"error": {"message": "No."}})

    server.on_create, server.rejected = refuse, set()
    with pytest.raises(BadRequestError):
        run(sdk, source, failed)
    kept = state.load(failed)
    assert kept and not kept.finished
    server.on_create, server.refusal = lambda: None, None
    assert run(sdk, source, failed).batches == ["batch_0", "batch_2", "batch_1", "batch_3"]


def test_a_restart_leaves_a_finished_run_to_the_new_one(sdk: OpenAI, server: Server, failed: Path) -> None:
    with state.locked(failed):
        runs.restart(sdk, failed)
        assert state.load(failed)
    assert server.cancelled == []


REQUEST = {"custom_id": "row-1", "body": {"messages": [{"content": "hello"}]}}
ENDED = Batch.construct(
    id="batch_0", error_file_id="errors", request_counts=BatchRequestCounts(total=3, completed=0, failed=3)
)


def test_failures_are_counted_whatever_their_words_hold(sdk: OpenAI, server: Server) -> None:
    words = "odd\u2028words\u2029of\u0085a model"
    lines = [{"custom_id": "a", "error": {"code": code, "message": words}} for code in ("rejected", "rejected", "x")]
    server.files["errors"] = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    assert results.failure_codes(sdk, ENDED) == {"rejected": 2, "x": 1}


def test_an_error_file_that_is_deleted_has_no_codes(sdk: OpenAI) -> None:
    assert results.failure_codes(sdk, ENDED) == {}


def joined(sdk: OpenAI, source: Path, out: Path, *, force: bool = False) -> dict[str, Any]:
    batch = sdk.batches.retrieve("batch_0")
    table = tables.open_table(source, encoding="cp1252", delimiter="|")
    return joining.download_joined(sdk, batch, table, "name", out, force=force, partial=False)


def test_a_join_reads_a_table_as_it_is_told_and_writes_over_nothing(
    sdk: OpenAI, server: Server, tmp_path: Path
) -> None:
    source, out = tmp_path / "a.csv", tmp_path / "b.csv"
    source.write_bytes("name|gr\xf6\xdfe\nrow-1|5\n".encode("cp1252"))
    server.files["out"] = msgspec.json.encode(_answer(REQUEST)) + b"\n"
    server.batches["batch_0"] = {"id": "batch_0", "status": "completed", "output_file_id": "out"}
    joined(sdk, source, out)
    made = "name|größe|answer|error\nrow-1|5|hello|\n"
    assert sorted(tmp_path.iterdir()) == [source, out]
    assert out.read_text(encoding="utf-8") == made
    with pytest.raises(InvalidRequest, match="is there already; --force"):
        joined(sdk, source, out)
    with pytest.raises(InvalidRequest, match="is the table that is read"):
        joined(sdk, source, source, force=True)
    out.write_text("old")
    joined(sdk, source, out, force=True)
    assert out.read_text(encoding="utf-8") == made


def test_a_join_that_was_killed_goes_on_with_what_it_has(sdk: OpenAI, server: Server, tmp_path: Path) -> None:
    source, out = tmp_path / "a.csv", tmp_path / "b.csv"
    source.write_text("name|n\nrow-1|1\nrow-2|2\n")
    server.files["out"] = msgspec.json.encode(_answer(REQUEST)) + b"\n"
    server.files["bad"] = msgspec.json.encode(_failure({"custom_id": "row-2"})) + b"\n"
    server.batches["batch_0"] = {
        "id": "batch_0",
        "status": "completed",
        "output_file_id": "out",
        "error_file_id": "bad",
    }
    downloads: list[int] = []

    def die() -> None:
        downloads.append(1)
        if len(downloads) == 2:
            raise Killed

    server.on_download = die
    with pytest.raises(Killed):
        joined(sdk, source, out)
    joined(sdk, source, out)
    assert len(downloads) == 3, "the output file came once, the error file at the second try"
    assert out.read_text() == "name|n|answer|error\nrow-1|1|hello|\nrow-2|2||rejected: No.\n"
    assert sorted(tmp_path.iterdir()) == [source, out]


def test_a_server_that_is_away_is_named_once(
    sdk: OpenAI, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.watching.POLL_SECONDS", 0)
    server.batches["batch_0"] = {"id": "batch_0", "status": "in_progress"}
    running = sdk.batches.retrieve("batch_0")
    away = iter([True] * 5 + [False])

    def answer(*_: object, **__: object) -> Batch:
        if next(away):
            raise APIConnectionError(request=httpx2.Request("GET", "http://server"))
        return Batch.construct(id="batch_0", status="completed")

    monkeypatch.setattr(sdk.batches, "retrieve", answer)
    clock = iter(range(0, 10_000, 3))
    watching.Watcher(sdk, [running], lambda *_: None, clock=lambda: float(next(clock))).run()
    assert capsys.readouterr().err.count("does not answer. It is asked again for 10 minutes.") == 1


def test_failures_of_a_batch_that_has_ended_are_read_once(sdk: OpenAI, server: Server) -> None:
    read: list[str] = []
    server.on_download = lambda: read.append("file")
    server.files["errors"] = msgspec.json.encode({"custom_id": "a", "error": {"code": "x", "message": ""}}) + b"\n"
    counts = {"total": 2, "completed": 0, "failed": 1}
    server.batches["batch_9"] = {"id": "batch_9", "status": "in_progress", "request_counts": counts}
    seen: list[str] = []

    def show(sight: watching.Sight, words: str) -> None:
        seen.append(words)
        server.batches["batch_9"] |= {"status": "completed"}

    ended = {"id": "batch_0", "status": "completed", "error_file_id": "errors"}
    server.batches["batch_0"] = server.batches["batch_9"] | ended
    both = [sdk.batches.retrieve("batch_0"), sdk.batches.retrieve("batch_9")]
    clock = iter(range(0, 10_000, 100))
    watcher = watching.Watcher(sdk, both, show, clock=lambda: float(next(clock)))
    watcher.run()
    assert len(seen) == 2 and seen[-1].endswith("(1 x)")
    assert len(read) == 1, "the running one has no error file here"

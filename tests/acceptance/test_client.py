"""The command line of clients, as it is installed, against real processes with the scripted engine.

Templates of our own make the prompt, and so the answer, what a cell says. F114: what a spreadsheet would run is neutral.
"""

import contextlib
import csv
import json
import os
import pty
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import services
from clients import User
from payloads import COMPLETIONS, jsonl, numbered, parse, request

# As the wheel installs it.


class Terminal:
    """A user of one project, in a folder of their own."""

    def __init__(self, stack: services.Stack, home: Path) -> None:
        self.home = home
        self.key = stack.key()
        self.user = User(stack, self.key)
        # The clients' variables only: what a server reads is not for them.
        self.env = {
            name: value for name, value in os.environ.items() if not name.startswith(("PROMPTMILL_", "OPENAI_"))
        }
        self.env |= {
            "OPENAI_BASE_URL": stack.base_url,
            "OPENAI_API_KEY": self.key,
            "XDG_CONFIG_HOME": str(home / "none"),
        }
        (home / "cell.txt").write_text("{{ text }}")

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([services.PROMPTMILL, *arguments], cwd=self.home, env=self.env | env, **pipes)

    def run(self, *arguments: str, ends: int = 0, **env: str) -> tuple[str, str]:
        with self.start(*arguments, **env) as process:
            out, err = process.communicate(timeout=120)
        assert process.returncode == ends, (out, err)
        assert "Traceback" not in err
        return out, err

    def json(self, *arguments: str, ends: int = 0, **env: str) -> Any:
        return json.loads(self.run(*arguments, "--json", ends=ends, **env)[0])

    def refused(self, *arguments: str, **env: str) -> str:
        """Run a command that fails; its one line on stderr is returned."""
        out, err = self.run(*arguments, ends=1, **env)
        assert out == ""
        (line,) = err.splitlines()
        return line.removeprefix("promptmill: ")

    def write(self, name: str, content: str | bytes) -> str:
        (self.home / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    def table(self, name: str) -> list[dict[str, str]]:
        with (self.home / name).open(newline="") as file:
            return list(csv.DictReader(file))

    def translate(self, source: str, out: str, *more: str) -> Sequence[str]:
        return ("translate", source, "--to", "de", "--prompt", "cell.txt", "--out", out, *more)


@pytest.fixture
def terminal(running: services.Stack, tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(running, tmp_path)
    yield made
    made.user.sdk.close()


CELLS = ["Hello", "REJECT", "", "=1+1", "Two\nlines", "-5"]


def test_a_csv_file_comes_back_with_its_rows_and_failures_marked(terminal: Terminal) -> None:
    with (terminal.home / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["id", "text", "@note"], *([number, cell, "+x"] for number, cell in enumerate(CELLS))]
        )
    options = ("--to", "de,fr", "--prompt", "cell.txt", "--column", "text", "--out", "b.csv", "--rows-per-batch", "4")
    ended = terminal.json("translate", "a.csv", *options, ends=3)
    assert (ended["rows"], ended["failed_rows"], ended["failures_by_code"]) == (6, 1, {"rejected": 2})
    # Two requests a row, none for the empty one: rows 1 to 3, 4 and 5, 6.
    assert len(ended["batches"]) == 3
    rows = terminal.table("b.csv")
    assert list(rows[0]) == ["id", "text", "'@note", "text_de", "text_fr", "error"]
    assert [row["id"] for row in rows] == [str(number) for number in range(6)]
    assert [row["text_de"] for row in rows] == [row["text_fr"] for row in rows]
    assert [row["text_de"] for row in rows] == ["Hello", "", "", "'=1+1", "Two\nlines", "-5"]
    assert {row["'@note"] for row in rows} == {"'+x"}
    failure = "rejected: The prompt asked to be refused."
    assert [row["error"] for row in rows] == ["", f"de: {failure}; fr: {failure}", "", "", "", ""]
    # What failed can be run again.
    assert sorted(path.name for path in terminal.home.iterdir()) == ["a.csv", "b.csv", "b.csv.promptmill", "cell.txt"]


def test_a_text_file_becomes_jsonl_and_progress_is_told_without_a_terminal(terminal: Terminal) -> None:
    terminal.write("a.txt", "one\n\n=two\n")
    out, err = terminal.run(*terminal.translate("a.txt", "b.jsonl"))
    assert out == "b.jsonl: 3 rows, 0 failed\n"
    assert "completed: 2/2 rows" in err
    rows = parse((terminal.home / "b.jsonl").read_bytes())
    assert [(row["text"], row["text_de"]) for row in rows] == [("one", "one"), ("", None), ("=two", "=two")]


def test_labels_of_a_parquet_file(terminal: Terminal) -> None:
    stamps = pa.array([1, 2, 3], pa.timestamp("ns"))
    pq.write_table(
        pa.table({"review": ["good", "odd", "bad"], "at": stamps, "label": [1, 2, 3]}), terminal.home / "a.parquet"
    )
    terminal.write("json.txt", '{"label": "{{ text }}"}')
    terminal.write("labels.yaml", "labels: {good: well made, bad: }\n")
    options = ("--column", "review", "--labels", "labels.yaml", "--prompt", "json.txt", "--out", "b.parquet")
    assert terminal.json("label", "a.parquet", *options, ends=3)["failures_by_code"] == {"invalid_answer": 1}
    made = pq.read_table(terminal.home / "b.parquet")
    assert made.schema.names == ["review", "at", "label", "label_2", "label_confidence", "error"]
    assert made.column("at").combine_chunks().equals(stamps)
    assert made.column("label_2").to_pylist() == ["good", None, "bad"]
    # The scripted engine has no probabilities.
    assert made.column("label_confidence").to_pylist() == [None, None, None]
    assert [bool(each) for each in made.column("error").to_pylist()] == [False, True, False]


def state(terminal: Terminal) -> dict[str, Any]:
    path = terminal.home / "b.csv.promptmill" / "state.json"
    return json.loads(path.read_text()) if path.exists() else {"parts": []}


def killed_while_it_watches(terminal: Terminal, number: signal.Signals, seconds: int) -> tuple[list[str], int]:
    """Start a run whose rows take a while, kill it, and return its batches and how it ended."""
    terminal.write("a.csv", "text\n" + f"SLEEP {seconds} x\n" * 10)
    with terminal.start(*terminal.translate("a.csv", "b.csv", "--rows-per-batch", "6")) as process:
        services.wait_until(lambda: len([part for part in state(terminal)["parts"] if part["batch"]]) == 2, "submitted")
        process.send_signal(number)
        process.communicate(timeout=60)
    assert not (terminal.home / "b.csv").exists()
    return [part["batch"] for part in state(terminal)["parts"]], process.returncode


def batches(terminal: Terminal) -> set[str]:
    return {batch.id for batch in terminal.user.sdk.batches.list()}


def test_a_run_that_was_killed_goes_on_and_submits_nothing_twice(terminal: Terminal) -> None:
    made, status = killed_while_it_watches(terminal, signal.SIGKILL, 4)
    assert status == -signal.SIGKILL
    # As if it had been killed between the server's answer and its note of it.
    path = terminal.home / "b.csv.promptmill" / "state.json"
    noted = state(terminal)
    noted["parts"][1]["batch"] = None
    path.write_text(json.dumps(noted))
    assert terminal.json(*terminal.translate("a.csv", "b.csv", "--resume", "--rows-per-batch", "6"))["batches"] == made
    assert batches(terminal) == set(made)
    assert [row["text_de"] for row in terminal.table("b.csv")] == ["SLEEP 4 x"] * 10
    assert not path.parent.exists()


def test_ctrl_c_says_what_goes_on_and_another_run_may_begin_instead(terminal: Terminal) -> None:
    made, status = killed_while_it_watches(terminal, signal.SIGINT, 300)
    assert status == 130
    terminal.write("a.csv", "text\nother\n")
    reason = terminal.run(*terminal.translate("a.csv", "b.csv"), ends=1)[1]
    assert "had another input or other options" in reason
    terminal.run(*terminal.translate("a.csv", "b.csv", "--restart"))
    assert [row["text_de"] for row in terminal.table("b.csv")] == ["other"]
    assert {terminal.user.wait(batch_id).status for batch_id in made} == {"cancelled"}
    assert "there already; --force" in terminal.refused(*terminal.translate("a.csv", "b.csv"))
    assert "no interrupted run" in terminal.refused(*terminal.translate("a.csv", "c.csv", "--resume"))


def test_what_failed_is_run_again_with_the_same_command(terminal: Terminal) -> None:
    """Cancelled, that is; what is refused again fails again. Killed on the way, the same command goes on."""
    go = terminal.home / "go"
    terminal.write("a.csv", f"text\none\nAWAIT {go} x\nREJECT\n")
    asked = terminal.translate("a.csv", "b.csv", "--window", "24h")
    with terminal.start(*asked) as process:
        services.wait_until(lambda: all_made(terminal), "submitted")
        (first,) = all_made(terminal)
        terminal.user.wait_for(
            first,
            lambda batch: bool(
                batch.request_counts and batch.request_counts.completed + batch.request_counts.failed == 2
            ),
        )
        terminal.user.sdk.batches.cancel(first)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 3, (out, err)
    assert "The same command with --retry-failed runs 2 failed requests again." in err
    assert [row["error"].partition(":")[0] for row in terminal.table("b.csv")] == ["", "batch_cancelled", "rejected"]
    assert "--force writes over it, --retry-failed runs again what failed" in terminal.refused(*asked)
    with terminal.start(*asked, "--retry-failed") as process:
        services.wait_until(lambda: len(all_made(terminal)) == 2, "submitted again")
        process.kill()
        process.communicate()
    go.touch()
    ended = terminal.json(*asked, "--retry-failed", ends=3)
    assert (ended["failures_by_code"], ended["retryable_requests"]) == ({"rejected": 1}, 1)
    assert [row["text_de"] for row in terminal.table("b.csv")] == ["one", f"AWAIT {go} x", ""]
    assert set(ended["batches"]) == batches(terminal)
    again = terminal.user.sdk.batches.retrieve(ended["batches"][1])
    assert again.metadata == {"made_by": "promptmill", "out": "b.csv", "retry_of": first}
    # A new run forgets the one before.
    terminal.write("a.csv", "text\nother\n")
    terminal.run(*asked, "--force")
    assert "nothing to run again" in terminal.refused(*asked, "--retry-failed")


def all_made(terminal: Terminal) -> list[str]:
    """Return the batches of the one part."""
    return [batch for part in state(terminal)["parts"] for batch in (part["batch"], *part["retries"]) if batch]


def test_a_table_without_any_text_needs_no_batch(terminal: Terminal) -> None:
    terminal.write("a.csv", 'id,text\n1,\n2," "\n')
    assert terminal.json(*terminal.translate("a.csv", "b.csv", "--column", "text"))["batches"] == []
    assert [row["id"] for row in terminal.table("b.csv")] == ["1", "2"]


def test_a_batch_that_is_refused_is_asked_for_again_later(terminal: Terminal, running: services.Stack) -> None:
    """And says what keeps each of its lines from running once."""
    terminal.write("a.csv", "text\nx\ny\n")
    asked = terminal.translate("a.csv", "b.csv", "--model", "nobody")
    said = terminal.refused(*asked)
    assert "2 problems: model_not_found: The provided model 'nobody'" in said
    assert said.count("model_not_found") == 1
    first = batches(terminal)
    terminal.run(*asked, ends=1)
    assert len(batches(terminal)) == 2
    assert first < batches(terminal)


@pytest.mark.parametrize(
    ("name", "content", "more", "reason"),
    [
        ("a.csv", "id,text\n1,a\n2,b,c\n", ("--column", "text"), "a.csv, line 3 has 3 cells, the header has 2."),
        ("a.csv", "id,text\n1,a\n", (), "Which column? Name it with --column; it has: id, text."),
        ("a.csv", "id,text\n1,a\n", ("--column", "txt"), "a.csv has no column txt; it has: id, text."),
        ("a.jsonl", '{"text": "a"}\nnope\n', (), "a.jsonl, line 2 is no JSON object"),
        ("a.xlsx", "PK", (), "What is a.xlsx?"),
    ],
)
def test_bad_input_is_named_with_its_line(
    terminal: Terminal, name: str, content: str, more: Sequence[str], reason: str
) -> None:
    assert reason in terminal.refused(*terminal.translate(terminal.write(name, content), "b.csv", *more))
    assert batches(terminal) == set()


def test_a_batch_from_submit_to_retry(terminal: Terminal) -> None:
    terminal.write("r.jsonl", numbered(5, lambda number: "REJECT" if number == 3 else f"text {number}"))
    made = terminal.json("submit", "r.jsonl", "--metadata", "team=a", "--wait", ends=3)
    batch_id = made["id"]
    assert (made["status"], made["metadata"], made["failures_by_code"]) == ("completed", {"team": "a"}, {"rejected": 1})
    assert terminal.json("status", batch_id)["failures_by_code"] == {"rejected": 1}
    assert [each["id"] for each in terminal.json("status")] == [batch_id]
    assert batch_id in terminal.run("status")[0]
    out, _ = terminal.run("watch", batch_id, ends=3)
    assert "1 x rejected" in out
    again = terminal.json("retry", batch_id, "--wait", ends=3)
    assert again["request_counts"]["total"] == 1
    assert again["metadata"] == {"retry_of": batch_id}
    got = terminal.json("download", batch_id)
    assert [row["custom_id"] for row in parse((terminal.home / got["output"]).read_bytes())] == [
        f"row-{n}" for n in (0, 1, 2, 4)
    ]
    assert [row["custom_id"] for row in parse((terminal.home / got["errors"]).read_bytes())] == ["row-3"]
    assert "Cannot cancel a batch with status 'completed'" in terminal.refused("cancel", batch_id)
    assert "No batch found with id 'batch_x'" in terminal.refused("status", "batch_x")


def seen_on_a_terminal(terminal: Terminal, *arguments: str) -> str:
    """Run a command whose stderr is a terminal; return what was drawn on it."""
    ours, theirs = pty.openpty()
    env = terminal.env | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    with subprocess.Popen([services.PROMPTMILL, *arguments], env=env, stdout=subprocess.DEVNULL, stderr=theirs):
        os.close(theirs)
        drawn = b""
        # Linux says EIO when the other side is closed.
        with contextlib.suppress(OSError):
            while data := os.read(ours, 65_536):
                drawn += data
    os.close(ours)
    return drawn.decode()


def test_on_a_terminal_a_bar_shows_how_far_it_is(terminal: Terminal) -> None:
    # The last of them ends after the command has looked at least once.
    batch = terminal.user.submit(numbered(6, lambda number: f"SLEEP {number + 1}" if number < 5 else "REJECT"))
    drawn = seen_on_a_terminal(terminal, "watch", batch.id)
    assert "━" in drawn
    assert "6/6 rows" in drawn
    assert "1 failed (1 rejected)" in drawn


def test_a_batch_that_runs_is_cancelled_and_read_before_its_end(terminal: Terminal) -> None:
    terminal.write("r.jsonl", numbered(20, lambda number: "SLEEP 300" if number else "now"))
    batch_id = terminal.json("submit", "r.jsonl")["id"]
    terminal.user.wait_for(batch_id, lambda batch: bool(batch.request_counts and batch.request_counts.completed))
    assert "is in_progress. Wait for it" in terminal.refused("download", batch_id)
    assert terminal.json("download", batch_id, "--partial", "--out", "part.jsonl") == {
        "batch": batch_id,
        "output": "part.jsonl",
    }
    assert len(parse((terminal.home / "part.jsonl").read_bytes())) == 1
    assert "has not ended" in terminal.refused("retry", batch_id)
    assert terminal.json("cancel", batch_id)["status"] in ("cancelling", "cancelled")
    assert terminal.json("watch", batch_id, ends=3)["failures_by_code"] == {"batch_cancelled": 19}


def test_a_download_goes_on_where_it_broke_off(terminal: Terminal) -> None:
    batch = terminal.user.wait(terminal.user.submit(numbered(50)).id)
    content = terminal.user.sdk.files.content(str(batch.output_file_id)).content
    # What is there is not asked for again: so these bytes stay.
    (terminal.home / f".out.jsonl.{batch.output_file_id}.part").write_bytes(b"#" * 1_000)
    terminal.run("download", batch.id, "--out", "out.jsonl")
    assert (terminal.home / "out.jsonl").read_bytes() == b"#" * 1_000 + content[1_000:]
    # More than the file has is not of this file.
    (terminal.home / f".out.jsonl.{batch.output_file_id}.part").write_bytes(b"#" * (len(content) + 1))
    assert "is there already; --force" in terminal.refused("download", batch.id, "--out", "out.jsonl")
    terminal.run("download", batch.id, "--out", "out.jsonl", "--force")
    assert (terminal.home / "out.jsonl").read_bytes() == content
    assert sorted(path.name for path in terminal.home.iterdir()) == ["cell.txt", "out.jsonl"]


class CuttingProxy:
    """Passes bytes on, and counts them; the first connections are cut when `limit` bytes have come back."""

    def __init__(self, port: int, cuts: int, limit: int) -> None:
        self.received = 0
        self._target, self._cuts, self._limit = port, cuts, limit
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"

    def __enter__(self) -> "CuttingProxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # Wakes up `accept`, which a mere close would not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                inside, _ = self._listener.accept()
                limit = self._limit if self._cuts > 0 else 1 << 40
                self._cuts -= 1
                threading.Thread(target=self._serve, args=(inside, limit), daemon=True).start()

    def _serve(self, inside: socket.socket, limit: int) -> None:
        with inside, socket.create_connection(("127.0.0.1", self._target)) as outside:
            upwards = threading.Thread(target=self._pump, args=(inside, outside, 1 << 40), daemon=True)
            upwards.start()
            self._pump(outside, inside, limit)
            for each in (inside, outside):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            upwards.join()

    def _pump(self, source: socket.socket, target: socket.socket, limit: int) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while passed < limit and (data := source.recv(min(65_536, limit - passed))):
                passed += len(data)
                self.received += len(data)
                target.sendall(data)


def test_a_download_that_is_cut_again_and_again_gets_every_byte_once(
    terminal: Terminal, running: services.Stack
) -> None:
    batch = terminal.user.wait(terminal.user.submit(numbered(800)).id)
    content = terminal.user.sdk.files.content(str(batch.output_file_id)).content
    with CuttingProxy(running.port, cuts=3, limit=100_000) as proxy:
        terminal.run("download", batch.id, "--out", "out.jsonl", OPENAI_BASE_URL=proxy.base_url)
    assert (terminal.home / "out.jsonl").read_bytes() == content
    assert proxy._cuts < 0
    # What the client sends counts too: some kilobytes.
    assert len(content) < proxy.received < 1.3 * len(content)


def test_a_join_whose_download_is_killed_goes_on_from_its_last_byte(
    terminal: Terminal, running: services.Stack
) -> None:
    batch = terminal.user.wait(terminal.user.submit(numbered(800)).id)
    size = len(terminal.user.sdk.files.content(str(batch.output_file_id)).content)
    terminal.write("a.csv", "name\nrow-799\n")
    asked = ("download", batch.id, "--join", "a.csv", "--key", "name", "--out", "b.csv")
    part = terminal.home / f".b.csv.{batch.id}" / f".output.jsonl.{batch.output_file_id}.part"
    # Cut each time, so that it waits longer and longer before it goes on.
    with (
        CuttingProxy(running.port, cuts=100, limit=60_000) as proxy,
        terminal.start(*asked, OPENAI_BASE_URL=proxy.base_url) as process,
    ):
        services.wait_until(lambda: part.exists() and part.stat().st_size, "the first bytes")
        process.kill()
        process.communicate()
    have = part.stat().st_size
    with CuttingProxy(running.port, cuts=0, limit=0) as proxy:
        terminal.run(*asked, OPENAI_BASE_URL=proxy.base_url)
    assert 0 < have < size
    # What the client sends counts too, and what is beside the file: some kilobytes.
    assert proxy.received < size - have + 0.2 * size
    assert terminal.table("b.csv")[0]["answer"]
    assert sorted(path.name for path in terminal.home.iterdir()) == ["a.csv", "b.csv", "cell.txt"]


def test_results_are_joined_to_the_table_that_they_came_from(terminal: Terminal) -> None:
    batch = terminal.user.wait(terminal.user.submit(numbered(3, lambda n: "REJECT" if n == 1 else f"=text {n}")).id)
    terminal.write("a.csv", "name,n\nrow-2,2\nrow-0,0\nrow-1,1\nrow-9,9\n")
    terminal.run("download", batch.id, "--join", "a.csv", "--key", "name", "--out", "b.csv")
    rows = terminal.table("b.csv")
    assert [(row["n"], row["answer"], row["error"].partition(":")[0]) for row in rows] == [
        ("2", "'=text 2", ""),
        ("0", "'=text 0", ""),
        ("1", "", "rejected"),
        ("9", "", "no_result"),
    ]
    terminal.run("download", batch.id, "--join", "a.csv", "--key", "name", "--out", "b.parquet")
    assert pq.read_table(terminal.home / "b.parquet").column("answer").to_pylist()[0] == "=text 2"
    assert "has no column id" in terminal.refused("download", batch.id, "--join", "a.csv", "--key", "id")
    terminal.run("download", batch.id, "--join", "a.csv", ends=2)


BAD_LINES = [
    jsonl([request("a")]),
    b"{nope}\n",
    jsonl([{"custom_id": "b"}, request("a"), {**request("c"), "url": COMPLETIONS}, request("d", stream=True)]),
    jsonl([{**request("e"), "method": "GET"}, {"custom_id": 1, "method": "POST", "url": "x", "body": {}}]),
    jsonl([{"custom_id": "f", "method": "POST", "url": COMPLETIONS, "body": {"model": "scripted"}}]),
    b'{"custom_id": "g", "custom_id": "h"}\n\n\xff\n',
    jsonl([{**request("i"), "body": {"model": "scripted", "messages": []}}, request("j" * 600)]),
]


def test_validate_finds_what_the_server_finds(terminal: Terminal) -> None:
    terminal.write("r.jsonl", b"".join(BAD_LINES))
    found = terminal.json("validate", "r.jsonl", ends=1, OPENAI_BASE_URL="http://127.0.0.1:1")
    batch = terminal.user.submit(b"".join(BAD_LINES))
    assert batch.errors and batch.errors.data
    assert found["problems"] == [problem.model_dump() for problem in batch.errors.data]
    assert len(found["problems"]) == 12
    assert "r.jsonl:2: invalid_json_line: This line" in terminal.run("validate", "r.jsonl", ends=1)[0]
    terminal.write("good.jsonl", numbered(2))
    assert terminal.run("validate", "good.jsonl")[0] == "2 requests, 0 problems\n"


def test_a_dry_run_needs_no_server_and_leaves_nothing(terminal: Terminal) -> None:
    terminal.write("a.csv", "text\none\ntwo\n")
    asked = ("translate", "a.csv", "--to", "de,fr", "--out", "b.csv", "--model", "m", "--dry-run")
    made = terminal.json(*asked, "--profile", "gemma-3-27b-it/h100-bf16", OPENAI_BASE_URL="")
    assert (made["model"], made["rows"], made["requests"], made["answer_tokens"]) == ("m", 2, 4, 4 * 65)
    assert made["seconds"] == pytest.approx(4 * 65 / 1_657)
    said = terminal.run(*asked, OPENAI_BASE_URL="")[0]
    assert said.endswith("without notes and without quotation marks around it.\n\none\n")
    assert sorted(path.name for path in terminal.home.iterdir()) == ["a.csv", "cell.txt"]


def test_estimate_says_rows_tokens_and_time(terminal: Terminal) -> None:
    terminal.write("r.jsonl", jsonl(request(f"row-{n}", "x" * 40, max_tokens=100) for n in range(10)))
    made = terminal.json("estimate", "r.jsonl", "--profile", "gemma-3-27b-it/h100-fp8")
    assert (made["rows"], made["input_tokens"], made["answer_tokens"]) == (10, 150, 1_000)
    assert made["seconds"] == pytest.approx(1_000 / 3_228)
    assert made["rows_at_once"] > 100
    said = terminal.run("estimate", "r.jsonl", "--profile", "gemma-3-27b-it/h100-fp8")[0]
    assert "at the rate measured for paragraphs to translate; long prompts or schemas take longer" in said
    assert (
        "not known: nothing was measured"
        in terminal.run("estimate", "r.jsonl", "--profile", "gemma-3-27b-it/h200-bf16")[0]
    )


def test_doctor_looks_at_everything_and_says_how_to_mend_it(terminal: Terminal, running: services.Stack) -> None:
    servers = {"PROMPTMILL_DATABASE_URL": running.database_url, "PROMPTMILL_REDIS_URL": running.redis_url}
    found = {each["name"]: each for each in terminal.json("doctor", ends=0, **servers)}
    assert {"API", "models", "Postgres", "durability", "tables", "engine", "Redis", "GPU", "disk"} == set(found)
    assert all(found[name]["state"] == "ok" for name in ("API", "models", "Postgres", "tables", "engine", "Redis"))
    assert found["engine"]["found"] == "scripted: scripted"
    away = {"PROMPTMILL_REDIS_URL": "redis://127.0.0.1:1/0", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}
    bad = {each["name"]: each for each in terminal.json("doctor", ends=1, **servers | away)}
    assert {name for name, each in bad.items() if each["state"] == "bad"} == {"API", "Redis"}
    assert all(each["mend"] for each in bad.values() if each["state"] == "bad")
    assert "skipped" in terminal.run("doctor")[0]


def done(terminal: Terminal) -> str:
    return terminal.user.wait(terminal.user.submit(numbered(1)).id).id


def test_errors_are_one_line_with_the_cause(terminal: Terminal) -> None:
    assert "does not answer" in terminal.refused("status", OPENAI_BASE_URL="http://127.0.0.1:1/v1")
    assert terminal.refused("status", OPENAI_API_KEY="pm_wrong").startswith("Incorrect API key provided. (status 401")
    assert "Which server?" in terminal.refused("status", OPENAI_BASE_URL="")
    assert "No such file or directory: 'no/" in terminal.refused("download", done(terminal), "--out", "no/out.jsonl")
    terminal.run("status", "--limit", "0", ends=2)
    terminal.run("translate", "nowhere.csv", "--to", "de", "--out", "b.csv", ends=2)


def test_a_config_file_names_the_server(terminal: Terminal, running: services.Stack) -> None:
    (terminal.home / "promptmill").mkdir()
    (terminal.home / "promptmill" / "config.toml").write_text(
        f'base_url = "{running.base_url}"\napi_key = "{terminal.key}"\n'
    )
    assert terminal.json("status", OPENAI_BASE_URL="", OPENAI_API_KEY="", XDG_CONFIG_HOME=str(terminal.home)) == []


def test_a_shell_completes_commands(terminal: Terminal) -> None:
    out, _ = terminal.run(_PROMPTMILL_COMPLETE="complete_bash", COMP_WORDS="promptmill tr", COMP_CWORD="1")
    assert out.split() == ["translate"]

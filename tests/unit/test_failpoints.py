"""Every commit, publish, fsync, rename and submit of the product has a failpoint, and none does anything by itself."""

import ast
import os
import subprocess
import sys

import failpoint_scan
import pytest
from failpoint_scan import Module

from jobs import failpoints
from jobs.errors import Unavailable

BARE = {
    "with db.transaction(engine) as connection:\n    pass": "transaction without a point",
    "transaction(engine)": "transaction without a point",
    "db.retrying(engine, work)": "retrying without a point",
    "open_one = db.transaction": "transaction without a point",
    "db.retrying(engine, work, point=name)": "the point is neither a literal nor handed on",
    'db.retrying(engine, work, point=f"{name}")': "the point is neither a literal nor handed on",
    "connection.commit()": "commit without a failpoint",
    "with engine.begin():\n    pass": "begin without failpoints",
    'with engine.begin():\n    failpoint("a")': "begin without failpoints",
    'psycopg.connect(url, autocommit=True).execute("DROP TABLE a")': "connect without a failpoint",
    'failpoint("a")\nos.fsync(1)': "fsync without a failpoint",
    'os.fsync(1)\nfailpoint("a")': "fsync without a failpoint",
    "os.rename(a, b)": "rename without a failpoint",
    "os.replace(a, b)": "replace without a failpoint",
    "path.rename(other)": "rename without a failpoint",
    "path.replace(other)": "replace without a failpoint",
    "celery.send_task(name)": "send_task without a failpoint",
    "task.apply_async()": "apply_async without a failpoint",
    "await endpoints.run(engine, endpoint, body)": "run without a failpoint",
    'failpoint("a")\nfailpoint("a")': "a is there twice",
}
WHOLE = [
    'with db.transaction(engine, point="a") as connection:\n    pass',
    "db.retrying(engine, work, point=point)",
    'partial(db.retrying, engine, work, point="a")',
    "with db.reading(engine) as connection:\n    pass",
    'failpoint("a")\nos.fsync(1)\nfailpoint("b")',
    'with engine.begin():\n    failpoint("a")\nfailpoint("b")',
    'text.replace("a", "b")',
    "moment.replace(tzinfo=None)",
    "dataclasses.replace(call, is_retry=False)",
]


def module(code: str) -> Module:
    body = "\n".join(f"    {line}" for line in code.splitlines())
    return Module("a.py", ast.parse(f"async def function():\n{body}"))


def test_nothing_is_committed_or_sent_without_a_failpoint() -> None:
    assert failpoint_scan.problems(failpoint_scan.product()) == []


@pytest.mark.parametrize("path", failpoint_scan.EXCUSED)
def test_as_many_are_excused_as_there_are(path: str) -> None:
    (found,) = (each for each in failpoint_scan.product() if each.path == path)
    count, _ = failpoint_scan.EXCUSED[path]
    bare = list(failpoint_scan.bare(found))
    assert len(bare) == count
    assert all("commit without" in problem for problem in bare)


@pytest.mark.parametrize("code", BARE)
def test_what_lacks_a_failpoint_is_found(code: str) -> None:
    assert any(BARE[code] in problem for problem in failpoint_scan.problems([module(code)]))


@pytest.mark.parametrize("code", WHOLE)
def test_what_has_its_failpoints_or_needs_none_is_let_be(code: str) -> None:
    assert failpoint_scan.problems([module(code)]) == []


def test_the_helpers_that_commit_are_known() -> None:
    assert {"transaction", "retrying"} <= failpoint_scan.committing()


def test_each_failpoint_is_found_with_the_processes_that_reach_it() -> None:
    found = failpoint_scan.places()
    assert {("api", "create_batch.after_commit"), ("worker", "run_row.before_submit")} <= set(found)
    assert {process for process, name in found if name == "send_hint.after_publish"} == {"api", "reconciler"}
    assert len(found) == len(set(found))


def test_without_the_variable_nothing_is_armed() -> None:
    assert failpoints.armed is None
    failpoints.failpoint("anything")


def test_an_armed_failpoint_acts_once_at_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "armed", failpoints.parse("here:raise:2"))
    failpoints.failpoint("there")
    failpoints.failpoint("here")
    with pytest.raises(Unavailable):
        failpoints.failpoint("here")
    failpoints.failpoint("here")


@pytest.mark.parametrize("value", ["here", "here:explode", "here:raise:often"])
def test_a_value_that_says_nothing_is_refused(value: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        failpoints.parse(value)


def test_the_environment_decides_when_the_process_starts() -> None:
    code = "from jobs.failpoints import failpoint; failpoint('there'); failpoint('here'); print('alive')"
    variable = {failpoints.VARIABLE: "here:kill9"}
    killed = subprocess.run(
        [sys.executable, "-c", code], check=False, env={**os.environ, **variable}, capture_output=True
    )
    assert (killed.returncode, killed.stdout) == (-9, b"")

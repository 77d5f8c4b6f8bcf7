"""Finds the failpoints of the source, and what should have one and has none."""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("jobs", "api", "workers", "migrations")
# What makes something durable or sends it away; a failpoint stands before it and behind it.
DURABLE = {"commit", "fsync", "fdatasync", "rename", "renames", "send_task", "apply_async"}
# Commits without failpoints, and why: a file, how many, what they make durable.
EXCUSED = {"migrations/env.py": (1, "nothing: it ends the transaction in which time-outs of the session were set")}
# The processes that reach the points of a file; the longest beginning of its path counts.
PROCESSES = {
    "api/": ("api",),
    "api/admin.py": ("command",),
    "api/stack/": ("stack",),
    "workers/": ("worker",),
    "workers/reconciler.py": ("reconciler",),
    "workers/courier.py": ("reconciler",),
    "jobs/": ("api",),
    "jobs/dispatch.py": ("api", "reconciler"),
    # None that lasts. `promptmill migrate` is killed in tests of its own: integration/test_migrations.py, test_upgrades.py.
    "migrations/": (),
}


@dataclass(frozen=True)
class Module:
    """A file of the product."""

    path: str
    tree: ast.Module


def product() -> list[Module]:
    found = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return [Module(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())) for path in found]


def committing() -> set[str]:
    """Return the helpers that commit: the functions of `jobs.db` with a `point`. Each mention of one names it."""
    tree = ast.parse((ROOT / "jobs" / "db.py").read_text())
    functions = [each for each in tree.body if isinstance(each, ast.FunctionDef)]
    return {each.name for each in functions if "point" in {arg.arg for arg in each.args.args + each.args.kwonlyargs}}


def names(module: Module) -> Iterator[str]:
    """Yield the names of the failpoints in a file, as often as they stand there."""
    for call in _calls(module.tree):
        if _called(call) == "failpoint" and call.args and isinstance(call.args[0], ast.Constant):
            yield str(call.args[0].value)
        point = _point(call)
        if isinstance(point, ast.Constant) and isinstance(point.value, str):
            yield from (f"{point.value}.before_commit", f"{point.value}.after_commit")


def places() -> list[tuple[str, str]]:
    """Return each process with each failpoint that it reaches."""
    return [(process, name) for module in product() for name in names(module) for process in _processes(module.path)]


def _processes(path: str) -> tuple[str, ...]:
    return PROCESSES[max((start for start in PROCESSES if path.startswith(start)), key=len)]


def problems(modules: list[Module]) -> list[str]:
    """Say what has no failpoint, or one that cannot be found or told from another."""
    twice = [name for name, count in Counter(name for each in modules for name in names(each)).items() if count > 1]
    return [f"{name} is there twice" for name in twice] + [each for module in modules for each in _problems(module)]


def _problems(module: Module) -> Iterator[str]:
    named = [call for call in _calls(module.tree) if _point(call) is not None]
    with_point = {id(part) for call in named for part in (call.func, *call.args)}
    for call in named:
        point = _point(call)
        if not (isinstance(point, ast.Constant) or (isinstance(point, ast.Name) and point.id == "point")):
            yield f"{module.path}:{call.lineno}: the point is neither a literal nor handed on"
    helpers = committing()
    for node in _mentions(module.tree):
        if _name(node) in helpers and id(node) not in with_point:
            yield f"{module.path}:{node.lineno}: {_name(node)} without a point"
    yield from islice(bare(module), EXCUSED.get(module.path, (0, ""))[0], None)


def bare(module: Module) -> Iterator[str]:
    """Say what commits, sends or renames without failpoints, excused or not."""
    for function in ast.walk(module.tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _bare(module.path, function)


def _mentions(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield the names by themselves, and those of `jobs.db`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) or (isinstance(node, ast.Attribute) and _name(node.value) == "db"):
            yield node


def _bare(path: str, function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    calls = list(_calls(function))
    points = [call.lineno for call in calls if _called(call) == "failpoint"]
    for call in calls:
        before, behind = (sum(at < call.lineno for at in points), sum(at > call.lineno for at in points))
        if _called(call) == "begin" and behind < 2:
            yield f"{path}:{call.lineno}: begin without failpoints around its commit"
        elif _is_durable(call) and not (before and behind):
            yield f"{path}:{call.lineno}: {_called(call)} without a failpoint before it and one behind it"


def _is_durable(call: ast.Call) -> bool:
    name = _called(call)
    # `Path.replace` and `os.replace`, and not those of strings (two or three), datetimes or dataclasses (by name).
    replaces = name == "replace" and not call.keywords and (len(call.args) == 1 or _is_of(call, "os"))
    commits_by_itself = any(
        each.arg == "autocommit" and isinstance(each.value, ast.Constant) and each.value.value for each in call.keywords
    )
    return name in DURABLE or replaces or commits_by_itself or (name == "run" and _is_of(call, "endpoints"))


def _is_of(call: ast.Call, module: str) -> bool:
    return isinstance(call.func, ast.Attribute) and _name(call.func.value) == module


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _point(call: ast.Call) -> ast.expr | None:
    return next((each.value for each in call.keywords if each.arg == "point"), None)


def _called(call: ast.Call) -> str | None:
    return _name(call.func)


def _name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None

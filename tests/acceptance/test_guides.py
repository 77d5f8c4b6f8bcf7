"""The commands of the pages of `documented.RUN`, as they stand there; and the presets with a real model."""

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import documented
import pytest
import services
from clients import User
from conftest import ROOT
from payloads import numbered

MODEL = "smollm2-135m-instruct"
# Some rows failed: the scripted engine says what it was asked, which is no label.
FINE = "trap 'status=$?; [ $status = 3 ] || exit $status' ERR\n"


def shell(stack: services.Stack, home: Path, script: str) -> str:
    """Run a script as a user does, in a folder with the examples; return what it printed."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("PROMPTMILL_", "OPENAI_"))}
    env = {**bare, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "XDG_CONFIG_HOME": str(home)}
    env |= {"OPENAI_BASE_URL": stack.base_url, "OPENAI_API_KEY": stack.key("guides")}
    ended = subprocess.run(
        ["bash", "-c", FINE + script], check=False, cwd=home, env=env, capture_output=True, text=True, timeout=200
    )
    assert ended.returncode in (0, 3), (script, ended.stdout, ended.stderr)
    return ended.stdout


def started(stack: services.Stack) -> services.Stack:
    stack.api()
    stack.reconciler()
    stack.worker()
    return stack


def fresh(
    servers: services.Servers, template: str, home: Path, settings: Mapping[str, str]
) -> Iterator[services.Stack]:
    (home / "stack").mkdir()
    shutil.copytree(ROOT / "examples", home / "examples")
    with services.fresh_stack(servers, template, home / "stack", settings) as stack:
        yield started(stack)


@pytest.fixture
def scripted(servers: services.Servers, template: str, tmp_path: Path) -> Iterator[services.Stack]:
    settings = {"PROMPTMILL_WORKER__ENGINE": "scripted", "PROMPTMILL_WORKER__SCRIPTED_MODELS": f'["{MODEL}"]'}
    yield from fresh(servers, template, tmp_path, settings)


@pytest.fixture
def real(servers: services.Servers, template: str, tmp_path: Path) -> Iterator[services.Stack]:
    settings = {**services.LONG_LEASES, "PROMPTMILL_WORKER__ENGINE": "llamacpp"}
    yield from fresh(servers, template, tmp_path, settings)


# What a page leaves behind in its folder.
MADE = {
    "docs/quickstart.md": ("translated.csv", "labelled.csv", "mine.csv"),
    "docs/cli.md": ("results.jsonl", "joined.csv"),
    "docs/guides/translate.md": ("translated.csv", "a1.jsonl"),
    "docs/guides/label.md": ("short.csv", "labelled.csv", "labelled.parquet"),
    "docs/gemma.md": ("gemma.csv", "gemma-labels.csv"),
}


# Two dozen commands, each a process that imports its libraries.
@pytest.mark.timeout(600)
def test_the_commands_of_the_pages_run(scripted: services.Stack, tmp_path: Path) -> None:
    """Each page's in a folder with the examples, as its reader has them."""
    user = User(scripted, scripted.key("guides"))
    batch = user.wait(user.submit(numbered(3).replace(b'"scripted"', f'"{MODEL}"'.encode())).id)
    for page in documented.RUN:
        folder = tmp_path / Path(page).stem
        shutil.copytree(ROOT / "examples", folder / "examples")
        for block in documented.runnable(page):
            shell(scripted, folder, block.replace("batch_abc", batch.id).replace(".venv/bin/", ""))
        for name in MADE[page]:
            assert (folder / name).stat().st_size, (page, name)
    user.sdk.close()


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_real_model_fills_the_columns(real: services.Stack, tmp_path: Path) -> None:
    """SmolLM2 labels passably and cannot translate: something is said, a label is a label, and it knows how sure it is."""
    shell(real, tmp_path, "head -3 examples/texts.csv > texts.csv; head -4 examples/reviews.csv > reviews.csv")
    shell(real, tmp_path, "promptmill translate texts.csv --column text --to de,fr --out translated.csv")
    for row in rows(tmp_path / "translated.csv"):
        for language in ("de", "fr"):
            assert row[f"text_{language}"] or f"{language}: empty_answer" in row["error"]
            assert "\n" not in row[f"text_{language}"]
    shell(
        real, tmp_path, "promptmill label reviews.csv --column review --labels examples/labels.yaml --out labelled.csv"
    )
    labelled = rows(tmp_path / "labelled.csv")
    assert len(labelled) == 3
    assert {row["label"] for row in labelled} <= {"positive", "neutral", "negative"}
    assert all(0 < float(row["label_confidence"]) < 1 for row in labelled)
    assert not any(row["error"] for row in labelled)

"""The commands of the documentation: those that tests run, and those that none can, with the reason."""

import re

from conftest import ROOT

QUICKSTART = "docs/quickstart.md"
# Run block by block, in this order, by tests/acceptance/test_guides.py.
RUN = (QUICKSTART, "docs/cli.md", "docs/guides/translate.md", "docs/guides/label.md", "docs/gemma.md")
# Run by a test of its own.
RUN_ELSEWHERE = {
    "docs/reference.md": "tests/acceptance/test_reference.py",
    "docs/operations.md": "tests/faults/test_backup_restored.py",
}
# Which test runs the Python of a page.
PYTHON = {
    "README.md": "tests/acceptance/test_batches.py",
    "docs/anthropic.md": "tests/acceptance/test_message_batches.py",
    "docs/files.md": "tests/acceptance/test_reference.py",
    "docs/guides/openai-sdk.md": "tests/acceptance/test_sdk_guide.py",
    "docs/images.md": "tests/acceptance/test_reference.py",
    "docs/webhooks.md": "tests/acceptance/test_webhooks.py",
}
# By how a block begins.
NOT_RUN = {
    "README.md": {
        "make demo": "the targets that CI runs, and the demo, which takes as long as all of them",
        "git clone ": "the quickstart's commands, which are run from there",
    },
    QUICKSTART: {
        "git clone ": "tests/acceptance/test_quickstart.py, with this repository",
    },
    "docs/conformance.md": {
        "promptmill conformance ": "against somebody's server; `make conformance` runs it against ours",
        "pytest -c tests/conformance/": "the same",
        "pytest -c tests/conformance_anthropic/": "the same",
    },
    "docs/deploy.md": {
        "mkdir -m 700 secrets && docker": "needs a container engine; tests/acceptance/test_deploy.py runs each service's command",
        "HF_HUB_CACHE=": "54 GB, under Gemma's terms",
        "echo COMPOSE_FILE=": "needs a container engine on several machines",
        "mkdir -m 700 secrets\n": "needs a second machine",
        "docker compose ": "needs a container engine",
        "as_owner=": "needs a container engine; tests/acceptance/test_deploy.py runs what the container is to run",
        "useradd ": "changes the machine's users; tests/unit/test_deploy.py reads the units",
    },
    "docs/gemma.md": {
        "export HF_TOKEN=": "54 GB, under Gemma's terms",
        "export PROMPTMILL_WORKER__ENGINE=llamacpp": "needs Gemma's file; tests/engines/test_gemma.py has one of its kind",
        "promptmill worker --profile gemma-3-27b-it/h100-fp8\n": "needs a GPU",
    },
    "docs/gpu.md": {
        "git clone ": "needs a GPU",
        "export PROMPTMILL_WORKER__VLLM__GPU_MEMORY_SHARE": "needs a GPU",
    },
    "docs/monitoring.md": {
        "export PROMPTMILL_METRICS": "`promptmill up` until Ctrl-C; tests/acceptance/test_metrics.py asks processes with these settings",
        "export PROMPTMILL_TRACING": "a setting; tests/acceptance has a collector for it",
    },
    "docs/profiles.md": {
        "promptmill worker ": "the second and third line need a GPU; tests/unit/test_profiles.py does what the first does",
        "ray start ": "needs GPUs on several machines",
    },
    "docs/webhooks.md": {"(umask 077; ": "writes to /etc; tests/acceptance/test_webhooks.py has the page's Python"},
}


def blocks(page: str, language: str = "sh") -> list[str]:
    """Return what a page has for a shell, or for Python."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def reason(page: str, block: str) -> str | None:
    """Return why a block is not run; None if it is."""
    return next((why for start, why in NOT_RUN.get(page, {}).items() if block.startswith(start)), None)


def runnable(page: str) -> list[str]:
    return [block for block in blocks(page) if reason(page, block) is None]

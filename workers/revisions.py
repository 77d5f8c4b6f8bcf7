"""Says which engine and which model a worker runs, in a line that is the same wherever the same files are.

Attempts name their worker, and results their lease, so that one can tell afterwards what answered a request
(docs/operations.md). A model that is replaced under its name is thereby recorded, not refused.
"""

import hashlib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jobs.settings import Worker

_LIBRARY = {"llamacpp": "xllamacpp", "vllm": "vllm", "scripted": "promptmill"}
# Of each end of each file: headers and tables at the beginning, weights at the end. All of it would take minutes.
_EDGE_BYTES = 1_000_000


def of(worker: Worker) -> str:
    """Return the release of the engine, the model, and a digest of its files; of a name on a hub, its commit."""
    model, *more = _sources(worker)
    digest = _digest(path for source in (model, *more) for path in _files(Path(source)))
    commit = worker.vllm.revision if worker.engine == "vllm" else None
    parts = [worker.engine, _version(_LIBRARY[worker.engine]), Path(model).name if digest else model, digest or commit]
    return " ".join(part for part in parts if part)


def _sources(worker: Worker) -> Iterator[str]:
    """Yield what the engine loads, the model first."""
    if worker.engine == "llamacpp":
        from workers.engines.llamacpp import default_model  # noqa: PLC0415  only where it is installed

        options = worker.llamacpp
        yield str(options.model_path or default_model())
        yield from (str(path) for path in (options.projector_path, options.chat_template_path) if path)
    elif worker.engine == "vllm":
        yield worker.vllm.model
        yield from (str(path) for path in (*worker.vllm.adapters.values(), worker.vllm.chat_template) if path)
    else:
        yield "scripted"


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def _files(source: Path) -> Iterable[Path]:
    return sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]


def _digest(paths: Iterable[Path]) -> str:
    """Return a digest of names, sizes and both ends of the files; nothing for files that are not here."""
    digest, found = hashlib.sha256(), False
    for path in paths:
        if path.is_file():
            found = True
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                digest.update(file.read(_EDGE_BYTES))
                file.seek(max(0, size - _EDGE_BYTES))
                digest.update(file.read(_EDGE_BYTES))
    return digest.hexdigest()[:16] if found else ""

from pathlib import Path

from jobs.settings import Worker
from workers import revisions


def worker(model: Path | str) -> Worker:
    return Worker.model_validate({"engine": "vllm", "vllm": {"model": str(model)}})


def checkpoint(folder: Path, weights: bytes) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x" * 2_500_000 + weights)
    return folder


def test_the_same_files_are_the_same_revision_wherever_they_are(tmp_path: Path) -> None:
    one, other = (checkpoint(tmp_path / name / "gemma", b"weights") for name in ("a", "b"))
    assert revisions.of(worker(one)) == revisions.of(worker(other))
    assert "gemma" in revisions.of(worker(one))


def test_a_model_that_is_replaced_under_its_name_is_another_revision(tmp_path: Path) -> None:
    """F101."""
    one, other = (checkpoint(tmp_path / name / "gemma", weights) for name, weights in (("a", b"old"), ("b", b"new")))
    assert revisions.of(worker(one)) != revisions.of(worker(other))


def test_a_name_on_a_hub_is_its_own_revision() -> None:
    assert revisions.of(worker("google/gemma-3-27b-it")).endswith("google/gemma-3-27b-it")

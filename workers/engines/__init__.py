"""The engines, one interface, one conformance suite (tests/engines)."""

from jobs.settings import Worker
from workers.engines.base import Engine


def make(settings: Worker) -> Engine:
    """Return the configured engine, not yet started. Only its own library is imported."""
    if settings.engine == "scripted":
        from workers.engines.scripted import ScriptedEngine

        return ScriptedEngine(
            settings.scripted_models,
            capacity=settings.scripted_capacity,
            stall_seconds=settings.stall_seconds,
            fault=settings.scripted_fault,
        )
    if settings.engine == "vllm":
        from workers.engines.vllm import VllmEngine

        return VllmEngine(settings.vllm, stall_seconds=settings.stall_seconds)
    from workers.engines.llamacpp import LlamaCppEngine

    return LlamaCppEngine(settings.llamacpp, stall_seconds=settings.stall_seconds)

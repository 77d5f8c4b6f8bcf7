"""Translation: a request for each row and language."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Template

from client import writing
from client.presets import prompts
from client.presets.job import Answer, Body, Job, content
from client.results import Failure
from client.tables import Table

# What people write, and what a model understands better.
LANGUAGES = {
    "ar": "Arabic",
    "bg": "Bulgarian",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "et": "Estonian",
    "fa": "Persian",
    "fi": "Finnish",
    "fr": "French",
    "he": "Hebrew",
    "hi": "Hindi",
    "hr": "Croatian",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "lt": "Lithuanian",
    "lv": "Latvian",
    "nl": "Dutch",
    "no": "Norwegian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sk": "Slovak",
    "sl": "Slovenian",
    "sr": "Serbian",
    "sv": "Swedish",
    "th": "Thai",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "vi": "Vietnamese",
    "zh": "Chinese",
}
# A token is about four bytes of English and half a character of other scripts: room for twice as many tokens as the
# text has, and for a few words, so that an answer without end is stopped.
SPARE_TOKENS, BYTES_PER_ANSWER_TOKEN = 64, 2


def name(language: str) -> str:
    """Return a language's English name; what is no code known here is taken for a name."""
    return LANGUAGES.get(language.lower(), language)


def job(
    table: Table,
    column: str,
    languages: Sequence[str],
    *,
    model: str,
    source: str | None = None,
    prompt: Template,
    max_tokens: int | None = None,
) -> Job:
    """Return the job: a column for each language, named after the column and the language, and one for errors."""

    def body(text: str, row: Mapping[str, Any], language: str) -> Body:
        values = {"text": text, "row": row, "language": name(language), "source": source and name(source)}
        return {
            "model": model,
            "messages": [{"role": "user", "content": prompts.render(prompt, values)}],
            "temperature": 0,
            "max_tokens": max_tokens or SPARE_TOKENS + len(text.encode()) // BYTES_PER_ANSWER_TOKEN,
            # What follows the translation of a line is talk about it.
            **({} if "\n" in text.strip() else {"stop": ["\n"]}),
        }

    wanted = [*(f"{column}_{language}" for language in languages), "error"]
    names = writing.free_names(table.columns, wanted)
    return Job(column, languages, body, dict.fromkeys(names, str), 1, _read)


def _read(choice: Body) -> Answer:
    text, failure = content(choice)
    if not text and failure is None:
        failure = Failure("empty_answer", "The model said nothing.")
    return Answer([text], failure)

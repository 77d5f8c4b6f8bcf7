"""The templates. Whatever they show is escaped."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from api.web import views

_environment = Environment(
    loader=PackageLoader("api.web", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters |= {
    "count": views.count,
    "duration": views.duration,
    "moment": views.moment,
    "rate": views.rate,
    "size": views.size,
    "stamp": views.stamp,
    "words": views.words,
}


def render(name: str, **values: object) -> str:
    """Return a template with these values."""
    # Half a surrogate pair, which a client's text may hold, cannot be sent.
    return _environment.get_template(name).render(values).encode("utf-8", "replace").decode()

"""The Celery app, for `celery -A workers.celery_app` (Flower). Workers are started by `promptmill worker`."""

from jobs import dispatch, settings

app = dispatch.make_celery(settings.load())

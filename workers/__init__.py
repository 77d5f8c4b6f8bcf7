"""The Celery app, its tasks and the engines. Imports `jobs`, never `api`."""

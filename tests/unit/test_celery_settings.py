"""F37: what keeps Celery from running what lies in Redis, and from losing or doubling work by itself (decision 0003)."""

from typing import Any

import pytest

from jobs.dispatch import make_celery, queue_for
from jobs.settings import Settings

CONF = make_celery(Settings()).conf


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # Nothing but JSON is read, and nothing of it run but the one task.
        ("task_serializer", "json"),
        ("accept_content", ["json"]),
        ("result_backend", None),
        ("task_ignore_result", True),
        ("worker_enable_remote_control", False),
        ("worker_pool_restarts", False),
        ("task_create_missing_queues", False),
        # One re-driver, Postgres.
        ("task_acks_late", False),
        ("task_reject_on_worker_lost", False),
        ("worker_cancel_long_running_tasks_on_connection_loss", False),
        ("worker_prefetch_multiplier", 1),
        ("worker_disable_prefetch", True),
        # Redis comes and goes.
        ("broker_connection_retry_on_startup", True),
        ("broker_connection_max_retries", None),
        ("broker_channel_error_retry", True),
        ("task_publish_retry", False),
    ],
)
def test_celery_is_told(name: str, value: Any) -> None:
    assert CONF[name] == value


def test_no_socket_waits_for_ever_and_none_gives_up_on_a_blocking_read() -> None:
    options = CONF.broker_transport_options
    assert options["visibility_timeout"] == 3_600
    assert options["global_keyprefix"] == "promptmill:"
    assert options["socket_keepalive"] is True
    assert 10 <= options["health_check_interval"] <= 15
    assert options["socket_connect_timeout"] <= 5
    # kombu's BRPOP asks the server for one second.
    assert 1 < options["socket_timeout"] <= 5


def test_no_task_comes_from_anywhere_else() -> None:
    app = make_celery(Settings())
    assert {name for name in app.tasks if not name.startswith("celery.")} == set()
    assert not app.conf.include and not app.conf.imports


def test_the_name_of_a_model_is_no_pattern_and_no_path() -> None:
    assert queue_for("a/b *?").name == "shards.a%2Fb%20%2A%3F"

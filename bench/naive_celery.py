"""What Q2 is compared with: one Celery task for each line, that does nothing."""

import os

from celery import Celery

QUEUE = "naive"
app = Celery("naive", broker=os.environ.get("NAIVE_REDIS_URL"))
app.conf.update(task_ignore_result=True, task_default_queue=QUEUE)


@app.task(name="naive.run")
def run_line(line: str) -> None:
    """Do nothing with a line."""

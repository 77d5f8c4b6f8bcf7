"""`/healthz` and `/readyz`: for load balancers and supervisors; no key needed, nothing told."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import text

from api import openapi
from api.context import Here

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """All is well."""

    status: Literal["ok"] = "ok"


@router.get("/healthz")
async def healthz() -> Health:
    """Tell that the process answers."""
    return Health()


@router.get("/readyz", responses=openapi.answers(503))
async def readyz(context: Here) -> Health:
    """Tell that calls can be served: Postgres answers, and its tables are there. Redis is not needed for that."""
    await context.reading(None, lambda connection: connection.execute(text("SELECT FROM batches LIMIT 1")).first())
    return Health()

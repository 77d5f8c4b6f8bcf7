"""The rows of a file through vLLM's offline `LLM`, in the environment of the worker: speed, or texts to compare with.

`generate` times `LLM.generate` on prompts tokenised beforehand; `chat` writes what `LLM.chat` answers, a JSON object a
line with `custom_id` and `text`. Rows with a schema need `--arguments '{"structured_outputs_config": {"backend":
"xgrammar", "disable_any_whitespace": true}}'` to be those of the service; the schemas of the first 64 rows are compiled
before the time counts.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams, TokensPrompt
from vllm.sampling_params import StructuredOutputsParams

Body = dict[str, Any]


def sampling(body: Body) -> Any:
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    return SamplingParams(
        max_tokens=body["max_tokens"],
        ignore_eos=body.get("ignore_eos", False),
        temperature=0,
        structured_outputs=StructuredOutputsParams(json=schema) if schema else None,
    )


def generate(llm: Any, bodies: list[Body], options: dict[str, Any]) -> None:
    tokenizer = llm.get_tokenizer()
    prompts = [
        TokensPrompt(
            prompt_token_ids=tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, tokenize=True, return_dict=False, **options
            )
        )
        for body in bodies
    ]
    params = [sampling(body) for body in bodies]
    llm.generate(prompts[:64], params[:64])
    for _ in range(2):
        llm.reset_prefix_cache()
        began = time.monotonic()
        done = llm.generate(prompts, params)
        seconds = time.monotonic() - began
        tokens = sum(len(each.outputs[0].token_ids) for each in done)
        figures = {"seconds": seconds, "output_tokens": tokens, "rows": len(bodies), "rate": tokens / seconds}
        print("LLM.generate", json.dumps(figures), flush=True)


def chat(llm: Any, lines: list[Body], out: Path, options: dict[str, Any]) -> None:
    bodies = [line["body"] for line in lines]
    done = llm.chat([body["messages"] for body in bodies], [sampling(body) for body in bodies], **options)
    texts = [
        {"custom_id": line["custom_id"], "text": each.outputs[0].text} for line, each in zip(lines, done, strict=True)
    ]
    out.write_text("".join(json.dumps(text) + "\n" for text in texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--texts", type=Path, help="write the answers of LLM.chat here")
    parser.add_argument("--chat-template", type=Path)
    parser.add_argument("--arguments", default="{}", help="arguments of LLM, JSON")
    options = parser.parse_args()
    llm = LLM(model=options.model, **json.loads(options.arguments))
    lines = [json.loads(line) for line in options.rows.read_bytes().splitlines()]
    template = {"chat_template": options.chat_template.read_text()} if options.chat_template else {}
    if options.texts:
        chat(llm, lines, options.texts, template)
    else:
        generate(llm, [line["body"] for line in lines], template)


if __name__ == "__main__":
    main()

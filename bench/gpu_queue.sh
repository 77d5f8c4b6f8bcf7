#!/usr/bin/env bash
# What to measure on a machine with two GPUs that is there for half an hour; the first lines matter most.
#
#   CUDA_VISIBLE_DEVICES=0 bench/gpu_queue.sh first results-0 &
#   CUDA_VISIBLE_DEVICES=1 bench/gpu_queue.sh second results-1 &
#
# With one GPU: the first half, then as much of the second one as there is time for.
#
# MODELS: what bench/gpu_gemma.py made. PYTHON: of the API; WORKER_PYTHON: of vLLM. A step that fails is told, and the
# next one runs.
set -u
half=${1:?first or second} out=$(realpath -m "${2:?a folder for results}") models=$(realpath "${MODELS:?}")
PYTHON=${PYTHON:-.venv/bin/python} WORKER_PYTHON=${WORKER_PYTHON:-.venv-gpu/bin/python}
# Some machines set it; each start of vLLM would compile its modules anew, a minute in all.
unset PYTHONDONTWRITEBYTECODE
cd "$(dirname "$0")/.." && mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1

step() { # NAME COMMAND...
    local name=$1 began=$SECONDS
    shift
    "$@" >"$out/$name.log" 2>&1 || echo "$name failed: $out/$name.log"
    echo "$name: $((SECONDS - began)) s"
}
service() { # NAME MODEL OPTION...
    local name=$1 model=$2
    shift 2
    step "$name" "$PYTHON" bench/gpu.py --worker-python "$WORKER_PYTHON" --model "$models/$model" --out "$out/$name" "$@"
}
generate() { # NAME MODEL ROWS ARGUMENTS OPTION...
    local name=$1 model=$2 rows=$3 arguments=$4
    shift 4
    step "$name" "$WORKER_PYTHON" bench/gpu_llm.py --model "$models/$model" --rows "$rows" --arguments "$arguments" "$@"
}

if [ "$half" = first ]; then
    service 27b-fp8 27b --load-format dummy --quantization fp8 \
        --scenarios G11-100:1600:2,G1:2000:2,G11-1:4800:2,G3-labelling:2000:2,G5:1200:1
else
    "$PYTHON" bench/shapes.py sharegpt 2400 >"$out/sharegpt.jsonl"
    "$PYTHON" bench/shapes.py translation 2000 >"$out/translation.jsonl"
    same='"load_format": "dummy", "max_model_len": 4096, "max_num_batched_tokens": 16384, "gpu_memory_utilization": 0.92'
    generate 1b-defaults 1b "$out/sharegpt.jsonl" "{$same, \"max_num_seqs\": 1024}"
    # docs/gpu.md, "Small models".
    lift='"max_cudagraph_capture_size": 1024, "disable_hybrid_kv_cache_manager": true'
    generate 1b-generate 1b "$out/sharegpt.jsonl" "{$same, \"max_num_seqs\": 1024, $lift}"
    service 1b-one 1b --load-format dummy --sequences 1024 --arguments "{${lift//_/-}}" --scenarios G4:2400:2
    service 1b-three 1b --load-format dummy --sequences 512 --workers 3 --memory-share 0.1 --scenarios G4:2400:2 \
        --arguments '{"kv-cache-memory-bytes": 8000000000, "disable-hybrid-kv-cache-manager": true}'
    # In numbers of 16 bits a text depends on what else is in the batch.
    service 270m 270m --eager --dtype float32 --scenarios TEXTS:80
    generate 270m-chat 270m "$out/270m/questions.jsonl" \
        '{"max_model_len": 4096, "dtype": "float32", "enforce_eager": true}' --texts "$out/270m/chat.jsonl"
    sort "$out/270m/texts.jsonl" >"$out/270m/ours" && sort "$out/270m/chat.jsonl" >"$out/270m/theirs"
    step 270m-same test -s "$out/270m/ours" -a "$(cat "$out/270m/ours")" = "$(cat "$out/270m/theirs")"
    generate 27b-generate 27b "$out/translation.jsonl" "{$same, \"max_num_seqs\": 512, \"quantization\": \"fp8\"}"
    step 27b-run-batch "$WORKER_PYTHON" bench/gpu_run_batch.py --model "$models/27b" --rows "$out/translation.jsonl" \
        --arguments '{"load-format": "dummy", "quantization": "fp8", "max-model-len": 4096}'
fi

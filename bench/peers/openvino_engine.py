"""OpenVINO's step loop, alone in its process. Runs in OpenVINO's environment: nothing of pdq can be imported.

Lines of JSON: requests on stdin ({"id", "prompt", "max_tokens"}), on stdout one line per step with what every sequence
got ([[id, [token ids], is_finished], ...]). The loop calls into OpenVINO for milliseconds, so no HTTP shares its GIL.
"""

import json
import os
import select
import sys
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai


def main() -> None:
    """ARGUMENTS: model directory, GB of KV cache, most batched tokens, most sequences."""
    model, cache_gb, max_batched_tokens, max_sequences = sys.argv[1], *map(int, sys.argv[2:5])
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the library prints is no answer of ours
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = cache_gb
    scheduler.max_num_batched_tokens = max_batched_tokens
    scheduler.max_num_seqs = max_sequences
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = False
    pipe = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", {})
    print(json.dumps({"ready": _precisions()}), file=out)
    _serve(pipe, out)


def _precisions() -> dict[str, str]:
    """What the plugin computes and keeps KV in unless told."""
    core = ov.Core()
    wanted = ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "INFERENCE_NUM_THREADS")
    return {name: str(core.get_property("CPU", name)) for name in wanted}


def _serve(pipe: Any, out: Any) -> None:
    handles: dict[int, Any] = {}
    unread = b""
    while True:
        # An idle loop waits for a request; a busy one takes those that are there.
        readable, _, _ = select.select([0], [], [], 0 if handles else None)
        if readable:
            data = os.read(0, 1 << 20)
            if not data:
                return
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                config = genai.GenerationConfig()
                config.max_new_tokens = request["max_tokens"]
                config.ignore_eos = True
                prompt = ov.Tensor(np.array([request["prompt"]], dtype=np.int64))
                handles[request["id"]] = pipe.add_request(request["id"], prompt, config)
        if handles:
            pipe.step()
            news = []
            for number, handle in list(handles.items()):
                token_ids = []
                while handle.can_read():
                    for output in handle.read().values():
                        token_ids += output.generated_ids
                is_finished = handle.get_status() != genai.GenerationStatus.RUNNING and not handle.can_read()
                if is_finished:
                    del handles[number]
                if token_ids or is_finished:
                    news.append([number, token_ids, is_finished])
            if news:
                print(json.dumps(news), file=out)


if __name__ == "__main__":
    main()

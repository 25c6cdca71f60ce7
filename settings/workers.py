"""The workers that compute: their loops and their GPUs."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from settings.section import Count, Milliseconds, Seconds, Section


class PrefillSettings(Section):
    """The prefill worker's loop."""

    tensor_parallel: Count = Field(1, description="GPUs (on a CPU: processes) that one prefill worker splits over.")
    token_budget: int = Field(
        0,
        ge=0,
        description="Most prompt tokens computed in one step (chunked prefill). 0: 128 on a CPU, 512 on a GPU.",
    )
    max_running: Count = Field(64, description="Most sequences in prefill at once.")
    max_ahead: Count = Field(
        16,
        description="Most sequences that one prefill worker has prefilled and no decode worker has pulled; beyond, it "
        "takes no job.",
    )
    num_threads: int = Field(0, ge=0, description="CPU threads for compute; 0: every core.")

    def token_budget_on(self, device_type: str) -> int:
        """Most prompt tokens of a step on `cpu` or `cuda`.

        A CPU's products are as fast with 128 rows as with 512, and prompts in one step end together: 16 streams of
        128/128 on two cores, first token p50 205 ms with 128, 572 ms with 512, and 2 % more tokens/s.
        """
        return self.token_budget or (128 if device_type == "cpu" else 512)


class DecodeSettings(Section):
    """The decode worker's loop."""

    tensor_parallel: Count = Field(1, description="GPUs (on a CPU: processes) that one decode worker splits over.")
    max_running: Count = Field(64, description="Most sequences in the running batch.")
    export_pool: bool = Field(
        True,
        description="Whether a CPU worker's pool lies in shared memory, so that when the worker stops others can go on "
        "with its sequences' KV; else, and where there is no room, they are prefilled again.",
    )
    cuda_graphs: bool = Field(True, description="Whether a GPU's decode steps are recorded once and replayed.")
    local_prefill: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether a decode worker on a CPU prefills prompts itself: auto: where that is faster by what was "
        "measured and no running stream waits longer than allowed; always: every prompt that it has room for.",
    )
    local_prefill_max_stall_ms: Milliseconds = Field(
        100.0,
        description="With auto: how much longer (ms) a running stream may wait for a token because of a local prefill, "
        "and at most 0.9 of a decode step; longer prompts are computed in chunks.",
    )
    local_prefill_max_ms: Milliseconds = Field(
        500.0, description="With auto: longest time (ms) for which one prompt may keep a decode worker busy."
    )
    rest_share: float = Field(
        1.0,
        ge=0,
        le=10,
        description="While others compute on the same cores of a CPU (prompts, above all): for how long a decode step "
        "leaves all of them to the others before the next one, as a share of the step. 0: never.",
    )
    rest_until_ms: Milliseconds = Field(
        40.0, description="A decode step and that rest take at most so long together (ms): the streams' ITL meanwhile."
    )
    rest_for_burst_ms: Milliseconds = Field(
        100.0,
        description="The same bound (ms) while at least as many prompts are about to get their first token as streams "
        "run; the rest then takes all of it, if the prompts do.",
    )
    num_threads: int = Field(0, ge=0, description="CPU threads for compute; 0: every core.")


class GpuSettings(Section):
    """Which GPUs of a node a worker takes for itself."""

    lease: Literal["auto", "always", "never"] = Field(
        "auto", description="auto: a worker leases its GPUs where there are any, unless PDQ_MODEL__DEVICE is cpu."
    )
    lease_dir: Path = Field(
        Path("~/.cache/pdq/gpu-leases"),
        description="Lock files of the leases; every worker of a node has to see the same directory.",
    )
    lease_retry_s: Seconds = Field(1.0, description="How often a worker without a GPU looks for a free one.")
    uuids: str = Field("", description="Comma-separated UUIDs of the GPUs that may be leased; empty: every GPU.")
    share: Count = Field(1, description="Workers per GPU; each takes its share of PDQ_KV__GPU_MEMORY_FRACTION.")

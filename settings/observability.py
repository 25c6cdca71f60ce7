"""What is measured, traced and logged, and where it goes."""

from typing import Literal

from pydantic import Field

from settings.section import Seconds, Section


class MetricsSettings(Section):
    """What Prometheus reads, besides the API's own /metrics."""

    host: str = Field("127.0.0.1", description="Address on which a worker answers GET /metrics.")
    port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port on which a worker answers GET /metrics; 0: it does not. Under `pdq serve` the first worker "
        "has this port and each other one the next.",
    )
    vllm_names: bool = Field(
        True, description="Whether figures that vLLM has too are there under its names (vllm:...) once more."
    )


class TracingSettings(Section):
    """Spans of requests, sent to an OpenTelemetry collector."""

    otlp_endpoint: str = Field(
        "",
        pattern=r"^(https?://.+)?$",
        description="OTLP/HTTP address of a collector, e.g. http://127.0.0.1:4318; empty: nothing is traced.",
    )
    sample_share: float = Field(
        1.0, ge=0, le=1, description="Share of the requests that are traced, of those whose client does not say."
    )
    export_every_s: Seconds = Field(5.0, description="How often finished spans are sent.")


class LogSettings(Section):
    """Logs go to stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level written.")
    format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto: console on a terminal, json elsewhere."
    )

"""The HTTP front, and who may use it."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from settings.section import Count, Limit, Seconds, Section


class ApiSettings(Section):
    """The HTTP front."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on.")
    token_load_max_age_s: Seconds = Field(0.1, description="How old the answer of /token_load may be.")
    no_progress_s: Seconds = Field(2.5, description="A worker whose loop stands still for this long is not healthy.")
    no_worker_timeout_s: Seconds = Field(
        30.0, description="With no live worker of a role for this long, waiting requests end in an error."
    )
    request_timeout_s: float = Field(
        0.0, ge=0, description="Time of a request that brings no X-Request-Timeout; 0: as long as it takes."
    )
    max_request_timeout_s: Seconds = Field(86400.0, description="Largest X-Request-Timeout.")
    max_body_bytes: Count = Field(32 << 20, description="Largest request body.")
    max_header_bytes: Count = Field(64 << 10, description="Largest request head.")
    arrival_timeout_s: Seconds = Field(30.0, description="How long a request's head, then its body, may take to come.")
    max_best_of: Count = Field(8, description="Largest best_of and n.")
    max_stop_sequences: Count = Field(10, description="Most stop sequences of one request.")
    max_stop_tokens: Count = Field(256, description="Most tokens (or characters) of one stop sequence.")
    max_allowed_token_ids: Count = Field(256, description="Most entries of allowed_token_ids.")
    max_logit_bias: Count = Field(300, description="Most entries of logit_bias.")
    max_grammar_bytes: Count = Field(32 << 10, description="Largest JSON schema, regular expression or grammar.")
    grammar_timeout_s: Seconds = Field(
        1.0, description="How long a request's schema, expression or grammar may take to compile."
    )
    max_prompts: Count = Field(128, description="Most prompts of one request to /v1/completions.")
    max_top_logprobs: Limit = Field(20, description="Most of the likeliest tokens that are listed beside each token.")
    max_prompt_logprobs: Count = Field(
        131072,
        description="Most logprobs of prompt tokens in one answer: prompt tokens x (1 + those listed beside each).",
    )
    style: Literal["lightllm", "tgi"] = Field(
        "lightllm",
        description="Whose shape /generate and /generate_stream have for requests without an X-API-Style header.",
    )
    keep_alive_s: float = Field(
        15.0, ge=0, description="A stream of OpenAI's routes that is quiet for this long gets a comment; 0: never."
    )
    template_timeout_s: Seconds = Field(5.0, description="How long the chat template may take for one conversation.")
    tool_style: Literal["auto", "hermes", "llama3"] = Field(
        "auto",
        description="How the model writes tool calls: hermes (Hermes, Qwen), llama3, or auto: by its chat template.",
    )
    drain_s: Seconds = Field(8.0, description="How long open streams may go on after SIGTERM.")


class SecuritySettings(Section):
    """Who may use the API, and how much of it."""

    keys_file: Path | None = Field(
        None, description="File of API keys (`pdq key new` writes it); empty: no key is asked for, the API is open."
    )
    requests_per_min: Limit = Field(0, description="Requests a minute of a key that names no limit; 0: no limit.")
    tokens_per_min: Limit = Field(
        0, description="Prompt and output tokens a minute of a key that names no limit; 0: no limit."
    )
    max_in_flight: Limit = Field(0, description="Requests at once of a key that names no limit; 0: no limit.")

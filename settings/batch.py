"""Files and batches."""

from pathlib import Path

from pydantic import Field

from settings.allowed_urls import begins_as_allowed
from settings.section import Count, Seconds, Section


class BatchSettings(Section):
    """Files and batches: what the API takes, and what batch workers do."""

    store: str = Field(
        "~/.cache/pdq/files",
        description="Where files are kept, which API processes and batch workers see alike: a directory, or an address "
        "that fsspec knows, where the package for it is installed (s3://bucket/folder).",
    )
    max_file_bytes: Count = Field(100 << 20, description="Largest file.")
    max_files: Count = Field(1000, description="Most files of one API key.")
    uploads_at_once: Count = Field(
        4,
        description="Most files that come to one API process at once; each is in its temporary folder meanwhile.",
    )
    max_lines: Count = Field(50000, description="Most lines of one batch.")
    max_line_bytes: Count = Field(1 << 20, description="Longest line of a batch.")
    max_open: Count = Field(50, description="Most batches of one API key that have not ended.")
    max_window_s: Count = Field(7 * 86400, description="Longest completion_window.")
    keep_s: Count = Field(
        30 * 86400, description="How long a file is kept that says nothing of it, and a batch after its end."
    )
    api_url: str = Field(
        "http://127.0.0.1:8080", pattern=r"^https?://", description="Where batch workers send lines: the cluster's API."
    )
    api_key_file: Path | None = Field(
        None, description="File holding the API key of the batch workers; empty: they send none."
    )
    lines_at_once: Count = Field(16, description="Most lines that one batch worker has in the cluster at once.")
    shards_at_once: Count = Field(4, description="Most shards that one batch worker works on at once.")
    shard_lines: Count = Field(64, description="Lines of a shard, which one worker runs.")
    max_attempts: Count = Field(3, description="How often a line is tried that the cluster fails at.")
    max_wait_s: Seconds = Field(30.0, description="Longest time to wait before a line is sent again.")
    lease_s: Seconds = Field(
        10.0, description="A batch worker that renews nothing for this long is dead; others go on with its shards."
    )
    tend_s: Seconds = Field(1.0, description="How often batches are looked after: begun, dealt out, ended.")
    sweep_s: Seconds = Field(60.0, description="How often what has expired is removed.")
    beat: bool = Field(
        True, description="Whether `pdq batch` also runs the clock (beat); any number of them do no harm."
    )
    events: bool = Field(False, description="Whether workers tell Flower what they do, and do what it says.")
    webhook_allow: str = Field(
        "",
        description="Comma-separated beginnings of the URLs that may be told of a batch's end, with their scheme and "
        "host (https://example.org/hooks/); empty: none.",
    )
    webhook_private: bool = Field(
        False, description="Whether a host allowed there may have an address of a private network."
    )
    webhook_secret_file: Path | None = Field(
        None, description="File with the secret that webhooks are signed with; without it none may be asked for."
    )
    webhook_timeout_s: Seconds = Field(10.0, description="How long one call of a webhook may take.")
    webhook_attempts: Count = Field(8, description="How often a webhook is tried, at growing distances.")

    def allows_webhook(self, url: str) -> bool:
        """Whether `url` begins as one that is allowed."""
        return begins_as_allowed(url, self.webhook_allow)

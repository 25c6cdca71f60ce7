"""The demo cluster of the end-to-end tests."""

from tests.end_to_end.conftest import demo, demo_dir

__all__ = ["demo", "demo_dir"]

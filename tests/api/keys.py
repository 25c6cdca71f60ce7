"""A file of keys for tests, and settings that name it."""

from pathlib import Path
from typing import Any

from api.key_file import ApiKey, Scope, add_key, hash_of, new_key
from settings.api import SecuritySettings
from settings.loading import Settings


class KeyFile:
    """Keys by id; `bearer(id)` are the headers of a request that shows it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys"
        self.keys: dict[str, str] = {}

    def add(self, key_id: str, scope: Scope = Scope.CLIENT, **fields: Any) -> str:
        self.keys[key_id] = new_key()
        add_key(self.path, ApiKey(key_id, hash_of(self.keys[key_id]), scope, **fields))
        return self.keys[key_id]

    def bearer(self, key_id: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys[key_id]}"}

    def settings(self, settings: Settings, **limits: int) -> Settings:
        return settings.model_copy(update={"security": SecuritySettings(keys_file=self.path, **limits)})

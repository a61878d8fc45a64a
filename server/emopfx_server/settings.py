"""What the server is started with: command-line flags, or environment variables named ``EMOPFX_…``."""

from pathlib import Path
from typing import Literal

import psutil
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def _half_of_the_memory() -> int:
    """Half of what this process may use, in bytes: of the machine's free memory or of the container's limit."""
    limits = [psutil.virtual_memory().available]
    for path in _CGROUP_LIMITS:
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits) // 2


class SettingsError(Exception):
    """Settings that can't be used; one sentence says why."""


class Settings(BaseSettings):
    """Start an OpenAI-compatible server that captures hidden activations while it generates."""

    model_config = SettingsConfigDict(
        env_prefix="EMOPFX_",
        cli_kebab_case=True,
        cli_prog_name="emopfx-server",
        cli_hide_none_type=True,
        protected_namespaces=(),
    )

    model: str = Field(
        "tiny",
        description="a Hugging Face id, a folder, `tiny` (built in), or `random:CONFIG` (that shape, random weights)",
    )
    revision: str | None = Field(None, description="the model's revision on the hub")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="the weights' data type")
    host: str = Field("127.0.0.1", description="the address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="the port to listen on; 0 picks a free one")
    data_dir: Path = Field(Path("results"), description="the folder under which activations are written")
    max_batch_size: int = Field(64, ge=1, description="how many requests may run in one step")
    capture_bytes: int = Field(
        default_factory=_half_of_the_memory,
        ge=1,
        description="the bound on captured bytes held in memory; requests wait for room under it "
        "(half of the memory when left out)",
    )
    writers: int = Field(2, ge=1, description="how many threads write activation files")
    max_queue: int = Field(2048, ge=0, description="how many requests may wait; more are refused with 429")
    disk_floor: int = Field(
        0, ge=0, description="bytes of the disk that are to stay free; requests that capture are refused with 507"
    )
    request_seconds: float | None = Field(
        None, gt=0, description="how long a request may take to be generated, the wait for its turn included"
    )
    api_key: SecretStr | None = Field(
        None, min_length=1, description="the key that clients must send as bearer token; better in EMOPFX_API_KEY"
    )
    api_key_file: Path | None = Field(None, description="a file that holds the key")
    open_health: bool = Field(True, description="whether /healthz, /readyz and /metrics need no key")
    max_body_bytes: int = Field(32 * 1024**2, ge=1, description="the largest request that is read")
    log_format: Literal["text", "json"] = Field("text", description="how log lines are written")
    log_level: Literal["debug", "info", "warning"] = Field("info", description="which log lines are written")
    log_prompts: bool = Field(False, description="whether prompts and answers are logged")

    def key(self) -> str | None:
        """The API key, from where it is.

        Raises:
            OSError: When its file can't be read.
            SettingsError: When its file is empty or no text, or there are two keys.
        """
        if self.api_key_file is None:
            return None if self.api_key is None else self.api_key.get_secret_value()
        if self.api_key is not None:
            raise SettingsError("give api_key or api_key_file, not both")
        try:
            key = self.api_key_file.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise SettingsError(f"the file {self.api_key_file} is not UTF-8 text") from error
        if not key:
            raise SettingsError(f"the file {self.api_key_file} holds no key")
        return key

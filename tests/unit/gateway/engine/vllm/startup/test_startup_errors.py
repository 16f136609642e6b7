"""Why a start failed, as a sentence about the cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.engine.vllm.startup.startup_errors import explain

_ELSEWHERE = "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_DP0': 1}"
_WORKER = (
    "WorkerProc initialization failed due to an exception in a background process. See stack trace for root cause."
)


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."], "There is not enough memory. "),
        (["ValueError: Available memory on node 0 (2/8 GiB) on startup is less than desired"], "not enough memory"),
        (["ValueError: Free memory on device cuda:0 (3/80 GiB) on startup is less"], "not enough memory"),
        (["RuntimeError: Found no NVIDIA driver on your system."], "No GPU that this vLLM can use was found."),
        (["ImportError: libcuda.so.1: cannot open shared object file"], "No GPU that this vLLM can use was found."),
        (["OSError: [Errno 28] No space left on device"], "A disk is full"),
        (["ValueError: no blocks", f"Exception: {_WORKER}"], "no blocks"),
        (
            ["MemoryError: cannot allocate memory", f"Exception: {_WORKER}", f"RuntimeError: {_ELSEWHERE}"],
            "enough memory",
        ),
    ],
)
def test_the_cause_that_a_process_left_behind_is_the_sentence(tmp_path: Path, left: list[str], expected: str) -> None:
    (tmp_path / "words").write_text("Traceback\n  File x\n" + "\n".join(left), encoding="utf-8")
    text = explain(RuntimeError(_ELSEWHERE), tmp_path / "words", "m")

    assert expected in text
    assert "See " not in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            OSError("We couldn't connect to 'https://huggingface.co' to load the files"),
            "the model hub cannot be reached",
        ),
        (
            OSError("m is not a local folder and is not a valid model identifier listed on"),
            "neither a local folder nor",
        ),
        (OSError("401 Client Error. Cannot access gated repo for url"), "HF_TOKEN"),
        (RuntimeError("Failed to infer device type"), "No GPU"),
        (
            RuntimeError(_ELSEWHERE),
            "left no reason; log.level=debug shows vLLM's own log. Exit codes: {'EngineCore_DP0': 1}",
        ),
        (RuntimeError(_ELSEWHERE.replace(": 1}", ": -9}")), "was killed, most likely because the machine"),
        (ValueError("tensor_parallel_size: Input should be greater than or equal to 1"), "or equal to 1."),
        (ValueError("Too long. " + "More words of it. " * 99), "could not start: Too long. More words of it. "),
        (ValueError("word " * 999), "word word..."),
        (ValueError("max_model_len (9) is too large. To allow overriding this maximum, set X"), "is too large."),
    ],
)
def test_without_logged_errors_the_error_itself_is_the_cause(tmp_path: Path, error: Exception, expected: str) -> None:
    text = explain(error, tmp_path / "none", "m")

    assert text.startswith("The engine could not start: ")
    assert expected in text
    assert "See root" not in text
    assert text.endswith(".")
    assert len(text) < 500

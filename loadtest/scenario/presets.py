"""Limits that others have agreed on, to be named instead of written down.

MLPerf Inference (`inference_rules.adoc` in its policies): TTFT and TPOT at the 99th percentile, by model and by how
interactive the use is. A preset is named `model/use`, and is a place to start from for models of about that size.
"""

from __future__ import annotations

__all__ = ["PRESETS"]

# name -> (TTFT, TPOT), milliseconds, 99th percentile
PRESETS: dict[str, tuple[float, float]] = {
    "llama-3.1-8b/server": (2000, 100),
    "llama-3.1-8b/interactive": (500, 30),
    "llama-2-70b/server": (2000, 200),
    "llama-2-70b/interactive": (450, 40),
    "llama-3.1-405b/server": (6000, 175),
    "llama-3.1-405b/interactive": (4500, 80),
    "mixtral-8x7b/server": (2000, 200),
    "deepseek-r1/server": (2000, 80),
    "deepseek-r1/interactive": (1500, 15),
    "gpt-oss-120b/server": (3000, 80),
    "gpt-oss-120b/interactive": (2000, 20),
}

"""Bytes to nouns and back. No IO and no asyncio in here, so every rule can be tested byte by byte.

- `sse`: Server-Sent Events framing.
- `wishes`: what a client's headers ask for.
- `openai`: the chunks of plain streams, equal to vLLM's own.
- `escaping`: line separators of Unicode in JSON.
"""

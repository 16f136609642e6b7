"""How each kind of client is spoken to: from the engine's output to documents. No IO and no asyncio.

- `sse`: Server-Sent Events framing.
- `openai`: the chunks of plain streams, equal to vLLM's own.
- `json_text`: line separators of Unicode in JSON.
"""

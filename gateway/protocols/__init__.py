"""How each kind of client is spoken to: from the engine's output to documents. No IO and no asyncio.

- `base`: the contract of a protocol.
- `openai`: OpenAI's chat and text completions.
- `sse`: Server-Sent Events framing.
- `json_text`: line separators of Unicode in JSON.
"""

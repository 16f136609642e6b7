"""How each kind of client is spoken to: from the engine's output to documents. No IO and no asyncio.

- `base`: the contract of a protocol.
- `openai`: the parts that OpenAI's two share; `chat`: chat completions; `completions`: text completions.
- `sse`: Server-Sent Events framing.
- `json_text`: line separators of Unicode in JSON.
"""

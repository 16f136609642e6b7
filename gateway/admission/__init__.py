"""Which request may start now.

- `slots`: the arithmetic of slots and of Retry-After, pure.
- `gate`: the bounded queue in front of the engine.
"""

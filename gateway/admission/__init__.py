"""Who may start now.

- `budget`: the arithmetic of seats and of Retry-After, pure.
- `gate`: the bounded waiting room in front of the engine.
"""

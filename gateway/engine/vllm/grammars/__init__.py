"""Grammars that hold answers (JSON schemas, regular expressions, EBNF, choices, structural tags), checked before their
request holds a slot.

- `limits`: how large one may be; `verdicts`: what is known about those that were checked.
- `checker`: who has which grammar checked next; `process`: the process that does it, from outside.
- `forker`: that process, which forks a child for every grammar; `backends`: what the child does; `stand_ins`: vLLM's
  backends without vLLM.
- `requests`: which grammar a request will bring; `validation`: vLLM's own validation, replaced; `service`: all of it
  for one engine.
- `compilation`: how the engine process compiles what has passed.
"""

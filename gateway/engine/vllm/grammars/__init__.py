"""Grammars that constrain answers (JSON schemas, regular expressions, EBNF, choices, structural tags), checked before
their request holds a slot.

- `extraction`: the grammars that a request contains; `limits`: how large a grammar may be.
- `check_queue`: the order in which grammars are checked; `check_results`: a cache of results.
- `process`: the checker process, as the gateway sees it; `fork_server`: its program, which forks a child for every
  grammar; `backends`: the check in that child; `stub_modules`: vLLM's backends without the rest of vLLM.
- `grammar_validation`: replaces vLLM's own validation of grammars; `service`: all of this for one engine.
- `compilation`: replaces how the engine process compiles grammars that have passed the check.
"""

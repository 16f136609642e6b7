"""What `vllm serve` can be told, known without importing vLLM, which takes 10 to 80 seconds.

- `catalog`: the flags and variables of each supported vLLM, from lists that ship with the package (`lists/`).
- `flag_rules`: what becomes of each: the engine reads it, a setting of ours takes its place, or it is refused.
- `command_line`: finds vLLM's flags among the words of a command, and the nearest flag to a typing error.
- `variables`: the same for `VLLM_*` variables.
- `generate`: writes the lists and the table in docs/vllm-flags.md; needs vLLM.
"""

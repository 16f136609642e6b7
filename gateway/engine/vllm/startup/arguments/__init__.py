"""The arguments of `vllm serve`, without importing vLLM, which takes 10 to 80 seconds.

- `catalog`: the flags and variables of each supported vLLM, from lists that ship with the package (`lists/`,
  written by `docs/vllm_flag_lists.py`).
- `flag_rules`: what Sluice does with each flag: passes it to vLLM, replaces it by a setting, or refuses it.
- `command_line`: finds vLLM's flags in a command line, and the nearest flag to a misspelled one.
- `variables`: the same for `VLLM_*` variables.
- `vllm_parser`: vLLM's own parser, for arguments that the lists have let pass; imports vLLM.
"""

"""What every step that trains has in common: losses, text as sequences of tokens, the optimiser's loop, and its state on disk.

Torch is imported here; the steps in `jouleboard.recipes` import these modules only when they are applied.
"""

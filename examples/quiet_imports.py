"""Keeps torchao's remarks about itself from the output of scripts; to be imported before transformers.

transformers imports torchao where it is installed. It then says which of its GPU kernels do not load here, and torch
how its classes are registered. Neither is about a run that does not use it; errors are still told.
"""

import logging

for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

__all__: list[str] = []

"""Write model cards and sentence-transformers' files, merge and verify adapters, save atomically, push to the Hub.

This folder is not part of the remote code of a checkpoint, which uses it only if the package is installed.
"""

from .adapters import write_adapter
from .diagnosis import check_not_packed, check_weights
from .hub import push_model
from .merging import changed_checkpoint, check_can_merge, verify_files
from .sidecars import write_sidecars_and_card
from .writing import written_aside

__all__ = [
    "changed_checkpoint",
    "check_can_merge",
    "check_not_packed",
    "check_weights",
    "push_model",
    "verify_files",
    "write_adapter",
    "write_sidecars_and_card",
    "written_aside",
]

"""The code of a model's class beside its weights: ours, and that of a family somebody wrote on our mixin."""

import re
import shutil
import sys
import warnings
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

# How a class outside the package names what it builds on; in a checkpoint all files lie side by side.
_OUR_IMPORT = re.compile(r"^(from )modeling_magnet(?:\.(\w+_magnet))?( import)", flags=re.MULTILINE)


def write_code(kind: type, directory: Path) -> str | None:
    """Copy the files of a class, with everything they import from siblings, into a checkpoint.

    Args:
        kind (`type`): The model's class. Outside the package it stands in a file of its own, which imports
            `MagnetMixin` by `from modeling_magnet import MagnetMixin`; in the copy that is a sibling's.
        directory (`Path`): The checkpoint.

    Returns:
        `str`: module and class as `auto_map` names them; `None`, with a warning, for a class that is in no file.
    """
    module = sys.modules[kind.__module__]
    file = getattr(module, "__file__", None)
    if kind.__module__ == "__main__" or file is None:
        warnings.warn(
            f"The code of {kind.__name__} cannot be saved with its model: it was defined in the running program. "
            "Move it into a file of its own and import it; until then the checkpoint opens as a stock decoder.",
            stacklevel=2,
        )
        return None
    mixin = next(base for base in kind.__mro__ if base.__name__ == "MagnetMixin")
    ours = Path(str(sys.modules[mixin.__module__].__file__))
    text = Path(file).read_text(encoding="utf-8")
    siblings = _OUR_IMPORT.sub(lambda found: f"{found[1]}.{found[2] or ours.stem}{found[3]}", text)
    needed = {file, *get_relative_import_files(file)}
    if siblings != text:
        needed |= {str(ours), *get_relative_import_files(ours)}
    for name in needed:
        shutil.copy(name, directory)
    (directory / Path(file).name).write_text(siblings, encoding="utf-8")
    return f"{Path(file).stem}.{kind.__name__}"


__all__ = ["write_code"]

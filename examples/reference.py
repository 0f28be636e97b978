"""Write the reference as HTML pages: every module of both packages, from its docstrings.

    python examples/reference.py --output_dir outputs/reference

Open `index.html`; `modeling_magnet.html` and `trainer.html` have the public names. Needs pdoc (extra `dev`) and no
network. A warning ends it, and so does a page that names a folder of this machine.
"""

import dataclasses
import importlib
import inspect
import os
import pkgutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.command_line import OneLineParser, add_output_dir, require_extra, start

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("modeling_magnet", "trainer")


def documented_modules() -> list[ModuleType]:
    """Return both packages and their modules, without modules of subpackages."""
    names = []
    for package in PACKAGES:
        modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
        names += [package, *(f"{package}.{module.name}" for module in modules)]
    return [importlib.import_module(name) for name in names]


def public_names(module: ModuleType) -> dict[str, Any]:
    """Return by name the exports of a package, or the functions and classes of a module without an underscore."""
    if hasattr(module, "__all__"):
        return {name: getattr(module, name) for name in module.__all__}
    return {
        name: member
        for name, member in vars(module).items()
        if not name.startswith("_") and callable(member) and member.__module__ == module.__name__
    }


def explain_fields(module: ModuleType) -> None:
    """Add the help texts of a module's dataclasses to their docstrings, because pdoc reads only those."""
    for member in vars(module).values():
        # A package repeats the names of its modules.
        if not dataclasses.is_dataclass(member) or member.__module__ != module.__name__:
            continue
        own = member.__dict__["__annotations__"]
        helped = [field for field in dataclasses.fields(member) if field.name in own and "help" in field.metadata]
        if helped:
            lines = [f"    {field.name}: {field.metadata['help']}" for field in helped]
            member.__doc__ = "\n".join([inspect.getdoc(member) or "", "", "Args:", *lines, ""])


def write_reference(output: Path) -> list[Path]:
    """Write the pages."""
    import pdoc

    modules = documented_modules()
    for module in modules:
        explain_fields(module)
    pdoc.render.configure(docformat="google", show_source=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc(*(module.__name__ for module in modules), output_directory=output)
    pages = sorted(output.rglob("*.html"))
    for page in pages:
        text = page.read_text(encoding="utf-8").replace(f"{REPOSITORY}{os.sep}", "")
        page.write_text(text, encoding="utf-8")
        if any(folder in text for folder in _folders_of_this_machine()):
            raise ValueError(f"{page.name} names a folder of this machine. Look for it among the constants.")
    return pages


def _folders_of_this_machine() -> set[str]:
    folders = {str(REPOSITORY), os.path.expanduser("~"), tempfile.gettempdir(), sys.prefix}
    return {folder for folder in folders if len(Path(folder).parts) > 1}


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and write the pages."""
    parser = OneLineParser(description=__doc__)
    add_output_dir(parser, default=Path("outputs/reference"), help="folder of the pages")
    args = parser.parse_args(arguments)
    require_extra("dev", "pdoc")
    require_extra("eval", "mteb")
    started = time.perf_counter()
    pages = write_reference(args.output.resolve())
    print(f"reference: OK ({len(pages)} pages; {time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    start(main)

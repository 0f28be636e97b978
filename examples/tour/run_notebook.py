"""Execute a notebook and keep only outputs that can be committed.

    python examples/tour/run_notebook.py examples/magnet_tour.ipynb

The kernel is the Python that runs this script. It keeps what a reader sees: texts, tables, pictures, and the last
line of each progress bar, without times of cells or ids of widgets. If a cell fails, the file is not changed. Needs
the extra `notebook`.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.command_line import OneLineParser, require_extra, start
from trainer.files import atomic_write

try:
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
except ImportError:  # `main` reports the missing extra, so that `--help` works without it
    pass

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT = 900  # seconds per cell


def run_notebook(path: Path, *, folder: Path) -> Any:
    """Execute a notebook.

    Raises:
        CellExecutionError: If a cell raises.
    """
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    # Without the folders of registered kernels, "python3" is this interpreter.
    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        cell.outputs, cell.execution_count = [], None
    with tqdm(total=len(cells), desc=path.name, unit=" cells") as bar:
        client = NotebookClient(
            notebook,
            km=kernel,
            timeout=TIMEOUT,
            record_timing=False,
            coalesce_streams=True,  # bars overwrite their line, as on a screen
            resources={"metadata": {"path": str(folder)}},
            on_cell_executed=lambda **_: bar.update(),
        )
        paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    for cell in notebook.cells:
        cell.metadata = nbformat.NotebookNode()
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    return notebook


def main(argv: list[str] | None = None) -> int:
    """Execute the named notebook and return the exit code."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("notebook", type=Path, help="the file to execute")
    parser.add_argument("--output", type=Path, help="output file; overwrites the notebook by default")
    parser.add_argument("--folder", type=Path, help="working directory of the cells; defaults to that of the notebook")
    arguments = parser.parse_args(argv)
    require_extra("notebook", "nbformat", "nbclient", "ipykernel")
    started = time.monotonic()
    output = arguments.output or arguments.notebook
    try:
        notebook = run_notebook(arguments.notebook, folder=arguments.folder or arguments.notebook.parent)
    except CellExecutionError as error:
        print(error, file=sys.stderr)
        print(f"run_notebook: FAILED ({arguments.notebook}; {error.ename}: {error.evalue})")
        return 1
    with atomic_write(output) as file:
        file.write((nbformat.writes(notebook) + "\n").encode())
    print(f"run_notebook: OK ({output}; {time.monotonic() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    start(lambda: sys.exit(main()))

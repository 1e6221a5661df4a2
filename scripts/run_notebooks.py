"""Run the notebooks of the documentation, each in an empty folder, and keep their outputs.

python scripts/run_notebooks.py [docs/notebooks/NAME.ipynb ...]      all of them, if none is named
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "docs/notebooks"


def execute(path: Path, folder: str) -> nbformat.NotebookNode:
    """Return the notebook with the outputs that it gives in a folder; an error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, kernel_name="python3", timeout=600, record_timing=False, resources={"metadata": {"path": folder}}
    )
    return client.execute()


def main() -> None:
    """Write the outputs into the notebooks."""
    for path in [Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, folder)
        notebook.metadata.language_info = {"name": "python"}
        nbformat.write(notebook, path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

"""Run the notebooks of the documentation, each in an empty folder, and keep their outputs.

python scripts/run_notebooks.py [docs/notebooks/NAME.ipynb ...]      all of them, if none is named
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "docs/notebooks"


def main() -> None:
    """Write the outputs into the notebooks; an error in a cell is raised."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `!python` is this one
    for path in [Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            resources = {"metadata": {"path": folder}}
            NotebookClient(
                notebook, kernel_name="python3", timeout=None, record_timing=False, resources=resources
            ).execute()
        notebook.metadata.language_info = {"name": "python"}
        for cell in notebook.cells:
            # progress and warnings of one machine are no part of the documentation; what a `!` command says is
            kept = [output for output in cell.get("outputs", []) if output.output_type != "stream"]
            if cell.cell_type == "code" and not cell.source.startswith("!"):
                cell.outputs = [output for output in kept if output.data["text/plain"]]
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

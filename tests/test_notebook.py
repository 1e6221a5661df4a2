"""In a real notebook a run shows itself, an error reads, a cell can be stopped; the documentation's notebooks run."""

import asyncio
import os
import re
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from conftest import ROOT, TINY

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))

FEWER = {
    r"max_epochs=\d+": "max_epochs=1",
    r'\n *"model.encoder=resnet18",': "",
    r'"data.size=64"': '"data.size=64", "model.encoder=tu-test_resnet", "trainer.precision=32-true"',
    r"train_images=\d+": "train_images=20",
    r"range\(40\)": "range(12)",
    r"seed=0,1": "seed=0",
}
"""What makes the notebooks' trainings short; their figures come from scripts/run_notebooks.py."""

CELLS = """
import unetseg
run = unetseg.train(*TINY, "trainer.max_epochs=1", output="runs", name="one"); run
---
unetseg.train(skip="none")
---
unetseg.train(*TINY, "trainer.max_epochs=500", output="runs", name="long")
print("not reached")
---
print(unetseg.Run("runs/long"))
"""


def test_a_notebook_trains_shows_and_is_stopped(drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shown = [option for option in TINY if "progress_bar" not in option]
    sources = CELLS.replace("TINY", repr((*shown, f"data.root={drawn}"))).split("---\n")
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells)
    options = {"allow_errors": True, "timeout": None, "resources": {"metadata": {"path": str(tmp_path)}}}
    client = nbclient.NotebookClient(notebook, kernel_name="python3", **options)

    async def stop_when_it_trains():
        while not (tmp_path / "runs/long/metrics.csv").exists():
            await asyncio.sleep(0.2)
        await client.km.interrupt_kernel()

    async def execute():
        stop = asyncio.create_task(stop_when_it_trains())
        await client.async_execute(env=dict(os.environ))
        await stop

    asyncio.run(execute())
    trained, wrong, stopped, after = (cell.outputs for cell in notebook.cells)
    html = [output.data["text/html"] for output in trained if output.output_type == "execute_result"]
    assert "data:image/jpeg;base64," in html[0], "the run shows its table and predictions"
    assert "val/iou" in str(trained), "progress is shown, with or without ipywidgets"
    assert wrong[-1].ename == "UserError"
    assert wrong[-1].evalue.endswith("try: model.skip=none")
    assert stopped[-1].ename == "KeyboardInterrupt"
    assert "stopped after step" in stopped[-1].evalue
    assert "not reached" not in "".join(output.get("text", "") for output in stopped)
    assert (tmp_path / "runs/long/checkpoints/last.ckpt").exists()
    assert "not finished" in after[0].text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_of_the_documentation_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for long, short in FEWER.items():
            cell.source = re.sub(long, short, cell.source)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=None, resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any(output.output_type in ("execute_result", "display_data") for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_of_the_documentation_is_kept_with_its_outputs_small_and_without_paths(path):
    text = path.read_text()
    cells = nbformat.reads(text, as_version=4).cells
    assert any(cell.outputs for cell in cells if cell.cell_type == "code")
    assert len(text) < 200_000
    assert not [folder for folder in ("/home/", "/root/", "/tmp/", "/Users/") if folder in text]

"""The same in a real notebook, where there is Jupyter: a run shows itself, an error reads, a cell can be stopped."""

import asyncio
import os

import pytest
from conftest import ROOT, TINY

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

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
    options = {"allow_errors": True, "timeout": 120, "resources": {"metadata": {"path": str(tmp_path)}}}
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
    assert "data:image/png;base64," in html[0], "the run shows its table and predictions"
    assert "val/iou" in str(trained), "progress is shown, with or without ipywidgets"
    assert wrong[-1].ename == "UserError"
    assert wrong[-1].evalue.endswith("try: model.skip=none")
    assert stopped[-1].ename == "KeyboardInterrupt"
    assert "stopped after step" in stopped[-1].evalue
    assert "not reached" not in "".join(output.get("text", "") for output in stopped)
    assert (tmp_path / "runs/long/checkpoints/last.ckpt").exists()
    assert "not finished" in after[0].text

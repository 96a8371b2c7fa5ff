"""Executes the notebooks and keeps their outputs, except log messages: python notebooks/execute.py"""

import pathlib

import nbclient
import nbformat

for path in sorted(pathlib.Path(__file__).parent.glob("*.ipynb")):
    print(path.name)
    notebook = nbformat.read(path, 4)
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=None, record_timing=False, resources=resources).execute()
    notebook.metadata.language_info = {"name": "python"}  # Without the version of Python.
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)

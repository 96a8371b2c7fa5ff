"""Executes notebooks and keeps their outputs, except log messages: python notebooks/execute.py NOTEBOOK..."""

import pathlib
import sys

import nbclient
import nbformat

if len(sys.argv) == 1:
    sys.exit(__doc__)
for path in map(pathlib.Path, sys.argv[1:]):
    print(path.name)
    notebook = nbformat.read(path, 4)
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=None, record_timing=False, resources=resources).execute()
    notebook.metadata.language_info = {"name": "python"}  # Without the version of Python.
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)

"""Copy executed notebooks into the book's folder, and remove what an earlier run left there."""

import argparse
from pathlib import Path

import nbformat


def as_page(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what a reader of the page should not see.

    The defaults in the `parameters` cell go when papermill has put the values used below them, and
    with them papermill's record of paths and times, so that equal results make equal pages.
    """
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    if any("injected-parameters" in t for t in tags):
        notebook.cells = [cell for cell, t in zip(notebook.cells, tags, strict=True) if "parameters" not in t]
    for metadata in (notebook.metadata, *(cell.metadata for cell in notebook.cells)):
        metadata.pop("papermill", None)
        metadata.pop("execution", None)
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("notebooks", type=Path, nargs="+")
    args = parser.parse_args()

    args.folder.mkdir(parents=True, exist_ok=True)
    kept = {source.name for source in args.notebooks}
    for stale in args.folder.iterdir():
        if stale.is_file() and stale.name not in kept:
            stale.unlink()
    for source in args.notebooks:
        nbformat.write(as_page(nbformat.read(source, as_version=4)), args.folder / source.name)


if __name__ == "__main__":
    main()

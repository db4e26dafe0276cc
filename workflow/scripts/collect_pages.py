"""Copy executed notebooks into the book's folder, and remove what an earlier run left there."""

import argparse
import re
from pathlib import Path

import nbformat
import yaml

# What makes a figure: a function of `figures`, or one of the figures that move.
_MAKERS = re.compile(r"\b(?:figures\.(plot_\w+)|(Breathing|Explorer|Sharpening))\(")


def as_page(notebook: nbformat.NotebookNode, name: str, address: str) -> nbformat.NotebookNode:
    """Drop what a reader of the page should not see, and say below each figure how it was made.

    The defaults in the `parameters` cell go when papermill has put the values used below them, and
    with them the record of paths and times, so that equal results make equal pages.

    Parameters
    ----------
    notebook : NotebookNode
        As executed.
    name : str
        Of its file.
    address : str
        Where the repository's files can be looked at.
    """
    parameters = notebook.metadata.get("papermill", {}).get("parameters", {})
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    if any("injected-parameters" in t for t in tags):
        notebook.cells = [cell for cell, t in zip(notebook.cells, tags, strict=True) if "parameters" not in t]
    for metadata in (notebook.metadata, *(cell.metadata for cell in notebook.cells)):
        for record in ("papermill", "execution", "provenance"):
            metadata.pop(record, None)
    cells = []
    for number, cell in enumerate(notebook.cells):
        cells.append(cell)
        if makers := _makers(cell):
            cells.append(_how_made(makers, number, name, address, parameters))
    notebook.cells = cells
    return notebook


def _makers(cell: nbformat.NotebookNode) -> list[str]:
    """Functions and classes of the library that made the figure that a cell shows, if it shows one."""
    shown = [item for output in cell.get("outputs", ()) for item in output.get("data", {}).items()]
    if not any(kind.startswith("image/") or "cryoanm-moving" in "".join(data) for kind, data in shown):
        return []
    found = _MAKERS.findall(cell.source)
    named = [
        f"book.figures.{function}" if function else f"book.widgets.{widget}" for function, widget in found
    ]
    return list(dict.fromkeys(named))


def _how_made(
    makers: list[str], number: int, name: str, address: str, parameters: dict
) -> nbformat.NotebookNode:
    """A line that leads to the notebook, the functions, and the configuration."""
    parts = [f"[notebook]({address}/notebooks/{name})"]
    parts += [f"{{py:obj}}`{maker} <cryoanm_lib.{maker}>`" for maker in makers]
    if "profile" in parameters:
        parts.append(f"[profile {parameters['profile']}]({address}/config/{parameters['profile']}.yaml)")
        parts.append(f"structure {parameters['structure']}")
    text = f":::{{div}} how-made\nHow this figure was made: {' · '.join(parts)}\n:::"
    return nbformat.v4.new_markdown_cell(text, id=f"how-made-{number}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("notebooks", type=Path, nargs="+")
    args = parser.parse_args()

    repository = yaml.safe_load(Path("_config.yml").read_text(encoding="utf-8"))["repository"]
    address = f"{repository['url']}/blob/{repository['branch']}"
    args.folder.mkdir(parents=True, exist_ok=True)
    kept = {source.name for source in args.notebooks}
    for stale in args.folder.iterdir():
        if stale.is_file() and stale.name not in kept:
            stale.unlink()
    for source in args.notebooks:
        page = as_page(nbformat.read(source, as_version=4), source.name, address)
        nbformat.write(page, args.folder / source.name)


if __name__ == "__main__":
    main()

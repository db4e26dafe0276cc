"""Copy executed notebooks into the book's folder, and remove what an earlier run left there."""

import argparse
import re
from pathlib import Path

import nbformat
import yaml

from cryoanm_lib.io.provenance import origin

# What makes a figure: a function of `figures`, or one of the figures that move.
_MAKERS = re.compile(r"\b(?:figures\.(plot_\w+)|(Breathing|Explorer|Landscape|Sharpening))\(")


def as_page(notebook: nbformat.NotebookNode, name: str, address: str) -> nbformat.NotebookNode:
    """Drop what a reader of the page should not see; say what it was run with, and how each figure was made.

    The defaults in the `parameters` cell go when papermill has put the values used below them, and
    with them the record of paths and times, so that equal results make equal pages.

    Parameters
    ----------
    notebook : NotebookNode
        As executed.
    name : str
        Of its file.
    address : str
        Where the repository's files can be looked at, or "".
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
        if number == 0 and "profile" in parameters:
            cells.append(_where_am_i(parameters))
        if makers := _makers(cell):
            cells.append(_how_made(makers, number, name, address, parameters))
    notebook.cells = cells
    return notebook


def _where_am_i(parameters: dict) -> nbformat.NotebookNode:
    """What the numbers of the page are of, and how to have others."""
    text = (
        f":::{{div}} how-made\nThe numbers and figures of this page: profile *{parameters['profile']}*, "
        f"protein *{parameters['structure']}*. Opened in Jupyter, Binder or Colab a notebook starts with the "
        'smallest profile; change the line `profile = "smoke"` for another ({doc}`../reproduce`).\n:::'
    )
    return nbformat.v4.new_markdown_cell(text, id="where-am-i")


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

    def link(text: str, path: str) -> str:
        return f"[{text}]({address}/{path})" if address else text

    parts = [link("notebook", f"notebooks/{name}")]
    parts += [f"{{py:obj}}`{maker} <cryoanm_lib.{maker}>`" for maker in makers]
    if "profile" in parameters:
        profile = parameters["profile"]
        parts.append(link(f"profile {profile}", f"config/{profile}.yaml"))
        parts.append(f"structure {parameters['structure']}")
    text = f":::{{div}} how-made\nHow this figure was made: {' · '.join(parts)}\n:::"
    return nbformat.v4.new_markdown_cell(text, id=f"how-made-{number}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("notebooks", type=Path, nargs="+")
    args = parser.parse_args()

    repository = yaml.safe_load(Path("_config.yml").read_text(encoding="utf-8"))["repository"]
    home = repository["url"] or origin()
    address = home and f"{home}/blob/{repository['branch']}"
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

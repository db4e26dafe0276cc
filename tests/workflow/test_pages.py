"""Executed notebooks become pages: clutter goes, and each figure says how it was made."""

import importlib.util
from pathlib import Path

import nbformat.v4 as v4
import pytest

SCRIPTS = Path(__file__).parents[2] / "workflow" / "scripts"


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def executed():
    """A notebook as papermill leaves it: a figure, a moving one, and a table."""
    figure = v4.new_output("display_data", {"image/svg+xml": "<svg/>", "text/plain": "<Figure>"})
    moving = v4.new_output(
        "execute_result", {"text/html": '<figure class="cryoanm-breathing cryoanm-moving">'}
    )
    table = v4.new_output("execute_result", {"text/markdown": "| a |"})
    cells = [
        v4.new_markdown_cell("# A title"),
        v4.new_code_cell('profile = "smoke"', metadata={"tags": ["parameters"]}),
        v4.new_code_cell('profile = "laptop"', metadata={"tags": ["injected-parameters"]}),
        v4.new_code_cell(
            "figures.plot_modes(reference, modes)", outputs=[figure], metadata={"papermill": {"duration": 1}}
        ),
        v4.new_code_cell("Breathing(still=figures.plot_swings(x))", outputs=[moving]),
        v4.new_code_cell("figures.set_style()\nMarkdown(table)", outputs=[table]),
    ]
    parameters = {"profile": "laptop", "structure": "adk_open"}
    return v4.new_notebook(cells=cells, metadata={"papermill": {"parameters": parameters}})


def test_each_figure_says_how_it_was_made(executed):
    page = script("collect_pages").as_page(executed, "01_anm.ipynb", "https://example.org/blob/main")
    kinds = [cell.cell_type for cell in page.cells]
    assert kinds == ["markdown", "markdown", "code", "code", "markdown", "code", "markdown", "code"]
    _, where, first, second = (cell.source for cell in page.cells if cell.cell_type == "markdown")
    assert "profile *laptop*" in where and "*adk_open*" in where
    assert "https://example.org/blob/main/notebooks/01_anm.ipynb" in first
    assert "https://example.org/blob/main/config/laptop.yaml" in first and "adk_open" in first
    assert "<cryoanm_lib.book.figures.plot_modes>" in first
    assert (
        "<cryoanm_lib.book.widgets.Breathing>" in second
        and "<cryoanm_lib.book.figures.plot_swings>" in second
    )


def test_without_an_address_nothing_is_linked(executed):
    page = script("collect_pages").as_page(executed, "01_anm.ipynb", "")
    text = "".join(cell.source for cell in page.cells if cell.cell_type == "markdown")
    assert "profile laptop" in text and "](" not in text


def test_a_page_keeps_the_values_used_and_drops_papermill_s_record(executed):
    page = script("collect_pages").as_page(executed, "01_anm.ipynb", "https://example.org")
    assert page.cells[2].source == 'profile = "laptop"'
    assert "papermill" not in page.metadata
    assert not [cell for cell in page.cells if "papermill" in cell.metadata]


def test_times_are_those_of_the_jobs_that_ran(tmp_path):
    """The last line of a benchmark is that of the run that counts; a short job has no memory to show."""
    (tmp_path / "fit").mkdir()
    (tmp_path / "fit" / "pose-12345678.tsv").write_text("s\tmax_rss\n50\t100\n20\t1024\n")
    (tmp_path / "fit" / "joint-12345678.tsv").write_text("s\tmax_rss\n30\tNA\n")
    *_, row = script("build_facts").times(tmp_path).splitlines()
    assert row == "| fit | 2 | 50 s | joint, 30 s | 1.0 GiB |"


def test_the_cost_of_particles_follows_from_the_rate():
    """A fifth of a second of a core for each, but for what jobs take to begin; and money as hours."""
    cheap, dear = (script("build_facts").core_hours(price).splitlines() for price in (1.0, 3.0))
    for line, tripled, images in zip(cheap[2:], dear[2:], (10**5, 10**6, 10**7), strict=True):
        cells = [cell.strip().replace(",", "") for cell in line.strip("|").split("|")]
        hours, begun = float(cells[2]), float(cells[3].removesuffix(" %")) / 100
        assert hours * (1 - begun) == pytest.approx(images * 594 / 2900 / 3600, rel=0.1)
        assert float(tripled.split("|")[6].replace(",", "")) == pytest.approx(3 * float(cells[5]), rel=1e-2)

rule book:
    # Starts from an empty build folder: a page that Sphinx takes from its cache shows no warnings,
    # and a page that has left the table of contents would stay.
    input:
        ["_config.yml", "book/_toc.yml", "book/references.bib"],
        sorted(str(p) for p in Path("book").glob("*.md")),
        [str(p) for p in sorted(Path("book").glob("_*/*.*")) if p.parent.name in ("_static", "_ext")],
        pages=expand("results/notebooks/{notebook}.ipynb", notebook=NOTEBOOKS),
    output:
        BOOK,
    log:
        "results/logs/book.log",
    params:
        python=sys.executable,
    threads: 1
    resources:
        mem_mb=1000,
    conda:
        "../../environment.yml"
    shell:
        "rm -rf book/_build"
        " && {params.python:q} workflow/scripts/collect_pages.py book/notebooks {input.pages:q} > {log:q} 2>&1"
        " && jupyter-book build --config _config.yml --path-output book -W --keep-going book >> {log:q} 2>&1"

rule book:
    # Starts from an empty build folder: a page that Sphinx takes from its cache shows no warnings,
    # and a page that has left the table of contents would stay.
    input:
        ["_config.yml", "book/_toc.yml", "book/references.bib", "pyproject.toml", "tests/counts.json"],
        sorted(str(p) for p in Path("book").glob("*.md")),
        [str(p) for p in sorted(Path("book").glob("_*/*.*")) if p.parent.name in ("_static", "_ext")],
        sources("book/figures/", "book/tables", "book/windows"),
        metrics=METRICS,
        pages=expand("results/notebooks/{notebook}.ipynb", notebook=NOTEBOOKS),
    output:
        BOOK,
    log:
        "results/logs/book.log",
    params:
        python=sys.executable,
        profile=PROFILE,
        structure=STRUCTURE,
    threads: 1
    resources:
        mem_mb=1000,
    conda:
        "../../environment.yml"
    shell:
        "rm -rf book/_build"
        " && {params.python:q} workflow/scripts/collect_pages.py book/notebooks {input.pages:q} > {log:q} 2>&1"
        " && {params.python:q} workflow/scripts/build_facts.py book/generated {input.metrics:q} results/benchmarks"
        " --profile {params.profile:q} --structure {params.structure:q} >> {log:q} 2>&1"
        " && {params.python:q} workflow/scripts/list_licences.py book/generated/licences.md >> {log:q} 2>&1"
        " && jupyter-book build --config _config.yml --path-output book -W --keep-going book >> {log:q} 2>&1"
        # Of thousands of lines, those that say what is wrong come last.
        " || {{ wrong=$(grep -n -E 'WARNING|ERROR' {log:q}); echo \"$wrong\" >> {log:q}; exit 1; }}"


rule pdf:
    # The same pages as one, printed. Not made unless asked for: it needs a Chromium.
    input:
        BOOK,
        "book/_static/print.css",
    output:
        "results/book.pdf",
    log:
        "results/logs/pdf.log",
    params:
        python=sys.executable,
    threads: 1
    resources:
        mem_mb=1500,
    conda:
        "../../environment.yml"
    shell:
        "jupyter-book build --config _config.yml --path-output book --builder singlehtml -W --keep-going book"
        " > {log:q} 2>&1"
        " && {params.python:q} workflow/scripts/print_book.py book/_build/singlehtml/intro.html {output:q}"
        " >> {log:q} 2>&1"

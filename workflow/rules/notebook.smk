rule notebook:
    # Runs a notebook on the chosen profile and structure. A notebook that fails leaves what it
    # had done, with the error marked in it, in results/failed/, and no target.
    input:
        LIBRARY,
        as_file(STRUCTURE),
        PROFILE_FILES,
        lambda wildcards: needs(wildcards.notebook),
        notebook="notebooks/{notebook}.ipynb",
    output:
        "results/notebooks/{notebook}.ipynb",
    log:
        "results/logs/notebook/{notebook}.log",
    benchmark:
        "results/benchmarks/notebook/{notebook}.tsv"
    params:
        python=sys.executable,
        profile=PROFILE,
        structure=STRUCTURE,
    threads: 2
    resources:
        mem_mb=3000,
        torch=lambda wildcards, threads: torch_threads(threads),
    conda:
        "../../environment.yml"
    shell:
        "OMP_NUM_THREADS={resources.torch} MKL_NUM_THREADS={resources.torch}"
        " {params.python:q} workflow/scripts/run_notebook.py"
        " --profile {params.profile:q} --structure {params.structure:q} --results results"
        " --partial results/failed/{wildcards.notebook}.ipynb"
        " {input.notebook:q} {output:q} > {log:q} 2>&1"

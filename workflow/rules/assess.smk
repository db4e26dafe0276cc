rule assess:
    # Refines the test images of a finished fit and tests every answer. Edits of what trains redo the fit, and so this.
    input:
        AFTER_TRAINING_SOURCES,
        lambda wildcards: fit_files(ASSESSED[wildcards.assessment]),
    output:
        [f"results/assessments/{{assessment}}-{{digest}}/{file}" for file in ASSESSMENT_FILES],
    log:
        "results/logs/assess/{assessment}-{digest}.log",
    benchmark:
        "results/benchmarks/assess/{assessment}-{digest}.tsv"
    params:
        python=sys.executable,
        profile=PROFILE,
        structure=STRUCTURE,
    threads: 2
    resources:
        mem_mb=2500,
        torch=lambda wildcards, threads: torch_threads(threads),
    conda:
        "../../environment.yml"
    shell:
        "OMP_NUM_THREADS={resources.torch} MKL_NUM_THREADS={resources.torch}"
        " {params.python:q} -m cryoanm_lib assess"
        " --profile {params.profile:q} --structure {params.structure:q} --results results"
        " {wildcards.assessment} > {log:q} 2>&1"

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
        profile=PROFILE,
        structure=STRUCTURE,
    threads: 2
    resources:
        mem_mb=2500,
    run:
        shell(
            "OMP_NUM_THREADS={n} MKL_NUM_THREADS={n} {sys.executable:q} -m cryoanm_lib assess"
            " --profile {params.profile:q} --structure {params.structure:q} --results results"
            " {wildcards.assessment} > {log:q} 2>&1",
            n=torch_threads(threads),
        )

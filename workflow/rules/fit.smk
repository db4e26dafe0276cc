rule fit:
    # Trains one experiment. The folder carries the hash of its configuration, so the fits of
    # different profiles and structures stand side by side and are never taken for one another.
    input:
        TRAINING_SOURCES,
        as_file(STRUCTURE),
    output:
        [f"results/fits/{{experiment}}-{{digest}}/{file}" for file in FIT_FILES],
    log:
        "results/logs/fit/{experiment}-{digest}.log",
    benchmark:
        "results/benchmarks/fit/{experiment}-{digest}.tsv"
    params:
        python=sys.executable,
        profile=PROFILE,
        structure=STRUCTURE,
    threads: 2
    resources:
        mem_mb=2000,
        torch=lambda wildcards, threads: torch_threads(threads),
    conda:
        "../../environment.yml"
    shell:
        "OMP_NUM_THREADS={resources.torch} MKL_NUM_THREADS={resources.torch}"
        " {params.python:q} -m cryoanm_lib fit"
        " --profile {params.profile:q} --structure {params.structure:q} --results results"
        " {wildcards.experiment} > {log:q} 2>&1"

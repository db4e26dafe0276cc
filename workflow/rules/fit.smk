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
        profile=PROFILE,
        structure=STRUCTURE,
    threads: 2
    resources:
        mem_mb=1500,
    run:
        discard_if_older(f"{Path(output[0]).parent}/checkpoint.safetensors", input)
        shell(
            "OMP_NUM_THREADS={n} MKL_NUM_THREADS={n} {KEEP_MEMORY} {sys.executable:q} -m cryoanm_lib fit"
            " --profile {params.profile:q} --structure {params.structure:q} --results results"
            " {wildcards.experiment} > {log:q} 2>&1",
            n=torch_threads(threads),
        )

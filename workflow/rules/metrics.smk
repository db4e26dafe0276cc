rule metrics:
    # Every headline number, one object an experiment or assessment, beside the paper's value.
    input:
        fit_files(*EXPERIMENTS),
        assessment_files(*ASSESSED),
        PROFILE_FILES,
    output:
        report(METRICS, category="Results", labels={"file": "headline numbers"}),
    log:
        "results/logs/metrics.log",
    params:
        python=sys.executable,
        profile=PROFILE,
        structure=STRUCTURE,
    threads: 1
    conda:
        "../../environment.yml"
    shell:
        "{params.python:q} -m cryoanm_lib metrics --profile {params.profile:q}"
        " --structure {params.structure:q} --results results > {log:q} 2>&1"


rule check_metrics:
    # Last, so that a number out of range fails the run by name and the book that shows it is there to read.
    input:
        ancient(BOOK),
        metrics=METRICS,
        expected="config/expected.yaml",
    output:
        report("results/metrics_check.txt", category="Results", labels={"file": "check of their ranges"}),
    log:
        "results/logs/check_metrics.log",
    params:
        python=sys.executable,
        profile=PROFILE,
        structure=STRUCTURE,
    threads: 1
    conda:
        "../../environment.yml"
    shell:
        "{params.python:q} -m cryoanm_lib check --profile {params.profile:q}"
        " --structure {params.structure:q} {input.metrics:q} > {log:q} 2>&1 && cp {log:q} {output:q}"

# Posteriors of many particles, some shards a job, on a laptop or on a cluster:
#   snakemake --snakefile workflow/particles.smk --configfile run.yaml --cores 8
#   snakemake --snakefile workflow/particles.smk --configfile run.yaml --profile profiles/slurm
#
# The configuration, by --configfile or --config, names settings of `cryoanm infer` (particles, reference, modes …, with
# an underscore for a hyphen), `out`, the folder of the run, and if need be
#   shards_per_job   how many go together in a job, which reads the table once (default 10)
#   threads          of each job, the same for all (default 1)
#   device           that computes posteriors, cuda or auto in place of cpu: each job then asks for a GPU
#   cryoanm          the command, where it is not on the PATH of the jobs
#
# prepare -> shards (many jobs) -> finish
#
# Snakemake removes what a job that failed, or that it killed, has made. It is told of marks in `out`/jobs alone: what
# was inferred is none of its files, and no job makes again what is there.
import json
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

OWN = {"out": None, "shards_per_job": 10, "threads": 1, "device": "cpu", "cryoanm": "cryoanm"}
if missing := [key for key in ("particles", "reference", "out") if not config.get(key)]:
    raise WorkflowError(f"the configuration lacks {', '.join(missing)}: give it by --configfile or --config")
OUT, PER_JOB, THREADS, DEVICE, CRYOANM = (config.get(key, default) for key, default in OWN.items())
OUT = str(Path(OUT))
JOBS = f"{OUT}/jobs"


def options(name, value):
    """A setting as `cryoanm infer` takes it."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, dict):
        return [f"{flag}={label}={number}" for label, number in value.items()]
    if isinstance(value, list):
        return [flag, *map(str, value)]
    if value is None or value is False:  # and not 0, which is a number
        return []
    return [flag] if value is True else [f"{flag}={value}"]


PLAN = {name: value for name, value in config.items() if name not in (*OWN, "particles")}
ASKED = shlex.join([config["particles"], "--out", OUT, *(word for item in PLAN.items() for word in options(*item))])
ON = shlex.join(["--device", DEVICE])
GPUS = int(DEVICE != "cpu")
RUN = f"OMP_NUM_THREADS={THREADS} NUMBA_NUM_THREADS={THREADS} {CRYOANM}"


def jobs():
    """The first and the last shard of each job."""
    total = json.loads(Path(OUT, "plan.json").read_text(encoding="utf-8"))["shards"]
    return [(first, min(first + PER_JOB, total) - 1) for first in range(0, total, PER_JOB)]


def forget():
    """Marks of what is no longer there, because somebody has removed it."""
    if not Path(OUT, "learned").exists():
        Path(JOBS, "prepared").unlink(missing_ok=True)
    for first, last in jobs() if Path(OUT, "plan.json").exists() else ():
        if not all(Path(OUT, "shards", f"{n:05d}.safetensors").exists() for n in range(first, last + 1)):
            Path(JOBS, f"{first:05d}-{last:05d}").unlink(missing_ok=True)
            Path(JOBS, "finished").unlink(missing_ok=True)


forget()


def marks(wildcards):
    """Of all jobs, as soon as it is known which there are."""
    checkpoints.prepare.get()
    return [f"{JOBS}/{first:05d}-{last:05d}" for first, last in jobs()]


def reason(log):
    """What a job said last."""
    lines = log.read_text(encoding="utf-8").strip().splitlines() if log.is_file() else []
    return lines[-1] if lines else "it said nothing: it never began, was killed, or its machine was lost"


wildcard_constraints:
    first=r"\d+",
    last=r"\d+",


localrules:
    all,


rule all:
    default_target: True
    input:
        f"{JOBS}/finished",


checkpoint prepare:
    output:
        touch(f"{JOBS}/prepared"),
    log:
        f"{JOBS}/prepared.log",
    params:
        run=RUN,
        on=ON,
        asked=ASKED,
    threads: THREADS
    resources:
        gpu=GPUS,
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    shell:
        "{params.run} infer {params.asked} {params.on} --prepare > {log:q} 2>&1"


rule shards:
    input:
        ancient(rules.prepare.output),
    output:
        touch(f"{JOBS}/{{first}}-{{last}}"),
    log:
        f"{JOBS}/{{first}}-{{last}}.log",
    params:
        run=RUN,
        on=ON,
        out=shlex.quote(OUT),
        numbers=lambda wildcards: list(range(int(wildcards.first), int(wildcards.last) + 1)),
    threads: THREADS
    resources:
        gpu=GPUS,
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    shell:
        "{params.run} shard {params.out} {params.numbers} {params.on} > {log:q} 2>&1"


rule finish:
    input:
        ancient(marks),
    output:
        touch(f"{JOBS}/finished"),
    log:
        f"{JOBS}/finished.log",
    params:
        run=RUN,
        on=ON,
        asked=ASKED,
    threads: THREADS
    resources:
        gpu=GPUS,
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    shell:
        "{params.run} infer {params.asked} {params.on} --quiet > {log:q} 2>&1"


onerror:
    for name in ("prepared", "finished"):
        if not Path(JOBS, name).exists() and Path(JOBS, f"{name}.log").exists():
            print(f"not {name}: {reason(Path(JOBS, f'{name}.log'))}", file=sys.stderr)
    for first, last in jobs() if Path(JOBS, "prepared").exists() else ():
        left = [n for n in range(first, last + 1) if not Path(OUT, "shards", f"{n:05d}.safetensors").exists()]
        if left:
            why = reason(Path(JOBS, f"{first:05d}-{last:05d}.log"))
            print(f"missing: cryoanm shard {shlex.quote(OUT)} {' '.join(map(str, left))}\n  {why}", file=sys.stderr)
    print("The same snakemake command goes on with what is missing.", file=sys.stderr)

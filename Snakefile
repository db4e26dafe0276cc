# Rebuilds every figure, number and page:   snakemake --cores 4
#   --config profile=smoke|laptop|full|paper   how much is computed (default: laptop)
#   --config structure=adk_open|<PDB ID>|<path to a PDB or mmCIF file>   which protein
#
# fit (one per experiment) -> notebook (papermill) -> book (Jupyter Book)
#     -> assess            -> metrics  -> check_metrics
from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"


wildcard_constraints:
    experiment="|".join(EXPERIMENTS),
    assessment="|".join(ASSESSED),
    digest="[0-9a-f]{8}",
    notebook="|".join(NOTEBOOKS),


include: "workflow/rules/fit.smk"
include: "workflow/rules/assess.smk"
include: "workflow/rules/metrics.smk"
include: "workflow/rules/notebook.smk"
include: "workflow/rules/book.smk"


rule all:
    default_target: True
    input:
        BOOK,
        "results/metrics_check.txt",

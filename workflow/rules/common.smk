# What is built, from what, and with how many threads. No rules here: these names serve all rule files.
import getpass
import json
import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PROFILES = ("smoke", "laptop", "full", "paper")
DEFAULTS = {"profile": "laptop", "structure": "adk_open"}

# What each notebook shows: fits and assessments by their names, and files.
# A notebook opens what it needs from results/; nothing else in the workflow depends on the pairing.
METRICS = "results/metrics.json"
REFERENCE = "cryoanm_lib/data/reference_full.json"
BENCHMARKS = "cryoanm_lib/data/reference_bench.json"
NOTEBOOKS = {
    "00_five_minutes": [REFERENCE],
    "01_anm": [],
    "02_projection": [],
    "03_likelihood_landscape": [],
    "04_frequency_marching": [
        *("pose_marching", "pose_marching_paper"),
        *("pose_full_resolution", "pose_full_resolution_paper"),
        *("pose_without_marching", "pose_without_marching_seed_2", "pose_without_marching_seed_3"),
    ],
    "05_pseudo_symmetry": [
        *("pose_marching", "pose_one_component"),
        *("simulated_two_components", "simulated_one_component"),
        REFERENCE,
    ],
    "06_joint_inference": [
        *("pose_then_amplitude", "pose_then_amplitude_paper"),
        *("joint", "joint_paper"),
    ],
    "07_experiments": [METRICS, REFERENCE],
    "08_exact_posterior": [
        *("pose_amplitude", "pose_amplitude_paper", "joint"),
        *("pose_amplitude_refined", "joint_refined", "pose_amplitude_paper_refined"),
        METRICS,
    ],
    "09_wrong_model": [],
    "10_three_dimensions": [
        *("so3_all_latents", "so3_any_noise"),
        *("so3_all_latents_refined", "so3_noise_0_25_refined", "so3_noise_0_43_refined"),
        REFERENCE,
    ],
    "11_views": ["so3_all_latents_refined"],
    "12_costs": [REFERENCE, BENCHMARKS],
    "13_summary": [METRICS, REFERENCE],
    "14_real_microscope": [],
    "15_real_molecule": [],
    "16_own_particles": [],
    "17_population": ["so3_any_noise"],
}

# An edit of the library retrains. What tests a finished fit does not, nor what only draws and tabulates.
LIBRARY = sorted(str(p) for kind in ("py", "html", "css", "js", "csv", "safetensors") for p in Path("cryoanm_lib").rglob(f"*.{kind}"))
ASSESSING = (
    *("numerics/segment_ops", "numerics/per_image_rng", "checks/predictive"),
    *("inference/templates", "inference/adaptive_lattice", "inference/exact_posterior", "inference/gaussian_mixture"),
    *("inference/peak_finding", "inference/lattice_search", "inference/so3_", "inference/refinement"),
    *("inference/luzzati", "inference/displacement", "inference/place_error"),
    *("inference/reference_error", "inference/moved_reference"),
    *("inference/population", "inference/gaussian_population", "inference/smooth_population"),
    *("inference/likelihoods", "inference/tally", "inference/identifiability"),
    "experiments/assess",
)
SHOWING = ("analysis/", "book/", "checks/referees", "experiments/metrics", "experiments/reference", "numerics/timing")


def sources(*parts):
    """Files of the library whose names begin with one of these."""
    return [path for path in LIBRARY if path.startswith(tuple(f"cryoanm_lib/{part}" for part in parts))]


TRAINING_SOURCES = [path for path in LIBRARY if path not in sources(*ASSESSING, *SHOWING)]
AFTER_TRAINING_SOURCES = sources(*ASSESSING)

RECORDS = ("metrics.json", "provenance.json")
FIT_FILES = (*RECORDS, "config.json", "history.json", "weights.safetensors", "predictions.safetensors")
ASSESSMENT_FILES = (*RECORDS, "posteriors.safetensors")
BOOK = "book/_build/html/index.html"


def as_typed(key, value):
    """The text given on the command line: Snakemake turns 1e10, a PDB ID, into a number."""
    typed = [arg for arg in workflow.config_settings.config_args or () if arg.startswith(f"{key}=")]
    if not typed:
        return value
    text = typed[-1].partition("=")[2]
    return text[1:-1] if text[:1] in ("'", '"') and text[:1] == text[-1:] else text


def refuse_braces(path, what):
    """Snakemake fills in what stands in braces, in the paths that it is given too."""
    for brace in "{}":
        if brace in path:
            raise WorkflowError(f"{what}, {path}, has {brace!r} in it, which Snakemake cannot take: rename it")


def read_settings(given):
    """The profile and the structure asked for, or an error that names what is allowed."""
    for key in given:
        if key not in DEFAULTS:
            raise WorkflowError(f"unknown --config key '{key}'; allowed: {', '.join(DEFAULTS)}")
    profile, structure = (as_typed(key, given.get(key, default)) for key, default in DEFAULTS.items())
    if profile not in PROFILES:
        raise WorkflowError(f"unknown profile '{profile}'; allowed: {', '.join(PROFILES)}")
    if not isinstance(structure, str) or not structure:
        raise WorkflowError(f"structure is {structure!r}; allowed: a name such as adk_open, a PDB ID, or a path")
    refuse_braces(structure, "the path of the structure")
    return profile, structure


def real_cores():
    """Cores that this process may use, which can be fewer than --cores promises."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


# torch's threads wait for work by spinning, for milliseconds, on cores that the threads of our loops could use.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def torch_threads(threads):
    """Share of the real cores due to a job that was granted `threads` of --cores.

    Every job that trains or runs a notebook asks for two threads, so --cores 4 on two real
    cores runs two jobs of one torch thread each, and never four threads on two cores.
    """
    return max(1, threads * min(real_cores(), workflow.cores) // workflow.cores)


def as_file(structure):
    """The structure as an input file if it is a path, so that an edited file retrains; else nothing."""
    return [structure] if Path(structure).is_file() else []


def artifact_folders():
    """Folder of each fit and each assessment, below results/, and which fit an assessment is of.

    Every job reads this file again. It takes the folders from the run that started it, which spares
    it the seconds that importing torch would cost.
    """
    handed_down = json.loads(os.environ.get("CRYOANM_ARTIFACTS", "{}"))
    if handed_down.get("of") == [PROFILE, STRUCTURE]:
        return handed_down
    sys.path.insert(0, os.getcwd())  # `snakemake` is a console script, which leaves this folder out
    from cryoanm_lib.experiments.profile import load_profile
    from cryoanm_lib.errors import CryoANMError

    try:
        setup = load_profile(PROFILE, structure=STRUCTURE)
        setup.forward_model()  # a structure that cannot be used is one error now, and not one for each job
    except CryoANMError as error:
        raise WorkflowError(f"profile {PROFILE}, structure {STRUCTURE}: {error}") from None
    handed_down = {
        "of": [PROFILE, STRUCTURE],
        "fits": {name: setup.run(name).path.as_posix() for name in setup.runs},
        "assessments": {name: setup.assessed(name).path.as_posix() for name in setup.assessments},
        "assessed": {name: section.of for name, section in setup.assessments.items()},
    }
    os.environ.update(CRYOANM_ARTIFACTS=json.dumps(handed_down))
    return handed_down


def fit_files(*experiments):
    """Everything that the fits of these experiments leave in results/fits/."""
    return [f"results/{ARTIFACTS['fits'][name]}/{file}" for name in experiments for file in FIT_FILES]


def assessment_files(*assessments):
    """Everything that these assessments leave in results/assessments/."""
    folders = ARTIFACTS["assessments"]
    return [f"results/{folders[name]}/{file}" for name in assessments for file in ASSESSMENT_FILES]


def needs(notebook):
    """Files that must exist before this notebook is run."""
    files = [need for need in NOTEBOOKS[notebook] if need in (METRICS, REFERENCE, BENCHMARKS)]
    runs = [need for need in NOTEBOOKS[notebook] if need not in files]
    unknown = [name for name in runs if name not in (*EXPERIMENTS, *ASSESSED)]
    if unknown:
        raise WorkflowError(
            f"notebook {notebook} needs '{unknown[0]}', which config/{PROFILE}.yaml does not define; it "
            f"defines: {', '.join((*EXPERIMENTS, *ASSESSED))}"
        )
    fits, assessments = ([name for name in runs if name in known] for known in (EXPERIMENTS, ASSESSED))
    return fit_files(*fits) + assessment_files(*assessments) + files


def join_those_alive():
    """Hold a lock of this folder as long as this process lives; take away what killed runs have left locked.

    Each Snakemake here shares the lock, and so does each job, by a file that its shell opens and hands down.
    Where nobody else has it, Snakemake's own locks are of runs that were killed. A file system without such
    locks leaves it to the reader to say so. On some, a shared lock is for files that can be read.
    """
    if fcntl is None:
        return None
    own = Path(".snakemake")
    own.mkdir(exist_ok=True)
    handle = open(own / "alive", "a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # somebody lives
        pass
    except OSError as error:
        logger.warning(
            f"{own.absolute()} cannot hold a lock ({error}): going on without. After a run that was killed, Snakemake will "
            "call this folder locked: `snakemake --unlock` frees it, once no job of that run is left"
        )
        return None
    else:
        for left in (own / "locks").glob("*"):
            left.unlink()
    fcntl.flock(handle, fcntl.LOCK_SH)
    join = "import fcntl; fcntl.flock(9, fcntl.LOCK_SH)"
    shell.prefix(f'set -euo pipefail; exec 9<> .snakemake/alive; {shlex.quote(sys.executable)} -c "{join}"; ')
    return handle


refuse_braces(os.getcwd(), "the path of this checkout")
refuse_braces(sys.executable, "the path of Python")
ALIVE = join_those_alive()
PROFILE, STRUCTURE = read_settings(config)
PROFILE_FILES = sorted({"config/laptop.yaml", f"config/{PROFILE}.yaml"})  # the others are laid over the laptop's

# Each rule names environment.yml, so that reports and linters see what it needs; Snakemake builds no environment from it.
# Jobs use this very interpreter, its tools and its kernel, whatever else the machine has installed.
TOOLS = str(Path(sys.executable).parent)
os.environ.update(
    PATH=os.pathsep.join([TOOLS, os.environ.get("PATH", "")]),
    JUPYTER_PREFER_ENV_PATH="1",
    PYTHONNOUSERSITE="1",
    NO_COLOR="1",
)
os.environ.pop("JUPYTER_PATH", None)
try:
    getpass.getuser()
except (KeyError, OSError):  # a user without a name, which Snakemake writes into its log
    os.environ.update(USER=str(os.getuid()))
if shlex.quote(sys.executable) != sys.executable:  # Snakemake pastes it unquoted into the commands that start `run` rules
    sys.executable = Path(sys.executable).name

ARTIFACTS = artifact_folders()
EXPERIMENTS, ASSESSED = tuple(ARTIFACTS["fits"]), ARTIFACTS["assessed"]

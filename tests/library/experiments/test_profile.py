"""Profiles are read, checked and hashed."""

import copy
import hashlib
import inspect
import json
import math
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

import pytest
import yaml
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st
from pydantic_core import to_jsonable_python

import cryoanm_lib
from cryoanm_lib.errors import ConfigurationError
from cryoanm_lib.experiments.profile import Profile, load_profile
from cryoanm_lib.experiments.profile_files import PROFILES, config_folder
from cryoanm_lib.experiments.reference import load_reference, reference_path
from cryoanm_lib.experiments.run import SCHEMA
from cryoanm_lib.experiments.weights import weights_made
from cryoanm_lib.imaging.latents import LATENTS
from cryoanm_lib.settings import Section

MINIMAL = {
    "experiments": {"one": {"title": "One", "infer": ["pose"], "stages": [{"resolution": 16, "steps": 5}]}}
}


def write(tmp_path: Path, content: dict | str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def changed(*keys: str | int, to, of: dict = MINIMAL) -> dict:
    """A copy of the minimal profile, or of another, with one value put in, at a path of keys."""
    content = copy.deepcopy(of)
    place = content
    for key in keys[:-1]:
        place = place.setdefault(key, {}) if isinstance(place, dict) else place[key]
    place[keys[-1]] = to
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the files of all examples of a property, one after the other."""
    return tmp_path_factory.mktemp("profiles")


@pytest.mark.parametrize("name", PROFILES)
def test_the_profiles_of_the_book_are_valid(name) -> None:
    profile = load_profile(name)
    assert profile.name == name
    for experiment in profile.experiments:
        run = profile.run(experiment)
        assert run.stages or run.section.weights
        assert run.model().inferred


def test_every_task_is_solved_by_both_recipes() -> None:
    """In all profiles, so that every notebook finds what it shows; but the outlook is ours alone."""
    for name in PROFILES:
        runs = load_profile(name).runs
        tasks = {
            recipe: {s.task for s in runs.values() if s.recipe == recipe} for recipe in ("ours", "paper")
        }
        assert tasks["ours"] == tasks["paper"] | {"so3_all_latents"} and len(tasks["paper"]) == 11
        assert {"pose_one_component", "simulated_two_components", "simulated_one_component"} <= set(runs)


def test_the_papers_recipe_is_the_papers() -> None:
    profile = load_profile("paper")
    for name, section in profile.runs.items():
        if section.recipe == "paper":
            guide = section.guide
            assert (section.training_images, section.batch_size, guide.image_size) == (2000, 500, 64), name
            assert (guide.components, guide.stratified, guide.upright) == (2, False, False), name
            for stage in section.stages:
                # 4000 epochs of four batches
                assert (stage.steps, stage.learning_rate, stage.objective) == (16000, 1e-3, "elbo"), name
                assert stage.final_learning_rate is None and stage.settle is None, name


def test_a_profile_is_laid_over_another(tmp_path) -> None:
    content = {"based_on": "laptop", "test_images": 7, "experiments": {"joint": {"title": "Other"}}}
    profile, laptop = load_profile(write(tmp_path, content)), load_profile("laptop")
    assert profile.test_images == 7 and profile.window == laptop.window
    assert profile.runs["joint"].title == "Other"
    assert profile.runs["joint"].stages == laptop.runs["joint"].stages
    assert profile.runs["pose"] == laptop.runs["pose"]


@pytest.mark.parametrize("base", ["nowhere", "full", 3, ["laptop"]])
def test_a_base_that_does_not_exist_is_refused(tmp_path, base) -> None:
    with pytest.raises(ConfigurationError, match=r"based_on = .* choose from laptop"):
        load_profile(write(tmp_path, {"based_on": base}))


def test_a_file_of_the_name_of_its_base_may_be_based_on_it(tmp_path) -> None:
    path = tmp_path / "laptop.yaml"
    path.write_text("based_on: laptop\ntest_images: 3\n")
    assert load_profile(path).test_images == 3


@pytest.mark.parametrize(
    ("experiments", "message"),
    [
        ({"one": {"more_seeds": [2, 2]}}, r"one.more_seeds repeats a seed: its runs have \[1, 2, 2\]"),
        ({"one": {"more_seeds": [1]}}, r"one.more_seeds repeats a seed: its runs have \[1, 1\]"),
        ({"one": {"more_seeds": [2]}, "one_seed_2": {}}, "one_seed_2 has the name of a repeat of one"),
        ({"one": {}, "two": {"task": "one"}}, "two and one are both 'ours' of task 'one'"),
        (
            {"one": {}, "two": {"task": "one", "recipe": "paper", "infer": ["defocus"]}},
            "infers other latents",
        ),
    ],
)
def test_runs_that_would_be_mistaken_for_one_another_are_refused(tmp_path, experiments, message) -> None:
    section = MINIMAL["experiments"]["one"]
    content = {"experiments": {name: section | changes for name, changes in experiments.items()}}
    with pytest.raises(ConfigurationError, match=message):
        load_profile(write(tmp_path, content))


def test_repeats_differ_by_their_seed_alone(tmp_path) -> None:
    profile = load_profile(write(tmp_path, changed("experiments", "one", "more_seeds", to=[5, 6])))
    assert list(profile.runs) == ["one", "one_seed_5", "one_seed_6"]
    assert [profile.run(name).seed for name in profile.runs] == [1, 5, 6]
    assert len({profile.run(name).config_hash for name in profile.runs}) == 3
    assert {section.task for section in profile.runs.values()} == {"one"}


def test_length_scales_the_steps_of_a_recipe(tmp_path) -> None:
    section = MINIMAL["experiments"]["one"]
    recipes = ("ours", "paper", "between")
    content = {
        "length": {"ours": 2.0, "paper": 3.0, "between": 0.01},
        "experiments": {name: section | {"task": "one", "recipe": name} for name in recipes},
    }
    profile = load_profile(write(tmp_path, content))
    assert [profile.run(name).stages[0].steps for name in recipes] == [10, 15, 1]


def test_a_prior_of_its_own_counts(tmp_path) -> None:
    prior = {"pose_concentration": [4.0, 3.0]}
    own = load_profile(write(tmp_path, changed("experiments", "one", "prior", to=prior)))
    shared = load_profile(write(tmp_path, changed("prior", to=prior)))
    assert own.run("one").model().prior.pose_concentration == (4.0, 3.0)
    assert own.run("one").config_hash == shared.run("one").config_hash


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("model", "noise"), -0.1, r"model.noise = -0.1: .*greater than 0"),
        (("model", "noise"), float("nan"), r"model.noise = nan"),
        (("model", "modes"), 0, r"model.modes = 0: .*greater than or equal to 1"),
        (("model", "box_size"), "64", r"model.box_size = '64': .*integer"),
        (("model", "projector"), "fast", r"model.projector = 'fast': .*'auto', 'fourier', .* or 'sparse'"),
        (("device",), "gpu", r"device = 'gpu': .*'auto', 'cpu' or 'cuda'"),
        (("seed",), 1.5, r"seed = 1.5: .*integer"),
        (
            ("experiments", "one", "infer"),
            ["angle"],
            r"infer.0 = 'angle': .*'pose', 'shift', 'amplitude', 'defocus', .*'contrast'",
        ),
        (("experiments", "one", "infer"), [], r"infer = \[\]: .*at least 1"),
        (("experiments", "one", "stages"), [], r"stages: give at least one"),
        (("experiments", "one", "stages", 0, "resolution"), 15, r"resolution = 15: .*multiple of 2"),
        (("experiments", "one", "stages", 0, "resolution"), 128, r"= 128 is larger than model.box_size = 64"),
        (("experiments", "one", "stages", 0, "steps"), 0, r"steps = 0: .*greater than or equal to 1"),
        (("experiments", "one", "stages", 0, "train"), ["defocus"], r"stages\[0\].train names \['defocus'\]"),
        (("experiments", "one", "stages", 0, "settle"), 2.0, r"settle = 2.0: .*less than 1"),
        (("experiments", "one", "training_images"), 150, r"150 is no multiple of batch_size = 100"),
        (
            ("experiments", "one", "guide"),
            {"encoder": "convolutional", "image_size": 20},
            r"image_size = 20 must be a multiple of 8",
        ),
        (("experiments",), {}, r"experiments.*at least 1"),
        (("experiments", "one", "guide"), {"channels": []}, r"channels = \[\]: .*at least 1"),
        (("experiments", "one", "stages", 0, "train"), [], r"train = \[\]: .*at least 1"),
        (("experiments", "one", "paper"), {"pose_residual": 1.0}, r"'pose_residual_mean_deg'"),
        (("experiments", "../../evil"), MINIMAL["experiments"]["one"], r"'../../evil'.*match pattern"),
        (("prior", "defocus_mean"), float("nan"), r"defocus_mean = nan: .*finite"),
        (("prior", "pose_concentration"), [float("inf"), 0.0], r"pose_concentration.0 = inf: .*finite"),
        (("seed",), 2**40, r"seed = 1099511627776: .*less than"),
        (("model", "atom_width"), 1e-6, r"atom_width = 1e-06: .*greater than or equal to 0.1"),
        (("structure",), "", r"structure = '': .*at least 1"),
    ],
)
def test_a_wrong_value_is_refused_by_name(tmp_path, keys, value, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_profile(write(tmp_path, changed(*keys, to=value)))


def test_a_missing_key_is_named(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=r"experiments.one.title: missing"):
        load_profile(write(tmp_path, {"experiments": {"one": {"infer": ["pose"], "stages": []}}}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [*x]", "no tree of tables"),
        ("a: " + 600 * "[", "not valid YAML"),
        ("a: 1\na: 2", "key 'a' stands twice"),
        ("a: [1", "not valid YAML"),
        ("- 1\n- 2", "holds list"),
        ("seed: 2020-01-01\nexperiments: {}", "date"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(tmp_path, text, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_profile(write(tmp_path, text))


def test_a_number_that_yaml_takes_for_text_gets_a_hint_and_no_echo(tmp_path) -> None:
    stage = "{resolution: 16, steps: 5, learning_rate: 1e-3}"
    text = f"experiments: {{one: {{title: One, infer: [pose], stages: [{stage}]}}}}"
    with pytest.raises(
        ConfigurationError, match=r"= '1e-3': .*wants a point in the number: 1.0e-3"
    ) as raised:
        load_profile(write(tmp_path, text))
    assert len(str(raised.value).splitlines()) == 2


def test_a_stray_file_named_like_an_embedded_structure_changes_nothing(tmp_path, monkeypatch) -> None:
    profile = load_profile(write(tmp_path, MINIMAL))
    before = profile.run("one").config_hash
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adk_open").write_text("not a structure")
    assert profile.run("one").config_hash == before


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'huge' does not exist: choose from .*'smoke'"):
        load_profile("huge")


def test_an_unknown_experiment_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="no experiment 'two'; it has one"):
        load_profile(write(tmp_path, MINIMAL)).run("two")


def test_the_hash_follows_the_content_of_a_structure_file(tmp_path) -> None:
    structure = tmp_path / "x.pdb"
    profile = load_profile(write(tmp_path, MINIMAL), structure=str(structure))
    digests = []
    for text in ("one", "two"):
        structure.write_text(text)
        digests.append(profile.run("one").config_hash)
    assert digests[0] != digests[1]


def test_expected_ranges_name_metrics_of_their_profile() -> None:
    expected = yaml.safe_load((config_folder() / "expected.yaml").read_text())
    assert set(expected) <= set(PROFILES)
    for profile, experiments in expected.items():
        settings = load_profile(profile)
        assert set(experiments) <= {*settings.experiments, *settings.assessments}
        for name, ranges in experiments.items():
            if name in settings.assessments:
                latents = settings.runs[settings.assessments[name].of].infer
                known = {"outlier_fraction", *(f"coverage_{level}" for level in (50, 80, 95))}
                known |= {f"sbc_p_{latent}" for latent in latents}
                known |= {f"{latent}_residual_over_limit" for latent in latents}
                known |= {f"{latent}_standardised_error" for latent in latents}
                known |= {"fraction_within_1deg", "fraction_within_5_limits"}
            else:
                inferred = {LATENTS[latent].metric for latent in settings.runs[name].infer}
                known = {"steps", "pose_flipped_fraction", *inferred, *(f"{key}_limit" for key in inferred)}
                known |= {"pose_residual_median_deg", "best_component_within_15deg"}
                known |= {f"coverage_{level}" for level in (50, 80, 95)}
            assert set(ranges) <= known
            assert all(low <= high for low, high in ranges.values())


def test_every_key_is_described() -> None:
    def sections(schema: dict):
        yield schema
        yield from schema.get("$defs", {}).values()

    for section in sections(Profile.model_json_schema()):
        for key, field in section.get("properties", {}).items():
            assert "description" in field or "$ref" in field or "allOf" in field, key


# Properties, of a profile in which each number of the table below may be changed alone

WHOLE = {
    "experiments": {
        "one": {
            "title": "One",
            "infer": ["pose"],
            "batch_size": 1,
            "guide": {"image_size": 8, "channels": [2]},
            "stages": [{"resolution": 4, "steps": 5}],
            "more_seeds": [7],
        },
        "two": {
            "title": "Two",
            "task": "one",
            "recipe": "between",
            "infer": ["pose", "shift"],
            "model": {"box_size": 100},
            "prior": {"shift_scale": 2.0, "amplitude_scale": [2.0, 1.0]},
            "noise": [0.1, 0.3],
            "stages": [{"resolution": 8, "steps": 5, "train": ["shift"]}],
        },
    },
    "assessments": {"check": {"of": "one", "title": "Check"}},
    "prior": {"pose_concentration": [0.0, 0.0], "contrast_scale": 0.1},
}

Way = tuple[str | int, ...]
ONE, STAGE = ("experiments", "one"), ("experiments", "one", "stages", 0)


class Values(NamedTuple):
    """Those that a key may have, the outermost of them, those just beyond, and all that are refused."""

    taken: st.SearchStrategy
    ends: tuple
    beyond: tuple
    refused: st.SearchStrategy


def whole(low: int, high: int | None = None, step: int = 1) -> Values:
    """Whole numbers between two ends, which belong to them, or from one on."""
    taken = st.integers(low // step, high and high // step).map(lambda n: step * n)
    refused = st.integers(max_value=low - 1) | st.floats(low, low + 100).filter(lambda x: x % 1)
    if step > 1:
        refused |= taken.map(lambda n: n + 1)
    if high is None:
        return Values(taken, (low,), (low - 1,), refused)
    return Values(taken, (low, high), (low - 1, high + 1), refused | st.integers(min_value=high + 1))


def decimal(low: float, high: float = sys.float_info.max, above: bool = False, below: bool = False) -> Values:
    """Finite numbers between two ends, which belong to them unless all are above or below."""
    ends = math.nextafter(low, math.inf) if above else low, math.nextafter(high, -math.inf) if below else high
    beyond = math.nextafter(ends[0], -math.inf), math.nextafter(ends[1], math.inf)
    refused = st.sampled_from([math.nan, *beyond])
    for edge, side in zip(beyond, ("max_value", "min_value"), strict=True):
        refused |= st.floats(**{side: edge}) if math.isfinite(edge) else st.just(edge)
    return Values(st.floats(*ends).map(lambda x: x + 0.0), ends, beyond, refused)  # no -0.0


COUNT, EVEN, FINITE = whole(1, 2**63 - 1), whole(4, 64, step=2), decimal(-sys.float_info.max)
POSITIVE, NOT_NEGATIVE = decimal(0.0, above=True), decimal(0.0)
SHARE, LENGTH = decimal(0.0, 1.0, above=True, below=True), decimal(0.0, 1e6, above=True)
SEED = whole(0, 2**32 - 1)
SEED = SEED._replace(taken=SEED.taken.filter(lambda seed: seed not in (1, 7)))  # those of WHOLE

#: What each number may be, and which hashes change with it: of images, of a fit, of an assessment.
#: Where nothing is said of hashes, they depend on more than this one.
NUMBERS: dict[Way, tuple[Values, str | None]] = {
    ("stride",): (COUNT, "images fit assessment"),
    ("seed",): (SEED, "fit assessment"),
    ("test_images",): (COUNT, "fit assessment"),
    ("window",): (COUNT, "fit assessment"),
    ("model", "modes"): (COUNT, "images fit assessment"),
    ("model", "cutoff"): (POSITIVE, "images fit assessment"),
    ("model", "box_size"): (whole(8), "images fit assessment"),
    ("model", "pixel_size"): (POSITIVE, "images fit assessment"),
    ("model", "atom_width"): (decimal(0.1), "images fit assessment"),
    ("model", "noise"): (POSITIVE, "fit assessment"),
    ("prior", "pose_concentration", 0): (FINITE, "images fit assessment"),
    ("prior", "pose_concentration", 1): (FINITE, "images fit assessment"),
    ("prior", "shift_scale"): (NOT_NEGATIVE, "images fit assessment"),
    ("prior", "amplitude_scale"): (POSITIVE, "images fit assessment"),
    ("prior", "defocus_mean"): (FINITE, "images fit assessment"),
    ("prior", "defocus_scale"): (POSITIVE, "images fit assessment"),
    ("prior", "contrast_mean"): (FINITE, "images fit assessment"),
    ("prior", "contrast_scale"): (NOT_NEGATIVE, "images fit assessment"),
    ("prior", "temperature"): (POSITIVE, None),
    ("prior", "spring_constant"): (POSITIVE, None),
    ("length", "ours"): (LENGTH, None),
    ("length", "paper"): (LENGTH, ""),
    ("length", "between"): (LENGTH, ""),
    (*ONE, "noise"): (POSITIVE, "fit assessment"),
    (*ONE, "test_noise"): (POSITIVE, "fit assessment"),
    (*ONE, "training_images"): (COUNT, "fit assessment"),
    (*ONE, "batch_size"): (COUNT, "fit assessment"),
    (*ONE, "window"): (COUNT, "fit assessment"),
    (*ONE, "seed"): (SEED, "fit assessment"),
    (*ONE, "more_seeds", 0): (SEED, ""),
    (*ONE, "paper", "pose_residual_mean_deg"): (POSITIVE, ""),
    (*ONE, "guide", "components"): (COUNT, "fit assessment"),
    (*ONE, "guide", "image_size"): (whole(8, 64, step=2), "fit assessment"),
    (*ONE, "guide", "references"): (COUNT, "fit assessment"),
    (*ONE, "guide", "channels", 0): (COUNT, "fit assessment"),
    (*STAGE, "resolution"): (EVEN, "fit assessment"),
    (*STAGE, "steps"): (COUNT._replace(taken=st.integers(1, 2**53)), "fit assessment"),  # times a length
    (*STAGE, "learning_rate"): (POSITIVE, "fit assessment"),
    (*STAGE, "final_learning_rate"): (POSITIVE, "fit assessment"),
    (*STAGE, "clip_norm"): (POSITIVE, "fit assessment"),
    (*STAGE, "settle"): (SHARE, "fit assessment"),
    ("assessments", "check", "resolution"): (EVEN, "assessment"),
    ("assessments", "check", "noise"): (POSITIVE, "assessment"),
    ("assessments", "check", "images"): (COUNT, "assessment"),
    ("assessments", "check", "exact_images"): (whole(0), "assessment"),
    ("assessments", "check", "guide_images"): (COUNT, "assessment"),
    ("checks", "draws"): (COUNT, "assessment"),
    ("checks", "guide_images"): (COUNT, "assessment"),
    ("checks", "exact_images"): (COUNT, "assessment"),
}

texts = st.text(st.characters(exclude_categories=["Cs"]))

#: The same of what is no number.
OTHERS: dict[Way, tuple[st.SearchStrategy, str]] = {
    ("name",): (texts, ""),
    ("structure",): (texts.filter(len) | st.just("x" * 300), "images fit assessment"),
    ("chain",): (texts, "images fit assessment"),
    ("residues",): (texts, "images fit assessment"),
    ("device",): (st.sampled_from(["auto", "cpu", "cuda"]), ""),
    ("deterministic",): (st.booleans(), "fit assessment"),
    ("model", "projector"): (st.sampled_from(["fourier", "gridded", "separable"]), "fit assessment"),
    (*ONE, "title"): (texts, ""),
    (*ONE, "task"): (st.from_regex("[a-z][a-z0-9_]*", fullmatch=True), ""),
    (*ONE, "recipe"): (st.sampled_from(["ours", "paper"]), ""),
    (*ONE, "paper_says"): (texts, ""),
    (*ONE, "infer"): (st.permutations(["pose", "amplitude", "defocus"]), "fit assessment"),
    (*ONE, "guide", "stratified"): (st.booleans(), "fit assessment"),
    (*ONE, "guide", "upright"): (st.booleans(), "fit assessment"),
    (*ONE, "guide", "encoder"): (st.sampled_from(["rings", "shared"]), "fit assessment"),
    (*ONE, "guide", "others"): (st.sampled_from(["independent", "learned"]), "fit assessment"),
    (*ONE, "guide", "half"): (st.booleans(), "fit assessment"),
    (*STAGE, "objective"): (st.sampled_from(["elbo", "forward_kl"]), "fit assessment"),
    ("assessments", "check", "title"): (texts, ""),
}
CHANGES = {way: (values.taken, moved) for way, (values, moved) in NUMBERS.items() if moved is not None}
CHANGES |= OTHERS


def named(way: Way) -> str:
    return ".".join(map(str, way))


def held(profile: Profile, way: Way) -> object:
    """What a profile holds at the end of a path of keys."""
    at = profile.model_dump(mode="json")
    for step in way:
        at = at[step]
    return at


def hashes(profile: Profile) -> dict[str, str]:
    """All of the first experiment and of its assessment."""
    return {
        "images": profile.run("one").images_hash,
        "fit": profile.run("one").config_hash,
        "assessment": profile.assessed("check").config_hash,
    }


def test_every_number_of_a_profile_has_a_range_here() -> None:
    numeric = set()
    schema = Profile.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        fields = section["properties"].items()
        numeric |= {key for key, field in fields if {"number", "integer"} & set(str(field).split("'"))}
    tested = {[step for step in way if isinstance(step, str)][-1] for way in NUMBERS}
    assert numeric == tested - {"pose_residual_mean_deg"}


def check_number(folder: Path, way: Way, good: float, bad: float) -> None:
    """One is taken, the other refused by its name and itself."""
    assert held(load_profile(write(folder, changed(*way, to=good, of=WHOLE))), way) == good
    with pytest.raises(ConfigurationError) as refusal:
        load_profile(write(folder, changed(*way, to=bad, of=WHOLE)))
    for part in (*(step for step in way if isinstance(step, str)), repr(bad)):
        assert part in str(refusal.value)


@pytest.mark.parametrize("way", NUMBERS, ids=named)
def test_the_range_of_a_number_ends_where_it_should(folder: Path, way: Way) -> None:
    values, _ = NUMBERS[way]
    for end, beyond in zip(values.ends, values.beyond, strict=True):
        check_number(folder, way, end, beyond)


@given(st.sampled_from([*NUMBERS]), st.data())
def test_a_number_is_taken_in_its_range_and_refused_by_name_outside(
    folder: Path, way: Way, data: st.DataObject
) -> None:
    values, _ = NUMBERS[way]
    check_number(folder, way, data.draw(values.taken, "taken"), data.draw(values.refused, "refused"))


@pytest.mark.parametrize("way", CHANGES, ids=named)
@settings(max_examples=settings().max_examples // 10)  # of each key
@given(st.data())
def test_a_hash_changes_with_what_counts_for_it_and_with_nothing_else(
    folder: Path, way: Way, data: st.DataObject
) -> None:
    values, moved = CHANGES[way]
    first = data.draw(values)
    second = data.draw(values.filter(lambda value: value != first))
    before, after = (
        hashes(load_profile(write(folder, changed(*way, to=value, of=WHOLE)))) for value in (first, second)
    )
    assert {name for name in before if before[name] != after[name]} == set(moved.split())


#: Where a section of each kind stands in a profile, and which hashes an option of it moves.
KINDS: dict[str, tuple[Way, str]] = {
    "program/prior.py:Prior": (("prior",), "images fit assessment"),
    "experiments/schema.py:ModelSection": (("model",), "images fit assessment"),
    "experiments/schema.py:GuideSection": ((*ONE, "guide"), "fit assessment"),
    "experiments/schema.py:ExperimentSection": (ONE, "fit assessment"),
    "inference/training.py:Stage": (STAGE, "fit assessment"),
    "experiments/schema.py:AssessmentSection": (("assessments", "check"), "assessment"),
    "experiments/schema.py:CheckSection": (("checks",), "assessment"),
    "experiments/profile.py:Profile": ((), "fit assessment"),
}

ASK = """
import json, sys
from cryoanm_lib.experiments.profile import load_profile
found = []
for path in sys.argv[1:]:
    run, check = (profile := load_profile(path)).run("one"), profile.assessed("check")
    found.append({"images": run.images_hash, "fit": run.config_hash, "assessment": check.config_hash})
print(json.dumps(found))
"""


def library_with_options(folder: Path) -> None:
    """A copy of the library to each of whose sections somebody has added an option."""
    ours = Path(cryoanm_lib.__file__).parent
    shutil.copytree(ours, folder / ours.name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for kind in KINDS:
        module, name = kind.split(":")
        path = folder / ours.name / module
        head = rf'(class {name}\(\w+\):\n    """.*?"""\n)'
        text, found = re.subn(head, r"\1\n    option: float = 0.0\n", path.read_text("utf-8"), flags=re.S)
        assert found == 1, kind
        path.write_text(text, "utf-8")


def test_an_option_that_is_added_voids_nothing_until_it_is_used(tmp_path) -> None:
    library_with_options(tmp_path)
    paths = [tmp_path / f"{number}" / "mine.yaml" for number in range(1 + len(KINDS))]
    contents = [WHOLE, *(changed(*way, "option", to=1.0, of=WHOLE) for way, _ in KINDS.values())]
    for path, content in zip(paths, contents, strict=True):
        path.parent.mkdir()
        write(path.parent, content)
    ask = [sys.executable, "-c", ASK, *paths]
    said = subprocess.run(ask, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    at_default, *used = json.loads(said)
    assert at_default == hashes(load_profile(paths[0]))
    for (kind, (_, moved)), found in zip(KINDS.items(), used, strict=True):
        assert {name for name in found if found[name] != at_default[name]} == set(moved.split()), kind


#: Of all defaults, for each SCHEMA that there has been.
DEFAULTS = {1: "f6267dfaef60ab1e", 2: "4625ed67e7807c30"}


def sections_in(annotation: object) -> Iterator[type[Section]]:
    if inspect.isclass(annotation) and not get_args(annotation) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from sections_in(part)


def defaults(kind: type[Section], way: str = "") -> Iterator[tuple[str, object]]:
    """Every key that a profile may leave out, with what it is then."""
    for key, field in kind.model_fields.items():
        if not field.is_required():
            yield f"{way}{key}", to_jsonable_python(field.get_default())
        for inner in sections_in(field.annotation):
            yield from defaults(inner, f"{way}{key}.")


def test_hashes_know_by_which_defaults_they_are() -> None:
    """A hash leaves out what stands at its default: it must be another one where that is another."""
    found = dict(defaults(Profile))
    assert {"stride", "prior.spring_constant", "experiments.guide.half", "experiments.stages.settle"} < {
        *found
    }
    text = json.dumps(found, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DEFAULTS[SCHEMA], (
        "a default changed: raise SCHEMA in run.py and record the new digest (where an option was added and "
        "nothing else, record the digest alone)"
    )


def test_what_came_with_the_library_is_of_its_profiles() -> None:
    """The reference run would be made again, and networks be trained anew, if a hash were another.

    What is of an earlier configuration is said to be so where the library keeps it.
    """
    said = (reference_path("full").parent / "README.md").read_text(encoding="utf-8")
    listed = said.partition("```text\n")[2].partition("```")[0].split()
    assert listed == load_reference("full").older(load_profile("full"))
    assert not load_reference("paper").older(load_profile("paper"))
    for profile in map(load_profile, PROFILES):
        for name, section in profile.experiments.items():
            if section.weights:
                images = profile.run(name).images_hash
                assert weights_made(section.weights)["images"] == images, (profile.name, name)
                assert profile.runs[name].weights == section.weights


def shuffled(content: object, source: random.Random) -> object:
    """The same tables, their keys in another order."""
    if isinstance(content, list):
        return [shuffled(each, source) for each in content]
    if not isinstance(content, dict):
        return content
    return {key: shuffled(content[key], source) for key in source.sample([*content], len(content))}


@given(st.from_regex(r"[0-9:.eboxT_+ -]{1,12}|[0-9]{4}-[0-9]{2}-[0-9]{2}", fullmatch=True))
@example("2021-02-30")
@example("0b_")
@example("1" * 5000)
def test_what_yaml_takes_for_a_number_or_a_date_is_taken_or_refused(folder: Path, text: str) -> None:
    try:
        seed = load_profile(write(folder, f"{yaml.safe_dump(MINIMAL)}seed: {text}")).seed
    except ConfigurationError as refusal:
        assert "mine.yaml" in str(refusal)
    else:
        assert seed == yaml.safe_load(text)


@given(st.lists(st.sampled_from([*CHANGES]), max_size=8, unique=True), st.integers(0, 2**32), st.data())
def test_a_profile_written_out_and_read_again_is_the_same(
    folder: Path, ways: list[Way], seed: int, data: st.DataObject
) -> None:
    """With all that was left to a default, and whatever the order of its keys."""
    content = WHOLE
    for way in ways:
        content = changed(*way, to=data.draw(CHANGES[way][0]), of=content)
    try:
        profile = load_profile(write(folder, content))
    except ConfigurationError:
        reject()  # two changes that do not go together
    out = shuffled(profile.model_dump(mode="json"), random.Random(seed))
    again = load_profile(write(folder, yaml.safe_dump(out, sort_keys=False)))
    assert again == profile and hashes(again) == hashes(profile)
    of_runs = ({name: one.run(name).config_hash for name in one.runs} for one in (again, profile))
    assert next(of_runs) == next(of_runs)


SECTIONS: list[Way] = [
    *((), ("model",), ("prior",), ("length",), ("checks",), ("assessments", "check")),
    *(ONE, (*ONE, "guide"), STAGE),
]
#: Any name, and keys that are misspelt or in the wrong place.
names = texts | st.builds(
    lambda key, at, letter: key[:at] + letter + key[at + 1 :],
    st.sampled_from(sorted({str(step) for way in CHANGES for step in way} | {"based_on"})),
    st.integers(0, 12),
    st.sampled_from(["", "s", "_"]),
)


@given(st.sampled_from(SECTIONS), names)
def test_an_unknown_key_is_answered_with_all_that_are_allowed(folder: Path, way: Way, name: str) -> None:
    allowed = {*held(load_profile(write(folder, WHOLE)), way)}
    if not way:
        allowed |= {"based_on", "defaults"}
    if name in allowed:
        reject()
    with pytest.raises(ConfigurationError) as refusal:
        load_profile(write(folder, changed(*way, name, to=1, of=WHOLE)))
    place, answer = str(refusal.value).split(": unknown key; allowed: ")
    assert place.endswith(named((*way, name)))
    assert set(answer.split(", ")) == allowed


@pytest.fixture(scope="module")
def laptop() -> Profile:
    return load_profile("laptop")


@given(st.sampled_from([way for way in NUMBERS if way[0] in {"model", "checks", "length"}]), st.data())
def test_a_profile_is_its_base_but_for_what_it_says(
    folder: Path, laptop: Profile, way: Way, data: st.DataObject
) -> None:
    section, key = way
    value = data.draw(NUMBERS[way][0].taken)
    try:
        profile = load_profile(write(folder, {"based_on": "laptop", section: {key: value}}))
    except ConfigurationError:
        reject()  # a box that the base's schedules do not fit
    assert held(profile, way) == value
    expected = getattr(laptop, section).model_copy(update={key: value})
    assert profile == laptop.model_copy(update={"name": "mine", section: expected})

"""Profiles are read, checked and hashed."""

from pathlib import Path

import pytest
import yaml

from cryoanm_lib.configuration import Profile, load_profile
from cryoanm_lib.diagnostics import RESIDUAL_KEYS
from cryoanm_lib.errors import ConfigurationError
from cryoanm_lib.profile_files import PROFILES, config_folder

MINIMAL = {
    "experiments": {"one": {"title": "One", "infer": ["pose"], "stages": [{"resolution": 16, "steps": 5}]}}
}


def write(tmp_path: Path, content: dict | str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def changed(*keys: str | int, to) -> dict:
    """A copy of the minimal profile with one value put in, at a path of keys."""
    content = yaml.safe_load(yaml.safe_dump(MINIMAL))
    place = content
    for key in keys[:-1]:
        place = place.setdefault(key, {}) if isinstance(place, dict) else place[key]
    place[keys[-1]] = to
    return content


@pytest.mark.parametrize("name", PROFILES)
def test_the_profiles_of_the_book_are_valid(name) -> None:
    profile = load_profile(name)
    assert profile.name == name
    for experiment in profile.experiments:
        assert profile.stages(experiment) or profile.experiment(experiment).weights
        assert profile.program(experiment).inferred


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
    assert profile.experiment("joint").title == "Other"
    assert profile.experiment("joint").stages == laptop.experiment("joint").stages
    assert profile.experiment("pose") == laptop.experiment("pose")


@pytest.mark.parametrize("base", ["nowhere", "full", 3, ["laptop"]])
def test_a_base_that_does_not_exist_is_refused(tmp_path, base) -> None:
    with pytest.raises(ConfigurationError, match=r"based_on = .* choose from laptop"):
        load_profile(write(tmp_path, {"based_on": base}))


def test_a_file_of_the_name_of_its_base_may_be_based_on_it(tmp_path) -> None:
    path = tmp_path / "laptop.yaml"
    path.write_text("based_on: laptop\ntest_images: 3\n")
    assert load_profile(path).test_images == 3


def test_a_misspelt_key_is_answered_with_all_that_are_allowed(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=r"length.our: unknown key; allowed: between, ours, paper"):
        load_profile(write(tmp_path, changed("length", to={"our": 1.0})))
    with pytest.raises(
        ConfigurationError,
        match=r"base_on: unknown key; allowed: assessments, based_on, chain, checks, defaults",
    ):
        load_profile(write(tmp_path, changed("base_on", to="laptop")))


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
    assert [profile.seed_of(name) for name in profile.runs] == [1, 5, 6]
    assert len({profile.config_hash(name) for name in profile.runs}) == 3
    assert {section.task for section in profile.runs.values()} == {"one"}


def test_length_scales_the_steps_of_a_recipe(tmp_path) -> None:
    section = MINIMAL["experiments"]["one"]
    recipes = ("ours", "paper", "between")
    content = {
        "length": {"ours": 2.0, "paper": 3.0, "between": 0.01},
        "experiments": {name: section | {"task": "one", "recipe": name} for name in recipes},
    }
    profile = load_profile(write(tmp_path, content))
    assert [profile.stages(name)[0].steps for name in recipes] == [10, 15, 1]


def test_a_prior_of_its_own_counts(tmp_path) -> None:
    prior = {"pose_concentration": [4.0, 3.0]}
    own = load_profile(write(tmp_path, changed("experiments", "one", "prior", to=prior)))
    shared = load_profile(write(tmp_path, changed("prior", to=prior)))
    assert own.program("one").prior.pose_concentration == (4.0, 3.0)
    assert own.config_hash("one") == shared.config_hash("one")


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("colour",), "red", r"colour: unknown key; allowed: .*seed.*structure"),
        (("model", "pixelsize"), 1.0, r"model.pixelsize: unknown key; allowed: .*pixel_size"),
        (("experiments", "one", "stages", 0, "k"), 16, r"stages.0.k: unknown key; allowed: .*resolution"),
        (("experiments", "one", "guide"), {"depth": 3}, r"guide.depth: unknown key; allowed: channels"),
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
            r"infer.0 = 'angle': .*'pose', 'shift', 'amplitude', 'defocus' or 'contrast'",
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
    before = profile.config_hash("one")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adk_open").write_text("not a structure")
    assert profile.config_hash("one") == before


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'huge' does not exist: choose from .*'smoke'"):
        load_profile("huge")


def test_an_unknown_experiment_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="no experiment 'two'; it has one"):
        load_profile(write(tmp_path, MINIMAL)).experiment("two")


def test_the_hash_follows_what_matters_and_nothing_else(tmp_path) -> None:
    def digest(content: dict, **options) -> str:
        return load_profile(write(tmp_path, content), **options).config_hash("one")

    base = digest(MINIMAL)
    assert base == digest(MINIMAL)
    assert base == digest(changed("device", to="cpu"))
    assert base == digest(changed("experiments", "one", "title", to="Another title"))
    different = [
        digest(changed("seed", to=2)),
        digest(changed("model", "noise", to=0.2)),
        digest(changed("experiments", "one", "batch_size", to=50)),
        digest(changed("experiments", "one", "stages", 0, "steps", to=6)),
        digest(MINIMAL, structure="adk_closed"),
    ]
    assert len({base, *different}) == 1 + len(different)


def test_the_hash_follows_the_content_of_a_structure_file(tmp_path) -> None:
    structure = tmp_path / "x.pdb"
    profile = load_profile(write(tmp_path, MINIMAL), structure=str(structure))
    digests = []
    for text in ("one", "two"):
        structure.write_text(text)
        digests.append(profile.config_hash("one"))
    assert digests[0] != digests[1]


def test_expected_ranges_name_metrics_of_their_profile() -> None:
    expected = yaml.safe_load((config_folder() / "expected.yaml").read_text())
    assert set(expected) <= set(PROFILES)
    for profile, experiments in expected.items():
        settings = load_profile(profile)
        assert set(experiments) <= {*settings.experiments, *settings.assessments}
        for name, ranges in experiments.items():
            if name in settings.assessments:
                latents = settings.experiment(settings.assessment(name).of).infer
                known = {"outlier_fraction", *(f"coverage_{level}" for level in (50, 80, 95))}
                known |= {f"sbc_p_{latent}" for latent in latents}
                known |= {f"{latent}_residual_over_limit" for latent in latents}
                known |= {f"{latent}_standardised_error" for latent in latents}
                known |= {"fraction_within_1deg", "fraction_within_5_limits"}
            else:
                inferred = {RESIDUAL_KEYS[latent] for latent in settings.experiment(name).infer}
                known = {"steps", "pose_flipped_fraction", *inferred, *(f"{key}_limit" for key in inferred)}
                known |= {"pose_residual_median_deg", "best_component_within_15deg"}
            assert set(ranges) <= known
            assert all(low <= high for low, high in ranges.values())


def test_every_key_is_described() -> None:
    def sections(schema: dict):
        yield schema
        yield from schema.get("$defs", {}).values()

    for section in sections(Profile.model_json_schema()):
        for key, field in section.get("properties", {}).items():
            assert "description" in field or "$ref" in field or "allOf" in field, key

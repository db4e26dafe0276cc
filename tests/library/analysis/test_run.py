"""A run on the particles that come with the library: gone on with, reported, exported, never a mixture."""

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import pytest
import torch
from safetensors import safe_open

import cryoanm_lib
from cryoanm_lib import (
    Plan,
    RunFolder,
    export,
    infer,
    particles_of,
    read_cs,
    read_star,
    simulate_stack,
    write_report,
    write_star,
)
from cryoanm_lib.analysis.answers import Answers
from cryoanm_lib.analysis.export import columns_of
from cryoanm_lib.analysis.run_population import RunPopulation
from cryoanm_lib.commands.cryoanm import main
from cryoanm_lib.errors import ArtifactError, CryoANMError, ParticleError
from cryoanm_lib.io.storage import load_json, load_tensors
from cryoanm_lib.numerics.fourier import image_to_coefficients
from cryoanm_lib.numerics.rotation import quaternion_distance
from cryoanm_lib.particles.stacks import opened
from cryoanm_lib.particles.star import quaternions_of_euler
from tests.library.particles.test_cryosparc import save, table_of
from tests.relion import needs_relion

torch.set_num_threads(1)
DATA = Path(cryoanm_lib.__file__).parent / "data"
FEW = 90


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows, beside a stack of their own."""
    folder = tmp_path_factory.mktemp("particles")
    path = folder / "few.star"
    write_star(read_star(DATA / "adk_particles.star")[torch.arange(FEW)], path)
    shutil.copy(DATA / "adk_particles.mrcs", folder)
    return path


def plan_of(table: Path, **settings: object) -> Plan:
    small = {"learn_from": 40, "shard": 40, "twin": 30, "nulls": 10, "detail": 12.0, "beads": True}
    told = {"particles": str(table), "reference": "adk_open", "towards": "adk_closed", **small}
    return Plan.model_validate(told | settings)


@pytest.fixture(scope="module")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return infer(plan_of(table), tmp_path_factory.mktemp("runs") / "run", progress=False)


def held(run: RunFolder) -> dict[str, str]:
    """The checksum of every shard, of all tensors and texts."""
    found = {}
    for path in run.shards():
        with safe_open(path, framework="pt") as file:
            found[path.name] = file.metadata()["checksum"]
    return found


@pytest.fixture
def copied(run: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(run.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def test_every_particle_has_an_answer(run: RunFolder) -> None:
    answers = run.answers(draws=True)
    assert answers.row.tolist() == list(range(FEW))
    assert answers.mean["pose"].shape == (FEW, 4)
    assert answers.draws["amplitude"].shape == (FEW, 16, 3)
    torch.testing.assert_close(answers.mean["pose"].norm(dim=1), torch.ones(FEW))
    assert (answers.deviation > 0).all() and ((answers.p_value >= 0) & (answers.p_value <= 1)).all()
    # draws scatter about the mean by what is claimed, to within a factor of two
    spread = answers.draws["amplitude"].std(1).median(0).values
    claimed = answers.deviation[:, 5:8].median(0).values
    assert ((spread / claimed).log().abs() < 0.7).all()


def test_answers_are_nearer_to_the_truth_than_the_table(run: RunFolder, table: Path) -> None:
    truth = [line.split(",") for line in (DATA / "adk_particles_truth.csv").read_text().splitlines()]
    column = {
        name: torch.tensor([float(row[place]) for row in truth[1 : FEW + 1]], dtype=torch.float64)
        for place, name in enumerate(truth[0])
    }
    answers, stated = run.answers(), read_star(table)
    origin = torch.stack([column["OriginXAngst"], column["OriginYAngst"]], dim=1)
    before = (stated.shift + origin).square().mean().sqrt()
    assert (answers.mean["shift"].double() + origin).square().mean().sqrt() < 0.5 * before
    pose = torch.stack([column[f"Angle{name}"] for name in ("Rot", "Tilt", "Psi")], dim=1)
    true = quaternions_of_euler(pose.numpy())
    errors = [
        2 * (pose.double() * true).sum(1).abs().clamp(max=1).acos()
        for pose in (answers.mean["pose"], stated.pose)
    ]
    # at this detail an image says less of its pose than the table does
    assert errors[0].square().mean() < errors[1].square().mean()
    together = torch.corrcoef(torch.stack([answers.mean["amplitude"][:, 0].double(), column["state"]]))[0, 1]
    assert together > 0.85


def test_the_twin_is_judged(run: RunFolder) -> None:
    twin = load_json(run.twin)
    assert twin["images"] == 30
    assert list(twin["latents"])[:5] == ["pose 1", "pose 2", "pose 3", "shift 1", "shift 2"]
    # a root mean square of 30 is off by more than 0.65 once in 10⁴ times, of ten columns once in 10³
    for one in twin["latents"].values():
        assert 0.5 < one["standardised"] < 1.65
    alarms = twin["alarms"]
    assert alarms["twin"]["unexplained"] == 0.0
    assert alarms["noise"]["matched"] < -5 < alarms["twin"]["matched"]


@pytest.mark.parametrize("resolution", [24, 48])
def test_an_image_is_as_noisy_as_its_highest_frequencies_say(run: RunFolder, resolution: int) -> None:
    """Also where none are beyond those that are looked at; 662 of them tell it to 4 % once in 400 times."""
    learned = replace(run.learned(0), resolution=resolution)
    scale = torch.linspace(0.7, 1.5, 100).double()
    nothing = image_to_coefficients(torch.zeros(100, learned.box_size, learned.box_size), learned.box_size)
    noisy = learned.noise(scale).sample(nothing, torch.Generator().manual_seed(0))
    assert ((learned._scales(noisy) / scale - 1).abs() < 0.08).all()


@pytest.mark.thorough
def test_a_run_that_was_stopped_goes_on_and_ends_the_same(copied: RunFolder, run: RunFolder) -> None:
    before = held(copied)
    copied.shard(1).unlink()
    (copied.path / "shards" / ".00001.safetensors.123").write_bytes(b"half")
    copied.twin.unlink()
    infer(run.plan(), copied.path, progress=False)
    assert held(copied) == before
    assert copied.twin.read_bytes() == run.twin.read_bytes()


def test_another_run_in_the_same_folder_is_refused(copied: RunFolder) -> None:
    with pytest.raises(ArtifactError, match=r"other modes: choose another folder"):
        infer(copied.plan().model_copy(update={"modes": 2}), copied.path, progress=False)
    asked = load_json(copied.asked) | {"library": "older"}
    copied.asked.write_text(json.dumps(asked))
    with pytest.raises(ArtifactError, match=r"other library: choose another folder"):
        infer(copied.plan(), copied.path, progress=False)


def test_a_folder_without_a_run_says_so(tmp_path: Path) -> None:
    for work in (write_report, export):
        with pytest.raises(ArtifactError, match=r"holds no run: begin one"):
            work(tmp_path)


def test_a_damaged_shard_is_named(copied: RunFolder) -> None:
    path = copied.shard(0)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"00000.safetensors is damaged"):
        copied.answers()


def test_a_table_that_is_mistaken_is_refused(table: Path, tmp_path: Path) -> None:
    stack = opened(table.with_name("adk_particles.mrcs"))
    wrong = tmp_path / "wrong.star"
    shutil.copy(table, wrong)
    with mrcfile.new(tmp_path / "adk_particles.mrcs", -stack.images) as file:
        file.voxel_size = 4.0
    with pytest.raises(ParticleError, match=r"not consistent: inverted contrast; .* --despite-check"):
        infer(plan_of(wrong), tmp_path / "run", progress=False)
    assert not RunFolder(tmp_path / "run").check.exists(), "nobody would notice that the images were mended"


@pytest.mark.thorough
def test_a_table_that_has_changed_is_refused_by_what_reads_its_rows(
    table: Path, run: RunFolder, tmp_path: Path
) -> None:
    """Answers are kept by row: another order would give them to other particles."""
    shutil.copy(table, tmp_path / "few.star")
    plan = plan_of(tmp_path / "few.star", data=str(table.parent), twin=0, nulls=0)
    other = infer(plan, tmp_path / "run", progress=False)
    write_star(read_star(table)[torch.arange(FEW).flip(0)], tmp_path / "few.star")
    with pytest.raises(ArtifactError, match=r"few.star has changed since .* was begun"):
        write_report(other.path)
    with pytest.raises(ArtifactError, match=r"other contents of .*few.star: choose another folder"):
        infer(plan, other.path, progress=False)


def of_star(run: RunFolder, table: Path, to: Path) -> RunFolder:
    """The answers of a run, as if they were of this table."""
    found, plan = RunFolder(to), plan_of(table)
    found.begin(plan, particles_of(plan))
    for part in ("shards", "learned"):
        shutil.copytree(run.path / part, to / part)
    return found


def exported(run: RunFolder, **asked: object) -> dict[str, tuple[float, list[float]]]:
    """Something that was found of each image, and a draw."""
    written = {path.name: path for path in export(run.path, subsets=0, **asked)}
    table = written["posterior.star"]
    found = gemmi.cif.read_file(str(table)).find_block("particles").find_loop("_cryoanmLogEvidence")
    draws, names = load_tensors(written["draws.safetensors"])[0], read_star(table).names
    assert draws["row"].tolist() == list(range(len(names)))
    return dict(zip(names, zip(map(float, found), draws["pose"][:, 0].tolist(), strict=True), strict=True))


def test_each_image_has_its_own_answer_in_any_table(run: RunFolder, table: Path, tmp_path: Path) -> None:
    """Some of them in another order; and the table of the run itself, that was written anew."""
    particles, answers, some = read_star(table), run.answers(draws=True), tmp_path / "some.star"
    whole = exported(run)
    draws = answers.draws["pose"][:, 0].tolist()
    for name, evidence, draw in zip(particles.names, answers.log_evidence.tolist(), draws, strict=True):
        assert whole[name] == (pytest.approx(evidence, rel=1e-5), draw)
    write_star(particles[torch.tensor([70, 3, 41, 9])], some)
    assert exported(run, particles=some) == {
        particles.names[row]: whole[particles.names[row]] for row in (70, 3, 41, 9)
    }
    shutil.copy(table, some)
    of_copy = of_star(run, some, tmp_path / "run")
    write_star(particles[torch.arange(FEW).flip(0)], some)
    flipped = exported(of_copy)
    assert flipped == whole and list(flipped) == particles.names[::-1]


def test_an_image_that_is_none_of_the_run_is_named(run: RunFolder, table: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.star"
    other.write_text(table.read_text().replace("000004@adk", "000400@adk"))
    told = (
        r"other.star' has 1 images that are none of .*, such as '000400@adk_particles.mrcs': leave them out"
    )
    with pytest.raises(ArtifactError, match=told):
        export(run.path, particles=other)


def test_images_that_repeat_are_told_apart_in_their_own_order_alone(
    run: RunFolder, table: Path, tmp_path: Path
) -> None:
    """As where symmetry was expanded: the same table is exported, and no answer is given to another row."""
    twice, once = tmp_path / "twice.star", tmp_path / "once.star"
    twice.write_text(table.read_text().replace("000004@adk", "000003@adk"))
    with pytest.raises(ArtifactError, match=r"2 of its rows, such as that of '000003@adk_particles.mrcs'"):
        export(run.path, particles=twice)
    of_twice = of_star(run, twice, tmp_path / "run")
    assert len(read_star(export(of_twice.path, subsets=0)[0])) == FEW
    write_star(read_star(twice)[torch.arange(5)], once)
    with pytest.raises(ArtifactError, match=r"several times: .* put back the table of the run"):
        export(of_twice.path, particles=once)


def test_a_run_of_an_older_version_goes_by_the_names_of_its_table(
    run: RunFolder, table: Path, tmp_path: Path
) -> None:
    """It kept none; and without its table nobody knows them."""
    shutil.copy(table, tmp_path / "few.star")
    older, some = of_star(run, tmp_path / "few.star", tmp_path / "run"), tmp_path / "some.star"
    older.images.unlink()
    write_star(read_star(table)[torch.tensor([5, 2])], some)
    assert exported(older, particles=some) == {
        name: whole for name, whole in exported(run).items() if name[:6] in ("000003", "000006")
    }
    write_star(read_star(table)[torch.arange(FEW).flip(0)], tmp_path / "few.star")
    with pytest.raises(ArtifactError, match=r"few.star has changed since"):
        export(older.path, particles=some)


@pytest.mark.parametrize("change", ["other", "later", "gone"])
def test_a_run_goes_on_with_the_images_it_began_with(
    table: Path, run: RunFolder, tmp_path: Path, change: str
) -> None:
    """And what reads its answers needs none."""
    shutil.copytree(table.parent, tmp_path / "data")
    stack = tmp_path / "data" / "adk_particles.mrcs"
    there = stack.stat()
    plan = plan_of(tmp_path / "data" / table.name)
    of_copy = RunFolder(tmp_path / "run")
    of_copy.begin(plan, particles_of(plan))
    for part in ("learned", "shards"):
        shutil.copytree(run.path / part, of_copy.path / part)
    shutil.copy(run.check, of_copy.check)
    of_copy.begin(plan, particles_of(plan))
    if change == "gone":
        stack.unlink()
    elif change == "other":
        stack.write_bytes(stack.read_bytes() + b"more")
        os.utime(stack, ns=(there.st_atime_ns, there.st_mtime_ns))
    else:
        os.utime(stack, ns=(there.st_atime_ns, there.st_mtime_ns + 3 * 10**9))
    with pytest.raises(
        ArtifactError, match=r"1 stacks have changed .* 'adk_particles.mrcs', .*: put back what it was"
    ):
        infer(plan, of_copy.path, progress=False)
    if change == "gone":
        assert write_report(of_copy.path).exists() and export(of_copy.path, subsets=0)


def test_a_plan_may_change_until_something_was_computed(table: Path, tmp_path: Path) -> None:
    """And a table that is not there is an error of the library."""
    with pytest.raises(CryoANMError, match=r"none\.star"):
        infer(plan_of(table.with_name("none.star")), tmp_path / "run", progress=False)
    folder = RunFolder(tmp_path / "run")
    folder.begin(plan_of(table, modes=2), read_star(table))
    folder.begin(plan_of(table, modes=3), read_star(table))
    assert folder.plan().modes == 3


@pytest.mark.thorough
def test_a_twin_without_nulls_and_answers_as_a_table(table: Path, tmp_path: Path) -> None:
    """What is exported is a table that can be read, inferred and exported again, with our columns anew."""
    plan = plan_of(table, twin=20, nulls=0, shard=90)
    first = infer(plan, tmp_path / "first", progress=False)
    assert set(load_json(first.twin)["alarms"]) == {"data", "twin"}
    again = plan_of(export(first.path, subsets=0)[0], data=str(table.parent), twin=0, nulls=0)
    second = infer(again, tmp_path / "second", progress=False)
    written = export(second.path, subsets=0)[0]
    loop = gemmi.cif.read_file(str(written)).find_block("particles")
    tags = list(loop.find_loop("_cryoanmAmplitude1").get_loop().tags)
    assert len(set(tags)) == len(tags)
    found = [float(x) for x in loop.find_loop("_cryoanmAmplitude1")]
    expected = second.answers().mean["amplitude"][:, 0]
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.thorough
def test_a_shard_without_a_usable_image_stops_nothing(table: Path, tmp_path: Path) -> None:
    images = opened(table.with_name("adk_particles.mrcs")).images.astype("f4")
    images[80:] = 0.0
    shutil.copy(table, tmp_path / "few.star")
    with mrcfile.new(tmp_path / "adk_particles.mrcs", images) as file:
        file.voxel_size = 4.0
    plan = plan_of(tmp_path / "few.star", skip_bad=True, twin=0, nulls=0)
    run = infer(plan, tmp_path / "run", progress=False)
    assert len(run.answers()) == 80
    assert set(run.bad()) == {f"{row + 1:06d}@adk_particles.mrcs" for row in range(80, FEW)}


@pytest.mark.thorough
@needs_relion
def test_particles_that_relion_multiplied_by_their_transfer_say_the_same(
    table: Path, run: RunFolder, tmp_path: Path
) -> None:
    """Poses and amplitudes move by a small part of their error bars, as do scale and noise."""
    for file in (table, table.with_name("adk_particles.mrcs")):
        shutil.copy(file, tmp_path)
    command = "relion_ctf_toolbox --i few.star --o mult"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True, timeout=300)
    told = {"rlnCtfDataAreCtfPremultiplied": 1.0}
    plan = plan_of(tmp_path / "few_mult.star", override=told, twin=0, nulls=0)
    other = infer(plan, tmp_path / "run", progress=False)
    one, two = run.answers(), other.answers()
    moved = (two.mean["amplitude"] - one.mean["amplitude"]) / one.deviation[:, 5:8]
    assert moved.square().mean().sqrt() < 0.3
    for name in ("power", "luzzati"):
        first, second = (getattr(each.learned(0), name)[1:12] for each in (run, other))
        torch.testing.assert_close(second, first, rtol=0.1, atol=0)


def test_origins_of_odd_boxes_are_relions(run: RunFolder) -> None:
    answers = run.answers()
    even, odd = (columns_of(answers, torch.full((FEW,), x).double()) for x in (0.0, 4.0))
    torch.testing.assert_close(odd["OriginXAngst"] - even["OriginXAngst"], torch.full((FEW,), 4.0).double())
    torch.testing.assert_close(odd["OriginXAngstError"], even["OriginXAngstError"])


def test_too_few_particles_of_a_microscope_are_named(table: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.star"
    write_star(read_star(table)[torch.arange(12)], few)
    plan = plan_of(few, data=str(table.parent))
    with pytest.raises(
        ParticleError, match=r"optics group 'group1' has 12 usable particles, and it takes 20"
    ):
        infer(plan, tmp_path / "run", progress=False)


@pytest.mark.thorough
def test_images_that_are_bad_are_named_and_left_out(table: Path, tmp_path: Path) -> None:
    images = opened(table.with_name("adk_particles.mrcs")).images.astype("f4")
    images[50] = 7.0
    shutil.copy(table, tmp_path / "bad.star")
    with mrcfile.new(tmp_path / "adk_particles.mrcs", images) as file:
        file.voxel_size = 4.0
    np.memmap(tmp_path / "adk_particles.mrcs", "f4", "r+", offset=1024, shape=images.shape)[3] = np.nan
    plan = plan_of(tmp_path / "bad.star", twin=0, nulls=0)
    with pytest.raises(ParticleError, match=r"000004@adk_particles.mrcs: it holds NaN"):
        infer(plan, tmp_path / "run", progress=False)
    run = infer(plan.model_copy(update={"skip_bad": True}), tmp_path / "other", progress=False)
    assert set(run.bad()) == {"000004@adk_particles.mrcs", "000051@adk_particles.mrcs"}
    assert len(run.answers()) == FEW - 2
    text = write_report(run.path).read_text()
    assert "2 images were not usable" in text and "There was no twin" in text
    assert (
        len(gemmi.cif.read_file(str(export(run.path)[0])).find_block("particles").find_loop("_rlnImageName"))
        == 88
    )


def test_the_report_stands_alone(run: RunFolder, tmp_path: Path) -> None:
    text = write_report(run.path, tmp_path / "report.html").read_text()
    assert "http:" not in text.replace("http://www.w3.org", "") and "<script" not in text
    for heading in ("In short", "The data as checked", "The population", "The twin", "How to go on"):
        assert f">{heading}</h2>" in text
    assert "Verdict: <strong>consistent</strong>" in text
    assert text.count("<img ") == 8
    assert f"{FEW} of {FEW} particles" in text


def test_what_is_exported_is_what_was_found(run: RunFolder, table: Path) -> None:
    written = {path.name: path for path in export(run.path, subsets=3, direction=2)}
    answers, before = run.answers(), read_star(table)
    assert [name for name in written if name.startswith("subset")] == [
        f"subset_2_{n}of3.star" for n in (1, 2, 3)
    ]
    after = read_star(written["posterior.star"])
    assert after.names == before.names
    torch.testing.assert_close(after.pose, before.pose)  # RELION's own columns stay as they are
    loop = gemmi.cif.read_file(str(written["posterior.star"])).find_block("particles")
    column = {tag: torch.tensor([float(x) for x in loop.find_loop(tag)]) for tag in (
        "_cryoanmAmplitude1", "_cryoanmOriginXAngst", "_cryoanmPredictiveP", "_cryoanmAmplitude2Error"
    )}  # fmt: skip
    torch.testing.assert_close(
        column["_cryoanmAmplitude1"], answers.mean["amplitude"][:, 0], rtol=1e-4, atol=1e-3
    )
    torch.testing.assert_close(
        column["_cryoanmOriginXAngst"], -answers.mean["shift"][:, 0], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        column["_cryoanmAmplitude2Error"], answers.deviation[:, 6], rtol=1e-4, atol=1e-3
    )
    under = torch.tensor([float(x) for x in loop.find_loop("_cryoanmAmplitude1Population")])
    expected, _ = RunPopulation.load(run.population).posterior(answers)
    torch.testing.assert_close(under.double(), expected[:, 0], rtol=1e-4, atol=1e-3)
    density = np.genfromtxt(written["population_1.csv"], delimiter=",", names=True)
    step = density["amplitude"][1] - density["amplitude"][0]
    assert density["density"].sum() * step == pytest.approx(1.0, abs=0.02)
    assert (density["low"] <= density["high"]).all() and density["free_energy"].min() == 0
    both = np.genfromtxt(written["population_1_2.csv"], delimiter=",", names=True)
    area = np.ptp(both["amplitude_1"]) * np.ptp(both["amplitude_2"]) / (np.sqrt(len(both)) - 1) ** 2
    assert both["density"].sum() * area == pytest.approx(1.0, abs=0.05)
    angles = torch.stack(
        [
            torch.tensor([float(x) for x in loop.find_loop(f"_cryoanmAngle{n}")])
            for n in ("Rot", "Tilt", "Psi")
        ],
        1,
    )
    same = (quaternions_of_euler(angles.double().numpy()) * answers.mean["pose"].double()).sum(1).abs()
    assert (same > 1 - 1e-6).all() and (angles[:, 1] >= 0).all()
    parts = [read_star(written[f"subset_2_{n}of3.star"]).names for n in (1, 2, 3)]
    assert sorted(name for part in parts for name in part) == sorted(before.names)
    along = {name: float(a) for name, a in zip(before.names, answers.mean["amplitude"][:, 1], strict=True)}
    assert max(along[n] for n in parts[0]) <= min(along[n] for n in parts[1])
    assert max(along[n] for n in parts[1]) <= min(along[n] for n in parts[2])
    assert len(gemmi.read_structure(str(written["direction_1.pdb"]))) == 21
    for wrong in ({"direction": 4}, {"subsets": -1}, {"subsets": 1000}):
        with pytest.raises(CryoANMError, match="are not usable"):
            export(run.path, **wrong)


def of_cs(run: RunFolder, path: Path, stacks: Path, to: Path) -> RunFolder:
    """The answers of a run, to a .cs file of the same rows."""
    plan = plan_of(path, data=str(stacks))
    found = RunFolder(to)
    found.begin(plan, particles_of(plan))
    for part in ("shards", "learned"):
        shutil.copytree(run.path / part, to / part)
    shutil.copy(run.population, found.population)
    return found


def test_of_a_cs_file_there_are_cs_files(run: RunFolder, table: Path, tmp_path: Path) -> None:
    """All that the file says stays; poses and shifts are such that they can take the place of its own."""
    path = tmp_path / "few.cs"
    given = save(path, table_of(read_star(table)))
    written = {f.name: f for f in export(of_cs(run, path, table.parent, tmp_path / "run").path, subsets=3)}
    answers, found = run.answers(), np.load(written["posterior.cs"], allow_pickle=False)
    assert found.dtype.names[: len(given.dtype.names)] == given.dtype.names
    for name in given.dtype.names:
        np.testing.assert_array_equal(found[name], given[name])
    ours = found.dtype.names[len(given.dtype.names) :]
    assert {"cryoanm/log_evidence", "cryoanm/predictive_p", "cryoanm/pose_error"} < set(ours)
    assert {"cryoanm/amplitude1_population", "cryoanm/amplitude1_population_error"} < set(ours)
    assert all(found.dtype[name].base == np.float32 for name in ours)
    expected = {
        "amplitude2": answers.mean["amplitude"][:, 1],
        "amplitude2_error": answers.deviation[:, 6],
        "shift_error": answers.deviation[:, 3:5] / 8.0,
        "defocus_error": answers.deviation[:, 8],
    }
    for name, column in expected.items():
        np.testing.assert_allclose(found[f"cryoanm/{name}"], column.numpy(), rtol=1e-5)
    moved = found.copy()
    for name in ("pose", "shift", "psize_A"):
        moved[f"alignments3D/{name}"] = found[f"cryoanm/{name}"]
    save(tmp_path / "moved.cs", moved)
    again = read_cs(tmp_path / "moved.cs")
    alike = (again.pose * answers.mean["pose"].double()).sum(1).abs()
    torch.testing.assert_close(alike, torch.ones(FEW).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(again.shift, answers.mean["shift"].double(), rtol=0, atol=1e-5)
    parts = [np.load(written[f"subset_1_{n}of3.cs"]) for n in (1, 2, 3)]
    assert sorted(uid for part in parts for uid in part["uid"]) == sorted(given["uid"])
    for lower, upper in itertools.pairwise(part["cryoanm/amplitude1"] for part in parts):
        assert lower.max() <= upper.min()
    second = of_cs(run, written["posterior.cs"], table.parent, tmp_path / "second")
    once_more = np.load(export(second.path, subsets=0)[0], allow_pickle=False)
    np.testing.assert_array_equal(once_more, found)
    save(path, given[[5, 80, 2]])
    some = np.load(export(tmp_path / "run", subsets=0)[0])  # found by their uid
    np.testing.assert_array_equal(some, found[[5, 80, 2]])


@pytest.mark.thorough
@needs_relion
def test_relion_reconstructs_what_is_exported(run: RunFolder) -> None:
    written = {path.name: path for path in export(run.path, subsets=2)}
    command = f"relion_reconstruct --i {written['subset_1_1of2.star']} --o {run.path}/half.mrc --ctf"
    shutil.copy(DATA / "adk_particles.mrcs", run.path)
    done = subprocess.run(command.split(), cwd=run.path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (run.path / "half.mrc").stat().st_size == 1024 + 4 * 48**3


@pytest.mark.thorough
def test_answers_do_not_depend_on_shards(table: Path, run: RunFolder, tmp_path: Path) -> None:
    """Where the Gaussians will do, nothing random enters the means."""
    plan = plan_of(table, shard=25, twin=0, nulls=0)
    other = infer(plan, tmp_path / "run", progress=False).answers()
    one = run.answers()
    unweighed = (one.ess_fraction > 0.9) & (other.ess_fraction > 0.9)
    assert unweighed.sum() > 10
    difference = (one.mean["amplitude"] - other.mean["amplitude"])[unweighed].abs()
    assert (difference < 0.02 * one.deviation[unweighed, 5:8]).all()


@pytest.mark.thorough
@needs_relion
def test_images_without_noise_are_relions(table: Path, tmp_path: Path) -> None:
    """Of the table's own poses, shifts, defoci and astigmatism."""
    from cryoanm_lib import Scattering, load_atoms
    from tests.relion import atoms_map, project

    atoms = load_atoms("adk_open")
    star = simulate_stack(plan_of(table, beads=False), tmp_path / "own.mrcs", noise_free=True, progress=False)
    names = ["AngleRot", "AngleTilt", "AnglePsi", "OriginXAngst", "OriginYAngst", "DefocusU", "DefocusV"]
    loop = gemmi.cif.read_file(str(table)).find_block("particles")
    columns = {
        n: torch.tensor([float(x) for x in loop.find_loop(f"_rln{n}")]).double().numpy()
        for n in (*names, "DefocusAngle")
    }
    optics = {"voltage": 300.0, "spherical_aberration": 2.7, "amplitude_contrast": 0.1}
    volume = atoms_map(atoms.coordinates, Scattering.of_elements(atoms.elements, 0.0), 48, 4.0)
    theirs, _ = project(tmp_path, volume, 4.0, columns, optics)
    # Down to 12 Å: RELION ends at a circle in Fourier space, and our images at the corners of a square.
    ours, theirs = (
        image_to_coefficients(each.double(), 32) for each in (read_star(star).images().pixels, theirs)
    )
    factor = (ours.conj() * theirs).real.sum() / theirs.abs().square().sum()
    error = (ours - factor * theirs).norm(dim=1) / ours.norm(dim=1)
    assert error.max() < 0.02
    assert factor.item() == pytest.approx(4.0, rel=0.01)  # a voxel is 4 Å along the beam


@pytest.mark.thorough
def test_simulated_images_have_the_signal_that_is_asked_for(table: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "clean.mrcs", tmp_path / "noisy.mrcs", tmp_path / "alike.mrcs"]
    how: list[dict[str, float | bool]] = [{"noise_free": True}, {"snr": 0.5}, {}]
    clean, noisy, alike = (
        read_star(simulate_stack(plan_of(table), path, progress=False, **options)).images().pixels
        for path, options in zip(paths, how, strict=True)
    )
    ratio = clean.flatten(1).var(1).mean() / (noisy - clean).flatten(1).var(1).mean()
    assert ratio.item() == pytest.approx(0.5, rel=0.02)
    # the noise and the scale of the data: their power is that of its images
    assert alike.var().item() == pytest.approx(read_star(table).images().pixels.var().item(), rel=0.1)
    with pytest.raises(ParticleError, match="snr = -1 is not usable"):
        simulate_stack(plan_of(table), tmp_path / "x.mrcs", snr=-1.0)
    with pytest.raises(ParticleError, match=r"clean.mrcs' is there already"):
        simulate_stack(plan_of(table), paths[0])
    with pytest.raises(ParticleError, match=r"few.star' is there already"):
        simulate_stack(plan_of(table), table.with_suffix(".mrcs"))
    assert not (tmp_path / "x.mrcs").exists()


@pytest.mark.thorough
def test_the_command_line_does_the_same(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture, run: RunFolder
) -> None:
    out = tmp_path / "run"
    asked = ["infer", str(table), "--reference", "adk_open", "--towards", "adk_closed", "--out", str(out)]
    asked += [
        "--learn-from",
        "40",
        "--shard",
        "40",
        "--twin",
        "30",
        "--nulls",
        "10",
        "--detail",
        "12",
        "--beads",
    ]
    assert main([*asked, "--quiet"]) == 0
    assert held(RunFolder(out)) == held(run)
    assert main([*asked, "--modes", "2"]) == 1
    assert "error:" in capsys.readouterr().err
    assert main(["report", str(out)]) == 0
    assert capsys.readouterr().out.strip().endswith("report.html")
    assert main(["export", str(out), "--subsets", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 14
    assert main(["infer", str(table), "--reference", "adk_open", "--out", str(out), "--detail", "-3"]) == 1
    assert "--detail -3.0 is not usable" in capsys.readouterr().err
    clean = tmp_path / "clean.mrcs"
    assert main(["simulate", str(table), "--reference", "adk_open", "--out", str(clean), "--noise-free"]) == 0
    assert len(opened(clean).images) == FEW


def test_a_dark_molecule_is_simulated_dark(table: Path, tmp_path: Path) -> None:
    bright, dark = (
        read_star(simulate_stack(plan_of(table, dark=dark), tmp_path / name, noise_free=True, progress=False))
        for dark, name in ((False, "bright.mrcs"), (True, "dark.mrcs"))
    )
    torch.testing.assert_close(dark.images().pixels, -bright.images().pixels)


@pytest.mark.parametrize("rows", [[2, 0], [1]])
def test_answers_are_put_together_in_the_order_of_rows(
    run: RunFolder, tmp_path: Path, rows: list[int]
) -> None:
    shards: Callable[[], list[Path]] = run.shards
    found = Answers.load([shards()[number] for number in rows])
    assert (found.row.diff() > 0).all()
    whole = run.answers()
    torch.testing.assert_close(found.deviation, whole.deviation[found.row])


@pytest.mark.thorough
def test_a_search_asks_the_table_for_no_pose(table: Path, tmp_path: Path) -> None:
    """Most are found, by all atoms at the finest detail, from a table without angles and origins."""
    bare = tmp_path / "bare.star"
    document = gemmi.cif.read_file(str(table))
    loop = document.find_block("particles").find_loop("_rlnAngleRot").get_loop()
    for tag in [tag for tag in loop.tags if tag.startswith(("_rlnAngle", "_rlnOrigin"))]:
        loop.remove_column(tag)
    document.write_file(str(bare))
    write_star(read_star(bare)[torch.arange(30)], bare)
    asked = plan_of(bare, data=str(table.parent), detail=10.0, learn_from=20, twin=0, nulls=0)
    with pytest.raises(ParticleError, match=r"rlnAngleRot, .* --pose search"):
        infer(asked, tmp_path / "run", progress=False)
    run = infer(asked.model_copy(update={"pose": "search"}), tmp_path / "run", progress=False)
    found, stated = run.answers().mean["pose"].double(), read_star(table).pose[:30]
    angle = 2 * (found * stated).sum(1).abs().clamp(max=1).acos().rad2deg()
    # the table that nobody asked is off by 2° itself
    assert (angle < 12).double().mean() > 0.5
    text = write_report(run.path).read_text()
    assert "The table has no poses" in text
    export(run.path)


def test_a_dark_molecule_that_nobody_calls_so_is_named_without_poses(table: Path, tmp_path: Path) -> None:
    images = opened(table.with_name("adk_particles.mrcs")).images
    shutil.copy(table, tmp_path / "few.star")
    with mrcfile.new(tmp_path / "adk_particles.mrcs", -images) as file:
        file.voxel_size = 4.0
    document = gemmi.cif.read_file(str(tmp_path / "few.star"))
    loop = document.find_block("particles").find_loop("_rlnAngleRot").get_loop()
    for tag in [tag for tag in loop.tags if tag.startswith("_rlnAngle")]:
        loop.remove_column(tag)
    document.write_file(str(tmp_path / "few.star"))
    plan = plan_of(tmp_path / "few.star", pose="search", detail=16.0, learn_from=30, twin=0, nulls=0)
    with pytest.raises(CryoANMError, match=r"nothing in common .* --dark|are explained by the molecule"):
        infer(plan, tmp_path / "run", progress=False)
    with pytest.raises(ParticleError, match="rlnAngleRot"):
        simulate_stack(plan, tmp_path / "x.mrcs")


@pytest.mark.thorough
def test_a_pose_may_be_anywhere_about_that_of_the_table(table: Path, run: RunFolder, tmp_path: Path) -> None:
    """Climbs begin there, and images alone say how sure a pose is: less than with the table's word for it."""
    other = infer(plan_of(table, pose="prior", twin=0, nulls=0), tmp_path / "run", progress=False)
    assert other.learned(0).prior.pose_width == 0 < run.learned(0).prior.pose_width
    free, told = other.answers(), run.answers()
    wider = free.deviation[:, :3].norm(dim=1) / told.deviation[:, :3].norm(dim=1)
    assert wider.median() > 1.1
    turned = quaternion_distance(free.mean["pose"].double(), told.mean["pose"].double())
    assert (turned < 3 * free.deviation[:, :3].norm(dim=1)).double().mean() > 0.9

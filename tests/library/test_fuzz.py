"""Whatever a file holds, the library reads it or says by an error of its own why not."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.experiments.profile import load_profile
from cryoanm_lib.molecule.atoms import load_atoms
from cryoanm_lib.molecule.beads import beads_of
from cryoanm_lib.molecule.structure import Structure, load_structure

from .experiments.test_profile import held
from .molecule.test_structure import Row, as_cif, as_pdb

#: How many files the quick suite tries, and the long one.
FEW, MANY = 300, 110_000

ODD = (
    "",
    " ",
    "\0",
    "\n",
    "nan",
    "inf",
    "-0",
    "1e999",
    "99999999999",
    "?",
    ".",
    "'",
    '"',
    "HETATM",
    "END",
    "é",
    "\ufeff",
)

ROWS = [
    Row(n + 1, 3.8 * n, n % 3, chain="AB"[n > 7], altloc=" AB"[n % 3].strip(), icode="" if n % 5 else "C")
    for n in range(12)
]


def mutated(text: str, source: random.Random) -> str:
    """The text after one to four accidents."""
    for _ in range(source.randint(1, 4)):
        lines = text.split("\n")
        at, length = source.randrange(len(text) + 1), source.randint(0, 12)
        line, other = source.randrange(len(lines)), source.randrange(len(lines))
        accident = source.randrange(8)
        if accident == 0:  # a character becomes another
            text = text[:at] + chr(source.randrange(1, 0x250)) + text[at + 1 :]
        elif accident == 1:
            text = text[:at] + text[at + length :]
        elif accident == 2:
            text = text[:at] + source.choice(ODD) + text[at + length :]
        elif accident == 3:
            text = text[:at]
        elif accident == 4:
            text = "\n".join(lines[:line] + lines[line + 1 :])
        elif accident == 5:
            text = "\n".join([*lines[:line], lines[other], *lines[line:]])
        elif accident == 6:  # a word of a line becomes odd
            words = lines[line].split(" ")
            words[source.randrange(len(words))] = source.choice(ODD)
            text = "\n".join([*lines[:line], " ".join(words), *lines[line + 1 :]])
        else:
            text = text[at:] + text[:at]
    return text


def read_or_refused(folder: Path, count: int, seed: int) -> dict[str, int]:
    """How many of so many mutated files were read and refused; any other outcome is an exception."""
    source, found = random.Random(seed), {"read": 0, "refused": 0}
    originals = {"pdb": as_pdb(ROWS), "cif": as_cif(ROWS)}
    for number in range(count):
        suffix = source.choice(sorted(originals))
        path = folder / f"fuzz.{suffix}"
        path.write_text(mutated(originals[suffix], source), encoding="utf-8", errors="surrogatepass")
        try:
            structure = load_structure(path)
            atoms = load_atoms(path)
        except CryoANMError:
            found["refused"] += 1
        except Exception as error:
            kept = path.rename(folder / f"crash_{number}.{suffix}")
            raise AssertionError(f"{kept} (seed {seed}) ends in {error!r}") from error
        else:
            assert isinstance(structure, Structure) and structure.coordinates.isfinite().all()
            assert atoms.coordinates.isfinite().all() and len(beads_of(atoms)) > 0
            found["read"] += 1
    return found


@pytest.mark.filterwarnings("ignore:chain .* molecules", "ignore:of .* left out")
def test_a_damaged_structure_file_is_read_or_refused(tmp_path) -> None:
    found = read_or_refused(tmp_path, FEW, seed=1)
    assert min(found.values()) > FEW / 20, "mutations that all do the same test nothing"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:chain .* molecules", "ignore:of .* left out")
def test_many_damaged_structure_files_are_read_or_refused(tmp_path, count) -> None:
    found = read_or_refused(tmp_path, MANY, seed=100)
    count("damaged PDB and mmCIF files that were read", found["read"])
    count("damaged PDB and mmCIF files that were refused with a reason", found["refused"])


PROFILE = """
structure: adk_open
chain: A
residues: 1-214
stride: 4
seed: 1
device: cpu
deterministic: false
test_images: 4
window: 2
model: {modes: 1, cutoff: 20.0, box_size: 24, pixel_size: 4.0, atom_width: 0.8, noise: 0.1, projector: auto}
prior:
  pose: plane
  pose_concentration: [0.0, 0.0]
  shift_scale: 1.0
  amplitude_scale: 3.0
  defocus_mean: 50.0
  defocus_scale: 3.0
  contrast_scale: 0.0
  spring_constant: 1.0
length: {ours: 1.0, paper: 1.0, between: 1.0}
checks: {draws: 19, guide_images: 2, exact_images: 2}
experiments:
  both:
    title: Both
    task: both
    recipe: ours
    infer: [pose, amplitude]
    noise: 0.1
    test_noise: 0.1
    guide:
      components: 2
      stratified: true
      upright: true
      encoder: rings
      image_size: 16
      references: 4
      channels: [2, 4]
      others: computed
      half: false
    training_images: 8
    batch_size: 4
    window: 2
    seed: 3
    more_seeds: [4]
    paper: {pose_residual_mean_deg: 33.0}
    paper_says: works
    stages:
      - resolution: 12
        steps: 2
        learning_rate: 1.0e-3
        final_learning_rate: 1.0e-4
        objective: elbo
        clip_norm: 1.0
        settle: 0.1
        train: [pose]
assessments:
  both_refined:
    of: both
    title: Both
    resolution: 12
    noise: 0.1
    images: 2
    exact_images: 1
    guide_images: 2
"""

WRONG = (
    *(None, True, -1, 0, 1, 2, 3.5, 10**30, float("nan"), float("inf"), -0.5, "", "x", "pose", "1"),
    *([], [1], ["pose"], [[]], [None, None], {}, {"x": 1}, {"pose": {}}, b"\0", "é\0"),
)


def places(content: object, way: tuple = ()) -> Iterator[tuple]:
    """The way to each key and each entry of a list."""
    steps = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in steps:
        yield (*way, key)
        yield from places(value, (*way, key))


def with_change(content: dict, way: tuple, value: object) -> dict:
    copy = yaml.safe_load(yaml.safe_dump(content))
    at = copy
    for step in way[:-1]:
        at = at[step]
    at[way[-1]] = value
    return copy


@pytest.mark.slow
def test_any_key_changed_is_taken_or_refused_by_name(tmp_path, count) -> None:
    """Each key of a profile that has them all, to each of many values: never a traceback, never ignored."""
    ways = list(places(yaml.safe_load(PROFILE)))
    changed_keys(tmp_path, ways)
    count("keys and entries of a profile that were changed", len(ways))
    count("profiles so changed, each taken as it says or refused by name", len(ways) * len(WRONG))


@pytest.mark.thorough
def test_some_keys_changed_are_taken_or_refused_by_name(tmp_path) -> None:
    ways = list(places(yaml.safe_load(PROFILE)))
    assert len(ways) > 80
    changed_keys(tmp_path, random.Random(1).sample(ways, 8))


def changed_keys(folder: Path, ways: list[tuple]) -> None:
    path, content = folder / "changed.yaml", yaml.safe_load(PROFILE)
    path.write_text(PROFILE)
    load_profile(path)
    for way in ways:
        for value in WRONG:
            path.write_text(yaml.safe_dump(with_change(content, way, value)), encoding="utf-8")
            try:
                settings = load_profile(path)
            except CryoANMError as error:
                named = [str(step) for step in way if isinstance(step, str)]
                assert all(step in str(error) for step in named), f"{way} = {value!r}: {error}"
            else:
                if isinstance(value, dict):  # a section that may be left to its defaults
                    continue
                taken = held(settings, way)
                same = taken == value or (isinstance(taken, float) and taken == float(value))
                assert same or value is None, f"{way} = {value!r} is ignored"


@pytest.mark.parametrize("key", ["experiment", "stpes", "model.box", "experiments.both.guide.layers"])
def test_an_unknown_key_is_refused_by_name(tmp_path, key) -> None:
    *way, last = key.split(".")
    content = yaml.safe_load(PROFILE)
    at = content
    for step in way:
        at = at[step]
    at[last] = 1
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(CryoANMError, match=last):
        load_profile(path)

"""What is asked of a set of particles."""

from typing import Annotated, Literal

from pydantic import Field

from cryoanm_lib.settings import Count, Finite, NotNegative, Positive, Section

Number = Annotated[int, Field(ge=0, lt=2**32)]


class Plan(Section):
    """All that decides what a run answers: where it is kept, the run can be gone on with."""

    particles: str = Field(description="star file, or .cs file of cryoSPARC")
    reference: str = Field(description="PDB or mmCIF file, PDB ID, embedded name, or map")
    chains: tuple[str, ...] | None = Field(None, description="those of the reference that are there")
    threshold: Finite | None = Field(None, description="contour of a map within which the molecule is")
    origin: tuple[Finite, Finite, Finite] | None = Field(
        None,
        description="x, y and z in Å, in the model's file, of the point about which particles turn, such as "
        "the middle of the box of a map that the model was fitted to; default its centroid",
    )
    towards: str | None = Field(
        None, description="another state of the same molecule; the first direction leads there, straight"
    )
    modes: Count = Field(3, description="directions along which the molecule bends")
    symmetry: str = Field(
        "C1",
        pattern="^(C[1-9][0-9]*|D[1-9][0-9]*|T|O|I[1-4]?)$",
        description="of the molecule, its axes as RELION has them, which it keeps however it bends: what "
        "breaks it is no direction, and of equivalent poses one is meant",
    )
    beads: bool = Field(False, description="a bead for each residue in place of its atoms")
    spread: Positive = Field(2.0, description="Å, root mean square over atoms, that the softest mode moves")
    passthrough: str | None = Field(None, description="that of a .cs file")
    data: str | None = Field(None, description="folder below which the stacks are")
    dark: bool = Field(False, description="the molecule is darker than what surrounds it, as on the detector")
    override: dict[str, Finite] = Field({}, description="labels, and what they are of all particles")
    skip_bad: bool = Field(False, description="leave out images that are not usable")
    pose: Literal["star", "prior", "search"] = Field(
        "star", description="about the table's; anywhere, starting from it; or anywhere, searched for"
    )
    pose_width: Positive = Field(3.0, description="degrees about each axis that the table's poses are off")
    shift_width: NotNegative = Field(
        2.0,
        description="pixels along x and y that its shifts are off; or, where a search finds none in "
        "the table, how far particles are from the middle of their images",
    )
    defocus_width: NotNegative = Field(300.0, description="Å that its defoci are off; 0 leaves them")
    contrast_width: NotNegative = Field(0.3, description="by what share of itself contrast varies")
    optics: tuple[Literal["astigmatism", "phase_shift", "b_factor"], ...] = Field(
        (), description="what else of the microscope is inferred of each image"
    )
    detail: Positive = Field(6.0, description="Å of the finest details that are looked at")
    learn_from: Annotated[int, Field(ge=20)] = Field(
        200, description="images from which noise, scale, widths and the model's error are learned"
    )
    shard: Count = Field(500, description="images that are inferred and written together")
    draws: Count = Field(16, description="posterior draws kept of each image")
    twin: Number = Field(500, description="images of the twin; 0 for none")
    nulls: Number = Field(200, description="images of noise, and of the mirrored molecule")
    seed: Number = Field(1, description="of all random numbers")

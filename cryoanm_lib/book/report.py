"""The report of a run: one HTML file that needs no server and no network."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

import matplotlib as mpl
from matplotlib.figure import Figure

from cryoanm_lib.analysis.answers import Answers
from cryoanm_lib.analysis.folder import RunFolder, particles_of
from cryoanm_lib.analysis.learned import Learned
from cryoanm_lib.analysis.molecule import read_molecule
from cryoanm_lib.analysis.plan import Plan
from cryoanm_lib.analysis.run_population import RunPopulation
from cryoanm_lib.book.figures import own_particles
from cryoanm_lib.book.figures.style import set_style
from cryoanm_lib.checks.consistency import MISTAKES
from cryoanm_lib.inference.refinement import SUSPICIOUS
from cryoanm_lib.io.storage import load_json, load_tensors, write_atomically

_PAGE = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
#: Matched tests of all images that are further than this from chance say that something is wrong.
_ALARMED = 5.0


def write_report(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write what a run was asked and found, with figures, alarms and what to do next.

    Parameters
    ----------
    folder : str or Path
        Of a run; one that is not at its end is reported as far as it is.
    path : str or Path, optional
        The HTML file; default `report.html` in the folder.

    Raises
    ------
    ArtifactError
        If there is no answer yet, or the file cannot be written.
    """
    run = RunFolder(Path(folder))
    plan, answers = run.plan(), run.answers()
    with mpl.rc_context():
        set_style()
        parts = list(_parts(run, plan, answers))
    body = "\n".join(f'<section><h2 id="s{n}">{h}</h2>\n{t}\n</section>' for n, (h, t) in enumerate(parts))
    contents = " · ".join(f'<a href="#s{n}">{h}</a>' for n, (h, _) in enumerate(parts))
    title = f"{Path(plan.particles).name}, as {plan.reference} moves"
    text = _PAGE.substitute(title=escape(title), contents=contents, body=body)
    path = run.path / "report.html" if path is None else Path(path)
    write_atomically(path, lambda beside: beside.write_text(text, encoding="utf-8"))
    return path


def _parts(run: RunFolder, plan: Plan, answers: Answers) -> Iterable[tuple[str, str]]:
    """Headings and what stands below them."""
    twin = load_json(run.twin) if run.twin.exists() else None
    microscopes = _learned(run)
    shown = load_tensors(run.shown)[0] if run.shown.exists() else None
    yield "In short", _in_short(run, plan, answers, twin)
    yield "What was asked", _asked(plan)
    yield "The data as checked", _checked(run)
    if microscopes:
        told = [f"<h3>{escape(_named(each))}</h3>" if len(microscopes) > 1 else "" for each in microscopes]
        parts = [head + _of_learned(each) for head, each in zip(told, microscopes, strict=True)]
        yield "What the images say of themselves", "".join(parts)
    yield "Amplitudes", _amplitudes(answers)
    if run.population.exists():
        yield "The population", _of_population(RunPopulation.load(run.population), answers)
    if shown is not None:
        told = (
            "<p>Details down to the resolution that was looked at. What is left should look like noise.</p>"
        )
        yield (
            "Images and predictions",
            told + _figure(own_particles.plot_predictions(shown), "images, predictions and what is left"),
        )
    if twin is not None:
        yield "The twin", _of_twin(plan, twin)
        yield "Alarms", _alarms(twin)
    if shown is not None:
        # where the map has its molecule: particles may turn about another point than its centroid
        places = read_molecule(plan).coordinates + microscopes[0].centre
        told = (
            "<p>What predictions leave of the images, brought back to the molecule: density that the images "
            "hold and the model lacks, in deviations of the map. Where there is nothing but noise it is "
            "flat.</p>"
        )
        yield (
            "Where the model is wrong",
            told + _figure(own_particles.plot_lacking(shown, places), "difference map along three axes"),
        )
    yield "How to go on", _go_on(run, plan)


def _in_short(run: RunFolder, plan: Plan, answers: Answers, twin: dict | None) -> str:
    total, bad = len(particles_of(plan)), run.bad()
    lines = [f"{len(answers)} of {total} particles have a posterior."]
    if bad:
        first = next(iter(bad.items()))
        lines.append(f"{len(bad)} images were not usable, such as {escape(first[0])}: {escape(first[1])}.")
    unexplained = 1 - answers.explained().double().mean().item()
    lines.append(f"{100 * unexplained:.1f} % of them are not explained by the model.")
    if run.missing() or not run.shown.exists() or (plan.twin and twin is None):
        lines.append("The run is not at its end: cryoanm infer goes on with it, to what is missing here.")
    if twin is None:
        lines.append("There was no twin: nothing here says that the error bars are right.")
    else:
        worst = max(twin["latents"].items(), key=lambda item: abs(item[1]["standardised"] - 1))
        lines.append(
            f"On {twin['images']} simulated images like these, errors were {worst[1]['standardised']:.2f} of "
            f"what is claimed at the worst of the latents ({worst[0]}; 1 is honest), and regions of 50, 80 "
            f"and 95 % held {', '.join(f'{100 * v:.0f}' for v in twin['region'].values())} % of the truths."
        )
        if abs(found := twin["alarms"]["data"]["matched"]) > _ALARMED:
            lines.append(
                f"<strong>The images hold {'less' if found < 0 else 'more'} of the predictions than they "
                f"should, by {abs(found):.0f} standard deviations of all images together: the model does not "
                "explain them, and its error bars must not be trusted.</strong>"
            )
    for learned in _learned(run):
        if not learned.place.deviation:
            continue
        deviation, z = learned.place
        lines.append(
            f"{escape(_named(learned))}: <strong>What the model leaves of the images is alike from image to "
            f"image, by {z:.0f} standard deviations: it is no noise. The molecule has another shape, or "
            "moves in other ways.</strong> Error bars are widened as if atoms were off their places by "
            f"{deviation:.1f} Å."
        )
    return "".join(f"<p>{line}</p>" for line in lines)


def _learned(run: RunFolder) -> list[Learned]:
    """Of every microscope."""
    found = []
    while (learned := run.learned(len(found))) is not None:
        found.append(learned)
    return found


def _named(learned: Learned) -> str:
    return f"{learned.optics.name}, {learned.box_size} pixels of {learned.optics.pixel_size:g} Å"


def _asked(plan: Plan) -> str:
    told = plan.model_dump(exclude_defaults=True)
    rows = [(escape(name), escape(str(value))) for name, value in told.items()]
    return _table(("setting", "value"), rows) + "<p>All else is as by default.</p>"


def _checked(run: RunFolder) -> str:
    if not run.check.exists():
        return "<p>The table has no poses at which images and predictions could be compared.</p>"
    found = load_json(run.check)
    rows = [("as the table says", f"{found['correlation_mean']:.3f}")]
    rows += [(name.replace("_", " "), f"{found[f'correlation_{name}']:.3f}") for name in MISTAKES]
    return (
        f"<p>Verdict: <strong>{found['verdict'].replace('_', ' ')}</strong>. {found['images']} images of "
        f"{found['box_size']} pixels of {found['pixel_size']:g} Å; the molecule is "
        f"{'bright' if found['sign'] > 0 else 'dark'}; signal-to-noise ratio {found['snr']:.2g}.</p>"
        + _table(("prediction", "correlation"), rows)
    )


def _of_learned(learned: Learned) -> str:
    prior = learned.prior
    rows = [
        ("noise, scale and the rest learned from", f"{learned.images} images"),
        ("details looked at, down to", f"{2 * _size(learned) / learned.resolution:.1f} Å"),
        ("units of the images for one of the model", f"{learned.scale:.4g}"),
        ("centroid from the point of turning (Å)", ", ".join(f"{x:.2f}" for x in learned.centre.tolist())),
        ("atoms off their places", f"{learned.place.deviation:.2f} Å ({learned.place.z:.1f} deviations)"),
    ]
    if prior.pose_width:
        rows.append(("poses of the table off by, about each axis", f"{prior.pose_width:.2f}°"))
    rows.append(("shifts of the table off by", f"{prior.shift_scale:.2f} pixels"))
    rows.append(("defoci off by", f"{prior.defocus_scale:.0f} Å about {prior.defocus_mean:.0f} Å"))
    rows.append(("contrast varies by", f"{100 * prior.contrast_scale:.0f} %"))
    told = "<p>These are the priors of all of its particles.</p>"
    figure = own_particles.plot_learned(learned)
    return told + _table(("what", "value"), rows) + _figure(figure, "noise spectrum and D")


def _size(learned: Learned) -> float:
    return learned.box_size * learned.optics.pixel_size


def _amplitudes(answers: Answers) -> str:
    text = (
        "<p>Means of the posteriors. The orange bar is two deviations to either side of a typical particle: "
        "what is narrower than it is not resolved.</p>"
    )
    text += _figure(own_particles.plot_amplitudes(answers), "histograms of amplitudes")
    if answers.mean["amplitude"].shape[1] > 1:
        text += _figure(own_particles.plot_pairs(answers), "pairs of amplitudes")
    return text


def _of_population(population: RunPopulation, answers: Answers) -> str:
    rows = []
    for number, found in enumerate(population.gaussians):
        order = found.weight.argsort(descending=True)
        states = zip(found.weight[order], found.mean[order, 0], found.covariance[order, 0, 0], strict=True)
        for share, mean, variance in states:
            rows.append((f"{number + 1}", f"{100 * share:.1f} %", f"{mean:.1f}", f"{variance**0.5:.1f}"))
    mean, deviation = population.posterior(answers)
    own, error = (
        answers.mean["amplitude"].double(),
        answers.covariance.double().diagonal(dim1=1, dim2=2).sqrt(),
    )
    moved = ((mean - own) / error).square().mean(0).sqrt()
    narrower = (deviation / error).median(0).values
    text = (
        f"<p>How {population.particles} explained particles are distributed. Means of posteriors, in grey, "
        "are each off by its error, and drawn to the prior; these densities are neither. The band is where "
        "the density is with 95 % confidence, by a bootstrap over particles. Where images err by more than "
        "states are wide, valleys between these are filled, and no band shows it. Gaussians are as few as "
        "images ask for, and their widths have no error of the images in them; where particles lie evenly "
        "between two ends it takes several, and these are no states.</p>"
        + _figure(own_particles.plot_population(population, answers), "densities of amplitudes")
        + _table(("amplitude", "share", "mean (Å)", "width (Å)"), rows)
    )
    if population.pair is not None:
        text += (
            "<p>The first two amplitudes together, the same kind of smooth density: a contour is 1 kT, or a "
            "factor of 2.7. It has no band, and with a few hundred particles lumps of 1 kT may be chance.</p>"
            + _figure(own_particles.plot_two_amplitudes(population), "two amplitudes together")
        )
    told = "; ".join(
        f"along amplitude {n + 1} by {m:.2f} of their error bars, which are then {w:.2f} of what they were"
        for n, (m, w) in enumerate(zip(moved.tolist(), narrower.tolist(), strict=True))
    )
    return text + (
        f"<p>With this in place of the prior particles move: {told} (root mean square, and median). Export "
        "writes both. As an energy in kT, minus the logarithm of a density holds where particles were frozen "
        "from equilibrium, and picked whatever their state.</p>"
    )


def _of_twin(plan: Plan, twin: dict) -> str:
    rows = [
        (
            name,
            f"{one['error']:.3g}",
            f"{one['limit']:.3g}",
            f"{one['ratio']:.2f}",
            f"{one['standardised']:.2f}",
            " / ".join(f"{100 * share:.0f}" for share in one["inside"].values()),
        )
        for name, one in twin["latents"].items()
    ]
    header = ("latent", "error", "limit", "error for limit", "error for claimed", "inside 50/80/95 %")
    return (
        f"<p>{twin['images']} images were simulated with rows of this table, its noise and a draw from the "
        "posterior of each particle, and inferred in the same way by somebody who does not know the draw. "
        "Where error bars are widened, its atoms are off their places as those of the data are. "
        "Poses are in degrees, shifts, amplitudes and defoci in Å.</p>"
        + _figure(own_particles.plot_twin(twin), "errors on the twin")
        + _table(header, rows)
        + f"<p>The first amplitude orders the twin's images with a rank correlation of "
        f"{twin['rank_correlation']:.3f}; the information limit allows {twin['rank_limit']:.3f}. What the "
        "twin cannot tell is whether the molecule is the right one: see the alarms.</p>"
    )


def _alarms(twin: dict) -> str:
    rows = [
        (name, f"{one['images']}", f"{100 * one['unexplained']:.1f} %", f"{one['matched']:+.1f}")
        for name, one in twin["alarms"].items()
    ]
    return (
        "<p>An image is not explained if noise leaves as much of it, or as little of the prediction in it, "
        f"less than once in {1 / SUSPICIOUS:,.0f} times. All images together say more: how far they are off "
        "what they should hold of predictions, in standard deviations; scale and D are known as well as "
        "the images tell from which they were learned. Beside the data stand the twin, images of noise, "
        "and of the mirrored molecule at the same poses.</p>"
        + _table(("images", "number", "not explained", "all together"), rows)
    )


def _go_on(run: RunFolder, plan: Plan) -> str:
    folder = escape(str(run.path))
    return (
        f"<pre>cryoanm export {folder}</pre><p>writes tables like yours with these answers, subsets by "
        "amplitude and movies. Reconstruct the subsets as usual: if the maps do not move as the amplitudes "
        "say, what you see here is the model and not the molecule.</p>"
        f"<p>A finer look: a smaller --detail than {plan.detail:g} Å; more motion: more --modes than "
        f"{plan.modes}, or --towards another state. Each goes into a folder of its own.</p>"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        "<tr>" + f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(figure: Figure, alt: str) -> str:
    """A figure as text within the page."""
    held = io.StringIO()
    figure.savefig(held, format="svg", metadata={"Date": None})
    data = base64.b64encode(held.getvalue().encode()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'

"""Figures of the programs and of the networks, drawn from the objects themselves."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import daft
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Polygon, Rectangle
from pyro import poutine
from pyro.infer.inspect import TrackProvenance, get_model_relations
from pyro.ops.provenance import get_provenance, track_provenance
from torch import nn

from cryoanm_lib.book.figures.style import COLOURS, new_figure
from cryoanm_lib.imaging.latents import LATENTS
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.encoders import ConvolutionalEncoder
from cryoanm_lib.program.program import Guide, Model

SYMBOLS = {name: f"${latent.symbol}$" for name, latent in LATENTS.items()} | {"image": "$y$"}
FILLS = {"inferred": "white", "given": "#f5d9a8", "observed": "0.72"}

#: Distances between nodes, in the units of daft.
LAYER_GAP, NODE_GAP = 2.1, 2.3
LABEL_WIDTH = 2.0


@dataclass(frozen=True)
class Graph:
    """What depends on what in a program.

    Attributes
    ----------
    parents : mapping of str to tuple of str
        The sites that each site reads, in the order of the program.
    labels : mapping of str to str
        What is written under each site.
    roles : mapping of str to str
        "inferred", "given" or "observed".
    plates : mapping of str to tuple of str
        The sites in each plate.
    """

    parents: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, str]
    roles: Mapping[str, str]
    plates: Mapping[str, tuple[str, ...]]


def model_graph(model: Model, particles: Particles, resolution: int) -> Graph:
    """The graph of Algorithm 1, found by running the model and following its tensors.

    Of the images, two are enough.
    """
    # Tensors are followed through torch, not through compiled loops: any other projector has the same graph.
    forward, chosen = model.forward_model, model.forward_model.projector
    try:
        forward.projector = "separable"
        relations = get_model_relations(model.model, (particles, resolution))
    finally:
        forward.projector = chosen
    roles = {
        site: "inferred" if site not in relations["observed"] else "given" if site in LATENTS else "observed"
        for site in relations["sample_sample"]
    }
    return Graph(
        {site: tuple(parents) for site, parents in relations["sample_sample"].items()},
        {site: _label(site, kind) for site, kind in relations["sample_dist"].items()},
        roles,
        {name: tuple(sites) for name, sites in relations["plate_sample"].items()},
    )


def guide_graph(guide: Guide, particles: Particles, resolution: int) -> Graph:
    """The graph of Algorithm 2, found in the same way: which latent is read off the image or off others."""
    given = {name: track_provenance(value, frozenset({name})) for name, value in particles.given.items()}
    image = track_provenance(particles.coefficients, frozenset({"image"}))
    marked = replace(particles, coefficients=image, given=given)
    with torch.random.fork_rng(), torch.no_grad(), TrackProvenance():
        trace = poutine.trace(guide.guide).get_trace(marked, resolution)
    relations = get_model_relations(guide.guide, (particles, resolution))
    drawn = list(relations["sample_sample"])
    read = {
        site: get_provenance(trace.nodes[site]["fn"].log_prob(trace.nodes[site]["value"])) - {site}
        for site in drawn
    }
    sources = [name for name in ("image", *LATENTS) if any(name in upstream for upstream in read.values())]
    given = [name for name in sources if name not in drawn]
    roles = {name: "observed" if name == "image" else "given" for name in given}
    return Graph(
        dict.fromkeys(given, ()) | {site: tuple(s for s in sources if s in read[site]) for site in drawn},
        {name: name for name in given}
        | {site: _label(site, kind) for site, kind in relations["sample_dist"].items()},
        roles | dict.fromkeys(drawn, "inferred"),
        {name: (*given, *sites) for name, sites in relations["plate_sample"].items()},
    )


def _label(site: str, distribution: str) -> str:
    """The name of a site above its distribution: "pose", "~ projected normal"."""
    words = "\n".join(re.findall("[A-Z][a-z]*", distribution)).lower()
    return f"{site}\n~ {words}"


def _beside(
    site: str, parents: Mapping[str, tuple[str, ...]], x: float
) -> tuple[tuple[float, float], dict[str, str]]:
    """Where the text of a node stands so that no edge crosses it, and how it is aligned there."""
    if not parents[site]:
        return (0.0, 0.45), {"ha": "center", "va": "bottom"}
    if not any(site in upstream for upstream in parents.values()):
        return (0.0, -0.45), {"ha": "center", "va": "top"}
    side = "right" if x < 0 else "left"
    return (math.copysign(0.45, x), 0.0), {"ha": side, "va": "center"}


def plot_graph(graph: Graph) -> Figure:
    """A directed graph of a program with its plates, as the paper draws it.

    Counterpart of the paper's Fig. 1b (of `model_graph`) and Fig. 1c (of `guide_graph`). Every site stands a
    layer below the last site that it reads.
    """
    places = _layout(graph)
    pgm = daft.PGM(
        grid_unit=1.8, node_unit=1.5, line_width=1.3, directed=True, dpi=plt.rcParams["figure.dpi"]
    )
    for site, (x, y) in places.items():
        at: dict[str, Any] = {"x": x, "y": y}  # daft has no types, and 0 for its default
        fill = {"facecolor": FILLS[graph.roles[site]]}
        pgm.add_node(site, SYMBOLS.get(site, site), **at, plot_params=fill, fontsize=17)
        # A node without a circle, to hold the text beside the one with.
        words = {"fontsize": 12, "plot_params": {"ec": "none", "fc": "none"}}
        (dx, dy), text = _beside(site, graph.parents, x)
        at = {"x": x + dx, "y": y + dy}
        pgm.add_node(f"{site}:", graph.labels[site], **at, scale=0.01, label_params=text, **words)
    for site, parents in graph.parents.items():
        for parent in parents:
            pgm.add_edge(parent, site)
    for name, sites in graph.plates.items():
        x, y = zip(*(places[site] for site in sites), strict=True)
        left, right = min(x) - LABEL_WIDTH, max(x) + LABEL_WIDTH
        box = [left, min(y) - 1.4, right - left, max(y) - min(y) + 2.9]
        pgm.add_plate(box, label=name, fontsize=12)
    axes, figure = pgm.render(), pgm.figure
    roles = [role for role in FILLS if role in graph.roles.values()]
    handles = [
        axes.plot([], [], "o", markersize=11, color="black", markerfacecolor=FILLS[role], label=role)[0]
        for role in roles
    ]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=len(handles))
    plt.close(figure)
    figure.set_layout_engine("none")  # daft places its axes itself
    return figure


def _layout(graph: Graph) -> dict[str, tuple[float, float]]:
    """Where each site goes: one layer below its lowest parent, spread evenly, off the way of other edges."""
    depth: dict[str, int] = {}
    for site, parents in graph.parents.items():  # a program draws parents first
        depth[site] = max((depth[parent] + 1 for parent in parents), default=0)
    layers = [[s for s in graph.parents if depth[s] == level] for level in range(max(depth.values()) + 1)]
    places: dict[str, tuple[float, float]] = {}
    for level, sites in enumerate(layers):
        for i, site in enumerate(sites):
            places[site] = ((i - (len(sites) - 1) / 2) * NODE_GAP, -LAYER_GAP * level)
    for level, sites in enumerate(layers):
        if _is_crossed(level, sites, graph.parents, depth, places):
            places |= {site: (places[site][0] - NODE_GAP / 2, places[site][1]) for site in sites}
    return places


def _is_crossed(
    level: int,
    sites: list[str],
    parents: Mapping[str, tuple[str, ...]],
    depth: Mapping[str, int],
    places: Mapping[str, tuple[float, float]],
) -> bool:
    """Whether an edge that skips this layer would run through one of its nodes."""
    for site, upstream in parents.items():
        for parent in upstream:
            if depth[parent] < level < depth[site]:
                (x0, y0), (x1, y1) = places[parent], places[site]
                x = x0 + (x1 - x0) * (-LAYER_GAP * level - y0) / (y1 - y0)
                if any(abs(places[other][0] - x) < 0.6 for other in sites):
                    return True
    return False


@dataclass(frozen=True)
class Layer:
    """One step of a network: what it is, and the shape that it gives out, without the batch."""

    kind: str
    shape: tuple[int, ...]
    n_parameters: int


# What is drawn as a step of its own; normalisation and rectifiers belong to the step before them.
KINDS = {nn.Conv2d: "convolution", nn.MaxPool2d: "pooling", nn.Flatten: "flatten", nn.Linear: "dense"}
KIND_COLOURS = {"image": "0.6"} | dict(zip(KINDS.values(), COLOURS, strict=False))


def encoder_layers(encoder: ConvolutionalEncoder) -> list[Layer]:
    """The steps of a network with the shapes that they have, found by sending an image through it.

    Examples
    --------
    >>> encoder = ConvolutionalEncoder(16, 2, channels=(4,))
    >>> [(layer.kind, layer.shape) for layer in encoder_layers(encoder)][:3]
    [('image', (16, 16)), ('convolution 3 × 3', (4, 16, 16)), ('convolution 3 × 3', (4, 16, 16))]
    """
    size = (encoder.image_size, encoder.image_size)
    layers = [Layer("image", size, 0)]

    def record(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        n_parameters = sum(p.numel() for p in module.parameters())
        if type(module) in KINDS:
            layers.append(Layer(_kind(module), tuple(output.shape[1:]), n_parameters))
        else:
            layers[-1] = replace(layers[-1], n_parameters=layers[-1].n_parameters + n_parameters)

    leaves = [module for module in encoder.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(record) for module in leaves]
    training = encoder.training
    try:
        with torch.no_grad():
            encoder.eval()(torch.zeros(1, *size, device=next(encoder.parameters()).device))
    finally:
        encoder.train(training)
        for hook in hooks:
            hook.remove()
    return layers


def _kind(module: nn.Module) -> str:
    """The name of a step, with the size of its window if it has one."""
    name, window = KINDS[type(module)], getattr(module, "kernel_size", None)
    if window is None:
        return name
    return f"{name} {window} × {window}" if isinstance(window, int) else f"{name} {window[0]} × {window[1]}"


def plot_encoder(encoder: ConvolutionalEncoder) -> Figure:
    """The network that reads an image, from left to right, one block a step, labelled with its real shape.

    Counterpart of the paper's Fig. A1. A block is as high as its feature maps and as deep as the logarithm of
    their number; a dense step is a column.
    """
    layers = encoder_layers(encoder)
    figure, ((ax,),) = new_figure(height=3.2)
    x = 0.0
    for layer in layers:
        x += _draw_layer(ax, layer, x, encoder.image_size) + 0.5
    kinds = {layer.kind: None for layer in layers}
    handles = [Patch(facecolor=_colour(kind), label=kind) for kind in kinds]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, columnspacing=1.2)
    total = sum(layer.n_parameters for layer in layers)
    ax.set_title(f"{total:,} parameters", fontsize=10)
    ax.set(xlim=(-0.6, x + 0.2), ylim=(-3.9, 2.3))
    ax.set_aspect("equal")
    ax.set_axis_off()
    return figure


def _colour(kind: str) -> str:
    return KIND_COLOURS[kind.split()[0]]


def _draw_layer(ax: Axes, layer: Layer, x: float, image_size: int) -> float:
    """Draw one step with its left edge at x, in units of a fourth of the image's height; return its width."""
    colour = _colour(layer.kind)
    if len(layer.shape) == 1:
        height, width = 0.33 * math.log2(layer.shape[0] + 1), 0.3
        _draw_box(ax, x, height, width, 0.0, colour)
        label = str(layer.shape[0])
    else:
        *channels, _, rows = layer.shape
        height = 3.0 * rows / image_size
        width = 0.09 * math.log2(2 * channels[0]) if channels else 0.04
        _draw_box(ax, x, height, width, 0.22 * height, colour)
        label = " × ".join(map(str, layer.shape))
    ax.text(x + width / 2, -1.75, label, rotation=90, ha="center", va="top", fontsize=9.5)
    return width + (0.22 * height if len(layer.shape) > 1 else 0)


def _draw_box(ax: Axes, x: float, height: float, width: float, depth: float, colour: str) -> None:
    """A box seen from the side and a little from above, centred on the line y = 0."""
    y = -height / 2
    style = {"edgecolor": "white", "linewidth": 0.6}
    ax.add_patch(Rectangle((x, y), width, height, facecolor=colour, **style))
    if depth:
        top = [(x, y + height), (x + width, y + height), (x + width + depth, y + height + depth)]
        side = [(x + width, y), (x + width, y + height), (x + width + depth, y + height + depth)]
        ax.add_patch(Polygon([*top, (x + depth, y + height + depth)], facecolor=colour, alpha=0.55, **style))
        ax.add_patch(Polygon([*side, (x + width + depth, y + depth)], facecolor=colour, alpha=0.75, **style))

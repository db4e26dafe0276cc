// A chain that swings along one of its modes, and that can be turned by mouse, finger and arrow keys; beside it
// its projection.
"use strict";

const breathing = (() => {
  const PERIOD = 4; // seconds of a swing there and back
  const TURN_PER_PIXEL = 0.01, TURN_PER_KEY = Math.PI / 18;
  const SMOOTH = 4; // pieces of curve from one atom to the next
  const BAR = 20; // Å
  const RIM = 2.5; // Å that a rim lies behind its piece, so that it hides no neighbour along the chain

  /** Coordinates in Å, bent by an amplitude along a mode. */
  const bent = (model, mode, amplitude) => model.reference.map((atom, p) =>
    atom.map((x, axis) => x + amplitude * model.modes[mode][p][axis]));

  /** The product of two 3 × 3 matrices. */
  const product = (a, b) => a.map((row) => b[0].map((_, j) => row.reduce((sum, x, k) => sum + x * b[k][j], 0)));

  /** A turn about the detector's y axis, then about its x axis. */
  function turn(aboutY, aboutX) {
    const [c, s] = [Math.cos(aboutY), Math.sin(aboutY)], [d, t] = [Math.cos(aboutX), Math.sin(aboutX)];
    return product([[1, 0, 0], [0, d, -t], [0, t, d]], [[c, 0, s], [0, 1, 0], [-s, 0, c]]);
  }

  const apply = (rotation, point) => rotation.map((row) => row[0] * point[0] + row[1] * point[1] + row[2] * point[2]);

  /** A smooth curve through the points (Catmull-Rom). */
  function smooth(points) {
    const at = (i) => points[Math.min(points.length - 1, Math.max(0, i))], curve = [];
    for (let i = 0; i < points.length - 1; i++) {
      const [a, b, c, d] = [at(i - 1), at(i), at(i + 1), at(i + 2)];
      for (let step = 0; step < SMOOTH; step++) {
        const t = step / SMOOTH;
        curve.push(b.map((_, x) => b[x] + 0.5 * t * (c[x] - a[x] + t * (2 * a[x] - 5 * b[x] + 4 * c[x] - d[x]
          + t * (3 * (b[x] - c[x]) + d[x] - a[x])))));
      }
    }
    return [...curve, points[points.length - 1]];
  }

  /** Red, green and blue between two colours. */
  const mixed = (from, to, share) => `rgb(${from.map((x, i) => Math.round(x + share * (to[i] - x))).join(",")})`;

  /** What lies behind the figure, which distant parts fade into. */
  function background(element) {
    for (let at = element; at; at = at.parentElement) {
      const found = getComputedStyle(at).backgroundColor.match(/[\d.]+/g).map(Number);
      if (found.length < 4 || found[3] > 0) return found.slice(0, 3);
    }
    return [255, 255, 255];
  }

  /** The chain from back to front, on a rim of background, so that one sees which piece is in front. */
  function draw(canvas, model, { mode, amplitude, rotation }) {
    const scale = window.devicePixelRatio || 1, context = canvas.getContext("2d");
    const width = Math.round(canvas.clientWidth * scale), height = Math.round(canvas.clientHeight * scale);
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    context.clearRect(0, 0, width, height);
    const zoom = 0.5 * Math.min(width, height) / model.reach, behind = background(canvas);
    const place = (point) => [width / 2 + zoom * point[0], height / 2 - zoom * point[1]];

    const strand = (points, colour, thickness) => {
      const curve = smooth(points.map((point) => apply(rotation, point)));
      return curve.slice(1).flatMap((end, i) => {
        const start = curve[i], depth = (start[2] + end[2]) / 2, ends = [place(start), place(end)];
        const near = Math.min(1, Math.max(0, 0.5 + 0.5 * depth / model.reach));
        return [
          { ends, depth: depth - RIM, width: thickness + 2.5 * scale, colour: mixed(behind, behind, 0), cap: "butt" },
          { ends, depth, width: thickness, colour: mixed(behind, colour(i / curve.length), 0.3 + 0.7 * near), cap: "round" },
        ];
      });
    };
    const along = (share) => model.colours[Math.min(model.colours.length - 1, Math.floor(share * model.colours.length))];
    const other = behind[0] > 128 ? [190, 110, 30] : [230, 160, 80];
    const grey = behind[0] > 128 ? [150, 150, 150] : [130, 130, 130];
    const pieces = [
      ...strand(model.reference, () => grey, 1.2 * scale),
      ...(model.other ? strand(model.other, () => other, 1.6 * scale) : []),
      ...strand(bent(model, mode, amplitude), along, 4.5 * scale),
    ].sort((a, b) => a.depth - b.depth);
    for (const { ends: [start, end], width: line, colour, cap } of pieces) {
      [context.strokeStyle, context.lineWidth, context.lineCap] = [colour, line, cap];
      context.beginPath();
      context.moveTo(...start);
      context.lineTo(...end);
      context.stroke();
    }
    const bar = BAR * zoom, left = 12 * scale, below = height - 12 * scale;
    context.strokeStyle = context.fillStyle = `rgb(${grey.join(",")})`;
    [context.lineWidth, context.lineCap, context.font] = [2 * scale, "butt", `${12 * scale}px sans-serif`];
    context.beginPath();
    context.moveTo(left, below);
    context.lineTo(left + bar, below);
    context.stroke();
    context.fillText(`${BAR} Å`, left, below - 6 * scale);
  }

  /** The bent and turned molecule added up along the line of sight, at the scale of the drawn chain. */
  function projected(model, { mode, amplitude, rotation }) {
    const size = model.boxSize, pixel = 2 * model.reach / size;
    // The first row of an image is its top, where y is largest.
    const places = bent(model, mode, amplitude).map((atom) => {
      const [x, y] = apply(rotation, atom);
      return [x / pixel, -y / pixel];
    });
    return projection.image(model, { noise: 0, resolution: size }, places);
  }

  /** Join mouse, finger, keys, slider and buttons to the picture. */
  function start(figure, model) {
    const [canvas, picture] = figure.querySelectorAll("canvas"), slider = figure.querySelector("input");
    const shown = figure.querySelector("output"), choice = figure.querySelector(".choice");
    const marks = figure.querySelector("datalist");
    slider.setAttribute("list", marks.id);
    const state = { mode: 0, amplitude: 0, rotation: turn(0.5, -0.3) };
    let running = !window.matchMedia("(prefers-reduced-motion: reduce)").matches, phase = 1, before = null;
    let brightest = 0; // so far: grey levels change as little as they can

    const redraw = () => {
      const rmsd = Math.abs(state.amplitude) / Math.sqrt(model.reference.length);
      shown.textContent = `${state.amplitude.toFixed(0).replace("-", "−")} Å, RMSD ${rmsd.toFixed(1)} Å`;
      draw(canvas, model, state);
      const pixels = projected(model, state);
      brightest = pixels.reduce((most, value) => Math.max(most, value), brightest);
      projection.paint(picture, pixels, model.boxSize, 0, brightest);
    };
    /** The slider, and the molecule with it, at a place of the swing. */
    const swingTo = () => {
      const end = model.furthest[state.mode], one = model.deviations[state.mode];
      // A browser marks only what is a whole number of steps away from the end.
      const step = one / 10, reach = step * Math.floor(end / step);
      [slider.min, slider.max, slider.step] = [-reach, reach, step];
      marks.replaceChildren(...[-one, 0, one].map((value) => new Option("", value)));
      state.amplitude = end * Math.sin(phase);
      slider.value = state.amplitude;
      redraw();
    };

    const buttons = model.modes.map((_, mode) => {
      const button = choice.appendChild(document.createElement("button"));
      button.textContent = `mode ${mode + 1}`;
      button.addEventListener("click", () => {
        state.mode = mode;
        buttons.forEach((each, i) => each.setAttribute("aria-pressed", i === mode));
        swingTo();
      });
      button.setAttribute("aria-pressed", mode === 0);
      return button;
    });
    const swing = choice.appendChild(document.createElement("button"));
    const label = () => { swing.textContent = running ? "hold still" : "swing"; };
    swing.addEventListener("click", () => {
      running = !running;
      before = null;
      label();
      if (running) requestAnimationFrame(step);
    });

    slider.addEventListener("input", () => {
      running = false;
      label();
      state.amplitude = Number(slider.value);
      phase = Math.asin(Math.max(-1, Math.min(1, state.amplitude / model.furthest[state.mode])));
      redraw();
    });
    canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      if (!canvas.hasPointerCapture(event.pointerId)) return;
      state.rotation = product(turn(TURN_PER_PIXEL * event.movementX, TURN_PER_PIXEL * event.movementY), state.rotation);
      redraw();
    });
    canvas.addEventListener("keydown", (event) => {
      const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
      if (!x && !y) return;
      event.preventDefault();
      state.rotation = product(turn(TURN_PER_KEY * x, TURN_PER_KEY * y), state.rotation);
      redraw();
    });

    // It swings only while it is in sight.
    let visible = false;
    const step = (now) => {
      if (!running || !visible) {
        before = null;
        return;
      }
      phase += before === null ? 0 : (2 * Math.PI * (now - before)) / (1000 * PERIOD);
      before = now;
      swingTo();
      requestAnimationFrame(step);
    };
    new IntersectionObserver(([entry]) => {
      const appeared = entry.isIntersecting && !visible;
      visible = entry.isIntersecting;
      if (appeared && running) requestAnimationFrame(step);
    }).observe(canvas);
    new ResizeObserver(redraw).observe(canvas);
    new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    label();
    swingTo();
  }

  return { bent, turn, apply, smooth, projected, start };
})();

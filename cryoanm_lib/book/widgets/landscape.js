// One noisy image that stays, a model that is turned and bent against it, and the log-likelihood on the way.
"use strict";

const landscape = (() => {
  const HERE = "#d00000", DEGREES = 180 / Math.PI;

  /** Log-likelihood in nats, without its constant: -N² Σ |left|² / 2σ², over the whole plane. */
  function logLikelihood(model, latents) {
    const { m, width, real, imag } = projection.left(model, model.observed, latents);
    let sum = 0;
    for (let kx = 0; kx <= m; kx++) {
      for (let i = 0; i < width; i++) {
        sum += (kx ? 2 : 1) * (real[kx * width + i] ** 2 + imag[kx * width + i] ** 2);
      }
    }
    return -sum * model.boxSize ** 2 / (2 * model.sigma ** 2);
  }

  /** One step of the map's grid to where it is highest, or none where nothing beside is higher. */
  function uphill(model, latents, step) {
    const around = [[-1, 0], [1, 0], [0, -1], [0, 1]].map(([a, b]) => ({
      ...latents,
      pose: latents.pose + a * step.pose,
      amplitude: latents.amplitude + b * step.amplitude,
    })).filter(({ amplitude }) => Math.abs(amplitude) <= step.furthest);
    const heights = around.map((each) => logLikelihood(model, each));
    const best = heights.indexOf(Math.max(...heights));
    return heights[best] > logLikelihood(model, latents) ? around[best] : null;
  }

  /** Join sliders, map and button. */
  function start(figure, model) {
    const [pose, amplitude, resolution] = figure.querySelectorAll("input");
    const [seen, predicted, rest, map] = figure.querySelectorAll("canvas");
    const said = figure.querySelector(".height"), button = figure.querySelector("button");
    let trail = [], walking = 0;

    const frameNow = () => model.frames[Number(resolution.value)];
    const now = () => ({
      pose: Number(pose.value) / DEGREES,
      amplitude: Number(amplitude.value),
      defocus: model.defocus,
      resolution: frameNow().resolution,
    });

    const redraw = () => {
      const latents = now(), { resolution: K, map: levels, top } = frameNow();
      const texts = [`${pose.value}°`, `${Number(amplitude.value).toFixed(1)} Å`, `K = ${K}`];
      figure.querySelectorAll("output").forEach((output, at) => { output.textContent = texts[at]; });
      const drawn = projection.image(model, { ...latents, noise: 0 });
      const residual = projection.synthesis(projection.left(model, model.observed, latents), K);
      const image = drawn.map((value, at) => value + residual[at]);
      const most = image.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
      const five = 5 * model.sigma * K / model.boxSize; // deviations of the noise
      projection.paint(seen, image, K, -most, most);
      projection.paint(predicted, drawn, K, -most, most);
      projection.paint(rest, residual, K, -five, five);
      const below = logLikelihood(model, latents) - top;
      const nats = Math.max(0, Math.round(-below)).toLocaleString("en");
      said.textContent = `log-likelihood: ${nats} nats below the highest point of the map`;
      trail.push([Number(pose.value), Number(amplitude.value)]);
      trail = trail.slice(-400);
      panel.draw(map, levels, model.colours, model.columns, (context, x, y) => {
        context.beginPath();
        context.arc(x(model.truth[0]), y(model.truth[1]), 7, 0, 2 * Math.PI);
        context.strokeStyle = panel.TRUTH;
        context.lineWidth = 2;
        context.stroke();
        context.fillStyle = HERE;
        for (const [a, b] of trail) context.fillRect(x(a) - 0.8, y(b) - 0.8, 1.6, 1.6);
        panel.cross(context, ...[x(trail.at(-1)[0]), y(trail.at(-1)[1])], 7, HERE);
      });
    };

    const moveTo = (latents) => {
      const degrees = latents.pose * DEGREES;
      pose.value = degrees - 360 * Math.round(degrees / 360);
      amplitude.value = latents.amplitude;
      redraw();
    };

    const walk = () => {
      const next = walking ? uphill(model, now(), model.step) : null;
      if (!next) {
        walking = 0;
        button.textContent = "Walk uphill";
        return;
      }
      moveTo(next);
      requestAnimationFrame(walk);
    };

    button.addEventListener("click", () => {
      walking = 1 - walking;
      button.textContent = walking ? "Stop" : "Walk uphill";
      walk();
    });
    map.addEventListener("click", (event) => {
      const at = panel.frame(map, frameNow().map), box = map.getBoundingClientRect();
      trail = [];
      moveTo({ pose: at.pose(event.clientX - box.left) / DEGREES, amplitude: at.amplitude(event.clientY - box.top) });
    });
    for (const slider of [pose, amplitude, resolution]) slider.addEventListener("input", redraw);
    new ResizeObserver(redraw).observe(map);
    redraw();
  }

  return { logLikelihood, uphill, start };
})();

// The crop of an image beside its posterior, the whole of it and where it is, by resolution and noise.
"use strict";

const sharpening = (() => {
  const DRAW = "rgba(222, 143, 5, 0.55)", PEAK = "#1a1a1a";

  /** One panel: the map, and on it draws, peaks and the truth. */
  function draw(canvas, model, columns, map, { draws, peaks }) {
    panel.draw(canvas, map, model.colours, columns, (context, x, y) => {
      context.fillStyle = DRAW;
      for (const [pose, amplitude] of draws) {
        context.beginPath();
        context.arc(x(pose), y(amplitude), 1.6, 0, 2 * Math.PI);
        context.fill();
      }
      context.lineWidth = 1.5;
      context.strokeStyle = PEAK;
      for (const outline of peaks) {
        context.beginPath();
        outline.forEach(([pose, amplitude]) => context.lineTo(x(pose), y(amplitude)));
        context.closePath();
        context.stroke();
      }
      panel.cross(context, x(map.truth[0]), y(map.truth[1]), 8, panel.TRUTH);
    });
  }

  const twoDigits = (value) => Number(value.toPrecision(2));

  /** The crop to K × K pixels, its noise multiplied by a factor. */
  function crop(model, image, louder, resolution) {
    const latents = { ...image, resolution, noise: 0 };
    const noise = projection.synthesis(projection.left(model, image.observed, latents), resolution);
    return projection.image(model, latents).map((value, at) => value + louder * noise[at]);
  }

  /** Join buttons and sliders to the three pictures. */
  function start(figure, model) {
    const [resolution, noise] = figure.querySelectorAll("input"), said = figure.querySelector(".said");
    const [picture, whole, near] = figure.querySelectorAll("canvas"), choice = figure.querySelector(".choice");
    let chosen = 0;

    const tell = (slider, text) => {
      slider.setAttribute("aria-valuetext", text);
      figure.querySelector(`output[for="${slider.id}"]`).textContent = text;
    };
    const redraw = () => {
      const image = model.images[chosen], K = model.resolutions[resolution.value];
      const louder = model.louder[noise.value];
      const frame = model.frames[chosen * model.louder.length + Number(noise.value)][resolution.value];
      tell(resolution, `${K} px`);
      tell(noise, (louder * model.noise).toFixed(2));
      const pixels = crop(model, image, louder, K);
      const most = pixels.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
      projection.paint(picture, pixels, K, -most, most);
      draw(whole, model, model.whole, frame.whole, { draws: [], peaks: [] });
      draw(near, model, model.near, frame.near, frame);
      const [ratio, pose, amplitude] = [image.ratio / louder ** 2, ...frame.deviation].map(twoDigits);
      said.textContent = `Signal-to-noise ratio ${ratio}; the posterior's deviations: ${pose}°, ${amplitude} Å.`;
    };
    const buttons = model.images.map((_, at) => {
      const button = choice.appendChild(document.createElement("button"));
      button.type = "button";
      button.textContent = `image ${at + 1}`;
      button.setAttribute("aria-pressed", at === chosen);
      button.addEventListener("click", () => {
        chosen = at;
        buttons.forEach((each, i) => each.setAttribute("aria-pressed", i === at));
        redraw();
      });
      return button;
    });
    for (const slider of [resolution, noise]) slider.addEventListener("input", redraw);
    new ResizeObserver(redraw).observe(whole);
    redraw();
  }

  return { crop, start };
})();

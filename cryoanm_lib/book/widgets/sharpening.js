// The posterior of one image at one resolution after the other: the whole of it, and where it is.
"use strict";

const sharpening = (() => {
  const DRAW = "rgba(222, 143, 5, 0.55)", PEAK = "#1a1a1a";

  /** One panel: the map, and on it draws, peaks and the truth. */
  function draw(canvas, model, map, { draws, peaks }) {
    panel.draw(canvas, map, model.colours, model.points, (context, x, y) => {
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

  /** Join the slider to the two panels. */
  function start(figure, model) {
    const slider = figure.querySelector("input"), shown = figure.querySelector("output");
    const [whole, near] = figure.querySelectorAll("canvas");
    const redraw = () => {
      const frame = model.frames[Number(slider.value)];
      shown.textContent = `K = ${frame.resolution}`;
      draw(whole, model, frame.whole, { draws: [], peaks: [] });
      draw(near, model, frame.near, frame);
    };
    slider.addEventListener("input", redraw);
    new ResizeObserver(redraw).observe(whole);
    redraw();
  }

  return { start };
})();

// The posterior of one image at one resolution after the other: the whole of it, and where it is.
"use strict";

const sharpening = (() => {
  const MARGIN = { left: 44, right: 8, top: 8, bottom: 38 }; // CSS pixels
  const TRUTH = "#a84b00", DRAW = "rgba(222, 143, 5, 0.55)", PEAK = "#1a1a1a";

  /** Numbers in rising order, at distances of 1, 2 or 5 times a power of ten. */
  function ticks(low, high, most) {
    const power = 10 ** Math.floor(Math.log10((high - low) / most));
    const step = [1, 2, 5, 10].map((each) => each * power).find((each) => (high - low) / each <= most);
    const found = [];
    for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(i * step);
    return { found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
  }

  /** Levels from 0 to 255, one byte each, row by row. */
  const levels = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  /** One panel: a map of levels, axes with units, draws, peaks and the truth. */
  function draw(canvas, model, panel, { draws, peaks }) {
    const scale = window.devicePixelRatio || 1, context = canvas.getContext("2d");
    const width = canvas.clientWidth, height = canvas.clientHeight;
    [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
    context.scale(scale, scale);
    const [left, right] = panel.pose, [bottom, top] = panel.amplitude;
    const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
    const x = (pose) => MARGIN.left + inner.width * (pose - left) / (right - left);
    const y = (amplitude) => MARGIN.top + inner.height * (top - amplitude) / (top - bottom);

    const size = model.points, map = document.createElement("canvas");
    map.width = map.height = size;
    const pixels = map.getContext("2d").createImageData(size, size);
    levels(panel.levels).forEach((level, at) => pixels.data.set([...model.colours[level], 255], 4 * at));
    map.getContext("2d").putImageData(pixels, 0, 0);
    context.imageSmoothingEnabled = true;
    context.drawImage(map, MARGIN.left, MARGIN.top, inner.width, inner.height);

    context.save();
    context.beginPath();
    context.rect(MARGIN.left, MARGIN.top, inner.width, inner.height);
    context.clip();
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
    context.lineWidth = 2.2;
    context.strokeStyle = TRUTH;
    const [pose, amplitude] = [x(panel.truth[0]), y(panel.truth[1])];
    context.beginPath();
    [[-8, 0, 8, 0], [0, -8, 0, 8]].forEach(([a, b, c, d]) => {
      context.moveTo(pose + a, amplitude + b);
      context.lineTo(pose + c, amplitude + d);
    });
    context.stroke();
    context.restore();

    context.strokeStyle = context.fillStyle = "#333";
    context.lineWidth = 1;
    context.strokeRect(MARGIN.left, MARGIN.top, inner.width, inner.height);
    context.font = "11px sans-serif";
    context.textAlign = "center";
    const along = ticks(left, right, 4), up = ticks(bottom, top, 5);
    for (const tick of along.found) context.fillText(tick.toFixed(along.digits), x(tick), height - 23);
    context.fillText("pose θ (°)", MARGIN.left + inner.width / 2, height - 6);
    context.textAlign = "right";
    for (const tick of up.found) context.fillText(tick.toFixed(up.digits), MARGIN.left - 4, y(tick) + 4);
    context.translate(10, MARGIN.top + inner.height / 2);
    context.rotate(-Math.PI / 2);
    context.textAlign = "center";
    context.fillText("amplitude α (Å)", 0, 0);
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

  return { ticks, levels, start };
})();

// A map of something over pose and amplitude, with axes and units.
"use strict";

const panel = (() => {
  const MARGIN = { left: 44, right: 8, top: 8, bottom: 38 }; // CSS pixels

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

  /** Where a map lies on its canvas, and the functions that take pose and amplitude there. */
  function frame(canvas, { pose: [left, right], amplitude: [bottom, top] }) {
    const width = canvas.clientWidth - MARGIN.left - MARGIN.right;
    const height = canvas.clientHeight - MARGIN.top - MARGIN.bottom;
    return {
      width,
      height,
      x: (pose) => MARGIN.left + width * (pose - left) / (right - left),
      y: (amplitude) => MARGIN.top + height * (top - amplitude) / (top - bottom),
      pose: (x) => left + (right - left) * (x - MARGIN.left) / width,
      amplitude: (y) => top - (top - bottom) * (y - MARGIN.top) / height,
    };
  }

  /** Levels from 0 to 255 in so many columns, the largest amplitude in the first row; `over` draws on top of them. */
  function draw(canvas, map, colours, columns, over) {
    const scale = window.devicePixelRatio || 1, context = canvas.getContext("2d");
    [canvas.width, canvas.height] = [canvas.clientWidth, canvas.clientHeight].map((n) => Math.round(n * scale));
    context.scale(scale, scale);
    const { width, height, x, y } = frame(canvas, map);
    const values = levels(map.levels), small = document.createElement("canvas");
    [small.width, small.height] = [columns, values.length / columns];
    const pixels = small.getContext("2d").createImageData(small.width, small.height);
    values.forEach((level, at) => pixels.data.set([...colours[level], 255], 4 * at));
    small.getContext("2d").putImageData(pixels, 0, 0);
    context.imageSmoothingEnabled = true;
    context.drawImage(small, MARGIN.left, MARGIN.top, width, height);

    context.save();
    context.beginPath();
    context.rect(MARGIN.left, MARGIN.top, width, height);
    context.clip();
    over(context, x, y);
    context.restore();

    context.strokeStyle = context.fillStyle = "#333";
    context.lineWidth = 1;
    context.strokeRect(MARGIN.left, MARGIN.top, width, height);
    context.font = "11px sans-serif";
    context.textAlign = "center";
    const along = ticks(...map.pose, 4), up = ticks(...map.amplitude, 5), below = MARGIN.top + height;
    for (const tick of along.found) context.fillText(tick.toFixed(along.digits), x(tick), below + 15);
    context.fillText("pose θ (°)", MARGIN.left + width / 2, below + 32);
    context.textAlign = "right";
    for (const tick of up.found) context.fillText(tick.toFixed(up.digits), MARGIN.left - 4, y(tick) + 4);
    context.translate(10, MARGIN.top + height / 2);
    context.rotate(-Math.PI / 2);
    context.textAlign = "center";
    context.fillText("amplitude α (Å)", 0, 0);
  }

  /** A cross of so many CSS pixels to either side. */
  function cross(context, x, y, arm, colour) {
    context.lineWidth = 2.2;
    context.strokeStyle = colour;
    context.beginPath();
    [[-arm, 0, arm, 0], [0, -arm, 0, arm]].forEach(([a, b, c, d]) => {
      context.moveTo(x + a, y + b);
      context.lineTo(x + c, y + d);
    });
    context.stroke();
  }

  return { TRUTH: "#a84b00", ticks, levels, frame, draw, cross };
})();

// Draws a heat map, a few rows of numbers, as a smooth, transparent overlay.

// From weak to strong: value (0..1), red, green, blue, opacity.
const COLOURS = [[0, 40, 20, 90, 0], [0.3, 70, 30, 130, 0.16], [0.55, 190, 50, 110, 0.42], [0.8, 245, 130, 50, 0.6], [1, 255, 225, 110, 0.7]];
const EDGE = 0.06; // fraction of a side along which the overlay fades out inside the image, so that no border is visible

function colour(share) {
  const next = Math.max(1, COLOURS.findIndex(([at]) => share <= at));
  const [low, high] = [COLOURS[next - 1], COLOURS[next]];
  const part = (share - low[0]) / (high[0] - low[0]);
  return low.slice(1).map((value, i) => value + (high[i + 1] - value) * part);
}

const smooth = (t) => t * t * (3 - 2 * t);
const fading = (t, start, end) => smooth(Math.min(1, Math.min(start ? t : 1, end ? 1 - t : 1) / EDGE));

// Paints the places that support the class; places with negative values stay transparent. The box is the part of the image
// that the map covers: left, top, right, bottom.
export function paint(canvas, map, [left, top, right, bottom]) {
  const rows = map.length, columns = map[0].length, { width, height } = canvas;
  const most = Math.max(...map.flat(), 1e-9);
  const at = (row, column) => Math.max(0, map[Math.min(rows - 1, Math.max(0, row))][Math.min(columns - 1, Math.max(0, column))]) / most;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let y = 0; y < height; y++) {
    const v = ((y + 0.5) / height) * rows - 0.5, row = Math.floor(v), down = smooth(v - row);
    for (let x = 0; x < width; x++) {
      const u = ((x + 0.5) / width) * columns - 0.5, column = Math.floor(u), across = smooth(u - column);
      const above = at(row, column) * (1 - across) + at(row, column + 1) * across;
      const below = at(row + 1, column) * (1 - across) + at(row + 1, column + 1) * across;
      const [red, green, blue, opacity] = colour(Math.min(1, above * (1 - down) + below * down));
      const fade = fading((x + 0.5) / width, left > 0, right < 1) * fading((y + 0.5) / height, top > 0, bottom < 1);
      image.data.set([red, green, blue, 255 * opacity * fade], 4 * (y * width + x));
    }
  }
  context.putImageData(image, 0, 0);
}

// The mask that a reviewer puts together: disputed parts are vessel (blue) or not (orange), a click turns one over.
import { button, make, say } from './ui.js';
import { BLUE, BOTH, ORANGE } from './view.js';

const REACH = 12; // pixels of the screen: thin parts are hard to hit

export class Regions {
  constructor(page, data, base) {
    const { labels } = data, { codes, width, height } = data.item;
    Object.assign(this, { page, data, labels, codes, width, height, clicks: 0, on: new Uint8Array(codes.length + 1) });
    // Pixels of every region: a turned region repaints itself only.
    if (!data.pixels) {
      const begin = new Int32Array(codes.length + 2);
      for (const label of labels) begin[label + 1]++;
      for (let i = 1; i < begin.length; i++) begin[i] += begin[i - 1];
      const next = begin.slice(), order = new Int32Array(labels.length);
      for (let i = 0; i < labels.length; i++) order[next[labels[i]]++] = i;
      data.pixels = { begin, order };
    }
    this.canvas = document.createElement('canvas');
    this.canvas.width = width; this.canvas.height = height;
    this.begin(base);
    this.clicks = 0;
  }

  // As one candidate has it; null: nothing disputed is vessel.
  begin(base) {
    if (base !== null && base >= this.data.item.candidates) return;
    this.base = base;
    this.clicks += 1;
    for (let region = 1; region < this.on.length; region++) this.on[region] = base === null ? 0 : this.codes[region - 1] >> base & 1;
    this._paint();
    this._tell();
  }

  _paint() {
    const picture = new ImageData(this.width, this.height), { all, masks } = this.data;
    const rest = this.base === null ? all.bits : masks[this.base].bits;
    this.values = new Uint32Array(picture.data.buffer);
    for (let i = 0; i < this.values.length; i++) {
      const label = this.labels[i];
      this.values[i] = label ? this._colour(label) : rest[i] ? colour(BOTH, 130) : 0;
    }
    this.picture = picture;
    this.canvas.getContext('2d').putImageData(picture, 0, 0);
  }
  _colour(region) { return this.on[region] ? colour(BLUE, 170) : colour(ORANGE, 150); }

  toggle(x, y) {
    const region = this.near(x, y);
    if (!region) return;
    this.on[region] ^= 1;
    this.clicks += 1;
    const { begin, order } = this.data.pixels, value = this._colour(region);
    let [left, top, right, bottom] = [this.width, this.height, 0, 0];
    for (let k = begin[region]; k < begin[region + 1]; k++) {
      const i = order[k], px = i % this.width, py = (i - px) / this.width;
      this.values[i] = value;
      left = Math.min(left, px); right = Math.max(right, px); top = Math.min(top, py); bottom = Math.max(bottom, py);
    }
    this.canvas.getContext('2d').putImageData(this.picture, 0, 0, left, top, right - left + 1, bottom - top + 1);
    this.page.view.draw();
    this._tell();
  }

  // The region at a point of the image, or the nearest one within reach.
  near(x, y) {
    const reach = Math.max(1, REACH / this.page.view.scale);
    let best = 0, distance = Infinity;
    for (let py = Math.max(0, Math.floor(y - reach)); py <= Math.min(this.height - 1, y + reach); py++) {
      for (let px = Math.max(0, Math.floor(x - reach)); px <= Math.min(this.width - 1, x + reach); px++) {
        const label = this.labels[py * this.width + px], apart = Math.hypot(px + .5 - x, py + .5 - y);
        if (label && apart < distance && apart <= reach) { best = label; distance = apart; }
      }
    }
    return best;
  }

  get chosen() { return [...this.on.keys()].filter(region => this.on[region]); }
  use() { this.page.decide({ pick: { regions: this.chosen, base: this.base }, clicks: this.clicks + 1 }); }

  sheet() {
    return { id: 'regions', title: say('do_regions'), facts: [make('span', { id: 'regions' }, this._count())],
      layers: () => ({ layers: [{ picture: this.canvas }] }) };
  }
  _count() { return say('regions_count', { n: this.chosen.length, all: this.codes.length }); }
  _tell() {
    const place = document.getElementById('regions');
    if (place) place.textContent = this._count();
    for (const chip of document.querySelectorAll('[data-base]')) chip.setAttribute('aria-pressed', String(chip.dataset.base === String(this.base)));
    this.page.view.draw();
  }

  actions() {
    const from = [...Array(this.data.item.candidates).keys()];
    return [
      button(say('do_done'), '↵', () => this.use(), { class: 'main', id: 'do-use' }), make('span', { class: 'hint' }, say('regions_help')),
      make('div', { class: 'group' }, ...from.map(place => button(String(place + 1), '', () => this.begin(place), { 'data-base': place, 'aria-pressed': String(place === this.base) })),
      button(say('do_clear'), '0', () => this.begin(null), { 'data-base': 'null', 'aria-pressed': String(this.base === null) })),
      make('span', { class: 'space' }), button(say('do_cancel'), 'Esc', () => this.page.aside(), { id: 'do-cancel' }), make('small', { id: 'zoom', class: 'hint' })];
  }
}

const colour = ([r, g, b], alpha) => (alpha << 24 | b << 16 | g << 8 | r) >>> 0;

// Pictures and masks on canvases that zoom and move together. Knows nothing of pairs, candidates or servers.
export const BLUE = [0, 190, 255], ORANGE = [255, 140, 0], BOTH = [225, 225, 225];
const HOLD_MS = 450;
const css = ([r, g, b], alpha = 1) => `rgb(${r} ${g} ${b} / ${alpha})`;

// Pixels of a mask, its outline along pixel edges, and its coloured picture; the last two are made when first wanted.
export class Mask {
  constructor(bits, width, height) { Object.assign(this, { bits, width, height, tints: new Map() }); }

  static unpack(bytes, width, height) {
    const bits = new Uint8Array(width * height);
    for (let i = 0; i < bits.length; i++) bits[i] = bytes[i >> 3] >> (7 - (i & 7)) & 1;
    return new Mask(bits, width, height);
  }

  get path() {
    if (this._path) return this._path;
    const { bits, width, height } = this, path = new Path2D();
    // Horizontal, then vertical edges: runs of pixels whose neighbour across the edge is of the other kind.
    const lines = (outer, inner, at, draw) => {
      for (let o = 0; o <= outer; o++) {
        let begin = -1;
        for (let i = 0; i <= inner; i++) {
          const edge = i < inner && (o > 0 ? at(o - 1, i) : 0) !== (o < outer ? at(o, i) : 0);
          if (edge && begin < 0) begin = i;
          else if (!edge && begin >= 0) { draw(o, begin, i); begin = -1; }
        }
      }
    };
    lines(height, width, (y, x) => bits[y * width + x], (y, a, b) => { path.moveTo(a, y); path.lineTo(b, y); });
    lines(width, height, (x, y) => bits[y * width + x], (x, a, b) => { path.moveTo(x, a); path.lineTo(x, b); });
    return this._path = path;
  }

  tint(colour, alpha) {
    const name = `${colour}/${alpha}`;
    if (!this.tints.has(name)) {
      // Full-size pictures are large: the last two are kept.
      if (this.tints.size > 1) this.tints.delete(this.tints.keys().next().value);
      const pixels = new ImageData(this.width, this.height), values = new Uint32Array(pixels.data.buffer);
      const [r, g, b] = colour, value = (Math.round(alpha * 255) << 24 | b << 16 | g << 8 | r) >>> 0;
      for (let i = 0; i < values.length; i++) if (this.bits[i]) values[i] = value;
      const canvas = document.createElement('canvas');
      canvas.width = this.width; canvas.height = this.height;
      canvas.getContext('2d').putImageData(pixels, 0, 0);
      this.tints.set(name, canvas);
    }
    return this.tints.get(name);
  }

  // Half as wide and high, again and again: a pixel is set where any of those that it stands for is, so that thin vessels
  // stay. What is shown smaller than it is needs no more, and large images would be slow without.
  level(depth) {
    if (!depth) return this;
    const below = this.level(depth - 1);
    if (!below.half) {
      const width = Math.ceil(below.width / 2), height = Math.ceil(below.height / 2), bits = new Uint8Array(width * height);
      for (let y = 0, i = 0; y < below.height; y++) for (let x = 0, row = (y >> 1) * width; x < below.width; x++, i++) if (below.bits[i]) bits[row + (x >> 1)] = 1;
      below.half = new Mask(bits, width, height);
    }
    return below.half;
  }

  // Of several masks of one size: what all, what any of them have; what the first has and the second has not.
  static all(masks) {
    const bits = masks[0].bits.slice();
    for (const mask of masks) for (let i = 0; i < bits.length; i++) bits[i] &= mask.bits[i];
    return new Mask(bits, masks[0].width, masks[0].height);
  }
  static any(masks) {
    const bits = masks[0].bits.slice();
    for (const mask of masks) for (let i = 0; i < bits.length; i++) bits[i] |= mask.bits[i];
    return new Mask(bits, masks[0].width, masks[0].height);
  }
  static without(mask, other) {
    const bits = mask.bits.slice();
    for (let i = 0; i < bits.length; i++) bits[i] &= ~other.bits[i] & 1;
    return new Mask(bits, mask.width, mask.height);
  }
}

// Panels that show the same image at the same place. One point of the image and one scale for all.
export class View {
  constructor(stage) {
    Object.assign(this, { stage, panels: [], width: 1, height: 1, scale: 1, x: 0, y: 0, bare: false, pointers: new Map(), onTap: null, onHold: null, onZoom: null });
    this.resize = new ResizeObserver(() => this._settle());
    stage.addEventListener('wheel', event => this._wheel(event), { passive: false });
    stage.addEventListener('pointerdown', event => this._down(event));
    window.addEventListener('pointermove', event => this._move(event));
    for (const name of ['pointerup', 'pointercancel']) window.addEventListener(name, event => this._up(event));
    stage.addEventListener('contextmenu', event => { if (event.target.closest('.port')) event.preventDefault(); });
    stage.addEventListener('dblclick', event => { if (event.target.closest('.port') && !document.body.classList.contains('aiming')) this.zoomedIn ? this.fit() : this._at(event, 3); });
  }

  // panels: elements with a .port and a property `layers`: what is drawn, see paint().
  show(panels, image, width, height, keep) {
    this.resize.disconnect();
    Object.assign(this, { panels, image, width, height });
    for (const panel of panels) {
      const port = panel.querySelector('.port');
      if (!port.firstChild) port.append(document.createElement('canvas'));
      this.resize.observe(port);
    }
    this.pointers.clear();
    if (keep) this._settle(); else this.fit();
  }

  // Panels of another size: the same part of the image stays in the middle, as large as before in relation to the panel.
  _settle() {
    const [w, h] = this._size(), [w0, h0, fit0] = this.last ?? [w, h, this.fitScale];
    if (this.fitted || !w || !h) { this.fit(); return; }
    if (w !== w0 || h !== h0) {
      const x = (w0 / 2 - this.x) / this.scale, y = (h0 / 2 - this.y) / this.scale;
      this.scale *= this.fitScale / fit0;
      this.x = w / 2 - x * this.scale;
      this.y = h / 2 - y * this.scale;
    }
    this.draw();
  }

  _size() { const port = this.panels[0]?.querySelector('.port'); return port ? [port.clientWidth, port.clientHeight] : [0, 0]; }
  get fitScale() { const [w, h] = this._size(); return Math.max(1e-6, Math.min(w / this.width, h / this.height)); }
  get zoomedIn() { return this.scale > this.fitScale * 1.02; }

  fit() {
    const [w, h] = this._size();
    this.scale = this.fitScale;
    this.x = (w - this.width * this.scale) / 2;
    this.y = (h - this.height * this.scale) / 2;
    this.fitted = true;
    this.draw();
  }

  // The point (px, py) of the panel stays where it is.
  zoom(factor, px, py) {
    const next = Math.min(Math.max(40, this.fitScale), Math.max(this.fitScale * 0.5, this.scale * factor));
    this.x = px - (px - this.x) * next / this.scale;
    this.y = py - (py - this.y) * next / this.scale;
    this.scale = next;
    this.fitted = false;
    this.draw();
  }
  zoomCentre(factor) { const [w, h] = this._size(); this.zoom(factor, w / 2, h / 2); }

  draw() {
    this.last = [...this._size(), this.fitScale];
    if (this.asked) return;
    this.asked = requestAnimationFrame(() => {
      this.asked = 0;
      document.body.classList.toggle('zoomed', this.zoomedIn);
      for (const panel of this.panels) this.paint(panel);
      this.onZoom?.(this.scale);
    });
  }

  paint(panel) {
    const canvas = panel.querySelector('canvas');
    if (!canvas) return;
    const ratio = window.devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
    if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
      canvas.width = Math.round(w * ratio); canvas.height = Math.round(h * ratio);
    }
    const context = canvas.getContext('2d');
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = '#000';
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.setTransform(ratio * this.scale, 0, 0, ratio * this.scale, ratio * this.x, ratio * this.y);
    const large = this.scale * ratio > 2.5;
    context.imageSmoothingEnabled = !large;
    context.imageSmoothingQuality = 'high';
    const { back = 'image', layers = [] } = this.bare ? {} : panel.layers ?? {};
    if (back !== 'black') context.drawImage(this.image, 0, 0);
    if (back === 'dark') {
      // Grey and dark, so that no colour of the image is taken for one of a mask.
      context.globalCompositeOperation = 'saturation';
      context.fillStyle = '#808080';
      context.fillRect(0, 0, this.width, this.height);
      context.globalCompositeOperation = 'source-over';
      context.fillStyle = 'rgb(0 0 0 / .5)';
      context.fillRect(0, 0, this.width, this.height);
    }
    const depth = Math.max(0, Math.floor(Math.log2(1 / (this.scale * ratio)) + .4)), step = 2 ** depth;
    for (const layer of layers) {
      if (layer.picture) { context.drawImage(layer.picture, 0, 0); continue; }
      const mask = layer.mask.level(depth);
      context.save();
      context.scale(step, step);
      if (layer.style === 'contour') {
        // Thinner where the image is shown smaller than it is: else the outlines of thin vessels hide them.
        const line = Math.min(1.5, Math.max(.75, this.scale));
        for (const [width, colour] of [[line + 1.3, 'rgb(0 0 0 / .5)'], [line, css(layer.colour)]]) {
          context.lineWidth = width / this.scale / step;
          context.lineCap = 'square';
          context.strokeStyle = colour;
          context.stroke(mask.path);
        }
      } else context.drawImage(mask.tint(layer.colour, layer.alpha ?? 0.55), 0, 0);
      context.restore();
    }
  }

  // Of an event: [panel, x, y] in the panel.
  _place(event, port = event.target.closest?.('.port')) {
    if (!port) return null;
    const box = port.getBoundingClientRect();
    return [port, event.clientX - box.left, event.clientY - box.top];
  }
  _at(event, factor) { const found = this._place(event); if (found) this.zoom(factor, found[1], found[2]); }

  _wheel(event) {
    // The page itself scrolls on a narrow screen; a picture that fits has nothing to scroll.
    if (!event.target.closest('.port')) return;
    event.preventDefault();
    this._at(event, Math.exp(-Math.max(-400, Math.min(400, event.deltaY * (event.deltaMode ? 30 : 1))) / 400));
  }

  _down(event) {
    const found = this._place(event);
    if (!found || event.button > 1) return;
    if (event.pointerType !== 'touch') event.preventDefault();
    const [port, x, y] = found;
    this.pointers.set(event.pointerId, { port, x, y, x0: x, y0: y, time: event.timeStamp, moved: this.pointers.size > 0 });
    clearTimeout(this.held);
    if (this.pointers.size === 1) this.held = setTimeout(() => this._hold(event.pointerId), HOLD_MS);
    if (this.pointers.size > 1) for (const pointer of this.pointers.values()) pointer.moved = true;
  }

  // A finger or the mouse kept still: the image without masks.
  _hold(id) {
    const pointer = this.pointers.get(id);
    if (!pointer || pointer.moved || this.pointers.size > 1) return;
    pointer.moved = this.holding = true;
    this.onHold?.(true);
  }

  _move(event) {
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer) return;
    const [, x, y] = this._place(event, pointer.port), others = [...this.pointers.values()].filter(other => other !== pointer);
    if (Math.hypot(x - pointer.x0, y - pointer.y0) > 6) pointer.moved = true;
    if (others.length) {
      const other = others[0], before = Math.hypot(pointer.x - other.x, pointer.y - other.y), after = Math.hypot(x - other.x, y - other.y);
      // Both fingers keep the points of the image that they hold.
      this.x += (x - pointer.x) / 2;
      this.y += (y - pointer.y) / 2;
      if (before > 5 && after > 5) this.zoom(after / before, (x + other.x) / 2, (y + other.y) / 2);
    } else if (pointer.moved && (event.pointerType !== 'touch' || this.zoomedIn)) {
      this.x += x - pointer.x;
      this.y += y - pointer.y;
      this.fitted = false;
      this.draw();
    }
    pointer.x = x; pointer.y = y;
  }

  _up(event) {
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer) return;
    this.pointers.delete(event.pointerId);
    clearTimeout(this.held);
    if (this.holding) { this.holding = false; this.onHold?.(false); return; }
    if (event.type === 'pointerup' && !pointer.moved && event.timeStamp - pointer.time < 700) {
      this.onTap?.(pointer.port.closest('.panel'), (pointer.x - this.x) / this.scale, (pointer.y - this.y) / this.scale);
    }
  }
}

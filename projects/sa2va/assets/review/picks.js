// Several masks of one image: which is the best? No scores, no sources, in an order that says nothing.
import { banner, bitmap, button, bytes, get, make, say } from './ui.js';
import { BLUE, BOTH, Mask, ORANGE } from './view.js';
import { Page } from './page.js';
import { Regions } from './regions.js';

export class Picks extends Page {
  constructor(set) { super(set, ['contour', 'tint', 'apart']); }

  async load(key) {
    const item = await get(`/api/item/${key}`), places = [...Array(item.candidates).keys()];
    const [image, ...packed] = await Promise.all([bitmap(`/picture/${key}/image`), ...places.map(place => bytes(`/picture/${key}/${place}`))]);
    const masks = packed.map(content => Mask.unpack(content, item.width, item.height));
    return { item, image, masks, all: Mask.all(masks), any: Mask.any(masks), apart: [] };
  }

  sheets() {
    const { item, masks, all, any, apart } = this.data;
    const layers = place => () => {
      const mask = masks[place];
      if (this.style !== 'apart') return { layers: [{ mask, colour: BLUE, style: this.style }] };
      apart[place] ??= [Mask.without(mask, all), Mask.without(any, mask)];
      return { back: 'dark', layers: [{ mask: all, colour: BOTH, alpha: .6 }, { mask: apart[place][0], colour: BLUE, alpha: 1 }, { mask: apart[place][1], colour: ORANGE, alpha: 1 }] };
    };
    return [
      { id: 'image', title: say('image'), chip: say('image'), wide: true, layers: () => ({}) },
      ...masks.map((_, place) => ({
        id: place, title: say('candidate', { n: place + 1 }), chip: String(place + 1), layers: layers(place), framed: place === this.framed, said: place === item.place,
        tapped: () => this.frame(place), buttons: [button(say('do_pick', { n: place + 1 }), place < 9 ? String(place + 1) : '', () => this.pick(place), { 'data-pick': place })] }))];
  }
  get count() { return this.data?.item.candidates ?? 0; }
  two() { return [this.framed, (this.framed + 1) % this.count]; }

  frame(place) {
    if (this.single || this.aiming) return;
    this.framed = place;
    for (const panel of this.panels) panel.classList.toggle('framed', panel.sheet.id === place);
  }
  // The candidate that is shown alone; none while two alternate, for nobody could tell which one a key would mean.
  get still() { return this.single && !this.timer && typeof this.single.shown === 'number' ? this.single.shown : null; }

  move(by) {
    if (!this.count || this.aiming) return;
    if (this.single) {
      const shown = typeof this.single.shown === 'number' ? this.single.shown : 0;
      this.look((shown + by + this.count) % this.count, this.single.shown);
    } else this.frame((this.framed + by + this.count) % this.count);
  }

  pick(place) { if (place < this.count) this.decide({ pick: place }); }

  actions() {
    if (this.ended) return [button(say('do_back'), 'b', () => this.back(), { id: 'do-back' })];
    if (this.aiming) return this.aiming.actions();
    const shown = this.single && this.still;
    return [
      ...(shown === null || shown === undefined ? [] : [button(say('do_pick', { n: shown + 1 }), '↵', () => this.pick(shown), { class: 'main', id: 'do-shown' })]),
      button(say('do_none'), '0', () => this.decide({ pick: 'none' }), { id: 'do-none' }), button(say('do_equal'), 'e', () => this.decide({ pick: 'equal' }), { id: 'do-equal' }),
      button(say('do_regions'), 'r', () => this.aim(), { id: 'do-regions' }), button(say('do_back'), 'b', () => this.back(), { id: 'do-back' }), make('span', { class: 'space' }), ...this.chips(),
      ...(this.set.clicks === null ? [] : [make('small', { class: 'hint' }, say('budget_of', { n: this.items.filter(item => item.decision).length, all: Math.min(this.set.clicks, this.items.length) }))]),
      make('small', { id: 'style', class: 'hint' }, say(`style_${this.style}`)), make('small', { id: 'zoom', class: 'hint' })];
  }

  // The mask is put together from disputed parts.
  async aim() {
    if (!this.data || this.waiting) return;
    if (this.aiming) { this.left(); this.aside(); return; }
    const data = this.data;
    this._blink(false);
    try { data.labels ??= new Int32Array((await bytes(`/picture/${data.item.key}/regions`)).buffer); }
    catch (error) { banner(error.message); return; }
    if (this.data !== data) return;
    if (!data.item.codes.length) { banner(say('regions_none')); return; }
    banner('');
    this.aiming = new Regions(this, data, this.single && typeof this.single.shown === 'number' ? this.single.shown : this.framed);
    this.single = { shown: 'regions', other: 'regions' };
    document.body.classList.add('aiming');
    this.draw();
  }
  left() { this.aiming = null; document.body.classList.remove('aiming'); }
  aside() { this.left(); super.aside(); }
  look(...all) { if (!this.aiming) super.look(...all); }
  _wanted() { return this.aiming ? [this.aiming.sheet()] : super._wanted(); }
  tapped(panel, x, y) { if (this.aiming) this.aiming.toggle(x, y); else super.tapped(panel); }

  keys() {
    const digits = Object.fromEntries([...Array(9).keys()].map(place => [place + 1, () => this.aiming ? this.aiming.begin(place) : this.pick(place)]));
    const shared = { ArrowUp: () => this.move(-1), ArrowDown: () => this.move(1), r: () => this.aim() };
    if (this.aiming) return { ...shared, ...digits, 0: () => this.aiming.begin(null), Enter: () => this.aiming.use(), e: () => {}, b: () => this.aside() };
    return { ...shared, ...digits, 0: () => this.decide({ pick: 'none' }), e: () => this.decide({ pick: 'equal' }),
      Enter: () => { const place = this.single ? this.still : this.framed; if (place !== null) this.pick(place); } };
  }
}

// Two masks of one image: is chosen really the better one?
import { banner, bitmap, button, bytes, dialog, get, make, post, say } from './ui.js';
import { BLUE, BOTH, Mask, ORANGE } from './view.js';
import { Page } from './page.js';

export class Pairs extends Page {
  constructor(set) {
    super(set, ['contour', 'tint', 'mask']);
    this.truth = false;
  }

  async load(key) {
    const item = await get(`/api/item/${key}`), names = ['chosen', 'rejected', ...(item.gt ? ['gt'] : [])];
    const [image, ...packed] = await Promise.all([bitmap(`/picture/${key}/image`), ...names.map(name => bytes(`/picture/${key}/${name}`))]);
    const masks = Object.fromEntries(names.map((name, index) => [name, Mask.unpack(packed[index], item.width, item.height)]));
    masks.only_chosen = Mask.without(masks.chosen, masks.rejected);
    masks.only_rejected = Mask.without(masks.rejected, masks.chosen);
    masks.both = Mask.all([masks.chosen, masks.rejected]);
    return { item, image, masks };
  }

  sheets() {
    const { item, masks } = this.data, truth = this.truth && masks.gt;
    const one = (mask, colour) => () => this.style === 'mask' ? { back: 'black', layers: [{ mask, colour: BOTH, alpha: 1 }] } : { layers: [{ mask, colour, style: this.style }] };
    const facts = side => {
      const { iou, score, source } = item[side];
      return [[`${say('iou')} ${iou.toFixed(3)}`, item.judge && typeof score === 'number' ? `${item.judge} ${score.toFixed(3)}` : '', source ?? ''].filter(Boolean).join(', ')];
    };
    const legend = ['only_chosen', 'only_rejected', 'both'].flatMap((name, index) => [
      make('i', { class: `swatch ${['blue', 'orange', 'both'][index]}` }), `${say(name)} ${(100 * item.shares[index]).toFixed(2)} %`]);
    return [
      { id: 'image', title: say(truth ? 'gt' : 'image'), chip: say(truth ? 'gt' : 'image'), facts: [`${item.width} × ${item.height}`], layers: truth ? one(masks.gt, BOTH) : () => ({}) },
      { id: 'chosen', title: say('chosen'), chip: say('chosen'), facts: facts('chosen'), layers: one(masks.chosen, BLUE) },
      { id: 'rejected', title: say('rejected'), chip: say('rejected'), facts: facts('rejected'), layers: one(masks.rejected, ORANGE) },
      { id: 'difference', title: say('difference'), chip: say('difference'), facts: legend, layers: () => ({ back: 'dark', layers: [
        { mask: masks.both, colour: BOTH, alpha: .95 }, { mask: masks.only_chosen, colour: BLUE, alpha: 1 }, { mask: masks.only_rejected, colour: ORANGE, alpha: 1 }] }) },
    ];
  }
  two() { return ['chosen', 'rejected']; }

  tools(tool) {
    return [
      ...(this.data?.item.gt ? [tool('truth', 'tool_gt', () => this.showTruth(), { 'aria-pressed': String(this.truth) })] : []),
      ...(this.ended ? [] : [tool('note', 'tool_note', () => this.note())])];
  }
  showTruth() { if (this.data?.item.gt) { this.truth = !this.truth; this.draw(); } }

  note() {
    if (this.ended) return;
    const item = this.item, text = make('textarea', { maxlength: 4000, 'aria-label': say('note_title') });
    text.value = item.note;
    const save = async () => {
      try { item.note = (await post('/api/note', { key: item.key, note: text.value })).note; banner(''); box.close(); this.draw(); }
      catch (error) { banner(error.message); }
    };
    text.addEventListener('keydown', event => { if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) save(); });
    const box = dialog(say('note_title'), make('div', {}, text, make('div', { class: 'row' }, make('span', {}, say('note_hint')), button(say('do_save'), 'Ctrl ↵', save, { class: 'main', id: 'save' }))), { id: 'note' });
    text.focus();
  }

  actions() {
    if (this.ended) return [button(say('do_back'), 'b', () => this.back(), { id: 'do-back' })];
    return [
      button(say('do_accept'), 'a', () => this.decide({ decision: 'accept' }), { id: 'do-accept', class: 'main' }),
      ...[['swap', 's'], ['drop', 'd'], ['skip', 'k']].map(([name, key]) => button(say(`do_${name}`), key, () => this.decide({ decision: name }), { id: `do-${name}` })),
      button(say('do_back'), 'b', () => this.back(), { id: 'do-back' }), make('span', { class: 'space' }), ...this.chips(),
      make('small', { class: 'hint' }, say('decided_by', { n: this.decided, who: this.set.reviewer })), make('small', { id: 'style', class: 'hint' }, say(`style_${this.style}`)), make('small', { id: 'zoom', class: 'hint' })];
  }

  keys() {
    const full = () => this.view.zoomCentre(1 / this.view.scale);
    return { a: () => this.decide({ decision: 'accept' }), s: () => this.decide({ decision: 'swap' }), d: () => this.decide({ decision: 'drop' }), k: () => this.decide({ decision: 'skip' }),
      g: () => this.showTruth(), n: () => this.note(), 0: () => this.view.fit(), 1: full };
  }
}

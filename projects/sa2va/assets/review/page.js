// What the two pages share: going from item to item, side by side or one at a time, tools and keys.
import { announce, banner, button, dialog, icon, make, otherLang, post, say, Seen, setLang } from './ui.js';
import { View } from './view.js';

const KEPT = 3, BLINK_MS = 600, NARROW = '(max-width: 760px)';
const $ = id => document.getElementById(id);

export class Page {
  // styles: ways to draw a mask. A subclass gives load(key), sheets(), decisions() and what its keys do.
  constructor(set, styles) {
    Object.assign(this, { set, items: set.items, styles, style: styles[0], at: 0, data: null, single: null, framed: 0, waiting: false, been: [], kept: new Map(), seen: new Seen() });
    this.view = new View($('stage'));
    this.view.onZoom = scale => { const place = $('zoom'); if (place) place.textContent = say('zoom', { n: Math.round(scale * 100) }); };
    this.view.onHold = on => this._bare(on);
    this.view.onTap = (panel, x, y) => this.tapped(panel, x, y);
    document.addEventListener('keydown', event => this._key(event));
    document.addEventListener('keyup', event => { if (event.key === ' ') this._bare(false); });
    window.addEventListener('blur', () => this._bare(false));
    matchMedia(NARROW).addEventListener('change', () => this.draw());
    window.addEventListener('resize', () => { if (this.data && !this.narrow) this._columns(); });
    // Somebody who thinks again after the end is still there.
    if (set.closes) setInterval(() => { if (!this.ended && !document.hidden) post('/api/alive').catch(() => {}); }, 20000);
  }

  get narrow() { return matchMedia(NARROW).matches; }
  get item() { return this.items[this.at]; }
  get decided() { return this.items.filter(item => item.decision && item.decision !== 'skip').length; }
  get open() { return this.items.findIndex(item => !item.decision); }
  start() { const first = this.open; this.go(first < 0 ? this.items.length : first); }

  fetched(at) {
    const key = this.items[at].key;
    if (!this.kept.has(key)) {
      const found = this.load(key);
      found.catch(() => this.kept.delete(key));
      this.kept.set(key, found);
      while (this.kept.size > KEPT) this.kept.delete(this.kept.keys().next().value);
    }
    return this.kept.get(key);
  }

  // Show the item at a position; the number of items is the end.
  async go(at, remember = false) {
    if (remember && at !== this.at) this.been.push(this.at);
    const image = this.data?.item.image;
    clearInterval(this.closing);
    this._blink(false);
    Object.assign(this, { at, data: null, single: null, framed: 0, problem: '', ended: at >= this.items.length });
    this.left();
    if (!this.ended) {
      try {
        const data = await this.fetched(at);
        if (this.at !== at) return;
        this.data = data;
      } catch (error) {
        if (this.at !== at) return;
        this.problem = error.message;
      }
    }
    this.seen.restart();
    this.draw(image !== undefined && image === this.data?.item.image);
    announce(`${$('count').textContent} ${$('name').textContent}`);
    const next = this.items.findIndex((item, index) => index > at && !item.decision);
    if (next > 0 && !this.problem) this.fetched(next).catch(() => {});
  }

  left() {}
  step(by) { if (!this.waiting) this.go(Math.min(this.items.length, Math.max(0, this.at + by)), true); }
  back() { if (!this.waiting) this.go(this.been.pop() ?? Math.max(0, this.at - 1)); }

  // Send a decision; only when it is on disk the page goes on. A second press before that would decide on what nobody has seen.
  async decide(body) {
    if (this.waiting || this.ended || !this.item) return;
    this.waiting = true;
    const at = this.at;
    try {
      const answer = await post('/api/decide', { key: this.item.key, seconds: this.seen.seconds, ...body });
      banner('');
      this.items[at].decision = answer.decision;
      // What is shown of the item is as it was decided before.
      this.kept.delete(this.items[at].key);
      const later = this.items.findIndex((item, index) => index > at && !item.decision), first = this.open;
      await this.go(answer.done || first < 0 ? this.items.length : later < 0 ? first : later, true);
    } catch (error) {
      if (error.status === 409) { banner(''); await this.go(this.items.length, true); }
      else banner(error.status ? `${say('not_saved')} ${error.message}` : error.message);
    } finally { this.waiting = false; }
  }

  draw(keep = true) {
    this._bar();
    const stage = $('stage');
    stage.replaceChildren();
    stage.classList.toggle('single', !!this.single);
    if (this.ended) { stage.append(this._end()); this.view.show([], null, 1, 1); }
    else if (!this.data) {
      stage.append(this.problem ? make('div', { class: 'message' }, make('b', {}, say('bad_item')), this.problem) : make('div', { class: 'message' }, say('saving')));
      this.view.show([], null, 1, 1);
    } else {
      this.panels = this._wanted().map(sheet => this._panel(sheet));
      stage.append(...this.panels);
      this._columns();
      this.view.show(this.panels, this.data.image, this.data.item.width, this.data.item.height, keep);
    }
    $('actions').replaceChildren(...this.actions());
  }

  redraw() {
    for (const panel of this.panels ?? []) if (panel.sheet) panel.layers = panel.sheet.layers();
    this.view.draw();
  }

  _wanted() {
    const sheets = this.sheets();
    if (!this.single) return sheets.filter(sheet => !(sheet.wide && this.narrow));
    return [sheets.find(sheet => sheet.id === this.single.shown) ?? sheets[0]];
  }

  _panel(sheet) {
    const title = make('div', { class: 'title' }, make('b', {}, sheet.title), make('small', {}, ...(sheet.facts ?? [])), ...(this.single ? [] : sheet.buttons ?? []));
    const panel = make('section', { class: 'panel', 'aria-label': sheet.title, 'data-sheet': sheet.id }, title, make('div', { class: 'port' }));
    panel.classList.toggle('framed', !this.single && sheet.framed === true);
    panel.classList.toggle('said', sheet.said === true);
    panel.sheet = sheet;
    panel.layers = sheet.layers();
    return panel;
  }

  // As many columns as make the pictures largest; for a small gain the titles are not squeezed.
  _columns() {
    const stage = $('stage'), count = this.panels.length, { width, height } = this.data.item;
    let best = [0, 1];
    for (let columns = 1; columns <= count; columns++) {
      const rows = Math.ceil(count / columns);
      const scale = Math.min(stage.clientWidth / columns / width, (stage.clientHeight / rows - 44) / height);
      if (scale > best[0] * 1.08) best = [scale, columns];
    }
    stage.style.gridTemplateColumns = `repeat(${best[1]}, minmax(0, 1fr))`;
  }

  tag(decision, text = say(decision ?? 'undecided')) {
    const state = { accept: 'yes', picked: 'yes', composite: 'yes', swap: 'turned', equal: 'turned', drop: 'no', none: 'no' }[decision] ?? '';
    return make('span', { class: 'tag', 'data-state': state }, text);
  }

  _bar() {
    const all = this.items.length, n = Math.min(this.at + 1, all);
    $('count').textContent = this.ended ? say(this.set.mode) : say(this.set.mode === 'pairs' ? 'pair_of' : 'image_of', { n, all });
    $('tag').replaceWith(Object.assign(this.ended ? make('span') : this.tag(this.item?.decision), { id: 'tag' }));
    $('name').textContent = this.ended ? '' : [this.item?.image, this.item?.note && `✎ ${this.item.note}`].filter(Boolean).join('   ');
    $('name').title = $('name').textContent;
    const goal = Math.min(all, this.set.clicks ?? all), done = this.items.filter(item => item.decision).length;
    $('progress').firstElementChild.style.width = `${goal ? Math.min(100, 100 * done / goal) : 100}%`;
    const tool = (picture, name, does, attributes = {}) => button(icon(picture) ?? picture, '', does, { title: say(name), 'aria-label': say(name), ...attributes });
    $('tools').replaceChildren(
      tool('before', 'tool_before', () => this.step(-1)), tool('after', 'tool_after', () => this.step(1)),
      tool('style', 'tool_style', () => this.nextStyle()), tool('blink', 'tool_blink', () => this.blink()), tool('fit', 'tool_fit', () => this.view.fit()),
      ...this.tools(tool), tool('grid', 'tool_grid', () => this.overview()), tool('jump', 'tool_jump', () => this.jump()),
      tool(say('other'), 'tool_lang', () => { setLang(otherLang()); this.named(); this.draw(); }, { class: 'word' }), tool('?', 'tool_help', () => this.help()));
  }
  tools() { return []; }
  named() { document.title = say(this.set.mode); }

  _end() {
    const all = this.items.length, budget = this.set.clicks !== null && this.set.clicks < all;
    const words = this.set.mode === 'pairs' ? 'end_pairs' : budget ? 'end_budget' : all ? 'end_picks' : 'nothing';
    const counts = {};
    for (const item of this.items) if (item.decision) counts[item.decision] = (counts[item.decision] ?? 0) + 1;
    const next = make('small', {}, say(this.set.mode === 'pairs' ? 'end_next_pairs' : 'end_next_picks'));
    const done = budget ? this.items.filter(item => item.decision).length >= this.set.clicks : this.open < 0;
    if (this.set.closes && done) {
      let left = 6;
      const tick = () => {
        left -= 1;
        next.textContent = left > 0 ? say('end_closing', { n: left }) : say('end_closed');
        if (left <= 0) { clearInterval(this.closing); this.closed = true; $('actions').replaceChildren(); post('/api/finish').catch(() => {}); }
      };
      this.closing = setInterval(tick, 1000);
      tick();
    }
    const title = done ? say(words, { all, n: this.items.filter(item => item.decision).length }) : `${say('undecided')}: ${this.items.filter(item => !item.decision).length}`;
    return make('div', { class: 'message' }, make('b', {}, title),
      make('p', {}, Object.entries(counts).map(([name, count]) => `${count} ${say(name)}`).join(', ')), next);
  }

  // --- ways of looking -------------------------------------------------------------------------------------------------

  nextStyle() {
    this.style = this.styles[(this.styles.indexOf(this.style) + 1) % this.styles.length];
    announce(say(`style_${this.style}`));
    this.redraw();
    this.legend();
  }
  legend() { const place = $('style'); if (place) place.textContent = say(`style_${this.style}`); }

  // One after the other in one place; then by itself.
  blink() {
    if (!this.data || this.aiming) return;
    if (!this.single) this.look(...this.two());
    else this._blink(!this.timer);
    $('actions').replaceChildren(...this.actions());
    this.view.draw();
  }
  _blink(on) {
    clearInterval(this.timer);
    this.timer = on ? setInterval(() => this.look(this.single.other, this.single.shown, true), BLINK_MS) : null;
  }
  look(shown, other, going = false) {
    this.single = { shown, other };
    if (!going) this._blink(false);
    if (this.panels?.length === 1 && $('stage').classList.contains('single')) {
      // The same canvas, so that nothing moves but the mask.
      const sheet = this._wanted()[0], panel = this.panels[0], title = panel.querySelector('.title');
      title.replaceChildren(...this._panel(sheet).querySelector('.title').childNodes);
      Object.assign(panel, { sheet, layers: sheet.layers() });
      panel.dataset.sheet = sheet.id;
      panel.classList.toggle('said', sheet.said === true);
      this.view.paint(panel);
      if (going) for (const chip of document.querySelectorAll('[data-chip]')) chip.setAttribute('aria-pressed', chip.dataset.chip === String(shown));
      else $('actions').replaceChildren(...this.actions());
    } else this.draw();
    this.view.draw();
  }
  aside() { this._blink(false); this.single = null; this.draw(); }

  chips() {
    if (!this.single) return [];
    return [make('div', { class: 'group' }, ...this.sheets().filter(sheet => sheet.chip).map(sheet => button(sheet.chip, '', () => {
      this.look(sheet.id, this.single.shown === sheet.id ? this.single.other : this.single.shown);
    }, { 'data-chip': sheet.id, 'aria-pressed': String(sheet.id === this.single.shown), 'aria-label': sheet.title })),
    button(say(this.timer ? 'blink_off' : 'blink_on'), 'x', () => this.blink()), button(say('back_to_grid'), 'Esc', () => this.aside()))];
  }

  _bare(on) { if (this.view.bare !== on) { this.view.bare = on; this.view.draw(); } }
  tapped(panel) {
    const sheet = panel.sheet;
    if (sheet?.tapped) sheet.tapped();
  }

  // --- dialogs -----------------------------------------------------------------------------------------------------------

  help() {
    const list = rows => make('dl', { class: 'keys' }, ...rows.flatMap(([key, text]) => [make('dt', {}, make('kbd', {}, key)), make('dd', {}, text)]));
    const help = say('help');
    dialog(say('help_title'), make('div', {}, list(help[this.set.mode]), list([...help.view, ...(this.set.mode === 'pairs' ? help.pairs_view : [])])), { id: 'help' });
  }

  jump() {
    const input = make('input', { type: 'text', autocomplete: 'off', 'aria-label': say('jump_title') }), said = make('span');
    const form = make('form', { onsubmit: event => {
      event.preventDefault();
      const wanted = input.value.trim(), number = /^\d+$/.test(wanted) ? Number(wanted) : NaN;
      const lower = wanted.toLocaleLowerCase().normalize('NFC'), turned = this.items.map((_, index) => (this.at + 1 + index) % this.items.length);
      const found = number >= 1 && number <= this.items.length ? number - 1 : turned.find(index => this.items[index].image.toLocaleLowerCase().normalize('NFC').includes(lower));
      if (!wanted || found === undefined) said.textContent = say('jump_none');
      else { box.close(); this.go(found, true); }
    } }, input, make('div', { class: 'row' }, said));
    const box = dialog(say('jump_title'), form, { id: 'jump' });
    input.focus();
  }

  overview() {
    const kinds = { grid_all: () => true, grid_open: item => !item.decision, grid_done: item => item.decision, ...(this.set.mode === 'pairs' ? { grid_notes: item => item.note } : {}) };
    const cards = make('div', { class: 'cards' }), filters = make('div', { class: 'row' });
    const fill = kind => {
      filters.replaceChildren(...Object.keys(kinds).map(name => button(`${say(name)} ${this.items.filter(kinds[name]).length}`, '', () => fill(name), { 'aria-pressed': String(name === kind) })));
      cards.replaceChildren(...this.items.map((item, index) => [item, index]).filter(([item]) => kinds[kind](item)).map(([item, index]) => {
        const card = make('button', { type: 'button', class: `card${index === this.at ? ' here' : ''}`, title: item.image, onclick: () => { box.close(); this.go(index, true); } },
          make('img', { loading: 'lazy', alt: '', src: `/picture/${item.key}/thumbnail` }), make('div', { class: 'name' }, item.image.replace(/^images\//, '')),
          make('div', { class: 'line' }, `${index + 1}`, this.tag(item.decision), item.note ? '✎' : ''));
        return card;
      }));
    };
    const box = dialog(say('grid_title'), make('div', {}, cards), { id: 'overview', class: 'wide' });
    box.querySelector('.head').after(make('div', { class: 'body' }, filters));
    fill('grid_all');
    cards.querySelector('.here')?.scrollIntoView({ block: 'center' });
  }

  // --- keys ----------------------------------------------------------------------------------------------------------------

  _key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || this.closed || document.querySelector('dialog') || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
    // A focused button takes Enter and space for itself.
    if (event.target.tagName === 'BUTTON' && (event.key === 'Enter' || event.key === ' ')) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const does = this.keys()[key] ?? {
      ArrowLeft: () => this.step(-1), ArrowRight: () => this.step(1), b: () => this.back(), t: () => this.nextStyle(), x: () => this.blink(),
      o: () => this.overview(), j: () => this.jump(), '?': () => this.help(), f: () => this.view.fit(), '+': () => this.view.zoomCentre(1.5),
      '=': () => this.view.zoomCentre(1.5), '-': () => this.view.zoomCentre(1 / 1.5), ' ': () => this._bare(true), Escape: () => { if (this.single) this.aside(); },
    }[key];
    if (!does) return;
    event.preventDefault();
    const repeats = ['+', '=', '-', 'ArrowUp', 'ArrowDown'];
    if (!event.repeat || repeats.includes(key)) does();
  }
}

// Words, requests, dialogs and the clock: what both pages need beside the pictures.
let words = {}, lang = 'en';

export async function chooseWords(forced) {
  words = await (await fetch('/asset/text.json')).json();
  let found = forced;
  try { found ??= localStorage.getItem('lang'); } catch { /* storage may be switched off */ }
  setLang(found ?? (navigator.languages.find(name => /^(zh|en)\b/i.test(name)) ?? 'en').slice(0, 2).toLowerCase());
}
export function setLang(name) {
  lang = words[name] ? name : 'en';
  document.documentElement.lang = lang === 'zh' ? 'zh-Hans' : lang;
  try { localStorage.setItem('lang', lang); } catch { /* see above */ }
}
export const otherLang = () => lang === 'zh' ? 'en' : 'zh';

// The text of a name; {n} and the like are put in as they are, whatever characters they hold.
export function say(name, values = {}) {
  const text = words[lang][name] ?? words.en[name] ?? name;
  return typeof text === 'string' ? text.replace(/\{(\w+)\}/g, (_, key) => String(values[key] ?? '')) : text;
}

// An element. Text is always set as text, never as HTML.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined && child !== ''));
  return element;
}
export const button = (label, key, onclick, attributes = {}) =>
  make('button', { type: 'button', ...attributes, onclick: event => { event.currentTarget.blur(); onclick(); } }, label, key ? make('kbd', {}, key) : '');

// Drawn, because not every phone has a letter for them.
const ICONS = {
  style: 'M12 3a9 9 0 1 0 0 18a9 9 0 1 0 0-18M12 3v18M12 8l6-2M12 12h9M12 16l6 2', blink: 'M4 8h15l-4-4M20 16H5l4 4', fit: 'M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5',
  grid: 'M4 4h6v6H4zM14 4h6v6h-6zM4 14h6v6H4zM14 14h6v6h-6z', jump: 'M5 9h14M5 15h14M10 4L8 20M16 4l-2 16', note: 'M4 20l1-4L16 5l3 3L8 19zM14 7l3 3',
  before: 'M15 5l-7 7l7 7', after: 'M9 5l7 7l-7 7',
  truth: 'M12 3a9 9 0 1 0 0 18a9 9 0 1 0 0-18M12 8a4 4 0 1 0 0 8a4 4 0 1 0 0-8',
};
export function icon(name) {
  if (!ICONS[name]) return null;
  const space = 'http://www.w3.org/2000/svg', svg = document.createElementNS(space, 'svg'), path = document.createElementNS(space, 'path');
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('aria-hidden', 'true');
  path.setAttribute('d', ICONS[name]);
  svg.append(path);
  return svg;
}

export class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}
async function asked(path, options) {
  let answer;
  try { answer = await fetch(path, options); } catch { throw new Refused(0, say('gone')); }
  if (!answer.ok) {
    let message = answer.statusText;
    try { message = (await answer.json()).error; } catch { /* no JSON: the gate's plain words */ }
    throw new Refused(answer.status, message);
  }
  return answer;
}
export const get = async path => (await asked(path)).json();
export const bytes = async path => new Uint8Array(await (await asked(path)).arrayBuffer());
export const bitmap = async path => createImageBitmap(await (await asked(path)).blob());
export const post = async (path, body = {}) =>
  (await asked(path, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) })).json();

export function banner(text) {
  const element = document.getElementById('banner');
  element.textContent = text;
  element.hidden = !text;
}
export const announce = text => { document.getElementById('live').textContent = text; };

export function dialog(title, content, attributes = {}) {
  const close = () => found.close();
  const found = make('dialog', attributes,
    make('div', { class: 'head' }, make('b', {}, title), button('✕', '', close, { 'aria-label': say('do_close') })), make('div', { class: 'body' }, content));
  found.addEventListener('close', () => found.remove());
  found.addEventListener('click', event => { if (event.target === found) close(); });
  document.body.append(found);
  found.showModal();
  return found;
}

// Seconds that something was on the screen: a hidden tab does not count.
export class Seen {
  constructor() {
    this.restart();
    document.addEventListener('visibilitychange', () => { if (document.hidden) this._add(); else this.since = performance.now(); });
  }
  restart() { this.sum = 0; this.since = document.hidden ? null : performance.now(); }
  _add() { if (this.since !== null) this.sum += performance.now() - this.since; this.since = null; }
  get seconds() { return (this.sum + (this.since === null ? 0 : performance.now() - this.since)) / 1000; }
}

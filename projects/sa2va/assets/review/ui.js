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

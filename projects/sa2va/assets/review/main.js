// The printed address works once: it leaves the address line, and the browser's history, at once.
import { banner, chooseWords, get } from './ui.js';
import { Pairs } from './pairs.js';
import { Picks } from './picks.js';

history.replaceState(null, '', '/');
try {
  const set = await get('/api/set');
  await chooseWords(set.lang);
  const page = window.page = new { pairs: Pairs, picks: Picks }[set.mode](set);
  page.named();
  page.start();
} catch (error) { banner(error.message); }

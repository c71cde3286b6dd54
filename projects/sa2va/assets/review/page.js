// Keys, and one zoom for the four pictures. Everything is delegated: the page's content is replaced for every pair.
(() => {
  const KEYS = { a: 'accept', s: 'swap', d: 'drop', k: 'skip', b: 'back' };
  let turn = null, image = null, waiting = false, scale = 1, x = 0, y = 0, drag = null;
  const root = () => document.querySelector('.rv');
  const pictures = () => [...document.querySelectorAll('.rv-port img')];

  function apply() {
    for (const picture of pictures()) {
      picture.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
      picture.style.imageRendering = scale > 1 ? 'pixelated' : 'auto';
    }
    const label = document.getElementById('rv-zoom');
    if (label) label.textContent = `${Math.round(scale * 100)} %`;
  }

  function fit() {
    const port = document.querySelector('.rv-port');
    if (!port) return;
    const width = +root().dataset.width, height = +root().dataset.height;
    scale = Math.min(port.clientWidth / width, port.clientHeight / height);
    x = (port.clientWidth - width * scale) / 2;
    y = (port.clientHeight - height * scale) / 2;
    apply();
  }

  // The point (px, py) of the view stays where it is.
  function zoom(factor, px, py) {
    const next = Math.min(32, Math.max(0.02, scale * factor));
    x = px - (px - x) * next / scale;
    y = py - (py - y) * next / scale;
    scale = next;
    apply();
  }

  function zoomCentre(factor) {
    const port = document.querySelector('.rv-port');
    if (port) zoom(factor, port.clientWidth / 2, port.clientHeight / 2);
  }

  new MutationObserver(() => {
    const page = root();
    if (!page || page.dataset.turn === turn) return;
    turn = page.dataset.turn;
    waiting = false;
    // Pairs of one image are compared at the same place.
    if (page.dataset.image === image) apply(); else fit();
    image = page.dataset.image;
  }).observe(document, { childList: true, subtree: true, attributes: true });

  document.addEventListener('keydown', event => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
    const key = event.key.toLowerCase();
    if (KEYS[key] && !event.repeat) {
      const found = document.getElementById('rv-' + KEYS[key]);
      const button = found && (found.tagName === 'BUTTON' ? found : found.querySelector('button'));
      if (button) button.click();
    } else if (key === '+' || key === '=') zoomCentre(1.5);
    else if (key === '-') zoomCentre(1 / 1.5);
    else if (key === '0') fit();
    else if (key === '1') zoomCentre(1 / scale);
    else return;
    event.preventDefault();
  });

  // A second press before the next pair is on the screen would decide on a pair that nobody has seen.
  document.addEventListener('click', event => {
    if (!event.target.closest('.rv-button')) return;
    if (waiting) { event.stopImmediatePropagation(); event.preventDefault(); return; }
    waiting = true;
    setTimeout(() => event.target.blur(), 0);
  }, true);

  document.addEventListener('wheel', event => {
    const port = event.target.closest('.rv-port');
    if (!port) return;
    const box = port.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
    event.preventDefault();
  }, { passive: false });
  document.addEventListener('pointerdown', event => {
    if (event.target.closest('.rv-port')) { drag = [event.clientX - x, event.clientY - y]; event.preventDefault(); }
  });
  document.addEventListener('pointermove', event => {
    if (drag) { x = event.clientX - drag[0]; y = event.clientY - drag[1]; apply(); }
  });
  document.addEventListener('pointerup', () => { drag = null; });
  document.addEventListener('dblclick', event => { if (event.target.closest('.rv-port')) fit(); });
  window.addEventListener('resize', fit);
})();

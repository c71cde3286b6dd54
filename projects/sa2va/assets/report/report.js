'use strict';
(() => {
  const find = (id) => document.getElementById(id);
  const viewer = find('viewer'), stage = find('stage'), caption = find('caption');
  const panels = [...document.querySelectorAll('.panel')];
  let at = 0;

  function show(index) {
    at = (index + panels.length) % panels.length;
    const panel = panels[at];
    stage.replaceChildren(panel.querySelector('.stack').cloneNode(true));
    caption.textContent = `${panel.dataset.caption} · ${panel.dataset.name}`;
    if (!viewer.open) viewer.showModal();
  }

  function sibling(step) {
    // The same view of the next or the last image.
    const cases = [...new Set(panels.map((panel) => panel.dataset.case))];
    const here = panels[at], place = panels.filter((panel) => panel.dataset.case === here.dataset.case).indexOf(here);
    const wanted = cases[(cases.indexOf(here.dataset.case) + step + cases.length) % cases.length];
    const views = panels.filter((panel) => panel.dataset.case === wanted);
    show(panels.indexOf(views[Math.min(place, views.length - 1)]));
  }

  panels.forEach((panel, index) => panel.addEventListener('click', () => show(index)));
  document.querySelectorAll('[data-open]').forEach((point) => {
    const open = () => {
      const views = panels.filter((panel) => panel.dataset.case === point.dataset.open);
      if (views.length) show(panels.indexOf(views[views.length - 1]));
    };
    point.addEventListener('click', open);
    point.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' && event.key !== ' ') return;
      // The rest of this key press would go to the viewer, which has the focus by then, and close it.
      event.preventDefault();
      if (!event.repeat) open();
    });
  });
  find('close').addEventListener('click', () => viewer.close());
  find('back').addEventListener('click', () => show(at - 1));
  find('next').addEventListener('click', () => show(at + 1));
  stage.addEventListener('click', () => stage.classList.toggle('bare'));
  viewer.addEventListener('close', () => { stage.classList.remove('bare'); panels[at].focus(); });
  // A key that is held down opens or closes once.
  document.addEventListener('keydown', (event) => {
    if (event.repeat && event.key === 'Enter') event.preventDefault();
  }, true);
  viewer.addEventListener('keydown', (event) => {
    const keys = {
      ArrowLeft: () => show(at - 1), ArrowRight: () => show(at + 1),
      ArrowUp: () => sibling(-1), ArrowDown: () => sibling(1), h: () => stage.classList.toggle('bare'),
    };
    if (keys[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) {
      keys[event.key]();
      event.preventDefault();
    }
  });
})();

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

// Looks at the page as it is laid out and leaves what it finds in attributes of the document:
// `data-check` with the window's and the content's width, how many figures there are, and the
// smallest text; `data-problems` with what is wrong, a line each.
addEventListener('load', () => {
  const problems = [];
  const all = (what, of = document) => [...of.querySelectorAll(what)];
  const name = element => {
    const id = element.closest('[id]')?.id ?? '';
    return `${element.tagName}.${element.getAttribute('class') ?? ''} in ${id} (${element.textContent.slice(0, 40)})`;
  };
  const box = element => element.getBoundingClientRect();

  // Nothing reaches out of the window, and nothing has to be scrolled sideways.
  for (const element of all('body *')) {
    if (element.closest('.skip, thead, defs')) continue;
    const { left, right, width } = box(element);
    if (width > 0 && (right > innerWidth + 0.5 || left < -0.5)) problems.push(`outside: ${name(element)}`);
    if (['auto', 'scroll'].includes(getComputedStyle(element).overflowX)) problems.push(`scrolls: ${name(element)}`);
  }

  // Text is large enough, and stands out from what is behind it.
  const channel = value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
  const numbers = color => color.match(/[\d.]+/g).map(Number);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const color = numbers(getComputedStyle(at).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  let smallest = Infinity;
  for (const element of all('body, body *')) {
    const says = [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!says || element.closest('title, desc, script, style') || box(element).width === 0) continue;
    const style = getComputedStyle(element);
    const svg = element.closest('svg');
    const matrix = svg ? element.getScreenCTM() : { a: 1, b: 0 };
    const size = parseFloat(style.fontSize) * Math.hypot(matrix.a, matrix.b);
    smallest = Math.min(smallest, size);
    const [one, other] = [light(numbers(svg ? style.fill : style.color)), light(behind(element))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < 4.5) problems.push(`contrast ${contrast.toFixed(1)}: ${name(element)}`);
  }

  // Figures are drawn, and their labels touch neither each other nor the border.
  const figures = all('figure > svg');
  for (const svg of figures) {
    const { width, height, left, right, top, bottom } = box(svg);
    if (width < 250 || height < 150 || all('path', svg).length <= 3) problems.push(`not drawn: ${name(svg)}`);
    const labels = all('text', svg).map(text => [text, box(text)]);
    labels.forEach(([text, a], nr) => {
      const within = a.left > left - 1 && a.right < right + 1 && a.top > top - 1 && a.bottom < bottom + 1;
      if (!within) problems.push(`label cut off: ${name(text)}`);
      for (const [other, b] of labels.slice(nr + 1)) {
        const over = (from, to) => Math.min(a[to], b[to]) - Math.max(a[from], b[from]) > 1;
        // A line of text is higher than its letters.
        if (over('left', 'right') && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4)
          problems.push(`labels touch: ${name(text)} and ${name(other)}`);
      }
    });
  }

  // Each value says of which case it is: at the head of its column, or beside it.
  for (const cell of all('.holder td')) {
    if (box(cell).width === 0) continue;
    const head = box(cell.closest('table').querySelector('thead')).left >= 0;
    if (!head && getComputedStyle(cell, '::before').content !== `"${cell.dataset.case}"`)
      problems.push(`whose value: ${name(cell)}`);
  }

  // Each figure and table says how it is had again; links lead somewhere; ids are unique.
  for (const element of all('figure, section:not(#summary) .holder, .verdicts tbody tr'))
    if (!element.querySelector('.again code')) problems.push(`not to be had again: ${name(element)}`);
  for (const link of all('a[href^="#"]'))
    if (!document.getElementById(link.getAttribute('href').slice(1))) problems.push(`leads nowhere: ${name(link)}`);
  const ids = all('[id]').map(element => element.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) problems.push(`twice: ${id}`);
  for (const svg of figures)
    if (!svg.querySelector('title')?.textContent || !svg.querySelector('desc')?.textContent) problems.push(`not in words: ${name(svg)}`);

  const root = document.documentElement;
  root.dataset.check = [innerWidth, document.scrollingElement.scrollWidth, figures.length, smallest.toFixed(1)].join(' ');
  root.dataset.problems = problems.join('\n').replaceAll('"', "'");
});

/* What is wrong with the page that is open; each function returns a list of sentences. */
(() => {
  "use strict";
  const visible = (element) =>
    element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const short = (text) => text.trim().replace(/\s+/g, " ").slice(0, 60);

  /* Colors: "rgb(a)" to [r, g, b, alpha], one over another, and their contrast after WCAG. */
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const parse = (color) => {
    if (!known.has(color)) {
      const parts = color.match(/^rgba?\(([^)]+)\)$/);
      if (parts) {
        const numbers = parts[1].split(/[\s,/]+/).map(Number);
        known.set(color, numbers.length === 4 ? numbers : [...numbers, 1]);
      } else {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
        known.set(color, [r, g, b, a / 255]);
      }
    }
    return known.get(color);
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const contrast = (a, b) => {
    const [x, y] = [luminance(a), luminance(b)];
    return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
  };
  const backgrounds = new Map();
  const background = (element) => {
    if (!element) return [255, 255, 255, 1];
    if (!backgrounds.has(element)) {
      const own = parse(getComputedStyle(element).backgroundColor);
      backgrounds.set(element, own[3] === 1 ? own : over(own, background(element.parentElement)));
    }
    return backgrounds.get(element);
  };
  /* What a chart paints below the middle of a text: bars, cells, areas. */
  const painted = (text) => {
    const box = text.getBoundingClientRect();
    const middle = new DOMPoint(box.x + box.width / 2, box.y + box.height / 2);
    let color = background(text.closest("svg").parentElement);
    for (const shape of text.closest("svg").querySelectorAll("path, rect")) {
      if (shape.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_PRECEDING) break;
      const style = getComputedStyle(shape);
      if (style.fill === "none" || !shape.getScreenCTM()) continue;
      if (!shape.isPointInFill(middle.matrixTransform(shape.getScreenCTM().inverse()))) continue;
      const fill = parse(style.fill).slice();
      fill[3] *= style.fillOpacity * style.opacity;
      color = over(fill, color);
    }
    return color;
  };

  const illegible = () => {
    backgrounds.clear();
    const found = new Map();
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const text = walker.currentNode, element = text.parentElement;
      if (!text.data.trim() || element.closest("script, style, noscript, mjx-assistive-mml")) continue;
      if (!visible(element) || !element.getClientRects().length) continue;
      const style = getComputedStyle(element), chart = element.closest("svg");
      const below = chart ? painted(element) : background(element);
      const ink = parse(chart ? style.fill : style.color).slice();
      ink[3] *= chart ? style.fillOpacity * style.opacity : style.opacity;
      if (ink[3] === 0) continue;
      const ratio = contrast(over(ink, below), below);
      const size = parseFloat(style.fontSize);
      const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
      if (ratio < (large ? 3 : 4.5) - 0.01) {
        const where = chart ? "chart" : element.className || element.localName;
        const key = [where, style.color, below.map(Math.round)].join();
        if (!found.has(key)) found.set(key, `contrast ${ratio.toFixed(2)} of "${short(text.data)}" (${where})`);
      }
    }
    return [...found.values()];
  };

  const unset = () => {
    const faults = [];
    for (const math of document.querySelectorAll("span.math, div.math"))
      if (!math.querySelector("mjx-container")) faults.push(`mathematics not set: ${short(math.textContent)}`);
    for (const error of document.querySelectorAll("mjx-merror, [data-mjx-error]"))
      faults.push(`mathematics in error: ${short(error.textContent)} ${error.dataset.mjxError || ""}`);
    const walker = document.createTreeWalker(document.querySelector("main") || document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const text = walker.currentNode;
      if (text.parentElement.closest("script, style, noscript, pre, code, mjx-container, .math, .sig, svg")) continue;
      const raw = text.data.match(/\\[a-zA-Z]{2,}|\{cite|\{doc\}|\{ref\}|<!-- /);
      if (raw) faults.push(`markup as text: ${short(text.data)}`);
    }
    return faults;
  };

  const charts = () => {
    const faults = [];
    document.querySelectorAll(".itr-chart").forEach((chart, number) => {
      const name = `chart ${number + 1}`;
      const error = chart.querySelector(".itr-error"), svg = chart.querySelector("svg");
      if (error) return faults.push(`${name}: ${short(error.textContent)}`);
      if (!svg) return faults.push(`${name} is not drawn`);
      const marks = [...svg.querySelectorAll(".role-mark :is(path, rect, line, text, image)")];
      const drawn = marks.filter((m) => m.localName !== "path" || (m.getAttribute("d") || "").length > 4);
      if (!drawn.length) faults.push(`${name} is empty`);
      if (marks.some((m) => /NaN|undefined|Infinity/.test(m.outerHTML.slice(0, 2000)))) faults.push(`${name} holds NaN`);
      if (svg.getAttribute("aria-hidden") !== "true") faults.push(`${name}: its marks are read out without names`);
      const box = svg.getBoundingClientRect();
      if (box.width < 80 || box.height < 40) faults.push(`${name} is ${box.width} by ${box.height} pixels`);
    });
    return faults;
  };

  const file = /^\S+\.(svg|png|jpe?g|gif|webp)$/i;
  const undescribed = () => {
    const faults = [];
    for (const image of document.querySelectorAll("img")) {
      if (image.closest("[aria-hidden=true]") || image.role === "presentation") continue;
      const text = (image.getAttribute("alt") || "").trim();
      if (text.split(/\s+/).length < 3 || file.test(text)) faults.push(`picture ${image.src.split("/").pop()} is described as "${text}"`);
    }
    document.querySelectorAll(".itr-chart").forEach((chart, number) => {
      const text = (chart.getAttribute("aria-label") || "").trim();
      if (text.split(/\s+/).length < 5 || file.test(text)) faults.push(`chart ${number + 1} is described as "${text}"`);
    });
    return faults;
  };

  const sideways = () => {
    const room = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= room) return [];
    const wide = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT);
    const range = document.createRange();
    while (walker.nextNode()) {
      const node = walker.currentNode, element = node.nodeType === 3 ? node.parentElement : node;
      range.selectNodeContents(node);
      const right = Math.max(...[...(node.nodeType === 3 ? range : node).getClientRects()].map((r) => r.right));
      if (right > room + 1 && visible(element) && !clipped(element.parentElement))
        wide.push(node.nodeType === 3 ? `"${short(node.data)}"` : element.outerHTML.slice(0, 80));
    }
    return [`scrolls sideways, ${document.documentElement.scrollWidth} > ${room}: ${wide.slice(-2)}`];
  };
  const clipped = (element) => {
    for (; element && element !== document.body; element = element.parentElement)
      if (getComputedStyle(element).overflowX !== "visible") return true;
    return false;
  };

  /* Listings whose longest line does not fit. */
  const narrow = () => [...document.querySelectorAll("main div.highlight pre")]
    .filter((pre) => pre.clientWidth && pre.scrollWidth > pre.clientWidth + 1)
    .map((pre) => [pre, pre.textContent.split("\n").reduce((a, b) => (b.length > a.length ? b : a))])
    .filter(([, line]) => line.length <= 100)
    .map(([pre, line]) => `a listing scrolls, ${pre.scrollWidth} > ${pre.clientWidth}: ${line.length} characters, "${short(line)}"`);

  window.faults = { illegible, unset, charts, undescribed, sideways, narrow };
})();

/* What a search result quotes: the prose of a page. Sphinx would take everything that stands in its
   main part: buttons, code, the table of contents, mathematics as typed. */
(() => {
  "use strict";
  const FURNITURE = "script, style, noscript, svg, nav, button, .headerlink, .itr-card, .itr-button, .itr-source, "
    + ".itr-chart, .itr-controls, .onlyprint, #jb-print-docs-body, #jb-print-toc, .cell_input, details.hide, div.highlight";
  const LENGTH = 240;
  const main = (page) => page.querySelector("[role=main]") || page.querySelector("main");
  /* x^2 stays, \\frac{...} would not be read. */
  const plain = (tex) => {
    const text = tex.replace(/^\\[([]|\\[)\]]$/g, "").trim();
    return /[\\{}]/.test(text) ? "\u2026" : text;
  };
  Search.htmlToText = (source, anchor) => {
    const page = new DOMParser().parseFromString(source, "text/html");
    const whole = main(page);
    if (!whole) return "";
    whole.querySelectorAll(".math").forEach((math) => { math.textContent = plain(math.textContent); });
    whole.querySelectorAll(FURNITURE).forEach((element) => element.remove());
    whole.querySelectorAll("h1").forEach((title) => title.remove());
    const part = (anchor && whole.querySelector(anchor)) || whole;
    part.querySelectorAll("p, li, h2, h3, h4, td, th, dt, dd").forEach((element) => element.append(" "));
    return part.textContent.replace(/\s+/g, " ").trim();
  };
  /* Around the first word that was found, from the start of its sentence, whole words. */
  Search.makeSearchSummary = (source, keywords, anchor) => {
    const text = Search.htmlToText(source, anchor);
    if (!text) return null;
    const lower = text.toLowerCase();
    const places = [...keywords].map((word) => lower.indexOf(word.toLowerCase())).filter((at) => at >= 0);
    const at = places.length ? Math.min(...places) : 0;
    const sentence = text.lastIndexOf(". ", at) + 2;
    const start = at < 150 ? 0 : at - sentence < 150 && sentence > 1 ? sentence : text.indexOf(" ", at - 100) + 1;
    const end = start + LENGTH < text.length ? text.lastIndexOf(" ", start + LENGTH) : text.length;
    const quote = document.createElement("p");
    quote.classList.add("context");
    quote.textContent = (start && start !== sentence ? "\u2026 " : "") + text.slice(start, end) + (end < text.length ? " \u2026" : "");
    return quote;
  };
})();

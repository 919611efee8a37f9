/* Draws every .itr-chart on the page with Vega: fits it to its room, drives explorables' controls.
   Vega comes from window.vegaEmbed, from the address in a script's data-vega, or, outside the book,
   from the addresses in window.itrVega. */
(() => {
  "use strict";
  if (window.itrCharts) { window.itrCharts.init(); return; }
  const SELECTOR = ".itr-chart";
  const clone = (value) => JSON.parse(JSON.stringify(value));
  let library;

  const script = (src) => new Promise((done, fail) => {
    const element = document.createElement("script");
    element.src = src;
    element.onload = done;
    element.onerror = () => fail(new Error("could not load " + src));
    document.head.append(element);
  });

  const vega = () => library ||= (async () => {
    if (!window.vegaEmbed && document.readyState === "loading")
      await new Promise((done) => addEventListener("DOMContentLoaded", done, { once: true }));
    if (window.vegaEmbed) return window.vegaEmbed;
    const local = document.querySelector("script[data-vega]");
    // A module loader on the page (require.js) would swallow the libraries' globals.
    const define = window.define;
    window.define = undefined;
    try {
      for (const src of local ? [local.dataset.vega] : window.itrVega || []) await script(src);
    } finally { window.define = define; }
    if (!window.vegaEmbed) throw new Error("Vega is not on this page");
    return window.vegaEmbed;
  })();

  const restackable = (node) => !!(node.hconcat || ((node.concat || node.facet || node.repeat) && node.columns !== 1)
    || (node.encoding && ((node.encoding.facet && node.encoding.facet.columns !== 1) || node.encoding.column))
    || [...(node.vconcat || []), ...(node.concat || []), node.spec].some((n) => n && restackable(n)));

  /* Side by side becomes one below the other. */
  const restack = (node) => {
    if (node.hconcat) { node.vconcat = node.hconcat; delete node.hconcat; }
    if (node.concat || node.facet || node.repeat) {
      if (node.facet && node.facet.column) { node.facet.row = node.facet.column; delete node.facet.column; }
      node.columns = 1;
    }
    const encoding = node.encoding || {};
    if (encoding.facet) encoding.facet.columns = 1;
    if (encoding.column) { if (!encoding.row) encoding.row = encoding.column; delete encoding.column; }
    [...(node.vconcat || []), ...(node.concat || []), node.spec].forEach((n) => n && restack(n));
  };

  /* Take `excess` pixels from the width of every view with marks; how many could not be taken. */
  const narrow = (node, excess, width, usual) => {
    const parts = node.hconcat || node.vconcat || node.concat;
    if (parts) {
      const share = excess / (node.hconcat ? parts.length : node.concat ? Math.min(node.columns || parts.length, parts.length) : 1);
      return Math.max(...parts.map((n) => narrow(n, share, width, usual)));
    }
    if (node.spec) return narrow(node.spec, excess / (node.columns || 1), width, usual);
    const encoding = node.encoding || {}, x = encoding.x || (((node.layer || [])[0] || {}).encoding || {}).x || {};
    const facets = (encoding.facet && encoding.facet.columns) || 1;
    if (node.width && node.width.step && Array.isArray(x.sort)) {
      // A heat map: whole pixels a cell, or seams show; cells stay square.
      const step = Math.max(3, Math.floor(node.width.step - excess / x.sort.length));
      const taken = (node.width.step - step) * x.sort.length;
      if (node.height && node.height.step === node.width.step) node.height.step = step;
      node.width.step = step;
      return excess - taken;
    }
    const now = typeof node.width === "number" ? node.width : /nominal|ordinal/.test(x.type) ? width : usual;
    node.width = Math.max(140, Math.floor(now - excess / facets));
    return excess / facets - (now - node.width);
  };

  /* One step towards a narrower picture; false when nothing is left to do. */
  const shrink = (spec, width, room, pass, stage) => {
    const config = spec.config ||= {}, legend = config.legend ||= {};
    const before = JSON.stringify(spec);
    const labels = [...stage.querySelectorAll(".role-legend-label text")].map((t) => t.getComputedTextLength());
    const columns = Math.max(1, Math.floor((room - 50) / (Math.max(30, ...labels) + 32)));
    if (pass === 0 && labels.length && (room < 560 || columns < labels.length)) {
      // Legends first: above the picture, in as many columns as there is room for.
      legend.columns = columns;
      if (room < 560) legend.layout = { ...legend.layout, top: { direction: "vertical", anchor: "start" } };
      legend.gradientLength = Math.min(legend.gradientLength || 200, room - 60);
      const unset = (node) => {
        if (!node || typeof node !== "object") return;
        if (node.legend && node.legend.orient) delete node.legend.orient;
        Object.keys(node).forEach((key) => key !== "datasets" && key !== "values" && key !== "config" && unset(node[key]));
      };
      unset(spec);
      if (JSON.stringify(spec) !== before) return true;
    }
    const usual = (config.view || {}).continuousWidth || 300;
    if (width > 1.2 * room && restackable(spec)) restack(spec);
    else if (narrow(spec, width - room, width, usual) > 60 && restackable(spec)) restack(spec);
    return JSON.stringify(spec) !== before;
  };

  const charts = new Map();

  class Chart {
    constructor(host) {
      this.host = host;
      this.doc = JSON.parse(host.querySelector("script.itr-spec").textContent);
      this.at = this.doc.start || 0;
      this.turn = 0;
      if (this.doc.title || this.doc.states) {
        this.title = document.createElement("div");
        this.title.className = "itr-title";
        host.before(this.title);
        this.caption(this.page());
      }
      if (this.doc.grid) this.controls();
    }
    /* The page of the chosen setting: the first one with what differs put in. */
    page() {
      const page = clone({ title: this.doc.title, subtitle: this.doc.subtitle, spec: this.doc.spec });
      if (!this.doc.states) return page;
      const box = { page };
      for (const [path, value] of this.doc.states[this.at]) {
        let node = box;
        path.slice(0, -1).forEach((key) => { node = node[key]; });
        node[path[path.length - 1]] = clone(value);
      }
      const text = JSON.stringify(box.page.spec);
      box.page.spec.datasets = Object.fromEntries(
        Object.entries(this.doc.datasets || {}).filter(([name]) => text.includes('"' + name + '"')));
      return box.page;
    }
    caption(page) {
      this.title.textContent = page.title || "";
      if (!page.subtitle) return;
      const subtitle = document.createElement("span");
      subtitle.className = "itr-subtitle";
      subtitle.textContent = page.subtitle;
      this.title.append(subtitle);
    }
    controls() {
      const box = this.box = this.host.closest(".itr-explore").querySelector(".itr-controls");
      const inputs = [...box.querySelectorAll("input, select")];
      const read = () => {
        this.at = 0;
        inputs.forEach((input, i) => {
          const values = this.doc.grid[i], chosen = +input.value;
          this.at = this.at * values.length + chosen;
          if (input.type !== "range") return;
          input.setAttribute("aria-valuetext", values[chosen]);
          input.parentElement.querySelector("output").textContent = values[chosen];
        });
      };
      inputs.forEach((input) => input.addEventListener("input", () => { read(); this.draw(); }));
      read();
      this.title.setAttribute("aria-live", "polite");
      box.hidden = false;
    }
    async draw() {
      const turn = ++this.turn, host = this.host;
      this.drawn = true;
      const page = this.page(), spec = page.spec, room = this.room = host.clientWidth;
      const stage = document.createElement("div");
      stage.className = "itr-view itr-stage";
      const scale = (spec.usermeta || {}).itr === "scale";
      let result;
      try {
        const embed = await vega();
        host.append(stage);
        for (let pass = 0; pass < 7; pass++) {
          if (result) result.finalize();
          result = await embed(stage, clone(spec), { renderer: "svg", actions: false, ast: true, tooltip: { disableDefaultStyle: true } });
          if (turn !== this.turn) { result.finalize(); stage.remove(); return; }
          const width = stage.querySelector("svg").width.baseVal.value;
          if (scale || width <= room + 1 || room < 80 || !shrink(spec, width, room, pass, stage)) break;
        }
      } catch (error) {
        // Without Vega the still picture, where there is one; the title stands in it.
        const still = host.querySelector("script[type='image/svg+xml']");
        stage.className = still ? "itr-still" : "itr-error";
        if (still) stage.innerHTML = still.textContent;
        else stage.textContent = "The chart could not be drawn: " + error.message;
        if (this.title) this.title.hidden = !!still;
        if (this.box) this.box.hidden = true;
        host.append(stage);
        console.warn(error);
      }
      if (this.view) this.view.remove();
      if (this.result) this.result.finalize();
      this.view = stage;
      this.result = result;
      stage.classList.remove("itr-stage");
      if (scale) stage.classList.add("itr-scale");
      if (this.title) this.caption(page);
      // Reserve the tallest picture seen at this width, so that a slider does not move the page.
      const tall = stage.offsetHeight;
      this.tall = this.width === room ? Math.max(this.tall, tall) : tall;
      this.width = room;
      host.style.minHeight = this.tall + "px";
      host.dataset.itr = "drawn";
    }
  }

  const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
    const chart = charts.get(entry.target);
    if (entry.isIntersecting && chart && !chart.drawn) chart.draw();
  }), { rootMargin: "600px" });

  const init = () => {
    for (const host of charts.keys()) if (!host.isConnected) { seen.unobserve(host); charts.delete(host); }
    document.querySelectorAll(SELECTOR).forEach((host) => {
      if (charts.has(host) || !host.querySelector("script.itr-spec")) return;
      // Notebooks take outputs out of the page while they are scrolled away, and put them back.
      host.itrChart ||= new Chart(host);
      charts.set(host, host.itrChart);
      seen.observe(host);
    });
  };

  /* What is far below the fold is drawn while the browser idles, so that print finds it. */
  const idle = window.requestIdleCallback || ((f) => setTimeout(f, 300));
  const rest = () => {
    const next = [...charts.values()].find((chart) => !chart.drawn && chart.host.clientWidth);
    if (next) next.draw().finally(() => idle(rest));
  };

  let timer;
  addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(() => charts.forEach((chart) => {
      if (chart.drawn && Math.abs(chart.host.clientWidth - chart.room) > 8) chart.draw();
    }), 150);
  });
  addEventListener("beforeprint", () => charts.forEach((chart) => chart.drawn || chart.draw()));

  const start = () => {
    init();
    new MutationObserver((records) => {
      if (records.some((r) => [...r.addedNodes].some((n) => n.querySelector && (n.matches(SELECTOR) || n.querySelector(SELECTOR))))) init();
    }).observe(document.body, { childList: true, subtree: true });
    if (document.readyState === "complete") idle(rest);
    else addEventListener("load", () => idle(rest));
  };
  window.itrCharts = { init };
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", start);
  else start();
})();

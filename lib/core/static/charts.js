/* Draws every .itr-chart on the page with Vega: fits it to its room, drives explorables' controls.
   Vega comes from window.vegaEmbed, from this script's data-vega address, or, outside the book,
   from the addresses in window.itrVega. */
(() => {
  "use strict";
  if (window.itrCharts) { window.itrCharts.init(); return; }
  const SELECTOR = ".itr-chart";
  const local = document.currentScript && document.currentScript.dataset.vega;
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
    // A module loader on the page (require.js) would swallow the libraries' globals.
    const define = window.define;
    window.define = undefined;
    try {
      for (const src of local ? [local] : window.itrVega || []) await script(src);
    } finally { window.define = define; }
    if (!window.vegaEmbed) throw new Error("Vega is not on this page");
    return window.vegaEmbed;
  })();

  /* Every view with marks, whatever composes it. */
  const leaves = (node, visit) => {
    if (node.mark || node.layer) return visit(node);
    for (const key of ["hconcat", "vconcat", "concat"]) (node[key] || []).forEach((n) => leaves(n, visit));
    if (node.spec) leaves(node.spec, visit);
  };

  /* One step towards a narrower picture; false when nothing is left to do. */
  const shrink = (spec, width, room) => {
    let changed = false;
    const restack = (node) => {
      if (node.hconcat) { node.vconcat = node.hconcat; delete node.hconcat; changed = true; }
      if ((node.concat || node.facet || node.repeat) && node.columns !== 1) {
        if (node.facet && node.facet.column) { node.facet.row = node.facet.column; delete node.facet.column; }
        node.columns = 1; changed = true;
      }
      const encoding = node.encoding;
      if (encoding && encoding.facet && encoding.facet.columns !== 1) { encoding.facet.columns = 1; changed = true; }
      if (encoding && encoding.column && !encoding.row) { encoding.row = encoding.column; delete encoding.column; changed = true; }
      ["vconcat", "concat"].forEach((key) => (node[key] || []).forEach(restack));
      if (node.spec) restack(node.spec);
    };
    restack(spec);
    const config = spec.config ||= {}, legend = config.legend ||= {};
    const columns = Math.max(1, Math.floor(room / 120));
    if (legend.columns !== columns) {
      legend.columns = columns;
      legend.gradientLength = Math.min(legend.gradientLength || 200, room - 60);
      const unset = (n) => {
        if (!n || typeof n !== "object") return;
        if (n.legend && n.legend.orient) delete n.legend.orient;
        Object.keys(n).forEach((key) => key !== "datasets" && key !== "config" && unset(n[key]));
      };
      unset(spec);
      changed = true;
    }
    if (changed) return true;
    leaves(spec, (view) => {
      const x = (view.encoding || {}).x || {};
      const discrete = x.type === "nominal" || x.type === "ordinal";
      const now = typeof view.width === "number" ? view.width
        : discrete ? room + width - room : ((config.view || {}).continuousWidth || 300);
      const next = Math.max(150, Math.floor(now - (width - room)));
      if (next < now) { view.width = next; changed = true; }
    });
    return changed;
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
      const box = this.host.closest(".itr-explore").querySelector(".itr-controls");
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
        for (let pass = 0; pass < 5; pass++) {
          if (result) result.finalize();
          result = await embed(stage, clone(spec), { renderer: "svg", actions: false, ast: true, tooltip: { disableDefaultStyle: true } });
          if (turn !== this.turn) { result.finalize(); stage.remove(); return; }
          const width = stage.querySelector("svg").width.baseVal.value;
          if (scale || width <= room + 1 || room < 80 || !shrink(spec, width, room)) break;
        }
      } catch (error) {
        stage.className = "itr-error";
        stage.textContent = "The chart could not be drawn: " + error.message;
        host.append(stage);
        console.error(error);
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
    document.querySelectorAll(SELECTOR).forEach((host) => {
      if (charts.has(host) || !host.querySelector("script.itr-spec")) return;
      charts.set(host, new Chart(host));
      seen.observe(host);
    });
    for (const host of charts.keys()) if (!host.isConnected) { seen.unobserve(host); charts.delete(host); }
  };

  /* What is far below the fold is drawn while the browser idles, so that print finds it. */
  const idle = window.requestIdleCallback || ((f) => setTimeout(f, 300));
  const rest = () => {
    const next = [...charts.values()].find((chart) => !chart.drawn);
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

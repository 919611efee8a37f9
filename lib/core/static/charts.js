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

  const children = (node) => [...(node.hconcat || []), ...(node.vconcat || []), ...(node.concat || []), ...(node.layer || []), node.spec].filter(Boolean);
  const walk = (node, visit) => { visit(node); children(node).forEach((n) => walk(n, visit)); };

  /* Views side by side go into fewer columns; `share` is the part of the width there is room for. */
  const restack = (spec, share) => {
    let changed = false;
    const fewer = (holder, now) => {
      const next = Math.max(1, Math.min(now - 1, Math.floor(now * share)));
      if (now > 1) { holder.columns = next; changed = true; }
    };
    walk(spec, (node) => {
      const encoding = node.encoding || {};
      if (node.hconcat) { node.concat = node.hconcat; delete node.hconcat; fewer(node, node.concat.length); }
      else if (node.concat) fewer(node, Math.min(node.columns || node.concat.length, node.concat.length));
      if (node.facet && node.facet.column) { node.facet.row ||= node.facet.column; delete node.facet.column; changed = true; }
      else if ((node.facet && node.facet.field) || node.repeat) fewer(node, node.columns || 4);
      if (encoding.facet) fewer(encoding.facet, encoding.facet.columns || 4);
      if (encoding.column) { encoding.row ||= encoding.column; delete encoding.column; changed = true; }
    });
    return changed;
  };

  /* Take `excess` pixels from the width of every view, down to `least`; how many were not taken. */
  const narrow = (node, excess, least, usual) => {
    const parts = node.hconcat || node.vconcat || node.concat;
    if (parts) {
      const share = excess / (node.hconcat ? parts.length : node.concat ? Math.min(node.columns || parts.length, parts.length) : 1);
      return Math.max(...parts.map((n) => narrow(n, share, least, usual)));
    }
    if (node.spec) return narrow(node.spec, excess / (node.columns || 1), least, usual);
    const encoding = node.encoding || {}, x = encoding.x || (((node.layer || [])[0] || {}).encoding || {}).x || {};
    excess /= (encoding.facet && encoding.facet.columns) || 1;
    if (node.width && node.width.step && Array.isArray(x.sort)) {
      // A heat map: whole pixels a cell, or seams show; cells stay square.
      const step = Math.max(Math.min(6, node.width.step), Math.floor(node.width.step - excess / x.sort.length));
      const taken = (node.width.step - step) * x.sort.length;
      if (node.height && node.height.step === node.width.step) node.height.step = step;
      node.width.step = step;
      return excess - taken;
    }
    const now = typeof node.width === "number" ? node.width : usual;
    node.width = Math.floor(Math.max(Math.min(0.85 * now, least), now - excess));
    // Marks placed by the pixel keep their place in the picture.
    walk(node, (n) => ["x", "x2"].forEach((key) => {
      const place = (n.encoding || {})[key];
      if (place && typeof place.value === "number") place.value *= node.width / now;
    }));
    return excess - (now - node.width);
  };

  /* One step towards a narrower picture: the pixels asked of the views, 0 for another step,
     null where nothing is left to do. */
  const shrink = (spec, width, room, stage, done) => {
    const config = spec.config ||= {}, legend = config.legend ||= {};
    const edge = stage.getBoundingClientRect().left;
    const legends = [...stage.querySelectorAll(".role-legend")].map((g) => g.getBoundingClientRect());
    const over = Math.max(0, ...legends.map((box) => box.right - edge - room));
    if (!done.legend && legends.length && (over > 1 || room < 560)) {
      // Above the picture, one below the other, in as many columns as there is room for.
      done.legend = true;
      const start = Math.min(...legends.map((box) => box.left - edge), room / 3);
      const labels = [...stage.querySelectorAll(".role-legend-label text")].map((t) => t.getComputedTextLength());
      legend.columns = Math.max(1, Math.floor((room - start) / (Math.max(30, ...labels) + 40)));
      legend.labelLimit = room - start - 30;
      if (over > 1) legend.layout = { ...legend.layout, top: { direction: "vertical", anchor: "start" } };
      const unset = (node) => {
        if (!node || typeof node !== "object") return;
        if (node.legend) ["orient", "columns", "columnPadding", "labelLimit"].forEach((key) => delete node.legend[key]);
        Object.keys(node).forEach((key) => !/^(datasets|values|config)$/.test(key) && unset(node[key]));
      };
      unset(spec);
      return 0;
    }
    if (over > 1 && !done.gradient) {
      done.gradient = true;
      legend.gradientLength = Math.max(60, (legend.gradientLength || 200) - over);
      return 0;
    }
    const usual = (config.view || {}).continuousWidth || 300;
    // Views side by side stay wide enough to be read, or go below one another.
    const trial = clone(spec);
    if (width < 1.25 * room && narrow(trial, width - room, 190, usual) < 1) {
      Object.assign(spec, trial);
      return width - room;
    }
    if (restack(spec, room / width)) return 0;
    return narrow(spec, width - room, 140, usual) < width - room ? width - room : null;
  };

  /* Labels of categories that run into one another are turned. */
  const turnLabels = (spec, stage) => {
    const crowded = [...stage.querySelectorAll(".role-axis-label")].some((axis) => {
      const boxes = [...axis.querySelectorAll("text")].map((t) => t.getBoundingClientRect());
      return boxes.some((box, i) => i && Math.abs(box.top - boxes[i - 1].top) < 2 && box.left < boxes[i - 1].right + 2 && box.right > boxes[i - 1].left);
    });
    let changed = false;
    if (crowded) walk(spec, (node) => {
      const x = (node.encoding || {}).x;
      if (!x || !/nominal|ordinal/.test(x.type) || x.axis === null) return;
      x.axis = { ...x.axis, labelAngle: -45, labelAlign: "right" };
      delete x.axis.labelOverlap;
      changed = true;
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
      const page = this.page(), room = this.room = host.clientWidth;
      const stage = document.createElement("div");
      stage.className = "itr-view itr-stage";
      const scale = (page.spec.usermeta || {}).itr === "scale";
      let result;
      try {
        const embed = await vega();
        host.append(stage);
        const put = async (what) => {
          if (result) result.finalize();
          result = await embed(stage, clone(what), { renderer: "svg", actions: false, ast: true, tooltip: { disableDefaultStyle: true } });
          return turn === this.turn && stage.querySelector("svg").width.baseVal.value;
        };
        let spec = page.spec, width = await put(spec), asked, kept, last;
        const done = {};
        for (let pass = 0; pass < 9 && width && !scale && room > 80; pass++) {
          // What does not give way is left as it was: the picture scrolls within its own box.
          if (asked && last - width < asked / 2) { width = await put(spec = kept); break; }
          if (width <= room + 1) break;
          kept = clone(spec);
          last = width;
          asked = shrink(spec, width, room, stage, done);
          if (asked === null) break;
          width = await put(spec);
        }
        if (width && !scale && turnLabels(spec, stage)) width = await put(spec);
        if (turn !== this.turn) { result.finalize(); stage.remove(); return; }
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
      if (scale) {
        stage.classList.add("itr-scale");
        const svg = stage.querySelector("svg");
        // Words below images stay legible: from there on the box scrolls.
        if (svg && [...svg.querySelectorAll("text")].some((t) => t.textContent)) svg.style.minWidth = 0.72 * svg.width.baseVal.value + "px";
      }
      if (this.title) this.caption(page);
      // Reserve the tallest picture seen at this width, so that a slider does not move the page.
      const tall = stage.offsetHeight;
      this.tall = this.width === room ? Math.max(this.tall, tall) : tall;
      this.width = room;
      host.style.minHeight = this.tall + "px";
      // A chart is described as a whole; the roles of single marks would be read out without names.
      const svg = stage.querySelector("svg");
      if (svg) svg.setAttribute("aria-hidden", "true");
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

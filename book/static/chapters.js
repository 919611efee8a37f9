/* The filter of the gallery and the way to a chapter on the map. Without this script both pages are
   whole lists. */
(() => {
  "use strict";
  const $ = (id) => document.getElementById(id);
  /* Letters without their accents, in lower case; every word asked for must occur. */
  const plain = (text) => text.normalize("NFD").replace(/[\u0300-\u036f]/g, "").toLowerCase();
  /* What was chosen stays in the address, so that it can be linked and survives going back. */
  const remember = (fields) => {
    const kept = new URLSearchParams(Object.entries(fields).filter(([, value]) => value));
    try {
      history.replaceState(null, "", kept.size ? `#${kept}` : location.pathname + location.search);
    } catch { /* a file that was opened without a server may not change its address */ }
  };
  const recalled = () => new URLSearchParams(location.hash.slice(1));

  const words = $("itr-words"), part = $("itr-part");
  if (words) {
    const cards = [...document.querySelectorAll(".itr-chapter")].map((element) => ({
      element, part: element.dataset.part, text: plain(`${element.textContent} ${element.dataset.words}`),
    }));
    const lists = [...document.querySelectorAll(".itr-chapters")];
    /* A part's heading goes with its chapters; the page's own stays. */
    const partOf = (list) => (list.closest("section").querySelector("h1") ? list : list.closest("section"));
    const found = document.querySelector(".itr-found");
    const filter = () => {
      const wanted = plain(words.value).split(/\s+/).filter(Boolean);
      let count = 0;
      for (const card of cards) {
        const fits = (!part.value || card.part === part.value) && wanted.every((word) => card.text.includes(word));
        card.element.hidden = !fits;
        count += fits;
      }
      for (const list of lists)
        partOf(list).hidden = !list.querySelector(".itr-chapter:not([hidden])");
      found.textContent = count === cards.length ? `${count} chapters`
        : count ? `${count} of ${cards.length} chapters` : "No chapter fits; try fewer words or all parts.";
      remember({ part: part.value, find: words.value.trim() });
    };
    const recall = () => {
      const kept = recalled();
      words.value = kept.get("find") || words.value;
      part.value = kept.get("part") || part.value;
      if (part.selectedIndex < 0) part.value = "";
      filter();
    };
    words.form.hidden = false;
    words.form.addEventListener("submit", (event) => event.preventDefault());
    words.addEventListener("input", filter);
    part.addEventListener("input", filter);
    words.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      words.value = "";
      filter();
    });
    recall();
  }

  const goal = $("itr-goal");
  if (goal) {
    const chapters = JSON.parse($("itr-needs").textContent);
    const map = document.querySelector(".itr-map");
    const link = (name) => {
      const anchor = document.createElement("a");
      anchor.href = chapters[name].page;
      anchor.textContent = chapters[name].title;
      return anchor;
    };
    const time = (total) => (total < 100 ? `${total} minutes`
      : `${Math.floor(total / 60)} h${total % 60 ? ` ${total % 60} min` : ""}`);
    const mark = (names) => {
      map.classList.toggle("itr-chosen", names.size > 0);
      for (const element of map.querySelectorAll("[data-name]"))
        element.classList.toggle("itr-on", names.has(element.dataset.name));
      for (const element of map.querySelectorAll("[data-from]"))
        element.classList.toggle("itr-on", names.has(element.dataset.from) && names.has(element.dataset.to));
    };
    const show = () => {
      const way = $("itr-route"), chosen = chapters[goal.value];
      way.replaceChildren();
      mark(new Set(chosen ? [...chosen.before, goal.value] : []));
      remember({ to: goal.value });
      if (!chosen) return;
      const line = document.createElement("p");
      way.append(line);
      if (!chosen.before.length) {
        line.append(link(goal.value), ` needs no other chapter: ${time(chosen.minutes)}.`);
        return;
      }
      const before = chosen.before.reduce((sum, name) => sum + chapters[name].minutes, 0);
      line.append(`${time(before)} of reading come first, ${time(before + chosen.minutes)} in all:`);
      const list = document.createElement("ol");
      for (const name of [...chosen.before, goal.value]) {
        const item = document.createElement("li"), minutes = document.createElement("span");
        minutes.className = "itr-note";
        minutes.textContent = ` ${chapters[name].minutes} min`;
        item.append(link(name), minutes);
        list.append(item);
      }
      way.append(list);
    };
    /* Pointing at a line of the map shows its way; what was chosen comes back afterwards. */
    const point = (event) => {
      const name = event.target.closest("[data-name]")?.dataset.name || goal.value;
      mark(new Set(chapters[name] ? [...chapters[name].before, name] : []));
    };
    for (const kind of ["pointerover", "pointerleave", "focusin", "focusout"]) map.addEventListener(kind, point);
    goal.form.hidden = false;
    goal.form.addEventListener("submit", (event) => event.preventDefault());
    goal.addEventListener("input", show);
    const to = recalled().get("to");
    if (to in chapters) goal.value = to;
    if (goal.value) show();
  }
})();

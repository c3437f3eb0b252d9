(() => {
  const section = document.currentScript.parentElement;
  const find = (name) => section.querySelector(".vp-" + name);
  const data = JSON.parse(section.querySelector('script[type="application/json"]').textContent);
  const visible = (text) => text.replaceAll(" ", "·").replaceAll("\t", "⇥").replaceAll(/\r?\n|\r/g, "↵").replaceAll(/\p{Cc}/gu, "�");
  const share = (number) => (number === 0 || number >= 0.0005 ? number.toFixed(3) : "<0.001");
  const signed = (number) => (number === null ? "–" : (number < 0 ? "−" : "+") + String(Math.abs(Number(number.toPrecision(3)))));
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    element.className = className;
    element.textContent = text;
    return element;
  };

  const targets = [];
  const shown = () => targets.filter((target) => !target.off);
  let current = null;

  const rows = data.rows.map((row) => {
    const group = make("div", "vp-row", "");
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", "domain " + row.domain);
    group.append(make("b", "", row.domain));
    group.firstChild.setAttribute("aria-hidden", "true");
    for (const token of row.tokens) {
      const text = (token.begins ? "¦ " : "") + visible(token.text);
      const element = make("span", "alpha" in token ? "vp-target" : "vp-context", text);
      if ("alpha" in token) {
        element.setAttribute("role", "option");
        element.setAttribute("aria-selected", "false");
        element.tabIndex = -1;
        element.style.setProperty("--alpha", String(Math.min(1, token.alpha / (data.alpha_full || data.alpha_highest || 1))));
        element.classList.toggle("vp-steered", token.steered);
        element.classList.toggle("vp-opposed", token.opposed);
        const target = { element, token, domain: row.domain, off: false };
        element.addEventListener("focus", () => show(target));
        element.addEventListener("mouseenter", () => show(target));
        element.addEventListener("keydown", (event) => move(event, target));
        targets.push(target);
      } else {
        element.setAttribute("aria-hidden", "true");
      }
      group.append(element, document.createElement("wbr"));
      if (token.text.includes("\n")) group.append(document.createElement("br"));
    }
    find("rows").append(group);
    return { group, domain: row.domain };
  });

  function show(target) {
    if (current === target) return;
    if (current) {
      current.element.tabIndex = -1;
      current.element.setAttribute("aria-selected", "false");
    }
    current = target;
    const { token } = target;
    const value = token.candidates[0][3];
    target.element.tabIndex = 0;
    target.element.setAttribute("aria-selected", "true");
    find("said").textContent =
      `“${visible(token.text)}”, domain ${target.domain}: alpha ${share(token.alpha)}; ` +
      `target ${share(token.candidates[0][2])} on this true token, ${share(token.moved)} elsewhere` +
      (value === null ? "" : `; value ${signed(value)}, ${token.opposed ? "opposed" : "not opposed"} by the feedback`) +
      (token.steered ? "; among the most steered." : ".");
    // Bars are scaled to the longest of the candidate list: most targets have one large share and many small ones.
    const longest = Math.max(...token.candidates.flatMap(([, p, q]) => [p, q])) || 1;
    const lines = token.candidates.map(([text, p, q, a], number) => {
      const line = document.createElement("tr");
      const head = make("th", "", visible(text) + (number === 0 ? " (true)" : ""));
      head.scope = "row";
      line.append(head);
      for (const [kind, number] of [["vp-p", p], ["vp-q", q]]) {
        const cell = make("td", "vp-bar " + kind, share(number));
        cell.style.setProperty("--share", String(number / longest));
        line.append(cell);
      }
      line.append(make("td", "", signed(a)));
      return line;
    });
    const rest = document.createElement("tr");
    rest.append(make("th", "", "all others"), make("td", "", ""), make("td", "", share(token.rest)), make("td", "", ""));
    rest.firstChild.scope = "row";
    section.querySelector(".vp-panel tbody").replaceChildren(...lines, rest);
  }

  function move(event, target) {
    const among = shown();
    const at = among.indexOf(target);
    const next = {
      ArrowRight: () => among[at + 1],
      ArrowLeft: () => among[at - 1],
      ArrowDown: () => onLine(among.slice(at + 1), target, 1),
      ArrowUp: () => onLine(among.slice(0, Math.max(0, at)), target, -1),
      Home: () => among[0],
      End: () => among[among.length - 1],
    }[event.key];
    if (!next) return;
    event.preventDefault();
    next()?.element.focus();
  }

  // The nearest target on the next line that has any, above or below.
  function onLine(among, target, sign) {
    const box = (other) => other.element.getBoundingClientRect();
    const from = box(target);
    const below = among.filter((other) => sign * (box(other).top - from.top) > 2);
    if (!below.length) return undefined;
    const line = Math.min(...below.map((other) => sign * box(other).top));
    const far = (other) => Math.abs(box(other).left - from.left);
    return below
      .filter((other) => Math.abs(sign * box(other).top - line) <= 2)
      .reduce((best, other) => (far(other) < far(best) ? other : best));
  }

  function filter() {
    const which = find("which").value;
    const domain = find("domain").value;
    for (const row of rows) row.group.hidden = domain !== "" && row.domain !== domain;
    for (const target of targets) {
      target.off = (which !== "" && !target.token[which]) || (domain !== "" && target.domain !== domain);
      target.element.classList.toggle("vp-off", target.off);
      if (target.off) target.element.setAttribute("aria-hidden", "true");
      else target.element.removeAttribute("aria-hidden");
    }
    const left = shown();
    find("count").textContent = `${left.length} of ${targets.length} targets`;
    if (left.length && (!current || current.off)) show(left[0]);
  }

  find("which").addEventListener("change", filter);
  find("domain").addEventListener("change", filter);
  filter();
})();

// What a chart can do beyond being seen: the numbers under the pointer or the focus, curves on and off, a linear scale.
"use strict";
for (const card of document.querySelectorAll(".card")) {
  const svg = card.querySelector("svg");
  const axes = svg && svg.querySelector("[data-box]");
  if (axes) new Interactive(card, svg, axes).begin();
}

// As the page's own numbers: three digits, powers of ten where very small or large, a true minus.
function number(value) {
  if (value === 0) return "0";
  const size = Math.abs(value), [mantissa, exponent] = size.toExponential(2).split("e"), power = Number(exponent);
  const digits = [...String(power)].map(digit => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(digit)]).join("");
  const text = power >= -3 && power < 3 ? size.toFixed(2 - power)
    : power >= 3 && power < 6 ? Math.round(size).toLocaleString("en-US") : `${mantissa}×10${digits}`;
  return (value < 0 ? "−" : "") + text;
}

function scale(words) {
  const [name, low, high, width] = words.split(" ").map((word, place) => place ? Number(word) : word);
  const forward = { linear: v => v, log: Math.log, asinh: v => Math.asinh(v / width) }[name];
  const back = { linear: v => v, log: Math.exp, asinh: v => width * Math.sinh(v) }[name];
  const begin = forward(low), reach = forward(high) - begin;
  return { low, high, share: value => (forward(value) - begin) / reach, value: share => back(begin + share * reach) };
}

function Interactive(card, svg, axes) {
  const [left, top, right, bottom] = axes.dataset.box.split(" ").map(Number);
  const names = JSON.parse(axes.dataset.names), x = scale(axes.dataset.x), drawn = scale(axes.dataset.y);
  const linear = scale(`linear ${drawn.low} ${drawn.high}`);
  const series = [...axes.querySelectorAll("[data-points]")].map(group => ({
    name: group.dataset.name || "",
    points: group.dataset.points.split(" ").filter(Boolean).map(point => point.split(",").map(Number)),
  }));
  let y = drawn, hidden = new Set(), current = null;

  const place = ([a, b]) => [left + x.share(a) * (right - left), bottom - y.share(b) * (bottom - top)];
  const shown = () => series.filter(one => !hidden.has(one.name) && one.points.length);

  const tip = make(card, "div", "tip"), ring = svg.ownerDocument.createElementNS(svg.namespaceURI, "circle");
  tip.setAttribute("role", "status");
  tip.hidden = true;
  ring.setAttribute("r", 6);
  ring.setAttribute("class", "ring");

  this.begin = () => {
    card.classList.add("live");
    card.tabIndex = 0;
    card.setAttribute("role", "group");
    const title = svg.querySelector("title").textContent;
    card.setAttribute("aria-label", `${title}: arrow keys go from point to point, up and down from curve to curve`);
    card.addEventListener("pointermove", event => point(nearest(event)));
    card.addEventListener("pointerdown", event => point(nearest(event)));
    card.addEventListener("pointerleave", () => point(null));
    card.addEventListener("blur", () => point(null));
    card.addEventListener("keydown", step);
    const tools = make(card, "div", "tools");
    for (const name of new Set([...axes.querySelectorAll("[data-name]")].map(group => group.dataset.name)))
      legend(name);
    if (axes.dataset.linear) switcher(tools);
  };

  function make(parent, tag, kind, text = "") {
    const element = document.createElement(tag);
    element.className = kind;
    element.textContent = text;
    return parent.appendChild(element);
  }

  function nearest(event) {
    const frame = svg.getBoundingClientRect(), zoom = svg.viewBox.baseVal.width / frame.width;
    const [px, py] = [(event.clientX - frame.left) * zoom, (event.clientY - frame.top) * zoom];
    let best = null, least = 30;
    for (const one of shown()) one.points.forEach((pair, index) => {
      const [cx, cy] = place(pair), away = Math.hypot(cx - px, cy - py);
      if (away < least) [best, least] = [{ one, index }, away];
    });
    return best;
  }

  function point(target) {
    current = target;
    tip.hidden = !target;
    if (!target) return ring.remove();
    const pair = target.one.points[target.index], [cx, cy] = place(pair), box = svg.viewBox.baseVal;
    ring.setAttribute("cx", cx);
    ring.setAttribute("cy", cy);
    svg.append(ring);
    tip.replaceChildren();
    const same = shown().filter(one => one.name && one.points.some(other => other[0] === pair[0] && other[1] === pair[1]));
    const heads = [...new Set(same.map(one => one.name))].join(", ");
    if (heads) make(tip, "strong", "", heads);
    const whole = Number.isInteger(pair[0]) ? pair[0].toLocaleString("en-US") : number(pair[0]);
    if (names[1]) make(tip, "span", "", `${names[1]} ${number(pair[1])}`);
    make(tip, "span", "", `${names[0]} ${whole}`);
    const frame = svg.getBoundingClientRect(), outer = card.getBoundingClientRect(), zoom = frame.width / box.width;
    const across = frame.left - outer.left + cx * zoom, down = frame.top - outer.top + cy * zoom;
    const width = tip.offsetWidth, above = down - tip.offsetHeight - 12;
    tip.style.left = `${Math.max(2, Math.min(across - width / 2, outer.width - width - 2))}px`;
    tip.style.top = `${above < 0 ? down + 14 : above}px`;
  }

  function step(event) {
    if (event.target !== card) return;
    const among = shown();
    if (!among.length) return;
    const moves = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    if (event.key === "Escape") return point(null);
    if (!(event.key in moves)) return;
    event.preventDefault();
    if (!current) return point({ one: among[0], index: 0 });
    const [curve, along] = moves[event.key];
    const one = among[(among.indexOf(current.one) + curve + among.length) % among.length];
    point({ one, index: Math.max(0, Math.min(current.index + along, one.points.length - 1)) });
  }

  // The legend's own entries become switches: a button lies over each.
  function legend(name) {
    const text = [...axes.querySelectorAll("[data-legend] text")].find(entry => entry.textContent === name);
    if (!text) return;
    const parts = entry(text), button = make(card, "button", "entry");
    button.type = "button";
    button.setAttribute("aria-label", name);
    button.setAttribute("aria-pressed", "true");
    const lay = () => {
      const boxes = parts.map(part => part.getBoundingClientRect()).filter(box => box.width || box.height);
      const outer = card.getBoundingClientRect(), begin = Math.min(...boxes.map(box => box.left));
      const high = Math.min(...boxes.map(box => box.top)), end = Math.max(...boxes.map(box => box.right));
      const low = Math.max(...boxes.map(box => box.bottom));
      button.style.left = `${begin - outer.left - 2}px`;
      button.style.top = `${high - outer.top - 1}px`;
      button.style.width = `${end - begin + 4}px`;
      button.style.height = `${low - high + 2}px`;
    };
    new ResizeObserver(lay).observe(svg);
    button.addEventListener("click", () => {
      const gone = !hidden.delete(name);
      if (gone) hidden.add(name);
      button.setAttribute("aria-pressed", String(!gone));
      for (const part of parts) part.setAttribute("opacity", gone ? 0.3 : 1);
      for (const group of axes.querySelectorAll("[data-name]"))
        if (group.dataset.name === name) group.setAttribute("display", gone ? "none" : "inline");
      point(null);
    });
  }

  // A text and the handles before it, back to the text of the entry before.
  function entry(text) {
    const parts = [text.parentNode];
    for (let part = parts[0].previousElementSibling; part && !part.querySelector("text"); part = part.previousElementSibling)
      parts.push(part);
    return parts;
  }

  function switcher(tools) {
    const button = make(tools, "button", "scale", "linear scale"), ticks = [...axes.querySelectorAll("[data-tick]")];
    const kept = remember(), drawnTicks = JSON.parse(axes.dataset.linear).map(([value, name]) => tick(ticks[0], value, name));
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      const on = y === drawn;
      y = on ? linear : drawn;
      button.setAttribute("aria-pressed", String(on));
      for (const old of ticks) old.setAttribute("display", on ? "none" : "inline");
      for (const made of drawnTicks) on ? ticks[0].parentNode.append(made) : made.remove();
      for (const [element, name, text, offset] of kept) element.setAttribute(name, on ? moved(name, text, offset) : text);
      point(null);
    });
  }

  const along = height => bottom - linear.share(drawn.value((bottom - height) / (bottom - top))) * (bottom - top);

  // Every height that a scale decides: of lines, of what marks their points, and of areas, which lie off their place.
  function remember() {
    const kept = [];
    for (const group of axes.querySelectorAll("[data-drawn]")) {
      for (const path of group.querySelectorAll("path")) {
        const use = group.querySelector(`use[href="#${path.id}"]`), area = group.dataset.drawn === "area";
        if (!path.closest("defs")) kept.push([path, "d", path.getAttribute("d"), 0]);
        else if (area && use) kept.push([path, "d", path.getAttribute("d"), Number(use.getAttribute("y"))]);
      }
      if (group.dataset.drawn === "line")
        for (const use of group.querySelectorAll("use")) kept.push([use, "y", use.getAttribute("y"), 0]);
    }
    return kept;
  }

  function moved(name, text, offset) {
    if (name === "y") return along(Number(text)).toFixed(2);
    return text.replace(/([ML]) (\S+) (\S+)/g, (_, letter, a, b) => `${letter} ${a} ${(along(Number(b) + offset) - offset).toFixed(2)}`);
  }

  function tick(model, value, name) {
    const copy = model.cloneNode(true), line = model.querySelector("path");
    const from = Number(line.getAttribute("d").split(" ")[2]), to = bottom - linear.share(value) * (bottom - top);
    copy.setAttribute("transform", `translate(0 ${(to - from).toFixed(2)})`);
    copy.querySelector("text").textContent = name;
    return copy;
  }
}

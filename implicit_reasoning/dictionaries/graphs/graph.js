"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("graph-data").textContent);
  const { nodes, rows, graphs } = data;
  const [slider, flow, joined] = ["step", "shown", "joined"].map(byId);
  const mostEdges = 40, mostInCard = 8; // rows of tables
  // The card is of the node under the pointer, else of the last node with focus, else of the chosen one.
  const state = { chosen: null, pointed: null, entered: null, pins: [] };

  const svg = (name, attributes = {}, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const html = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const number = (x, digits = 2) => (x === null || x === undefined ? "–" : x.toFixed(digits).replace("-", "−"));
  const steps = (x) => x.toLocaleString("en-US");
  const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
  const inOrder = ["e1", "r1", "e2", "r2", "e3", "r3", "answer"];
  const kindOf = (variable) => (inOrder.includes(variable) ? variable : "variable");

  // Items are nodes and joined rows. The items of rows come after those of nodes.
  const rowItem = (row) => nodes.length + row;
  const items = [
    ...nodes.map((node) => ({ ...node, joins: false })),
    ...rows.map((row, index) => {
      const members = nodes.filter((node) => node.row === index);
      return {
        kind: "joined", layer: row.layer, pos: row.pos, row: index, y: row.y + row.height / 2,
        x: Math.min(...members.map((node) => node.x)) + 8, joins: true, short: row.text,
        name: `supernode ${row.text} of MLP ${row.layer} at ${data.positions[row.pos]}`,
      };
    }),
  ];

  // The graph at a checkpoint, with rows joined if asked: `there` maps items to what is known.
  const views = new Map();
  const view = (at) => {
    const key = `${at} ${joined.checked}`;
    if (!views.has(key)) views.set(key, makeView(graphs[at], joined.checked));
    return views.get(key);
  };
  const makeView = (graph, join) => {
    const itemOf = (node) => (join && nodes[node].row >= 0 && rows[nodes[node].row].joins ? rowItem(nodes[node].row) : node);
    const there = new Map();
    for (const known of graph.nodes) {
      const item = itemOf(known.node), before = there.get(item);
      if (!before) there.set(item, { ...known, members: [known] });
      else {
        before.influence += known.influence;
        before.members.push(known);
      }
    }
    const sums = new Map();
    for (const [source, target, weight, share, flow] of graph.edges) {
      const ends = [itemOf(source), itemOf(target)], key = ends.join(" ");
      const sum = sums.get(key) || { source: ends[0], target: ends[1], weight: 0, share: 0, flow: 0 };
      sum.weight += weight;
      sum.share += share;
      sum.flow += flow;
      sums.set(key, sum);
    }
    const edges = [...sums.values()].sort((a, b) => b.flow - a.flow);
    // The share of an edge into a joined row is the mean of the shares for its features.
    for (const edge of edges) edge.share /= (there.get(edge.target) || { members: [0] }).members.length;
    return { there, edges };
  };

  const now = () => Number(slider.value);
  const labelOf = (known) => (known.label ? `${known.label[0]} = ${known.label[1]}, F1 ${number(known.label[2])}` : "no label");
  const describe = (item, known) => {
    const parts = [items[item].name];
    if (items[item].kind === "joined") parts.push(plural(known.members.length, "feature"));
    if (items[item].kind === "feature") parts.push(labelOf(known), `activation ${number(known.activation)}`);
    if (items[item].kind === "logit") parts.push(`probability ${number(known.probability)}`);
    return [...parts, `influence ${number(known.influence, 3)}`].join(", ");
  };

  // Elements of nodes are made once, so that focus stays when the slider moves.
  const shapeOf = (item) => {
    if (item.kind === "feature") return svg("circle", { class: "shape", cx: item.x, cy: item.y, r: 6 });
    if (item.kind === "error") return svg("path", { class: "shape of-error", d: `M${item.x},${item.y - 6}l6,6l-6,6l-6,-6z` });
    if (item.kind === "joined") return svg("rect", { class: "shape", x: item.x - 17, y: item.y - 9, width: 34, height: 18, rx: 9 });
    return svg("rect", { class: "shape", x: item.x - 29, y: item.y - 17, width: 58, height: 34, rx: 6 });
  };
  const elements = items.map((item, index) => {
    const pill = item.kind === "logit" || item.kind === "embedding";
    const made = svg("g", { class: "node", role: "button", tabindex: -1, "data-item": index }, shapeOf(item));
    if (pill) made.append(svg("text", { x: item.x, y: item.y + (item.kind === "logit" ? -2 : 4) }, item.short));
    if (item.kind === "logit") made.append(svg("text", { class: "small", x: item.x, y: item.y + 12 }));
    if (item.kind === "joined") made.append(svg("text", { x: item.x, y: item.y + 4 }));
    made.append(svg("text", { class: "pin", x: item.x + (pill ? 27 : 8), y: item.y - (pill ? 13 : 5) }, "◆"));
    made.addEventListener("pointerenter", () => point(index));
    made.addEventListener("pointerleave", () => point(null));
    // The card stays when focus leaves the node, so that its buttons can be reached.
    made.addEventListener("focus", () => enter(index));
    made.addEventListener("click", () => choose(index));
    byId("nodes").append(made);
    return made;
  });
  const rowElements = rows.map((row) => {
    const y = row.y + 15, made = svg("g", { class: "row" });
    const key = row.text === "error" ? "of-error" : row.variable ? `of-${kindOf(row.variable)}` : "of-none";
    made.append(svg("circle", { class: `key ${key}`, cx: row.x + 14, cy: y - 4, r: 4.5 }));
    made.append(svg("text", { x: row.x + 24, y }, row.text));
    byId("rows").append(made);
    return made;
  });

  const lineOf = (edge) => {
    const a = items[edge.source], b = items[edge.target];
    const y0 = a.y - (a.kind === "embedding" ? 17 : 6), y1 = b.y + (b.kind === "logit" ? 17 : 6);
    const bend = Math.max((y0 - y1) * 0.45, 18);
    // Lines between nodes that are above each other go around the nodes between them.
    const aside = Math.abs(a.x - b.x) < 12 && b.kind !== "logit" ? 12 + 0.12 * (y0 - y1) : 0;
    const path = `M${a.x},${y0}C${a.x + aside},${y0 - bend} ${b.x + aside},${y1 + bend} ${b.x},${y1}`;
    return svg("path", { class: edge.weight < 0 ? "edge away" : "edge", d: path, "stroke-width": (0.8 + 9 * Math.min(edge.share, 1)).toFixed(2), "data-edge": `${edge.source} ${edge.target}` });
  };

  const current = () => state.pointed ?? state.entered ?? state.chosen;
  const visibleEdges = (seen) => {
    const whole = seen.edges.reduce((sum, edge) => sum + edge.flow, 0), limit = Number(flow.value) / 100;
    let before = 0;
    return seen.edges.filter((edge) => {
      const kept = before < limit * whole || limit === 1;
      before += edge.flow;
      return kept;
    });
  };

  const drawEdges = () => {
    const seen = view(now()), item = current(), near = new Set([item]);
    const shown = new Set(visibleEdges(seen));
    const lines = [];
    for (const edge of seen.edges) {
      const own = edge.source === item || edge.target === item;
      if (own) near.add(edge.source).add(edge.target);
      if (!own && !shown.has(edge)) continue;
      const line = lineOf(edge);
      line.classList.toggle("near", own);
      lines.push(line);
    }
    byId("edges").replaceChildren(...lines.reverse()); // the largest come last, on top
    const busy = item !== null && seen.there.has(item);
    byId("graph").classList.toggle("busy", busy);
    elements.forEach((element, index) => element.classList.toggle("near", near.has(index)));
    return shown.size;
  };

  const draw = () => {
    const at = now(), graph = graphs[at], seen = view(at);
    byId("step-text").textContent = `step ${steps(graph.step)}`;
    slider.setAttribute("aria-valuetext", `step ${graph.step}`);
    byId("shown-text").textContent = flow.value;
    for (const name of ["bridge_share", "replacement", "completeness", "answer"]) byId(`now-${name}`).textContent = number(graph[name]);
    const features = graph.nodes.filter((known) => nodes[known.node].kind === "feature");
    byId("now-active").textContent = `${features.length} of ${graph.active}`;
    elements.forEach((element, index) => drawNode(element, index, seen.there.get(index)));
    rowElements.forEach((element, index) => {
      const on = graph.nodes.some((known) => nodes[known.node].row === index && !unsure(known));
      element.setAttribute("class", `row${on ? " on" : ""}${rows[index].joins ? " joins" : ""}`);
    });
    [...byId("steps").rows].forEach((row, index) => row.classList.toggle("now", index === at));
    if (!elements.some((element) => element.tabIndex === 0 && !element.classList.contains("gone"))) {
      elements.forEach((element) => (element.tabIndex = -1));
      const first = [...seen.there.keys()].find((index) => items[index].kind === "embedding");
      if (first !== undefined) elements[first].tabIndex = 0;
    }
    const count = drawEdges();
    drawChart(at);
    drawTables(graph, seen);
    drawCards();
    const share = graph.bridge_share === null ? "" : `bridge share ${number(graph.bridge_share)}, `;
    byId("status").textContent =
      `Step ${steps(graph.step)}: ${share}replacement ${number(graph.replacement)}, completeness ${number(graph.completeness)}, ` +
      `${plural(features.length, "feature")}, ${plural(count, "edge")} shown.`;
  };

  // Whether a feature does not have the label of its row at this checkpoint.
  const unsure = (known) => {
    const row = rows[nodes[known.node].row];
    if (!row || row.text === "error" || row.text === "no label") return false;
    if (!known.label) return true;
    const own = data.truth[known.label[0]] === known.label[1];
    return row.variable ? !(own && known.label[0] === row.variable) : own;
  };

  const drawNode = (element, index, known) => {
    const item = items[index], pill = item.kind === "logit" || item.kind === "embedding";
    const classes = ["node", pill ? "pill" : item.kind];
    if (!known) classes.push("gone");
    if (state.chosen === index) classes.push("chosen");
    if (state.pins.includes(index)) classes.push("pinned");
    if (item.kind === "logit" && item.short === data.answer) classes.push("right");
    element.setAttribute("class", classes.join(" "));
    element.setAttribute("aria-pressed", state.chosen === index);
    element.setAttribute("aria-hidden", !known);
    if (!known) return;
    element.setAttribute("aria-label", describe(index, known));
    const shape = element.firstChild;
    if (item.kind === "feature") {
      const off = unsure(known), variable = rows[item.row].variable;
      shape.setAttribute("class", `shape ${off ? "unsure " : ""}of-${variable && !off ? kindOf(variable) : "none"}`);
      shape.setAttribute("r", (4 + 9 * Math.sqrt(Math.min(known.influence, 0.3))).toFixed(1));
    }
    if (item.kind === "joined") {
      const off = known.members.every(unsure);
      shape.setAttribute("class", `shape ${off ? "unsure of-none" : `of-${kindOf(rows[item.row].variable)}`}`);
      element.querySelector("text").textContent = `×${known.members.length}`;
    }
    if (item.kind === "logit") element.querySelector(".small").textContent = `${(100 * known.probability).toFixed(known.probability < 0.1 ? 1 : 0)}%`;
  };

  const drawChart = (at) => {
    const chart = byId("chart"), left = 24, right = 268, top = 10, bottom = 92;
    const x = (index) => left + (graphs.length < 2 ? 0 : (index * (right - left)) / (graphs.length - 1));
    const y = (value) => bottom - value * (bottom - top);
    const parts = [];
    for (const level of [0, 0.5, 1]) {
      parts.push(svg("line", { class: "grid", x1: left, x2: right, y1: y(level), y2: y(level) }));
      parts.push(svg("text", { x: left - 6, y: y(level) + 4, "text-anchor": "end" }, String(level)));
    }
    parts.push(svg("line", { class: "now", x1: x(at), x2: x(at), y1: top - 6, y2: bottom + 2 }));
    parts.push(svg("text", { x: x(at), y: bottom + 15, "text-anchor": "middle" }, `step ${steps(graphs[at].step)}`));
    const names = { bridge_share: "bridge share", null_share: "null", answer: "p(answer)", replacement: "replacement", completeness: "completeness" };
    const ends = [];
    for (const [name, text] of Object.entries(names)) {
      const points = graphs.map((graph, index) => [index, graph[name]]).filter((point) => point[1] !== null);
      if (!points.length) continue;
      parts.push(svg("polyline", { class: name, points: points.map(([index, value]) => `${x(index)},${y(value)}`).join(" ") }));
      points.forEach(([index, value]) => parts.push(svg("circle", { class: `dot-${name}`, cx: x(index), cy: y(value), r: 2.4 })));
      ends.push([y(points.at(-1)[1]), text, name, x(points.at(-1)[0])]);
    }
    // Labels are at least 13 pixels apart: downwards first, then back up from the bottom.
    ends.sort((a, b) => a[0] - b[0]);
    const places = ends.map((end) => end[0]);
    for (let i = 1; i < places.length; i++) places[i] = Math.max(places[i], places[i - 1] + 13);
    let limit = bottom + 4;
    for (let i = places.length - 1; i >= 0; i--) limit = (places[i] = Math.min(places[i], limit)) - 13;
    ends.forEach(([end, text, name, from], index) => {
      parts.push(svg("polyline", { class: name, "stroke-opacity": 0.55, points: `${from + 5},${end} ${right + 24},${places[index]}` }));
      parts.push(svg("text", { x: right + 30, y: places[index] + 4 }, text));
    });
    chart.replaceChildren(...parts);
  };

  const cell = (row, text, left) => {
    const td = row.insertCell();
    td.append(text);
    if (left) td.className = "left";
  };
  const drawTables = (graph, seen) => {
    byId("nodes-caption").textContent = `Nodes at step ${steps(graph.step)}, by influence`;
    const body = byId("node-rows");
    body.replaceChildren();
    for (const [item, known] of [...seen.there].sort((a, b) => b[1].influence - a[1].influence)) {
      const row = body.insertRow(), kind = items[item].kind;
      cell(row, items[item].name, true);
      cell(row, kind === "joined" ? plural(known.members.length, "feature") : kind === "feature" ? labelOf(known) : "", true);
      cell(row, kind === "feature" ? number(known.activation) : kind === "logit" ? number(known.probability) : "");
      cell(row, number(known.influence, 3));
    }
    const edges = byId("edge-rows"), count = Math.min(mostEdges, seen.edges.length);
    byId("edges-caption").textContent = `The ${count} edges with the largest flow at step ${steps(graph.step)}, of ${seen.edges.length}`;
    edges.replaceChildren();
    for (const edge of seen.edges.slice(0, mostEdges)) {
      const row = edges.insertRow();
      cell(row, items[edge.source].name, true);
      cell(row, items[edge.target].name, true);
      cell(row, number(edge.weight));
      cell(row, number(edge.share));
      cell(row, number(edge.flow, 3));
    }
  };

  const history = (item) => {
    const values = graphs.map((_, at) => (view(at).there.get(item) || {}).influence || 0);
    const wide = 280 / values.length, most = Math.max(...values, 1e-9);
    const said = values.map((value, at) => `step ${graphs[at].step}: ${number(value, 3)}`).join("; ");
    const chart = svg("svg", { class: "history", viewBox: "0 0 280 56", role: "img", "aria-label": `Influence by checkpoint. ${said}` });
    values.forEach((value, at) => {
      const high = 38 * (value / most);
      chart.append(svg("rect", { x: at * wide + 2, y: 42 - high, width: wide - 4, height: high + 0.8, class: at === now() ? "now" : "" }));
      if (at === now() || at === 0 || at === values.length - 1) chart.append(svg("text", { x: (at + 0.5) * wide, y: 53 }, steps(graphs[at].step)));
    });
    return html("div", {}, html("p", { class: "note" }, "Influence by checkpoint; 0 where it is not in the graph"), chart);
  };

  const edgeTable = (title, edges, end) => {
    const table = html("table", {}, html("caption", {}, title)), body = table.createTBody();
    for (const edge of edges.slice(0, mostInCard)) {
      const row = body.insertRow(), go = html("button", { type: "button" }, items[edge[end]].name);
      go.addEventListener("click", () => { choose(edge[end], true); });
      row.insertCell().append(go);
      const td = row.insertCell();
      td.className = edge.weight < 0 ? "minus" : "plus";
      td.textContent = `${edge.weight < 0 ? "" : "+"}${number(edge.weight)} (${Math.round(100 * edge.share)}%)`;
    }
    return table;
  };

  const makeCard = (item, pinned) => {
    const about = items[item], seen = view(now()), known = seen.there.get(item);
    const said = pinned ? "Unpin" : "Pin";
    const pin = html("button", { type: "button", "aria-label": `${said} ${about.name}`, "data-pin": item }, said);
    pin.addEventListener("click", () => {
      togglePin(item);
      // The button has been made again, or its card is gone.
      (document.querySelector(`.side [data-pin="${item}"]`) || document.querySelector(".side [data-pin]"))?.focus();
    });
    const card = html("article", { class: pinned ? "card pinned" : "card" }, html("header", {}, html("h3", {}, about.name), pin));
    if (!known) {
      card.append(html("p", { class: "note" }, `Not in the graph at step ${steps(graphs[now()].step)}.`), history(item));
      return card;
    }
    const say = (...parts) => card.append(html("p", {}, ...parts));
    if (about.kind === "feature") {
      const own = known.label && data.truth[known.label[0]] === known.label[1];
      const swatch = html("span", { class: "swatch", style: `background: var(--${own ? kindOf(known.label[0]) : "plain"})` });
      say(swatch, known.label ? `stands for ${known.label[0]} = ${known.label[1]} (F1 ${number(known.label[2])})` : "stands for no value of a variable");
      say(`Activation ${number(known.activation)}. `, `Influence ${number(known.influence, 3)}.`);
      if (known.tokens.length) say(`Its de-embedding, the tokens whose embeddings activate it most directly: ${known.tokens.join(", ")}`);
    } else if (about.kind === "joined") {
      say(known.members.map((one) => `feature ${nodes[one.node].number} (${number(one.activation)})`).join(", "));
      say(`Influence ${number(known.influence, 3)}.`);
    } else say(about.kind === "logit" ? `Probability ${number(known.probability)}.` : `Influence ${number(known.influence, 3)}.`);
    card.append(history(item));
    const bySize = (end) => seen.edges.filter((edge) => edge[end] === item).sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
    const incoming = bySize("target"), outgoing = bySize("source");
    if (incoming.length) card.append(edgeTable("Strongest incoming edges: weight (share of its input)", incoming, "source"));
    if (outgoing.length) card.append(edgeTable("Strongest outgoing edges: weight (share of the target’s input)", outgoing, "target"));
    return card;
  };
  const drawCards = () => {
    const item = current();
    if (item !== null) byId("card").replaceChildren(makeCard(item, state.pins.includes(item)));
    else byId("card").replaceChildren(html("p", { class: "note" }, "Point to a node, or choose one."));
    byId("pins-title").hidden = !state.pins.length;
    byId("pins").replaceChildren(...state.pins.filter((pin) => pin !== item).map((pin) => makeCard(pin, true)));
  };

  const point = (item) => {
    state.pointed = item;
    drawEdges();
    drawCards();
  };
  const enter = (item) => {
    state.entered = item;
    makeCurrent(item);
    drawEdges();
    drawCards();
  };
  const choose = (item, follow) => {
    state.chosen = state.chosen === item && !follow ? null : item;
    state.entered = state.chosen;
    if (state.chosen !== null) makeCurrent(item);
    draw();
    if (follow && !elements[item].classList.contains("gone")) elements[item].focus();
  };
  const togglePin = (item) => {
    const kept = state.pins.filter((pin) => pin !== item);
    state.pins = kept.length < state.pins.length ? kept : [...kept, item];
    draw();
  };
  const makeCurrent = (item) => elements.forEach((element, index) => (element.tabIndex = index === item ? 0 : -1));

  // The next node in a direction: near in that direction, and not far to the side.
  const next = (from, dx, dy) => {
    let best = null, least = Infinity;
    for (const index of view(now()).there.keys()) {
      const ahead = (items[index].x - from.x) * dx + (items[index].y - from.y) * dy;
      const aside = Math.abs((items[index].x - from.x) * dy) + Math.abs((items[index].y - from.y) * dx);
      const cost = ahead + 3 * aside;
      if (ahead > 1 && cost < least) [best, least] = [index, cost];
    }
    return best;
  };
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  byId("graph").addEventListener("keydown", (event) => {
    const own = event.target.closest(".node");
    if (!own || event.ctrlKey || event.altKey || event.metaKey) return;
    const item = Number(own.dataset.item);
    if (arrows[event.key]) {
      const to = next(items[item], ...arrows[event.key]);
      if (to !== null) elements[to].focus();
    } else if (event.key === "Enter" || event.key === " ") choose(item);
    else if (event.key === "p" || event.key === "P") togglePin(item);
    else if (event.key === "Escape") {
      state.chosen = state.entered = null;
      draw();
    } else return;
    event.preventDefault();
  });

  let timer = null;
  const play = byId("play");
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
    play.setAttribute("aria-pressed", "false");
  };
  play.addEventListener("click", () => {
    if (timer !== null) return stop();
    play.textContent = "Stop";
    play.setAttribute("aria-pressed", "true");
    if (now() === graphs.length - 1) slider.value = 0;
    else slider.value = now() + 1;
    draw();
    timer = setInterval(() => {
      if (now() === graphs.length - 1) return stop();
      slider.value = now() + 1;
      draw();
    }, 1200);
  });
  slider.addEventListener("input", () => {
    if (timer !== null) stop();
    draw();
  });
  flow.addEventListener("input", draw);
  joined.addEventListener("change", () => {
    state.pointed = state.entered = state.chosen = null;
    draw();
  });
  draw();
})();

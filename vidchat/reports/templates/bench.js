const data = JSON.parse(document.getElementById("data").textContent);
const builtIn = ["truth", "shuffled truth", "frozen reference"];
const choose = document.getElementById("system"), find = document.getElementById("find");
const table = document.getElementById("every"), watch = document.getElementById("watch");
let sortBy = null, backwards = false, open = null;

const make = (tag, text, attributes = {}) => {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};
for (const name of data.systems) choose.append(make("option", name));
choose.value = data.systems.find(name => !builtIn.includes(name)) || data.systems[0];

const scoreOf = pair => pair.systems[choose.value];
const shown = () => {
  const words = find.value.toLowerCase();
  const matches = data.pairs.filter(pair => scoreOf(pair) &&
    (pair.id + " " + pair.question + " " + pair.answer).toLowerCase().includes(words));
  if (sortBy === null) return matches;
  if (sortBy.text) return ranked(matches, sortBy.text, backwards);
  return ranked(matches, pair => costOf(sortBy.better, scoreOf(pair).values[sortBy.name]), backwards);
};
const texts = [{ name: "pair", text: pair => pair.id }, { name: "clip", text: pair => scoreOf(pair).statuses.join() }];

function headOf(column) {
  const sorted = sortBy !== null && sortBy.name === column.name;
  const turn = direction(column.better, backwards);
  const cell = make("th", null, { scope: "col", "aria-sort": sorted ? turn : "none" });
  const button = make("button", column.name + (sorted ? (turn === "descending" ? " ▼" : " ▲") : ""), { type: "button" });
  button.onclick = () => {
    backwards = sorted && !backwards;
    sortBy = column;
    draw();
    [...table.tHead.querySelectorAll("button")].find(other => other.dataset.name === column.name).focus();
  };
  button.dataset.name = column.name;
  cell.append(button);
  return cell;
}

function draw() {
  const rows = shown();
  if (open === null && rows.length) open = rows[0];
  const columns = data.columns.filter(column => data.pairs.some(pair => scoreOf(pair) && column.name in scoreOf(pair).values));
  const head = make("tr");
  head.append(...[...texts, ...columns].map(headOf));
  table.tHead.replaceChildren(head);
  table.tBodies[0].replaceChildren(...rows.map(pair => {
    const score = scoreOf(pair), row = make("tr");
    const good = score.statuses.join() === "good";
    const name = make("th", null, { scope: "row" });
    name.append(make("button", pair.id, { type: "button", "aria-pressed": open === pair }));
    row.append(name, make("td", score.statuses.join(", "), good ? {} : { class: "bad", title: score.note }));
    for (const column of columns) {
      const value = score.values[column.name];
      row.append(make("td", value === undefined || value === null ? "" : value.toFixed(column.digits)));
    }
    if (open === pair) row.className = "on";
    row.onclick = () => {
      open = pair;
      draw();
      table.querySelector("button[aria-pressed=true]").focus({ preventScroll: true });
    };
    return row;
  }));
  play();
}

function player(name, source, note) {
  const box = make("div", null, { class: "player" });
  if (source) {
    const end = source.end ? "," + source.end : "";
    const video = make("video", null, { controls: "", preload: "metadata", playsinline: "",
      src: source.src + (source.start || source.end ? "#t=" + source.start + end : "") });
    video.onerror = () => { box.querySelector("button")?.remove(); video.replaceWith(make("div", "this file is missing or cannot be played", { class: "gone" })); };
    box.append(video);
  } else box.append(make("div", note || "no clip", { class: "gone" }));
  box.append(make("b", name));
  if (note && source) box.append(make("span", note));
  return box;
}

function play() {
  if (open === null) return watch.replaceChildren();
  const players = make("div", null, { class: "players" });
  players.append(player("initiator", open.initiator, open.question && "“" + open.question + "”"));
  const picture = make("div", null, { class: "player" });
  picture.append(make("img", null, { src: open.reference.src, alt: "reference" }), make("b", "reference"));
  players.append(picture);
  for (const name of data.systems) {
    const score = open.systems[name];
    if (!score || name === "frozen reference") continue;
    const note = name === "truth" ? open.answer && "“" + open.answer + "”" : score.note;
    const box = player(name, score.clip, note);
    if (score.clip) {
      const both = make("button", "play question, then this");
      both.onclick = () => {
        const [first, second] = [players.querySelector("video"), box.querySelector("video")];
        for (const video of players.querySelectorAll("video")) { video.pause(); video.onended = video.ontimeupdate = null; }
        const next = () => {
          first.onended = first.ontimeupdate = null;
          first.pause();
          second.currentTime = score.clip.start;
          second.play();
        };
        // A media fragment pauses the player at its end without an `ended` event.
        first.ontimeupdate = () => { if (open.initiator.end && first.currentTime >= open.initiator.end - 0.05) next(); };
        first.onended = next;
        first.currentTime = open.initiator.start;
        first.play();
      };
      box.append(both);
    }
    players.append(box);
  }
  watch.replaceChildren(make("h3", open.id), players);
  if (open.candidates.length) {
    const list = make("ol");
    for (const reply of open.candidates) list.append(make("li", reply.worth.toFixed(1) + "  " + reply.text));
    watch.append(make("p", "Candidate replies and their worths:", { class: "note" }), list);
  }
}

choose.onchange = find.oninput = draw;
draw();

"use strict";
// Text of rows goes into the page by `textContent` alone: what a row holds is never markup.
const PAGE_ROWS = 20;
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const chunks = Array.from(document.querySelectorAll("script.texts"));
const read = new Map();
const storeName = "saft-review:" + document.body.dataset.key;
const view = { table: 0, page: 0, rows: [] };
let marks = { ...data.marks };

function element(tag, options, ...children) {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...children);
  return made;
}

function texts(position) {
  const number = Math.floor(position / data.chunk);
  if (!read.has(number)) read.set(number, JSON.parse(chunks[number].textContent));
  return read.get(number)[position % data.chunk];
}

// -- marks ---------------------------------------------------------------------------------------------------------

function loadMarks() {
  try {
    marks = { ...marks, ...JSON.parse(localStorage.getItem(storeName) || "{}") };
  } catch (error) {
    $("marked").title = String(error); // a browser without storage keeps them until the page is closed
  }
}

function setMark(position, word) {
  marks[position] = marks[position] === word ? null : word;
  keepMarks();
}

function keepMarks() {
  try {
    localStorage.setItem(storeName, JSON.stringify(marks));
  } catch (error) {
    $("marked").title = String(error);
  }
  showMarked();
}

function showMarked() {
  const count = Object.values(marks).filter(Boolean).length;
  $("marked").textContent = count === 1 ? "1 row is marked." : count + " rows are marked.";
  $("save").disabled = $("clear").disabled = count === 0;
}

// Of the rows drawn at random, those up to the last marked one go into the file, with a mark or not: a certificate
// counts who was passed over.
function exported() {
  const drawn = (row) => row.order !== null;
  const last = Math.max(-1, ...data.rows.filter((row, at) => marks[at] && drawn(row)).map((row) => row.order));
  return data.rows
    .map((row, at) => ({ row, mark: marks[at] || null }))
    .filter(({ row, mark }) => mark || (drawn(row) && row.order <= last))
    .map(({ row, mark }) =>
      JSON.stringify({ saft_row: row.row, saft_sha256: row.sha256, saft_purpose: row.purpose, saft_mark: mark }) + "\n")
    .join("");
}

function saveMarks() {
  const url = URL.createObjectURL(new Blob([exported()], { type: "application/jsonl" }));
  element("a", { href: url, download: "marks.jsonl" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// -- rows ----------------------------------------------------------------------------------------------------------

function chosen() {
  const needle = $("needle").value.toLowerCase();
  const column = $("column").value;
  const decision = $("decision").value;
  const holds = ([name, , text]) => (column === "" || name === column) && text.toLowerCase().includes(needle);
  return data.tables[view.table].rows.filter((at) =>
    (decision === "" || data.rows[at].decision === decision) && (needle === "" || texts(at).some(holds)));
}

function rowElement(at) {
  const row = data.rows[at];
  const mark = element("span", { className: "mark", textContent: marks[at] || "" });
  const why = row.label && row.reason !== "label" ? row.reason + ", labelled " + row.label : row.reason;
  const opened = element("details", {},
    element("summary", {},
      element("span", { textContent: "#" + row.row }),
      element("span", { textContent: row.score || "no score" }),
      element("span", { className: "distance", textContent: row.distance }),
      element("span", { className: row.decision, textContent: row.decision + " (" + why + ")" }),
      mark));
  opened.addEventListener("toggle", () => {
    if (opened.open && opened.children.length === 1) opened.append(textElement(at, mark));
  });
  return opened;
}

function textElement(at, mark) {
  const buttons = element("div", { className: "buttons" }, ...data.words.map((word) => {
    const button = element("button", { type: "button", textContent: word });
    button.addEventListener("click", () => { setMark(at, word); show(); });
    return button;
  }));
  function show() {
    mark.textContent = marks[at] || "";
    for (const button of buttons.children) button.setAttribute("aria-pressed", button.textContent === marks[at]);
  }
  show();
  const parts = texts(at).flatMap(([column, heading, text]) => [
    element("h4", { textContent: column === heading ? column : column + ": " + heading }),
    element("p", { textContent: text }),
  ]);
  return element("div", { className: "text" }, ...parts, buttons);
}

function showTable() {
  view.rows = chosen();
  view.page = 0;
  const table = data.tables[view.table];
  $("about").textContent = table.about;
  Array.from($("tables").children).forEach((button, at) => button.setAttribute("aria-pressed", at === view.table));
  showPage();
}

function showPage() {
  const first = view.page * PAGE_ROWS;
  const rows = view.rows.slice(first, first + PAGE_ROWS);
  $("rows").replaceChildren(...rows.map(rowElement));
  $("where").textContent = rows.length
    ? first + 1 + " to " + (first + rows.length) + " of " + view.rows.length
    : "No row of this table is like that.";
  $("back").disabled = first === 0;
  $("next").disabled = first + PAGE_ROWS >= view.rows.length;
}

function turn(pages) {
  view.page += pages;
  showPage();
}

function showValues() {
  const column = $("column").value;
  const values = new Set();
  if (column !== "" && data.rows.length <= 2000) {
    for (let at = 0; at < data.rows.length && values.size <= 30; at++) {
      for (const [name, , text] of texts(at)) if (name === column && text.length <= 40) values.add(text);
    }
  }
  $("values").replaceChildren(...(values.size <= 30 ? [...values].sort().map((value) => element("option", { value })) : []));
}

// -- slider --------------------------------------------------------------------------------------------------------

function showPoint() {
  const point = data.points[Number($("slider").value)];
  for (const name of ["threshold", "removed", "lost", "recall", "labels", "bound"]) $("at-" + name).textContent = point[name];
  for (const end of ["x1", "x2"]) $("cut").setAttribute(end, point.x);
}

// -- start ---------------------------------------------------------------------------------------------------------

loadMarks();
showMarked();
$("tables").replaceChildren(...data.tables.map((table, at) => {
  const button = element("button", { type: "button", textContent: table.name + " (" + table.rows.length + ")" });
  button.addEventListener("click", () => { view.table = at; showTable(); });
  return button;
}));
$("column").replaceChildren(element("option", { value: "", textContent: "any" }),
  ...data.columns.map((column) => element("option", { value: column, textContent: column, selected: column === data.by })));
$("column").addEventListener("change", () => { showValues(); showTable(); });
$("needle").addEventListener("input", showTable);
$("decision").addEventListener("change", showTable);
$("filter").addEventListener("submit", (event) => event.preventDefault());
$("back").addEventListener("click", () => turn(-1));
$("next").addEventListener("click", () => turn(1));
$("save").addEventListener("click", saveMarks);
$("clear").addEventListener("click", () => {
  marks = Object.fromEntries(Object.keys(marks).map((at) => [at, null])); // those of a file that was given too
  keepMarks();
  showPage();
});
showValues();
showTable();
if (data.points.length) {
  $("slider").addEventListener("input", showPoint);
  showPoint();
}

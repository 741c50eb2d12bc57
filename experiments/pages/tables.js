"use strict";
// Elements and tables of the report.

function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, v] of Object.entries(attributes)) {
    element.setAttribute(name, v);
  }
  return element;
}

function headRow(names) {
  const row = document.createElement("tr");
  row.append(...names.map((name) => make("th", name, { scope: "col" })));
  return row;
}

// Each cell but the first, which names the row, has the name of its column: the
// style shows it on narrow screens.
function bodyRow(cells, columns) {
  const row = document.createElement("tr");
  cells.forEach((cell, k) => row.append(k
    ? make("td", cell, { "data-column": columns[k] })
    : make("th", cell, { scope: "row" })));
  return row;
}

function fillTable(id, table) {
  const [head, body] = $(id).children;
  head.replaceChildren(headRow(table.head));
  body.replaceChildren(...table.rows.map((row) => bodyRow(row, table.head)));
}

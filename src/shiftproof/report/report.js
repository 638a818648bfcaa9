"use strict";

// Tables sort by a click on the head of a column: ascending, then descending. Without a value comes last.
const NO_VALUE = ["", "–", "missing", "failed", "undefined"];

function textAt(row, column) {
  for (const cell of row.cells) {
    if (column < cell.colSpan) return cell.colSpan > 1 ? "" : cell.textContent.trim(); // a wide one stands for many
    column -= cell.colSpan;
  }
  return "";
}

function sortRows(body, column, sign) {
  const rows = Array.from(body.rows, (row) => {
    const text = textAt(row, column);
    return { row, text, number: parseFloat(text.replace("−", "-").replace("<", "")), none: NO_VALUE.includes(text) };
  });
  const numeric = rows.every((one) => one.none || !isNaN(one.number));
  const { compare } = new Intl.Collator("en", { numeric: true });
  rows.sort((a, b) => {
    if (a.none || b.none) return a.none - b.none;
    return sign * (numeric ? a.number - b.number : compare(a.text, b.text));
  });
  body.replaceChildren(...rows.map((one) => one.row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = Array.from(table.tHead.rows).at(-1).cells;
  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const ascending = head.ariaSort !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.ariaSort = ascending ? "ascending" : "descending";
      sortRows(table.tBodies[0], head.cellIndex, ascending ? 1 : -1);
    });
  }
}
document.getElementById("sorting").hidden = false;

// A link opens what its target is folded into: a data set, a list of runs.
function openTarget() {
  let opened = false;
  for (let one = document.getElementById(location.hash.slice(1)); one; one = one.parentElement) {
    if (one.tagName === "DETAILS" && !one.open) opened = one.open = true;
  }
  if (opened) location.replace(location.hash);
}
addEventListener("hashchange", openTarget);
openTarget();

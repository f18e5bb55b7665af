"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].textContent.trim();
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [parseFloat(key(a)), parseFloat(key(b))];
        return Number.isNaN(x) || Number.isNaN(y) ? key(a).localeCompare(key(b)) : x - y;
      });
      if (down) rows.reverse();
      body.append(...rows);
    });
  });
}
for (const filters of document.querySelectorAll(".filters")) {
  const rows = [...filters.parentElement.querySelectorAll("table.samples tbody tr")];
  const fields = [...filters.querySelectorAll("input, select")];
  const fits = (row) => (field) => {
    const { value, dataset } = field;
    if (dataset.column) return !value || row.cells[dataset.column].textContent.trim() === value;
    return row.textContent.toLowerCase().includes(value.toLowerCase());
  };
  const apply = () => {
    for (const row of rows) row.hidden = !fields.every(fits(row));
    const shown = rows.filter((row) => !row.hidden).length;
    filters.querySelector("output").textContent = `${shown} of ${rows.length} rows`;
  };
  for (const field of fields) field.addEventListener("input", apply);
  apply();
}

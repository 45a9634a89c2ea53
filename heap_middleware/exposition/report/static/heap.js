// The heap by type, and its growth since a moment.
import { treemap } from "./charts.js";
import { hold } from "./route.js";
import { ask, bytes, count, element } from "./tools.js";

const table = document.getElementById("heap");
const filter = document.getElementById("filter");
const marked = document.getElementById("marked");
let now = null;
let then = null;
let order = { by: "grown", down: true };

export async function refresh() {
  now = await ask("heap");
  if (then === null) mark("this page was opened");
  show();
  const largest = now.types.filter((row) => row.bytes > 0).slice(0, 40);
  treemap(document.getElementById("heap-chart"), largest);
}

function mark(when) {
  then = { when, objects: new Map(now.types.map((row) => [row.module, row.objects])) };
}

function rows() {
  const wanted = filter.value.toLowerCase();
  const known = now.types.filter((row) => row.module.toLowerCase().includes(wanted));
  const grown = known.map((row) => ({ ...row, grown: row.objects - (then.objects.get(row.module) ?? 0) }));
  const compare = order.by === "module" ? (a, b) => a.module.localeCompare(b.module) : (a, b) => a[order.by] - b[order.by];
  return grown.sort((a, b) => (order.down ? -1 : 1) * compare(a, b) || b.bytes - a.bytes);
}

function show() {
  marked.textContent = `${count(now.objects)} objects, ${bytes(now.bytes)}. Growth is since ${then.when}.`;
  table.tBodies[0].replaceChildren(...rows().slice(0, 200).map(line));
  for (const button of table.tHead.querySelectorAll("button")) {
    const sort = order.by !== button.dataset.by ? "none" : order.down ? "descending" : "ascending";
    button.closest("th").setAttribute("aria-sort", sort);
  }
}

function line(row) {
  const sign = row.grown > 0.5 ? "+" : "";
  const button = element("button", { type: "button", className: "small", "aria-label": `Who holds ${row.module}` }, "Holders");
  button.addEventListener("click", () => hold(row.module));
  return element(
    "tr",
    {},
    element("td", { className: "code" }, row.module),
    element("td", { className: "number" }, count(row.objects)),
    element("td", { className: `number ${row.grown > 0.5 ? "grown" : ""}` }, Math.abs(row.grown) < 0.5 ? "0" : sign + count(row.grown)),
    element("td", { className: "number" }, bytes(row.bytes)),
    element("td", {}, row.module.startsWith("__") ? "" : button),
  );
}

document.getElementById("mark").addEventListener("click", async () => {
  now = await ask("heap");
  mark(`the mark of ${new Date().toLocaleTimeString()}`);
  show();
});
filter.addEventListener("input", show);
for (const button of table.tHead.querySelectorAll("button")) {
  button.addEventListener("click", () => {
    order = { by: button.dataset.by, down: order.by === button.dataset.by ? !order.down : button.dataset.by !== "module" };
    show();
  });
}

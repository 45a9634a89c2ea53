// One route in full, and who holds what it retains.
import { lines, tree } from "./charts.js";
import { ask, bytes, count, element } from "./tools.js";

const place = (id) => document.getElementById(id);
let opened = null;
let search = null;

export function isOpen(row) {
  return opened !== null && opened.method === row.method && opened.route === row.route;
}

export async function open(row, { focus = false } = {}) {
  opened = { method: row.method, route: row.route };
  const found = await ask("route", opened);
  if (!isOpen(found)) return; // another one was opened meanwhile
  place("route").hidden = false;
  place("route-title").textContent = `${found.method} ${found.route}`;
  place("verdict").textContent = found.verdict ? found.verdict.words : "Nothing says that this route leaks.";
  place("verdict").classList.toggle("bad", found.verdict !== null);
  const { times, objects } = found.history;
  lines(place("route-chart"), [{ name: "retained objects", times, values: objects, area: true }]);
  const history = found.types_history;
  const shown = Object.entries(history.types)
    .sort(([, a], [, b]) => b.at(-1) - a.at(-1))
    .slice(0, 6);
  lines(place("types-chart"), shown.map(([name, values]) => ({ name, times: history.times, values })));
  showTypes(found);
  showSites(found);
  if (focus) {
    place("route").focus({ preventScroll: true });
    place("route").scrollIntoView({ block: "start", behavior: "instant" });
  }
}

export async function refresh() {
  if (opened !== null) await open(opened);
}

function showTypes(found) {
  const rows = found.types.map(({ module, objects }) => {
    const button = element("button", { type: "button", className: "small", "aria-label": `Who holds ${module}` }, "Who holds it?");
    button.addEventListener("click", () => hold(module));
    const searched = module.startsWith("(") || module.startsWith("__") ? "" : button;
    return element("tr", {}, element("td", { className: "code" }, module), element("td", { className: "number" }, count(objects)), element("td", {}, searched));
  });
  place("types").tBodies[0].replaceChildren(...(rows.length ? rows : [nothing(3, "Known with the accelerator only.")]));
}

function showSites(found) {
  const rows = found.sites.map((site) => {
    const where = element("td", { className: "code" }, site.where);
    if (site.innermost !== site.where) where.append(element("div", { className: "quiet" }, `in ${site.innermost}`));
    return element("tr", {}, where, element("td", { className: "number" }, count(site.objects)), element("td", { className: "number" }, bytes(site.bytes)));
  });
  place("sites").tBodies[0].replaceChildren(...(rows.length ? rows : [nothing(3, "Known with the accelerator only.")]));
}

function nothing(columns, text) {
  return element("tr", {}, element("td", { colSpan: columns, className: "quiet" }, text));
}

// A search is one answer that goes on: each line of it is news. To leave it is to cancel it.
export async function hold(module) {
  stop();
  const mine = (search = new AbortController());
  place("holders").hidden = false;
  place("cancel").hidden = false;
  place("holders-title").textContent = `Who holds ${module}`;
  place("progress").textContent = "Searching…";
  place("paths").replaceChildren();
  place("tree").hidden = true;
  place("holders").focus({ preventScroll: true });
  place("holders").scrollIntoView({ block: "start", behavior: "instant" });
  try {
    const answer = await fetch(`api/v1/holders?${new URLSearchParams({ module })}`, { signal: mine.signal });
    if (!answer.ok) throw new Error((await answer.json()).error);
    for await (const line of linesOf(answer.body)) {
      if (search === mine) tell(line);
    }
  } catch (error) {
    if (search === mine) place("progress").textContent = mine.signal.aborted ? "Cancelled." : `No answer: ${error.message}`;
  } finally {
    if (search === mine) place("cancel").hidden = true;
  }
}

async function* linesOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

function tell(line) {
  if (line.error) {
    place("progress").textContent = `No answer: ${line.error}`;
  } else if (line.progress) {
    place("progress").textContent = `Searching… level ${line.progress.level}, ${count(line.progress.items)} objects met`;
  } else {
    showTree(line.tree);
  }
}

const CUTS = {
  depth: "The walk ended at its depth; dashed nodes may be held further up.",
  items: "There were more objects than may be walked; the numbers are too low.",
  time: "The walk took too long and was given up.",
  failed: "The walk failed, see the log.",
  cancelled: "Cancelled.",
};

function showTree(found) {
  const where = `process ${found.pid}, ${found.seconds.toFixed(2)} s, the application stood still for ${(found.pause * 1000).toFixed(1)} ms`;
  const cut = found.cut ? ` ${CUTS[found.cut]}` : "";
  place("progress").textContent = `${count(found.root.objects)} objects (${where}).${cut}`;
  place("paths").replaceChildren(...found.paths.map((path) => element("li", { className: "code" }, path)));
  place("tree").hidden = found.root.holders.length === 0;
  if (found.root.holders.length) tree(place("tree"), found.root);
}

function stop() {
  if (search) search.abort();
}

place("cancel").addEventListener("click", stop);
place("close").addEventListener("click", () => {
  opened = null;
  stop();
  place("route").hidden = true;
  place("holders").hidden = true;
});
addEventListener("pagehide", stop);

// The page: asks for news every few seconds, and shows the routes.
import { sparkline } from "./charts.js";
import * as heap from "./heap.js";
import * as route from "./route.js";
import { ask, bytes, count, element, few, trouble } from "./tools.js";

const SECONDS = 5;
const place = (id) => document.getElementById(id);

function showRoutes(found) {
  const leaking = found.routes.filter((row) => row.verdict !== null);
  place("summary").textContent = summary(found, leaking);
  place("summary").classList.toggle("bad", leaking.length > 0);
  const focused = document.activeElement?.dataset?.key;
  place("routes").tBodies[0].replaceChildren(...found.routes.slice(0, 100).map(line));
  if (focused) document.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

function summary(found, leaking) {
  if (leaking.length) return leaking.map((row) => row.verdict.words).join(" · ");
  if (found.about.backend === "none") return "Requests are not measured: switch attribution on.";
  if (!found.routes.length) return "No request has been served yet.";
  return "No route is said to leak so far. A verdict takes some hundred requests of a route.";
}

function line(row) {
  const name = element("button", { type: "button", className: "link", "data-key": `${row.method} ${row.route}` }, `${row.method} ${row.route}`);
  name.addEventListener("click", () => route.open(row, { focus: true }).then(() => trouble(), trouble));
  const title = element("td", { className: "code" }, name);
  if (row.verdict) title.append(element("span", { className: "badge" }, "leaks"));
  const cells = [
    title,
    element("td", { className: "number" }, few(row.objects_per_request)),
    element("td", { className: "number" }, row.bytes_per_request === null ? "–" : bytes(row.bytes_per_request)),
    element("td", { className: "number" }, count(row.requests)),
    element("td", { className: "number" }, count(row.retained_objects)),
    element("td", {}, sparkline(row.spark)),
  ];
  return element("tr", { className: row.verdict ? "leaks" : "" }, ...cells);
}

function showOwn(found) {
  const { about, gc, workers } = found;
  const tracker = about.tracker ? `${count(about.tracker.records)} live records, one allocation in ${count(about.tracker.interval)} is recorded` : "no records";
  const spent = Object.entries(about.overhead_seconds).map(([part, seconds]) => `${part} ${seconds.toFixed(2)} s`);
  const rows = [
    ["Workers", workers.map(({ pid, age_seconds: age }) => `${pid} (${age.toFixed(0)} s ago)`).join(", ")],
    ["Backend", `${about.backend}, ${about.census} census`],
    ["Sampling", tracker],
    ["Own time", spent.join(", ")],
    ["Garbage collector", `counts ${gc.counts.join(", ")}; thresholds ${gc.thresholds.join(", ")}; ${count(gc.frozen)} frozen`],
    ["Own faults", Object.entries(about.faults).filter(([, n]) => n).map(([part, n]) => `${part} ${n}`).join(", ") || "none"],
  ];
  place("own").replaceChildren(...rows.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)]));
  place("about").textContent = `heap_middleware ${about.version} · process ${found.pid} · ${new Date(found.time * 1000).toLocaleTimeString()}`;
}

async function refresh() {
  try {
    const found = await ask("overview");
    showRoutes(found);
    showOwn(found);
    await Promise.all([heap.refresh(), route.refresh()]);
    trouble();
  } catch (error) {
    trouble(error);
  }
}

async function live() {
  if (place("live").checked && !document.hidden) await refresh();
  setTimeout(live, SECONDS * 1000);
}

place("download").href = "api/v1/report";
await refresh();
setTimeout(live, SECONDS * 1000);

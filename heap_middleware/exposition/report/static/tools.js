// What all parts of the page share. Whatever comes from the service is text, never markup.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(size) {
  if (size === null || size === undefined) return "–";
  const sign = size < 0 ? "−" : "";
  let amount = Math.abs(size);
  let unit = 0;
  while (amount >= 1024 && unit < UNITS.length - 1) {
    amount /= 1024;
    unit += 1;
  }
  return `${sign}${amount >= 100 || unit === 0 ? Math.round(amount) : amount.toPrecision(3)} ${UNITS[unit]}`;
}

export function count(number) {
  return Math.round(number).toLocaleString("en");
}

export function few(number) {
  const rounded = Math.abs(number) < 0.005 ? 0 : number;
  return rounded.toFixed(Math.abs(rounded) >= 100 ? 0 : 2);
}

export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("aria-") || key === "scope" || key.startsWith("data-")) made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

export async function ask(name, fields = {}) {
  const answer = await fetch(`api/v1/${name}?${new URLSearchParams(fields)}`);
  const found = await answer.json().catch(() => ({ error: `the service answered ${answer.status}` }));
  if (!answer.ok) throw new Error(found.error || `the service answered ${answer.status}`);
  return found;
}

export function trouble(error) {
  const place = document.getElementById("trouble");
  place.hidden = !error;
  place.textContent = error ? `No news: ${error.message}` : "";
}

// The charts: one place that knows the charting library, the theme and what a chart looks like here.
import { bytes, count } from "./tools.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
const still = matchMedia("(prefers-reduced-motion: reduce)");
const drawn = new Map(); // element -> [chart, option maker]

function colours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    text: read("--text"),
    quiet: read("--quiet"),
    line: read("--line"),
    paper: read("--paper"),
    series: ["--one", "--two", "--three", "--four", "--five", "--six"].map(read),
  };
}

function draw(place, make) {
  let [chart] = drawn.get(place) || [];
  if (!chart) {
    chart = window.echarts.init(place, null, { renderer: "canvas" });
    new ResizeObserver(() => chart.resize()).observe(place);
  }
  drawn.set(place, [chart, make]);
  const palette = colours();
  chart.setOption({ animation: !still.matches, color: palette.series, ...make(palette) }, true);
  return chart;
}

dark.addEventListener("change", () => {
  for (const [place, [, make]] of drawn) draw(place, make);
});

// Tooltips as canvas text: markup would be the library's own inline style, which the policy of this page forbids.
function tooltip(palette, more) {
  return {
    renderMode: "richText",
    backgroundColor: palette.paper,
    borderColor: palette.line,
    textStyle: { color: palette.text, fontSize: 12 },
    confine: true,
    ...more,
  };
}

function axes(palette) {
  const label = { color: palette.quiet, fontSize: 11, hideOverlap: true };
  return {
    grid: { left: 8, right: 16, top: 32, bottom: 8, containLabel: true },
    xAxis: { type: "time", axisLabel: label, axisLine: { lineStyle: { color: palette.line } } },
    yAxis: {
      type: "value",
      min: 0,
      axisLabel: { ...label, formatter: count },
      splitLine: { lineStyle: { color: palette.line } },
    },
  };
}

export function lines(place, series) {
  draw(place, (palette) => ({
    ...axes(palette),
    legend: { type: "scroll", top: 0, left: 0, textStyle: { color: palette.quiet, fontSize: 11 }, icon: "roundRect" },
    tooltip: tooltip(palette, { trigger: "axis", valueFormatter: count }),
    series: series.map(({ name, times, values, area }) => ({
      name,
      type: "line",
      showSymbol: false,
      areaStyle: area ? { opacity: 0.15 } : undefined,
      lineStyle: { width: 2 },
      data: values.map((value, at) => [times[at] * 1000, value]),
    })),
  }));
}

export function tree(place, root) {
  place.classList.toggle("tall", root.holders.length > 4);
  const label = (node) => `${node.name}${node.held ? `  × ${count(node.held)}` : ""}`;
  const shaped = (node, depth) => ({
    name: label(node),
    collapsed: depth > 0 && node.held < root.objects / 50,
    itemStyle: node.cut ? { borderType: "dashed" } : undefined,
    children: node.holders.map((above) => shaped(above, depth + 1)),
  });
  const narrow = place.clientWidth < 600;
  draw(place, (palette) => ({
    tooltip: tooltip(palette, { trigger: "item" }),
    series: [
      {
        type: "tree",
        data: [{ ...shaped(root, 0), name: `${root.name}  × ${count(root.objects)}` }],
        left: 16,
        right: narrow ? "50%" : "30%",
        top: 16,
        bottom: 16,
        orient: narrow ? "TB" : "LR",
        roam: true,
        initialTreeDepth: 6,
        symbolSize: 9,
        lineStyle: { color: palette.line, width: 1.5 },
        label: { color: palette.text, position: "right", align: "left", fontSize: 12, backgroundColor: palette.paper, padding: [2, 4], distance: 8 },
        leaves: { label: { position: "right", align: "left" } },
        expandAndCollapse: true,
        animationDuration: still.matches ? 0 : 250,
      },
    ],
  }));
}

export function treemap(place, types) {
  draw(place, (palette) => ({
    tooltip: tooltip(palette, { formatter: (item) => `${item.name}\n${bytes(item.value)}` }),
    series: [
      {
        type: "treemap",
        roam: false,
        nodeClick: false,
        breadcrumb: { show: false },
        left: 0,
        right: 0,
        top: 0,
        bottom: 0,
        itemStyle: { borderColor: palette.paper, borderWidth: 1, gapWidth: 1 },
        label: { formatter: (item) => `${item.name}\n${bytes(item.value)}`, fontSize: 11, lineHeight: 15, color: palette.paper, overflow: "truncate" },
        visibleMin: 30,
        childrenVisibleMin: 600,
        colorMappingBy: "index",
        levels: [{ colorSaturation: [0.35, 0.55] }],
        data: types.map(({ module, bytes: value }) => ({ name: module, value })),
      },
    ],
  }));
}

// A sparkline is drawn by hand: forty charts of the library's would be forty canvases.
export function sparkline(values) {
  const width = 160;
  const height = 32;
  const place = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  place.setAttribute("viewBox", `0 0 ${width} ${height}`);
  place.setAttribute("class", "spark");
  place.setAttribute("aria-hidden", "true");
  if (values.length > 1) {
    const most = Math.max(...values, 1);
    const points = values.map((value, at) => [(at / (values.length - 1)) * width, height - 2 - (Math.max(0, value) / most) * (height - 4)]);
    const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
    line.setAttribute("d", `M${points.map((point) => point.map((one) => one.toFixed(1)).join(" ")).join("L")}`);
    place.append(line);
  }
  return place;
}

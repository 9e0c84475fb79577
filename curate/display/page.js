"use strict";
// Draws the page's charts from the data in it, and lets its tables be sorted.
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const number = new Intl.NumberFormat("en-US");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const font = "system-ui, -apple-system, 'Segoe UI', sans-serif";
  const significant = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 4 });
  const pen = document.createElement("canvas").getContext("2d");
  function room(texts, size) {
    pen.font = `${size}px ${font}`;
    return Math.ceil(Math.max(...texts.map((text) => pen.measureText(text).width)));
  }
  const short = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

  // Tooltips are drawn as text, never as HTML: names come from the data.
  function tip(formatter) {
    return {
      renderMode: "richText", confine: true, formatter, borderColor: colour("--line"), backgroundColor: colour("--pane"),
      textStyle: { color: colour("--ink"), fontSize: 13 },
    };
  }
  const axis = () => ({
    axisLine: { lineStyle: { color: colour("--line") } }, axisTick: { show: false },
    axisLabel: { color: colour("--soft"), fontSize: 11 }, splitLine: { lineStyle: { color: colour("--line") } },
  });
  const spans = () => ({ ...axis().axisLabel, alignMinLabel: "left", alignMaxLabel: "right" });
  const base = () => ({ animation: false, textStyle: { fontFamily: font } });

  function flow(width) {
    const { read, kept, label: keptLabel, rejected, rules } = data.flow;
    const label = (name, count) => `${short(name, width < 600 ? 16 : 40)}  ${number.format(count)}`;
    const nodes = [
      { name: "0", text: label("read", read), itemStyle: { color: colour("--accent") } },
      { name: "1", text: label(keptLabel, kept), itemStyle: { color: colour("--good") } },
    ];
    const links = [{ source: "0", target: "1", value: kept }];
    if (rejected) {
      nodes.push({ name: "2", text: label("rejected", rejected), itemStyle: { color: colour("--bad") } });
      links.push({ source: "0", target: "2", value: rejected });
    }
    rules.forEach(([name, count], at) => {
      nodes.push({ name: `r${at}`, text: label(name, count), itemStyle: { color: colour("--bad") } });
      links.push({ source: "2", target: `r${at}`, value: count });
    });
    const texts = Object.fromEntries(nodes.map((node) => [node.name, node.text]));
    const right = Math.max(room(Object.values(texts), 12) + 24, width < 600 ? 140 : 220);
    const between = (width - right - 28) / 2 - 16; // pixels between two columns of the flow
    if (rejected && room([label("rejected", rejected), label(keptLabel, kept), label("read", read)], 12) > between) {
      return barsOf([["read", read], [keptLabel, kept], ["rejected", rejected], ...rules], width);
    }
    return {
      ...base(),
      tooltip: tip((at) => (at.dataType === "edge" ? texts[at.data.target] : texts[at.name])),
      series: [{
        type: "sankey", data: nodes, links, left: 4, right, top: 8, bottom: 8, nodeGap: 18,
        nodeWidth: 12, draggable: false, layoutIterations: 32, nodeAlign: "left", emphasis: { focus: "adjacency" },
        label: { color: colour("--ink"), fontSize: 12, formatter: (at) => texts[at.name] },
        lineStyle: { color: "target", opacity: 0.28, curveness: 0.5 },
      }],
    };
  }

  // The second to last label may reach past the bins on a narrow screen: the margin that keeps it whole.
  const margin = (names, width) => Math.max(6, room(names, 11) / 2 - (1.5 * width) / names.length);

  function histogram(name, width) {
    const { unit, bins } = data.histograms[name];
    const total = bins.reduce((sum, [, count]) => sum + count, 0) || 1;
    let cumulative = 0;
    const share = bins.map(([, count]) => Math.round((1000 * (cumulative += count)) / total) / 10);
    return {
      ...base(),
      grid: { left: 4, right: margin(bins.map(([span]) => span), width), top: 26, bottom: 4, containLabel: true },
      legend: { right: 0, top: 0, itemHeight: 8, itemWidth: 14, textStyle: { color: colour("--soft"), fontSize: 11 } },
      tooltip: {
        ...tip((at) => `${at[0].name}\n${number.format(bins[at[0].dataIndex][1])} ${unit}\n${share[at[0].dataIndex]} % cumulative`),
        trigger: "axis", axisPointer: { type: "shadow" },
      },
      xAxis: { type: "category", data: bins.map(([span]) => span), ...axis(), splitLine: { show: false }, axisLabel: spans() },
      yAxis: [
        { type: "value", ...axis(), minInterval: 1 },
        { type: "value", max: 100, ...axis(), splitLine: { show: false }, axisLabel: { ...axis().axisLabel, formatter: "{value} %" } },
      ],
      series: [
        { name: unit, type: "bar", data: bins.map(([, count]) => count), barCategoryGap: "18%", itemStyle: { color: colour("--accent") } },
        { name: "cumulative share", type: "line", yAxisIndex: 1, data: share, symbol: "none", lineStyle: { color: colour("--tool"), width: 1.5 }, itemStyle: { color: colour("--tool") } },
      ],
    };
  }

  const bars = (name, width) => barsOf(data.bars[name], width);
  function barsOf(rows, width) {
    return {
      ...base(),
      grid: { left: 4, right: room(rows.map(([, count]) => number.format(count)), 12) + 14, top: 4, bottom: 4, containLabel: true },
      tooltip: tip((at) => `${rows[at.dataIndex][0]}\n${number.format(rows[at.dataIndex][1])}`),
      xAxis: { type: "value", ...axis(), axisLabel: { show: false }, splitLine: { show: false } },
      yAxis: {
        type: "category", inverse: true, data: rows.map(([text]) => short(text, 28)), ...axis(),
        axisLabel: { color: colour("--ink"), fontSize: 12, width: width / 3, overflow: "truncate" },
      },
      series: [{
        type: "bar", data: rows.map(([, count]) => count), barMaxWidth: 16, itemStyle: { color: colour("--accent") },
        label: { show: true, position: "right", color: colour("--soft"), fontSize: 12, formatter: (at) => number.format(at.value) },
      }],
    };
  }

  // Two sets: shares, since one may be larger.
  const sides = () => [["first", colour("--accent")], ["second", colour("--tool")]];
  const legend = () => ({ right: 0, top: 0, itemHeight: 8, itemWidth: 14, textStyle: { color: colour("--soft"), fontSize: 11 } });
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  const describePair = (row) => `${row[0]}\nfirst: ${number.format(row[1])} (${percent(row[2])})\nsecond: ${number.format(row[3])} (${percent(row[4])})`;

  function overlay(name, width) {
    const rows = data.overlays[name];
    return {
      ...base(),
      grid: { left: 4, right: margin(rows.map(([span]) => span), width), top: 26, bottom: 4, containLabel: true },
      legend: legend(),
      tooltip: { ...tip((at) => describePair(rows[at[0].dataIndex])), trigger: "axis", axisPointer: { type: "shadow" } },
      xAxis: { type: "category", data: rows.map(([span]) => span), ...axis(), splitLine: { show: false }, axisLabel: spans() },
      yAxis: { type: "value", ...axis(), axisLabel: { ...axis().axisLabel, formatter: (share) => `${Math.round(100 * share)} %` } },
      series: sides().map(([side, paint], at) => ({
        name: side, type: "bar", barGap: "0%", barCategoryGap: "18%", itemStyle: { color: paint }, data: rows.map((row) => row[2 + 2 * at]),
      })),
    };
  }

  function pairs(name, width) {
    const rows = data.pairs[name];
    return {
      ...base(),
      grid: { left: 4, right: 64, top: 24, bottom: 4, containLabel: true },
      legend: legend(),
      tooltip: tip((at) => describePair(rows[at.dataIndex])),
      xAxis: { type: "value", ...axis(), axisLabel: { show: false }, splitLine: { show: false } },
      yAxis: {
        type: "category", inverse: true, data: rows.map(([text]) => short(text, 28)), ...axis(),
        axisLabel: { color: colour("--ink"), fontSize: 12, width: width / 3, overflow: "truncate" },
      },
      series: sides().map(([side, paint], at) => ({
        name: side, type: "bar", barMaxWidth: 12, barGap: "0%", itemStyle: { color: paint }, data: rows.map((row) => row[2 + 2 * at]),
        label: { show: true, position: "right", color: colour("--soft"), fontSize: 11, formatter: (bar) => percent(bar.value) },
      })),
    };
  }

  // Lines over a common axis; each names its colour by a property of page.css.
  function lines(name, width) {
    const { axis: title, series } = data.lines[name];
    const shown = series.filter((line) => line.points.length);
    const named = shown.length > 1;
    const ends = shown.flatMap((line) => [line.points[0][0], line.points.at(-1)[0]]);
    const written = (value) => significant.format(value);
    return {
      ...base(),
      grid: { left: 4, right: 20, top: named ? (width < 600 ? 48 : 28) : 10, bottom: 20, containLabel: true },
      legend: { ...legend(), show: named, left: width < 600 ? 0 : "auto" },
      tooltip: {
        ...tip((at) => [`${title} ${number.format(at[0].value[0])}`, ...at.map((point) => `${point.seriesName}: ${written(point.value[1])}`)].join("\n")),
        trigger: "axis",
      },
      xAxis: {
        type: "value", min: Math.min(...ends), max: Math.max(...ends), minInterval: 1, ...axis(), splitLine: { show: false },
        name: title, nameLocation: "middle", nameGap: 22, nameTextStyle: { color: colour("--soft"), fontSize: 11 },
        axisLabel: { ...axis().axisLabel, hideOverlap: true, showMinLabel: true, showMaxLabel: false, formatter: (value) => number.format(value) },
      },
      yAxis: { type: "value", scale: true, ...axis(), axisLabel: { ...axis().axisLabel, formatter: written } },
      series: shown.map((line) => ({
        name: line.name, type: "line", data: line.points, symbol: "circle", symbolSize: 6,
        showSymbol: Boolean(line.marks) || line.points.length === 1, itemStyle: { color: colour(line.paint), opacity: line.faint ? 0.4 : 1 },
        lineStyle: { color: colour(line.paint), width: line.faint ? 1 : 1.8, opacity: line.faint ? 0.4 : 1, type: line.dashed ? "dashed" : "solid" },
      })),
    };
  }

  const kinds = { flow: (_, width) => flow(width), histogram, bars, overlay, pairs, lines };
  const places = [...document.querySelectorAll(".chart")];
  function draw() {
    for (const place of places) {
      const [kind, name] = place.dataset.chart.split(":");
      const chart = place.chart || (place.chart = echarts.init(place, null, { renderer: "svg" }));
      chart.resize();
      const width = place.clientWidth;
      chart.setOption(kinds[kind](name, width), true);
    }
  }
  draw();
  let due;
  addEventListener("resize", () => { clearTimeout(due); due = setTimeout(draw, 100); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    heads.forEach((head, at) => {
      const numeric = [...body.rows].some((row) => row.cells[at].classList.contains("n"));
      head.classList.toggle("n", numeric);
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "descending" || (!numeric && head.getAttribute("aria-sort") !== "ascending");
        const value = (row) => (numeric ? Number(row.cells[at].dataset.v ?? -Number.MAX_VALUE) : row.cells[at].textContent);
        const order = (one, other) => (numeric ? value(one) - value(other) : value(one).localeCompare(value(other)));
        const rows = [...body.rows].sort((one, other) => (down ? order(one, other) : order(other, one)));
        body.append(...rows);
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "ascending" : "descending");
      });
    });
  }
})();

"use strict";
for (const svg of document.querySelectorAll("svg.chart")) {
  const { box, w, x, l, s } = JSON.parse(svg.dataset.chart);
  const figure = svg.closest("figure");
  let tip = null, hair = null;
  const leave = () => { tip?.remove(); hair?.remove(); tip = hair = null; };
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("pointermove", (event) => {
    const frame = svg.getBoundingClientRect(), scale = frame.width / w;
    const at = (event.clientX - frame.left) / scale;
    if (!x.length || at < box[0] - 4 || at > box[0] + box[2] + 4) return leave();
    let near = 0;
    x.forEach((place, i) => { if (Math.abs(place - at) < Math.abs(x[near] - at)) near = i; });
    if (!tip) {
      tip = document.createElement("div");
      tip.className = "tip";
      figure.append(tip);
      hair = document.createElementNS("http://www.w3.org/2000/svg", "path");
      hair.setAttribute("class", "hair");
      svg.append(hair);
    }
    hair.setAttribute("d", `M${x[near]} ${box[1]}v${box[3]}`);
    tip.textContent = [l[near], ...s.filter((one) => one.v[near]).map((one) => `${one.n}: ${one.v[near]}`)].join("\n");
    // An SVG element has no offsetLeft.
    const around = figure.getBoundingClientRect();
    const left = frame.left - around.left + x[near] * scale + 12;
    tip.style.left = `${Math.max(0, Math.min(left, around.width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${frame.top - around.top + box[1] * scale + 4}px`;
  });
}

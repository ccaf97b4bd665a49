"use strict";
(() => {
  const data = JSON.parse(document.getElementById("groups-data").textContent);
  const place = document.getElementById("group");
  if (!place) return;
  const step = document.getElementById("step"), group = document.getElementById("group-number");
  // Completions are text that a model wrote: textContent only, never HTML.
  const add = (parent, tag, text, name) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (name) node.className = name;
    parent.append(node);
    return node;
  };
  const number = (value) => (value === null || value === undefined ? "none" : String(Math.round(value * 1000) / 1000));
  const show = () => {
    const shown = data.steps[step.selectedIndex].groups[group.selectedIndex];
    place.replaceChildren();
    add(place, "pre", shown.prompt, "prompt");
    if (shown.solution) add(place, "p", "Solution: " + shown.solution, "dim");
    const list = add(place, "div", undefined, "completions");
    for (const item of shown.completions) {
      const box = add(list, "article", undefined, "completion " + (item.advantage > 0 ? "good" : item.advantage < 0 ? "bad" : ""));
      add(box, "strong", "advantage " + number(item.advantage) + ", reward " + number(item.reward));
      const parts = Object.entries(item.rewards).map(([name, value]) => name + " " + number(value)).join(", ");
      if (parts) add(box, "div", parts, "dim");
      add(box, "pre", item.text).tabIndex = 0;
    }
  };
  const choose = () => {
    const of = data.steps[step.selectedIndex];
    group.replaceChildren();
    of.groups.forEach((_, index) => add(group, "option", index + 1 + " of " + of.of));
    show();
  };
  data.steps.forEach((item) => add(step, "option", item.step));
  const move = (by) => () => {
    step.selectedIndex = Math.min(Math.max(step.selectedIndex + by, 0), data.steps.length - 1);
    choose();
  };
  document.getElementById("earlier").addEventListener("click", move(-1));
  document.getElementById("later").addEventListener("click", move(1));
  step.addEventListener("change", choose);
  group.addEventListener("change", show);
  step.selectedIndex = data.steps.length - 1;
  choose();
})();

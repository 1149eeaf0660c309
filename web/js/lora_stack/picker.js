/** Choosing a file: a list by folder with a filter. Arrow keys move, Enter chooses, Escape leaves. */
import { element, icon, plain } from "./dom.js";
import { showPopup } from "./popup.js";
import { parts } from "./rows.js";

const MOST = 300; // files drawn at once; the filter reaches the others

/** Every word of the filter must occur somewhere in the name; what stands in the file's own name comes first. */
function matches(names, filter) {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  return names.filter((name) => words.every((word) => name.toLowerCase().includes(word)));
}

function byFolder(names) {
  const folders = new Map();
  for (const name of names) {
    const { folder } = parts(name);
    if (!folders.has(folder)) folders.set(folder, []);
    folders.get(folder).push(name);
  }
  const order = new Intl.Collator(undefined, { numeric: true });
  return [...folders].sort(([one], [other]) => order.compare(one, other))
    .map(([folder, files]) => [folder, files.sort(order.compare)]);
}

/** Open the list beside `anchor`. `current` is the row's file, "" for a new row; `choose(name)` is called once. */
export function openPicker(anchor, library, current, choose) {
  const list = element("div", { className: "ftls-list", role: "listbox", id: "ftls-list", "aria-label": "LoRA files" });
  const filter = element("input", {
    type: "text", className: "ftls-filter", placeholder: "Filter by name or folder", autocomplete: "off", spellcheck: false,
    role: "combobox", "aria-label": "Filter LoRA files", "aria-expanded": "true", "aria-controls": "ftls-list",
    "aria-autocomplete": "list",
  });
  const count = element("div", { className: "ftls-count", role: "status" });
  let options = [];
  let active = -1;

  const activate = (index) => {
    options[active]?.setAttribute("aria-selected", "false");
    active = options.length ? Math.max(0, Math.min(index, options.length - 1)) : -1;
    const option = options[active];
    option?.setAttribute("aria-selected", "true");
    option?.scrollIntoView({ block: "nearest" });
    filter.setAttribute("aria-activedescendant", option?.id ?? "");
  };
  const take = (name) => {
    close(true);
    choose(name);
  };
  const draw = () => {
    const names = library.names ?? [];
    const found = matches(names, filter.value);
    list.replaceChildren();
    options = [];
    for (const [folder, files] of byFolder(found.slice(0, MOST))) {
      const group = element("div", { role: "group", "aria-label": plain(folder) || "Top folder" });
      if (folder) group.append(element("div", { className: "ftls-folder", "aria-hidden": "true" }, plain(folder)));
      for (const name of files) {
        const option = element("div", {
          className: "ftls-option", role: "option", id: `ftls-option-${options.length}`, title: plain(name, 400),
          "aria-selected": "false", onclick: () => take(name),
        }, plain(parts(name).name));
        option.finetuneName = name;
        option.classList.toggle("ftls-current", name === current);
        options.push(option);
        group.append(option);
      }
      list.append(group);
    }
    const more = found.length > MOST ? `, the first ${MOST} shown` : "";
    count.textContent = library.problem || (library.names === null ? "Asking the server …"
      : names.length === 0 ? "There are no files in the loras folders."
        : found.length === names.length && !more ? `${names.length} files` : `${found.length} of ${names.length}${more}`);
    activate(filter.value ? 0 : Math.max(0, options.findIndex((option) => option.finetuneName === current)));
  };

  filter.addEventListener("input", draw);
  filter.addEventListener("keydown", (event) => {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 };
    if (steps[event.key]) activate(active + steps[event.key]);
    else if (event.key === "Home" && event.ctrlKey) activate(0);
    else if (event.key === "End" && event.ctrlKey) activate(options.length - 1);
    else if (event.key === "Enter" && options[active]) take(options[active].finetuneName);
    else if (event.key !== "Tab") return;
    event.preventDefault();
  });
  const content = element("div", { className: "ftls-picker" },
    element("div", { className: "ftls-search" }, icon("search"), filter), list, count);
  const onclose = () => library.removeEventListener("change", draw);
  const { close } = showPopup(anchor, "Choose a LoRA", content, { onclose });
  library.addEventListener("change", draw);
  draw();
  filter.focus({ preventScroll: true });
  library.refresh();
}

/**
 * Building blocks of the editor's page elements. Text from files only ever becomes a text node or a value.
 */

const SVG = "http://www.w3.org/2000/svg";

/** Paths in a box of 16 by 16. */
const ICONS = {
  add: "M8 3v10M3 8h10",
  blocks: "M3 13V8M6.3 13V3M9.7 13V6M13 13V10",
  copy: "M6 6h7v7H6zM10 6V3H3v7h3",
  down: "M4.5 6.5 8 10l3.5-3.5",
  grip: "M6 3.5v.01M10 3.5v.01M6 8v.01M10 8v.01M6 12.5v.01M10 12.5v.01",
  info: "M8 7.5v4M8 4.6v.01M14 8A6 6 0 1 1 2 8a6 6 0 0 1 12 0z",
  link: "M7 9a2.5 2.5 0 0 0 3.6.2l2-2A2.5 2.5 0 0 0 9 3.7l-.9.9M9 7a2.5 2.5 0 0 0-3.6-.2l-2 2A2.5 2.5 0 0 0 7 12.3l.9-.9",
  paste: "M6 4H4v10h8V4h-2M6 2.5h4v3H6z",
  remove: "M4 4l8 8M12 4l-8 8",
  reset: "M3.5 8a4.5 4.5 0 1 0 1.5-3.4L3.5 6M3.5 3v3h3",
  search: "M11 7a4 4 0 1 1-8 0 4 4 0 0 1 8 0zM10 10l3.5 3.5",
  warning: "M8 2.5 14.5 13.5h-13zM8 6.5v3.5M8 11.900v.01",
};

/** An element with properties, listeners among them (onclick …), attributes (role, and those with a "-") and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(SVG, "path"));
  svg.firstChild.setAttribute("d", ICONS[name]);
  return svg;
}

/** A button that shows an icon. `control` names it, so that the focus finds it again. */
export function iconButton(name, label, control, onclick) {
  return element("button", {
    type: "button", className: "ftls-icon", title: label, "aria-label": label, "data-control": control, onclick,
  }, icon(name));
}

/** Says whether something is on, to the eye and to screen readers. */
export function switchButton(label, control, onclick) {
  return element("button", {
    type: "button", className: "ftls-switch", role: "switch", title: label, "aria-label": label, "aria-checked": "false",
    "data-control": control, onclick,
  });
}

/** Text of unknown origin as a short line: control, formatting and unpaired characters show as a sign. */
export function plain(text, length = 200) {
  const line = String(text).slice(0, length * 2).replace(/[\p{C}\p{Zl}\p{Zp}]+/gu, "\u2423");
  return line.length > length ? line.slice(0, length) + "…" : line;
}

/** A number as people write it: two decimals, more where they say something. */
export function written(value) {
  const rounded = Number(Number(value).toFixed(6));
  return Math.abs(rounded * 100 - Math.round(rounded * 100)) < 1e-6 ? rounded.toFixed(2) : String(rounded);
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages over plain http from another machine have no clipboard of that kind.
    const field = element("textarea", { value: text, className: "ftls-offscreen" });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
}

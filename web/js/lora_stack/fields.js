/** A number that is typed, and a strength that is typed or dragged. Both commit once per change. */
import { element, written } from "./dom.js";
import { LIMIT } from "./rows.js";

const STEP = 0.05;
const FINE = 0.01;
const REACH = 2;

function clamped(value) {
  return Math.min(LIMIT, Math.max(-LIMIT, Math.round(value * 1e6) / 1e6));
}

/** Up and Down step, Enter commits, Escape takes back. `commit(value)` is called when the number is another. */
export function numberField(label, control, commit, step = STEP) {
  let shown = 1;
  const field = element("input", {
    type: "text", className: "ftls-number", role: "spinbutton", inputMode: "decimal", autocomplete: "off", title: label,
    "aria-label": label, "data-control": control,
  });
  const set = (value) => {
    shown = value;
    field.value = written(value);
    field.setAttribute("aria-valuenow", String(value));
  };
  const take = (value) => {
    const changed = Number.isFinite(value) && clamped(value) !== shown;
    set(changed ? clamped(value) : shown);
    if (changed) commit(shown);
  };
  const typed = () => (field.value.trim() ? Number(field.value.trim().replace(",", ".")) : NaN);
  field.addEventListener("focus", () => field.select());
  field.addEventListener("change", () => take(typed()));
  field.addEventListener("keydown", (event) => {
    const direction = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (direction && !event.altKey) {
      const from = Number.isFinite(typed()) ? typed() : shown;
      take(from + direction * (event.shiftKey ? FINE : step));
    } else if (event.key === "Enter" && !event.ctrlKey) {
      take(typed());
      field.select();
    } else if (event.key === "Escape") {
      set(shown);
    } else {
      return;
    }
    event.preventDefault();
  });
  const edited = () => field.value !== written(shown);
  field.finetuneEdited = edited;
  return { field, set: (value) => { if (!(edited() && document.activeElement === field)) set(value); } };
}

/** Label, slider from -2 to 2 and typed number; double click on the slider gives 1. */
export function strengthField(title, label, control, commit) {
  let value = 1;
  const slider = element("input", {
    type: "range", className: "ftls-slider", min: -REACH, max: REACH, step: FINE, title: `${label}; double click for 1`,
    "aria-label": label, "data-control": `${control}-slider`,
  });
  const typed = numberField(`${label}, typed`, control, commit);
  const draw = (shown) => {
    const at = (number) => `${(100 * (Math.min(REACH, Math.max(-REACH, number)) + REACH)) / (2 * REACH)}%`;
    slider.style.setProperty("--from", at(Math.min(0, shown)));
    slider.style.setProperty("--to", at(Math.max(0, shown)));
  };
  const set = (next) => {
    value = next;
    slider.value = next;
    slider.setAttribute("aria-valuetext", written(next));
    typed.set(next);
    draw(next);
  };
  const take = (next) => {
    if (clamped(next) === value) return set(value);
    set(clamped(next));
    commit(value);
  };
  slider.addEventListener("input", () => {
    typed.field.value = written(slider.value);
    draw(Number(slider.value));
  });
  slider.addEventListener("change", () => take(Number(slider.value)));
  slider.addEventListener("dblclick", () => take(1));
  slider.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? FINE : STEP;
    const next = {
      ArrowLeft: value - step, ArrowRight: value + step, ArrowUp: value + step, ArrowDown: value - step,
      PageUp: value + 0.25, PageDown: value - 0.25, Home: 0, End: 1,
    }[event.key];
    if (next === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    take(next);
  });
  const root = element("div", { className: "ftls-strength" }, element("span", { className: "ftls-label" }, title),
    slider, typed.field);
  return { root, set };
}

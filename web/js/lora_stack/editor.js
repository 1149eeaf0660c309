/** The stack editor: draws the widget's text as rows, and writes every change back as text. It keeps nothing else. */
import { openCard } from "./card.js";
import { element, icon, plain, switchButton } from "./dom.js";
import { startDrag } from "./drag.js";
import { openPicker } from "./picker.js";
import { closePopup } from "./popup.js";
import { Row } from "./row.js";
import { meaning, parts, read, write } from "./rows.js";

/** Heights in pixels, as in style.js: the node's size follows from the rows alone, before anything is drawn. */
const HEIGHT = { frame: 72, row: 67, strip: 207, hint: 46, problem: 190 };

export class StackEditor {
  #rest = {};
  #items = [];
  #rows = [];
  #shown = null;

  /**
   * `node` connects to the graph: `text()` and `openRows()` give the widget's text and which rows show their blocks;
   * `store(text, openRows)` writes both as one change that can be undone; `undo()`, `redo()`; `family()` promises the family
   * of the graph's base model, or "".
   */
  constructor(node, library) {
    this.node = node;
    this.library = library;
    this.all = switchButton("All on or off", "all", () => this.#toggleAll());
    this.all.setAttribute("role", "checkbox"); // a switch is never in between
    this.count = element("span", { className: "ftls-dim" });
    this.header = element("div", { className: "ftls-line ftls-header" }, this.all, this.count);
    // A press beside the controls focuses the list, and thereby gives it the wheel.
    this.list = element("div", { className: "ftls-rows", tabIndex: -1 });
    this.add = element("button", {
      type: "button", className: "ftls-add", "data-control": "add", onclick: () => this.#add(),
    }, icon("add"), "Add LoRA");
    this.hint = element("p", { className: "ftls-hint" }, "The stack is empty. Add a LoRA, then set its strengths.");
    this.sentence = element("p", { className: "ftls-warning", role: "alert" });
    this.raw = element("textarea", {
      className: "ftls-raw", spellcheck: false, "aria-label": "Rows as JSON text", "data-control": "raw",
      onchange: () => this.#store(this.raw.value, []),
    });
    this.status = element("div", { className: "ftls-offscreen", role: "status" });
    this.root = element("div", { className: "ftls", role: "group", "aria-label": "LoRA stack" },
      this.header, this.hint, this.list, this.sentence, this.raw, this.add, this.status);
    this.#guard();
    library.addEventListener("change", this.#redraw);
  }

  #redraw = () => this.#draw();

  /** The node is gone. */
  end() {
    closePopup();
    this.library.removeEventListener("change", this.#redraw);
  }

  /** Height in pixels that shows everything. */
  get height() {
    if (this.problem) return HEIGHT.problem;
    const strips = this.#items.filter((item) => item.open).length;
    return HEIGHT.frame + this.#items.length * HEIGHT.row + strips * HEIGHT.strip + (this.#items.length ? 0 : HEIGHT.hint);
  }

  /** Read the widget's text again; nothing happens when it is what is shown. */
  show() {
    const state = JSON.stringify([this.node.text(), this.node.openRows()]);
    if (state === this.#shown) return;
    this.#shown = state;
    const { rows = [], rest = {}, problem = "" } = read(this.node.text());
    const open = new Set(this.node.openRows());
    this.problem = problem;
    this.#rest = rest;
    this.#items = rows.map((row, index) => ({ row, open: open.has(index) }));
    this.#draw();
  }

  #draw() {
    const items = this.#items;
    while (this.#rows.length > items.length) this.#rows.pop().root.remove();
    while (this.#rows.length < items.length) {
      this.#rows.push(new Row(this));
      this.list.append(this.#rows.at(-1).root);
    }
    this.#rows.forEach((row, index) => row.update(items[index], index + 1, items.length));
    const on = items.filter((item) => meaning(item.row).on).length;
    this.header.hidden = !items.length;
    this.all.setAttribute("aria-checked", on === 0 ? "false" : on === items.length ? "true" : "mixed");
    this.count.textContent = items.length === on ? `${on} LoRA${on === 1 ? "" : "s"}` : `${on} of ${items.length} on`;
    this.hint.hidden = Boolean(items.length || this.problem);
    this.sentence.hidden = this.raw.hidden = !this.problem;
    this.add.hidden = Boolean(this.problem);
    this.sentence.textContent = plain(this.problem ?? "", 300);
    if (this.problem) this.raw.value = this.node.text();
    this.#keepWheel();
  }

  get #scrolls() {
    return this.list.scrollHeight > this.list.clientHeight + 1;
  }

  /** The Vue renderer's word for "not the canvas's"; newer ones leave the wheel only to what also has the focus. */
  #keepWheel() {
    this.list.dataset.captureWheel = String(this.#scrolls);
  }

  // ---- changes --------------------------------------------------------------------------------------------------------

  #store(text, open) {
    if (JSON.stringify([text, open]) === this.#shown) return;
    this.node.store(text, open);
    this.show();
  }

  #change(items, focus = null, said = "") {
    const open = items.flatMap((item, index) => (item.open ? [index] : []));
    const rows = items.map((item) => item.row);
    const same = JSON.stringify(rows) === JSON.stringify(this.#items.map((item) => item.row));
    this.#store(same ? this.node.text() : write(rows, this.#rest), open);
    if (focus) this.focus(...focus);
    if (said) this.status.textContent = said;
  }

  /** Change fields of a row; `undefined` takes a field away. */
  patch(row, fields) {
    const index = this.#rows.indexOf(row);
    this.#change(this.#items.map((item, at) => (at === index ? { ...item, row: { ...item.row, ...fields } } : item)));
  }

  open(row, open) {
    const index = this.#rows.indexOf(row);
    this.#change(this.#items.map((item, at) => (at === index ? { ...item, open } : item)));
  }

  remove(row) {
    const index = this.#rows.indexOf(row);
    const rest = this.#items.filter((_, at) => at !== index);
    const next = Math.min(index, rest.length - 1);
    this.#change(rest, rest.length ? [next, "remove"] : [-1, "add"], "Row removed.");
  }

  duplicate(row) {
    const index = this.#rows.indexOf(row);
    this.#change(this.#items.toSpliced(index + 1, 0, { ...this.#items[index], open: false }), [index + 1, "duplicate"]);
  }

  move(row, to, control = "handle") {
    const from = this.#rows.indexOf(row);
    if (to === from || to < 0 || to >= this.#items.length) return;
    const items = this.#items.toSpliced(from, 1).toSpliced(to, 0, this.#items[from]);
    this.#change(items, [to, control], `Moved to ${to + 1} of ${items.length}.`);
  }

  startDrag(row, event) {
    startDrag(event, this.list, row.root, (to) => this.move(row, to));
  }

  #toggleAll() {
    const on = this.all.getAttribute("aria-checked") !== "true";
    this.#change(this.#items.map((item) => ({ ...item, row: { ...item.row, on } })));
  }

  // ---- files ----------------------------------------------------------------------------------------------------------

  #add() {
    openPicker(this.add, this.library, "", async (lora) => {
      this.status.textContent = "Reading the file …";
      this.add.disabled = true;
      const identity = await this.library.identity(lora);
      this.add.disabled = false;
      const items = [...this.#items, { row: { on: true, lora, ...identity, model: 1 }, open: false }];
      this.#change(items, [items.length - 1, "model"], `${parts(lora).name} added.`);
    });
  }

  pick(row) {
    const item = this.#items[this.#rows.indexOf(row)];
    openPicker(row.picker, this.library, meaning(item.row).lora, async (lora) => {
      if (lora === meaning(item.row).lora) return;
      const identity = await this.library.identity(lora);
      const index = this.#items.indexOf(item); // rows may have moved meanwhile
      if (index >= 0) this.patch(this.#rows[index], { hash: undefined, bytes: undefined, lora, ...identity });
    });
  }

  card(row) {
    openCard(row.info, this.library, row.meaning.lora, (card) => this.misfit(row, card));
  }

  /** A sentence when a file is made for another model than the graph's or than the row before it, else "". */
  async misfit(row, card) {
    const title = (family) => this.library.blocks?.titles[family] ?? family;
    if (!card.family) return "";
    const base = await this.node.family();
    if (base) return base === card.family ? "" : `Made for ${title(card.family)}, but the model is ${title(base)}.`;
    for (const other of this.#rows.slice(0, this.#rows.indexOf(row))) {
      const { family } = this.library.has(other.meaning.lora) ? await this.library.card(other.meaning.lora) : {};
      if (family && family !== card.family) {
        return `Made for ${title(card.family)}, but ${parts(other.meaning.lora).name} is for ${title(family)}.`;
      }
    }
    return "";
  }

  // ---- keys and focus -------------------------------------------------------------------------------------------------

  /** Focus a control of a row, or of the editor when `index` is -1. */
  focus(index, control) {
    const within = index < 0 ? this.root : this.#rows[index]?.root;
    const find = (name) => within?.querySelector(`[data-control="${CSS.escape(name)}"]`);
    (find(control) ?? find("file") ?? this.add).focus({ preventScroll: index < 0 });
  }

  /** [row, control] that has the focus, or null. */
  get focused() {
    const control = this.root.contains(document.activeElement) ? document.activeElement.dataset.control : null;
    const index = this.#rows.findIndex((row) => row.root.contains(document.activeElement));
    return control ? [index, control] : null;
  }

  /** Keys and presses within the editor are the editor's, except what the frontend has shortcuts for. */
  #guard() {
    this.root.addEventListener("keydown", (event) => this.#key(event));
    for (const type of ["pointerdown", "pointermove", "pointerup", "dblclick"]) {
      this.root.addEventListener(type, (event) => {
        const middle = event.button === 1 || (event.buttons & 4) !== 0;
        if (!middle) event.stopPropagation();
      });
    }
    this.root.addEventListener("pointerenter", () => this.#keepWheel());
    this.root.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && this.#scrolls && this.list.contains(event.target)) event.stopPropagation();
      else this.node.wheel(event);
    }, { passive: false });
  }

  #key(event) {
    const { target } = event;
    if (target === this.list) return; // pressed beside the controls: keys are the graph's
    if (event.ctrlKey || event.metaKey) {
      if (event.key === "Enter") target.dispatchEvent(new Event("change")); // what is typed belongs to the run
      this.#undo(event, target);
      return;
    }
    event.stopPropagation();
    const row = this.#rows.find((candidate) => candidate.root.contains(target));
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const control = target.dataset.control;
    if (row && step && (event.altKey || control === "handle")) {
      this.move(row, this.#rows.indexOf(row) + step, control);
    } else if (row && event.key === "Delete" && target.tagName === "BUTTON") {
      this.remove(row);
    } else {
      return;
    }
    event.preventDefault();
  }

  /** The frontend leaves Ctrl+Z in input fields to the browser; there it undoes typing that is not committed yet. */
  #undo(event, target) {
    const key = event.key.toLowerCase();
    const redo = key === "y" || (key === "z" && event.shiftKey);
    if (event.altKey || (key !== "z" && !redo)) return;
    this.node.keepFocus(this.focused);
    if (!["INPUT", "TEXTAREA"].includes(target.tagName) || target.finetuneEdited?.() || target === this.raw) return;
    event.preventDefault();
    event.stopPropagation();
    redo ? this.node.redo() : this.node.undo();
  }
}

/** One row of the stack on the page. It shows what it is given and reports what the person does. */
import { element, icon, iconButton, plain, switchButton } from "./dom.js";
import { strengthField } from "./fields.js";
import { KINDS, meaning, parts } from "./rows.js";
import { BlockStrip } from "./strip.js";

export class Row {
  #editor;
  #strip = null;
  #item = null;
  #family = "";

  /** `editor` has the library, and patch, open, duplicate, remove, pick, card, misfit and startDrag for this row. */
  constructor(editor) {
    this.#editor = editor;
    this.handle = iconButton("grip", "Move this row: drag, or Alt with the arrow keys", "handle", null);
    this.handle.classList.add("ftls-handle");
    this.handle.addEventListener("pointerdown", (event) => editor.startDrag(this, event));
    this.switch = switchButton("Take part", "on", () => this.#patch({ on: !this.meaning.on }));
    this.label = element("span", { className: "ftls-name" });
    this.folder = element("span", { className: "ftls-dim" });
    this.state = element("span", { className: "ftls-state" });
    this.picker = element("button", {
      type: "button", className: "ftls-pick", "aria-haspopup": "listbox", "data-control": "file",
      onclick: () => editor.pick(this),
    }, this.label, this.folder, this.state, icon("down"));
    this.blocks = iconButton("blocks", "Block weights", "blocks", () => editor.open(this, !this.#item.open));
    this.info = iconButton("info", "About this LoRA", "card", () => editor.card(this));
    this.model = strengthField("Model", "Model strength", "model", (value) => this.#patch({ model: value }));
    this.link = iconButton("link", "Both strengths together", "link", () => this.#patch(
      { text: this.meaning.linked ? this.meaning.model : undefined }));
    this.text = strengthField("Text", "Text strength", "text", (value) => this.#patch(
      this.meaning.linked ? { model: value } : { text: value }));
    this.root = element("div", { className: "ftls-row", role: "group" },
      element("div", { className: "ftls-line" }, this.handle, this.switch, this.picker, this.blocks, this.info,
        iconButton("copy", "Duplicate this row", "duplicate", () => editor.duplicate(this)),
        iconButton("remove", "Remove this row (Delete)", "remove", () => editor.remove(this))),
      element("div", { className: "ftls-line ftls-strengths" }, this.model.root, this.link, this.text.root));
  }

  #patch(fields) {
    this.#editor.patch(this, fields);
  }

  /** Show an item {row, open} that is the `number`th of `count`. */
  update(item, number, count) {
    this.#item = item;
    this.meaning = meaning(item.row);
    const { on, lora, model, text, linked, blocks } = this.meaning;
    const { folder, name } = parts(lora);
    this.root.setAttribute("aria-label", `LoRA ${number} of ${count}: ${plain(name) || "no file"}`);
    this.root.classList.toggle("ftls-off", !on);
    this.switch.setAttribute("aria-checked", String(on));
    this.label.textContent = plain(name, 120) || "Choose a LoRA";
    this.folder.textContent = plain(folder, 120);
    this.picker.setAttribute("aria-label", `File: ${plain(folder + name, 240) || "none"}`);
    this.link.setAttribute("aria-pressed", String(linked));
    this.model.set(model);
    this.text.set(text);
    this.info.disabled = !lora;
    this.blocks.setAttribute("aria-expanded", String(item.open));
    this.blocks.classList.toggle("ftls-used", Boolean(blocks.trim()) || KINDS.some(([kind]) => this.meaning[kind] !== 1));
    if (item.open && !this.#strip) {
      this.#strip = new BlockStrip(this.#editor.library, (fields) => this.#patch(fields));
      this.root.append(this.#strip.root);
    } else if (!item.open && this.#strip) {
      this.#strip.root.remove();
      this.#strip = null;
    }
    this.#strip?.update(this.meaning, this.#family);
    this.#look();
  }

  /** Whether the file is there, what it is made for, and whether that fits. */
  async #look() {
    const { library } = this.#editor;
    const { lora } = this.meaning;
    const same = () => this.meaning.lora === lora;
    this.#say("", plain(lora, 400));
    this.info.classList.remove("ftls-alarm");
    if (!lora || library.names === null) return;
    if (!library.has(lora)) {
      this.#say("missing", `${plain(lora, 400)} is not in the loras folders.`, true);
      const found = await library.find(this.meaning);
      if (!same()) return;
      if (found.name) this.#say(`found as ${plain(found.name, 80)}`, plain(found.note, 400));
      else this.#say("missing", plain(found.error, 600), true);
      return;
    }
    const card = await library.card(lora);
    if (!same()) return;
    const family = card.family ?? "";
    if (family !== this.#family) {
      this.#family = family;
      this.#strip?.update(this.meaning, family);
    }
    const warning = card.error ?? await this.#editor.misfit(this, card);
    if (!same()) return;
    this.info.classList.toggle("ftls-alarm", Boolean(warning));
    this.info.title = warning ? plain(warning, 400) : "About this LoRA";
  }

  #say(state, title, wrong = false) {
    this.state.textContent = state;
    this.state.classList.toggle("ftls-wrong", wrong);
    this.picker.title = title;
  }
}

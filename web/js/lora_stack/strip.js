/** Block weights of one row: bars to drag, presets, the same as text, and factors per kind of weight. */
import { copyText, element, iconButton, plain, written } from "./dom.js";
import { numberField } from "./fields.js";
import { blockText, KINDS, LIMIT } from "./rows.js";

const TOP = 2; // a bar's upper end; other weights can be typed
const STEP = 0.05;
const NAMES = { BASE: "TEXT", EXTRA: "REST" };
const MEANINGS = { BASE: "text encoders", EXTRA: "what lies outside all blocks" };

function group(block) {
  return block.replace(/\d+$/, "");
}

export class BlockStrip {
  #library;
  #commit;
  #meaning = null;
  #family = "sd1";
  #chosen = "";
  #weights = null;
  #bars = new Map();
  #drawn = "";
  #active = "";

  /** `commit(fields)` changes fields of the row. */
  constructor(library, commit) {
    this.#library = library;
    this.#commit = commit;
    this.#active = "BASE";
    this.preset = element("select", {
      className: "ftls-select", title: "Presets, as in LoRA Block Weight: S is shallow, D is deep",
      "aria-label": "Preset of block weights", "data-control": "preset",
      onchange: () => this.#take(this.preset.value === "ALL" ? "" : this.preset.value),
    });
    this.text = element("input", {
      type: "text", className: "ftls-text", placeholder: "ALL", spellcheck: false, autocomplete: "off",
      "data-control": "blocks-text",
      title: "A preset, assignments such as OUTD, IN04=0.5, or a comma list", "aria-label": "Block weights as text",
    });
    this.text.finetuneEdited = () => this.text.value !== this.#meaning?.blocks;
    this.text.addEventListener("change", () => this.#take(this.text.value));
    this.text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.ctrlKey) this.#take(this.text.value);
      if (event.key === "Escape") this.#show();
    });
    this.value = numberField("Weight of the block", "block-value", (weight) => this.#change(this.#active, weight));
    this.name = element("span", { className: "ftls-block" });
    this.message = element("span", { className: "ftls-message", role: "status" });
    this.familySelect = element("select", {
      className: "ftls-select ftls-family", title: "The model whose blocks are shown",
      "aria-label": "Model whose blocks are shown", "data-control": "family",
      onchange: () => {
        this.#chosen = this.familySelect.value;
        this.#show();
      },
    });
    this.chart = element("div", { className: "ftls-bars", role: "group", "aria-label": "Block weights" });
    this.#listen();
    this.factors = KINDS.map(([field, title]) => [field, numberField(`${title} weights: factor`, field,
      (value) => this.#commit({ [field]: value })), title]);
    this.root = element("div", { className: "ftls-strip" },
      element("div", { className: "ftls-line" }, this.preset, this.text,
        iconButton("copy", "Copy the block weights as text", "blocks-copy", () => this.#copy()),
        iconButton("paste", "Paste block weights", "blocks-paste", () => this.#paste()),
        iconButton("reset", "Set all blocks and factors to 1", "blocks-reset", () => this.#commit({
          blocks: "", ...Object.fromEntries(KINDS.map(([field]) => [field, 1])),
        }))),
      element("div", { className: "ftls-line" }, this.name, this.value.field, this.message, this.familySelect),
      this.chart,
      element("div", { className: "ftls-line ftls-factors" }, ...this.factors.map(([, { field }, title]) =>
        element("label", {}, title, field))));
  }

  /** Show a row's meaning. `family` is what its file is made for, or "". */
  update(meaning, family) {
    this.#meaning = meaning;
    this.#family = this.#chosen || family || "sd1";
    for (const [field, { set }] of this.factors) set(meaning[field]);
    this.#show();
  }

  get #blocks() {
    return this.#library.blocks?.blocks[this.#family] ?? [];
  }

  async #show() {
    const facts = this.#library.blocks;
    if (!facts || !this.#meaning) return;
    this.#family = this.#chosen || this.#family;
    this.#build(facts);
    const { blocks } = this.#meaning;
    if (document.activeElement !== this.text || !this.text.finetuneEdited()) this.text.value = blocks;
    const answer = await this.#library.weights(blocks, this.#family);
    if (this.#meaning.blocks !== blocks) return; // changed while the server was asked
    this.#say(answer.error);
    this.chart.classList.toggle("ftls-unknown", Boolean(answer.error));
    this.#weights = answer.error ? null : { ...answer.weights };
    this.#draw();
    const values = facts.values[this.#family];
    const name = blocks.trim().toUpperCase() || "ALL";
    this.preset.value = name in values ? name : "";
  }

  #build(facts) {
    if (this.#drawn === this.#family) return;
    this.#drawn = this.#family;
    const option = (value, title) => element("option", { value }, title);
    this.familySelect.replaceChildren(...Object.entries(facts.titles).map(([value, title]) => option(value, title)));
    this.familySelect.value = this.#family;
    this.preset.replaceChildren(element("option", { value: "", hidden: true }, "Custom"),
      ...Object.keys(facts.values[this.#family]).map((name) => option(name, name)));
    this.#bars.clear();
    this.chart.replaceChildren();
    const groups = new Map();
    for (const block of this.#blocks) {
      if (!groups.has(group(block))) {
        const bars = element("div", { className: "ftls-group-bars" });
        groups.set(group(block), bars);
        this.chart.append(element("div", { className: "ftls-group" }, bars,
          element("span", { "aria-hidden": "true" }, NAMES[block] ?? group(block))));
      }
      const bar = element("div", {
        className: "ftls-bar", role: "slider", tabIndex: -1, "aria-orientation": "vertical", "aria-valuemin": 0,
        "aria-valuemax": TOP,
        "aria-label": MEANINGS[block] ? `${NAMES[block]}, ${MEANINGS[block]}` : block, "data-control": `block-${block}`,
      });
      bar.finetuneBlock = block;
      this.#bars.set(block, bar);
      groups.get(group(block)).append(bar);
    }
    for (const column of this.chart.children) column.style.flexGrow = column.firstChild.children.length;
    if (!this.#bars.has(this.#active)) this.#active = this.#blocks[0];
  }

  #draw() {
    this.chart.classList.toggle("ftls-neutral", Object.values(this.#weights ?? {}).every((weight) => weight === 1));
    for (const [block, bar] of this.#bars) {
      const weight = this.#weights?.[block] ?? 1;
      bar.style.setProperty("--height", `${(100 * Math.min(TOP, Math.max(0, weight))) / TOP}%`);
      bar.classList.toggle("ftls-beyond", weight < 0 || weight > TOP);
      bar.setAttribute("aria-valuenow", String(weight));
      bar.setAttribute("aria-valuetext", written(weight));
      bar.tabIndex = block === this.#active ? 0 : -1;
      bar.title = `${NAMES[block] ?? block}: ${written(weight)}`;
    }
    this.name.textContent = NAMES[this.#active] ?? this.#active;
    this.value.set(this.#weights?.[this.#active] ?? 1);
  }

  #say(sentence) {
    this.message.textContent = sentence ? plain(sentence, 300) : "";
    this.message.title = this.message.textContent;
    this.text.setAttribute("aria-invalid", String(Boolean(sentence)));
    this.root.classList.toggle("ftls-faulty", Boolean(sentence));
  }

  #activate(block) {
    this.#active = block;
    this.#draw();
  }

  /** Take a typed, pasted or chosen text, if it can be read. */
  async #take(text) {
    const blocks = text.trim();
    if (blocks === this.#meaning.blocks) return this.#show();
    const answer = await this.#library.weights(blocks, this.#family);
    if (!answer.error) return this.#commit({ blocks });
    this.text.value = blocks;
    this.#say(answer.error);
  }

  #copy() {
    copyText(this.#meaning.blocks || "ALL");
    this.message.textContent = "Copied.";
  }

  async #paste() {
    try {
      await this.#take(await navigator.clipboard.readText());
    } catch {
      this.text.focus();
      this.text.select();
      this.message.textContent = "Press Ctrl+V and Enter here.";
    }
  }

  #change(block, weight) {
    if (!this.#weights) return;
    this.#weights[block] = Math.min(LIMIT, Math.max(-LIMIT, Math.round(weight * 1e4) / 1e4));
    this.#draw();
    this.#finish();
  }

  #finish() {
    const blocks = blockText(this.#weights, this.#blocks, this.#library.blocks.values[this.#family]);
    if (blocks !== this.#meaning.blocks) this.#commit({ blocks });
  }

  #listen() {
    const paint = (event) => {
      const bars = [...this.#bars.values()];
      const bar = bars.find((candidate) => event.clientX < candidate.getBoundingClientRect().right) ?? bars.at(-1);
      const { bottom, height } = bar.getBoundingClientRect();
      const step = event.shiftKey ? 0.01 : STEP;
      const weight = Math.round((TOP * (bottom - event.clientY)) / height / step) * step;
      this.#active = bar.finetuneBlock;
      this.#weights[this.#active] = Math.min(TOP, Math.max(0, Math.round(weight * 1e4) / 1e4));
      this.#draw();
    };
    let painting = false;
    this.chart.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.#weights || !event.target.closest(".ftls-group-bars")) return;
      event.preventDefault();
      painting = true;
      this.chart.setPointerCapture(event.pointerId);
      paint(event);
      this.#bars.get(this.#active).focus({ preventScroll: true });
    });
    this.chart.addEventListener("pointermove", (event) => painting && paint(event));
    for (const type of ["pointerup", "pointercancel"]) {
      this.chart.addEventListener(type, () => {
        if (painting) this.#finish();
        painting = false;
      });
    }
    this.chart.addEventListener("dblclick", () => this.#change(this.#active, 1));
    this.chart.addEventListener("focusin", (event) => {
      const block = event.target.finetuneBlock;
      if (block && block !== this.#active) this.#activate(block);
    });
    this.chart.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Left and Right choose a block, Up and Down change it, Home and End set 0 and 1. */
  #key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || !this.#weights) return;
    const blocks = this.#blocks;
    const step = event.shiftKey ? 0.01 : STEP;
    const weight = this.#weights[this.#active];
    const side = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const next = {
      ArrowUp: weight + step, ArrowDown: weight - step, PageUp: weight + 0.25, PageDown: weight - 0.25, Home: 0, End: 1,
      Delete: 1,
    }[event.key];
    if (side) {
      const index = Math.max(0, Math.min(blocks.length - 1, blocks.indexOf(this.#active) + side));
      this.#bars.get(blocks[index]).focus({ preventScroll: true });
    } else if (next !== undefined) {
      this.#change(this.#active, next);
    } else {
      return;
    }
    event.preventDefault();
  }
}

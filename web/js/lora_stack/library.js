/** What the server knows about LoRA files (nodes/host/lora_routes.py), asked once and shared by all editors. */

const LONGEST = 7000; // characters of an address; the server reads 8190 of a line
const PATIENCE = 4000; // milliseconds that choosing a file waits for its hash; large files take longer the first time

export class Library extends EventTarget {
  #ask;
  #cards = new Map();
  #weights = new Map();
  #found = new Map();

  /** `ask(path)` fetches a path of the server's; `url(path)` gives its address. */
  constructor(ask, url) {
    super();
    this.#ask = ask;
    this.url = url;
    this.names = null; // null until the server has answered
    this.blocks = null;
    this.problem = "";
  }

  async #json(path) {
    if (path.length > LONGEST) throw new Error("This is too long to ask the server about.");
    const answer = await this.#ask(path);
    const content = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(content.error ?? `The server answered ${answer.status}.`);
    return content;
  }

  /** Ask for the files again. Editors hear "change" when there is news. */
  async refresh() {
    try {
      this.blocks ??= await this.#json("/finetune/loras/blocks");
      this.names = (await this.#json("/finetune/loras")).loras;
      this.problem = "";
      this.#found.clear();
      this.#cards.clear();
    } catch (error) {
      this.problem = error.message;
    }
    this.dispatchEvent(new Event("change"));
  }

  has(name) {
    return this.names?.includes(name) ?? false;
  }

  /** A file's card, or {error}. Without `hashed` its hash may be empty and the answer is quick. */
  card(name, hashed = false) {
    const key = `${hashed} ${name}`;
    if (!this.#cards.has(key)) {
      const path = `/finetune/loras/card?name=${encodeURIComponent(name)}${hashed ? "" : "&quick=1"}`;
      this.#cards.set(key, this.#json(path).catch((error) => {
        this.#cards.delete(key);
        return { error: error.message };
      }));
    }
    return this.#cards.get(key);
  }

  /** {hash, bytes} of a file for its row; empty when the file is damaged or the answer takes too long. */
  async identity(name) {
    const late = new Promise((resolve) => setTimeout(resolve, PATIENCE, {}));
    const card = await Promise.race([this.card(name, true), late]);
    return card.hash ? { hash: card.hash, bytes: card.data_bytes } : {};
  }

  preview(name) {
    return this.url(`/finetune/loras/preview?name=${encodeURIComponent(name)}`);
  }

  /** Where a row's file is when its name is not listed: {name, note} or {error}. */
  find({ lora, hash, bytes }) {
    const query = new URLSearchParams({ name: lora, hash, bytes });
    const path = `/finetune/loras/find?${query}`;
    if (!this.#found.has(path)) this.#found.set(path, this.#json(path).catch((error) => ({ error: error.message })));
    return this.#found.get(path);
  }

  /** Promises the family of a checkpoint, or "". */
  async baseFamily(checkpoint) {
    const path = `/finetune/loras/base?checkpoint=${encodeURIComponent(checkpoint)}`;
    if (!this.#found.has(path)) this.#found.set(path, this.#json(path).catch(() => ({ family: "" })));
    return (await this.#found.get(path)).family ?? "";
  }

  /** {weights: {block: factor}} of a text for a family, or {error}. */
  weights(text, family) {
    const path = `/finetune/loras/weights?${new URLSearchParams({ text, family })}`;
    if (!this.#weights.has(path)) {
      this.#weights.set(path, this.#json(path).catch((error) => ({ error: error.message })));
    }
    return this.#weights.get(path);
  }
}

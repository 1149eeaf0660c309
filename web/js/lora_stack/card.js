/** What a LoRA file says about itself, in a box: all of it is somebody's text and shown as such. */
import { copyText, element, icon, plain } from "./dom.js";
import { showPopup } from "./popup.js";
import { parts } from "./rows.js";

function size(bytes) {
  const [scale, unit] = bytes >= 1e9 ? [1e9, "GB"] : bytes >= 1e6 ? [1e6, "MB"] : [1e3, "kB"];
  return `${(bytes / scale).toFixed(bytes / scale < 10 ? 1 : 0)} ${unit}`;
}

function facts(pairs) {
  const list = element("dl", { className: "ftls-facts" });
  for (const [name, value] of pairs) {
    if (value) list.append(element("dt", {}, name), element("dd", {}, plain(value, 300)));
  }
  return list;
}

function alert(sentence) {
  return element("p", { className: "ftls-warning", role: "alert" }, icon("warning"), plain(sentence, 400));
}

/** Words as buttons that copy them. */
function words(title, texts, label) {
  if (!texts?.length) return null;
  const list = element("div", { className: "ftls-words" });
  for (const text of texts) {
    const button = element("button", {
      type: "button", className: "ftls-word", title: `Copy “${plain(text, 60)}”`,
      "aria-label": `Copy ${label} ${plain(text, 60)}`,
    }, element("span", {}, plain(text, 120)), icon("copy"));
    button.onclick = async () => {
      await copyText(text);
      button.classList.add("ftls-copied");
      setTimeout(() => button.classList.remove("ftls-copied"), 900);
    };
    list.append(button);
  }
  return element("section", {}, element("h4", {}, title), list);
}

function metadata(entries) {
  const pairs = Object.entries(entries ?? {});
  if (!pairs.length) return null;
  const table = element("dl", { className: "ftls-metadata" });
  for (const [name, value] of pairs) table.append(element("dt", {}, plain(name, 100)), element("dd", {}, plain(value, 500)));
  return element("details", {}, element("summary", {}, `All metadata (${pairs.length})`), table);
}

/** Draw the card of a file into `box`; `warning` is a sentence or "". */
function fill(box, library, lora, card, warning) {
  const { folder, name } = parts(lora);
  const head = element("header", {}, element("h3", {}, plain(card.title || name, 120)),
    element("div", { className: "ftls-path" }, plain(folder + name, 300)));
  if (card.error) {
    box.replaceChildren(head, alert(card.error));
    return;
  }
  const image = card.preview
    ? element("img", { className: "ftls-image", src: library.preview(lora), alt: `Image beside ${plain(name, 60)}` })
    : null;
  const layers = card.layers ? `${card.layers} layers` : "";
  const kind = [card.method === "unknown" ? "" : card.method, card.rank ? `rank ${card.rank}` : "",
    card.alpha ? `alpha ${card.alpha}` : "", layers].filter(Boolean).join(", ");
  box.replaceChildren(...[
    head, image,
    warning ? alert(warning) : null,
    facts([
      ["Made for", library.blocks?.titles[card.family] ?? "not stated"], ["Base model", card.base_model], ["Kind", kind],
      ["Author", card.author], ["Size", size(card.bytes)], ["Hash", card.hash && `${card.hash.slice(0, 16)}…`],
    ]),
    words("Trigger words", card.triggers, "trigger word"),
    words("Frequent captions", card.tags?.slice(0, 8), "caption"),
    card.description ? element("p", { className: "ftls-description" }, plain(card.description, 1200)) : null,
    metadata(card.metadata),
  ].filter(Boolean));
}

/** Open the card of `lora` beside `anchor`. `warn(card)` promises a sentence when the file does not fit, else "". */
export async function openCard(anchor, library, lora, warn) {
  const box = element("div", { className: "ftls-card" }, element("p", {}, "Reading …"));
  const { place } = showPopup(anchor, `About ${plain(parts(lora).name, 60)}`, box, { className: "ftls-card-popup" });
  box.parentElement.focus({ preventScroll: true });
  const card = await library.card(lora);
  const warning = card.error ? "" : await warn(card);
  if (!box.isConnected) return;
  fill(box, library, lora, card, warning);
  box.querySelector("img")?.addEventListener("load", place);
  place();
}

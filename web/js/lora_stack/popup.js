/** A box above the page beside its anchor: unscaled, so that it can be read at any zoom of the graph. One at a time. */
import { element } from "./dom.js";

let open = null;

export function closePopup() {
  open?.close();
}

/** Show `content`; Escape, a press or a turned wheel elsewhere, and Tab out of it close it. Returns {close, place}. */
export function showPopup(anchor, label, content, { className = "", onclose = () => {} } = {}) {
  closePopup();
  const box = element("div", { className: `ftls-popup ${className}`, role: "dialog", tabIndex: -1, "aria-label": label },
    content);
  const abort = new AbortController();
  const close = (giveFocusBack = false) => {
    if (open?.box !== box) return;
    open = null;
    abort.abort();
    box.remove();
    if (giveFocusBack) anchor.focus({ preventScroll: true });
    onclose();
  };
  open = { box, close };
  document.body.append(box);
  const settle = () => place(box, anchor);
  settle();

  const outside = (event) => {
    if (!box.contains(event.target) && !anchor.contains(event.target)) close();
  };
  const { signal } = abort;
  document.addEventListener("pointerdown", outside, { capture: true, signal });
  document.addEventListener("wheel", outside, { capture: true, signal });
  window.addEventListener("resize", () => close(), { signal });
  for (const type of ["pointerdown", "pointermove", "pointerup", "wheel", "copy", "paste"]) {
    box.addEventListener(type, (event) => event.stopPropagation());
  }
  box.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Escape") close(true);
  });
  box.addEventListener("focusout", (event) => {
    if (event.relatedTarget && !box.contains(event.relatedTarget) && event.relatedTarget !== anchor) close();
  });
  return { close, place: settle };
}

function place(box, anchor) {
  const around = anchor.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = box;
  const gap = 4;
  const below = innerHeight - around.bottom - gap;
  const top = below >= height || below >= around.top ? around.bottom + gap : around.top - gap - height;
  box.style.left = `${Math.max(gap, Math.min(around.left, innerWidth - width - gap))}px`;
  box.style.top = `${Math.max(gap, Math.min(top, innerHeight - height - gap))}px`;
}

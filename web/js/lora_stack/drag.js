/** Rows change places under the pointer; only the release counts. */

/** Drag `row` within `list` from a press on its handle. `drop(index)` is called when it ends at another place. */
export function startDrag(event, list, row, drop) {
  if (event.button !== 0) return;
  const handle = event.currentTarget;
  const order = [...list.children];
  const from = order.indexOf(row);
  const abort = new AbortController();
  handle.setPointerCapture(event.pointerId);
  row.classList.add("ftls-dragged");

  const end = (to) => {
    abort.abort();
    row.classList.remove("ftls-dragged");
    list.append(...order); // the rows stay where they are; what they show changes places
    if (to !== from) drop(to);
  };
  const move = ({ clientY }) => {
    // The neighbors move around the dragged row: moving itself would end the capture of the pointer.
    const before = row.previousElementSibling;
    const after = row.nextElementSibling;
    const middle = (element) => {
      const { top, height } = element.getBoundingClientRect();
      return top + height / 2;
    };
    if (before && clientY < middle(before)) row.after(before);
    else if (after && clientY > middle(after)) row.before(after);
  };
  const { signal } = abort;
  handle.addEventListener("pointermove", move, { signal });
  handle.addEventListener("pointerup", () => end([...list.children].indexOf(row)), { signal });
  handle.addEventListener("pointercancel", () => end(from), { signal });
  window.addEventListener("keydown", (pressed) => {
    if (pressed.key !== "Escape") return;
    pressed.stopPropagation();
    end(from);
  }, { capture: true, signal });
}

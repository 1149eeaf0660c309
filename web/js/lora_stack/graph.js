/** What the graph says about the model that the stack is for. */

/** The node behind an input's link, or null. */
function source(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  return slot < 0 ? null : node.getInputNode?.(slot) ?? null;
}

/** Nodes that get what `node` gives, itself excluded. */
function targets(node) {
  const ids = node.outputs?.flatMap((output) => output.links ?? []) ?? [];
  const links = ids.map((id) => node.graph?.links?.get?.(id) ?? node.graph?.links?.[id]);
  return links.map((link) => link && node.graph.getNodeById(link.target_id)).filter(Boolean);
}

/**
 * Promises the family ("sd1", …) of the model to which the stack is applied, or "" when the graph does not tell: the way
 * leads forward to a node with a model, and from there back to the node that loads it.
 */
export async function baseFamily(node, library) {
  const seen = new Set();
  const ahead = targets(node);
  while (ahead.length) {
    const next = ahead.shift();
    if (seen.has(next)) continue;
    seen.add(next);
    let model = source(next, "model");
    if (!model) {
      ahead.push(...targets(next));
      continue;
    }
    while (model && source(model, "model") && !seen.has(model)) {
      seen.add(model);
      model = source(model, "model");
    }
    if (model?.comfyClass === "FineTuneLoadDemoBase") {
      const chosen = model.widgets?.find((widget) => widget.name === "model")?.value;
      return String(chosen).startsWith("flow") ? "sd3" : "sd1";
    }
    const file = model?.widgets?.find((widget) => widget.name === "ckpt_name")?.value;
    return typeof file === "string" ? library.baseFamily(file) : "";
  }
  return "";
}
